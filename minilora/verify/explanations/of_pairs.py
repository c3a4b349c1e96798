"""Two known mistakes in one tensor."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from ..case import apply, relative_error
from ..language import words
from ..mutants import calls, fault_within
from ..scale import SAME, proportion
from .finding import Finding, WrongTensor, of_fault
from .of_values import one_or_other


def pair(w: WrongTensor) -> list[Finding]:
    """Two known mistakes at once: a fault and a scale, or two faults; [] if several pairs fit."""
    if not w.problem.pairs or not w.exact:
        return []
    shapes = [t.shape for t in w.true]
    faults = [
        fault.name
        for fault in w.problem.faults.values()
        if not fault.whole and getattr(w.wrong(fault, 0).get(w.tensor), "shape", None) == shapes[0]
    ]
    found = [*fault_and_scale(w, faults)] or [*two_faults(w, faults)]
    if len(found) != 1:
        return []
    first, second = found[0]
    return [first, replace(second, says=words("and: {says}", says=second.says))]


def fault_and_scale(w: WrongTensor, faults: Sequence[str]) -> Iterator[tuple[Finding, Finding]]:
    for name in faults:
        fault = w.problem.faults[name]
        first = w.wrong(fault, 0)[w.tensor]
        if proportion(w.gradient[0], first) is None or proportion(first, w.true[0]) is not None:
            continue  # not a multiple of the fault; or the fault itself is only a scale
        products = w.multiples(w.gradient, w.all_wrong(name))
        if products and products[0] not in ("0", "1"):
            scale = w.finding("scale", "{it} is then multiplied by {factor}", factor=one_or_other(products))
            known = (other for other in faults if w.multiples(w.all_wrong(other), w.true) == products)
            other = next(known, None)
            yield of_fault(w.tensor, fault), of_fault(w.tensor, w.problem.faults[other]) if other else scale


def two_faults(w: WrongTensor, faults: Sequence[str]) -> Iterator[tuple[Finding, Finding]]:
    """Two faults that add up, as in two terms, or one within the other, as in two factors."""
    if not w.same_shapes:
        return
    original = w.problem.original or w.problem
    outer = {name for name in faults if calls(original.faults[name].wrong, original.backward)}
    multiples = {name for name in faults if proportion(w.all_wrong(name)[0], w.true[0]) is not None}
    for a, b in itertools.combinations(faults, 2):
        within = [names for names in ((a, b), (b, a)) if names[0] in outer]
        terms = not {a, b} & multiples  # a multiple of the whole is not a mistake in a term
        if (terms and sum_of(w, a, b)) or any(nested(w, *names) for names in within):
            yield of_fault(w.tensor, w.problem.faults[a]), of_fault(w.tensor, w.problem.faults[b])


def sum_of(w: WrongTensor, a: str, b: str) -> bool:
    """Whether the two mistakes add up to the tensor."""
    for i, (gradient, true) in enumerate(zip(w.gradient, w.true, strict=True)):
        x, y = (w.wrong(w.problem.faults[name], i).get(w.tensor, np.zeros(0)) for name in (a, b))
        if x.shape != true.shape or y.shape != true.shape or relative_error(x + y - true, gradient) >= SAME:
            return False
    return True


def nested(w: WrongTensor, outer: str, inner: str) -> bool:
    """Whether the tensor is what the outer fault makes of a textbook gradient that has the inner one."""
    original = w.problem.original or w.problem
    a, b = original.faults[outer].wrong, original.faults[inner].wrong
    function = w.problem.in_this_form(fault_within(a, b, original.backward))
    try:
        with np.errstate(all="ignore"):
            return all(
                relative_error(apply(function, case)[w.tensor], gradient) < SAME
                for case, gradient in zip(w.cases, w.gradient, strict=True)
            )
    except Exception:  # one fault need not make sense within another
        return False
