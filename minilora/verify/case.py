"""One configuration of an op: what it is called with, and the upstream gradient."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from ..backend import Array

Tensors: TypeAlias = dict[str, Array]  # "dx" -> the gradient of the input x


class Case(NamedTuple):
    """The arguments of one call, in float64. Give every constant and size another value in each case: a wrong factor
    can be named only if no other constant takes the same values."""

    dy: Array
    inputs: dict[str, Array]  # the arguments that have a gradient, in order
    constants: dict[str, Any]  # those that have none: ids, masks, alpha, r
    sizes: Mapping[str, float] = {}  # what a wrong scale may be made of: alpha, r, tokens, "1-p", ...


def apply(function: Callable[..., Any], case: Case) -> Any:
    """function(dy, *inputs, **constants)"""
    return function(case.dy, *case.inputs.values(), **case.constants)


def relative_error(a: Array, b: Array) -> float:
    """‖a - b‖ / max(‖a‖, ‖b‖); infinite if the shapes differ or an entry is not finite."""
    if np.shape(a) != np.shape(b) or not np.all(np.isfinite(a)):
        return np.inf
    size = max(float(np.linalg.norm(a)), float(np.linalg.norm(b)))
    return float(np.linalg.norm(np.asarray(a) - b)) / size if size else 0.0
