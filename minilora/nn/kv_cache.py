"""The KV cache."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Sequence
from typing import Any

from ..backend import Array, get_array_module


class KVCache:
    """The keys and values of the tokens so far, at most `capacity`, for generation.

    A forward with run.kv_cache reads them and adds those of its own tokens. For a layer with a window, only the last
    window - 1 tokens are kept. They belong to the layers that made them, adapters included, and to the adapter of each
    row (Inputs.adapters): a forward with others is refused.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity, self.length = capacity, 0
        self.arrays: dict[Hashable, tuple[Array, Array]] = {}
        self.ids: Any = ()  # (B, capacity) int, of the tokens; nothing before the first
        self.layers: tuple[Any, ...] = ()  # all modules of the model that made them
        self.adapters: tuple[str | None, ...] | None = None  # of each row
        self.borrowed = 0  # tokens that the base has read, for activated adapters (adapters/alora.py)

    def read(self, ids: Array, layers: tuple[Any, ...], adapters: tuple[str | None, ...] | None) -> Array:
        """Note the next ids (B, T), and who reads them; return all ids so far, (B, length + T).

        Raises ValueError, in one line that says what to do, where the tokens before were read by others.
        """
        if not self.length:
            self.ids = get_array_module(ids).empty((len(ids), self.capacity), dtype=ids.dtype)
            self.layers, self.adapters = layers, adapters
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
        self.ids[:, self.length : end] = ids
        so_far: Array = self.ids[:, :end]
        return so_far

    def take(self, rows: Sequence[int], layers: tuple[Any, ...], adapters: tuple[str | None, ...] | None) -> KVCache:
        """A copy of these rows, as if others had read the same; one may be there several times. Who calls it knows that
        they compute the same keys and values (adapters/alora.py)."""
        taken = copy.copy(self)
        taken.arrays = {layer: (k[rows], v[rows]) for layer, (k, v) in self.arrays.items()}
        taken.ids = self.ids[rows]
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
