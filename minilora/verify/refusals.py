"""What is called in the wrong way, or would make a check worthless, is refused with a ValueError of one line."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..backend import Array


def as_inputs(inputs: Any) -> dict[str, np.ndarray]:
    if not isinstance(inputs, Mapping) or not inputs:
        raise ValueError("inputs are named: {'x': array, ...}")
    return {name: as_array(name, x) for name, x in inputs.items()}


def as_constants(constants: Any) -> dict[str, Any]:
    if not isinstance(constants, Mapping | None):
        raise ValueError("constants are named: {'alpha': 16, ...}")
    return dict(constants or {})


def as_array(name: str, x: Any) -> np.ndarray:
    try:
        return np.asarray(x)
    except ValueError:
        raise ValueError(f"{name} is no array: its rows are not equally long") from None


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
    """Raise ValueError for inputs under which a wrong gradient cannot be told from a right one."""
    for name, x in inputs.items():
        refuse_array(name, x)
    everything = {**inputs, **constants}
    B = everything.get("B", everything.get("lora_B"))
    if B is not None and not np.any(B):
        raise ValueError("B = 0: the gradient of A is then zero, right or wrong; check with a trained B")
    if "alpha" in everything and np.array_equal(everything["alpha"], everything.get("r", np.nan)):
        raise ValueError(
            "alpha = r: the scale alpha/r is then 1, and one that is forgotten is not seen; choose them apart"
        )


def refuse_call(caller: str, what: str, function: Any, arguments: Sequence[str], constants: Mapping[str, Any]) -> None:
    """Raise ValueError unless function(*arguments, **constants) can be called."""
    words = ", ".join([*arguments, *(f"{constant}=..." for constant in constants)])
    if not callable(function):
        raise ValueError(f"{caller} calls {what}({words}), but {what} is no function: {type(function).__name__}")
    try:
        signature = inspect.signature(function)
    except ValueError:  # some functions of C do not tell theirs
        return
    try:
        signature.bind(*arguments, **constants)
    except TypeError as error:
        raise ValueError(f"{caller} calls {what}({words}): {error}") from None


def refuse_names(zero: Collection[str], inputs: Collection[str]) -> None:
    if not set(zero) <= set(inputs):
        raise ValueError(f"zero={list(zero)} names what is no input; the inputs are {', '.join(inputs)}")


def twice(what: str, run: Callable[..., list[np.ndarray]], arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """run(*arrays). Raises ValueError when it writes to an array, or says something else the second time."""
    before = [a.copy() for a in arrays]
    first = [y.copy() for y in run(*arrays)]
    second = run(*arrays)
    for i, (a, b) in enumerate(zip(arrays, before, strict=True)):
        if not np.array_equal(a, b):
            raise ValueError(f"{what} has written to its argument {i}: work on a copy")
    if len(first) != len(second) or any(
        not np.array_equal(a, b, equal_nan=True) for a, b in zip(first, second, strict=True)
    ):
        raise ValueError(f"{what} gives another answer the second time: pass masks in, and draw nothing inside")
    return first


def why_not_complex(run: Callable[[], Array]) -> str | None:
    """None if `run`, over complex arrays, returns a complex one; otherwise why the complex step cannot be used."""
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("error", np.exceptions.ComplexWarning)
            return None if np.iscomplexobj(run()) else "f drops the imaginary part"
    except np.exceptions.ComplexWarning:
        return "f drops the imaginary part"
    except Exception as error:  # whatever a person's function does
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
    """dy as an array. Raises ValueError unless it can tell a right gradient of y from a wrong one."""
    dy = np.asarray(float(dy) if isinstance(dy, int) else dy)
    if dy.shape != y.shape:
        raise ValueError(f"dy has shape {dy.shape}, and y = f(...) has {y.shape}")
    refuse_array("dy", dy)
    if y.size > 1 and np.ptp(dy) == 0:
        raise ValueError(
            "dy is the same number everywhere: the gradients of softmax and of norms vanish under it; draw it"
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
        raise ValueError(f"{len(values)} gradients were returned; {len(inputs)} are needed: {wanted}")
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
