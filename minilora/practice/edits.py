"""Mistakes made from the solution of an exercise by changing a few characters of its source."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .exercise import MARK
from .parts import Function, Part


def edited(part: Part, table: Iterable[Any]) -> None:
    """Add a mistake for each row: its name, what it says of {it}, a question to ask back, and pairs of texts.

    The first text of a pair is replaced by the second everywhere in the learner's part of the file. A mistake raises
    ValueError when it is called, if the first text is not there.
    """
    path = Path(inspect.getfile(part.solution))
    for name, says, asks, *edits in table:
        part.mistake(says, asks)(wrong(name, path, part.name, tuple(edits)))


def wrong(name: str, path: Path, function: str, edits: tuple[tuple[str, str], ...]) -> Function:
    def call(*arguments: Any) -> Any:
        return namespace(path, edits)[function](*arguments)

    call.__name__ = name
    return call


@functools.cache
def namespace(path: Path, edits: tuple[tuple[str, str], ...]) -> dict[str, Any]:
    """The names that the learner's part of the file defines, after the edits."""
    source = path.read_text(encoding="utf-8").partition(MARK)[0]
    for before, after in edits:
        if before not in source:
            raise ValueError(f"{path.name} does not hold {before!r}")
        source = source.replace(before, after)
    space: dict[str, Any] = {}
    exec(compile(source, str(path), "exec"), space)
    return space
