"""The checks behind the answers: each function of a file here computes something, asserts what an answer says of it,
and returns the numbers in a line. Several questions may point at one."""

from __future__ import annotations

import functools
import pkgutil
from collections.abc import Callable
from importlib import import_module
from inspect import getmembers, isfunction

from ....process import blas_threads

Check = Callable[[], str]


@functools.cache
def checks() -> dict[str, Check]:
    """{name: function}, of all files here."""
    modules = [import_module(f"{__name__}.{file.name}") for file in pkgutil.iter_modules(__path__)]
    return {
        name: function
        for module in modules
        for name, function in getmembers(module, isfunction)
        if function.__module__ == module.__name__ and not name.startswith("_")
    }


@blas_threads()
def run_check(name: str) -> str:
    """What a check has measured, in a line. Raises AssertionError where an answer is wrong."""
    return checks()[name]()
