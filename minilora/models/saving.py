"""Models written as Hugging Face folders, and the hash by which an adapter's file identifies its base."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ..backend import Array
from ..files import Tensors, tensors_to_bytes, to_json, weights_hash, write_folder
from ..nn import Parameter
from ..quantization import Quantized, dense
from ..quantization.bfloat16 import BFloat16
from ..quantization.float16 import Float16
from ..quantization.int8 import Int8
from ..quantization.nf4 import NF4
from .bitsandbytes import quantization_config, tensors_of
from .config_json import write_config
from .names import file_name, hf_name, transpose
from .quantized import formats_for
from .sources import CONFIG, TENSORS
from .tokenizer import Tokenizer
from .transformer import Transformer


def base_hash(
    model: Transformer,
    without: Collection[str] = (),
    format: str | None = None,
    made: Mapping[str, Parameter] = {},
) -> str:
    """sha256 over the names, shapes and bytes of the base's parameters, except those at the paths in `without`; with a
    `format`, over what they would be if the model were quantised so.

    It is the same with an adapter attached as without. A tied parameter counts once, under the first of its paths.
    `made` is {path: Parameter} that replace the model's, for an adapter that is not attached yet (LoftQ).
    """
    formats = formats_for(model, format) if format else {}
    parameters = model.base_parameters(without) | dict(made)

    def held(p: Parameter) -> Array | Quantized:
        return formats[p].of(p.data) if p in formats else p.data

    return weights_hash(Tensors({path: partial(held, p) for path, p in parameters.items()}))


def save_pretrained(model: Transformer, folder: str | Path, tokenizer: Tokenizer | None = None) -> None:
    """Write config.json and model.safetensors, and the tokenizer's files if one is given; `transformers` loads the
    folder. Merged adapters are saved merged. Each matrix is written as it is held; beside NF4 and int8, for which
    `transformers` needs bitsandbytes, the others are in float32. With a tokenizer, a decoder's classifier gets the
    pad_token_id by which `transformers` finds the last token of each text in a batch.

    Raises ValueError while adapters are attached and not merged, for a model in NF4 and in int8, or when the folder
    holds something already.
    """
    write_folder(folder, model_files(model, tokenizer) | (tokenizer.files() if tokenizer else {}))


def model_files(model: Transformer, tokenizer: Tokenizer | None = None) -> dict[str, bytes]:
    """{file name: content} of `model`. Raises as save_pretrained does."""
    modules = [module for _, module in model.named_modules()]
    adapted, merged = sum(module.is_adapter for module in modules), sum(module.is_merged for module in modules)
    if adapted:
        raise ValueError(f"{adapted} layers are adapted: merge(model) first, or save the adapter by itself")
    state, config = model.state_dict(), quantization_config(model)
    names = {path: file_name(model, path) for path in state}
    tensors: dict[str, Any] = {}
    for path, name in names.items():
        x = state[path]
        if isinstance(x, NF4 | Int8):
            tensors |= tensors_of(name, x)
        elif isinstance(x, BFloat16) and not config:
            tensors[name] = transpose(model.family, name, x)
        else:  # beside NF4 and int8, transformers computes in the file's dtypes, which must be one
            x = x.arrays["values"] if isinstance(x, Float16) and not config else dense(x)
            tensors[name] = transpose(model.family, name, x)
    kinds = {x.name if isinstance(x, BFloat16) else str(x.dtype) for x in tensors.values() if x.ndim > 1}
    of_embeddings = str(next(iter(state.values())).dtype)
    values = write_config(model) | {"dtype": kinds.pop() if len(kinds) == 1 else of_embeddings}
    if config:
        values["quantization_config"] = config
    if model.config.head == "lm":
        values["tie_word_embeddings"] = "lm_head.weight" not in state
        if "lm_head.weight" in state and "lm_head.bias" in state:  # untied, `transformers` uses its second name
            tensors[f"{hf_name(model, 'lm_head')}.bias"] = state["lm_head.bias"]
    if tokenizer and reads_last_token(model):
        values["pad_token_id"] = padding_id(tokenizer, values["pad_token_id"])
    return {
        CONFIG: to_json(values),
        TENSORS: tensors_to_bytes(tensors, {"format": "pt", "adapters_merged": str(merged)}),
    }


def reads_last_token(model: Transformer) -> bool:
    """Whether the head reads only the last token of a text, as a decoder's classifier does."""
    return "last" in model.layers


def padding_id(tokenizer: Tokenizer, configured: int | None) -> int | None:
    """The id that texts are padded with: the tokenizer's own; without one `configured`, or another special token.

    `transformers` takes the last token that is not padding for the end of the text. So this must not be the id that
    every text ends with. Returns None, with a warning, where no other id is known.
    """
    last = next(reversed(tokenizer.encode("a").tolist()), None)
    known = (configured, tokenizer.eos, tokenizer.bos) if tokenizer.pad is None else (tokenizer.pad,)
    found = next((i for i in known if i is not None and i != last), None)
    if found is None:
        warnings.warn(
            "the tokenizer has no token to pad with, so transformers will classify one text at a time", stacklevel=3
        )
    return found
