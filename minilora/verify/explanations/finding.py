"""One wrong tensor, in every case, and what was found out about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from ...backend import Array
from ..case import Case, Tensors, apply, relative_error
from ..language import Words, words
from ..problem import Fault, Problem
from ..scale import SAME, proportion, readings


@dataclass(frozen=True)
class Finding:
    """What was found out about one tensor. `kind`: right, shape, fault, scale, terms, mutant, law or unknown."""

    tensor: str
    kind: str
    says: Words
    asks: Words | None = None
    name: str = ""  # of the fault

    def text(self, language: str = "en") -> str:
        found = [self.says.in_language(language)]
        if self.asks:
            found.append(self.asks.in_language(language))
        return "\n    ".join(found)


@dataclass
class WrongTensor:
    """The gradient of one input. `actual` and `expected` hold the gradients of all inputs in each case."""

    tensor: str
    actual: Sequence[Tensors]
    expected: Sequence[Tensors]
    problem: Problem
    cases: Sequence[Case]
    sizes: Sequence[Mapping[str, float]]  # the numbers that a wrong scale may be made of
    exact: bool  # the cases are those of the problem, in which no constant hides another
    known: dict[tuple[str, int], Tensors] = field(default_factory=dict)  # what faults return, shared by the tensors

    @cached_property
    def gradient(self) -> list[Array]:
        return [tensors[self.tensor] for tensors in self.actual]

    @cached_property
    def true(self) -> list[Array]:
        return [tensors[self.tensor] for tensors in self.expected]

    @property
    def same_shapes(self) -> bool:
        return all(x.shape == t.shape for x, t in zip(self.gradient, self.true, strict=True))

    @property
    def factors(self) -> list[float | None]:
        """In each case, the number by which the true gradient is multiplied; None where it is not one number."""
        return [proportion(a, b) for a, b in zip(self.gradient, self.true, strict=True)]

    def where(self, kept: Sequence[bool]) -> WrongTensor:
        """This tensor in the cases for which `kept` is True."""
        chosen = [i for i, keep in enumerate(kept) if keep]

        def of(values: Sequence[Any]) -> list[Any]:
            return [values[i] for i in chosen]

        return replace(
            self, actual=of(self.actual), expected=of(self.expected), cases=of(self.cases), sizes=of(self.sizes)
        )

    def wrong(self, fault: Fault, i: int) -> Tensors:
        """What the fault returns in case i; {} if it does not work for the shapes of that case."""
        key = fault.name, id(self.cases[i])
        if key not in self.known:
            try:
                with np.errstate(all="ignore"):
                    self.known[key] = apply(fault.wrong, self.cases[i])
            except (ValueError, IndexError, TypeError, ZeroDivisionError):
                self.known[key] = {}
        return self.known[key]

    def all_wrong(self, name: str) -> list[Array]:
        """What the fault of this name returns for the tensor in every case."""
        fault = self.problem.faults[name]
        return [self.wrong(fault, i).get(self.tensor, np.zeros(0)) for i in range(len(self.cases))]

    def multiples(self, gradient: Sequence[Array], other: Sequence[Array]) -> list[str]:
        """The products of constants by which `other` is multiplied in `gradient`; [] if it is no multiple."""
        factors = [proportion(a, b) for a, b in zip(gradient, other, strict=True)]
        return readings([c for c in factors if c is not None], self.sizes) if None not in factors else []

    def finding(self, kind: str, says: str, asks: str = "", **values: str | Words) -> Finding:
        """`says` and `asks`, with {it} replaced by the tensor and each other name in braces by its value."""
        question = words(asks, **values) if asks else None
        return Finding(self.tensor, kind, words(says, it=self.tensor, **values), question)


def agree(gradient: Array, true: Array, case: Case) -> bool:
    """True where the two are the same. Where the true gradient is zero, rounding errors count as zero."""
    if gradient.shape == true.shape and not np.any(true):
        return bool(np.linalg.norm(gradient) <= 1e-10 * np.abs(case.dy).sum())
    return relative_error(gradient, true) < SAME


def same(a: Sequence[Array], b: Sequence[Array]) -> bool:
    return all(relative_error(x, y) < SAME for x, y in zip(a, b, strict=True))


def of_fault(tensor: str, fault: Fault) -> Finding:
    return Finding(tensor, "fault", fault.says.filled(it=tensor), fault.asks, fault.name)


def alternatives(found: Sequence[Finding]) -> list[Finding]:
    """Explanations between which the cases cannot decide."""
    return [f if i == 0 else replace(f, says=words("or: {says}", says=f.says)) for i, f in enumerate(found)]
