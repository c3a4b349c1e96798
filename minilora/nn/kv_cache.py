"""The KV cache."""

from __future__ import annotations

from collections.abc import Hashable

from ..backend import Array, get_array_module


class KVCache:
    """The keys and values of the tokens so far, at most `capacity`, for generation.

    A forward with run.kv_cache reads them and adds those of its own tokens. For a layer with a window, only the last
    window - 1 tokens are kept.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity, self.length = capacity, 0
        self.arrays: dict[Hashable, tuple[Array, Array]] = {}

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
