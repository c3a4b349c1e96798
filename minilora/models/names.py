"""What the parameters of a model are called in Hugging Face's files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache

import numpy as np

from ..backend import Array
from .families import FAMILIES
from .families.bert import BODY_NAMES
from .families.family import Names
from .transformer import Transformer

CONSTANT = re.compile(r".*(position_ids|rotary_emb\.inv_freq|\.attn\.(masked_)?bias)")  # tensors that are no weights

# What accounting/ counts, and no file in families/ builds.
DEBERTA = [
    ("embed.position", "deberta.encoder.rel_embeddings"),
    ("embed.position_norm", "deberta.encoder.LayerNorm"),
    ("block_{}.attention.q_proj", "deberta.encoder.layer.{}.attention.self.query_proj"),
    ("block_{}.attention.k_proj", "deberta.encoder.layer.{}.attention.self.key_proj"),
    ("block_{}.attention.v_proj", "deberta.encoder.layer.{}.attention.self.value_proj"),
    ("conv", "deberta.encoder.conv.conv"),
    ("conv_norm", "deberta.encoder.conv.LayerNorm"),
    ("pooler", "pooler.dense"),
    *((path, name.replace("bert.", "deberta.", 1)) for path, name in BODY_NAMES),
    ("classifier", "classifier"),
]
VIT = [
    ("embed.class_token", "vit.embeddings.cls_token"),
    ("embed.position", "vit.embeddings.position_embeddings"),
    ("embed.patch_proj", "vit.embeddings.patch_embeddings.projection"),
    ("block_{}.norm_1", "vit.layers.{}.layernorm_before"),
    ("block_{}.attention", "vit.layers.{}.attention"),
    ("block_{}.norm_2", "vit.layers.{}.layernorm_after"),
    ("block_{}.mlp.up_proj", "vit.layers.{}.mlp.fc1"),
    ("block_{}.mlp.down_proj", "vit.layers.{}.mlp.fc2"),
    ("norm", "vit.layernorm"),
    ("pooler", "vit.pooler.dense"),
    ("classifier", "classifier"),
]
T5 = [
    ("embed.token", "shared"),
    *(
        (f"{stack}.block_{{}}.{ours}", f"{stack}.block.{{}}.layer.{theirs}")
        for stack, last in (("encoder", 1), ("decoder", 2))
        for ours, theirs in (
            ("norm_1", "0.layer_norm"),
            ("attention.q_proj", "0.SelfAttention.q"),
            ("attention.k_proj", "0.SelfAttention.k"),
            ("attention.v_proj", "0.SelfAttention.v"),
            ("attention.o_proj", "0.SelfAttention.o"),
            ("attention.relative_bias", "0.SelfAttention.relative_attention_bias"),
            ("norm_cross", "1.layer_norm"),
            ("cross_attention.q_proj", "1.EncDecAttention.q"),
            ("cross_attention.k_proj", "1.EncDecAttention.k"),
            ("cross_attention.v_proj", "1.EncDecAttention.v"),
            ("cross_attention.o_proj", "1.EncDecAttention.o"),
            ("norm_2", f"{last}.layer_norm"),
            ("mlp.up_proj", f"{last}.DenseReluDense.wi"),
            ("mlp.down_proj", f"{last}.DenseReluDense.wo"),
        )
    ),
    ("encoder.norm", "encoder.final_layer_norm"),
    ("decoder.norm", "decoder.final_layer_norm"),
    ("lm_head", "lm_head"),
]
COUNTED: dict[str, Names] = {"deberta-v2": DEBERTA, "vit": VIT, "t5": T5}


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
    if family not in FAMILIES and family not in COUNTED:
        raise ValueError(f"Hugging Face's names are known for {', '.join(FAMILIES)}, not for {family}")
    names = COUNTED.get(family, ())
    if family in FAMILIES:
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
