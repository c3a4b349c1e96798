"""The protocol of formats: how a matrix is held in fewer bits than it is computed with. A format is one file beside
this one.

    Q = NF4.of(W)           the codes of a W (out, in), and their scales, in Q.arrays
    Q.dense()               Ŵ (out, in), decoded anew at each call; Q.dense(rows) are some of its rows
    Q.nbytes                what is held

Loading, counting and the forecast of a merge find the classes by formats() and read what they state. Every class
states, with int8 (int8.py, Int8) as the example and in the order of the class Quantized below:

    name        name = "int8"
    encode      the arrays of a W: {"codes": (out, in) int8, "absmax": (out,) float32}
    decode      rows of Ŵ
    sizes       shapes and dtypes of these arrays, for a matrix that does not exist: models without weights are counted
    cells       for each entry of W / a: its level, and the interval of numbers rounded to that level (forecast.py)

Few need the rest, each for the reason that is said here:

    for_blocks  it is too coarse for embeddings and heads                                   nf4.py, int8.py
    scales_of   W is divided by a scale a, the largest |W| of a block or a row              nf4.py, int8.py
    codes       the first of the arrays does not hold one code for each entry               nf4.py
    is_finite   codes or scales that are not floats can stand for infinity and NaN          bfloat16.py

A class without a name cannot be chosen: gguf_blocks.py only decodes what a file has. What all have follows in
Quantized, and after it the functions that take an array or a Quantized alike: dense, parts, is_finite.
"""

from __future__ import annotations

import copy
import importlib
import math
import pkgutil
from collections.abc import Iterator, Mapping
from functools import cache
from types import ModuleType
from typing import Any, ClassVar, NamedTuple, Self, TypeAlias

import numpy as np

from ..backend import Array, get_array_module, to_numpy
from ..spelling import choose_from

Rows: TypeAlias = "slice | Array | list[int]"  # of a matrix: a slice, or their indices
ALL = slice(None)
PART = 2**20  # entries that are decoded at a time for one product; with fewer it is slower
ENCODED = 2**17  # entries that are encoded at a time: the temporary arrays then stay in the processor's cache
LARGEST = (2 - 2.0**-7) * 2.0**127  # bfloat16's. A float32 above it, 3.4 · 10³⁸, could be decoded as infinity.


class Cells(NamedTuple):
    """For each number: the level it is rounded to, and the ends of its cell, the interval rounded to that level."""

    level: np.ndarray
    low: np.ndarray
    high: np.ndarray


class Quantized:
    """A matrix (out, in) held as codes and scales, in `arrays`. It is constant: nothing trains it."""

    ndim = 2

    def __init__(self, arrays: Mapping[str, Array], shape: tuple[int, ...], dtype: Any = np.float32) -> None:
        self.arrays, self.shape, self.dtype = dict(arrays), shape, np.dtype(dtype)  # dtype: of what dense() returns

    # ---- what every format states ----

    name: ClassVar[str] = ""

    @classmethod
    def encode(cls, W: np.ndarray) -> dict[str, np.ndarray]:
        """`arrays` of a finite W, float32."""
        raise NotImplementedError

    def decode(self, rows: Rows) -> Array:
        """(n, in) float32: these rows."""
        raise NotImplementedError

    @classmethod
    def sizes(cls, n_out: int, n_in: int) -> dict[str, tuple[tuple[int, ...], str]]:
        """{name in `arrays`: (shape, dtype)} of a matrix (out, in)."""
        raise NotImplementedError

    @classmethod
    def cells(cls, u: np.ndarray) -> Cells:
        """The cells of u = W / a, float64. Those at the ends of a scale, ±1, have no other end: -inf or inf."""
        raise NotImplementedError

    # ---- what few need ----

    for_blocks: ClassVar[bool] = False  # only for the linear layers of the model's blocks, not for embeddings and heads

    @classmethod
    def scales_of(cls, W: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The a by which W is divided before it is rounded, and â, by which levels are multiplied: the same, unless a
        is rounded too. Both broadcast to W (out, in); they are 1 where there is no scale."""
        return np.ones((1, 1)), np.ones((1, 1))

    def codes(self) -> Array:
        """The codes, one for each entry, in the order of W."""
        return next(iter(self.arrays.values()))

    def is_finite(self) -> bool:
        """Whether all its numbers are: codes are, so whether its scales are."""
        return all(bool(np.isfinite(x).all()) for x in self.arrays.values() if x.dtype.kind == "f")

    # ---- what all have ----

    @classmethod
    def of(cls, W: Array | Quantized) -> Self:
        """W (out, in), encoded from float32; one that is in this format already is returned as it is. Raises ValueError
        for what is not a matrix of floats, and for infinity, NaN and numbers above LARGEST, which have no code."""
        if type(W) is cls:
            return W
        W = dense(W)
        if W.ndim != 2 or not W.size or W.dtype.kind != "f":
            raise ValueError(f"{cls.name} is for matrices of floats, and this is {W.dtype} of shape {W.shape}")
        with np.errstate(over="ignore"):
            W32 = np.ascontiguousarray(to_numpy(W), dtype=np.float32)
        if not max(-W32.min(), W32.max()) <= LARGEST:  # NaN if any is
            wrong = W32[~(abs(W32) <= LARGEST)].flat[0]
            raise ValueError(
                f"{cls.name} has no code for {wrong:.6g}: numbers have to be finite, and at most {LARGEST:.4g}"
            )
        arrays = {name: get_array_module(W).asarray(x) for name, x in cls.encode(W32).items()}
        return cls(arrays, W.shape, W.dtype)

    @classmethod
    def nbytes_of(cls, shape: tuple[int, ...]) -> int:
        """nbytes of a matrix of this shape."""
        return sum(math.prod(axes) * np.dtype(dtype).itemsize for axes, dtype in cls.sizes(*shape).values())

    def dense(self, rows: Rows = ALL) -> Array:
        """(n, in): these rows, decoded into a new array."""
        return self.decode(rows).astype(self.dtype, copy=False)

    def __getitem__(self, rows: slice) -> RowsOf:
        """Some rows, still as codes."""
        return RowsOf(self, rows)

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError(f"a matrix in {self.name} is no array: dense() makes one of it")

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return sum(x.nbytes for x in self.arrays.values())

    @property
    def xp(self) -> ModuleType:
        """The library of the arrays."""
        return get_array_module(next(iter(self.arrays.values())))

    def to(self, xp: ModuleType) -> Self:
        """The same in the array library `xp`."""
        other = copy.copy(self)
        other.arrays = {name: xp.asarray(to_numpy(x)) for name, x in self.arrays.items()}
        return other

    def astype(self, dtype: Any) -> Self:
        """The same codes, which dense() decodes to this dtype."""
        other = copy.copy(self)
        other.dtype = np.dtype(dtype)
        return other


class RowsOf(Quantized):
    """Some rows of a matrix, without arrays of their own: a part of a fused layer."""

    def __init__(self, whole: Quantized, rows: slice) -> None:
        super().__init__(whole.arrays, (len(range(*rows.indices(len(whole)))), *whole.shape[1:]), whole.dtype)
        self.whole, self.numbers = whole, range(len(whole))[rows]
        self.name = whole.name  # type: ignore[misc]

    def decode(self, rows: Rows) -> Array:
        if not isinstance(rows, slice):
            return self.whole.decode([self.numbers[i] for i in rows])
        part = self.numbers[rows]  # backwards its stop can be -1, which in a slice would be the last row
        return self.whole.decode(slice(part.start, part.stop, part.step) if part.step > 0 else list(part))


def dense(W: Array | Quantized, rows: Rows = ALL) -> Array:
    """W, or some of its rows, decoded if it is Quantized."""
    if isinstance(W, Quantized):
        return W.dense(rows)
    return W if rows is ALL else W[rows]


def parts(W: Array | Quantized, numbers: int | None = None) -> Iterator[slice]:
    """The slices of rows that are decoded at a time: of about PART entries, or of this many."""
    step = max(1, (numbers or PART) // max(1, W.shape[1]))
    return (slice(start, min(start + step, len(W))) for start in range(0, len(W), step))


@cache
def formats() -> dict[str, type[Quantized]]:
    """{name: class} of the formats that have a file here and can be chosen."""
    return {
        cls.name: cls
        for module in pkgutil.iter_modules(importlib.import_module(__package__).__path__)
        for cls in vars(importlib.import_module(f".{module.name}", __package__)).values()
        if isinstance(cls, type) and issubclass(cls, Quantized) and cls.name
    }


def format_named(name: str) -> type[Quantized]:
    """The class of a format. Raises ValueError for one that has no file here."""
    if name not in formats():
        raise ValueError(f"no format is called {name!r}: {choose_from(name, formats())}")
    return formats()[name]


def is_finite(x: Array | Quantized) -> bool:
    """Whether all numbers of an array, or of a Quantized, are finite."""
    if isinstance(x, Quantized):
        return x.is_finite()
    return not x.size or bool(np.isfinite([x.min(), x.max()]).all())  # min and max are NaN if any is
