"""LoRA: a frozen layer, and a low-rank path beside it (Hu et al., 2021). The maths is in ops/lora.py."""

from __future__ import annotations

import math
from typing import Any, ClassVar, NamedTuple

import numpy as np

from .. import ops
from ..backend import Array, Rng, generator, to_numpy
from ..nn import Embedding, Gradients, Inputs, Linear, Module, Parameter, Pass
from ..nn.optim import SGD
from .base import Adapter, Kept, Keys, Law, Option, Products, Slot, dropped, relative_difference


def exchange(adapter: LoRA, x: Array, dy: Array, grads: Gradients) -> float:
    """Bᵀ dB = dA Aᵀ: an invertible factor that moves from B to A changes no output."""
    A, B = adapter.lora_A, adapter.lora_B
    return relative_difference(B.data.T @ grads[B], grads[A] @ A.data.T)


def gradient_at_the_start(adapter: LoRA, x: Array, dy: Array, grads: Gradients) -> float:
    grads = at_the_start(adapter, x, dy)
    return float(abs(grads[adapter.lora_A]).max() / abs(grads[adapter.lora_B]).max())


def first_step(adapter: LoRA, x: Array, dy: Array, grads: Gradients) -> float:
    grads = at_the_start(adapter, x, dy)
    A, G, s, eta = adapter.lora_A.data, ops.linear_gradients(dy, x), adapter.scaling, 0.37
    SGD(adapter.trainable_parameters(), lr=eta).step(grads)
    return relative_difference(adapter.delta(), -eta * s**2 * G @ A.T @ A)


def at_the_start(adapter: LoRA, x: Array, dy: Array) -> Gradients:
    adapter.lora_B.data = 0 * adapter.lora_B.data
    grads = Gradients()
    adapter.backward(dy, adapter.forward(x)[1], grads)
    return grads


class LoRA(Adapter):
    """s B A beside a frozen layer:         A (r, in)   B (out, r)   s = α/r, or α/√r (rsLoRA)"""

    variant = "lora"
    peft_type = "LORA"
    keys = Keys(
        init="init_lora_weights",
        # PEFT 0.21.2, tuners/lora/layer.py: the others, "pissa", "olora", "corda", "loftq" and "lora_ga", change W
        # at the start
        inits=(True, False, "gaussian", "eva", "orthogonal", "mica"),
        fixed={
            **{"use_dora": False, "lora_bias": False, "use_qalora": False, "use_bdlora": None},
            **{"layer_replication": None, "target_parameters": None},
            **{"alora_invocation_tokens": None, "kasa_config": None, "arrow_config": None, "monteclora_config": None},
            **{"velora_config": None, "megatron_config": None},
        },
        ignored=(
            *("eva_config", "corda_config", "loftq_config", "lora_ga_config"),
            *("megatron_core", "qalora_group_size"),
        ),
        beside=("trainable_token_indices",),
    )
    options: ClassVar[tuple[Option, ...]] = (
        Option("r", "r", 8, "rank_pattern"),
        Option("alpha", "lora_alpha", 8.0, "alpha_pattern"),  # PEFT's default for a missing key; __init__'s is 16
        Option("dropout", "lora_dropout", 0.0),
        Option("rslora", "use_rslora", False),
    )
    start_options = ("init",)
    laws: ClassVar[dict[str, Law]] = {"Bᵀ dB = dA Aᵀ": exchange}
    examples: ClassVar[dict[str, dict[str, Any]]] = {
        "": {"r": 3, "alpha": 5},
        ", rsLoRA": {"r": 3, "alpha": 5, "rslora": True},
    }
    lora_A: Parameter
    lora_B: Parameter
    r: int
    alpha: float
    dropout: float
    rslora: bool

    @property
    def scaling(self) -> float:
        return self.alpha / (math.sqrt(self.r) if self.rslora else self.r)

    @classmethod
    def check(cls, base: Module, *, init: str = "uniform", **options: Any) -> None:
        super().check(base, **options)
        if init not in ("uniform", "gaussian"):
            raise ValueError(f"init {init!r} is neither 'uniform' nor 'gaussian'")


class LoRALinearCache(NamedTuple):
    base: Any
    x: Array | None  # (..., in)   after dropout; None where A is frozen
    h: Array | None  # (N, r)      None where B is frozen
    keep: Array | None  # (..., in)   the dropout mask


class LoRALinear(LoRA):
    """y = x W₀ᵀ + b + s (x Aᵀ) Bᵀ         A (r, in)   B (out, r)   s = α/r, or α/√r (rsLoRA)

    Hu et al. (2021), equation 3. At the start B = 0, so y is the base's; A is uniform within ±1/√in, as PEFT's, or
    normal with standard deviation 1/r (init="gaussian"). Dropout acts on the adapter's input alone. `base`, a Linear,
    is frozen and kept. A rank above min(in, out) is allowed, as in PEFT, though B A can be of no higher rank than that.
    Raises ValueError for a base that is no plain Linear, a rank below 1, and an `rng` that is neither a seed nor a
    generator; the base is then as it was.
    """

    base_type = Linear
    targets = "q_proj", "v_proj"
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
        without_dx="2 * r * (n_in + n_out)",
        gradients={("lora_A",): "2 * r * n_in", ("lora_B",): "2 * r * n_out"},
    )

    def __init__(
        self,
        base: Module,
        r: int = 8,
        alpha: float = 16,
        *,
        rng: Rng,
        dropout: float = 0.0,
        rslora: bool = False,
        init: str = "uniform",
    ) -> None:
        rng = generator(rng)
        self.check(base, r=r, alpha=alpha, dropout=dropout, rslora=rslora, init=init)
        assert isinstance(base, Linear)
        n_out, n_in = base.weight.data.shape
        A = rng.uniform(-1, 1, (r, n_in)) / math.sqrt(n_in) if init == "uniform" else rng.standard_normal((r, n_in)) / r
        tensors = {"lora_A": A, "lora_B": np.zeros((n_out, r))}
        self.hold(base, tensors, r=r, alpha=float(alpha), dropout=float(dropout), rslora=rslora)

    @classmethod
    def start(cls, base: Module, **options: Any) -> LoRALinear:
        return cls(base, **options)

    def forward(self, x: Array, inputs: Inputs = Inputs(), run: Pass = Pass()) -> tuple[Array, LoRALinearCache]:
        y, cb = self.base.forward(x, inputs, run)
        x, keep = dropped(x, self.dropout, run.rng)
        y_lora, (x, h) = ops.lora_forward(x, self.lora_A.data, self.lora_B.data, self.scaling)
        y += y_lora
        return y, LoRALinearCache(cb, x if self.lora_A.trainable else None, h if self.lora_B.trainable else None, keep)

    def backward(self, dy: Array, cache: LoRALinearCache, grads: Gradients) -> Array | None:
        dx = self.base.backward(dy, cache.base, grads)
        dx_lora, dh = ops.lora_backward(dy, self.lora_A.data, self.lora_B.data, self.scaling)
        if cache.x is not None:
            grads.add(self.lora_A, ops.lora_A_gradients(dh, cache.x))
        if cache.h is not None:
            grads.add(self.lora_B, ops.lora_B_gradients(dy, cache.h, self.scaling))
        if dx is not None:
            dx += dx_lora if cache.keep is None else ops.dropout_backward(dx_lora, cache.keep)
        return dx

    @classmethod
    def join_parts(cls, base: Module, parts: list[Any]) -> LoRALinear:
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
        n, row, column = len(parts[0].weight.data), 0, 0
        B = np.zeros((n * len(parts), len(A)), A.dtype)
        for part in parts:
            if part.is_adapter:
                B[row : row + n, column : column + part.r] = to_numpy(part.lora_B.data)
                column += part.r
            row += n
        alpha = first.scaling * (math.sqrt(len(A)) if first.rslora else len(A))
        options = {"r": len(A), "alpha": alpha, "rslora": first.rslora, "dropout": first.dropout}
        return cls.of(base, {"lora_A": A, "lora_B": B}, **options)

    def delta(self) -> Array:
        """ΔW = s B A (out, in)"""
        return self.scaling * (self.lora_B.data @ self.lora_A.data)

    def factors(self) -> tuple[Array, Array, float]:
        return self.lora_A.data, self.lora_B.data, self.scaling


class LoRAEmbeddingCache(NamedTuple):
    base: Any
    ids: Array | None  # (...)      None where A is frozen
    h: Array | None  # (N, r)      None where B is frozen


class LoRAEmbedding(LoRA):
    """y = W₀[ids] + s (A[:, ids])ᵀ Bᵀ      A (r, V)   B (C, r)   s = α/r, or α/√r (rsLoRA)

    At the start A = 0 and B is normal, the other way round than in LoRALinear: as PEFT's and loralib's. There is no
    dropout, as ids have none. Where a head is tied to the embedding, the head stays the base's: the adapter acts on
    the input alone, as PEFT's does.
    Raises ValueError as LoRALinear does, for a base that is no plain Embedding.
    """

    base_type = Embedding
    slots = Slot("lora_A", "lora_embedding_A", ("r", "n_in")), Slot("lora_B", "lora_embedding_B", ("n_out", "r"))
    kept = Kept("ids", "0", "dA adds dh up by id", ("lora_A",)), Kept("h", "r", "dB = s dyᵀ h", ("lora_B",))
    products = Products(
        forward="2 * r * n_out",
        backward="0",
        gradients={("lora_A",): "2 * r * n_out", ("lora_B",): "2 * r * n_out"},
    )

    @classmethod
    def start(cls, base: Module, *, dropout: float = 0.0, init: str = "uniform", **options: Any) -> LoRAEmbedding:
        return cls(base, **options)  # ids have no dropout, and A starts at 0

    def __init__(self, base: Module, r: int = 8, alpha: float = 16, *, rng: Rng, rslora: bool = False) -> None:
        rng = generator(rng)
        self.check(base, r=r, alpha=alpha)
        assert isinstance(base, Embedding)
        V, C = base.weight.data.shape
        tensors = {"lora_A": np.zeros((r, V)), "lora_B": rng.standard_normal((C, r))}
        self.hold(base, tensors, r=r, alpha=float(alpha), rslora=rslora)

    def forward(self, ids: Array, inputs: Inputs = Inputs(), run: Pass = Pass()) -> tuple[Array, LoRAEmbeddingCache]:
        y, cb = self.base.forward(ids, inputs, run)
        y_lora, (ids, h) = ops.lora_embedding_forward(ids, self.lora_A.data, self.lora_B.data, self.scaling)
        y += y_lora  # W[ids] is a copy
        return y, LoRAEmbeddingCache(cb, ids if self.lora_A.trainable else None, h if self.lora_B.trainable else None)

    def backward(self, dy: Array, cache: LoRAEmbeddingCache, grads: Gradients) -> None:
        self.base.backward(dy, cache.base, grads)
        if cache.ids is not None:
            A, B, s = self.lora_A.data, self.lora_B.data, self.scaling
            grads.add(self.lora_A, ops.lora_embedding_A_gradients(dy, cache.ids, B, s, A.shape[1]))
        if cache.h is not None:
            grads.add(self.lora_B, ops.lora_B_gradients(dy, cache.h, self.scaling))

    def delta(self) -> Array:
        """ΔW = s (B A)ᵀ (V, C)"""
        return self.scaling * (self.lora_B.data @ self.lora_A.data).T

    def factors(self) -> tuple[Array, Array, float]:
        return self.lora_B.data.T, self.lora_A.data.T, self.scaling


class TiedLoRALinear(LoRA):
    """The other use of an adapted embedding, by the head that is tied to it, with the same W₀, A and B:

        y = x (W₀ + s (B A)ᵀ)ᵀ + b = x W₀ᵀ + b + s (x B) A          x (..., C)   A (r, V)   B (C, r)   y (..., V)

    That is LoRALinear with Bᵀ for its A and Aᵀ for its B, so with h = x B and dh = s dy Aᵀ

        dA = s hᵀ dy         dB = xᵀ dh         dx = dh Bᵀ

    which are added to what the embedding gives to the same two Parameters: one array each, moved once a step. (PEFT
    0.21.2 has a second pair of Parameters over the same memory here. Each is stepped, by its own half of the
    gradient, so what they share moves up to twice as far.)
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

    def forward(self, x: Array, inputs: Inputs = Inputs(), run: Pass = Pass()) -> tuple[Array, LoRALinearCache]:
        y, cb = self.base.forward(x, inputs, run)
        x, keep = dropped(x, self.dropout, run.rng)
        y_lora, (x, h) = ops.lora_forward(x, self.lora_B.data.T, self.lora_A.data.T, self.scaling)
        y += y_lora
        return y, LoRALinearCache(cb, x if self.lora_B.trainable else None, h if self.lora_A.trainable else None, keep)

    def backward(self, dy: Array, cache: LoRALinearCache, grads: Gradients) -> Array | None:
        dx = self.base.backward(dy, cache.base, grads)
        dx_lora, dh = ops.lora_backward(dy, self.lora_B.data.T, self.lora_A.data.T, self.scaling)
        if cache.x is not None:
            grads.add(self.lora_B, ops.lora_A_gradients(dh, cache.x).T)
        if cache.h is not None:
            grads.add(self.lora_A, ops.lora_B_gradients(dy, cache.h, self.scaling).T)
        if dx is not None:
            dx += dx_lora if cache.keep is None else ops.dropout_backward(dx_lora, cache.keep)
        return dx

    def delta(self) -> Array:
        """ΔW = s (B A)ᵀ (V, C)"""
        return self.scaling * (self.lora_B.data @ self.lora_A.data).T

    def factors(self) -> tuple[Array, Array, float]:
        return self.lora_B.data.T, self.lora_A.data.T, self.scaling


LoRAEmbedding.tied_head = TiedLoRALinear
