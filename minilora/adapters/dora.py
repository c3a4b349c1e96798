"""DoRA: LoRA, with a trained magnitude for every row of W + s B A (Liu et al., 2024). The maths is in ops/dora.py."""

from __future__ import annotations

import copy
from typing import Any, ClassVar, NamedTuple

import numpy as np

from .. import ops
from ..backend import Array, Rng, to_numpy
from ..nn import Embedding, FusedLinear, Gradients, Inputs, Linear, Module, Parameter, Pass
from ..nn.layers import LinearCache
from ..ops.rows import rows
from .base import Law, relative_difference
from .lora import LoRAEmbedding, LoRALinear, gradient_at_the_start
from .lora_base import LoRA, exchange
from .parallel import dropped
from .statements import Kept, Option, Products, Slot


def linear_in_m(adapter: DoRA, x: Array, dy: Array, grads: Gradients) -> float:
    """m ∘ dm = Σ dy ∘ (y - b): y - b is linear in m."""
    y, m, bias = adapter.forward(x)[0], adapter.lora_magnitude_vector, getattr(adapter.base, "bias", None)
    y = y if bias is None else y - bias.data
    return relative_difference(m.data * grads[m], rows(dy * y).sum(axis=0))


def orthogonal_to_V(adapter: DoRA, x: Array, dy: Array, grads: Gradients) -> float:
    """⟨V, dV⟩ = 0 in every row, and so ⟨B, dB⟩ = -⟨W, dV⟩: y does not change if a row of W and of B are scaled alike.

    It does not hold with through_norm=False.
    """
    W, A, B, m, s = adapter.tensors
    n, _ = ops.dora_norms(W, A, B, s)
    of_ids = isinstance(adapter.base, Embedding)
    G = ops.embedding_gradients(dy, x, W.shape[1]).T if of_ids else ops.linear_gradients(dy, x)
    V = W + s * (B @ A)
    dV = (m / n)[:, None] * (G - (grads[adapter.lora_magnitude_vector] / n)[:, None] * V)
    return relative_difference((B * grads[adapter.lora_B]).sum(axis=1), -(W * dV).sum(axis=1))


def angle(adapter: DoRA, x: Array, dy: Array) -> dict[str, float]:
    """{"A": degrees, "B": degrees} between the gradient of A or B and PEFT's, which holds ‖V‖ constant.

    At this input and upstream gradient, without dropout; nan if one of the two is 0, as of A at the start.
    """
    both = []
    for through_norm in (True, False):
        layer, grads = copy.copy(adapter), Gradients()
        layer.through_norm = through_norm
        layer.backward(dy, layer.forward(x)[1], grads)
        both.append(grads)
    parameters = {"A": adapter.lora_A, "B": adapter.lora_B}
    return {name: degrees_between(*(to_numpy(grads[p]) for grads in both)) for name, p in parameters.items()}


def degrees_between(a: np.ndarray, b: np.ndarray) -> float:
    with np.errstate(invalid="ignore"):
        a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)
    return float(np.degrees(2 * np.arctan2(np.linalg.norm(a - b), np.linalg.norm(a + b))))  # exact for small ones too


def matrix(layer: Module) -> Array:
    """W (out, in) of a Linear or an Embedding, whose table is its transpose."""
    W = layer.dense()  # type: ignore[attr-defined]
    base = layer.base if layer.is_adapter else layer  # type: ignore[attr-defined]
    return W.T if isinstance(base, Embedding) else W


def row_norms(lora: LoRA) -> Array:
    """n (out,), the norms of the rows of W + s B A."""
    return ops.dora_norms(matrix(lora), lora.lora_A.data, lora.lora_B.data, lora.scaling)[0]


class DoRALayerCache(NamedTuple):
    base: Any
    x: Array | None  # (..., in)    after dropout; ids of an embedding; None where A is frozen
    h: Array | None  # (N, r)       None where B is frozen
    u: Array | None  # (..., out)   None where nothing needs dm
    P: Array | None  # (out, r)     None where B is frozen, or n is held constant
    n: Array  # (out,)
    learn_m: bool
    through_norm: bool
    keep: Array | None  # (..., in)    the dropout mask


class DoRA(LoRA):
    """m ∘ V / ‖V‖ instead of W, row by row, with V = W + s B A:       m (out,)    A, B and s as LoRA's

    Liu et al. (2024), equation 5. At the start V = W and m = ‖W‖, by the same function as in forward: m / ‖V‖ is 1, and
    y the base's to the last bit. The gradient goes through the norm. With through_norm=False ‖V‖ is held constant in
    the backward, as in the paper's section 4.3 and PEFT: the outputs are the same, and training is PEFT's; files do not
    record the option. ‖W‖ is recomputed in every forward, at about the cost of one more row of x: a stored norm would
    have to be updated with the dtype and device of W.
    """

    variant = "dora"
    lora: ClassVar[type[LoRA]]  # whose A and B it starts with
    keys = LoRA.keys._replace(
        inits=tuple(init for init in LoRA.keys.inits if init != "mica"),  # which PEFT lacks for DoRA
        fixed={**LoRA.keys.fixed, "use_dora": True},
    )
    options = (*LoRA.options, Option("through_norm", "", True))
    laws: ClassVar[dict[str, Law]] = {
        "Bᵀ dB = dA Aᵀ": exchange,
        "m ∘ dm = Σ dy ∘ (y - b)": linear_in_m,
        "⟨B, dB⟩ = -⟨W, dV⟩ in every row": orthogonal_to_V,
    }
    lora_magnitude_vector: Parameter
    through_norm: bool

    @classmethod
    def check(cls, base: Module, **options: Any) -> None:
        super().check(base, **options)
        W = matrix(base)
        if any(W.strides) and not bool((there := W.any(axis=1)).all()):  # a model without weights has no strides
            line = "column" if cls.base_type is Embedding else "row"
            raise ValueError(f"{line} {int(there.argmin())} of its weight is 0, and DoRA divides by its length")

    @classmethod
    def start(cls, base: Module, *, rng: Rng, through_norm: bool = True, **options: Any) -> DoRA:
        cls.check(base, through_norm=through_norm, **options)
        lora: Any = cls.lora.start(base, rng=rng, **options)
        options = {**lora.settings, "through_norm": through_norm}
        return cls.of(base, {**lora.own_parameters(), "lora_magnitude_vector": row_norms(lora)}, **options)

    @property
    def tensors(self) -> tuple[Array, Array, Array, Array, float]:
        """W (out, in), A, B, m and s"""
        return matrix(self), self.lora_A.data, self.lora_B.data, self.lora_magnitude_vector.data, self.scaling

    def cached(self, base: Any, x: Array, h: Array, cache: ops.DoRACache, keep: Array | None = None) -> DoRALayerCache:
        """What backward needs, and no more. Raises ValueError if W is trained: its gradient is not computed here."""
        if self.weight.trainable:
            raise ValueError("the weight that DoRA adapts must stay frozen: take its layer out of `train`")
        A, B, m = self.lora_A.trainable, self.lora_B.trainable, self.lora_magnitude_vector.trainable
        full = self.through_norm
        u, P = cache.u if m or (full and (A or B)) else None, cache.P if full and B else None
        return DoRALayerCache(base, x if A else None, h if B else None, u, P, cache.n, m, full, keep)

    def add_gradients_of_g(self, dy: Array, cache: DoRALayerCache, grads: Gradients) -> None:
        """dm, and what A and B get through n."""
        if cache.u is None:
            return
        W, A, B, m, s = self.tensors
        dm = ops.dora_m_gradients(dy, cache.u, cache.n)
        if cache.through_norm and cache.x is not None:
            grads.add(self.lora_A, ops.dora_A_gradients(dm, cache.n, W, A, B, m, s))
        if cache.P is not None:
            grads.add(self.lora_B, ops.dora_B_gradients(dm, cache.n, cache.P, m, s))
        if cache.learn_m:
            grads.add(self.lora_magnitude_vector, dm)  # last: the others read dm

    def merged(self) -> tuple[Array, Array | None]:
        """W' = m ∘ V / ‖V‖, and the bias"""
        W, A, B, m, s = self.tensors
        merged = (m / row_norms(self))[:, None] * (W + s * (B @ A))
        bias = getattr(self.base, "bias", None)
        return merged.T if isinstance(self.base, Embedding) else merged, None if bias is None else bias.data


class DoRALinear(DoRA):
    """y = g ∘ (x Wᵀ + s (x Aᵀ) Bᵀ) + b         g = m / ‖V‖     A (r, in)   B (out, r)   m (out,)

    A and B start as LoRALinear's. Dropout is PEFT's. With x̃ = x ∘ keep instead of x,

        y  = x Wᵀ + b - x̃ Wᵀ + g ∘ (x̃ Wᵀ + s (x̃ Aᵀ) Bᵀ)
        dx = dy W + keep ∘ (du W - dy W + dh A)             du = g ∘ dy     dh = s du B

    so W's product is free of dropout noise while g = 1; it is computed twice, in forward and in backward.
    Raises ValueError as LoRALinear does, for a W with a row of zeros, and in forward for a W that is trained.
    """

    base_type = Linear
    targets = LoRALinear.targets
    lora = LoRALinear
    slots = (*LoRALinear.slots, Slot("lora_magnitude_vector", "lora_magnitude_vector", ("n_out",)))
    kept = (
        Kept("x", "n_in", "dA = dhᵀ x", ("lora_A",)),
        Kept("h", "r", "dB = s duᵀ h", ("lora_B",)),
        Kept("u", "n_out", "dm = Σ dy ∘ u / n", ("lora_magnitude_vector",)),
        Kept("u", "n_out * through_norm", "dm, for dA and dB through n", ("lora_A", "lora_B")),
        Kept("P", "n_out * r * through_norm", "dB through n, P = V Aᵀ", ("lora_B",), once=True),
        Kept("n", "n_out", "du = m / n ∘ dy", once=True),
    )
    products = Products(
        forward="2 * r * (n_in + n_out) + 2 * n_in * n_out * drops",
        backward="2 * r * (n_in + n_out) + 2 * n_in * n_out * drops",
        without_dx="2 * r * (n_in + n_out)",
        gradients={("lora_A",): "2 * r * n_in", ("lora_B",): "2 * r * n_out"},
        once="2 * r * (n_in * n_out + r * (n_in + n_out))",
        gradients_once={("lora_A",): "2 * r * (n_in * n_out + r * (n_in + n_out)) * through_norm"},
    )
    laws: ClassVar[dict[str, Law]] = {**DoRA.laws, "dA = 0 at B = 0": gradient_at_the_start}
    examples: ClassVar[dict[str, dict[str, Any]]] = {
        "": {"r": 3, "alpha": 5},
        " with dropout": {"r": 3, "alpha": 5, "dropout": 0.4},
        ", rsLoRA": {"r": 3, "alpha": 5, "rslora": True},
    }

    def forward(self, x: Array, inputs: Inputs = Inputs(), run: Pass = Pass()) -> tuple[Array, DoRALayerCache]:
        (W, A, B, m, s), bias, all_of_x = self.tensors, self.base.bias, x
        x, keep = dropped(x, self.dropout, run.rng)
        w, _ = ops.linear_forward(x, W)
        u, (x, h) = ops.lora_forward(x, A, B, s)
        u += w
        y, cache = ops.dora_forward(u, W, A, B, m, s)
        b = None if bias is None else bias.data
        if keep is not None:
            y -= w
            y += ops.linear_forward(all_of_x, W, b)[0]
        elif b is not None:
            y += b
        return y, self.cached(LinearCache(None, b is not None and bias.trainable, run.needs_dx), x, h, cache, keep)

    def backward(self, dy: Array, cache: DoRALayerCache, grads: Gradients) -> Array | None:
        W, A, B, m, s = self.tensors
        du = ops.dora_backward(dy, cache.n, m)
        dx, dh = ops.lora_backward(du, A, B, s)
        self.add_gradients_of_g(dy, cache, grads)
        if cache.x is not None:
            grads.add(self.lora_A, ops.lora_A_gradients(dh, cache.x))
        if cache.h is not None:
            grads.add(self.lora_B, ops.lora_B_gradients(du, cache.h, s))
        self.base.backward(dy, cache.base._replace(needs_dx=False), grads)  # db = Σ dy
        if not cache.base.needs_dx:
            return None
        if cache.keep is not None:
            dx += ops.linear_backward(du - dy, W)
            dx, du = ops.dropout_backward(dx, cache.keep), dy
        dx += ops.linear_backward(du, W)
        return dx

    @classmethod
    def join_parts(cls, base: FusedLinear, parts: list[Any]) -> DoRALinear:
        """With A and B as LoRALinear joins them; the m of a part that is not adapted is the norm of its rows of W."""
        lora = LoRALinear.join_parts(base, parts)
        xp, n = lora.weight.xp, row_norms(lora)
        each = zip(parts, base.split(n), strict=True)
        m = xp.concatenate([part.lora_magnitude_vector.data if part.is_adapter else n for part, n in each])
        return cls.of(base, {**lora.own_parameters(), "lora_magnitude_vector": m}, **lora.settings)


class DoRAEmbedding(DoRA):
    """y = g ∘ (W[ids] + s (A[:, ids])ᵀ Bᵀ)         g = m / ‖V‖     A (r, V)   B (C, r)   m (C,)

    V = W + s (B A)ᵀ (V, C), with a magnitude for each of its columns, the axis that PEFT has. A and B start as
    LoRAEmbedding's; there is no dropout, and a tied head stays the base's.
    Raises ValueError as DoRALinear does, for a base that is not a plain Embedding.
    """

    base_type = Embedding
    lora = LoRAEmbedding
    slots = (*LoRAEmbedding.slots, DoRALinear.slots[-1])
    kept = (Kept("ids", "0", "dA adds dh up by id", ("lora_A",)), *DoRALinear.kept[1:])
    products = DoRALinear.products._replace(
        forward="2 * r * n_out",
        backward="0",
        without_dx="0",
        gradients={("lora_A",): "2 * r * n_out", ("lora_B",): "2 * r * n_out"},
    )

    def forward(self, ids: Array, inputs: Inputs = Inputs(), run: Pass = Pass()) -> tuple[Array, DoRALayerCache]:
        W, A, B, m, s = self.tensors
        w, cb = self.base.forward(ids, inputs, run)
        u, (ids, h) = ops.lora_embedding_forward(ids, A, B, s)
        u += w
        y, cache = ops.dora_forward(u, W, A, B, m, s)
        return y, self.cached(cb, ids, h, cache)

    def backward(self, dy: Array, cache: DoRALayerCache, grads: Gradients) -> None:
        _, A, B, m, s = self.tensors
        du = ops.dora_backward(dy, cache.n, m)
        self.add_gradients_of_g(dy, cache, grads)
        if cache.x is not None:
            grads.add(self.lora_A, ops.lora_embedding_A_gradients(du, cache.x, B, s, A.shape[1]))
        if cache.h is not None:
            grads.add(self.lora_B, ops.lora_B_gradients(du, cache.h, s))
