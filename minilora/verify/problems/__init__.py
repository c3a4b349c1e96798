"""The library's problems: one file per op, with its textbook gradient and the mistakes that people make in it."""

from __future__ import annotations

import functools
import pkgutil
from dataclasses import replace
from importlib import import_module
from types import ModuleType

from ..faults import common_faults
from ..op import Op
from ..problem import Problem


def files() -> list[ModuleType]:
    return [import_module(f".{file.name}", __name__) for file in pkgutil.iter_modules(__path__)]


@functools.cache
def problems() -> dict[str, Problem]:
    """{name: problem} of the whole library. A problem's own fault replaces a common one of the same name."""
    found = [value for file in files() for value in vars(file).values() if isinstance(value, Problem)]
    return {p.name: replace(p, faults=common_faults(p) | p.faults) for p in found}


def op_cases() -> dict[str, Op]:
    """{name: op} from the files that define OPS: the functions of ops/ that their problems are about."""
    return {name: op for file in files() for name, op in getattr(file, "OPS", {}).items()}


def signatures(only: str = "") -> str:
    """The problems whose name or alias contains `only`, exact matches first: print(signatures("lora")).

    For each: the arguments of its gradient with their shapes, the formula of its forward, and the other forms in which
    the gradient may come. Raises ValueError if there is none.
    """
    wanted = only.casefold()
    found = [
        "\n    ".join(filter(None, [problem.signature(), problem.formula, problem.optional]))
        for problem in sorted(problems().values(), key=lambda problem: wanted not in (problem.name, *problem.aliases))
        if any(wanted in name for name in (problem.name, *problem.aliases))
    ]
    if not found:
        raise ValueError(f"no problem has {only!r} in its name; there are: {', '.join(problems())}")
    return "\n".join(found)
