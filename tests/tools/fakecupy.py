"""A test double for CuPy: NumPy inside, CuPy's restrictions outside.

With this module as `sys.modules["cupy"]`, the code that would use a GPU runs on a CPU, and fails where it would fail
there: NumPy arrays among device arrays, implicit conversions, functions and keywords that CuPy lacks. Where CuPy
differs from NumPy in silence, the double raises: repeated or out-of-range indices, an index array on the host.

What it cannot see: the rounding of kernels, asynchronous errors, memory and speed. `pytest -m gpu` is for those.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import scipy.special
from numpy.lib.mixins import NDArrayOperatorsMixin

# The names that NumPy shares with CuPy 13.6 and 14.2, with their parameters (None: not a function). See cupy_api.py.
_API: dict[str, list[str] | None] = json.loads(Path(__file__).with_name("cupy_api.json").read_text())
_CONSTANTS = (float, type(None))  # pi, inf, nan, newaxis
_TYPES = (np.generic, np.dtype, np.finfo, np.iinfo, Exception)  # CuPy has NumPy's own
_HOST_ATTRIBUTES = {"data", "device", "flat"}  # here they would give NumPy's
_PYTHON_BOOLS = {"allclose", "array_equal", "array_equiv"}  # in NumPy; in CuPy 0-d arrays
_SYNCING = {"argwhere", "flatnonzero", "nonzero", "unique"}  # the shape of the result depends on the values
_SYNCING |= {"dump", "dumps", "item", "save", "savetxt", "savez", "savez_compressed", "tobytes", "tofile", "tolist"}

syncs = 0  # how often the host has waited for the device
launches = 0  # how often it has been given work: calls that make arrays, or write into one. A view is no work
arrays = nbytes = 0  # how many arrays those calls have made, and of how many bytes


def _count_sync() -> None:
    global syncs
    syncs += 1


def _count_launch(result: Any = None, inputs: Any = ()) -> None:
    """Of `result`, a NumPy array or several, what looks into no input is new. None: work that writes into one."""
    global launches, arrays, nbytes
    owners = {id(owner): owner for owner in map(_owner, _arrays(result))}
    for array in _arrays(inputs):
        owners.pop(id(_owner(array)), None)
    launches += bool(owners) or result is None
    arrays += len(owners)
    nbytes += sum(owner.nbytes for owner in owners.values())


def _arrays(value: Any) -> list[Any]:
    """The arrays and NumPy scalars in `value`, also within lists and tuples."""
    if isinstance(value, (list, tuple)):
        return [array for item in value for array in _arrays(item)]
    return [value] if isinstance(value, (np.ndarray, np.generic)) else []


def _owner(array: Any) -> Any:
    """The array whose memory `array` looks into; itself, if that is its own."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def _to_host(value: Any, upload: bool = False) -> Any:
    """The NumPy array in a device array, also within lists and tuples. A bare NumPy array only in an upload."""
    if isinstance(value, ndarray):
        return value._array
    if isinstance(value, np.ndarray) and not upload:
        raise TypeError(f"Unsupported type {type(value)}")
    if isinstance(value, (list, tuple)):
        return type(value)(_to_host(item, upload) for item in value)
    return value


def _to_device(value: Any) -> Any:
    """Device arrays for NumPy's, also within lists and tuples. A scalar becomes a 0-d array, as in CuPy."""
    if isinstance(value, (np.ndarray, np.generic)):
        if value.dtype.kind not in "biufc":
            raise ValueError(f"Unsupported dtype {value.dtype}")
        return ndarray(np.asarray(value))
    if isinstance(value, (list, tuple)):  # a plain tuple for a named one: CuPy 13 does not name them
        return (list if isinstance(value, list) else tuple)(_to_device(item) for item in value)
    return value


class _Function:
    """A function, ufunc or method of NumPy that takes what CuPy's takes and returns what CuPy's returns."""

    def __init__(self, path: str, function: Callable[..., Any]):
        self._path, self._function = path, function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self._check(args, kwargs)
        operands = _to_host(args)
        result = self._function(*operands, **{name: _to_host(value) for name, value in kwargs.items()})
        if self._path.rpartition(".")[2] in _SYNCING:
            _count_sync()
        if kwargs.get("out") is not None:
            _count_launch()
            return kwargs["out"]
        _count_launch(result, (*operands, getattr(self._function, "__self__", None)))
        if self._path in _PYTHON_BOOLS or self._path.startswith("random."):  # NumPy draws one number as a float
            result = np.asarray(result)
        return _to_device(result)

    def _check(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        parameters = _API[self._path] or []
        too_many = len(args) > len(parameters) and not any(name.startswith("*") for name in parameters)
        unknown = set(kwargs) - set(parameters) and not any(name.startswith("**") for name in parameters)
        if too_many or unknown:
            raise TypeError(f"cupy.{self._path} takes {parameters}, not {len(args)} arguments and {sorted(kwargs)}")
        if isinstance(self._function, np.ufunc) and any(isinstance(arg, (list, tuple)) for arg in args):
            raise TypeError("Unsupported type: a list or tuple is no operand")

    def at(self, a: ndarray, indices: Any, b: Any) -> None:
        """`add.at`. CuPy has `at` for a few other ufuncs too; none of them is in use."""
        if self._function is not np.add:
            raise NotImplementedError(f"cupy.{self._path}.at is not modelled")
        np.add.at(_to_host(a), _to_host(indices), _to_host(b))
        _count_launch()


class ndarray(NDArrayOperatorsMixin):
    """A NumPy array out of NumPy's reach. A subclass of numpy.ndarray would be converted without notice."""

    __slots__ = ("_array",)

    def __init__(self, array: np.ndarray):
        self._array = array

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`")

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        """An operator or a ufunc of NumPy becomes this module's function of that name."""
        function = _lookup(np, "", ufunc.__name__)
        if "out" in kwargs:
            (kwargs["out"],) = kwargs["out"]
        return (function if method == "__call__" else getattr(function, method))(*inputs, **kwargs)

    def __array_function__(self, function: Callable[..., Any], types: Any, args: Any, kwargs: Any) -> Any:
        """So does any other function of NumPy."""
        namespace = {"numpy": (np, ""), "numpy.linalg": (np.linalg, "linalg.")}.get(function.__module__)
        return _lookup(*namespace, function.__name__)(*args, **kwargs) if namespace else NotImplemented

    def __getattr__(self, name: str) -> Any:
        path = f"ndarray.{name}"
        if path not in _API or name in _HOST_ATTRIBUTES:
            raise AttributeError(f"cupy.{path} does not exist or is not modelled")
        value = getattr(self._array, name)
        return _Function(path, value) if callable(value) else _to_device(value)

    def __getitem__(self, index: Any) -> ndarray:
        parts = _index_parts(index)
        if any(isinstance(part, np.ndarray) and part.dtype == bool for part in parts):
            _count_sync()  # for the shape of the result
        result = self._array[parts]
        if isinstance(result, np.generic):
            result = self._array[(*parts, ...)]  # x[0, 0] is a scalar in NumPy, a view in CuPy
        _count_launch(result, self._array)
        return _to_device(result)

    def __setitem__(self, index: Any, value: Any) -> None:
        parts = _index_parts(index)
        if isinstance(value, (list, tuple)):
            raise TypeError(f"Unsupported type {type(value)}")
        if np.ndim(value) and any(isinstance(part, (list, np.ndarray)) for part in parts):
            writes = np.zeros(self.shape, dtype=int)
            np.add.at(writes, parts, 1)
            if (writes > 1).any():
                raise ValueError("repeated indices in an assignment: on CuPy any of the values may win")
        self._array[parts] = _to_host(value)
        _count_launch()

    def __len__(self) -> int:
        return len(self._array)

    def __iter__(self) -> Iterator[ndarray]:
        return (self[i] for i in range(len(self)))

    def __imatmul__(self, other: Any) -> Any:
        return self @ other  # in CuPy a new array

    # All of these wait for the device. There is no __index__: to Python, a 0-d array is not an integer.

    def get(self) -> np.ndarray:
        _count_sync()
        return self._array.copy()

    def __bool__(self) -> bool:
        return bool(self.get())

    def __int__(self) -> int:
        return int(self.get())

    def __float__(self) -> float:
        return float(self.get())

    def __complex__(self) -> complex:
        return complex(self.get())

    def __repr__(self) -> str:
        return repr(self.get())

    def __format__(self, specification: str) -> str:
        return format(self.get(), specification)


def _index_parts(index: Any) -> tuple[Any, ...]:
    return _to_host(index if isinstance(index, tuple) else (index,))


class _Generator:
    """Fewer distributions than NumPy's generator, and other numbers under the same seed."""

    def __init__(self, seed: int | None = None):
        self._generator = np.random.Generator(np.random.Philox(seed))

    def __getattr__(self, name: str) -> Any:
        return _lookup(self._generator, "random.Generator.", name)

    def integers(self, low: Any, high: Any = None, *args: Any, **kwargs: Any) -> ndarray:
        if np.ndim(low) or np.ndim(high):
            raise TypeError("the bounds must be scalars")
        return self.__getattr__("integers")(low, high, *args, **kwargs)


class _Linalg:
    def __getattr__(self, name: str) -> Any:
        return _lookup(np.linalg, "linalg.", name)


def _lookup(source: Any, prefix: str, name: str) -> Any:
    """What `source` calls `name`, behind CuPy's restrictions."""
    path = prefix + name
    if path not in _API:
        raise AttributeError(f"cupy.{path} does not exist")
    value = getattr(source, name)
    if isinstance(value, _CONSTANTS) or (isinstance(value, type) and issubclass(value, _TYPES)):
        return value
    if isinstance(value, type) or not callable(value):
        raise AttributeError(f"cupy.{path} is not modelled")
    return _Function(path, value)


def __getattr__(name: str) -> Any:
    return _lookup(np, "", name)


linalg = _Linalg()
random = SimpleNamespace(default_rng=_Generator, Generator=_Generator)


def array(obj: Any, dtype: Any = None, copy: bool = True, order: Any = "K") -> ndarray:
    """Upload, or copy on the device. The host's memory is never shared."""
    keep = isinstance(obj, ndarray) and not copy
    source = _to_host(obj, upload=True)
    result = np.array(source, dtype=dtype, copy=None if keep else True, order=order)
    _count_launch(result, source)
    return _to_device(result)


def asarray(a: Any, dtype: Any = None, order: Any = "K") -> ndarray:
    return array(a, dtype, copy=False, order=order)


class special:
    """cupyx.scipy.special"""

    @staticmethod
    def erf(x: ndarray) -> ndarray:
        y = scipy.special.erf(_to_host(x))
        _count_launch(y)
        return _to_device(y)
