"""The forms in which people write a gradient: other names, fewer constants, rows instead of batch and tokens."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..backend import Array
from .case import Case
from .problem import Problem
from .rewritten import of_rows, with_constants

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
    """A problem in the form that a gradient expects, and the gradient's names for its arguments."""

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
    except ValueError:  # some functions written in C have no signature
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
            return None  # it takes every constant: in_order() has it
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
    taken = [name for name in known if name in named and name not in case.inputs]
    return Form(with_constants(problem, taken, unit=not left) if missing or not left else problem, upstream | named)


def canonical(name: str, known: Sequence[str]) -> str | None:
    """The problem's name for a parameter that the caller's gradient calls `name`; None if it has none."""
    if name in known:
        return name
    for other in ALIASES.get(name, "").split():
        if other in known:
            return other
    alike = [other for other in known if other.casefold() == name.casefold()]
    return alike[0] if len(alike) == 1 and name not in UPSTREAM else None
