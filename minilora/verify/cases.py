"""Every op, module, adapter and family as something that can be checked: CHECKS.

A maker `OPS[name](size, rng)` draws a case of an op: inputs, forward, and one gradient for each input. It asks
`size(low, high)` for each of its sizes in turn.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np

from .. import ops
from ..adapters.attach import attach, attach_lora
from ..adapters.base import DEFAULT, Adapter, variants
from ..adapters.merge import MergedEmbedding, MergedLinear
from ..backend import Array, get_array_module
from ..models.config import Config
from ..models.families import FAMILIES, New, bert, gpt2, llama
from ..models.transformer import Transformer
from ..nn import (
    Checkpointed,
    Embedding,
    Gradients,
    Inputs,
    Labelled,
    Linear,
    Module,
    Parameter,
    Pass,
    Rope,
    Select,
    Tanh,
)
from .check import Report, check_gradient, check_model

Rng = np.random.Generator

S = 0.7  # the scaling of the low-rank path
EPS = 0.03  # of the norms: large enough for its place in the formula to show
THETA = 50.0  # of the rotary positions


class OpCase(NamedTuple):
    inputs: dict[str, np.ndarray]  # what has a gradient
    forward: Callable[..., Any]  # (*inputs) -> y, cache
    backward: Callable[..., Any]  # (dy, cache, *inputs) -> one gradient for each input
    constants: dict[str, Any]  # what else y depends on, for a reference that knows only the formula

    def grad(self, dy: Array, *inputs: Array) -> tuple[Array, ...]:
        return self.backward(dy, self.forward(*inputs)[1], *inputs)

    def check(self, rng: Rng, grad: Callable[..., Any] | None = None, **options: Any) -> Report:
        f, grad = lambda *a: self.forward(*a)[0], grad or self.grad
        return check_gradient(f, grad, self.inputs, rng=rng, one_row=True, **options)  # other sizes show what one hides


class Size(Protocol):
    def __call__(self, low: int = 1, high: int = 4) -> int: ...


Maker: TypeAlias = Callable[[Size, Rng], OpCase]


def on(x: Array, constant: np.ndarray) -> Array:
    """A constant in the library of x; floats in the dtype of x."""
    return get_array_module(x).asarray(constant, dtype=x.dtype if constant.dtype.kind == "f" else None)


def fixed(constant: np.ndarray) -> np.ndarray:
    constant.setflags(write=False)
    return constant


def linear(size: Size, rng: Rng) -> OpCase:
    B, T, n_in, n_out = (size() for _ in range(4))
    return OpCase(
        {"x": rng.standard_normal((B, T, n_in)), "W": rng.standard_normal((n_out, n_in))},
        ops.linear_forward,
        lambda dy, x, _, W: (ops.linear_backward(dy, W), ops.linear_gradients(dy, x)),
        {},
    )


def bias(size: Size, rng: Rng) -> OpCase:
    B, T, n_in, n_out = (size() for _ in range(4))
    x, W = rng.standard_normal((B, T, n_in)), rng.standard_normal((n_out, n_in))
    return OpCase(
        {"b": rng.standard_normal(n_out)},
        lambda b: ops.linear_forward(on(b, x), on(b, W), b),
        lambda dy, _, b: (ops.bias_gradients(dy),),
        {"x": x, "W": W},
    )


def low_rank(size: Size, rng: Rng) -> OpCase:
    B, T, n_in, n_out, r = (size() for _ in range(5))
    inputs = {"x": rng.standard_normal((B, T, n_in)), "A": rng.standard_normal((r, n_in))}

    def backward(dy: Array, cache: Any, x: Array, A: Array, B: Array) -> tuple[Array, ...]:
        dx, dh = ops.lora_backward(dy, A, B, S)
        return dx, ops.lora_A_gradients(dh, cache.x), ops.lora_B_gradients(dy, cache.h, S)

    return OpCase(
        {**inputs, "B": rng.standard_normal((n_out, r))}, lambda x, A, B: ops.lora_forward(x, A, B, S), backward, {}
    )


def low_rank_embedding(size: Size, rng: Rng) -> OpCase:
    ids, V = rng.integers(0, 3, (size(), size(2, 4))), size(3, 5)
    ids[:, 0] = ids[:, -1]  # the same column of A twice, at least
    fixed(ids)
    C, r = size(), size()

    def backward(dy: Array, cache: Any, A: Array, B: Array) -> tuple[Array, ...]:
        return ops.lora_embedding_A_gradients(dy, cache.x, B, S, V), ops.lora_B_gradients(dy, cache.h, S)

    return OpCase(
        {"A": rng.standard_normal((r, V)), "B": rng.standard_normal((C, r))},
        lambda A, B: ops.lora_embedding_forward(on(A, ids), A, B, S),
        backward,
        {"ids": ids},
    )


def low_rank_vera(size: Size, rng: Rng) -> OpCase:
    B, T, n_in, n_out, r = (size() for _ in range(5))
    inputs = {"x": rng.standard_normal((B, T, n_in)), "d": rng.standard_normal(r), "b": rng.standard_normal(n_out)}
    A, B_ = fixed(rng.standard_normal((r, n_in))), fixed(rng.standard_normal((n_out, r)))

    def backward(dy: Array, h: Array, x: Array, d: Array, b: Array) -> tuple[Array, ...]:
        return ops.vera_backward(dy, on(x, A), on(x, B_), d, b), *ops.vera_gradients(dy, h, on(x, B_), d, b)

    return OpCase(inputs, lambda x, d, b: ops.vera_forward(x, on(x, A), on(x, B_), d, b), backward, {"A": A, "B": B_})


def rescaling(size: Size, rng: Rng) -> OpCase:
    B, T, C = size(), size(), size()
    return OpCase(
        {"x": rng.standard_normal((B, T, C)), "l": rng.standard_normal(C)},
        ops.ia3_forward,
        lambda dy, x, _, vector: (ops.ia3_backward(dy, vector), ops.ia3_gradients(dy, x)),
        {},
    )


def layer_norm(size: Size, rng: Rng) -> OpCase:
    B, T, C = size(), size(), size(3, 5)
    return OpCase(
        {"x": rng.standard_normal((B, T, C)), "g": rng.standard_normal(C), "b": rng.standard_normal(C)},
        lambda x, g, b: ops.layer_norm_forward(x, g, b, EPS),
        lambda dy, cache, _, g, b: (
            ops.layer_norm_backward(dy, cache, g), ops.gain_gradients(dy, cache), ops.bias_gradients(dy),
        ),
        {},
    )  # fmt: skip


def rms_norm(size: Size, rng: Rng) -> OpCase:
    B, T, C = size(), size(), size(2, 5)
    return OpCase(
        {"x": rng.standard_normal((B, T, C)), "g": rng.standard_normal(C)},
        lambda x, g: ops.rms_norm_forward(x, g, EPS),
        lambda dy, cache, _, g: (ops.rms_norm_backward(dy, cache, g), ops.gain_gradients(dy, cache)),
        {},
    )


def gelu(forward: Callable[[Array], tuple[Array, Array]]) -> Maker:
    def case(size: Size, rng: Rng) -> OpCase:
        x = 2 * rng.standard_normal((size(), size(), size(2, 4)))
        return OpCase({"x": x}, forward, lambda dy, cache, x: (ops.gelu_backward(dy, cache),), {})

    return case


def tanh(size: Size, rng: Rng) -> OpCase:
    x = rng.standard_normal((size(), size(2, 4)))
    return OpCase({"x": x}, ops.tanh_forward, lambda dy, cache, x: (ops.tanh_backward(dy, cache),), {})


def select(size: Size, rng: Rng) -> OpCase:
    B, T, C = size(), size(2, 4), size()
    chosen = rng.random((B, T)) < 0.5
    chosen[-1, -1] = True
    b, t = map(fixed, np.nonzero(chosen))
    return OpCase(
        {"x": rng.standard_normal((B, T, C))},
        lambda x: ops.select_forward(x, on(x, b), on(x, t)),
        lambda dy, cache, x: (ops.select_backward(dy, cache),),
        {"b": b, "t": t},
    )


def swiglu(size: Size, rng: Rng) -> OpCase:
    B, T, F = size(), size(), size()
    return OpCase(
        {"gate": 2 * rng.standard_normal((B, T, F)), "up": rng.standard_normal((B, T, F))},
        ops.swiglu_forward,
        lambda dy, cache, *_: ops.swiglu_backward(dy, cache),
        {},
    )


def rope(size: Size, rng: Rng) -> OpCase:
    B, T, H, D = size(), size(), size(), 2 * size(1, 3)
    return OpCase(
        {"x": rng.standard_normal((B, T, H * D))},
        lambda x: (ops.rope_forward(x, *rope_tables(x, D)), None),
        lambda dy, _, x: (ops.rope_backward(dy, *rope_tables(x, D)),),
        {"D": D},
    )


def rope_tables(x: Array, D: int) -> tuple[Array, Array]:
    xp = get_array_module(x)
    return ops.rope_tables(xp, x.shape[1], ops.rope_frequencies(xp, D, THETA), x.dtype)


def attention(causal: bool, side: str, R: int, block: int = 0, window: int | None = None) -> Maker:
    """R query heads for each key/value head; in blocks, or whole. The outputs of padding are no part of y."""
    backward = "blockwise_attention_backward" if block else "attention_backward"

    def case(size: Size, rng: Rng) -> OpCase:
        B, T, G, D = size(), size(6, 9) if block else size(3, 5), size(1, 2), size(1, 3)
        padding = None if side == "none" else fixed(pad(side, T, [T - 1, *rng.integers(1, T + 1, B - 1)]))
        real = np.ones((B, T, 1)) if padding is None else 1.0 * padding[..., None]

        def forward(q: Array, k: Array, v: Array) -> tuple[Array, Any]:
            y: Array
            cache: Any
            if block:
                seen = None if padding is None else on(q, padding)
                y, cache = ops.blockwise_attention_forward(q, k, v, D, causal, seen, block, window)
            else:
                y, cache = ops.attention_forward(q, k, v, attention_mask(q, causal, padding, window), D)
            return y * on(q, real), cache

        return OpCase(
            {name: rng.standard_normal((B, T, n * D)) for name, n in (("q", G * R), ("k", G), ("v", G))},
            forward,
            lambda dy, cache, *_: getattr(ops, backward)(dy * on(dy, real), cache),
            {"D": D, "causal": causal, "padding": padding, "window": window},
        )

    return case


def cross_attention(size: Size, rng: Rng) -> OpCase:
    """As many queries as there are keys, or more, or fewer."""
    B, Tq, Tk, G, R, D = size(), size(1, 5), size(2, 4), size(1, 2), size(1, 3), size(1, 3)
    mask = np.where(rng.random((Tq, Tk)) < 0.7, 0.0, -1e9)
    mask[:, :2] = 0  # every query sees two keys, at least
    fixed(mask)
    return OpCase(
        {name: rng.standard_normal((B, T, n * D)) for name, T, n in (("q", Tq, G * R), ("k", Tk, G), ("v", Tk, G))},
        lambda q, k, v: ops.attention_forward(q, k, v, on(q, mask), D),
        lambda dy, cache, *_: ops.attention_backward(dy, cache),
        {"D": D, "mask": mask},
    )


def attention_mask(x: Array, causal: bool, padding: np.ndarray | None, window: int | None = None) -> Array | None:
    xp = get_array_module(x)
    padding = None if padding is None else xp.asarray(padding)
    return ops.attention_mask(xp, x.shape[1], causal, padding, x.dtype, window=window)


def pad(side: str, T: int, lengths: list[int]) -> np.ndarray:
    """(B, T), True for the real tokens; the padding is on the left or on the right."""
    real = np.arange(T) < np.array(lengths)[:, None]
    return real[:, ::-1].copy() if side == "left" else real


def embedding(size: Size, rng: Rng) -> OpCase:
    ids, V = rng.integers(0, 3, (size(), size(2, 4))), size(3, 5)
    ids[:, 0] = ids[:, -1]  # the same row twice, at least
    fixed(ids)
    return OpCase(
        {"W": rng.standard_normal((V, size()))},
        lambda W: ops.embedding_forward(on(W, ids), W),
        lambda dy, cache, W: (ops.embedding_gradients(dy, cache, V),),
        {"ids": ids},
    )


def cross_entropy(count: int | None) -> Maker:
    def case(size: Size, rng: Rng) -> OpCase:
        B, T, V = size(), size(2, 4), size(2, 5)
        targets = rng.integers(0, V, (B, T))
        targets[:, 1] = ops.IGNORE
        fixed(targets)
        return OpCase(
            {"logits": rng.standard_normal((B, T, V))},
            lambda z: ops.cross_entropy_forward(z, on(z, targets), count),
            lambda dL, cache, z: (ops.cross_entropy_backward(dL, cache),),
            {"targets": targets, "count": count},
        )

    return case


def mean_squared_error(size: Size, rng: Rng) -> OpCase:
    B, T = size(), size()
    target = fixed(rng.standard_normal((B, T)))
    return OpCase(
        {"y": rng.standard_normal((B, T))},
        lambda y: ops.mean_squared_error_forward(y, on(y, target)),
        lambda dL, cache, y: (ops.mean_squared_error_backward(dL, cache),),
        {"target": target},
    )


def dropout(size: Size, rng: Rng) -> OpCase:
    shape = size(), size(), size(2, 4)
    keep = (rng.random(shape) < 0.6) / 0.6
    keep[0, 0, :2] = 0, 1 / 0.6
    fixed(keep)
    return OpCase(
        {"x": rng.standard_normal(shape)},
        lambda x: ops.dropout_forward(x, on(x, keep)),
        lambda dy, cache, x: (ops.dropout_backward(dy, cache),),
        {"keep": keep},
    )


OPS: dict[str, Maker] = {
    "linear": linear,
    "bias": bias,
    "low rank": low_rank,
    "low rank, embedding": low_rank_embedding,
    "low rank, VeRA": low_rank_vera,
    "rescaling": rescaling,
    "layer norm": layer_norm,
    "rms norm": rms_norm,
    "gelu": gelu(ops.gelu_forward),
    "gelu, tanh form": gelu(ops.gelu_tanh_forward),
    "tanh": tanh,
    "select": select,
    "swiglu": swiglu,
    "rope": rope,
    "attention": attention(False, "none", 1),
    "attention, grouped": attention(False, "none", 3),
    "attention, padded left": attention(False, "left", 2),
    "attention, padded right": attention(False, "right", 1),
    "attention, causal": attention(True, "none", 2),
    "attention, causal, padded left": attention(True, "left", 1),
    "attention, causal, padded right": attention(True, "right", 3),
    "attention, sliding window": attention(True, "left", 2, window=2),
    "attention, another number of keys": cross_attention,
    "attention in blocks, grouped": attention(False, "none", 3, block=1),
    "attention in blocks, padded right": attention(False, "right", 1, block=1),
    "attention in blocks, causal": attention(True, "none", 1, block=2),
    "attention in blocks, causal, padded left": attention(True, "left", 2, block=1),
    "attention in blocks, sliding window": attention(True, "none", 2, block=2, window=4),
    "attention in blocks, sliding window, padded right": attention(True, "right", 1, block=2, window=3),
    "embedding": embedding,
    "cross-entropy": cross_entropy(None),
    "cross-entropy, a part of a batch": cross_entropy(17),
    "mean squared error": mean_squared_error,
    "dropout": dropout,
}

# Sizes in the order a maker asks for them, for linear (B, T, in, out), the low-rank path's r after them: all of them
# different, batch 1 and rank 1; every size the same, where a transposed gradient has the right shape; the least.
SIZES = ((2, 1, 3, 4, 2), (1, 3, 2, 4), (3,), (1,))


def sizes(*wanted: int) -> Size:
    """The wanted sizes in turn, each moved into the range that is asked for."""
    turn = itertools.cycle(wanted)

    def size(low: int = 1, high: int = 4) -> int:
        return max(low, min(high, next(turn)))

    return size


def at_every_size(op: str, rng: Rng) -> Iterator[OpCase]:
    return (OPS[op](sizes(*wanted), rng) for wanted in SIZES)


# ---- the modules: each with its input as one more parameter, so that dx is checked as any gradient is ----

SHAPES = ((1, 3, 6, 5), (3, 2, 12, 7), (2, 5, 6, 1))  # B, T, C, F; three heads
SIDES = ("none", "left", "right")  # of the padding, one for each shape


class Fed(Module):
    def __init__(self, module: Module, x: np.ndarray) -> None:
        self.module, self.ids = module, x
        self.x = Parameter(x) if x.dtype.kind == "f" else None

    def forward(self, _: Any = None, inputs: Inputs = Inputs(), run: Pass = Pass()) -> tuple[Array, Any]:
        return self.module.forward(self.ids if self.x is None else self.x.data, inputs, run)

    def backward(self, dy: Array, cache: Any, grads: Gradients) -> None:
        dx = self.module.backward(dy, cache, grads)
        if self.x is not None:
            grads.add(self.x, dx)


def check(module: Module, x: np.ndarray, side: str, rng: Rng) -> Report:
    """Every gradient of Σ dy ∘ module(x), where the outputs of padding have no dy; dropout is drawn the same again."""
    B, T = x.shape[:2]
    real = pad(side, T, [T, *rng.integers(1, T + 1, B - 1)]) if side != "none" else np.ones((B, T), dtype=bool)
    padding, segments = None if side == "none" else real, rng.integers(0, 2, (B, T))
    fed = Fed(module, x)

    def run() -> tuple[Array, Any]:
        return fed.forward(inputs=Inputs(padding, segments), run=Pass(np.random.default_rng(0)))

    y, cache = run()
    dy, grads = rng.standard_normal(y.shape) * (real[..., None] if y.ndim == 3 else 1), Gradients()
    fed.backward(dy, cache, grads)
    # a constant as large as the terms: where they cancel, the loss would look too small for what they round
    offset = math.copysign(np.abs(dy * y).sum(), (dy * y).sum())
    # the softmax ignores what is added to all the scores of a query: a bias of the keys, unless positions turn it
    rotary = any(getattr(part, "rope", None) for _, part in module.named_modules())
    zero = [] if rotary else [name for name in fed.named_parameters() if name.endswith("k_proj.bias")]
    return check_model(fed, lambda: offset + (dy * run()[0]).sum(), grads, rng=rng, zero=zero)


def shaken(module: Any, rng: Rng) -> Any:
    """The module, no weight, gain, bias or lora_B of which is where it started."""
    for parameter in module.named_parameters().values():
        parameter.data = parameter.data + 0.3 * rng.standard_normal(parameter.data.shape)
    return module


def attention_part(new: New, **options: Any) -> Module:
    return New(replace(new.config, n_kv_heads=options.pop("n_kv_heads", 3)), new.rng).attention(**options)


def block(family: Callable[[Config, Rng | None], Transformer]) -> Callable[[New], Module]:
    return lambda new: family(new.config, new.rng)["block_0"]


def adapter(cls: type[Adapter], options: Mapping[str, Any], new: New) -> Adapter:
    """A new adapter on a layer of the class's base type."""
    assert new.rng is not None
    wide = new.config.d_model + new.config.d_ff
    base = (
        new.embedding(new.config.vocab_size)
        if cls.base_type is Embedding
        else new.linear(new.config.d_model, wide, True)
    )
    return cls.start(base, rng=new.rng, **options)


MODULES: dict[str, Callable[[New], Module]] = {
    "Linear": lambda new: new.linear(new.config.d_model, new.config.d_ff, True),
    "Linear without bias": lambda new: new.linear(new.config.d_model, new.config.d_ff, False),
    "LayerNorm": New.layer_norm,
    "RMSNorm": New.rms_norm,
    "Embedding": lambda new: new.embedding(new.config.vocab_size),
    "Embeddings": lambda new: bert(new.config, new.rng)["embed"],
    "MLP": New.mlp,
    "MLP, exact GELU": lambda new: New(replace(new.config, activation="gelu"), new.rng).mlp(),
    "GatedMLP": New.gated_mlp,
    "Attention": partial(attention_part, bias=True, causal=False),
    "Attention, causal, rotary": partial(attention_part, bias=False, causal=True, rope=Rope(THETA)),
    "Attention, sliding window": partial(attention_part, bias=False, causal=True, rope=Rope(THETA), window=2),
    "Attention, grouped": partial(attention_part, bias=False, causal=True, n_kv_heads=1),
    "FusedAttention": New.fused_attention,
    "Select, first": lambda new: Select(last=False),
    "Select, last": lambda new: Select(last=True),
    "Labelled": lambda new: Labelled(),
    "Tanh": lambda new: Tanh(),
    "PreNormBlock of gpt2": block(gpt2),
    "PreNormBlock of llama": block(llama),
    "PostNormBlock of bert": block(bert),
    "Checkpointed block of llama": lambda new: Checkpointed(block(llama)(new)),
}
CLASSES = [cls for classes in variants().values() for cls in classes]  # of every variant of adapters
ADAPTERS: dict[str, Callable[[New], Adapter]] = {
    f"{cls.__name__}{what}": partial(adapter, cls, options) for cls in CLASSES for what, options in cls.examples.items()
}


def of_op(op: str, rng: Rng) -> Iterator[Report]:
    return (case.check(rng) for case in at_every_size(op, rng))


def of_default(base_type: type[Module]) -> Callable[[New], Adapter]:
    """A maker of the default variant's adapter for this type of layer."""
    return next(ADAPTERS[cls.__name__] for cls in variants()[DEFAULT] if cls.base_type is base_type)


def merged_embedding(new: New) -> Module:
    """In the place of a token embedding, as it has no gradient of its own."""
    embeddings = bert(new.config, new.rng)["embed"]
    made = of_default(Embedding)(new)
    for parameter in made.own_parameters().values():
        parameter.data = parameter.data if parameter.data.any() else parameter.data + 0.3
    embeddings.replace("token", MergedEmbedding(made))
    return embeddings


def of_part(make: Callable[[New], Module], rng: Rng, merged: bool = False) -> Iterator[Report]:
    for (B, T, C, F), side in zip(SHAPES, SIDES, strict=True):
        config = Config(vocab_size=5, n_layers=1, d_model=C, n_heads=3, d_ff=F, max_length=T, eps=EPS, dtype="float64")
        module = shaken(make(New(config, rng)), rng)
        named = [type(part).__name__ for _, part in module.named_modules()]
        x = rng.integers(0, 5, (B, T)) if "Embedding" in named else rng.standard_normal((B, T, C))
        yield check(MergedLinear(module) if merged else module, x, side, rng)


SPECIAL: dict[str, dict[str, Any]] = {
    "llama": {"n_kv_heads": 1, "head_dim": 6, "rope_theta": THETA, "qkv_bias": True,
              "sliding_window": 3, "max_window_layers": 1,
              "rope_scaling": ops.RopeScaling(factor=4.0, low=0.2, high=1.5, trained=9)},
    "roberta": {"offset": 2, "activation": "gelu"},
}  # fmt: skip
ENCODERS = "bert", "roberta"


def of_tied(rng: Rng) -> Iterator[Report]:
    """A tied head that has the adapter of the embedding: two uses of one A and one B."""
    for (B, T, _, _), side in zip(SHAPES, SIDES, strict=True):
        made = model("bert", rng, adapted=False)
        attach_lora(made, ["embed", "q_proj"], r=2, alpha=3, dropout=0.4, rng=rng, ensure_weight_tying=True)
        yield check(shaken(made, rng), rng.integers(0, 11, (B, T + 2)), side, rng)


def of_variant(variant: str, rng: Rng) -> Iterator[Report]:
    """In a model shared slots serve layers of several sizes, and fused layers are adapted by parts."""
    for family, targets, (B, T, _, _), side in zip(
        ("llama", "gpt2"), ("all-linear", None), SHAPES, SIDES, strict=False
    ):
        made = model(family, rng, adapted=False)
        for path in attach(made, variant, targets, rng=rng, **variants()[variant][0].examples[""]):
            for parameter in made[path].own_parameters().values():
                parameter.data = parameter.data + 0.3 * rng.standard_normal(parameter.data.shape)
        yield check(made, rng.integers(0, 11, (B, T + 2)), side, rng)


def of_family(family: str, adapted: bool, head: str, rng: Rng) -> Iterator[Report]:
    for (B, T, _, _), side in zip(SHAPES, SIDES, strict=True):
        yield check(model(family, rng, adapted, head), rng.integers(0, 11, (B, T + 2)), side, rng)


def model(family: str, rng: Rng, adapted: bool = True, head: str = "lm") -> Transformer:
    """Two layers, and with `adapted` an adapter whose B is not 0 on every linear layer."""
    config = Config(
        vocab_size=11,
        n_layers=2,
        d_model=12,
        n_heads=3,
        d_ff=7,
        max_length=9,
        eps=EPS,
        dtype="float64",
        head=head,
        labels=4,
    )
    made = FAMILIES[family](replace(config, **SPECIAL.get(family, {})), rng)
    if adapted:
        attach_lora(made, "all-linear", r=2, alpha=3, rng=rng)
    return shaken(made, rng)


CHECKS: dict[str, Callable[[Rng], Iterable[Report]]] = {
    **{f"op {name}": partial(of_op, name) for name in OPS},
    **{f"module {name}": partial(of_part, make) for name, make in MODULES.items()},
    **{f"adapter {name}": partial(of_part, make) for name, make in ADAPTERS.items()},
    "adapter MergedLinear": partial(of_part, of_default(Linear), merged=True),
    "adapter MergedEmbedding": partial(of_part, merged_embedding),
    "adapter TiedLoRALinear": of_tied,
    **{f"adapter {variant} in a model": partial(of_variant, variant) for variant in variants()},
    **{f"family {name}": partial(of_family, name, False, "lm") for name in FAMILIES},
    **{f"family {name} with adapters": partial(of_family, name, True, "lm") for name in FAMILIES},
    **{f"family {name}, classifier with adapters": partial(of_family, name, True, "classify") for name in FAMILIES},
    **{f"family {name}, tokens with adapters": partial(of_family, name, True, "tokens") for name in ENCODERS},
}
