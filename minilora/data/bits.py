"""Bits per byte: of a loss, and of compressors beside it."""

from __future__ import annotations

import math
import zlib

import numpy as np

from .batches import encode_bytes


def zlib_bits_per_byte(data: bytes, given: bytes) -> float:
    """What zlib needs for `data` when it has the end of `given` as its dictionary (its window is 32 KiB)."""
    compressor = zlib.compressobj(9, zdict=given[-32768:])
    return 8 * len(compressor.compress(data) + compressor.flush()) / len(data)


def lzma_bits_per_byte(data: bytes, given: bytes) -> float:
    """What lzma needs for `data` after all of `given`: the difference of two archives."""
    import lzma

    alone, both = (len(lzma.compress(text, preset=9)) for text in (given, given + data))
    return 8 * (both - alone) / len(data)


def bigram_bits_per_byte(data: bytes, given: bytes) -> float:
    """P(byte | the byte before) by counting pairs in `given`, half a count added to each (Krichevsky, Trofimov)."""
    counts = np.full((256, 256), 0.5)
    tokens, held_out = encode_bytes(given), encode_bytes(data)
    np.add.at(counts, (tokens[:-1], tokens[1:]), 1)
    bits = -np.log2(counts / counts.sum(axis=1, keepdims=True))
    return float(bits[held_out[:-1], held_out[1:]].mean())


def bits(nats: float) -> float:
    return nats / math.log(2)


def perplexity(nats: float) -> float:
    """e^nats: among how many tokens a model seems to guess. From e^700 up it is infinite."""
    return math.exp(nats) if nats < 700 else math.inf
