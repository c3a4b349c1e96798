"""Models in GGUF files: their config.json, and their tensors by Hugging Face's names."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..files import Tensors
from ..nn import shapes_of
from ..ops import Llama3Scaling, rope_frequencies
from ..quantization import Quantized, dense
from .config import Config
from .config_json import read_config
from .families import FAMILIES
from .gguf_file import Header, TensorEntry, read_header, read_stored
from .names import hub_name

ARCHITECTURES = {  # general.architecture -> family
    family.gguf_architecture or name: name for name, family in FAMILIES.items() if family.gguf_names
}
KEYS = {  # field of Config -> key below the architecture, for the fields that are in the family's config.json
    "d_model": "embedding_length",
    "d_ff": "feed_forward_length",
    "n_layers": "block_count",
    "n_heads": "attention.head_count",
    "n_kv_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "max_length": "context_length",
}
EPS = {"rms_norm_eps": "attention.layer_norm_rms_epsilon", "layer_norm_epsilon": "attention.layer_norm_epsilon"}
FIXED = {  # keys that change the model, and the one value of each that is implemented
    "expert_count": 0,
    "expert_used_count": 0,
    "attention.causal": True,
    "rope.scale_linear": 1.0,
    "rope.scaling.attn_factor": 1.0,
}
HEAD_DIM = "attention.value_length", "rope.dimension_count"  # both must be head_dim
ROPE = (
    "rope.freq_base", "rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_context_length",
    "rope.scaling.finetuned",
)  # fmt: skip
KNOWN = {"vocab_size", "tensor_data_layout", *KEYS.values(), *EPS.values(), *FIXED, *HEAD_DIM, *ROPE}
# llama.cpp uses these only where a family's gguf_keys has them: elsewhere every token sees all earlier ones. So it does
# here.
IGNORED = ("attention.sliding_window", "attention.sliding_window_pattern")
ROPE_FACTORS = "rope_freqs.weight"


def read_gguf(path: str | Path) -> tuple[dict[str, Any], Tensors]:
    """(config.json, tensors) of a model; the tensors are standard_tensors(), in float32, and stored() as in the file.

    llama.cpp writes Mistral and SmolLM2 as the architecture llama too. Every tensor of the file must be one of the
    model's, and of its shape. A sliding window is ignored, as in llama.cpp, with a warning.

    Raises FileNotFoundError, ImportError where the `gguf` package is missing, and ValueError for a file that is damaged
    or truncated, and for an architecture, a feature or a type of weights that is not supported.
    """
    path = Path(path)
    try:
        header = read_header(path)
        architecture = header.values.get("general.architecture")
        if not isinstance(architecture, str) or architecture not in ARCHITECTURES:
            raise ValueError(f"architecture {architecture!r:.80} is not supported, only {', '.join(ARCHITECTURES)}")
        name = ARCHITECTURES[architecture]
        values = read_values(path, architecture, header)
        _, config = read_config(values, "its header", "float32")
        for key in HEAD_DIM:
            if header.values.get(f"{architecture}.{key}", config.head_dim) != config.head_dim:
                raise ValueError(f"{key} is not the width of a head, {config.head_dim}: not supported")
        tensors = find_tensors(name, config, header.entries)
    except ValueError as error:
        raise ValueError(f"{path} cannot be read as GGUF: {error}") from None
    return values, Tensors(
        {
            hub_name(name, ours): partial(read_tensor, path, name, config, ours, tensor, header.entries[tensor])
            for ours, tensor in tensors.items()
        }
    )


def read_values(path: Path, architecture: str, header: Header) -> dict[str, Any]:
    """The config.json of a model of this architecture. Raises ValueError for a value that is not supported."""
    family, entries, start = FAMILIES[ARCHITECTURES[architecture]], header.entries, f"{architecture}."
    keys, own = family.config_keys, family.gguf_keys
    given = {key.removeprefix(start): x for key, x in header.values.items() if key.startswith(start)}
    for key, x in given.items():
        if key in IGNORED and key not in own:
            warnings.warn(f"{path}: {start}{key} is not used, as llama.cpp does not use it", stacklevel=5)
        elif key not in KNOWN | own.keys() or not isinstance(x, int | float | str) or x != FIXED.get(key, x):
            only = f", only {FIXED[key]!r}" if key in FIXED else ""
            raise ValueError(f"the key {f'{start}{key}'!r:.80} = {x!r:.80} is not supported{only}")
    if "token_embd.weight" not in entries:
        raise ValueError("the tensor 'token_embd.weight' is missing")
    rows = entries["token_embd.weight"].shape[0]
    if given.get("vocab_size", rows) != rows:
        raise ValueError(f"vocab_size = {given['vocab_size']}, and the embedding has {rows} rows")
    values = {
        "model_type": ARCHITECTURES[architecture],
        "vocab_size": rows,
        "tie_word_embeddings": "output.weight" not in entries,
        **{keys[field]: given.get(key) for field, key in KEYS.items() if field in keys},
        keys["eps"]: given.get(EPS[keys["eps"]]),
        **({"rope_theta": given["rope.freq_base"]} if "rope.freq_base" in given else {}),
        "rope_scaling": read_rope_scaling(path, given, entries),
        **{key: header.values.get(f"tokenizer.ggml.{key}") for key in ("bos_token_id", "eos_token_id")},
        **{theirs: given[key] for key, theirs in own.items() if key in given},
    }
    return values | family.gguf_values(values)


def read_rope_scaling(path: Path, given: Mapping[str, Any], entries: Mapping[str, TensorEntry]) -> Any:
    """The rope_scaling of a config.json: a dictionary, or None. A factor without a type is linear, as in llama.cpp."""
    kind = given.get("rope.scaling.type", "linear" if "rope.scaling.factor" in given else "none")
    if kind != "none" and ROPE_FACTORS not in entries:
        trained = given.get("rope.scaling.original_context_length", given.get(KEYS["max_length"]))
        lengths = {"original_max_position_embeddings": trained} if kind == "yarn" else {}
        return {"rope_type": kind, "factor": given.get("rope.scaling.factor"), **lengths}
    if ROPE_FACTORS not in entries:
        return None
    if kind != "none":
        raise ValueError(f"rope.scaling.type = {kind!r:.80} beside the tensor {ROPE_FACTORS!r} is not supported")
    factors = dense(read_stored(path, ROPE_FACTORS, entries[ROPE_FACTORS]))
    return llama3_rule(factors, given.get("rope.freq_base", 10000.0))


def llama3_rule(factors: np.ndarray, theta: float) -> dict[str, Any]:
    """The rope_scaling that has these factors, with the constants of Llama 3.1 to 3.3 (ops/rope.py has the rule).

    A file holds only the result of the rule: the factor (D/2,) by which each frequency θ^(-2i/D) is divided.
    Raises ValueError for other factors.
    """
    D, factor = 2 * factors.size, max(1.0, float(factors.max()))
    scaling = Llama3Scaling(factor, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192)
    divided_by = rope_frequencies(np, D, theta) / rope_frequencies(np, D, theta, scaling)
    if not np.allclose(factors, divided_by, rtol=1e-4):
        raise ValueError(f"the factors in {ROPE_FACTORS!r} are not those of Llama 3's rule: not supported")
    return {"rope_type": "llama3", **scaling._asdict()}


def find_tensors(name: str, config: Config, entries: Mapping[str, TensorEntry]) -> dict[str, str]:
    """{path of a parameter: name of its tensor in the file}.

    Raises ValueError for a tensor that is missing, that the model does not have, or that has another shape there.
    """
    if config.n_layers > len(entries):
        raise ValueError(f"it has {config.n_layers} blocks and {len(entries)} tensors: some are missing")
    shapes = shapes_of(FAMILIES[name].build(config, None).state_dict())
    found, shapes_in_file = dict[str, str](), dict[str, tuple[int, ...]]()
    if ROPE_FACTORS in entries:
        shapes_in_file[ROPE_FACTORS] = (config.head_dim // 2,)
    for theirs, ours in FAMILIES[name].gguf_names.items():
        for block in range(config.n_layers if "{}" in theirs else 1):
            for parameter in ("weight", "bias"):
                tensor, path = f"{theirs}.{parameter}".format(block), f"{ours}.{parameter}".format(block)
                if path in shapes:
                    found[path], shapes_in_file[tensor] = tensor, shapes[path]
    for tensor in entries:
        if tensor not in shapes_in_file:
            raise ValueError(f"the tensor {tensor!r:.80} has no place in a {name} model")
    for tensor, shape in shapes_in_file.items():
        if tensor not in entries:
            raise ValueError(f"the tensor {tensor!r} is missing")
        if entries[tensor].shape != shape:
            raise ValueError(f"the tensor {tensor!r} has shape {entries[tensor].shape}, not {shape}")
    return found


def read_tensor(
    path: Path, name: str, config: Config, ours: str, tensor: str, entry: TensorEntry
) -> np.ndarray | Quantized:
    """The parameter at the path `ours`, its rows in Hugging Face's order, as is the gain of a norm. Raises ValueError
    for NaN and infinity."""
    heads = {"q_proj": config.n_heads, "k_proj": config.n_kv_heads}.get(ours.split(".")[-2])
    if "norm" in ours.split(".")[-2] and FAMILIES[name].gguf_added_to_norms:
        return dense(read_stored(path, tensor, entry)) - np.float32(FAMILIES[name].gguf_added_to_norms)
    if not heads or not FAMILIES[name].gguf_interleaved:
        return read_stored(path, tensor, entry)
    return read_stored(path, tensor, entry, partial(rotary_halves, heads=heads))


def rotary_halves(W: np.ndarray, heads: int) -> np.ndarray:
    """(H·D, ...): the rows of each head in the order in which Hugging Face rotates them.

    A rotation turns pairs of rows. Hugging Face pairs row i with row i + D/2; llama.cpp, in its architecture llama,
    row 2i with row 2i + 1. So its row 2i + s is Hugging Face's row s·D/2 + i, for s = 0, 1 and 0 ≤ i < D/2:

        W[h, s·D/2 + i] = W'[h, 2i + s]
    """
    return W.reshape(heads, -1, 2, *W.shape[1:]).swapaxes(1, 2).reshape(W.shape)
