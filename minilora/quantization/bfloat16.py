"""bfloat16: the upper half of a float32's bits. 8 of them are the exponent, as there, and 7 the fraction.

The lower 16 bits are rounded away, half to even: with u, the 32 bits as a whole number,

    u' = (u + 0x7FFF + ((u >> 16) & 1)) >> 16

NumPy has no such dtype, so the bits are held as uint16. |Ŵ - W| ≤ 2⁻⁹ of the power of two above |W|.
"""

from __future__ import annotations

import numpy as np

from ..backend import Array
from .base import ENCODED, Quantized, Rows, parts


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

    def decode(self, rows: Rows) -> Array:
        return from_bfloat16(self.arrays["bits"][rows])
