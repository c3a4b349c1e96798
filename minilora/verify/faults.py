"""The mistakes that a gradient of any op can have, made from the problem's textbook gradient, terms and factors.

    whole         the wrong sign; counted twice; without dy; swapped with the gradient of an input of the same shape
    sum           of a parameter, which all rows share: a mean over the rows; the last sample alone
    term          missing; counted twice; with the wrong sign
    factor        missing; applied twice

A problem states only the faults that are none of these, and may have better words for these (`says`, `asks`).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial, wraps
from typing import Any

import numpy as np

from ..backend import Array
from .case import Case, Tensors, apply
from .changes import Backward, evaluated, named, with_factors
from .language import Words, joined, words
from .problem import Factor, Fault, Problem, Terms


def common_faults(problem: Problem) -> dict[str, Fault]:
    """{name: fault}, in the words of the problem where it has some."""
    case = problem.cases(n=1)[0]
    made = [*of_the_whole(problem, case), *of_sums(problem, case), *of_terms(problem, case), *of_factors(problem)]
    faults = {fault.name: fault for fault in made}
    for name, says in problem.says.items():
        faults[name] = replace(faults[name], says=words(says))
    for name, asks in problem.asks.items():
        faults[name] = replace(faults[name], asks=words(asks))
    return faults


# ---- the whole ----


def of_the_whole(problem: Problem, case: Case) -> Iterator[Fault]:
    yield Fault(
        "sign_flipped",
        partial(times, problem.backward, -1),
        words("{it} has the wrong sign"),
        words("Is it the gradient that carries the minus of gradient descent, or the update?"),
    )
    yield Fault(
        "counted_twice",
        partial(times, problem.backward, 2),
        words("{it} is counted twice"),
        words("What was in the array before you added to it?"),
    )
    if np.ndim(case.dy):
        says = words("{it} leaves out the upstream gradient dy, as though it were 1 everywhere")
        asks = words("Of what is this the derivative: of the sum of all y, or of the loss?")
    else:
        says = words("{it} lacks the upstream gradient dL")
        asks = words("If the loss is multiplied by 10 afterwards, what must become of its gradients?")
    yield Fault("upstream_forgotten", partial(without_dy, problem.backward), says, asks)
    for a, b in itertools.combinations(case.inputs, 2):
        if case.inputs[a].shape == case.inputs[b].shape:
            yield Fault(
                f"{a}_and_{b}_swapped",
                partial(swapped, problem.backward, f"d{a}", f"d{b}"),
                words("the gradients of {a} and {b} are swapped", a=a, b=b),
                words("In which order do you return the gradients?"),
                whole=True,
            )


def times(backward: Backward, number: float, *arguments: Array, **constants: Any) -> Tensors:
    return {name: number * g for name, g in backward(*arguments, **constants).items()}


def without_dy(backward: Backward, dy: Array, *inputs: Array, **constants: Any) -> Tensors:
    return backward(np.ones_like(dy), *inputs, **constants)


def swapped(backward: Backward, a: str, b: str, *arguments: Array, **constants: Any) -> Tensors:
    true = backward(*arguments, **constants)
    return {a: true[b], b: true[a]}


# ---- the sum over the rows ----


def of_sums(problem: Problem, case: Case) -> Iterator[Fault]:
    rows = case.dy.shape[:2]
    shared = [name for name, x in case.inputs.items() if len(rows) == 2 and x.shape[:2] != rows]
    if not shared:
        return
    tensors = [f"d{name}" for name in shared]
    yield Fault(
        "averaged_over_rows",
        partial(averaged, problem.backward, tensors),
        words("{it} is a mean over the rows, but must be a sum"),
        words(
            "Every row uses the same {names}: do their contributions add up or average? "
            "Who has divided already, if anyone?",
            names=joined(", ", (Words(name, name) for name in shared)),
        ),
    )
    yield Fault(
        "last_sample_only",
        partial(of_the_last_sample, problem.backward, tensors),
        words("{it} holds the last sample alone: the others were overwritten, not added"),
        words("Does your loop over the samples add to the result of the sample before, or overwrite it?"),
    )


def averaged(backward: Backward, tensors: list[str], dy: Array, *inputs: Array, **constants: Any) -> Tensors:
    true, rows = backward(dy, *inputs, **constants), dy.shape[0] * dy.shape[1]
    return {name: true[name] / rows for name in tensors}


def of_the_last_sample(backward: Backward, tensors: list[str], dy: Array, *inputs: Array, **constants: Any) -> Tensors:
    """A gradient is linear in dy."""
    last = np.zeros_like(dy)
    last[-1:] = dy[-1:]
    found = backward(last, *inputs, **constants)
    return {name: found[name] for name in tensors}


# ---- the terms ----


def of_terms(problem: Problem, case: Case) -> Iterator[Fault]:
    for name in dict.fromkeys(name for parts in apply(problem.terms, case).values() for name in parts):
        term, short = words(name), identifier(name)
        wrong = partial(with_coefficient, problem.terms, problem.arguments, name)
        yield Fault(
            f"no_{short}",
            partial(wrong, 0),
            words("{it} lacks {term}", term=term),
            words("How many terms does this derivative have, and which of them are in yours?"),
        )
        yield Fault(
            f"{short}_twice",
            partial(wrong, 2),
            words("{it} counts {term} twice", term=term),
            words("Where is this term added to the others, and is that done only once?"),
        )
        yield Fault(
            f"{short}_with_wrong_sign",
            partial(wrong, -1),
            words("{term} of {it} has the wrong sign", term=term),
            words("With which sign does each term come out of the derivative?"),
        )


def identifier(term: str) -> str:
    """ "the low-rank path" -> "low_rank_path", without the formula that may follow"""
    found = re.match(r"the ([a-z]+([ -][a-z]+)*)(?![\w\u0302])", term)
    if found is None:
        raise ValueError(f"the name of a term begins with `the` and words in lower case, and not as {term!r}")
    return re.sub("[ -]", "_", found[1])


def with_coefficient(
    terms: Terms, names: list[str], term: str, number: Any, *arguments: Array, **constants: Any
) -> Tensors:
    """The gradients that have this term, with a number in front of it, given as in `Problem.multiplied`."""
    number = evaluated(number, named(names, arguments, constants))
    return {
        tensor: sum(((number if name == term else 1) * part for name, part in parts.items()), start=np.zeros(()))
        for tensor, parts in terms(*arguments, **constants).items()
        if term in parts
    }


# ---- the factors ----


def of_factors(problem: Problem) -> Iterator[Fault]:
    for name, factor in problem.factors.items():
        written = words(factor.written)
        places = [(f"no_{name}", f"{name}_twice", Words("{it}", "{it}"), partial(in_tensors, problem, factor))]
        for term in factor.terms:
            where, short = words("{term} of {it}", term=words(term)), identifier(term)
            wrong = partial(in_term, problem, factor, term)
            places.append((f"no_{name}_in_{short}", f"{name}_twice_in_{short}", where, wrong))
        for missing, twice, where, wrong in places:
            yield Fault(
                missing,
                wrong(-1),
                words("{where} lacks {factor}", where=where, factor=written),
                words("By what does forward multiply on the way to y, and is all of it in your gradient?"),
            )
            yield Fault(
                twice,
                wrong(1),
                words("{factor} is applied twice, in {where}", where=where, factor=written),
                words("Which of the quantities that you multiply contains {factor} already?", factor=written),
            )


def in_tensors(problem: Problem, factor: Factor, power: int) -> Backward:
    """The gradients that have the factor, times a power of it."""
    more = dict.fromkeys(factor.tensors, to_power(factor.value, power))
    return partial(with_factors, problem.backward, problem.arguments, more)


def in_term(problem: Problem, factor: Factor, term: str, power: int) -> Backward:
    """The gradients that have the term, with a power of the factor in front of it."""
    return partial(with_coefficient, problem.terms, problem.arguments, term, to_power(factor.value, power))


def to_power(value: Callable[..., Any], power: int) -> Callable[..., Any]:
    @wraps(value)  # it keeps the names of the parameters
    def raised(*arguments: Any) -> Any:
        return value(*arguments) ** power

    return raised
