"""Models people use, read from Hugging Face folders (config.json, .safetensors) and .gguf files."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..backend import Array, Rng, generator
from ..files import Reader, Tensors, open_tensors, read_json, stored
from ..nn import shapes_of
from ..quantization import STORED, Quantized, dense, format_names
from ..spelling import choose_from
from .bitsandbytes import format_in, gathered
from .config import LABELLED, Config
from .config_json import PRESERVED, read_config
from .families import FAMILIES
from .gguf import read_gguf
from .gguf_tokens import gguf_tokenizer
from .hub import PICKLE, pickle_error
from .labels import default_label_maps
from .names import CONSTANT, hub_name, is_of_head, standard_tensors
from .quantized import CLASSIFIER_LAYERS, load_quantized
from .sources import INDEX, TENSORS, locate, pinned, weight_map
from .subword_tokenizer import FILES_COPIED, TEMPLATES, files_in
from .tokenizer import ByteTokenizer, Tokenizer
from .tokenizer_files import FILES_READ, VOCABULARIES, read_tokenizer
from .transformer import Transformer

CLASSIFIER_DRAWN = (
    "(?!.*(pooler|head_transform)).*(drawn anew|are for another head)"  # warnings to expect of a new classifier
)


def load_pretrained(
    source: str | Path = "builtin",
    dtype: str = "float32",
    *,
    quantize: str | None = None,
    head: str | None = None,
    labels: int | None = None,
    rng: Rng = 0,
) -> Transformer:
    """The model in a Hugging Face folder or a .gguf file, or one by name.

    "builtin" is a llama over bytes that has read Python's documentation; "minilm" is all-MiniLM-L6-v2, "smollm2"
    SmolLM2-135M-Instruct, from their packages. Any other name, where no such path exists, is looked up on the Hugging
    Face Hub: "gpt2", "ORG/NAME", "ORG/NAME@REVISION"; `model.hub` is then the name and the commit. A folder holds one
    of FAMILIES, its weights in float16, bfloat16, float32 or float64, in one file or in shards. `head` is one of
    config.HEADS, those of classifiers with `labels` outputs; None takes the file's own. A classifier that the file does
    not hold is drawn from `rng`, a seed or a generator. `quantize` is a format of quantization/, in which the matrices
    are held and decoded to `dtype` for each product (models/quantized.py says which); the model is frozen, and adapters
    are trained on it. At most one matrix is in full precision at a time while it loads. "stored" holds the matrices as
    the file has them: in GGUF's blocks, bfloat16, float16 or float32. A folder that `transformers` wrote with
    bitsandbytes, in NF4 or int8 (models/bitsandbytes.py), is held as it is stored; if `quantize` names the same format,
    its other matrices, of embeddings and heads, are held as in every model of that format.

    Warns of tensors that are not used and of layers that are drawn. Raises FileNotFoundError for a missing file,
    ImportError with the line to run for a missing package, ValueError for a family, feature or format that is not
    supported, and for weights that are a pickle, damaged, not finite, or do not fit the config; from the Hub also
    PermissionError and ConnectionError.
    """
    if quantize is not None and quantize not in format_names():
        raise ValueError(f"no format is called {quantize!r}: {choose_from(quantize, format_names())}")
    hub = pinned(source)
    path = locate(str(hub) if hub else source)
    config_path = config_file(path)
    values, tensors = read_source(path)
    family, config = read_config(values, str(config_path), dtype, head, labels)
    in_file = format_in(values, str(config_path))
    if in_file and quantize not in (None, STORED, in_file):
        raise ValueError(
            f"{source} is in {in_file}, and cannot be held in {quantize}: leave quantize out (--quantize none)"
        )
    if in_file and not quantize:
        quantize = STORED
    try:
        model = assemble(family, config, tensors if quantize else dict(tensors), str(source), generator(rng), quantize)
    except ValueError as error:
        what = "header" if path.is_file() else "config.json"
        raise ValueError(f"the tensors of {source} do not fit its {what}: {error}") from None
    unnamed = default_label_maps(config.labels).items()
    said = {key: values[key] for key in PRESERVED if values.get(key) is not None}
    model.hf_config = {key: value for key, value in said.items() if (key, value) not in unnamed}
    model.hub = hub
    return model


def load_tokenizer(source: str | Path = "builtin") -> Tokenizer:
    """The tokenizer of the model in `source`: that of its files, or a ByteTokenizer if they hold none and V = 256.

    Raises FileNotFoundError and ImportError as load_pretrained does, ValueError for files that are damaged.
    """
    path = locate(source, optional=FILES_READ)
    if path.is_file():
        return gguf_tokenizer(path)
    alone = not any((path / name).is_file() for name in VOCABULARIES)
    over_bytes = alone and read_json(config_file(path)).get("vocab_size") == 256
    return ByteTokenizer() if over_bytes else read_tokenizer(path)


def tokenizer_files(source: str | Path) -> dict[str, bytes]:
    """{file name: content} of the tokenizer of the model in `source`; {} if it has none.

    A folder's own files, byte for byte, or new ones for a .gguf file, for which it raises as load_tokenizer does.
    """
    path = locate(source, optional=(*FILES_COPIED, f"{TEMPLATES}/*.jinja"))
    return load_tokenizer(path).files() if path.is_file() else files_in(path)


def config_file(path: Path) -> Path:
    """The config.json of a folder, or a .gguf file itself. Raises FileNotFoundError."""
    if path.is_dir() and not (path / "config.json").is_file():
        raise FileNotFoundError(f"{path} holds no config.json: it is not a model folder")
    return path / "config.json" if path.is_dir() else path


def read_source(path: Path) -> tuple[Mapping[str, Any], Mapping[str, np.ndarray]]:
    """(config.json, every tensor) of a folder or a .gguf file; a folder without a config.json has {} for it.

    For a model of FAMILIES the tensors are standard_tensors(), and those of bitsandbytes are gathered(). Raises
    FileNotFoundError and ValueError as load_pretrained does.
    """
    if path.is_file():
        return read_gguf(path)
    values = read_json(config_file(path)) if (path / "config.json").is_file() else {}
    family, tensors = values.get("model_type"), read_checkpoint(path)
    in_file = format_in(values, str(path / "config.json"))
    if in_file:
        tensors = gathered(tensors, in_file)
    return values, standard_tensors(family, tensors) if isinstance(family, str) and family in FAMILIES else tensors


def read_checkpoint(folder: Path) -> Tensors:
    """Every tensor of a model folder: from one file, or from the shards that its index names.

    Raises FileNotFoundError for a missing file, ValueError for one that is damaged (load_tensors), for weights that are
    only there as a pickle, and for shards that do not hold exactly the tensors of their index.
    """
    if (folder / TENSORS).is_file():
        return open_tensors(folder / TENSORS)[0]
    if not (folder / INDEX).is_file():
        pickle = next(filter(PICKLE.fullmatch, sorted(path.name for path in folder.iterdir())), None)
        if pickle:
            raise pickle_error(folder / pickle, TENSORS)
        raise FileNotFoundError(f"{folder} holds no {TENSORS} and no {INDEX}: it is not a checkpoint in safetensors")
    file_of = weight_map(folder / INDEX)
    readers: dict[str, Reader] = {}
    for file in sorted(set(file_of.values())):
        shard = open_tensors(folder / file)[0]
        differing = set(shard) ^ {name for name in file_of if file_of[name] == file}
        if differing:
            raise ValueError(f"{folder / INDEX} and {file} do not agree on {min(differing)}")
        readers |= shard.readers
    return Tensors(readers)


def assemble(
    family: str,
    config: Config,
    tensors: Mapping[str, np.ndarray],
    source: str,
    rng: np.random.Generator,
    quantize: str | None = None,
) -> Transformer:
    """A model of `config` with these standard_tensors(). Raises and warns as load_pretrained does."""
    if config.n_layers > len(tensors):  # before so many layers are made
        raise ValueError(f"{config.n_layers} layers are needed, and there are {len(tensors)} tensors")
    model = FAMILIES[family].build(config, None)
    ours = {hub_name(family, path, config.head, config.gated): path for path in model.named_parameters()}
    readers: dict[str, Reader] = {name: partial(stored, tensors, name) for name in tensors}
    state: dict[str, Reader] = {ours[name]: partial(floats, tensors, name) for name in readers if name in ours}
    rest = {name: reader for name, reader in readers.items() if name not in ours and not CONSTANT.fullmatch(name)}
    for name in FAMILIES[family].ignored:
        rest.pop(name, None)
    drop_copies(family, config, state, rest)
    unused = sorted(name for name in rest if is_of_head(family, name))
    if unused:
        warnings.warn(f"{source}: {len(unused)} tensors are for another head: {', '.join(unused)}", stacklevel=3)
    drawn = draw_classifier(model, state, rng)
    if drawn:
        warnings.warn(f"{source} holds no {', '.join(drawn)}: drawn anew, to be trained", stacklevel=3)
    found = Tensors(state | {name: data for name, data in rest.items() if name not in unused})
    if quantize:
        load_quantized(model, found, quantize)
    else:
        model.load_state_dict(dict(found))
    return model


def floats(tensors: Mapping[str, Any], name: str) -> Array | Quantized:
    """A tensor as its file has it. Raises ValueError for one of integers, such as codes without their scales."""
    x: Array | Quantized = stored(tensors, name)
    if x.dtype.kind != "f":
        raise ValueError(f"{name} is {x.dtype}, and floats are needed: are these codes whose scales are missing?")
    return x


def drop_copies(family: str, config: Config, state: dict[str, Reader], rest: dict[str, Reader]) -> None:
    """Remove from `rest` the copies that some writers store: a tied head's weight, the bias of BERT's head, T5's
    embedding once for each stack.

    Raises ValueError where a tied tensor is not a copy.
    """
    pairs = [(name, "embed.token.weight") for name in FAMILIES[family].copies]
    if config.head == "lm":
        weight = hub_name(family, "lm_head.weight")
        bias = weight.replace("weight", "bias")
        if config.tied:
            pairs += [(weight, "embed.token.weight"), (bias, "lm_head.bias")]
        elif bias in rest:  # an untied BERT stores two biases, and uses this one
            state["lm_head.bias"] = rest.pop(bias)
    for name, path in pairs:
        copy = rest.pop(name, None) if path in state else None
        if copy is not None and not np.array_equal(dense(copy()), dense(state[path]())):
            raise ValueError(f"{name} is not {hub_name(family, path)}, though the config says that they are tied")


def draw_classifier(model: Transformer, state: dict[str, Reader], rng: np.random.Generator) -> list[str]:
    """Add to `state` the parameters that a classifier lacks: weights N(0, 0.02²), biases zero, the gains of norms one.
    Returns their paths."""
    shapes, labelled = shapes_of(model.state_dict()), model.config.head in LABELLED
    drawable = (path for path in shapes if CLASSIFIER_LAYERS.match(path) or (labelled and path.startswith("head_")))
    missing = [path for path in drawable if path not in state]
    for path in missing:
        x = 0.02 * rng.standard_normal(shapes[path])
        x = 0 * x if path.endswith("bias") else 1 + 0 * x if "norm" in path else x
        state[path] = partial(np.asarray, x)
    return missing
