"""GGUF's blocks, of llama.cpp: a row of a matrix as a file has it, cut into blocks of a few bytes each.

A block is one or two scales in float16, and codes q, integers:

    Q8_0     32 numbers in 34 bytes      d, q of 8 bits                Ŵ_i = d q_i
    Q4_0     32 numbers in 18 bytes      d, q of 4 bits                Ŵ_i = d (q_i - 8)
    Q4_1     32 numbers in 20 bytes      d, m, q of 4 bits             Ŵ_i = d q_i + m
    Q5_0     32 numbers in 22 bytes      d, q of 5 bits                Ŵ_i = d (q_i - 16)
    Q5_1     32 numbers in 24 bytes      d, m, q of 5 bits             Ŵ_i = d q_i + m
    Q4_K    256 numbers in 144 bytes     d, m, s, t, q of 4 bits       Ŵ_i = (d s_j) q_i - (m t_j)
    Q6_K    256 numbers in 210 bytes     d, s, q of 6 bits             Ŵ_i = (d s_j) (q_i - 32)

In the last two the scales are coded too: a block of Q4_K has 8 parts, each with s_j and t_j of 6 bits, one of Q6_K has
16 parts, each with an s_j of 8 bits. Two codes of 4 bits share a byte: of 16 bytes (Q4_K: 32) the low halves come
first, then the high ones. The fifth bits of Q5_0 and Q5_1 lie together, before these: bit i of 32, the lowest of the
first byte first, belongs to number i. Each product and sum is rounded to float32 in the order in which it is written,
as in llama.cpp.

Only llama.cpp encodes: there is no encode() here. A model holds what its file has (load_pretrained(quantize="stored")).
Source: https://github.com/ggml-org/ggml/blob/master/src/ggml-quants.c, dequantize_row_….
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from ..backend import Array, get_array_module
from .base import Quantized, Rows


def nibbles(codes: Array) -> Array:
    """(..., k) bytes -> (..., 2, k) float32: their low halves, and their high ones."""
    xp = get_array_module(codes)
    codes = xp.ascontiguousarray(codes)  # else each operation below walks over rows of 16 bytes
    q = xp.empty((*codes.shape[:-1], 2, codes.shape[-1]), np.float32)
    q[..., 0, :] = codes & 15
    q[..., 1, :] = codes >> 4
    return q


# Of each type: blocks (n, bytes) and their scales (n, 1 or 2) -> the numbers, n times a block's.


def q8_0(blocks: Array, scales: Array) -> Array:
    x = blocks[:, 2:].view(np.int8).astype(np.float32)
    x *= scales
    return x


def q4_0(blocks: Array, scales: Array) -> Array:
    x = nibbles(blocks[:, 2:])
    x -= 8
    x *= scales[:, None]
    return x


def q4_1(blocks: Array, scales: Array) -> Array:
    x = nibbles(blocks[:, 4:])
    x *= scales[:, None, :1]
    x += scales[:, None, 1:]
    return x


def fives(codes: Array) -> Array:
    """(n, 4 + 16) bytes -> (n, 2, 16) float32: q of 5 bits."""
    q = nibbles(codes[:, 4:])
    xp = get_array_module(codes)
    high = xp.unpackbits(xp.ascontiguousarray(codes[:, :4]), bitorder="little").reshape(q.shape)
    q += high * np.float32(16)
    return q


def q5_0(blocks: Array, scales: Array) -> Array:
    x = fives(blocks[:, 2:])
    x -= 16
    x *= scales[:, None]
    return x


def q5_1(blocks: Array, scales: Array) -> Array:
    x = fives(blocks[:, 4:])
    x *= scales[:, None, :1]
    x += scales[:, None, 1:]
    return x


def q4_k(blocks: Array, scales: Array) -> Array:
    """The 12 bytes of s and t are a, b, c of 4 each: s and t of the first 4 parts are the low 6 bits of a and b; of the
    last 4, the low and high halves of c, with the high 2 bits of a and b above them."""
    xp = get_array_module(blocks)
    a, b, c = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    s = xp.concatenate([a & 63, (a >> 6 << 4) | (c & 15)], axis=1)
    t = xp.concatenate([b & 63, (b >> 6 << 4) | (c >> 4)], axis=1)
    x = nibbles(blocks[:, 16:].reshape(-1, 4, 32)).reshape(-1, 8, 32)
    x *= (scales[:, :1] * s)[:, :, None]
    x -= (scales[:, 1:] * t)[:, :, None]
    return x


def q6_k(blocks: Array, scales: Array) -> Array:
    """Of each half of a block 64 bytes hold the low 4 bits of q, and 32 bytes the high 2, for 4 times 32 numbers."""
    xp, n = get_array_module(blocks), len(blocks)
    low, high, s = blocks[:, :128].reshape(n, 2, 64), blocks[:, 128:192].reshape(n, 2, 32), blocks[:, 192:208]
    q = xp.empty((n, 2, 4, 32), np.uint8)
    q[:, :, :2] = (low & 15).reshape(n, 2, 2, 32)
    q[:, :, 2:] = (low >> 4).reshape(n, 2, 2, 32)
    for j in range(4):
        q[:, :, j] |= (high >> 2 * j & 3) << 4
    x = q.reshape(n, 16, 16).astype(np.float32)
    x -= 32
    x *= (scales * s.view(np.int8))[:, :, None]
    return x


class BlockType(NamedTuple):
    size: int  # bytes of a block
    scales: slice  # those of its float16 scales
    decode: Callable[[Array, Array], Array]


TYPES = {
    "Q8_0": BlockType(34, slice(0, 2), q8_0),
    "Q4_0": BlockType(18, slice(0, 2), q4_0),
    "Q4_1": BlockType(20, slice(0, 4), q4_1),
    "Q5_0": BlockType(22, slice(0, 2), q5_0),
    "Q5_1": BlockType(24, slice(0, 4), q5_1),
    "Q4_K": BlockType(144, slice(0, 4), q4_k),
    "Q6_K": BlockType(210, slice(208, 210), q6_k),
}


class GGUFBlocks(Quantized):
    """blocks (out, bytes of a row) uint8, all of one of TYPES, which is its name."""

    def __init__(self, arrays: Mapping[str, Array], shape: tuple[int, ...], kind: str, dtype: Any = np.float32) -> None:
        super().__init__(arrays, shape, dtype)
        self.name = kind  # type: ignore[misc]

    def decode(self, rows: Rows) -> Array:
        blocks = self.arrays["blocks"][rows].reshape(-1, TYPES[self.name].size)
        return TYPES[self.name].decode(blocks, self.scales(blocks)).reshape(-1, *self.shape[1:])

    def scales(self, blocks: Array) -> Array:
        """(n, 1 or 2) float32"""
        stored = get_array_module(blocks).ascontiguousarray(blocks[:, TYPES[self.name].scales])
        return stored.view(np.float16).astype(np.float32)

    def is_finite(self) -> bool:
        return bool(np.isfinite(self.scales(self.arrays["blocks"].reshape(-1, TYPES[self.name].size))).all())
