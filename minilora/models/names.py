"""The names of a model's tensors in Hugging Face's files, and back. Each family's table is in its file in families/."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache, partial
from typing import Any

import numpy as np

from ..files import Tensors, stored
from ..quantization import Quantized
from .families import FAMILIES
from .transformer import Transformer

CONSTANT = re.compile(r".*(position_ids|rotary_emb\.inv_freq|\.attn\.(masked_)?bias)")  # tensors that are not weights

OTHER_HEADS = {"lm_head", "score", "classifier", "cls", "qa_outputs"}  # of classes that are not read, too


def hub_name(family: str, path: str, head: str = "lm", gated: bool = True) -> str:
    """block_0.attention.q_proj -> model.layers.0.self_attn.q_proj, in the class of this head.

    Head "none" is no exception: its names have the base_model_prefix too. Raises ValueError for an unknown family, and
    for a path that is not in its table.
    """
    for pattern, name in patterns(family, head, gated):
        match = pattern.fullmatch(path)
        if match:
            return name.format(match.groupdict().get("block")) + (match["rest"] or "")
    raise ValueError(f"{path} has no name in a Hugging Face {family} model")


@cache
def patterns(family: str, head: str, gated: bool) -> list[tuple[re.Pattern[str], str]]:
    if family not in FAMILIES:
        raise ValueError(f"Hugging Face's names are known for {', '.join(FAMILIES)}, not for {family}")
    found = FAMILIES[family]
    names = [*found.hf_head_names.get(head, ()), *(() if gated else found.ungated_names), *found.hf_names]
    return [
        (re.compile(path.replace(".", r"\.").replace("{}", r"(?P<block>\d+)") + r"(?P<rest>\..+)?"), name)
        for path, name in names
    ]


def hf_name(model: Transformer, path: str) -> str:
    """hub_name() of a path in `model`, as it is saved: without the base_model_prefix if the model has no head."""
    name = hub_name(model.family, path, model.config.head, model.config.gated)
    return name.removeprefix(f"{FAMILIES[model.family].base_model_prefix}.") if model.config.head == "none" else name


def file_name(model: Transformer, path: str) -> str:
    """hf_name() of a path, as files have it."""
    name = hf_name(model, path)
    for part, in_files in FAMILIES[model.family].file_names:
        name = name.replace(part, in_files)
    return name


def add_body(family: str, name: str) -> str:
    """A name from any file, as it is in a class with a head: with the base_model_prefix.

    The names gamma and beta in old files become weight and bias, and those of file_names what the class calls them.
    """
    for part, in_files in FAMILIES[family].file_names:
        name = name.replace(in_files, part)
    name = re.sub(r"\bLayerNorm\.gamma$", "LayerNorm.weight", re.sub(r"\bLayerNorm\.beta$", "LayerNorm.bias", name))
    prefix = FAMILIES[family].base_model_prefix
    body = f"{prefix}." if prefix else ""
    return name if name.startswith(body) or is_of_head(family, name) else body + name


def is_of_head(family: str, name: str) -> bool:
    """Whether a tensor belongs to the head of some class. BERT's pooler does."""
    prefix, heads = FAMILIES[family].base_model_prefix, FAMILIES[family].hf_head_names.values()
    names = [name for table in (FAMILIES[family].hf_names, *heads) for _, name in table]
    own = {name.partition(".")[0] for name in names} - {prefix} if prefix else set()
    return name.startswith(f"{prefix}.pooler.") or name.partition(".")[0] in own | OTHER_HEADS


def transpose(family: str, name: str, x: Any) -> Any:
    """A weight from a file as (out, in), or from a Linear as in the file: GPT-2's files store some as (in, out), unless
    their blocks or rows have scales."""
    layer, _, parameter = name.rpartition(".")
    stored_as_is = parameter != "weight" or layer.rpartition(".")[2] not in FAMILIES[family].transposed
    return x if stored_as_is or (isinstance(x, Quantized) and x.for_blocks) else x.T


def standard_tensors(family: str, tensors: Mapping[str, np.ndarray]) -> Tensors:
    """The tensors of a file under their names in a class with a head, all weights as (out, in).

    Raises ValueError for a tensor that the file holds under two names.
    """
    found: dict[str, str] = {}
    for name in tensors:
        standard = add_body(family, name)
        if standard in found:
            raise ValueError(f"{standard} is there twice, under two names")
        found[standard] = name
    return Tensors({name: partial(standard_tensor, family, name, tensors, theirs) for name, theirs in found.items()})


def standard_tensor(family: str, name: str, tensors: Mapping[str, np.ndarray], theirs: str) -> Any:
    return transpose(family, name, stored(tensors, theirs))
