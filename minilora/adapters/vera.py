"""VeRA: one random, frozen pair A, B for all layers, and two trained vectors for each (Kopiczko et al., 2024). The
maths is in ops/vera.py.

b and d are the paper's vectors, db and dd their gradients.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any, ClassVar, NamedTuple

import numpy as np

from .. import ops
from ..backend import Array, Rng
from ..nn import Gradients, Linear, Module, Parameter, Pass, converted
from .base import Law, same_share, sizes_of
from .parallel import Parallel, dropped
from .statements import Kept, Keys, Option, Products, Slot


class VeRALinearCache(NamedTuple):
    base: Any
    h: Array | None  # (N, r)       None where b and d are frozen
    learn_d: bool
    learn_b: bool
    keep: Array | None  # (..., in)     the dropout mask


class VeRALinear(Parallel):
    """y = x W₀ᵀ + b₀ + b ∘ ((d ∘ (x Aᵀ)) Bᵀ)           A (r, in)   B (out, r)   d (r,)   b (out,)

    A and B are frozen, and all layers share them: a layer takes the first `in` columns of A and the first `out` rows of
    B. They are drawn from `seed`, the same bits as PEFT's. At the start b = 0, so y is the base's, and d = d_initial.
    Dropout acts on the adapter's input only. With save_projection=False PEFT's file holds no A and B: its reader draws
    them again.
    """

    variant = "vera"
    peft_type = "VERA"
    keys = Keys("init_weights", lacks=("exclude_modules", "ensure_weight_tying"))
    base_type = Linear
    targets = "q_proj", "v_proj"
    options = (
        Option("r", "r", 256),
        Option("dropout", "vera_dropout", 0.0),
        Option("d_initial", "d_initial", 0.1),
        Option("seed", "projection_prng_key", 0),
        Option("save_projection", "save_projection", True),
    )
    slots = (
        Slot("vera_A", "vera_A", ("r", "n_in"), trained=False, shared=True, saved_if="save_projection"),
        Slot("vera_B", "vera_B", ("n_out", "r"), trained=False, shared=True, saved_if="save_projection"),
        Slot("vera_lambda_d", "vera_lambda_d", ("r",)),
        Slot("vera_lambda_b", "vera_lambda_b", ("n_out",)),
    )
    kept = (Kept("h", "r", "dd and db, by M = dyᵀ h", ("vera_lambda_d", "vera_lambda_b")),)
    products = Products(
        forward="2 * r * (n_in + n_out)",
        backward="2 * r * (n_in + n_out)",
        gradients={("vera_lambda_d", "vera_lambda_b"): "2 * r * n_out"},
    )
    laws: ClassVar[dict[str, Law]] = {"⟨b, db⟩ = ⟨d, dd⟩": same_share}
    examples: ClassVar[dict[str, dict[str, Any]]] = {"": {"r": 3}, " with dropout": {"r": 3, "dropout": 0.4}}
    vera_A: Parameter
    vera_B: Parameter
    vera_lambda_d: Parameter
    vera_lambda_b: Parameter
    r: int
    dropout: float
    d_initial: float
    seed: int
    save_projection: bool

    @classmethod
    def start(cls, base: Module, *, rng: Rng, **options: Any) -> VeRALinear:
        """A and B come from options["seed"], or are options themselves; nothing is drawn from `rng`."""
        cls.check(base, **options)
        given = cls.defaults() | options
        if "vera_A" not in given:
            given |= cls.draw_shared([base], **options)
        given["vera_lambda_d"] = np.full(given["r"], given["d_initial"])
        given["vera_lambda_b"] = np.zeros(sizes_of(base)["n_out"])
        return cls.of(base, given, **options)

    @classmethod
    def draw_shared(cls, bases: Collection[Any], **options: Any) -> dict[str, Parameter]:
        """A and B from the seed, as large as the largest of these layers needs, in their dtype.

        PEFT's Kaiming start, uniform within ±√(6/in) and ±√(6/r). A is drawn before B.
        """
        given = cls.defaults() | options
        n_out, n_in = map(max, zip(*(base.weight.data.shape for base in bases), strict=True))
        r, state = given["r"], np.random.RandomState(given["seed"] & 0xFFFFFFFF)  # torch takes 32 bits of a seed too
        drawn = {"vera_A": torch_uniform(state, (r, n_in), n_in), "vera_B": torch_uniform(state, (n_out, r), r)}
        W = next(iter(bases)).weight
        return {name: Parameter(converted(x, W.xp, W.data.dtype), trainable=False) for name, x in drawn.items()}

    @property
    def tensors(self) -> tuple[Array, Array, Array, Array]:
        """A (r, in) and B (out, r) of this layer, d and b"""
        n_out, n_in = self.weight.data.shape
        A, B = self.vera_A.data[:, :n_in], self.vera_B.data[:n_out]
        return A, B, self.vera_lambda_d.data, self.vera_lambda_b.data

    def path_forward(self, x: Array, run: Pass) -> tuple[Array, VeRALinearCache]:
        x, keep = dropped(x, self.dropout, run.rng)
        y, h = ops.vera_forward(x, *self.tensors)
        learn_d, learn_b = self.vera_lambda_d.trainable, self.vera_lambda_b.trainable
        return y, VeRALinearCache(None, h if learn_d or learn_b else None, learn_d, learn_b, keep)

    def path_backward(self, dy: Array, cache: VeRALinearCache, grads: Gradients, needs_dx: bool) -> Array | None:
        if cache.h is not None:
            _, B, d, b = self.tensors
            dd, db = ops.vera_gradients(dy, cache.h, B, d, b)
            if cache.learn_d:
                grads.add(self.vera_lambda_d, dd)
            if cache.learn_b:
                grads.add(self.vera_lambda_b, db)
        if not needs_dx:
            return None
        dx = ops.vera_backward(dy, *self.tensors)
        return dx if cache.keep is None else ops.dropout_backward(dx, cache.keep)

    def factors(self) -> tuple[Array, Array, float]:
        """ΔW = diag(b) B diag(d) A"""
        A, B, d, b = self.tensors
        return d[:, None] * A, b[:, None] * B, 1.0


def torch_uniform(state: np.random.RandomState, shape: tuple[int, int], fan_in: int) -> np.ndarray:
    """(float32): torch's kaiming_uniform_ on a CPU, bit for bit: uniform within ±√(6/fan_in).

    torch's generator is NumPy's Mersenne Twister. Of each 32 bits it takes the lower 24 as a number u in [0, 1), and
    u (high - low) + low with a single rounding: the product of two float32 is exact in float64.
    """
    u = (state.randint(0, 2**32, shape, np.uint32) & 0xFFFFFF).astype(np.float64) * 2.0**-24
    bound = math.sqrt(3) * (math.sqrt(2) / math.sqrt(fan_in))  # in torch's order
    low, high = np.float32(-bound), np.float32(bound)
    return (u * np.float64(high - low) + np.float64(low)).astype(np.float32)
