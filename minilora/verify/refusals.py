"""Refuse a wrong call, or a check that would be worthless, with a ValueError of one line."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import chain, combinations
from typing import Any

import numpy as np

from ..backend import Array


def as_inputs(inputs: Any) -> dict[str, np.ndarray]:
    if not isinstance(inputs, Mapping) or not inputs:
        raise ValueError("inputs must be a dict of arrays by name: {'x': array, ...}")
    return {name: as_array(name, x) for name, x in inputs.items()}


def as_constants(constants: Any) -> dict[str, Any]:
    if not isinstance(constants, Mapping | None):
        raise ValueError("constants must be a dict by name: {'alpha': 16, ...}")
    return dict(constants or {})


def as_array(name: str, x: Any) -> np.ndarray:
    try:
        return np.asarray(x)
    except ValueError:
        raise ValueError(f"{name} is not an array: its rows differ in length") from None


def refuse_array(name: str, x: np.ndarray) -> None:
    """Raise ValueError unless x holds finite float64 numbers."""
    if x.dtype != np.float64:
        raise ValueError(
            f"{name} is {x.dtype}: gradients are checked in float64, where a difference has digits left; "
            f"pass {name}.astype(np.float64)"
        )
    if x.size == 0:
        raise ValueError(f"{name} is empty, of shape {x.shape}: there is nothing to check")
    if not np.all(np.isfinite(x)):
        raise ValueError(f"{name} holds NaN or infinity: choose finite numbers")


def refuse_blind_spots(inputs: Mapping[str, np.ndarray], constants: Mapping[str, Any]) -> None:
    """Raise ValueError for inputs under which a wrong gradient looks right."""
    for name, x in inputs.items():
        refuse_array(name, x)
    everything = {**inputs, **constants}

    def given(*names: str) -> Any:
        return next((everything[name] for name in names if name in everything), None)

    A, B = given("A", "lora_A"), given("B", "lora_B")
    if B is not None and not np.any(B):
        raise ValueError("B = 0: the gradient of A is then zero, right or wrong; check with a trained B")
    alpha, r = given("alpha", "lora_alpha"), given("r", "rank", "lora_r")
    if r is None and np.ndim(A) == np.ndim(B) == 2 and len(A) == np.shape(B)[1]:
        r = len(A)
    if alpha is not None and r is not None and np.array_equal(alpha, r):
        raise ValueError(
            "alpha = r: the scale alpha/r is then 1, and one that is forgotten is not seen; choose different numbers"
        )
    s = given("s", "scale", "scaling")
    if A is not None and B is not None and s is not None and np.array_equal(s, 1):
        raise ValueError("the scale is 1: one that is forgotten is not seen; choose another")


def refuse_batch_of_one(
    f: Callable[..., Array], inputs: Mapping[str, np.ndarray], constants: Mapping[str, Any], y: np.ndarray
) -> None:
    """Raise ValueError where a batch of one hides whether the gradient is a sum or a mean over the rows.

    Which arguments have rows is found by trial: those whose first axis has length 1 are repeated along it. If y is then
    the same row twice, the rows share every input without that axis, and its gradient is a sum over them. If y is a
    number that stays the same or doubles, and does otherwise when the columns are repeated, f is a mean or a sum over
    the rows alone.
    """
    everything = {**inputs, **constants}
    single = [name for name, a in everything.items() if np.shape(a)[:1] == (1,)]
    shared = [name for name, x in inputs.items() if x.ndim and name not in single]
    if math.prod(y.shape[:-1]) > 1 or y.ndim == 1 or (y.ndim and not shared):
        return

    def repeated(names: Collection[str], axis: int) -> np.ndarray | None:
        arrays = {name: np.repeat(a, 2, axis) if name in names else a for name, a in everything.items()}
        try:
            return np.asarray(f(*(arrays[name] for name in inputs), **{name: arrays[name] for name in constants}))
        except Exception:  # f may raise anything for other shapes
            return None

    def as_many(total: np.ndarray | None) -> int:
        """1 or 2 if `total` is y or 2 y, else 0."""
        return 0 if total is None else next((n for n in (1, 2) if np.allclose(total, n * y, rtol=1e-6, atol=0)), 0)

    for names in chain.from_iterable(combinations(single[:6], n) for n in range(1, 7)):
        rows = repeated(names, 0)
        if y.ndim and rows is not None and rows.shape == (2, *y.shape[1:]) and np.allclose(rows, y):
            raise ValueError(
                f"a batch of one: the gradient of {' and '.join(shared)} is a sum over the rows, and one row does not "
                "show a mean in its place; take two or more, or say one_row=True"
            )
        wide = [name for name in names if np.ndim(everything[name]) > 1]
        if not y.ndim and wide and all(math.prod(np.shape(everything[name])[:-1]) == 1 for name in wide):
            columns = repeated(wide, -1)
            if as_many(rows) and columns is not None and as_many(columns) != as_many(rows):
                raise ValueError(
                    "a batch of one: f is a sum or a mean over its rows, and one row does not show which; "
                    "take two or more, or say one_row=True"
                )


class Failed(ValueError):
    """A function of the caller raised: which one, and the shapes of its arguments."""


def called(what: str, function: Callable[..., Any], arguments: Mapping[str, Any], constants: Mapping[str, Any]) -> Any:
    """function(*arguments, **constants). Raises Failed if it raises, but lets an ImportError through: a package that is
    not installed is not a mistake of the function."""
    try:
        return function(*arguments.values(), **constants)
    except (Failed, ImportError):
        raise
    except Exception as error:  # it may raise anything
        given = ", ".join(f"{name} {tuple(x.shape)}" if hasattr(x, "shape") else name for name, x in arguments.items())
        raise Failed(f"{what} failed on {given}: {type(error).__name__}: {' '.join(str(error).split())}") from error


def refuse_call(caller: str, what: str, function: Any, arguments: Sequence[str], constants: Mapping[str, Any]) -> None:
    """Raise ValueError unless function(*arguments, **constants) can be called."""
    words = ", ".join([*arguments, *(f"{constant}=..." for constant in constants)])
    if not callable(function):
        raise ValueError(f"{caller} calls {what}({words}), but {what} is not a function: {type(function).__name__}")
    try:
        signature = inspect.signature(function)
    except ValueError:  # some functions written in C have no signature
        return
    try:
        signature.bind(*arguments, **constants)
    except TypeError as error:
        raise ValueError(f"{caller} calls {what}({words}): {error}") from None


def refuse_names(zero: Collection[str], inputs: Collection[str]) -> None:
    if not set(zero) <= set(inputs):
        raise ValueError(f"zero={list(zero)} is not an input; the inputs are {', '.join(inputs)}")


def twice(what: str, run: Callable[..., list[np.ndarray]], arrays: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """run(*arrays). Raises ValueError where it writes to one of them, or returns something else the second time."""
    before = [a.copy() for a in arrays.values()]
    first = [y.copy() for y in run(*arrays.values())]
    second = run(*arrays.values())
    for (name, a), b in zip(arrays.items(), before, strict=True):
        if not np.array_equal(a, b):
            raise ValueError(f"{what} writes to its argument {name}: let it work on a copy")
    if len(first) != len(second) or any(
        not np.array_equal(a, b, equal_nan=True) for a, b in zip(first, second, strict=True)
    ):
        raise ValueError(
            f"{what} returns something else when it is called again: pass masks in, and draw nothing inside"
        )
    return first


def why_not_complex(run: Callable[[], Array]) -> str | None:
    """None if `run`, over complex arrays, returns a complex one; otherwise why the complex step cannot be used."""
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("error", np.exceptions.ComplexWarning)
            y = run()
        if not np.iscomplexobj(y):
            return "f drops the imaginary part"
        return None if np.all(np.isfinite(y)) else "f is not finite on complex arrays"
    except np.exceptions.ComplexWarning:
        return "f drops the imaginary part"
    except Exception as error:  # it may raise anything
        return f"f raises {type(error).__name__} on complex arrays"


def as_output(y: Any) -> np.ndarray:
    """What f returned. Raises ValueError unless it is one array of finite float64."""
    if y is None:
        raise ValueError("f returned None: it must return one array or number")
    if isinstance(y, tuple | list):
        raise ValueError("f must return one array or number; a forward that returns (y, cache) goes to check_backward")
    y = np.asarray(y)
    if y.dtype != np.float64:
        raise ValueError(f"f returns {y.dtype}, and must compute in float64")
    if y.size == 0:
        raise ValueError(f"f returns an empty array, of shape {y.shape}: there is nothing to check")
    if not np.all(np.isfinite(y)):
        raise ValueError("f is not finite at these inputs: choose others")
    return y


def as_upstream(dy: Any, y: np.ndarray) -> np.ndarray:
    """dy as an array. Raises ValueError for a dy under which a wrong gradient looks right."""
    dy = np.asarray(float(dy) if isinstance(dy, int) else dy)
    if dy.shape != y.shape:
        raise ValueError(f"dy has shape {dy.shape}, and y = f(...) has {y.shape}")
    refuse_array("dy", dy)
    if y.size > 1 and np.ptp(dy) == 0:
        raise ValueError(
            "dy is the same number everywhere: the gradients of softmax and of norms vanish under it; draw it at random"
        )
    return dy


def as_gradients(result: Any, inputs: Sequence[str]) -> list[np.ndarray]:
    """What grad returned, in the order of the inputs: an array, a sequence, or a dict by name ("x" or "dx")."""
    wanted = ", ".join(f"d{name}" for name in inputs)
    if result is None:
        raise ValueError(f"grad returned None: it must return {wanted}")
    if isinstance(result, Mapping):
        found = {name: result.get(f"d{name}", result.get(name)) for name in inputs}
        if set(result) - {f"d{name}" for name in inputs} - set(inputs) or len(result) != len(inputs):
            raise ValueError(f"the gradients are called {', '.join(map(str, result))}; they must be {wanted}")
        values = list(found.values())
    else:
        values = list(result) if isinstance(result, Sequence | Iterator) else [result]
    if len(values) != len(inputs):
        raise ValueError(
            f"grad returns {len(values)} array{'s' * (len(values) != 1)}; it must return {len(inputs)}: {wanted}"
        )
    return [as_gradient(f"d{name}", g) for name, g in zip(inputs, values, strict=True)]


def as_gradient(name: str, g: Any) -> np.ndarray:
    if g is None:
        raise ValueError(f"grad returned None for {name}: it must return an array for every input")
    g = as_array(name, g)
    if g.dtype != np.float64 and g.dtype.kind not in "iu":
        raise ValueError(f"{name} is {g.dtype}: grad must compute in float64, as f does")
    return g.astype(np.float64)


def as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, tuple | list) else [value]
