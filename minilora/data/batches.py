"""Batches: windows of a long text, and texts of like length."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from ..ops import IGNORE


class Batch(NamedTuple):
    """What a step learns from; arrays on the host."""

    ids: np.ndarray  # (B, T) int64
    targets: np.ndarray  # int64, (B, T) the label of each position, or (B,) of each text; IGNORE: none
    padding: np.ndarray | None = None  # (B, T) bool, True for a real token
    segments: np.ndarray | None = None  # (B, T) int64, BERT


def encode_bytes(text: str | bytes | np.ndarray) -> np.ndarray:
    """(N,) int64: the bytes of `text`; those of a command line that are no UTF-8 come back out of their surrogates.

    An array stays as it is: the ids that a tokenizer gave.
    """
    if isinstance(text, np.ndarray):
        return text
    return as_array(text.encode(errors="surrogateescape") if isinstance(text, str) else text).astype(np.int64)


def as_array(data: bytes | np.ndarray) -> np.ndarray:
    """Bytes as the uint8 that they are, in place; ids of a tokenizer as they are."""
    return data if isinstance(data, np.ndarray) else np.frombuffer(data, np.uint8)


def decode_bytes(ids: np.ndarray) -> str:
    return bytes(ids.tolist()).decode(errors="replace")


def random_windows(data: bytes | np.ndarray, batch: int, length: int, seed: int) -> Callable[[int], Batch]:
    """step -> a Batch of `batch` windows of `length` bytes (or ids) of `data`, the next of each as its label.

    A batch depends on seed and step alone: a run that is resumed sees what it would have seen.
    Raises ValueError for data shorter than one batch.
    """
    if len(data) <= batch * length:
        raise ValueError(
            f"{len(data)} tokens are less than one batch of {batch} windows of {length}: more text, or smaller batches"
        )
    tokens = as_array(data)

    def at(step: int) -> Batch:
        starts = np.random.default_rng([seed, step]).integers(0, len(tokens) - length, batch)
        windows = tokens[starts[:, None] + np.arange(length + 1)].astype(np.int64)
        return Batch(windows[:, :-1], windows[:, 1:])

    return at


def all_windows(data: bytes | np.ndarray, batch: int, length: int) -> Iterator[Batch]:
    """Every byte (or id) of `data` but the first, once as a label, with at least length/2 before it if there are.

    Windows overlap by half, and what a window shares with the one before it counts for nothing.
    """
    tokens, stride = as_array(data), max(1, length // 2)
    overlap = length - stride
    ids, targets = [], []
    for start in range(0, max(1, len(tokens) - 1 - overlap), stride):
        window = tokens[start : start + length + 1].astype(np.int64)
        label = window[1:].copy()
        if start:
            label[:overlap] = IGNORE
        rest = length - len(label)
        ids.append(np.pad(window[:-1], (0, rest)))
        targets.append(np.pad(label, (0, rest), constant_values=IGNORE))
        if len(ids) == batch:
            yield Batch(np.stack(ids), np.stack(targets))
            ids, targets = [], []
    if ids:
        yield Batch(np.stack(ids), np.stack(targets))


def take(texts: Batch, rows: np.ndarray) -> Batch:
    """These rows, cut to the longest of them."""
    T = len(texts.ids[0])
    if texts.padding is not None:
        T = int(texts.padding[rows].any(axis=0).nonzero()[0].max()) + 1
    fields: Any = (x if x is None else x[rows, :T] if x.ndim == 2 else x[rows] for x in texts)
    return Batch(*fields)


def shuffled(texts: Batch, batch: int, seed: int) -> Callable[[int], Batch]:
    """step -> a Batch of `batch` texts of like length, in another order each time that all have been seen.

    A pool of 16 batches is sorted by length and cut, so that little of a batch is padding, and chance still decides
    who meets whom. A batch depends on seed and step alone: a run that is resumed sees what it would have seen.
    """
    N, lengths = len(texts.ids), lengths_of(texts)
    per_epoch = -(-N // batch)

    @lru_cache(maxsize=2)
    def order(epoch: int) -> list[np.ndarray]:
        rng = np.random.default_rng([seed, epoch])
        rows, pool = rng.permutation(N), 16 * batch
        pools = (rows[i : i + pool] for i in range(0, N, pool))
        cut = [part for rows in pools for part in by_length(rows, lengths, batch)]
        return [cut[i] for i in rng.permutation(per_epoch)]

    return lambda step: take(texts, order(step // per_epoch)[step % per_epoch])


def in_order(texts: Batch, batch: int) -> list[np.ndarray]:
    """All rows, in groups of `batch` of like length, for evaluation."""
    return by_length(np.arange(len(texts.ids)), lengths_of(texts), batch)


def in_batches(texts: Batch, batch: int) -> Iterator[Batch]:
    """The same groups, as batches."""
    return (take(texts, rows) for rows in in_order(texts, batch))


def by_length(rows: np.ndarray, lengths: np.ndarray, batch: int) -> list[np.ndarray]:
    rows = rows[np.argsort(lengths[rows], kind="stable")]
    return [rows[i : i + batch] for i in range(0, len(rows), batch)]


def lengths_of(texts: Batch) -> np.ndarray:
    return np.full(len(texts.ids), texts.ids.shape[1]) if texts.padding is None else texts.padding.sum(axis=1)
