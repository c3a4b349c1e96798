"""LAWS: properties that need no reference. Each function returns the violation, relative to the largest entry."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np

from .. import ops
from ..adapters.attach import attach_lora
from ..adapters.base import Adapter, Law
from ..adapters.merge import merge, merged_layer
from ..backend import Array
from ..models.config import Config
from ..models.families import FAMILIES
from ..models.parts import LayerFactory
from ..models.transformer import Transformer
from ..nn import Gradients, Inputs, Parameter
from .adapter_cases import ADAPTERS, CLASSES
from .fed import shaken, source_of
from .model_cases import model, read_by
from .module_cases import some_x
from .op import THETA, Rng
from .op_cases.tokens import pad


def apart(a: Array, b: Any, scale: Array | None = None) -> float:
    return float(np.abs(a - b).max() / np.abs(a if scale is None else scale).max())


def worst(values: Iterable[float]) -> float:
    return float(np.max(list(values)))  # unlike max(), it lets no NaN pass


def adapted_layer(cls: type[Adapter], rng: Rng) -> tuple[Adapter, Array, Array]:
    """(an adapter of this class with random parameters, a random x, a random dy)"""
    config = Config(vocab_size=5, n_layers=1, d_model=6, n_heads=1, d_ff=5, dtype="float64")
    layer = shaken(ADAPTERS[cls.__name__](LayerFactory(config, rng)), rng)
    x = some_x(layer, 3, 4, 6, rng)
    return layer, x, rng.standard_normal(layer.forward(x)[0].shape)


def law_of_adapters(name: str, rng: Rng) -> float:
    """The law `name` of every class that states it."""
    return worst(held_by(cls, cls.laws[name], rng) for cls in CLASSES if name in cls.laws)


def held_by(cls: type[Adapter], law: Law, rng: Rng) -> float:
    layer, x, dy = adapted_layer(cls, rng)
    grads = Gradients()
    layer.backward(dy, layer.forward(x)[1], grads)
    return law(layer, x, dy, grads)


def merged_adapter(cls: type[Adapter], rng: Rng) -> float:
    """How far the merged layer's y is from the adapter's; 0 for a class that cannot be merged."""
    if not cls.mergeable:
        return 0.0
    layer, x, _ = adapted_layer(cls, rng)
    return apart(layer.forward(x)[0], merged_layer(layer).forward(x)[0])


def new_adapter(cls: type[Adapter], rng: Rng) -> float:
    layer, x, _ = adapted_layer(cls, rng)
    base = copy.copy(layer.base)
    base.weight = Parameter(layer.dense())  # LoftQ's W is on its grid already: no rounding error for A, B to correct
    new = cls.start(base, rng=rng, **cls.examples[""])
    return apart(base.forward(x)[0], new.forward(x)[0])


def rows_of_scores(rng: Rng) -> float:
    """dq = dS k / √D: if every key is replaced by ones, dq holds the row sums of dS, over √D."""
    q, k, v, dy = (rng.standard_normal((2, 5, 6)) for _ in "qkvy")
    _, cache = ops.attention_forward(q, k, v, ops.attention_mask(np, 5, True, None, "float64"), 3)
    sums, _, _ = ops.attention_backward(dy, cache._replace(k=np.ones_like(cache.k)))
    return apart(sums, 0, scale=ops.attention_backward(dy, cache)[0])


def in_blocks(rng: Rng) -> float:
    q, k, v, dy = (rng.standard_normal((2, 8, n)) for n in (12, 6, 6, 12))
    off = []
    for window in (None, 3):
        mask = ops.attention_mask(np, 8, True, None, "float64", window=window)
        whole, cache = ops.attention_forward(q, k, v, mask, 3)
        parts, blocks = ops.blockwise_attention_forward(q, k, v, 3, True, block=1, window=window)
        gradients = zip(ops.attention_backward(dy, cache), ops.blockwise_attention_backward(dy, blocks), strict=True)
        off += [apart(*pair) for pair in [(whole, parts), *gradients]]
    return worst(off)


def rows_of_layer_norm(rng: Rng) -> float:
    x, dy, (g, b) = rng.standard_normal((4, 7)), rng.standard_normal((4, 7)), rng.standard_normal((2, 7))
    dx = ops.layer_norm_backward(dy, ops.layer_norm_forward(x, g, b)[1], g)
    return apart(dx.sum(axis=-1), 0, scale=dx)


def rows_of_logits(rng: Rng) -> float:
    _, cache = ops.cross_entropy_forward(rng.standard_normal((3, 4, 7)), rng.integers(0, 7, (3, 4)))
    dlogits = ops.cross_entropy_backward(1.0, cache)
    return apart(dlogits.sum(axis=-1), 0, scale=dlogits)


def rotation(rng: Rng) -> float:
    x, tables = rng.standard_normal((2, 9, 12)), ops.rope_tables(np, 9, ops.rope_frequencies(np, 6, THETA), "float64")
    turned = ops.rope_forward(x, *tables), ops.rope_backward(x, *tables)
    return worst(apart((x * x).sum(-1), (y * y).sum(-1)) for y in turned)


def merged_model(family: str, rng: Rng) -> float:
    return changed_by(merge, model(family, rng), rng)


def step_0(family: str, rng: Rng) -> float:
    attached = partial(attach_lora, targets="all-linear", r=2, alpha=3, rng=rng)
    return changed_by(attached, model(family, rng, adapted=False), rng)


def changed_by(change: Callable[[Transformer], Any], made: Transformer, rng: Rng) -> float:
    """How far the outputs of a model are from those before this change of it."""
    ids, inputs = read_by(made, 2, 7, rng), Inputs(source=source_of(made, 2, 7, rng))
    before = made.forward(ids, inputs)[0]
    change(made)
    return apart(before, made.forward(ids, inputs)[0])


def padded(family: str, rng: Rng) -> float:
    made, ids, off = model(family, rng), rng.integers(0, 11, (3, 6)), []
    if made.config.image_size:  # images have no padding
        return 0.0
    source = source_of(made, 1, 6, rng)
    sources = None if source is None else np.repeat(source, 3, axis=0)
    for side in ("left", "right"):
        padding = pad(side, 6, [6, 4, 2])
        logits = made.forward(ids, Inputs(padding, source=sources))[0]
        alone = (made.forward(ids[i : i + 1, real], Inputs(source=source))[0][0] for i, real in enumerate(padding))
        off += [apart(logits[i, padding[i]], y) for i, y in enumerate(alone)]
    return worst(off)


def each_class(law: Callable[[type[Adapter], Rng], float], rng: Rng) -> float:
    return worst(law(cls, rng) for cls in CLASSES)


def each_family(law: Callable[[str, Rng], float], rng: Rng) -> float:
    return worst(law(family, rng) for family in FAMILIES)


EXACT = 1e-12
LAWS: dict[str, tuple[Callable[[Rng], float], float]] = {  # the law, and how much it may be broken
    **{name: (partial(law_of_adapters, name), EXACT) for cls in CLASSES for name in cls.laws},
    "the merged W and b of an adapter give its outputs": (partial(each_class, merged_adapter), EXACT),
    "a new adapter gives the outputs of its base": (partial(each_class, new_adapter), 0),
    "rows of dS sum to 0": (rows_of_scores, EXACT),
    "attention in blocks is attention": (in_blocks, EXACT),
    "rows of layer norm's dx sum to 0": (rows_of_layer_norm, EXACT),
    "rows of dlogits sum to 0": (rows_of_logits, EXACT),
    "a rotation keeps lengths": (rotation, EXACT),
    "a merged model gives the adapted one's logits": (partial(each_family, merged_model), EXACT),
    "the logits of step 0 are the base's": (partial(each_family, step_0), 0),
    "padding changes no real token": (partial(each_family, padded), EXACT),
}
