"""A gradient with a change: other arguments, a factor, other tensors.

A new value is given as it is, or as a function of some arguments of the gradient, those that its parameters name:
`lambda keep, p: keep * (1 - p)`. `names` are the names of all arguments in order. `backward` is the first argument
where there is one, so that the search for two faults at once can put a wrong backward in its place (mutants.py).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from ..backend import Array
from .case import Case, Tensors

Backward: TypeAlias = Callable[..., Tensors]  # (dy, *inputs, **constants) -> the gradients


def with_tensors(tensors: Mapping[str, Any], names: Sequence[str], *arguments: Array, **constants: Any) -> Tensors:
    given = named(names, arguments, constants)
    return {tensor: evaluated(value, given) for tensor, value in tensors.items()}


def with_factors(
    backward: Backward, names: Sequence[str], factors: Mapping[str, Any], *arguments: Array, **constants: Any
) -> Tensors:
    true, given = backward(*arguments, **constants), named(names, arguments, constants)
    return {tensor: true[tensor] * evaluated(factor, given) for tensor, factor in factors.items()}


def with_arguments(
    backward: Backward,
    names: Sequence[str],
    changes: Mapping[str, Any],
    only: Sequence[str],
    *arguments: Array,
    **constants: Any,
) -> Tensors:
    """The gradient with other arguments; only the tensors of `only`, or all if it is empty."""
    given = named(names, arguments, constants)
    changed = given | {name: evaluated(change, given) for name, change in changes.items()}
    inputs = [changed.pop(name) for name in names[: len(arguments)]]
    found = backward(*inputs, **changed)
    return {tensor: found[tensor] for tensor in only or found}


def with_changes(case: Case, changes: Mapping[str, Any]) -> Case:
    """The case with other inputs and constants."""
    given = case.inputs | case.constants
    made = {name: evaluated(change, given) for name, change in changes.items()}
    inputs = {name: made.pop(name, x) for name, x in case.inputs.items()}
    return case._replace(inputs=inputs, constants=case.constants | made)


def named(names: Sequence[str], arguments: Sequence[Array], constants: Mapping[str, Any]) -> dict[str, Any]:
    return {**dict(zip(names, arguments, strict=False)), **constants}  # constants come with their names


def evaluated(value: Any, given: Mapping[str, Any]) -> Any:
    """The value, or what the function makes of the arguments that its parameters name."""
    return value(*(given[name] for name in inspect.signature(value).parameters)) if callable(value) else value
