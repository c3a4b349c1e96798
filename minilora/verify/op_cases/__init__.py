"""OPS: every op that can be checked, at any sizes. A file here has the ops of one kind; the ops of an adapter variant
are in problems/, with its faults.

`OPS[name].draw(size, rng)` draws a case. It calls `size(low, high)` for each of its sizes in turn.
"""

from __future__ import annotations

import itertools
import pkgutil
from collections.abc import Iterator
from importlib import import_module

from ..case import Case
from ..op import Op, Rng, Size
from ..problems import op_cases

OPS: dict[str, Op] = {
    name: op
    for file in pkgutil.iter_modules(__path__)
    for name, op in import_module(f".{file.name}", __name__).OPS.items()
} | op_cases()

# Sizes in the order in which draw() asks for them, B, T, in, out and r for the low-rank path: nearly all different; B
# and r 1; every size the same, where a transposed gradient has the right shape; the smallest.
SIZES = ((2, 1, 3, 4, 2), (1, 3, 2, 4), (3,), (1,))


def sizes(*wanted: int) -> Size:
    """A Size that returns the wanted sizes in turn, each clipped to [low, high]."""
    turn = itertools.cycle(wanted)

    def size(low: int = 1, high: int = 4) -> int:
        return max(low, min(high, next(turn)))

    return size


def at_every_size(op: str, rng: Rng) -> Iterator[Case]:
    return (OPS[op].draw(sizes(*wanted), rng) for wanted in SIZES)
