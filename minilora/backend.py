"""Which array library an array belongs to. The only file that names CuPy."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TypeAlias

import numpy as np

Array: TypeAlias = np.ndarray  # or a cupy.ndarray, which has the same methods


def get_array_module(x: Array) -> ModuleType:
    """The library that made `x`. CuPy is never imported here: a CuPy array means it already was."""
    if type(x) is np.ndarray:  # asked some twenty times for a token
        return np
    cupy = sys.modules.get("cupy")
    return cupy if cupy is not None and isinstance(x, cupy.ndarray) else np


def load_backend(name: str = "numpy") -> ModuleType:
    """The library to make arrays with: "numpy", or "cupy" after a product on the GPU has succeeded.

    Raises ValueError for another name, ImportError without CuPy, RuntimeError when CuPy finds no
    usable GPU. It never falls back to the CPU.
    """
    if name == "numpy":
        return np
    if name != "cupy":
        raise ValueError(f"unknown backend {name!r}: choose 'numpy' or 'cupy'")
    try:
        import cupy
    except ImportError as error:
        raise ImportError(
            "the cupy backend needs CuPy: pip install '.[cuda13]' in the clone (or [cuda12], by the driver's CUDA)"
        ) from error
    try:
        ones = cupy.ones((2, 2), dtype="float32")
        float((ones @ ones + 1).sum())  # needs the driver, the kernel compiler and cuBLAS
    except Exception as error:
        raise RuntimeError(f"CuPy is installed but cannot use a GPU here: {type(error).__name__}: {error}") from error
    return cupy


def to_numpy(x: Array) -> np.ndarray:
    """A copy on the host of a CuPy array; a NumPy array itself."""
    return np.asarray(x) if get_array_module(x) is np else x.get()  # type: ignore[attr-defined]


def erf(x: Array) -> Array:
    """The error function, which NumPy lacks: SciPy's, or CuPy's own. Raises ImportError without SciPy."""
    on_host = get_array_module(x) is np
    try:
        return importlib.import_module("scipy.special" if on_host else "cupyx.scipy.special").erf(x)
    except ImportError as error:
        raise ImportError("GELU in the form of BERT needs SciPy in float64: pip install scipy") from error
