"""Every exercise, found by its file: exercises()["04"]."""

from __future__ import annotations

import functools
import pkgutil
import re
from dataclasses import replace
from importlib import import_module
from pathlib import Path

from ..spelling import did_you_mean
from . import exercises as room
from .exercise import Exercise


@functools.cache
def numbers() -> dict[str, str]:
    """{number: name of its module}, in order; imports none of them."""
    files = sorted(file.name for file in pkgutil.iter_modules(room.__path__))
    return {name[2:].partition("_")[0]: name for name in files if re.match(r"ex\d\d", name)}


@functools.cache
def exercise(number: str) -> Exercise:
    """The exercise of this number ("04" or "4"), or name. Raises ValueError where there is none."""
    known = numbers()
    names = {name: n for n, name in known.items()}
    wanted = names.get(Path(number).stem, number.zfill(2))
    if wanted not in known:
        raise ValueError(f"there is no exercise {number!r}: {did_you_mean(number, names)}there are {', '.join(known)}")
    module = import_module(f"{room.__name__}.{known[wanted]}")
    return replace(module.EXERCISE, number=wanted, path=Path(str(module.__file__)))


def exercises() -> dict[str, Exercise]:
    """{number: exercise}, all of them."""
    return {number: exercise(number) for number in numbers()}


def chosen(listed: str | None) -> list[Exercise]:
    """Those of "01,04", each once; without such a list all of them. Raises ValueError for one that does not exist."""
    wanted = [exercise(number.strip()) for number in listed.split(",")] if listed else exercises().values()
    return list({task.number: task for task in wanted}.values())
