"""What a batch is, and how a forward runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ..backend import Array


class Context(NamedTuple):
    """What any layer may read during one forward. Nothing here is learned."""

    padding: Array | None = None  # (B, T) bool, True for a real token; None: all are real
    segments: Array | None = None  # (B, T) int, the segment of each token (BERT)
    rng: np.random.Generator | None = None  # for dropout; None: no dropout
    labelled: tuple[Array, Array] | None = None  # b and t of the positions whose logits are wanted; None: all
    kv_cache: Any = None  # transformer.KVCache: keys and values of earlier tokens; a Sequential then keeps no cache
    made: dict[Any, Any] | None = None  # by a layer, for all that need the same; a Sequential begins it
    below: bool = True  # does anything below learn, so that the gradient goes on down? a Sequential knows

    def once(self, key: Any, make: Callable[..., Any], *arguments: Any) -> Any:
        """make(*arguments), or what a layer before it made under the same key, in the same forward of a Sequential."""
        if self.made is None:
            return make(*arguments)
        if key not in self.made:
            self.made[key] = make(*arguments)
        return self.made[key]

    def above(self) -> Context:
        """The same for what stands on something that learns."""
        return self if self.below else self._replace(below=True)
