"""What is wrong with a result before any value is compared: shape, type, NaN."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np

from ...verify.language import Words, words
from ..naming import Arguments, described, shape

Function: TypeAlias = Callable[..., Any]
Tensors: TypeAlias = dict[str, Any]  # what a function returns, by name


class Refused(Exception):
    """A result that cannot be compared. `detail` tells two refusals of the same kind apart."""

    def __init__(self, kind: str, says: Words, asks: Words | None = None, detail: str = ""):
        super().__init__(says.en)
        self.kind, self.says, self.asks, self.detail = kind, says, asks, detail

    def same(self, other: Refused) -> bool:
        return (self.kind, self.detail) == (other.kind, other.detail)


def refuse(name: str, mine: Any, right: Tensors, arguments: Arguments) -> None:
    """Raise Refused if a result has another shape or type than right[name], or is not finite."""
    try:
        array, wanted = np.asarray(mine), np.asarray(right[name])
    except ValueError:
        raise Refused("shape", words("{it} is not an array: its rows differ in length", it=name)) from None
    if array.dtype.kind not in "biufcUS" or (array.dtype.kind in "US") != (wanted.dtype.kind in "US"):
        kind = "a word" if wanted.dtype.kind == "U" else "an array" if wanted.ndim else "a number"
        says = words("{it} is {found}, and must be {kind}", it=name, found=type(mine).__name__, kind=words(kind))
        raise Refused("type", says, detail=name)
    if array.shape != wanted.shape:
        says = words(
            "{it} has shape {found}, and must have {wanted}, for {given}",
            it=name,
            found=shape(array),
            wanted=shape(wanted),
            given=described(arguments),
        )
        if array.ndim > 1 and array.T.shape == wanted.shape:
            which = words("Its transpose would have that shape: which axis of your result is which?")
            raise Refused("transposed", says, which, detail=f"{name} {array.shape}")
        alike = [other for other, value in right.items() if np.shape(value) == array.shape]
        order = words("That is the shape of {other}: in which order are the results returned?", other=(*alike, "")[0])
        asks = order if alike else None
        raise Refused("shape", says, asks, detail=f"{name} {array.shape} {wanted.shape}")
    if array.dtype.kind == "f" and array.dtype != np.float64 and wanted.dtype == np.float64:
        raise Refused(
            "type",
            words("{it} is {found}: compute in float64, as the arguments are", it=name, found=str(array.dtype)),
            detail=name,
        )
    if wanted.dtype.kind in "fiu" and np.all(np.isfinite(wanted)) and not np.all(np.isfinite(array)):
        where = [int(i) for i in np.argwhere(~np.isfinite(array))[0]]
        says = words(
            "{it} is not finite, first at {place}, for {given}" if where else "{it} is not finite, for {given}",
            it=name,
            place=str(where),
            given=described(arguments),
        )
        asks = words("Is there a division by 0, a logarithm of 0, or an exponential of a large number?")
        raise Refused("not finite", says, asks, detail=name)


def equal(a: Any, b: Any) -> bool:
    """Whether two values are the same, bit for bit."""
    if isinstance(a, Mapping):
        return isinstance(b, Mapping) and list(a) == list(b) and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, tuple | list):
        return isinstance(b, tuple | list) and len(a) == len(b) and all(map(equal, a, b))
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return np.shape(a) == np.shape(b) and np.array_equal(a, b, equal_nan=np.asarray(a).dtype.kind == "f")
    return isinstance(a, np.random.Generator) or bool(a == b)


def in_words(error: BaseException) -> str:
    """NameError: name 'dz' is not defined"""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def at_line(error: BaseException, function: Function) -> Words | None:
    """A sentence with the line of the learner's file that raised the error; None if it was raised elsewhere."""
    line = line_of(error, function)
    return words("It happens in line {line}.", line=str(line)) if line else None


def line_of(error: BaseException, function: Function) -> int:
    """The line of the learner's file in which the error was raised; 0 if there is none."""
    methods = vars(function).values() if isinstance(function, type) else [function]
    code = next((method.__code__ for method in methods if hasattr(method, "__code__")), None)
    file = code.co_filename if code else ""
    found, trace = 0, error.__traceback__
    while trace:
        found = trace.tb_lineno if trace.tb_frame.f_code.co_filename == file else found
        trace = trace.tb_next
    return found
