"""Counts what a training step keeps and multiplies, without running it.

    y = module.costs(x, costs)

repeats a module's forward on arrays that have a shape and no values. On the way the module records in `costs` which
arrays its forward keeps for backward, and what the matrix products of both passes cost. Two rules decide what is kept.
The gradient of a matrix needs the matrix's input (dW = dyᵀ x, dA = dhᵀ x), so a frozen matrix keeps nothing. A function
that is not linear keeps what its slope depends on, whatever is trained. An array that several layers keep counts once.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

Shape: TypeAlias = tuple[int, ...]
Kind: TypeAlias = Literal["linear", "adapter", "attention", "sums"]


@dataclass(eq=False)  # each object is one buffer
class MetaArray:
    """An array without values, like a tensor on PyTorch's meta device."""

    shape: Shape
    itemsize: int
    needs_dx: bool = True  # whether anything reads its gradient, as Pass.needs_dx

    @property
    def rows(self) -> int:
        return math.prod(self.shape[:-1])


class KeptArray(NamedTuple):
    """One array that is alive when forward ends."""

    layer: str
    what: str
    shape: Shape
    itemsize: int
    why: str  # the formula that reads it

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.itemsize


class Product(NamedTuple):
    """Matrix products of one layer. A multiplication and an addition count 2 FLOPs."""

    layer: str
    kind: Kind
    formula: str
    flops: int


class Costs:
    """What one step over a model keeps and multiplies, array by array and layer by layer."""

    def __init__(self, model: Any, itemsize: int, *, dropout: bool = False) -> None:
        """`itemsize`: bytes of each number of the computation. `dropout`: whether forward gets a generator."""
        # costs of a layer without parameters, such as a GELU, are listed under the module that contains it
        modules = model.named_modules()
        self.paths = {m: path if any(m.parameters()) else path.rpartition(".")[0] or path for path, m in modules}
        self.itemsize, self.dropout = itemsize, dropout
        self.source: Any = None  # of an encoder-decoder, the MetaArray of the source's ids
        self.memory: Any = None  # and that of the encoder's output, once it is there
        self.shared: dict[Hashable, MetaArray] = {}
        self.kept: dict[MetaArray, KeptArray] = {}
        self.recomputed: list[dict[MetaArray, KeptArray]] = []  # of each block that its backward recomputes
        self.forward: list[Product] = []
        self.backward: list[Product] = []
        self.again: list[Product] = []  # of the forwards that backward recomputes

    def empty(self) -> Costs:
        """Costs of the same model with nothing recorded, for layers that are counted apart."""
        empty = copy.copy(self)
        empty.kept, empty.recomputed, empty.forward, empty.backward, empty.again = {}, [], [], [], []
        return empty

    def array(self, *shape: int, itemsize: int = 0, needs_dx: bool = True) -> MetaArray:
        """A new array, of floats unless it has an `itemsize` of its own."""
        return MetaArray(shape, itemsize or self.itemsize, needs_dx)

    def once(self, key: Hashable, *shape: int) -> MetaArray:
        """The array that several layers share under this key, as with Pass.once."""
        return self.shared.setdefault(key, self.array(*shape))

    def keep(self, module: object, what: str, x: MetaArray, why: str, shape: Shape = ()) -> None:
        """Record that forward keeps x, listed with `shape` if one is given."""
        self.kept.setdefault(x, KeptArray(self.paths[module], what, shape or x.shape, x.itemsize, why))

    def multiply(self, module: object, kind: Kind, forward: Mapping[str, int], backward: Mapping[str, int]) -> None:
        """Record products, {formula: FLOPs} for each pass; those of 0 FLOPs are left out."""
        for products, formulas in ((self.forward, forward), (self.backward, backward)):
            products += [Product(self.paths[module], kind, formula, n) for formula, n in formulas.items() if n]

    def alive(self) -> list[KeptArray]:
        """The arrays that are alive at the peak: all that forward keeps, and those of the largest recomputed block.

        Blocks are recomputed one at a time.
        """
        largest = max(self.recomputed, key=lambda kept: sum(array.nbytes for array in kept.values()), default={})
        return list({**self.kept, **largest}.values())
