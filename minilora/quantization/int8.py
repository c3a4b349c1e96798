"""int8: 8 bits for each number, and a scale for each row (Dettmers et al., 2022, "LLM.int8()").

With a, the largest |W_oi| of row o, and half rounded to even,

    q_oi = round(127 W_oi / a_o)            Ŵ_oi = q_oi a_o / 127

A layer multiplies by Ŵ in full precision. LLM.int8 also rounds the rows of x, and multiplies integers: llm_int8().
There a few columns of x that are much larger than the rest would leave the others hardly any of the 127 steps. So the
columns with an |x_ni| of 6 or more, the outliers, are taken out and multiplied in full precision:

    y_no = Σ_{i not an outlier} p_ni q_oi · a_n a_o / 127²  +  Σ_{i outlier} x_ni Ŵ_oi

Codes, scales and columns are those of bitsandbytes 0.50.2 to the bit.
"""

from __future__ import annotations

import numpy as np

from ..backend import Array
from .base import ENCODED, Cells, Quantized, Rows, parts

STEPS = 127
OUTLIER = 6.0
LEAST = np.float32(4e-37)  # below it 127/a overflows: the codes of such a row are 0, as of a row of zeros
SQUARED_STEP = np.float32(6.200124e-05)  # bitsandbytes' 1/127²


def int8_codes(W: np.ndarray, outlier: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """q (n, m) int8, a (n,), and the outlier columns of a float32 W (n, m), whose codes are 0. `outlier` 0: none.

    As in bitsandbytes the outliers are left out of the scales, and in a matrix of one row no column is set to 0.
    """
    large = abs(W) >= outlier if outlier else np.zeros(W.shape, bool)
    columns = np.flatnonzero(large.any(axis=0))
    a = abs(np.where(large, 0, W)).max(axis=1, initial=0)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        scaled = np.where(large, 0, W) * (1 / a * np.float32(STEPS))[:, None]  # as PyTorch takes 127/a: it decides ties
    q = np.rint(np.where(a[:, None] < LEAST, 0, scaled)).astype(np.int8)
    if len(W) > 1:
        q[:, columns] = 0
    return q, a, columns


def llm_int8(x: np.ndarray, Q: Int8, outlier: float = OUTLIER) -> np.ndarray:
    """y (N, out) of x (N, in): a product of integers, and one of the outlier columns in full precision."""
    p, a, columns = int8_codes(np.asarray(x, np.float32), outlier)
    q, scale = Q.arrays["codes"], Q.arrays["absmax"]
    whole = p.astype(np.int32) @ q.T.astype(np.int32)
    y = whole.astype(np.float32) * (a[:, None] * scale * SQUARED_STEP)
    return y + x[:, columns] @ Q.dense()[:, columns].T if len(x) > 1 else y


class Int8(Quantized):
    """codes (out, in) int8 and absmax (out,) float32"""

    name = "int8"
    for_blocks = True

    @classmethod
    def encode(cls, W: np.ndarray) -> dict[str, np.ndarray]:
        q, a = np.empty(W.shape, np.int8), np.empty(len(W), np.float32)
        for rows in parts(W, ENCODED):
            q[rows], a[rows], _ = int8_codes(W[rows])
        return {"codes": q, "absmax": a}

    @classmethod
    def sizes(cls, n_out: int, n_in: int) -> dict[str, tuple[tuple[int, ...], str]]:
        return {"codes": ((n_out, n_in), "i1"), "absmax": ((n_out,), "f4")}

    def decode(self, rows: Rows) -> Array:
        step = self.arrays["absmax"][rows] / np.float32(STEPS)
        return self.arrays["codes"][rows] * step[:, None]

    @classmethod
    def scales_of(cls, W: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        a = abs(W).max(axis=1, initial=0)[:, None]
        return a, a

    @classmethod
    def cells(cls, u: np.ndarray) -> Cells:
        q = np.clip(np.rint(STEPS * u), -STEPS, STEPS)
        low, high = np.where(q == -STEPS, -np.inf, q - 0.5), np.where(q == STEPS, np.inf, q + 0.5)
        return Cells(q / STEPS, low / STEPS, high / STEPS)
