"""The arguments of every forward besides x: Inputs, a batch without its token ids, and Pass, how the forward runs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from ..backend import Array, get_array_module, to_numpy
from .kv_cache import KVCache

T = TypeVar("T")


class AdapterRows(NamedTuple):
    """The rows of one adapter, in a batch that is sorted by adapter: B of them, and N of its labelled positions."""

    name: str | None  # None: the base
    rows: slice
    labelled: slice


class Inputs(NamedTuple):
    """What a model reads besides the token ids (B, T)."""

    padding: Array | None = None  # (B, T) bool, True for a real token; None: all are real
    segments: Array | None = None  # (B, T) int, the segment of each token (BERT)
    labelled: tuple[Array, Array] | None = None  # b and t (N,), the positions that need logits; None: all
    adapters: Sequence[str | None] | np.ndarray | None = None  # (B,) the adapter of each row, by name; None: the base
    active: Array | None = None  # (B, T) bool, the tokens that adapters act on (ops/alora.py); None: all
    text: Array | None = None  # (B, S) int, the ids of the whole text so far, those in the KV cache included
    groups: tuple[AdapterRows, ...] = ()  # made by by_adapter()
    source: Array | None = None  # (B, S) int, the token ids that an encoder reads; the decoder reads the ids
    source_padding: Array | None = None  # (B, S) bool, True for a real token; None: all are real
    memory: Any = None  # the encoder's output as a Memory (cross_attention.py), if it is computed already

    def by_adapter(self) -> tuple[Inputs, Array, Array]:
        """(these inputs with the rows sorted by adapter, the order of the rows, the order of the outputs).

        Row i of the sorted batch is row order[i] of this one. The labelled positions are sorted too, so that each
        adapter has one slice of x (B, T, C), and of x (N, C) behind the layer that selects them.
        """
        assert self.adapters is not None
        names, which, order = sort_rows(self.adapters)
        outputs = order
        numbers = np.arange(len(names) + 1)
        rows = labels = np.searchsorted(which[order], numbers)
        labelled = self.labelled
        if labelled is not None:
            b, t = (to_numpy(x) for x in labelled)
            outputs = np.argsort(which[b], kind="stable")
            labels = np.searchsorted(which[b][outputs], numbers)
            xp = get_array_module(labelled[0])
            labelled = xp.asarray(np.argsort(order)[b][outputs]), xp.asarray(t[outputs])
        groups = tuple(AdapterRows(*x) for x in zip(names, slices(rows), slices(labels), strict=True))
        inputs = self.each(lambda x: x[get_array_module(x).asarray(order)])
        return inputs._replace(labelled=labelled, adapters=None, groups=groups), order, outputs

    def of(self, group: AdapterRows) -> Inputs:
        """These inputs for the rows of one adapter."""
        labelled = self.labelled
        if labelled is not None:
            labelled = labelled[0][group.labelled] - group.rows.start, labelled[1][group.labelled]
        return self.each(lambda x: x[group.rows])._replace(labelled=labelled, adapters=None, groups=())

    def each(self, change: Callable[[Array], Array]) -> Inputs:
        """These inputs with change(x) in place of each array x that has a row for each row of ids."""
        arrays = {name: getattr(self, name) for name in ("padding", "segments", "active", "text")}
        changed: dict[str, Any] = {name: change(x) for name, x in arrays.items() if x is not None}
        return self._replace(**changed)


def sort_rows(adapters: Sequence[str | None] | np.ndarray) -> tuple[list[str | None], np.ndarray, np.ndarray]:
    """(the names, the base's first; which of them each row has; the rows, sorted by it)"""
    names = sorted({*adapters}, key=lambda name: (name is not None, name))
    which = np.array([names.index(name) for name in adapters])
    return names, which, np.argsort(which, kind="stable")


def slices(bounds: np.ndarray) -> list[slice]:
    """[0, 2, 5] -> the slices 0:2 and 2:5"""
    ends: list[int] = bounds.tolist()
    return [slice(i, j) for i, j in itertools.pairwise(ends)]


class Pass(NamedTuple):
    """How one forward runs."""

    rng: np.random.Generator | None = None  # for dropout; None: no dropout
    kv_cache: KVCache | None = None  # of earlier tokens; with it, no cache is made for a backward
    memo: dict[Hashable, object] | None = None  # masks and RoPE tables that layers share in a forward
    needs_dx: bool = True  # False where nobody reads the module's dx: nothing below it is trained
    needs_cache: bool = True  # False where no backward will come: a module may return None for its cache

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
