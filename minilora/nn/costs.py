"""What a training step keeps and multiplies, found without running it.

    y = module.costs(x, costs)

is a module's forward once more, on arrays that have a shape and no numbers. On the way the module tells `costs` which
arrays its forward keeps for backward, and what the matrix products of both passes cost. Two rules decide what is kept:
the gradient of a matrix needs the matrix's input (dW = dyᵀ x, dA = dhᵀ x), so a frozen matrix keeps nothing; and a
function that is not linear keeps what its slope depends on, whatever is trained. An array is kept once, however many
layers read it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

Shape: TypeAlias = tuple[int, ...]
Kind: TypeAlias = Literal["linear", "adapter", "attention", "sums"]


@dataclass(eq=False)  # two are the same buffer if they are the same object
class MetaArray:
    """An array without numbers, as a tensor on PyTorch's meta device."""

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
        """`itemsize`: bytes of a number that is computed with. `dropout`: forward is given a generator."""
        # a layer without parameters, such as a GELU, is part of the module that it is in
        modules = model.named_modules()
        self.paths = {m: path if any(m.parameters()) else path.rpartition(".")[0] or path for path, m in modules}
        self.itemsize, self.dropout = itemsize, dropout
        self.shared: dict[Hashable, MetaArray] = {}
        self.kept: dict[MetaArray, KeptArray] = {}
        self.recomputed: list[dict[MetaArray, KeptArray]] = []  # of each block that is run again for its backward
        self.forward: list[Product] = []
        self.backward: list[Product] = []
        self.again: list[Product] = []  # of a forward that backward runs again

    def part(self) -> Costs:
        """Empty, for a part of the model that counts in another way."""
        part = copy.copy(self)
        part.kept, part.recomputed, part.forward, part.backward, part.again = {}, [], [], [], []
        return part

    def array(self, *shape: int, itemsize: int = 0, needs_dx: bool = True) -> MetaArray:
        """A new array, of floats unless it has an `itemsize` of its own."""
        return MetaArray(shape, itemsize or self.itemsize, needs_dx)

    def once(self, key: Hashable, *shape: int) -> MetaArray:
        """An array that several layers share under a key, as those of Pass.once."""
        return self.shared.setdefault(key, self.array(*shape))

    def keep(self, module: object, what: str, x: MetaArray, why: str, shape: Shape = ()) -> None:
        """Forward keeps x, perhaps seen in another shape."""
        self.kept.setdefault(x, KeptArray(self.paths[module], what, shape or x.shape, x.itemsize, why))

    def multiply(self, module: object, kind: Kind, forward: Mapping[str, int], backward: Mapping[str, int]) -> None:
        """{formula: FLOPs} of both passes; a product of 0 is not made."""
        for products, formulas in ((self.forward, forward), (self.backward, backward)):
            products += [Product(self.paths[module], kind, formula, n) for formula, n in formulas.items() if n]

    def alive(self) -> list[KeptArray]:
        """What is kept when forward ends, and of the blocks that are run again the largest: they are so one by one."""
        largest = max(self.recomputed, key=lambda kept: sum(array.nbytes for array in kept.values()), default={})
        return list({**self.kept, **largest}.values())
