"""A problem over other cases: with fewer constants, or with one axis of rows for batch and tokens."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..backend import Array
from .case import Case, Tensors, apply, relative_error
from .problem import Law, Problem
from .scale import SAME


def with_constants(problem: Problem, taken: Sequence[str], unit: bool) -> Problem:
    """The problem with only these constants; `complete` makes the others. With `unit`, dy is 1 and not an argument."""

    def narrow(case: Case) -> Case:
        known = case.constants | ({"s": case.constants["alpha"] / case.constants["r"]} if "s" in taken else {})
        given = {name: known[name] for name in taken}
        made = complete(case.inputs, given)
        given = {name: made.get(name, value) for name, value in given.items()}  # targets without ignored ones
        gone = set(case.constants) - set(taken) | (set() if "keep" in taken else {"1-p"})
        sizes = {name: size for name, size in case.sizes.items() if name not in gone or name == "r"}
        sizes |= {"s": given["s"]} if "s" in taken else {}
        return Case(np.asarray(1.0) if unit else case.dy, case.inputs, given, sizes)

    def complete(inputs: Mapping[str, Array], given: Mapping[str, Any]) -> dict[str, Any]:
        return dict(given) if problem.complete is None else problem.complete(**inputs, **given)

    def widen(case: Case) -> Case:
        return case._replace(constants=complete(case.inputs, case.constants))

    return rewritten(problem, narrow, widen, lambda name, array: array, lambda name, array: array)


def of_rows(problem: Problem) -> Problem:
    """The problem with its first two axes, batch and tokens, as one. Inside, every row is a sample of one token."""
    cases = problem.cases()

    def leading(arrays: Sequence[Any]) -> bool:
        return all(
            np.shape(a)[:2] == (case.sizes["batch"], case.sizes["tokens"])
            for a, case in zip(arrays, cases, strict=True)
        )

    names = [*cases[0].inputs, *cases[0].constants]
    values = {name: [{**case.inputs, **case.constants}[name] for case in cases] for name in names}
    flat = {name for name, arrays in values.items() if leading(arrays)}
    flat |= {"output"} if leading([case.dy for case in cases]) else set()

    def merge(name: str, a: Any) -> Any:
        return np.reshape(a, (-1, *np.shape(a)[2:])) if name in flat else a

    def split(name: str, a: Any) -> Any:
        return np.reshape(a, (len(a), 1, *np.shape(a)[1:])) if name in flat else a

    def each(case: Case, change: Callable[[str, Any], Any]) -> Case:
        inputs = {name: change(name, x) for name, x in case.inputs.items()}
        constants = {name: change(name, x) for name, x in case.constants.items()}
        return case._replace(dy=change("output", case.dy), inputs=inputs, constants=constants)

    def narrow(case: Case) -> Case:
        sizes = {name: size for name, size in case.sizes.items() if name not in ("batch", "tokens")}
        return each(case, merge)._replace(sizes={"rows": case.sizes["batch"] * case.sizes["tokens"], **sizes})

    return rewritten(problem, narrow, lambda case: each(case, split), merge, split)


def rewritten(
    problem: Problem,
    narrow: Callable[[Case], Case],
    widen: Callable[[Case], Case],
    narrow_array: Callable[[str, Any], Any],
    widen_array: Callable[[str, Any], Any],
) -> Problem:
    """The problem over narrowed cases. `widen` undoes `narrow`; the other two do the same to one array, by its name."""
    first = narrow(problem.cases(n=1)[0])
    blank = first.dy  # forward needs none

    def case_of(arguments: Sequence[Any], constants: dict[str, Any]) -> Case:
        dy, *arrays = arguments
        return widen(Case(dy, dict(zip(first.inputs, arrays, strict=True)), constants, {}))

    def outer(function: Callable[..., Tensors]) -> Callable[..., Tensors]:
        def run(*arguments: Any, **constants: Any) -> Tensors:
            tensors = apply(function, case_of(arguments, constants))
            return {name: narrow_array(name[1:], g) for name, g in tensors.items()}

        return run

    def forward(*arrays: Any, **constants: Any) -> Array:
        case = case_of([blank, *arrays], constants)
        return narrow_array("output", problem.forward(*case.inputs.values(), **case.constants))

    parameters = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in first.inputs]
    parameters += [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in first.constants]
    forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]

    def terms(*arguments: Any, **constants: Any) -> dict[str, dict[str, Array]]:
        case = case_of(arguments, constants)
        found = {}
        for name, parts in apply(problem.terms, case).items():
            present = {term: part for term, part in parts.items() if np.any(part)}  # W may be missing
            found[name] = {term: narrow_array(name[1:], part) for term, part in present.items()}
        return found

    def masked(*arguments: Any, **constants: Any) -> dict[str, tuple[Array, Array]]:
        assert problem.masked is not None
        found = apply(problem.masked, case_of(arguments, constants))
        return {name: tuple(narrow_array(name[1:], part) for part in parts) for name, parts in found.items()}

    def within(law: Law) -> Law:
        return lambda tensors, case: law({name: widen_array(name[1:], g) for name, g in tensors.items()}, widen(case))

    made = {}
    for name, fault in problem.faults.items():
        wrong, usual = apply(outer(fault.wrong), first), apply(fault.wrong, problem.cases(n=1)[0])
        if all(np.any(g) or not np.any(usual[tensor]) for tensor, g in wrong.items()):
            made[name] = wrong  # otherwise it is zero only because this form lacks the part that the fault is about

    def narrower(fault: str) -> bool:
        """True where another fault covers the same and more, now that a part of the op is missing."""
        wider = [other for other in made.values() if made[fault].keys() < other.keys()]
        return any(all(relative_error(o[tensor], g) < SAME for tensor, g in made[fault].items()) for o in wider)

    return replace(
        problem,
        forward=forward,
        backward=outer(problem.backward),
        draw=lambda rng, shape: narrow(problem.draw(rng, shape)),
        terms=terms,
        laws={name: within(law) for name, law in problem.laws.items()},
        faults={
            name: replace(problem.faults[name], wrong=outer(problem.faults[name].wrong))
            for name in made
            if not narrower(name)
        },
        simpler={},
        masked=masked if problem.masked else None,
        original=problem.original or problem,
        in_this_form=lambda backward: outer(problem.in_this_form(backward)),
    )
