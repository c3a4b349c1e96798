"""Explanations that need the problem: its named faults, its terms, and the source of its textbook gradient."""

from __future__ import annotations

import functools

import numpy as np

from ..case import apply, relative_error
from ..language import Words, either, words
from ..mutants import mutants_of
from ..problem import Fault
from ..scale import SAME, proportion, readings
from .finding import Finding, WrongTensor, of_fault
from .of_values import fitted, multiple, unread
from .sizes import sizes_of


def named(w: WrongTensor) -> list[Finding]:
    """The named faults that give exactly this tensor in every case."""
    found = [f for f in w.problem.faults.values() if fits(w, f)]
    findings = [of_fault(w.tensor, f) for f in found]
    if not found or w.exact:
        return findings
    products = w.multiples(w.gradient, w.true)
    known = {product for f in found for product in usual_readings(w, f)}
    left = [product for product in products if product not in known]
    other = multiple(w, left) if left else None if products else unread(w)
    return [*findings, *([other] if other else [])]


def fits(w: WrongTensor, fault: Fault) -> bool:
    for i in range(len(w.cases)):
        wrong = w.wrong(fault, i)
        if w.tensor not in wrong:
            return False
        names = wrong if fault.whole else [w.tensor]
        if not all(relative_error(wrong[name], w.actual[i][name]) < SAME for name in names):
            return False
    return True


def usual_readings(w: WrongTensor, fault: Fault) -> list[str]:
    """The products of constants that the fault is times the true gradient, in the problem's own cases."""
    cases = w.problem.cases()
    factors = [proportion(*(apply(f, case)[w.tensor] for f in (fault.wrong, w.problem.backward))) for case in cases]
    return readings([c for c in factors if c is not None], sizes_of(cases)) if None not in factors else []


def other_mask(w: WrongTensor) -> Finding | None:
    """Right except for the dropout mask, which keeps other entries than that of forward."""
    if w.problem.masked is None or "keep" not in w.cases[0].constants:
        return None
    other = False
    for gradient, case in zip(w.gradient, w.cases, strict=True):
        found = apply(w.problem.masked, case).get(w.tensor)
        if found is None or gradient.shape != found[1].shape:
            return None
        rest, path = found
        kept = np.abs(gradient - rest) > np.abs(path) / 2
        if kept.all() or not kept.any() or relative_error(rest + path * kept, gradient) >= SAME:
            return None
        other |= bool(np.any(kept != (np.asarray(case.constants["keep"]) != 0)))
    if not other:
        return None
    return w.finding(
        "terms",
        "{it} is right except for its dropout mask, which keeps other entries than the mask of forward",
        "Was a new mask drawn in backward, or is it the mask of another sample? Which one is in forward's cache?",
    )


def combination(w: WrongTensor) -> Finding | None:
    """The true gradient's terms, with other coefficients than 1."""
    terms = [apply(w.problem.terms, case).get(w.tensor, {}) for case in w.cases]
    if len(terms[0]) < 2 or not w.same_shapes:
        return None
    parts = [[np.broadcast_to(t[name], x.shape) for t, x in zip(terms, w.gradient, strict=True)] for name in terms[0]]
    coefficients = fitted(w.gradient, parts)
    if coefficients is None:
        return None
    says = []
    for name, column in zip(terms[0], coefficients.T, strict=True):
        products = readings(column, w.sizes)
        if not products:
            return None
        if products != ["1"]:
            says.append(either([coefficient(words(name), product) for product in products]))
    return w.finding(
        "terms", "in {it}, {what}", what=functools.reduce(lambda a, b: words("{a} and {b}", a=a, b=b), says)
    )


def coefficient(term: Words, product: str) -> Words:
    usual = {
        "0": words("{term} is missing", term=term),
        "2": words("{term} is counted twice", term=term),
        "-1": words("{term} has the wrong sign", term=term),
    }
    return usual.get(product, words("{term} is {product} times what it must be", term=term, product=product))


def mutant(w: WrongTensor) -> Finding | None:
    """An edit of the textbook gradient that gives exactly this tensor in every case."""
    if not w.exact:
        return None
    for says, edited in mutants_of((w.problem.original or w.problem).backward):
        function = w.problem.in_this_form(edited)
        try:
            with np.errstate(all="ignore"):
                if all(
                    relative_error(apply(function, case)[w.tensor], gradient) < SAME
                    for case, gradient in zip(w.cases, w.gradient, strict=True)
                ):
                    return w.finding("mutant", "{it} comes out as if {edit}", edit=says)
        except Exception:  # an edit need not make sense
            continue
    return None
