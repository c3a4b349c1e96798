"""Bits per byte: of a loss, and of compressors to compare it with."""

from __future__ import annotations

import math
import zlib

import numpy as np

from .batches import encode_bytes


def zlib_bits_per_byte(data: bytes, context: bytes) -> float:
    """Bits per byte of `data` compressed by zlib, with the end of `context` as dictionary (its window is 32 KiB)."""
    compressor = zlib.compressobj(9, zdict=context[-32768:])
    return 8 * len(compressor.compress(data) + compressor.flush()) / len(data)


def lzma_bits_per_byte(data: bytes, context: bytes) -> float:
    """Bits per byte of `data` compressed by lzma after all of `context`: the difference in size of two archives."""
    import lzma

    alone, both = (len(lzma.compress(text, preset=9)) for text in (context, context + data))
    return 8 * (both - alone) / len(data)


def bigram_bits_per_byte(data: bytes, context: bytes) -> float:
    """Bits per byte of `data` under a bigram model: P(byte | previous byte) from the counts in `context`, plus 1/2 each
    (Krichevsky, Trofimov)."""
    counts = np.full((256, 256), 0.5)
    tokens, held_out = encode_bytes(context), encode_bytes(data)
    np.add.at(counts, (tokens[:-1], tokens[1:]), 1)
    bits = -np.log2(counts / counts.sum(axis=1, keepdims=True))
    return float(bits[held_out[:-1], held_out[1:]].mean())


def bits(nats: float) -> float:
    """A loss in nats as bits."""
    return nats / math.log(2)


def perplexity(nats: float) -> float:
    """e^nats of a mean loss per token; infinity for more than e^700, which a float cannot hold."""
    return math.exp(nats) if nats < 700 else math.inf
