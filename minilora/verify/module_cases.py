"""MODULES: for every module, a function that makes one to check."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from .. import ops
from ..adapters.merge import merged_layer
from ..adapters.recording import Latest, Recorder
from ..backend import Array
from ..models.config import Config
from ..models.families import FAMILIES
from ..models.families.bert import bert
from ..models.families.gpt2 import gpt2
from ..models.families.llama import llama
from ..models.parts import LayerFactory
from ..models.transformer import Transformer
from ..nn import (
    Checkpointed,
    Conv1d,
    Conv2d,
    Convolution,
    Embedding,
    Flatten,
    Gelu,
    Gradients,
    Identity,
    Inputs,
    Labelled,
    MeanTokens,
    Memory,
    Module,
    Parameter,
    Pass,
    PatchEmbeddings,
    Relu,
    Rope,
    Select,
    Tanh,
)
from .check import Report
from .fed import SHAPES, check, shaken
from .op import EPS, THETA, Rng


class Reading(Module):
    """Two stacked cross-attentions that read one memory. It is a parameter here, so that its gradient is checked."""

    def __init__(self, new: LayerFactory) -> None:
        assert new.rng is not None
        self.first, self.second = new.cross_attention(bias=True), new.cross_attention(bias=False, root=1.3)
        self.m = Parameter(new.rng.standard_normal((5, new.config.d_model)))

    def memory(self, x: Array, inputs: Inputs) -> Memory:
        """The same m for every sequence. If x has padding, some of the last tokens of m are hidden too."""
        B, (S, C) = len(x), self.m.data.shape
        real = np.arange(S) < 2 + np.arange(B)[:, None] % (S - 1)
        padding = None if inputs.padding is None else real
        return Memory(np.broadcast_to(self.m.data, (B, S, C)), self.m.trainable, padding)

    def forward(self, x: Array, inputs: Inputs = Inputs(), run: Pass = Pass()) -> tuple[Array, Any]:
        memory = self.memory(x, inputs)
        inputs = inputs._replace(memory=memory)
        h, c1 = self.first.forward(x, inputs, run)
        h, c2 = self.second.forward(x + h, inputs, run)
        return h, (c1, c2, memory)

    def backward(self, dy: Array, cache: Any, grads: Gradients) -> Array:
        c1, c2, memory = cache
        dh: Array = self.second.backward(dy, c2, grads)  # type: ignore[assignment]
        dx: Array = dh + self.first.backward(dh, c1, grads)
        grads.add(self.m, grads.pop(memory).sum(axis=0))
        return dx


def attention_part(new: LayerFactory, **options: Any) -> Module:
    return LayerFactory(replace(new.config, n_kv_heads=options.pop("n_kv_heads", 3)), new.rng).attention(**options)


def block(family: Callable[[Config, Rng | None], Transformer]) -> Callable[[LayerFactory], Module]:
    return lambda new: family(new.config, new.rng)["block_0"]


def convolution(kind: type[Convolution], new: LayerFactory) -> Convolution:
    """A convolution of d_model channels, whose kernel size, stride and padding differ between the axes."""
    C, kernel = new.config.d_model, (3, 2)[: kind.axes]
    return kind(new.normal(C + 1, C, *kernel), new.full(0, C + 1), (1, 2)[: kind.axes], (2, 0)[: kind.axes], 2)


def patch_embeddings(new: LayerFactory) -> PatchEmbeddings:
    """PatchEmbeddings for the images of some_x(), in patches of 2 x 3."""
    C, T = new.config.d_model, new.config.max_length
    positions = 1 + ((T + 3) // 2) * ((T + 4) // 3)
    projection = Conv2d(new.normal(C + 1, C, 2, 3), new.full(0, C + 1), stride=(2, 3))
    return PatchEmbeddings(projection, new.normal(1, 1, C + 1), new.normal(1, positions, C + 1))


def some_x(module: Module, B: int, T: int, C: int, rng: Rng) -> np.ndarray:
    """A random input for the module: ids below 5 (B, T), signals or images of C channels, or x (B, T, C)."""
    parts = [part for _, part in module.named_modules()]
    axes = next((part.axes for part in parts if isinstance(part, Convolution)), 0)
    if any(type(part) is Embedding for part in parts):
        return rng.integers(0, 5, (B, T))
    return rng.standard_normal((B, C, *(T + 3, T + 4)[:axes]) if axes else (B, T, C))


def recorder(new: LayerFactory) -> Module:
    """The Linear that replaces another while an initialisation records the gradient of W."""
    made = Recorder(new.linear(new.config.d_model, new.config.d_ff, True), Latest())
    made.weight.trainable = True
    return made


MODULES: dict[str, Callable[[LayerFactory], Module]] = {
    "Linear": lambda new: new.linear(new.config.d_model, new.config.d_ff, True),
    "Linear without bias": lambda new: new.linear(new.config.d_model, new.config.d_ff, False),
    "LayerNorm": LayerFactory.layer_norm,
    "LayerNorm without bias": partial(LayerFactory.layer_norm, bias=False),
    "RMSNorm": LayerFactory.rms_norm,
    "ZeroCentredRMSNorm": LayerFactory.zero_centred_rms_norm,
    "Identity": lambda new: Identity(),
    "Embedding": lambda new: new.embedding(new.config.vocab_size),
    "Embeddings": lambda new: bert(new.config, new.rng)["embed"],
    "MLP": LayerFactory.mlp,
    "MLP, exact GELU": lambda new: LayerFactory(replace(new.config, activation="gelu"), new.rng).mlp(),
    "GatedMLP": LayerFactory.gated_mlp,
    "GatedMLP, GELU": lambda new: new.gated_mlp(Gelu(approximate=True)),
    "FusedGatedMLP": lambda new: new.fused_gated_mlp(),
    "FusedGatedMLP, exact GELU": lambda new: new.fused_gated_mlp(Gelu(approximate=False)),
    "Attention": partial(attention_part, bias=True, causal=False),
    "Attention, causal, rotary": partial(attention_part, bias=False, causal=True, rope=Rope(THETA)),
    "Attention, sliding window": partial(attention_part, bias=False, causal=True, rope=Rope(THETA), window=2),
    "Attention, norms on q and k": partial(attention_part, bias=False, causal=True, rope=Rope(THETA), qk_norm=True),
    "Attention, grouped": partial(attention_part, bias=False, causal=True, n_kv_heads=1),
    "Attention, symmetric window": partial(attention_part, bias=False, causal=False, rope=Rope(THETA), window=2),
    "Attention, another root": partial(attention_part, bias=False, causal=True, root=1.7),
    "CrossAttention, two of one memory": Reading,
    "FusedAttention": partial(LayerFactory.fused_attention, bias=True),
    "FusedAttention, grouped, rotary": lambda new: LayerFactory(
        replace(new.config, n_kv_heads=1), new.rng
    ).fused_attention(bias=False, rope=Rope(THETA, ops.YarnScaling(3.0, 7))),
    "FusedAttention, rotary, symmetric window": partial(
        LayerFactory.fused_attention, bias=False, causal=False, rope=Rope(THETA), window=2
    ),
    "Select, first": lambda new: Select(last=False),
    "Select, last": lambda new: Select(last=True),
    "Labelled": lambda new: Labelled(),
    "MeanTokens": lambda new: MeanTokens(),
    "Tanh": lambda new: Tanh(),
    "Relu": lambda new: Relu(),
    "Conv1d": partial(convolution, Conv1d),
    "Conv2d": partial(convolution, Conv2d),
    "Flatten": lambda new: Flatten(),
    "PatchEmbeddings": patch_embeddings,
    "PreNormBlock of gpt2": block(gpt2),
    "PreNormBlock of llama": block(llama),
    "PostNormBlock of bert": block(bert),
    "SandwichNormBlock of gemma3_text": block(FAMILIES["gemma3_text"].build),
    "Recorder": recorder,
    "Checkpointed block of llama": lambda new: Checkpointed(block(llama)(new)),
}


def of_part(make: Callable[[LayerFactory], Module], rng: Rng, merged: bool = False) -> Iterator[Report]:
    for B, T, C, F, side in SHAPES:
        config = Config(vocab_size=5, n_layers=1, d_model=C, n_heads=3, d_ff=F, max_length=T, eps=EPS, dtype="float64")
        module = shaken(make(LayerFactory(config, rng)), rng)
        x = some_x(module, B, T, C, rng)
        side = side if x.ndim < 4 and x.shape[1] == T else "none"  # signals and images have no padding
        yield check(merged_layer(module) if merged else module, x, side, rng)
