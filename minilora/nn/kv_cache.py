"""The KV cache, and left padding: texts of different lengths side by side in one.

Row b has p_b columns of padding, and behind them its tokens. What is in column c of it:

    c < p_b     padding                     p_b ≤ c     the token at position c - p_b

Every row ends in the last column, so that the next token of each comes in the next one. A query in column i of row b
attends to the key in column j where

    p_b ≤ j ≤ i         and with a window of W keys             i - W < j

Distances are those of the text alone, i - j = (i - p_b) - (j - p_b): windows and relative positions (T5), which count
columns, are right as they are. Learned positions and RoPE are given c - p_b, and frequencies that depend on the length
c - p_b + 1. Padding behind a token, where this would not hold, is refused. A column of padding has a key and a value,
which no token reads.
"""

from __future__ import annotations

import copy
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from ..backend import Array, get_array_module, to_numpy


class KVCache:
    """The keys and values of the tokens so far, at most `capacity`, for generation.

    A forward with run.kv_cache reads them and adds those of its own tokens. For a layer with a window, only the last
    window - 1 tokens are kept. They belong to the layers that made them, adapters included, and to the adapter of each
    row (Inputs.adapters): a forward with other layers or adapters is refused.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity, self.length = capacity, 0
        self.arrays: dict[Hashable, tuple[Array, Array]] = {}
        self.ids: Any = ()  # (B, capacity) int64, of the tokens, -1 of padding; nothing before the first
        self.padded: np.ndarray | None = None  # (B,) int64, on the host: p_b; None: no padding
        self.layers: tuple[Any, ...] = ()  # all modules of the model that made them
        self.adapters: tuple[str | None, ...] | None = None  # of each row
        self.borrowed = 0  # tokens that the base has read, for activated adapters (adapters/alora.py)

    def read(
        self,
        ids: Array,
        layers: tuple[Any, ...],
        adapters: tuple[str | None, ...] | None,
        padding: Array | None = None,
    ) -> Array:
        """Note the next ids (B, T), which of them are real, and who reads them; return all ids so far, (B, length + T).

        Raises ValueError, in one line that says what to do, if other layers or adapters read the tokens before, and for
        padding behind a token.
        """
        xp = get_array_module(ids)
        if not self.length:
            self.ids = xp.empty((len(ids), self.capacity), dtype=np.int64)
            self.layers, self.adapters, self.padded = layers, adapters, None
        if len(ids) != len(self.ids):
            raise ValueError(
                f"the KV cache holds {len(self.ids)} sequences, and the ids are of {len(ids)}: make a new KVCache"
            )
        if self.adapters != adapters:
            raise ValueError(
                f"the KV cache is of the adapters {named(self.adapters)}, and these rows have {named(adapters)}: read "
                "the text again with a new KVCache (activated adapters can go on from the base's: alora.go_on_from)"
            )
        if self.layers != layers:
            raise ValueError(
                "the KV cache was made before an adapter was attached, merged or switched, and its keys and values are "
                "of the layers that were there: put them back, or read the text again with a new KVCache"
            )
        end = self.length + ids.shape[1]
        if end > self.capacity:
            raise ValueError(f"the KV cache has room for {self.capacity} tokens, and these would be {end}")
        if padding is not None:
            self.padded = self.with_padding(to_numpy(padding))
            ids = xp.where(padding, ids, -1)  # no token: an invocation is not found in it (adapters/alora.py)
        self.ids[:, self.length : end] = ids
        so_far: Array = self.ids[:, :end]
        return so_far

    def with_padding(self, real: np.ndarray) -> np.ndarray | None:
        """`padded` after T columns more, of which those that are `real` (B, T) hold a token."""
        padded = np.zeros(len(real), np.int64) if self.padded is None else self.padded
        columns = np.concatenate([(padded < self.length)[:, None], real], axis=1)
        if (columns[:, :-1] & ~columns[:, 1:]).any():
            raise ValueError("a KV cache has its padding on the left, and here some comes behind a token: put it first")
        padded = padded + (~real).sum(axis=1)
        return padded if padded.any() else None

    def most_tokens(self) -> int:
        """The number of tokens of the longest row."""
        return self.length - (0 if self.padded is None else int(self.padded.min()))

    def positions(self, T: int) -> np.ndarray | None:
        """(B, T) int64, on the host: the positions of the next T columns, 0 for padding. None: those of the columns."""
        if self.padded is None:
            return None
        return np.maximum(np.arange(self.length, self.length + T) - self.padded[:, None], 0)

    def real(self, first: int, end: int) -> np.ndarray | None:
        """(B, end - first) bool, on the host: which of these columns hold a token. None: all."""
        if self.padded is None or self.padded.max() <= first:
            return None
        return np.arange(first, end) >= self.padded[:, None]

    def take(self, rows: Sequence[int], layers: tuple[Any, ...], adapters: tuple[str | None, ...] | None) -> KVCache:
        """A copy of these rows, which may repeat, as if `layers` and `adapters` had filled it. The caller knows that
        they compute the same keys and values (adapters/alora.py)."""
        taken = copy.copy(self)
        taken.arrays = {layer: (k[rows], v[rows]) for layer, (k, v) in self.arrays.items()}
        taken.ids = self.ids[rows]
        taken.padded = None if self.padded is None else self.padded[rows]
        taken.layers, taken.adapters = layers, adapters
        return taken

    def extend(self, layer: Hashable, k: Array, v: Array, window: int | None = None) -> tuple[Array, Array]:
        """Add k and v (B, T, G·D) to those of a layer; return all of them, (B, length + T, G·D).

        With a window, return only those that one of the T queries attends to, at most window - 1 + T.
        """
        xp, end = get_array_module(k), self.length + k.shape[1]
        if window is not None:
            last = self.arrays.get(layer, (k[:, :0], v[:, :0]))
            K, V = (xp.concatenate(pair, axis=1) for pair in zip(last, (k, v), strict=True))
            expired = max(0, K.shape[1] - (window - 1))  # no later query attends to these
            self.arrays[layer] = K[:, expired:], V[:, expired:]
            return K, V
        if layer not in self.arrays:
            shape = k.shape[0], self.capacity, k.shape[2]
            self.arrays[layer] = xp.empty(shape, dtype=k.dtype), xp.empty(shape, dtype=v.dtype)
        K, V = self.arrays[layer]
        K[:, self.length : end], V[:, self.length : end] = k, v
        return K[:, :end], V[:, :end]


def named(adapters: tuple[str | None, ...] | None) -> str:
    """The adapters of the rows, for a message."""
    if adapters is None:
        return "none by row"
    return ", ".join("the base" if name is None else repr(name) for name in adapters)
