"""LoRA of a Linear and of an Embedding: frozen, with a low-rank path parallel to it (Hu et al., 2021). The maths is in
ops/lora.py and ops/lora_embedding.py, and what all its layers share in lora_base.py."""

from __future__ import annotations

import math
from typing import Any, ClassVar, NamedTuple

import numpy as np

from .. import ops
from ..backend import Array, Rng, generator, to_numpy
from ..nn import Embedding, FusedLinear, Gradients, Linear, Module, Pass
from ..nn.optim import SGD
from .base import Law, relative_difference
from .lora_base import ALPHA, INITS, LoRA, R
from .parallel import Parallel, dropped
from .statements import Kept, Products, Slot


def gradient_at_the_start(adapter: LoRA, x: Array, dy: Array, grads: Gradients) -> float:
    grads = gradients_at_zero_B(adapter, x, dy)
    return float(abs(grads[adapter.lora_A]).max() / abs(grads[adapter.lora_B]).max())


def first_step(adapter: LoRA, x: Array, dy: Array, grads: Gradients) -> float:
    grads = gradients_at_zero_B(adapter, x, dy)
    A, G, s, eta = adapter.lora_A.data, ops.linear_gradients(dy, x), adapter.scaling, 0.37
    SGD(adapter.trainable_parameters(), lr=eta).step(grads)
    return relative_difference(adapter.delta(), -eta * s**2 * G @ A.T @ A)


def gradients_at_zero_B(adapter: LoRA, x: Array, dy: Array) -> Gradients:
    """The adapter's B is 0 afterwards."""
    adapter.lora_B.data = 0 * adapter.lora_B.data
    grads = Gradients()
    adapter.backward(dy, adapter.forward(x)[1], grads)
    return grads


def in_blocks(fused: FusedLinear, parts: list[np.ndarray | None]) -> np.ndarray:
    """B of the layer `fused` (Σ out, Σ r), from the B (out, r) of each part, None for one that is not adapted: each in
    its own rows and columns, zeros elsewhere."""
    adapted = [B for B in parts if B is not None]
    whole = np.zeros((fused.ends[-1], sum(B.shape[1] for B in adapted)), adapted[0].dtype)
    column = 0
    for B, end in zip(parts, fused.ends, strict=True):
        if B is not None:
            whole[end - len(B) : end, column : column + B.shape[1]] = B
            column += B.shape[1]
    return whole


class LoRALinearCache(NamedTuple):
    base: Any
    x: Array | None  # (..., in)   after dropout; None where A is frozen
    h: Array | None  # (N, r)      None where B is frozen
    keep: Array | None  # (..., in)   the dropout mask


class LoRALinear(Parallel, LoRA):
    """y = x W₀ᵀ + b + s (x Aᵀ) Bᵀ         A (r, in)   B (out, r)   s = α/r, or α/√r (rsLoRA)

    Hu et al. (2021), equation 3. At the start y is the base's: B = 0, and A is uniform within ±1/√in, as in PEFT, or
    `init` is another name of initialisations/, whose function may look at `data`. Dropout acts on the adapter's input
    only. `base`, a Linear, is frozen and kept. A rank above min(in, out) is allowed, as in PEFT, though B A can be of
    no higher rank than that.
    Raises ValueError for a base that is not a plain Linear, a rank below 1, an `rng` that is neither a seed nor a
    generator, and an init of another class or without its data; the base is then unchanged.
    """

    base_type = Linear
    targets = "q_proj", "v_proj"
    keys = LoRA.keys._replace(inits=(True, False, "gaussian", "eva", "orthogonal"))
    inits = tuple(name for name, init in INITS.items() if not (init.takes_from_W or init.freezes_B or init.quantizes))
    laws: ClassVar[dict[str, Law]] = {
        **LoRA.laws,
        "dA = 0 at B = 0": gradient_at_the_start,
        "the first step of SGD is ΔW = -η s² G AᵀA": first_step,
    }
    examples: ClassVar[dict[str, dict[str, Any]]] = {
        "": {"r": 3, "alpha": 5},
        " of rank 1": {"r": 1, "alpha": 5},
        " with dropout": {"r": 3, "alpha": 5, "dropout": 0.4},
        ", rsLoRA": {"r": 3, "alpha": 5, "rslora": True},
    }
    slots = Slot("lora_A", "lora_A.weight", ("r", "n_in")), Slot("lora_B", "lora_B.weight", ("n_out", "r"))
    kept = Kept("x", "n_in", "dA = dhᵀ x", ("lora_A",)), Kept("h", "r", "dB = s dyᵀ h", ("lora_B",))
    products = Products(
        forward="2 * r * (n_in + n_out)",
        backward="2 * r * (n_in + n_out)",
        without_dx="2 * r * n_out",
        gradients={("lora_A",): "2 * r * n_in", ("lora_B",): "2 * r * n_out"},
    )

    def path_forward(self, x: Array, run: Pass) -> tuple[Array, LoRALinearCache]:
        x, keep = dropped(x, self.dropout, run.rng)
        y, (x, h) = ops.lora_forward(x, self.lora_A.data, self.lora_B.data, self.scaling)
        return y, LoRALinearCache(
            None, x if self.lora_A.trainable else None, h if self.lora_B.trainable else None, keep
        )

    def path_backward(self, dy: Array, cache: LoRALinearCache, grads: Gradients, needs_dx: bool) -> Array | None:
        A, B, s = self.lora_A.data, self.lora_B.data, self.scaling
        dx, dh = ops.lora_backward(dy, A, B, s) if needs_dx else (None, ops.lora_h_backward(dy, B, s))
        if cache.x is not None:
            grads.add(self.lora_A, ops.lora_A_gradients(dh, cache.x))
        if cache.h is not None:
            grads.add(self.lora_B, ops.lora_B_gradients(dy, cache.h, s))
        return dx if dx is None or cache.keep is None else ops.dropout_backward(dx, cache.keep)

    @classmethod
    def join_parts(cls, base: FusedLinear, parts: list[Any]) -> LoRALinear:
        """With two of three parts adapted

            B₁ 0                    A₁
        B =  0 0                A = A₂              ΔW = s B A, of rank r₁ + r₂ at most
             0 B₂
        """
        adapted = [part for part in parts if part.is_adapter]
        first, A = adapted[0], np.concatenate([to_numpy(part.lora_A.data) for part in adapted])
        if {(part.scaling, part.dropout, part.rslora) for part in adapted} != {
            (first.scaling, first.dropout, first.rslora)
        }:
            raise ValueError("the parts of a fused layer differ in scaling or dropout, and one adapter has one of each")
        B = in_blocks(base, [to_numpy(part.lora_B.data) if part.is_adapter else None for part in parts])
        alpha = first.scaling * (math.sqrt(len(A)) if first.rslora else len(A))
        options = {"r": len(A), "alpha": alpha, "rslora": first.rslora, "dropout": first.dropout}
        return cls.of(base, {"lora_A": A, "lora_B": B}, **options)

    def factors(self) -> tuple[Array, Array, float]:
        """ΔW = s B A"""
        return self.lora_A.data, self.lora_B.data, self.scaling


class LoRAEmbeddingCache(NamedTuple):
    base: Any
    ids: Array | None  # (...)      None where A is frozen
    h: Array | None  # (N, r)      None where B is frozen


class LoRAEmbedding(Parallel, LoRA):
    """y = W₀[ids] + s (A[:, ids])ᵀ Bᵀ      A (r, V)   B (C, r)   s = α/r, or α/√r (rsLoRA)

    At the start A = 0 and B is normal, the reverse of LoRALinear, as in PEFT and loralib. There is no dropout, as ids
    have none. If a head is tied to the embedding, the head stays the base's: the adapter acts on the input only, as in
    PEFT.
    Raises ValueError as LoRALinear does, for a base that is not a plain Embedding.
    """

    base_type = Embedding
    unread = (*LoRA.unread, "dropout", "init", "data")  # ids have no dropout, and A starts at 0
    slots = Slot("lora_A", "lora_embedding_A", ("r", "n_in")), Slot("lora_B", "lora_embedding_B", ("n_out", "r"))
    kept = Kept("ids", "0", "dA adds dh up by id", ("lora_A",)), Kept("h", "r", "dB = s dyᵀ h", ("lora_B",))
    products = Products(
        forward="2 * r * n_out",
        backward="0",
        gradients={("lora_A",): "2 * r * n_out", ("lora_B",): "2 * r * n_out"},
    )

    def __init__(self, base: Module, r: int = R, alpha: float = ALPHA, *, rng: Rng, rslora: bool = False) -> None:
        rng = generator(rng)
        self.check(base, r=r, alpha=alpha)
        assert isinstance(base, Embedding)
        V, C = base.weight.data.shape
        tensors = {"lora_A": np.zeros((r, V)), "lora_B": rng.standard_normal((C, r))}
        self.hold(base, tensors, r=r, alpha=float(alpha), rslora=rslora)

    def path_forward(self, ids: Array, run: Pass) -> tuple[Array, LoRAEmbeddingCache]:
        y, (ids, h) = ops.lora_embedding_forward(ids, self.lora_A.data, self.lora_B.data, self.scaling)
        return y, LoRAEmbeddingCache(None, ids if self.lora_A.trainable else None, h if self.lora_B.trainable else None)

    def path_backward(self, dy: Array, cache: LoRAEmbeddingCache, grads: Gradients, needs_dx: bool) -> None:
        if cache.ids is not None:
            A, B, s = self.lora_A.data, self.lora_B.data, self.scaling
            grads.add(self.lora_A, ops.lora_embedding_A_gradients(dy, cache.ids, B, s, A.shape[1]))
        if cache.h is not None:
            grads.add(self.lora_B, ops.lora_B_gradients(dy, cache.h, self.scaling))

    def factors(self) -> tuple[Array, Array, float]:
        """ΔW = s (B A)ᵀ (V, C)"""
        return self.lora_B.data.T, self.lora_A.data.T, self.scaling


class TiedLoRALinear(Parallel, LoRA):
    """The head that is tied to an adapted embedding, with the same W₀, A and B:

        y = x (W₀ + s (B A)ᵀ)ᵀ + b = x W₀ᵀ + b + s (x B) A          x (..., C)   A (r, V)   B (C, r)   y (..., V)

    That is LoRALinear with Bᵀ for its A and Aᵀ for its B, so with h = x B and dh = s dy Aᵀ

        dA = s hᵀ dy         dB = xᵀ dh         dx = dh Bᵀ

    which are added to the embedding's gradients of the same two Parameters: one array each, updated once a step. (PEFT
    0.21.2 has a second pair of Parameters over the same memory here. The optimizer updates both, each by its own half
    of the gradient, so what they share moves up to twice as far.)
    """

    slots = (  # PEFT's file holds them as the A and B of a Linear: transposed, under each other's name
        Slot("lora_A", "lora_B.weight", ("r", "n_out"), file_shape=("n_out", "r")),
        Slot("lora_B", "lora_A.weight", ("n_in", "r"), file_shape=("r", "n_in")),
    )
    kept = Kept("x", "n_in", "dB = xᵀ dh", ("lora_B",)), Kept("h", "r", "dA = s hᵀ dy", ("lora_A",))
    products = Products(
        forward="2 * r * (n_in + n_out)",
        backward="2 * r * (n_in + n_out)",
        without_dx="2 * r * (n_in + n_out)",
        gradients={("lora_B",): "2 * r * n_in", ("lora_A",): "2 * r * n_out"},
    )

    def __init__(self, base: Linear, embedding: LoRAEmbedding, dropout: float = 0.0) -> None:
        options = {"r": embedding.r, "alpha": embedding.alpha, "rslora": embedding.rslora, "dropout": dropout}
        self.hold(base, embedding.own_parameters(), **options)

    def path_forward(self, x: Array, run: Pass) -> tuple[Array, LoRALinearCache]:
        x, keep = dropped(x, self.dropout, run.rng)
        y, (x, h) = ops.lora_forward(x, self.lora_B.data.T, self.lora_A.data.T, self.scaling)
        return y, LoRALinearCache(
            None, x if self.lora_B.trainable else None, h if self.lora_A.trainable else None, keep
        )

    def path_backward(self, dy: Array, cache: LoRALinearCache, grads: Gradients, needs_dx: bool) -> Array:
        dx, dh = ops.lora_backward(dy, self.lora_B.data.T, self.lora_A.data.T, self.scaling)
        if cache.x is not None:
            grads.add(self.lora_B, ops.lora_A_gradients(dh, cache.x).T)
        if cache.h is not None:
            grads.add(self.lora_A, ops.lora_B_gradients(dy, cache.h, self.scaling).T)
        return dx if cache.keep is None else ops.dropout_backward(dx, cache.keep)

    def factors(self) -> tuple[Array, Array, float]:
        """ΔW = s (B A)ᵀ (V, C)"""
        return self.lora_B.data.T, self.lora_A.data.T, self.scaling


LoRAEmbedding.tied_head = TiedLoRALinear
