"""Parts whose values are compared with those of a right function."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ...verify.case import relative_error
from ...verify.explanations.finding import Finding
from ...verify.language import words
from ...verify.scale import SAME
from ..naming import Arguments, named
from .part import Checked, Mistake, Part
from .refusals import Function, Refused, Tensors

CASES = 6


@dataclass
class Value(Part):
    """A function whose values are compared. `draw(rng, i)` gives the arguments of case i, `truth` their values."""

    truth: Function = lambda *arguments: None
    draw: Callable[[np.random.Generator, int], Arguments] = lambda rng, i: {}
    compare: bool = True  # False: only shapes; rules grade the rest
    tolerance: float = SAME
    common: bool = True  # look for a factor, another argument, ... where no listed mistake fits

    @cached_property
    def results(self) -> list[str]:
        if self.compared_as is type(self).compared_as:  # the default
            return self.tensors
        return list(self.compared_as(self.truths(self.cases()[:1])[0]))

    def cases(self, seed: int = 0) -> list[Arguments]:
        return [self.draw(np.random.default_rng([seed, i, 2]), i) for i in range(CASES)]

    def truths(self, cases: Sequence[Arguments]) -> list[Tensors]:
        given = copy.deepcopy(cases)
        return [self.of_call(self.truth(*case.values()), case) for case in given]

    def compared(self, function: Function, seed: int) -> Checked:
        cases = self.cases(seed)
        true = self.truths(cases)
        mine: list[Tensors] = []
        for case, tensors in zip(cases, true, strict=True):
            try:
                mine.append(self.outcome(function, case, tensors))
            except Refused as refused:
                return Checked([self.of_refused(refused, mine, cases, true)])
        if not self.compare:
            return Checked([Finding(name, "right", words("{it} is right", it=name)) for name in self.tensors])
        return self.of_values(mine, cases, true)

    def same(self, a: Any, b: Any) -> bool:
        return same(a, b, self.tolerance)

    def of_values(self, mine: list[Tensors], cases: list[Arguments], true: list[Tensors]) -> Checked:
        findings: list[Finding] = []
        errors: dict[str, float] = {}
        wrong_of: dict[str, list[Tensors]] = {}
        right = [self.compared_as(tensors) for tensors in true]
        for name in right[0]:
            a, t = [m[name] for m in mine], [m[name] for m in right]
            errors[name] = max(difference(x, y) for x, y in zip(a, t, strict=True))
            if all(map(self.same, a, t)):
                findings.append(Finding(name, "right", words("{it} is right", it=name)))
                continue
            if not wrong_of:
                wrong_of = {key: self.all_of(mistake, cases, true) for key, mistake in self.mistakes.items()}
            alike = [
                key for key, values in wrong_of.items() if values and self.agree(values, mine, self.together(name))
            ]
            alone = [key for key in alike if self.agree(wrong_of[key], mine, [*right[0]])]  # explains the rest too
            findings += self.explained(name, a, t, cases, [self.mistakes[key] for key in alone or alike])
        return Checked(findings, errors)

    def explained(
        self, name: str, mine: list[Any], true: list[Any], cases: list[Arguments], listed: list[Mistake]
    ) -> list[Finding]:
        """What is wrong with one value. `listed` are the mistakes that give the same."""
        return named(name, mine, true, cases, listed, self.same, self.common)

    def together(self, tensor: str) -> list[str]:
        """The tensors that a mistake must explain for it to be named in this one."""
        return [tensor]

    def agree(self, some: list[Tensors], others: list[Tensors], names: list[str]) -> bool:
        """Whether these tensors are the same in every case."""
        return all(self.same(a[name], b[name]) for a, b in zip(some, others, strict=True) for name in names)

    def all_of(self, mistake: Mistake, cases: list[Arguments], true: list[Tensors]) -> list[Tensors]:
        """What a mistake returns in every case; [] if it is refused in one."""
        try:
            return [self.outcome(mistake.wrong, case, tensors) for case, tensors in zip(cases, true, strict=True)]
        except Refused:
            return []


@dataclass
class ValueAndGradients(Value):
    """A function that returns one value, then a dict of gradients: dx, {"dA": ..., "dB": ...}."""

    def by_name(self, result: Any) -> Tensors:
        first = self.tensors[0]
        if not isinstance(result, Mapping):
            if not (isinstance(result, tuple | list) and len(result) == 2 and isinstance(result[1], Mapping)):
                raise Refused("shape", words("{it} must return {first} and a dict", it=self.name, first=first))
            result = {first: result[0], **result[1]}
        more = [name for name in map(str, result) if name not in self.tensors]
        if more and set(self.tensors) <= set(result):
            says = words("{it} returns {more}, which nobody asked for", it=self.name, more=", ".join(more))
            raise Refused("frozen", says, words("Which of the weights are trained?"))
        return super().by_name(result)


@dataclass
class Predicted(Value):
    """A function without arguments that returns what the learner expects to be measured."""

    def cases(self, seed: int = 0) -> list[Arguments]:
        return [{}]

    def explained(
        self, name: str, mine: list[Any], true: list[Any], cases: list[Arguments], listed: list[Mistake]
    ) -> list[Finding]:
        if listed:
            return named(name, mine, true, cases, listed, self.same, self.common)
        says = words("{it} is not what is measured, and not by a mistake that is known here", it=name)
        return [Finding(name, "unknown", says, words("Which experiment of a few lines would measure {it}?", it=name))]


def same(a: Any, b: Any, tolerance: float = SAME) -> bool:
    """Whether two values agree: integers and strings exactly, floats relative to their norm."""
    x, y = np.asarray(a), np.asarray(b)
    if x.shape != y.shape:
        return False
    if x.dtype.kind not in "fiub" or y.dtype.kind not in "fc":
        return bool(np.array_equal(x, y))
    finite = np.isfinite(y)
    if not finite.all():
        return bool(np.array_equal(x[~finite], y[~finite], equal_nan=True)) and same(x[finite], y[finite], tolerance)
    return relative_error(x, y) < tolerance if np.any(y) else float(np.linalg.norm(x)) <= 1e-10


def difference(a: Any, b: Any) -> float:
    """The relative error of numbers; for strings 0 or infinity."""
    x, y = np.asarray(a), np.asarray(b)
    if x.dtype.kind in "fiub" and y.dtype.kind in "fiub":
        return relative_error(x.astype(float), y.astype(float)) if np.all(np.isfinite(y)) or not same(a, b) else 0.0
    return 0.0 if same(a, b) else np.inf
