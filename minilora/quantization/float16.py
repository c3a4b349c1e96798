"""float16: 5 bits of exponent and 10 of fraction, an IEEE number, which NumPy has. It ends at 65,504, beyond which a
weight is refused, and its smallest number is 2⁻²⁴."""

from __future__ import annotations

import numpy as np

from ..backend import Array
from .base import Cells, Quantized, Rows
from .bfloat16 import cells_of_floats


class Float16(Quantized):
    """values (out, in) float16"""

    name = "float16"

    @classmethod
    def encode(cls, W: np.ndarray) -> dict[str, np.ndarray]:
        with np.errstate(over="ignore"):
            values = W.astype(np.float16)
        if not np.isfinite(values).all():
            raise ValueError(f"float16 ends at 65504, and the matrix holds {abs(W).max():.6g}: take bfloat16")
        return {"values": values}

    @classmethod
    def sizes(cls, n_out: int, n_in: int) -> dict[str, tuple[tuple[int, ...], str]]:
        return {"values": ((n_out, n_in), "f2")}

    def decode(self, rows: Rows) -> Array:
        return self.arrays["values"][rows].astype(np.float32)

    @classmethod
    def cells(cls, u: np.ndarray) -> Cells:
        return cells_of_floats(u, fraction=10, least=-14)
