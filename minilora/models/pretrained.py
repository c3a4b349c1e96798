"""Models people use, in and out: Hugging Face folders (config.json, .safetensors) and .gguf files.

A parameter, an adapter's tensor and a target all go through the same names (names.py).
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..adapters.base import Adapter
from ..adapters.merge import MergedEmbedding, MergedLinear
from ..backend import Array
from ..files import load_tensors, read_json, tensors_to_bytes, to_json, weights_hash, write_folder
from ..nn import shapes_of
from ..spelling import counted
from .config import LABELLED, Config
from .configs import KEPT, label_maps, names_of, read_config, unnamed, write_config
from .families import FAMILIES
from .gguf import read_gguf
from .gguf_tokens import gguf_tokenizer
from .hub import PICKLE, pickled
from .names import hub_name
from .sources import INDEX, TENSORS, locate, pinned, weight_map
from .tokenizer import FILES, READ, TEMPLATES, ByteTokenizer, Tokenizer, read_tokenizer
from .tokenizer import tokenizer_files as read_files
from .transformer import Transformer

BASE = {"gpt2": "transformer", "llama": "model", "bert": "bert", "roberta": "roberta"}  # what a head stands on
HEAD = re.compile(r"(lm_head|score|classifier|cls|qa_outputs|(bert|roberta)\.pooler)\.")  # what stands on it
NEW = re.compile(r"(classifier|classifier_transform|pooler)\.")  # what a classifier may have to start afresh
CLASSIFIER_DRAWN = "(?!.*pooler).*(drawn anew|are for another head)"  # what is to be expected of a new classifier
CONSTANT = re.compile(r".*(position_ids|rotary_emb\.inv_freq|\.attn\.(masked_)?bias)")  # what is no weight
CONV1D = re.compile(r".*\.(c_attn|c_proj|c_fc)\.weight")  # GPT-2's, which are stored as (in, out)


def load_pretrained(
    source: str | Path = "builtin",
    dtype: str = "float32",
    *,
    head: str | None = None,
    labels: int | None = None,
    rng: np.random.Generator | None = None,
) -> Transformer:
    """The model in a Hugging Face folder or a .gguf file, or one by name.

    "builtin" is a llama over bytes that has read Python's documentation; "minilm" is all-MiniLM-L6-v2, "smollm2"
    SmolLM2-135M-Instruct, from their packages. Any other name, where no such path exists, is looked up on the Hugging
    Face Hub: "gpt2", "ORG/NAME", "ORG/NAME@REVISION"; `model.hub` is then the name and the commit. Folders hold a gpt2,
    llama, mistral, qwen2, bert or roberta, its weights in float16, bfloat16, float32 or float64, in one file or in
    shards. `head` is "lm", "classify" (with `labels` outputs), "tokens" (so many for each token; of encoders) or
    "none"; without it the file's own. A classifier that the file does not hold is drawn from `rng`.

    What of the file is not used, and what is new, is said in a warning. Raises FileNotFoundError for what is not there,
    ImportError with the line to run for a missing package, ValueError for a family or feature that is not supported and
    for weights that are a pickle, damaged, not finite, or do not fit the config, and of the Hub PermissionError and
    ConnectionError.
    """
    hub = pinned(source)
    path = locate(str(hub) if hub else source)
    said = says(path)
    values, tensors = read_source(path)
    family, config = read_config(values, str(said), dtype, head, labels)
    try:
        model = assemble(family, config, in_full(family, tensors), str(source), rng or np.random.default_rng(0))
    except ValueError as error:
        what = "header" if path.is_file() else "config.json"
        raise ValueError(f"the tensors of {source} do not fit its {what}: {error}") from None
    nameless = unnamed(config.labels).items()
    model.said = {key: values[key] for key in KEPT if key in values and (key, values[key]) not in nameless}
    model.hub = hub
    return model


def load_tokenizer(source: str | Path = "builtin") -> Tokenizer:
    """What turns text into the ids of the model in `source`: what its files say, or bytes where there are 256 ids and
    no tokenizer, as of all of this library's own.

    Raises FileNotFoundError and ImportError as load_pretrained does, ValueError for files that are damaged.
    """
    path = locate(source, also=READ)
    if path.is_file():
        return gguf_tokenizer(path)
    over_bytes = not (path / "tokenizer.json").is_file() and read_json(says(path)).get("vocab_size") == 256
    return ByteTokenizer() if over_bytes else read_tokenizer(path)


def tokenizer_files(source: str | Path) -> dict[str, bytes]:
    """{file name: content} of the tokenizer of the model in `source`: a folder's own files, byte for byte; those of a
    .gguf file are made. Empty where there is none. Raises as load_tokenizer does for a .gguf file."""
    path = locate(source, also=(*FILES, f"{TEMPLATES}/*.jinja"))
    return load_tokenizer(path).files() if path.is_file() else read_files(path)


def says(path: Path) -> Path:
    """The file that says what model is in `path`: config.json, or a .gguf file itself. Raises FileNotFoundError."""
    if path.is_dir() and not (path / "config.json").is_file():
        raise FileNotFoundError(f"{path} holds no config.json: it is not a model folder")
    return path / "config.json" if path.is_dir() else path


def read_source(path: Path) -> tuple[Mapping[str, Any], Mapping[str, np.ndarray]]:
    """(what config.json says, every tensor) of a folder or a .gguf file. Where nothing says what weights are, it is {}.

    Raises FileNotFoundError and ValueError as load_pretrained does.
    """
    if path.is_file():
        values, tensors, _ = read_gguf(path)
        return values, tensors
    return read_json(says(path)) if (path / "config.json").is_file() else {}, read_checkpoint(path)


def read_checkpoint(folder: Path) -> dict[str, np.ndarray]:
    """Every tensor of a model folder: from one file, or from the shards that its index names.

    Raises FileNotFoundError for a missing file, ValueError for one that is damaged (load_tensors), for weights that are
    only there as a pickle, and for shards that do not hold just what their index says.
    """
    if (folder / TENSORS).is_file():
        return load_tensors(folder / TENSORS)[0]
    if not (folder / INDEX).is_file():
        pickle = next(filter(PICKLE.fullmatch, sorted(path.name for path in folder.iterdir())), None)
        if pickle:
            raise pickled(folder / pickle, TENSORS)
        raise FileNotFoundError(f"{folder} holds no {TENSORS} and no {INDEX}: it is not a checkpoint in safetensors")
    homes = weight_map(folder / INDEX)
    tensors: dict[str, np.ndarray] = {}
    for file in sorted(set(homes.values())):
        shard, named = load_tensors(folder / file)[0], {name for name, home in homes.items() if home == file}
        if set(shard) != named:
            name = min(set(shard) ^ named)
            raise ValueError(f"{folder / INDEX} and {file} do not agree on {name}")
        tensors |= shard
    return tensors


# ---- names ----


def labels_of(model: Transformer) -> list[str]:
    """The names of a classifier's outputs, in order; [] where they are not known."""
    return names_of(model.said.get("id2label"), model.config.labels) if model.config.head in LABELLED else []


def name_labels(model: Transformer, names: Sequence[str]) -> None:
    """Name the outputs of a classifier, in order, for save_pretrained and save_adapter."""
    model.said = model.said | label_maps(names)


def their_name(model: Transformer, path: str) -> str:
    """block_0.attention.q_proj -> model.layers.0.self_attn.q_proj; a model without a head has no "model." before it."""
    name = hub_name(model.family, path, model.config.head)
    return name.removeprefix(f"{BASE[model.family]}.") if model.config.head == "none" else name


def with_head(family: str, name: str) -> str:
    """A name in a file, as a model with a head has it: without one there is no "bert." before it, and old files say
    gamma and beta of a norm."""
    name = re.sub(r"\bLayerNorm\.gamma$", "LayerNorm.weight", re.sub(r"\bLayerNorm\.beta$", "LayerNorm.bias", name))
    return name if name.startswith(f"{BASE[family]}.") or HEAD.match(name) else f"{BASE[family]}.{name}"


def turned(family: str, name: str, x: Array) -> Array:
    """A weight as a Linear has it, (out, in), or back: GPT-2's files hold those of Conv1D as (in, out)."""
    return x.T if family == "gpt2" and CONV1D.fullmatch(name) else x


def in_full(family: str, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """`tensors` of a file by their names in a model with a head, matrices as (out, in).

    Raises ValueError for a tensor that is there under two names.
    """
    found: dict[str, np.ndarray] = {}
    for name, x in tensors.items():
        whole = with_head(family, name)
        if whole in found:
            raise ValueError(f"{whole} is there twice, under two names")
        found[whole] = turned(family, whole, x)
    return found


def assemble(
    family: str, config: Config, tensors: Mapping[str, np.ndarray], source: str, rng: np.random.Generator
) -> Transformer:
    """A model of `config` with these tensors, in_full(). Raises and warns as load_pretrained does."""
    if config.n_layers > len(tensors):  # before so many layers are made
        raise ValueError(f"{config.n_layers} layers are asked for, and there are {len(tensors)} tensors")
    model = FAMILIES[family](config, None)
    ours = {hub_name(family, path, config.head): path for path in model.named_parameters()}
    state = {ours[name]: x for name, x in tensors.items() if name in ours}
    rest = {name: x for name, x in tensors.items() if name not in ours and not CONSTANT.fullmatch(name)}
    if config.head == "lm":
        drop_copies(family, config.tied, state, rest)
    unused = sorted(filter(HEAD.match, rest))
    if unused:
        warnings.warn(f"{source}: {len(unused)} tensors are for another head: {', '.join(unused)}", stacklevel=3)
    started = draw_classifier(model, state, rng)
    if started:
        warnings.warn(f"{source} holds no {', '.join(started)}: drawn anew, to be trained", stacklevel=3)
    model.load_state_dict(state | {name: data for name, data in rest.items() if name not in unused})
    return model


def drop_copies(family: str, tied: bool, state: dict[str, Array], rest: dict[str, Array]) -> None:
    """Take out of `rest` what some writers store twice: a tied head's weight, the bias of BERT's head.

    Raises ValueError where it is no copy.
    """
    weight = hub_name(family, "lm_head.weight")
    bias = weight.replace("weight", "bias")
    if not tied and bias in rest:  # in an untied BERT the other bias is read by no one
        state["lm_head.bias"] = rest.pop(bias)
    for name, path in ((weight, "embed.token.weight"), (bias, "lm_head.bias")):
        copy = rest.pop(name, None) if tied and path in state else None
        if copy is not None and not np.array_equal(copy, state[path]):
            raise ValueError(f"{name} is not {hub_name(family, path)}, though the config says that they are tied")


def draw_classifier(model: Transformer, state: dict[str, Array], rng: np.random.Generator) -> list[str]:
    """Put into `state` what a classifier lacks: weights N(0, 0.02²), biases zero. Returns the paths."""
    shapes = shapes_of(model.state_dict())
    missing = [path for path in shapes if path not in state and NEW.match(path)]
    for path in missing:
        drawn = 0.02 * rng.standard_normal(shapes[path])
        state[path] = 0 * drawn if path.endswith("bias") else drawn
    return missing


# ---- out ----


def base_hash(model: Transformer, without: Collection[str] = ()) -> str:
    """sha256 over the base's names, shapes and bytes, but for the parameters at the paths in `without`.

    It is the same with an adapter attached as without.
    """
    parameters = model.named_parameters(without)
    return weights_hash({path: p.data for path, p in parameters.items() if not path.endswith(("lora_A", "lora_B"))})


def save_pretrained(model: Transformer, folder: str | Path, tokenizer: Tokenizer | None = None) -> None:
    """Write config.json and model.safetensors, merged adapters merged, and the tokenizer's files if one is given;
    `transformers` loads the folder. A decoder's classifier is given the pad_token_id by which `transformers` finds the
    last token of each text in a batch.

    Raises ValueError while adapters are attached and not merged, or when the folder holds something already.
    """
    write_folder(folder, model_files(model, tokenizer) | (tokenizer.files() if tokenizer else {}))


def model_files(model: Transformer, tokenizer: Tokenizer | None = None) -> dict[str, bytes]:
    """{file name: content} of `model`. Raises as save_pretrained does."""
    modules = [module for _, module in model.named_modules()]
    adapted, merged = (sum(isinstance(m, kind) for m in modules) for kind in (Adapter, MergedLinear | MergedEmbedding))
    if adapted:
        raise ValueError(f"{adapted} layers are adapted: merge(model) first, or save the adapter by itself")
    state = model.state_dict()
    names = {path: their_name(model, path) for path in state}
    tensors = {name: turned(model.family, name, state[path]) for path, name in names.items()}
    values = write_config(model) | {"dtype": str(next(iter(tensors.values())).dtype)}
    if model.config.head == "lm":
        values["tie_word_embeddings"] = "lm_head.weight" not in state
        if "lm_head.weight" in state and "lm_head.bias" in state:  # untied, a masked head reads it under its other name
            tensors[f"{their_name(model, 'lm_head')}.bias"] = state["lm_head.bias"]
    if tokenizer and reads_last_token(model):
        values["pad_token_id"] = padding_id(tokenizer, values["pad_token_id"])
    return {
        "config.json": to_json(values),
        TENSORS: tensors_to_bytes(tensors, {"format": "pt", "adapters_merged": str(merged)}),
    }


def reads_last_token(model: Transformer) -> bool:
    """Is it a classifier of decoders, which looks at the last token of a text alone?"""
    return "last" in model.layers


def padding_id(tokenizer: Tokenizer, said: int | None) -> int | None:
    """The id that texts are padded with: the tokenizer's own; of one that has none `said`, or another special token.

    `transformers` takes the last token that is another for the text's last, so it must not be what every text ends
    with. None, with a warning, where there is no such id.
    """
    last = next(reversed(tokenizer.encode("a").tolist()), None)
    known = (said, tokenizer.eos, tokenizer.bos) if tokenizer.pad is None else (tokenizer.pad,)
    found = next((i for i in known if i is not None and i != last), None)
    if found is None:
        warnings.warn(
            "the tokenizer has no token to pad with, so transformers will classify one text at a time", stacklevel=3
        )
    return found


def listed(names: Sequence[str]) -> str:
    """The names of labels in brackets, the first of many; "" where they are not known."""
    more = [f"and {len(names) - 8} more"] if len(names) > 8 else []
    return f" ({', '.join([*names[:8], *more])})" if names else ""


def describe_model(source: str | Path) -> dict[str, str]:
    """What `minilora info` says of a model."""
    model = load_pretrained(source)
    config = model.config
    turned = model.family == "llama"
    positions = f"rotary with theta {config.rope_theta:g}{', scaled as in Llama 3' * bool(config.rope_scaling)}"
    classifier = f"a classifier of {config.labels} labels{listed(labels_of(model))}"
    heads = {"lm": f"{'tied' if config.tied else 'untied'} head", "classify": classifier}
    heads["tokens"] = f"{classifier} for each token"
    windowed = sum(config.window(i) is not None for i in range(config.n_layers))
    window = f", a window of {config.sliding_window} in {counted(windowed, 'layer')}" if windowed else ""
    return {
        "model": f"{model.family}, {sum(p.data.size for p in model.named_parameters().values()):,} parameters",
        "layers": f"{config.n_layers} of width {config.d_model}, hidden {config.d_ff}",
        "heads": f"{config.n_heads} of width {config.head_dim}, {config.n_kv_heads} for keys and values",
        "vocabulary": f"{config.vocab_size}, {heads.get(config.head, 'no head')}",
        "positions": f"{config.max_length}, {positions if turned else 'learned'}{window}",
        "base sha256": base_hash(model),
    }
