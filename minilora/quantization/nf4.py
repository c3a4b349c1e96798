"""NF4: a code of 4 bits for each number, and a scale for each block of 64 (Dettmers et al., 2023, "QLoRA", section 3).

The matrix is read row by row and cut into blocks of 64; the last may be short. With a, the largest |W_i| of its block,

    q_i = the nearest of 16 levels to W_i / a           Ŵ_i = level[q_i] a

The levels lie where N(0, 1) has equal shares of its mass, rescaled to [-1, 1], with one of them at 0: closer together
near 0, where most weights are. On a tie the lower level is taken. Two codes share a byte, the first in the high bits.

Double quantisation holds the scales in 8 bits. With their mean μ, and A, the largest |a - μ| in a block of 256 of them,

    p = the nearest of 256 levels to (a - μ) / A        â = level8[p] A + μ

The 256 levels are bitsandbytes' "dynamic map" (the paper says FP8): ±10⁻⁶ … ±1, in each decade twice as many as in the
one below, and 0. So a number takes 4 + 32/64 = 4.5 bits, or 4 + 8/64 + 32/(64 · 256) = 4.127, and 32 for μ.

Codes and scales are those of bitsandbytes 0.50.2 to the bit. Two things are not portable there. The last bit of μ
depends on the order of adding; here it is the mean in float64, rounded. And on a CPU it finds p by a table of 65,536
steps, so 2 in 1,000 of its p are not the nearest level, as they are here and on a GPU.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..backend import Array, get_array_module
from .base import ALL, ENCODED, Cells, Quantized, Rows

BLOCK, NESTED_BLOCK = 64, 256
LOOKED_UP = 2**14  # bytes
LEVELS = np.array(  # QLoRA, appendix E
    [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
     -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
     0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0], np.float32)  # fmt: skip
ZERO = 7  # the code of 0
LEAST = np.float32(1e-38)  # by which a block of zeros is divided
ENDS = np.concatenate([[-np.inf], (LEVELS[:-1] + LEVELS[1:]) / np.float32(2), [np.inf]])
"""(17,): the ends of the 16 cells, in the middle between two levels."""
PAIRS = LEVELS[np.stack(np.divmod(np.arange(256), 16), axis=1)].view(np.uint64)[:, 0]
"""(256,): the two float32 of each byte, side by side, so that they are looked up at once."""


def dynamic_map() -> np.ndarray:
    """(256,) level8: 0, 1, and for e = 0 … 6 and both signs the middles of 2^e equal parts of [0.1, 1], by 10^(e - 6).

    The ends of the parts are rounded to float32, and computed from the nearer end of [0.1, 1], as torch.linspace does.
    """
    levels = [0.0, 1.0]
    for e in range(7):
        start, end, n = np.float32(0.1), np.float32(1), 2**e
        i, step = np.arange(n + 1), float((end - start) / np.float32(n))
        ends = np.where(i < (n + 1) // 2, float(start) + step * i, float(end) - step * (n - i)).astype(np.float32)
        middles = (np.float32(10.0 ** (e - 6)) * ((ends[:-1] + ends[1:]) / np.float32(2))).tolist()
        levels += [*middles, *(-x for x in middles)]
    return np.sort(np.array(levels, np.float32))


LEVELS8 = dynamic_map()


def nearest(x: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """uint8: the index of the nearest level, on a tie the lower."""
    return np.searchsorted((levels[:-1] + levels[1:]) / np.float32(2), x, side="left").astype(np.uint8)


FIRST = nearest(np.arange(-32, 33, dtype=np.float32) / 32, LEVELS)  # the codes of -1, -31/32, …, 1
UPPER = ENDS[1:].astype(np.float32)


def nearest_code(x: np.ndarray) -> np.ndarray:
    """nearest(x, LEVELS) of numbers from -1 to 1, several times as fast.

    From one 32nd to the next there is at most one end of a cell. So a code is that of the 32nd below, or the next.
    """
    q = FIRST.take(((x + 1) * 32).astype(np.uint8))
    q += x > UPPER.take(q)
    return q


def in_blocks(x: np.ndarray, size: int) -> np.ndarray:
    """(n,) -> (blocks, size), with zeros after the end."""
    return np.concatenate([x, np.zeros(-len(x) % size, x.dtype)]).reshape(-1, size)


def nf4_codes(W: np.ndarray, block: int = BLOCK) -> tuple[np.ndarray, np.ndarray]:
    """q (n,) from 0 to 15, and a (blocks,), of a float32 W of n numbers."""
    flat, n, blocks = W.reshape(-1), W.size, -(-W.size // block)
    q, a = np.empty(n, np.uint8), np.empty(blocks, np.float32)
    together = max(1, ENCODED // block)
    for first in range(0, blocks, together):
        part, numbers = slice(first, first + together), slice(first * block, (first + together) * block)
        x = in_blocks(flat[numbers], block)
        a[part] = abs(x).max(axis=1)
        scaled = x * (1 / np.maximum(a[part], LEAST))[:, None]
        if part.stop >= blocks and n % block:  # bitsandbytes divides in a short block, and multiplies by 1/a in others
            a[-1] = max(a[-1], LEAST)
            scaled[-1] = x[-1] / a[-1]
        q[numbers] = nearest_code(np.clip(scaled, -1, 1).reshape(-1)[: n - numbers.start])
    return q, a


def packed(q: np.ndarray) -> np.ndarray:
    """Two codes a byte; an odd last one is packed with the code of 0."""
    q = np.append(q, np.uint8(ZERO)) if len(q) % 2 else q
    return (q[::2] << 4) | q[1::2]


def unpacked(codes: np.ndarray, n: int) -> np.ndarray:
    """q (n,) of packed codes."""
    return np.stack([codes >> 4, codes & 15], axis=1).reshape(-1)[:n]


def double_quantised(a: np.ndarray, mean: np.float32 | None = None) -> tuple[np.ndarray, np.ndarray, np.float32]:
    """p (blocks,) uint8, A (blocks / 256,) and μ, of the scales a."""
    mean = np.float32(a.mean(dtype=np.float64)) if mean is None else mean
    x = in_blocks(a - mean, NESTED_BLOCK)
    A = abs(x).max(axis=1, initial=0)
    with np.errstate(over="ignore", invalid="ignore"):  # as there, of scales that are nearly 0
        scaled = x * (1 / np.where(A == 0, np.float32(1), A))[:, None]
    return nearest(np.clip(scaled, -1, 1).reshape(-1)[: len(a)], LEVELS8), A, mean


def looked_up(codes: Array) -> Array:
    """(2 k,) float32: the two levels of each of k bytes. On the host some bytes at a time: NumPy makes an index of 8
    bytes for each, which then stays in the processor's cache."""
    xp = get_array_module(codes)
    pairs, x = xp.asarray(PAIRS), xp.empty(len(codes), np.uint64)
    step = LOOKED_UP if xp is np else max(1, len(codes))
    for start in range(0, len(codes), step):
        x[start : start + step] = pairs.take(codes[start : start + step])
    return x.view(np.float32)


def scaled_blocks(x: Array, a: Array, block: int) -> Array:
    """x (n,) with each block times its a: x itself, written to."""
    whole = len(x) // block
    blocks = x[: whole * block].reshape(whole, block)
    blocks *= a[:whole, None]
    if len(x) % block:
        x[whole * block :] *= a[whole]
    return x


class NF4(Quantized):
    """codes (⌈n/2⌉,) uint8, two a byte, and absmax (⌈n/64⌉,) float32, of n = out · in numbers."""

    name = "nf4"
    for_blocks = True

    def __init__(self, arrays: Any, shape: tuple[int, ...], dtype: Any = np.float32, block: int = BLOCK) -> None:
        super().__init__(arrays, shape, dtype)
        self.block = block

    @classmethod
    def encode(cls, W: np.ndarray, block: int = BLOCK) -> dict[str, np.ndarray]:
        q, a = nf4_codes(W, block)
        return {"codes": packed(q), "absmax": a}

    @classmethod
    def sizes(cls, n_out: int, n_in: int) -> dict[str, tuple[tuple[int, ...], str]]:
        n = n_out * n_in
        return {"codes": ((-(-n // 2),), "u1"), "absmax": ((-(-n // BLOCK),), "f4")}

    def absmax(self, blocks: slice = ALL) -> Array:
        """a of these blocks."""
        return self.arrays["absmax"][blocks]

    def decode(self, rows: Rows) -> Array:
        n_out, n_in = self.shape
        if not isinstance(rows, slice) or rows.step not in (None, 1):  # rows of blocks are not looked up one by one
            return self.decode(ALL)[rows]
        start, stop, _ = rows.indices(n_out)
        start, stop = start * n_in, max(stop, start) * n_in
        first = start // (2 * self.block) * 2 * self.block  # a block that begins with a byte
        codes = self.arrays["codes"][first // 2 : -(-stop // 2)]
        x = scaled_blocks(
            looked_up(codes)[: stop - first],
            self.absmax(slice(first // self.block, -(-stop // self.block))),
            self.block,
        )
        return x[start - first :].reshape(-1, n_in)

    def codes(self) -> Array:
        return unpacked(self.arrays["codes"], self.size).reshape(self.shape)

    @staticmethod
    def held(a: np.ndarray) -> np.ndarray:
        """The scales (blocks,) as they are held."""
        return a

    @classmethod
    def scales_of(cls, W: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        a = abs(in_blocks(W.reshape(-1), BLOCK)).max(axis=1, initial=0)
        each, held = (np.repeat(x, BLOCK)[: W.size].reshape(W.shape) for x in (a, cls.held(a)))
        return each, held

    @classmethod
    def cells(cls, u: np.ndarray) -> Cells:
        q = nearest(u, LEVELS)
        return Cells(LEVELS[q].astype(float), ENDS[q], ENDS[q + 1])


class DoubleNF4(NF4):
    """NF4 with absmax (⌈n/64⌉,) uint8, nested_absmax (⌈n/64/256⌉,) float32 and their offset () float32, μ. A file has
    `levels` of its own, which can differ from level8 in the last bit."""

    name = "nf4-dq"

    def __init__(
        self, arrays: Any, shape: tuple[int, ...], dtype: Any = np.float32, block: int = BLOCK,
        nested_block: int = NESTED_BLOCK, levels: np.ndarray = LEVELS8,
    ) -> None:  # fmt: skip
        super().__init__(arrays, shape, dtype, block)
        self.nested_block, self.levels = nested_block, levels

    @classmethod
    def encode(cls, W: np.ndarray, block: int = BLOCK) -> dict[str, np.ndarray]:
        q, a = nf4_codes(W, block)
        p, A, mean = double_quantised(a)
        return {"codes": packed(q), "absmax": p, "nested_absmax": A, "offset": np.asarray(mean)}

    @classmethod
    def sizes(cls, n_out: int, n_in: int) -> dict[str, tuple[tuple[int, ...], str]]:
        blocks = -(-n_out * n_in // BLOCK)
        nested = {"nested_absmax": ((-(-blocks // NESTED_BLOCK),), "f4"), "offset": ((), "f4")}
        return {**super().sizes(n_out, n_in), "absmax": ((blocks,), "u1"), **nested}

    def absmax(self, blocks: slice = ALL) -> Array:
        p, A, offset = (self.arrays[name] for name in ("absmax", "nested_absmax", "offset"))
        start, stop, _ = blocks.indices(len(p))
        first = start // self.nested_block
        xp = get_array_module(p)
        a = xp.asarray(self.levels)[p[first * self.nested_block : stop]]
        a = scaled_blocks(a, A[first:], self.nested_block)
        a += offset
        return a[start - first * self.nested_block :]

    @staticmethod
    def held(a: np.ndarray) -> np.ndarray:
        p, A, mean = double_quantised(a)
        return scaled_blocks(LEVELS8[p], A, NESTED_BLOCK) + mean
