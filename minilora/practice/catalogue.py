"""Every exercise, found by its file: exercises()["04"]. Twins, the same tasks in PyTorch, are exercises()["01t"]."""

from __future__ import annotations

import functools
import importlib.util
import pkgutil
import re
from dataclasses import replace
from importlib import import_module
from pathlib import Path

from ..spelling import did_you_mean
from . import exercises as room
from .exercise import Exercise, Sheet

TWIN = "t"  # at the end of a number


@functools.cache
def numbers() -> dict[str, str]:
    """{number: name of its module}, in order, twins last; imports none of them."""
    files = (file.name for file in pkgutil.iter_modules(room.__path__))
    found = {name[2:].partition("_")[0]: name for name in files if re.match(rf"ex\d\d{TWIN}?_", name)}
    return {number: found[number] for number in sorted(found, key=lambda number: (is_twin(number), number))}


def is_twin(number: str) -> bool:
    return number.endswith(TWIN)


def twins() -> list[str]:
    return [number for number in numbers() if is_twin(number)]


def missing(number: str) -> str:
    """The package that this exercise needs and that is not installed; "" if there is none."""
    return "torch" if is_twin(number) and importlib.util.find_spec("torch") is None else ""


class Missing(ValueError):
    """An exercise needs a package that is not installed."""

    def __init__(self, number: str, package: str):
        super().__init__(f"exercise {number} needs {package}, which is not installed: pip install {package}")


@functools.cache
def sheet(number: str) -> Sheet:
    """What the learner is given in the exercise of this number ("04", "4", "01t"), or name; imports nothing. Raises
    ValueError where there is none."""
    known = numbers()
    names = {name: n for n, name in known.items()}
    wanted = names.get(Path(number).stem, number.zfill(2 + is_twin(number)))
    if wanted not in known:
        raise ValueError(f"there is no exercise {number!r}: {did_you_mean(number, names)}there are {', '.join(known)}")
    return Sheet(wanted, Path(room.__path__[0]) / f"{known[wanted]}.py")


@functools.cache
def exercise(number: str) -> Exercise:
    """The exercise of this number or name. Raises ValueError where there is none, Missing for a twin without torch."""
    found = sheet(number)
    if package := missing(found.number):
        raise Missing(found.number, package)
    module = import_module(f"{room.__name__}.{found.name}")
    return replace(module.EXERCISE, number=found.number, path=found.path)


def exercises() -> dict[str, Exercise]:
    """{number: exercise} of those that can be done here: twins only where torch is installed."""
    return {number: exercise(number) for number in numbers() if not missing(number)}


def chosen(listed: str) -> list[Sheet]:
    """The exercises of a list such as "01,04", each once. Raises ValueError for one that does not exist."""
    return list(dict.fromkeys(sheet(number.strip()) for number in listed.split(",")))
