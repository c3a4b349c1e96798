"""Rotary position embeddings: each pair of numbers of a head is rotated by an angle proportional to its position.

    (a, b) -> (a cos φ - b sin φ,  b cos φ + a sin φ)           φ = t ω_i at position t, for pair i,  ω_i = θ^(-2i/D)
            = (a, b) ∘ cos φ + (b, a) ∘ (-sin φ, sin φ)

Pair i is (x_i, x_{i+D/2}) of each head, as in Hugging Face's Llama (the paper pairs neighbours, which is the
same up to a fixed permutation of the rows of W). A rotation R_t keeps lengths, and R_sᵀ R_t = R_{t-s}: the
score of query s and key t depends on the distance alone.

Backward: y = R x, so dx = Rᵀ dy, the rotation by -φ.

A model trained on sequences of L tokens reads longer ones with other frequencies ω'. In L tokens a pair makes
n_i = L ω_i/2π turns. SCALINGS has the rules by Hugging Face's rope_type:

    linear      ω' = ω / factor, as if the tokens were closer together

    dynamic     θ' = θ (factor n/L - (factor - 1))^(D/(D-2)) in the place of θ, for a sequence of n > L tokens: the
                lowest frequency is divided by the bracket, the highest stays, and up to L tokens nothing changes

    llama3      ω' = m ω + (1 - m) ω / factor       m = (n_i - low) / (high - low), clipped to 0..1:
                above `high` turns a frequency stays, below `low` it is divided, and in between interpolated

    yarn        the same, m = 1 - (i - i_fast) / (i_slow - i_fast), clipped to 0..1, where a pair i makes β turns at
                i_β = D ln(L/2πβ) / (2 ln θ), i_fast rounded down, i_slow up; and cos and sin are multiplied by
                a = 0.1 ln factor + 1, so that every score q kᵀ is by a²

    x, y (B, T, H·D)    cos, sin (T, 1, D), of -φ for a and of φ for b: the sine gets its two signs

Where rows have positions of their own, behind padding on the left, cos and sin are (B, T, 1, D).

A key in a cache keeps the ω' of the length at which it was made. With dynamic scaling, past L tokens, reading a text
at once and reading it in parts are therefore not the same: each part has the ω' of all up to its own end.

With YaRN y = a R x, and dx = a Rᵀ dy: the same tables.

Source: Su et al. (2021), "RoFormer", equation 15; Grattafiori et al. (2024), "The Llama 3 Herd of Models", and the
released code for the scaling; Chen et al. (2023), "Extending Context Window of Large Language Models via Positional
Interpolation"; Peng et al. (2023), "YaRN: Efficient Context Window Extension of Large Language Models", sections 3.2
and 3.4, and appendix A.2 for dynamic.
"""

import math
from types import ModuleType
from typing import Any, NamedTuple, TypeAlias

from ..backend import Array, get_array_module


class LinearScaling(NamedTuple):
    """A rule's numbers, in the order and with the meaning of Hugging Face's keys."""

    factor: float

    def frequencies(self, xp: ModuleType, D: int, theta: float, n: int | Array) -> Array:
        """ω' (D/2,) for a sequence of n tokens."""
        return rope_frequencies(xp, D, theta) / self.factor


class DynamicScaling(NamedTuple):
    factor: float
    max_position_embeddings: int  # L

    @property
    def max_length(self) -> int:
        """factor L, the longest sequence that a model reads here; the rule itself has no end."""
        return int(max(1, self.factor) * self.max_position_embeddings)

    def frequencies(self, xp: ModuleType, D: int, theta: float, n: int | Array) -> Array:
        factor, L = self
        longest = max(n, L) if isinstance(n, int) else xp.maximum(n, L)
        stretch = factor * longest / L - (factor - 1)
        return rope_frequencies(xp, D, theta * stretch ** (D / max(D - 2, 1)))  # of one pair ω is 1 whatever θ is


class Llama3Scaling(NamedTuple):
    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int  # L

    def frequencies(self, xp: ModuleType, D: int, theta: float, n: int | Array) -> Array:
        factor, low, high, L = self
        omega = rope_frequencies(xp, D, theta)
        m = xp.clip((L * omega / (2 * math.pi) - low) / (high - low), 0, 1)
        return m * omega + (1 - m) * omega / factor


class YarnScaling(NamedTuple):
    factor: float
    original_max_position_embeddings: int  # L
    attention_factor: float | None = None  # a; None: from the factor, and from both of the next two if there are both
    mscale: float | None = None
    mscale_all_dim: float | None = None
    beta_fast: float = 32
    beta_slow: float = 1
    truncate: bool = True  # round i_fast and i_slow

    def frequencies(self, xp: ModuleType, D: int, theta: float, n: int | Array) -> Array:
        L, omega = self.original_max_position_embeddings, rope_frequencies(xp, D, theta)
        fast, slow = (
            D * math.log(L / (2 * math.pi * b)) / (2 * math.log(theta)) for b in (self.beta_fast, self.beta_slow)
        )
        if self.truncate:
            fast, slow = math.floor(fast), math.ceil(slow)
        fast, slow = max(fast, 0), min(slow, D - 1)
        m = 1 - xp.clip((xp.arange(D // 2) - fast) / (slow - fast or 0.001), 0, 1)
        return m * omega + (1 - m) * omega / self.factor

    @property
    def amplitude(self) -> float:
        """a"""
        if self.attention_factor is not None:
            return self.attention_factor
        log = 0.1 * math.log(max(self.factor, 1))
        if self.mscale and self.mscale_all_dim:
            return (self.mscale * log + 1) / (self.mscale_all_dim * log + 1)
        return log + 1


RopeScaling: TypeAlias = LinearScaling | DynamicScaling | YarnScaling | Llama3Scaling
SCALINGS: dict[str, type[RopeScaling]] = {
    "linear": LinearScaling, "dynamic": DynamicScaling, "yarn": YarnScaling, "llama3": Llama3Scaling,
}  # fmt: skip


def rope_frequencies(
    xp: ModuleType, D: int, theta: float, scaling: RopeScaling | None = None, n: int | Array = 0
) -> Array:
    """ω (D/2,), float64, for heads of width D; scaled if there is a `scaling`, for a sequence of n tokens. If that asks
    for n, and it is (B, 1, 1, 1), the tokens of several sequences, ω is (B, 1, 1, D/2)."""
    return theta ** (-xp.arange(0, D, 2) / D) if scaling is None else scaling.frequencies(xp, D, theta, n)


def rope_tables(
    xp: ModuleType,
    T: int,
    omega: Array,
    dtype: Any,
    start: int = 0,
    amplitude: float = 1,
    positions: Array | None = None,
) -> tuple[Array, Array]:
    """a cos and a sin of (-φ, φ), each (T, 1, D), for the positions start..start+T-1, or (B, T, 1, D) for `positions`
    (B, T). The angles are float64."""
    t = xp.arange(start, start + T) if positions is None else positions
    phi = t[..., None, None] * xp.concatenate([-omega, omega], axis=-1)
    cos, sin = xp.cos(phi), xp.sin(phi)
    if amplitude != 1:
        cos, sin = amplitude * cos, amplitude * sin
    return cos.astype(dtype), sin.astype(dtype)


def rope_forward(x: Array, cos: Array, sin: Array) -> Array:
    """y = a R x"""
    D = cos.shape[-1]
    ab = x.reshape(*x.shape[:-1], -1, D)  # (B, T, H, D)
    ba = get_array_module(x).concatenate([ab[..., D // 2 :], ab[..., : D // 2]], axis=-1)
    ba *= sin
    y = ab * cos
    y += ba
    return y.reshape(x.shape)


def rope_backward(dy: Array, cos: Array, sin: Array) -> Array:
    """dx = a Rᵀ dy"""
    return rope_forward(dy, cos, -sin)
