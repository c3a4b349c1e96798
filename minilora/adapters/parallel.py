"""An adapter parallel to its base: y = base(x) + path(x)."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .. import ops
from ..backend import Array, get_array_module
from ..nn import Gradients, Inputs, Pass
from .base import Adapter


class OnSomeTokens(NamedTuple):
    """The cache of a path that acted on some tokens."""

    base: Any
    on: Array  # bool, (B, T), or (N,) of the labelled positions
    path: Any


class Parallel(Adapter):
    """y = base(x) + path(x): the base computes what it does without the adapter, so that rows of a batch that have
    different adapters share its product (many.py), and the path can act on some tokens only, those of Inputs.active
    (ops/alora.py). A class states the path.

    He et al. (2022), "Towards a unified view of parameter-efficient transfer learning", section 3.2, for the word.
    """

    acts_on_some_tokens = True

    def path_forward(self, x: Array, run: Pass) -> tuple[Array, Any]:
        """path(x), a new array in the shape of the base's y; and a cache, whose field `base` is None. x is (..., in),
        or ids (...)."""
        raise NotImplementedError

    def path_backward(self, dy: Array, cache: Any, grads: Gradients, needs_dx: bool) -> Array | None:
        """Add the gradients of the trainable slots; return dx of the path, a new array, if it is needed."""
        raise NotImplementedError

    def active(self, inputs: Inputs, run: Pass) -> Array | None:
        """(B, T) bool: the tokens that the path acts on; None: all."""
        return inputs.active

    def add_path(self, y: Array, x: Array, inputs: Inputs, run: Pass) -> Any:
        """Add path(x) to the base's y, in place; return the cache. Raises ValueError if the path acts on some tokens
        only and the layer gets one vector per text, such as a classifier."""
        on = self.active(inputs, run)
        if on is None:
            y_path, cache = self.path_forward(x, run)
            y += y_path
            return cache
        if inputs.labelled is not None and y.ndim == 2:
            on = on[inputs.labelled]
        elif y.ndim == 3:
            on = on[:, : y.shape[1]]  # if a text is read in parts, `on` may cover more of it
        if on.shape != y.shape[:-1]:
            raise ValueError(
                f"a {self.variant} that acts on some tokens is on a layer that gets one vector per text: take it off"
            )
        y_path, cache = self.path_forward(ops.pick(x, on), run)
        y += ops.put_back(y_path, on)
        return OnSomeTokens(None, on, cache)

    def add_path_backward(self, dx: Array | None, dy: Array, cache: Any, grads: Gradients) -> None:
        """Add the gradients of the trainable slots, and to the base's dx, in place, that of the path."""
        on = None
        if isinstance(cache, OnSomeTokens):
            on, cache, dy = cache.on, cache.path, ops.pick(dy, cache.on)
        dx_path: Any = self.path_backward(dy, cache, grads, dx is not None)
        if dx is not None:
            dx += dx_path if on is None else ops.put_back(dx_path, on)

    def forward(self, x: Array, inputs: Inputs = Inputs(), run: Pass = Pass()) -> tuple[Array, Any]:
        y, base = self.base.forward(x, inputs, run)
        return y, self.add_path(y, x, inputs, run)._replace(base=base)

    def backward(self, dy: Array, cache: Any, grads: Gradients) -> Array | None:
        dx: Array | None = self.base.backward(dy, cache.base, grads)
        self.add_path_backward(dx, dy, cache, grads)
        return dx


def dropped(x: Array, p: float, rng: np.random.Generator | None) -> tuple[Array, Array | None]:
    """x after dropout, and the mask, drawn on the host and copied to x's device. Without a generator: x itself, and
    None. For a CSR, dropout acts on the stored entries."""
    if rng is None or p == 0:
        return x, None
    if isinstance(x, ops.CSR):
        values, keep = dropped(x.values, p, rng)
        return ops.CSR(x.indptr, x.indices, values, x.shape[1]), keep
    keep = (rng.random(x.shape, dtype=np.float32) >= p) / (1 - p)
    keep = get_array_module(x).asarray(keep, dtype=x.dtype)
    return ops.dropout_forward(x, keep)[0], keep
