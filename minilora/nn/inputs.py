"""The arguments of every forward besides x: Inputs, a batch without its token ids, and Pass, how the forward runs."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple, TypeVar

import numpy as np

from ..backend import Array
from .kv_cache import KVCache

T = TypeVar("T")


class Inputs(NamedTuple):
    """What a model reads besides the token ids (B, T)."""

    padding: Array | None = None  # (B, T) bool, True for a real token; None: all are real
    segments: Array | None = None  # (B, T) int, the segment of each token (BERT)
    labelled: tuple[Array, Array] | None = None  # b and t (N,), the positions that need logits; None: all
    source: Array | None = None  # (B, S) int, the token ids that an encoder reads, beside those of the decoder
    source_padding: Array | None = None  # (B, S) bool, True for a real token; None: all are real
    memory: Any = None  # the encoder's output as a Memory (cross_attention.py), where it is known already


class Pass(NamedTuple):
    """How one forward runs."""

    rng: np.random.Generator | None = None  # for dropout; None: no dropout
    kv_cache: KVCache | None = None  # of earlier tokens; with it, no cache is made for a backward
    memo: dict[Hashable, object] | None = None  # masks and RoPE tables that layers share in a forward
    needs_dx: bool = True  # False where nobody reads the module's dx: nothing below it learns

    def once(self, key: Hashable, make: Callable[..., T], *arguments: object) -> T:
        """make(*arguments), or what it returned earlier in this forward for the same key."""
        if self.memo is None:
            return make(*arguments)
        if key not in self.memo:
            self.memo[key] = make(*arguments)
        return self.memo[key]  # type: ignore[return-value]

    def with_dx(self) -> Pass:
        """This pass, for a layer whose dx is read."""
        return self if self.needs_dx else self._replace(needs_dx=True)
