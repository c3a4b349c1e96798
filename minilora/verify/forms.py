"""The forms in which people write a gradient: other names, fewer constants, rows in the place of a batch."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..backend import Array
from .case import Case, Tensors, apply, relative_error
from .problem import Law, Problem
from .scale import SAME

ALIASES = {
    "lora_alpha": "alpha", "lora_A": "A", "lora_B": "B", "rank": "r", "lora_r": "r", "scaling": "s", "scale": "s",
    "weight": "W", "W0": "W", "bias": "b", "beta": "b", "gamma": "g", "gain": "g", "epsilon": "eps", "mask": "keep",
    "dropout": "p", "query": "q", "key": "k", "value": "v",
    "target": "targets", "labels": "targets target", "label": "targets", "t": "targets target", "y": "targets",
    "y_true": "targets target", "targets": "target", "z": "logits", "x": "logits", "scores": "logits",
    "pred": "y", "preds": "y", "prediction": "y", "y_pred": "y", "y_hat": "y",
}  # fmt: skip
UPSTREAM = {"dy", "dY", "dout", "dL", "dl", "dz", "upstream", "grad_output", "grad_out", "grad_y", "g", "grad"}


@dataclass(frozen=True)
class Form:
    """A problem as a gradient takes it, and how that gradient is called."""

    problem: Problem
    parameters: Mapping[str, str] | None = None  # what the gradient calls dy, the inputs and constants; None: in order

    def call(self, grad: Callable[..., Any], case: Case, dy: Array, arrays: Sequence[Array]) -> Any:
        """What `grad` returns; a sequence is put into the order of the inputs."""
        if self.parameters is None:
            return grad(dy, *arrays, **case.constants)
        values = {"dy": dy, **dict(zip(case.inputs, arrays, strict=True)), **case.constants}
        result = grad(**{self.parameters.get(name, name): v for name, v in values.items() if name in self.taken})
        if isinstance(result, Mapping):  # {"dlora_A": ...} for a parameter lora_A
            called = {f"d{mine}": f"d{name}" for name, mine in self.parameters.items() if name in case.inputs}
            called |= {key[1:]: name for key, name in called.items()}
            return {called.get(key, key): g for key, g in result.items()}
        order = [name for name in self.parameters if name in case.inputs]
        if isinstance(result, tuple | list) and len(result) == len(order):
            return [result[order.index(name)] for name in case.inputs]
        return result

    @property
    def taken(self) -> set[str]:
        assert self.parameters is not None
        return set(self.parameters)


def forms_of(problem: Problem, grad: Callable[..., Any], own: Sequence[Case]) -> Iterator[Form]:
    """The forms that the parameters of `grad` fit, the first to try first. Raises ValueError where there is none."""
    form = by_name(problem, grad) or in_order(problem, grad)
    if form is None:
        lacks = lacking(problem, grad)
        raise ValueError(
            f"the parameters of grad, {inspect.signature(grad)}, fit no form of {problem.name}{lacks}; "
            f"it is called as {problem.signature()}" + (f"; {problem.optional}" if problem.optional else "")
        )
    usual = form.problem.cases(n=1)[0].inputs
    flat = any(x.ndim < usual[name].ndim for case in own[:1] for name, x in case.inputs.items() if name in usual)
    if not flat or not problem.rows:
        yield form
    if problem.rows and (flat or not own):
        yield replace(form, problem=of_rows(form.problem))


def lacking(problem: Problem, grad: Callable[..., Any]) -> str:
    """ ": mask is missing" """
    case = problem.cases(n=1)[0]
    needed = [*case.inputs, *([] if problem.complete else case.constants)]
    found = {canonical(name, [*case.inputs, *case.constants]) for name in inspect.signature(grad).parameters}
    missing = [name for name in needed if name not in found]
    return f": {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing" if missing else ""


def in_order(problem: Problem, grad: Callable[..., Any]) -> Form | None:
    """grad(dy, *inputs, **constants)"""
    case = problem.cases(n=1)[0]
    try:
        inspect.signature(grad).bind(case.dy, *case.inputs.values(), **case.constants)
    except TypeError:
        return None
    except ValueError:  # some functions of C do not tell their parameters
        pass
    return Form(problem)


def by_name(problem: Problem, grad: Callable[..., Any]) -> Form | None:
    """The form with the constants that `grad` names, if it names every input and only one thing more, dy."""
    try:
        declared = inspect.signature(grad).parameters.values()
    except (TypeError, ValueError):
        return None
    case = problem.cases(n=1)[0]
    known = [*case.inputs, *case.constants, *(["s"] if problem.complete and "alpha" in case.constants else [])]
    named, left = {}, []
    for position, parameter in enumerate(declared):
        name = canonical(parameter.name, known)
        if parameter.kind is parameter.VAR_KEYWORD:
            return None  # it takes all that there is
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.POSITIONAL_ONLY) or name in named:
            return None
        if name:
            named[name] = parameter.name
        elif parameter.default is parameter.empty:
            left.append((position, parameter.name))
    scalar = np.ndim(case.dy) == 0
    if len(left) > 1 or not set(case.inputs) <= set(named) or (not left and not scalar):
        return None
    if left and left[0][0] != 0 and left[0][1] not in UPSTREAM:
        return None
    missing = [name for name in case.constants if name not in named]
    if missing and problem.complete is None:
        return None
    upstream = {"dy": left[0][1]} if left else {}
    shown = [name for name in known if name in named and name not in case.inputs]
    return Form(with_constants(problem, shown, unit=not left) if missing or not left else problem, upstream | named)


def canonical(name: str, known: Sequence[str]) -> str | None:
    """What the problem calls the parameter."""
    if name in known:
        return name
    for other in ALIASES.get(name, "").split():
        if other in known:
            return other
    alike = [other for other in known if other.casefold() == name.casefold()]
    return alike[0] if len(alike) == 1 and name not in UPSTREAM else None


def with_constants(problem: Problem, shown: Sequence[str], unit: bool) -> Problem:
    """The problem without its other constants, which `complete` makes up; with `unit`, dy is 1 and is not handed in."""

    def hide(case: Case) -> Case:
        known = case.constants | ({"s": case.constants["alpha"] / case.constants["r"]} if "s" in shown else {})
        given = {name: known[name] for name in shown}
        made = complete(case.inputs, given)
        given = {name: made.get(name, value) for name, value in given.items()}  # targets without ignored ones
        gone = set(case.constants) - set(shown) | (set() if "keep" in shown else {"1-p"})
        sizes = {name: size for name, size in case.sizes.items() if name not in gone or name == "r"}
        sizes |= {"s": given["s"]} if "s" in shown else {}
        return Case(np.asarray(1.0) if unit else case.dy, case.inputs, given, sizes)

    def complete(inputs: Mapping[str, Array], given: Mapping[str, Any]) -> dict[str, Any]:
        return dict(given) if problem.complete is None else problem.complete(**inputs, **given)

    def show(case: Case) -> Case:
        return case._replace(constants=complete(case.inputs, case.constants))

    return rewritten(problem, hide, show, lambda name, array: array, lambda name, array: array)


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

    def hide(case: Case) -> Case:
        sizes = {name: size for name, size in case.sizes.items() if name not in ("batch", "tokens")}
        return each(case, merge)._replace(sizes={"rows": case.sizes["batch"] * case.sizes["tokens"], **sizes})

    return rewritten(problem, hide, lambda case: each(case, split), merge, split)


def rewritten(
    problem: Problem,
    hide: Callable[[Case], Case],
    show: Callable[[Case], Case],
    outward: Callable[[str, Any], Any],
    inward: Callable[[str, Any], Any],
) -> Problem:
    """The problem over the cases that `hide` makes of its own; `show` undoes it, `outward` does it to one array."""
    first = hide(problem.cases(n=1)[0])
    blank = first.dy  # forward needs none

    def case_of(arguments: Sequence[Any], constants: dict[str, Any]) -> Case:
        dy, *arrays = arguments
        return show(Case(dy, dict(zip(first.inputs, arrays, strict=True)), constants, {}))

    def outer(function: Callable[..., Tensors]) -> Callable[..., Tensors]:
        def run(*arguments: Any, **constants: Any) -> Tensors:
            tensors = apply(function, case_of(arguments, constants))
            return {name: outward(name[1:], g) for name, g in tensors.items()}

        return run

    def forward(*arrays: Any, **constants: Any) -> Array:
        case = case_of([blank, *arrays], constants)
        return outward("output", problem.forward(*case.inputs.values(), **case.constants))

    parameters = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in first.inputs]
    parameters += [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in first.constants]
    forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]

    def terms(*arguments: Any, **constants: Any) -> dict[str, dict[str, Array]]:
        case = case_of(arguments, constants)
        found = {}
        for name, parts in apply(problem.terms, case).items():
            present = {term: part for term, part in parts.items() if np.any(part)}  # W may be missing
            found[name] = {term: outward(name[1:], part) for term, part in present.items()}
        return found

    def masked(*arguments: Any, **constants: Any) -> dict[str, tuple[Array, Array]]:
        assert problem.masked is not None
        found = apply(problem.masked, case_of(arguments, constants))
        return {name: tuple(outward(name[1:], part) for part in parts) for name, parts in found.items()}

    def within(law: Law) -> Law:
        return lambda tensors, case: law({name: inward(name[1:], g) for name, g in tensors.items()}, show(case))

    made = {}
    for name, fault in problem.faults.items():
        wrong, usual = apply(outer(fault.wrong), first), apply(fault.wrong, problem.cases(n=1)[0])
        if all(np.any(g) or not np.any(usual[tensor]) for tensor, g in wrong.items()):
            made[name] = wrong  # else it is zero only because what it is about is 0 in this form

    def narrower(fault: str) -> bool:
        """Does another fault say the same of more tensors, now that a part of the op is missing?"""
        wider = [other for other in made.values() if made[fault].keys() < other.keys()]
        return any(all(relative_error(o[tensor], g) < SAME for tensor, g in made[fault].items()) for o in wider)

    return replace(
        problem,
        forward=forward,
        backward=outer(problem.backward),
        draw=lambda rng, i: hide(problem.draw(rng, i)),
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
