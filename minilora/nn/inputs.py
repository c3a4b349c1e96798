"""What a batch is beside its ids (Inputs), and how one forward runs (Pass). Nothing here is learned."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import NamedTuple, TypeVar

import numpy as np

from ..backend import Array
from .kv_cache import KVCache

T = TypeVar("T")


class Inputs(NamedTuple):
    """What a model reads beside the token ids (B, T)."""

    padding: Array | None = None  # (B, T) bool, True for a real token; None: all are real
    segments: Array | None = None  # (B, T) int, the segment of each token (BERT)
    labelled: tuple[Array, Array] | None = None  # b and t (N,) of the positions whose logits are wanted; None: all


class Pass(NamedTuple):
    """How one forward runs."""

    rng: np.random.Generator | None = None  # for dropout; None: no dropout
    kv_cache: KVCache | None = None  # keys and values of earlier tokens; with it nothing is kept for a backward
    memo: dict[Hashable, object] | None = None  # tables that several layers share, made once in a forward
    needs_dx: bool = True  # whether anything reads this layer's dx: False for the first layers that learn

    def once(self, key: Hashable, make: Callable[..., T], *arguments: object) -> T:
        """make(*arguments), or what it returned for an earlier layer under the same key in this forward."""
        if self.memo is None:
            return make(*arguments)
        if key not in self.memo:
            self.memo[key] = make(*arguments)
        return self.memo[key]  # type: ignore[return-value]

    def with_dx(self) -> Pass:
        """The same for a layer above one that learns."""
        return self if self.needs_dx else self._replace(needs_dx=True)
