"""What the parameters of a model are called in Hugging Face's files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache

import numpy as np

from ..backend import Array
from .families import FAMILIES
from .transformer import Transformer

CONSTANT = re.compile(r".*(position_ids|rotary_emb\.inv_freq|\.attn\.(masked_)?bias)")  # tensors that are no weights


def hub_name(family: str, path: str, head: str = "lm") -> str:
    """block_0.attention.q_proj -> model.layers.0.self_attn.q_proj, in the class of a model with a head.

    Raises ValueError for a family without a table, and a path that is not in it.
    """
    for pattern, name in patterns(family, head):
        match = pattern.fullmatch(path)
        if match:
            return name.format(match.groupdict().get("block")) + (match["rest"] or "")
    raise ValueError(f"{path} has no name in a Hugging Face {family} model")


@cache
def patterns(family: str, head: str) -> list[tuple[re.Pattern[str], str]]:
    if family not in FAMILIES:
        raise ValueError(f"Hugging Face's names are known for {', '.join(FAMILIES)}, not for {family}")
    names = [*FAMILIES[family].names_of_head.get(head, ()), *FAMILIES[family].names]
    return [
        (re.compile(ours.replace(".", r"\.").replace("{}", r"(?P<block>\d+)") + r"(?P<rest>\..+)?"), theirs)
        for ours, theirs in names
    ]


def hf_name(model: Transformer, path: str) -> str:
    """block_0.attention.q_proj -> model.layers.0.self_attn.q_proj, in the class that `model` is saved as: one without
    a head has no "model." before it."""
    name = hub_name(model.family, path, model.config.head)
    return name.removeprefix(f"{FAMILIES[model.family].body}.") if model.config.head == "none" else name


def add_body(family: str, name: str) -> str:
    """A name in a file as it is in a class with a head: a file without one has no "bert." before it, and an old one
    calls the parameters of a norm gamma and beta."""
    name = re.sub(r"\bLayerNorm\.gamma$", "LayerNorm.weight", re.sub(r"\bLayerNorm\.beta$", "LayerNorm.bias", name))
    body = f"{FAMILIES[family].body}."
    return name if name.startswith(body) or is_of_head(family, name) else body + name


def is_of_head(family: str, name: str) -> bool:
    """Whether a tensor is of a head of some class, and not of the body. BERT's pooler is."""
    return bool(re.match(rf"(lm_head|score|classifier|cls|qa_outputs|{FAMILIES[family].body}\.pooler)\.", name))


def transpose(family: str, name: str, x: Array) -> Array:
    """A weight in the layout of a Linear, (out, in), or back in that of the file: GPT-2's has some as (in, out)."""
    layer, _, parameter = name.rpartition(".")
    return x.T if parameter == "weight" and layer.rpartition(".")[2] in FAMILIES[family].transposed else x


def standard_tensors(family: str, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors of a file by their names in a class with a head, all matrices as (out, in).

    Raises ValueError for a tensor that is there under two names.
    """
    found: dict[str, np.ndarray] = {}
    for name, x in tensors.items():
        standard = add_body(family, name)
        if standard in found:
            raise ValueError(f"{standard} is there twice, under two names")
        found[standard] = transpose(family, standard, x)
    return found
