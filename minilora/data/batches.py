"""Batches: windows of a long text, and texts of similar length."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from ..ops import IGNORE


class Batch(NamedTuple):
    """Token ids and their labels; NumPy arrays."""

    ids: np.ndarray  # (B, T) int64
    targets: np.ndarray  # int64, (B, T) a label for each token, or (B,) for each text; IGNORE where there is none
    padding: np.ndarray | None = None  # (B, T) bool, True for a real token
    segments: np.ndarray | None = None  # (B, T) int64, BERT
    adapters: np.ndarray | None = None  # (B,) object, the name of each row's adapter (adapters/many.py); None: the base
    source: np.ndarray | None = None  # (B, S) int64, the ids that an encoder reads, beside those of the decoder: T5
    source_padding: np.ndarray | None = None  # (B, S) bool


def encode_bytes(text: str | bytes | np.ndarray) -> np.ndarray:
    """(N,) int64: the bytes of `text` in UTF-8; an array of ids as it is.

    Bytes of a command line that are not UTF-8, which Python passes as surrogates, are restored.
    """
    if isinstance(text, np.ndarray):
        return text
    return as_array(text.encode(errors="surrogateescape") if isinstance(text, str) else text).astype(np.int64)


def as_array(data: bytes | np.ndarray) -> np.ndarray:
    """Bytes as a uint8 array that shares their memory; an array of ids as it is."""
    return data if isinstance(data, np.ndarray) else np.frombuffer(data, np.uint8)


def decode_bytes(ids: np.ndarray) -> str:
    """The text of bytes (N,) in UTF-8; bytes that are not UTF-8 become U+FFFD."""
    return bytes(ids.tolist()).decode(errors="replace")


def random_windows(data: bytes | np.ndarray, batch: int, length: int, seed: int) -> Callable[[int], Batch]:
    """step -> a Batch of `batch` random windows of `length` bytes (or ids) of `data`, each labelled with the next one.

    A batch depends only on seed and step, so that a resumed run sees the same batches. Raises ValueError for data
    shorter than one batch.
    """
    if len(data) <= batch * length:
        raise ValueError(
            f"{len(data)} tokens are less than one batch of {batch} windows of {length}: more text, or smaller batches"
        )
    tokens = as_array(data)

    def batch_at(step: int) -> Batch:
        starts = np.random.default_rng([seed, step]).integers(0, len(tokens) - length, batch)
        windows = tokens[starts[:, None] + np.arange(length + 1)].astype(np.int64)
        return Batch(windows[:, :-1], windows[:, 1:])

    return batch_at


def all_windows(data: bytes | np.ndarray, batch: int, length: int) -> Iterator[Batch]:
    """Batches in which every byte (or id) of `data` but the first is a label once, for evaluation.

    Windows overlap by half, and only the second half of each has labels (in the first window, all), so that at least
    length/2 tokens precede every label that is not near the start.
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
    """A Batch of these rows, without the columns that are padding in all of them."""

    def columns(padding: np.ndarray | None) -> int | None:
        return None if padding is None else int(padding[rows].any(axis=0).nonzero()[0].max()) + 1

    T, S = columns(texts.padding), columns(texts.source_padding)
    ends = {name: S if name.startswith("source") else T for name in Batch._fields}
    fields: Any = (
        x if x is None else x[rows, : ends[name]] if x.ndim == 2 else x[rows]
        for name, x in zip(Batch._fields, texts, strict=True)
    )  # fmt: skip
    return Batch(*fields)


def shuffled(texts: Batch, batch: int, seed: int) -> Callable[[int], Batch]:
    """step -> a Batch of `batch` texts of similar length; every text once in an epoch, in a new order in each.

    Random pools of 16 batches are sorted by length and split into batches, so that little of a batch is padding. A
    batch depends only on seed and step, so that a resumed run sees the same batches.
    """
    N, lengths = len(texts.ids), lengths_of(texts)
    per_epoch = -(-N // batch)

    @lru_cache(maxsize=2)
    def order(epoch: int) -> list[np.ndarray]:
        rng = np.random.default_rng([seed, epoch])
        rows, pool = rng.permutation(N), 16 * batch
        pools = (rows[i : i + pool] for i in range(0, N, pool))
        groups = [group for rows in pools for group in by_length(rows, lengths, batch)]
        return [groups[i] for i in rng.permutation(per_epoch)]

    return lambda step: take(texts, order(step // per_epoch)[step % per_epoch])


def in_order(texts: Batch, batch: int) -> list[np.ndarray]:
    """The indices of all rows, sorted by length, in groups of `batch`, for evaluation."""
    return by_length(np.arange(len(texts.ids)), lengths_of(texts), batch)


def in_batches(texts: Batch, batch: int) -> Iterator[Batch]:
    """The groups of in_order, as batches."""
    return (take(texts, rows) for rows in in_order(texts, batch))


def by_length(rows: np.ndarray, lengths: np.ndarray, batch: int) -> list[np.ndarray]:
    """`rows` sorted by their lengths, in groups of `batch`."""
    rows = rows[np.argsort(lengths[rows], kind="stable")]
    return [rows[i : i + batch] for i in range(0, len(rows), batch)]


def lengths_of(texts: Batch) -> np.ndarray:
    """(B,): the number of real tokens of each row."""
    return np.full(len(texts.ids), texts.ids.shape[1]) if texts.padding is None else texts.padding.sum(axis=1)
