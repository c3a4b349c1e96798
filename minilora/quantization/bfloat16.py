"""bfloat16: the upper half of a float32's bits. 8 of them are the exponent, as there, and 7 the fraction.

The lower 16 bits are rounded away, half to even: with u, the 32 bits as a whole number,

    u' = (u + 0x7FFF + ((u >> 16) & 1)) >> 16

NumPy has no such dtype, so the bits are held as uint16. |Ŵ - W| ≤ 2⁻⁹ of the power of two above |W|.
"""

from __future__ import annotations

import numpy as np

from ..backend import Array
from .base import ENCODED, Cells, Quantized, Rows, parts


def bfloat16_bits(x: Array) -> Array:
    """uint16 of float32. A NaN stays one."""
    u = x.view(np.uint32)
    bits = ((u + 0x7FFF + ((u >> 16) & 1)) >> 16).astype(np.uint16)
    bits[x != x] = 0x7FC0
    return bits


def from_bfloat16(bits: Array) -> Array:
    """float32 of uint16."""
    u = bits.astype(np.uint32)
    u <<= 16
    return u.view(np.float32)


def cells_of_floats(x: np.ndarray, fraction: int, least: int) -> Cells:
    """The cells of a binary floating-point format with so many bits of fraction, whose normal numbers begin at 2^least.

    The numbers in [2^e, 2^(e+1)) lie 2^(e - fraction) apart, those below 2^least as far as just above it. Next to a
    power of two the number towards 0 is half as far away as the other.
    """

    def gaps(x: np.ndarray) -> np.ndarray:
        exponent = np.frexp(x)[1] - 1  # wrong for x = 0, which np.where below replaces
        return np.ldexp(1.0, np.where(x == 0, least, np.maximum(exponent, least)) - fraction)

    gap = gaps(x)
    level = np.rint(x / gap) * gap
    away, size = gaps(level) / 2, abs(level)
    towards = np.where((np.frexp(size)[0] == 0.5) & (size > 2.0**least), away / 2, away)
    inner, outer = size - towards, size + away
    negative = level < 0
    return Cells(level, np.where(negative, -outer, inner), np.where(negative, -inner, outer))


class BFloat16(Quantized):
    """bits (out, in) uint16"""

    name = "bfloat16"

    @classmethod
    def encode(cls, W: np.ndarray) -> dict[str, np.ndarray]:
        bits = np.empty(W.shape, np.uint16)
        for rows in parts(W, ENCODED):
            bits[rows] = bfloat16_bits(W[rows])
        return {"bits": bits}

    @classmethod
    def sizes(cls, n_out: int, n_in: int) -> dict[str, tuple[tuple[int, ...], str]]:
        return {"bits": ((n_out, n_in), "u2")}

    @property
    def T(self) -> BFloat16:
        """Ŵᵀ: every number has bits of its own."""
        return BFloat16({"bits": np.ascontiguousarray(self.arrays["bits"].T)}, self.shape[::-1], self.dtype)

    def is_finite(self) -> bool:
        return not (self.arrays["bits"] & 0x7F80 == 0x7F80).any()  # the exponent of infinity and NaN

    def decode(self, rows: Rows) -> Array:
        return from_bfloat16(self.arrays["bits"][rows])

    @classmethod
    def cells(cls, u: np.ndarray) -> Cells:
        return cells_of_floats(u, fraction=7, least=-126)
