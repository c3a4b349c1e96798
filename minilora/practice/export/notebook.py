"""An exercise as cells of a notebook. A notebook is JSON, and needs no package to be written."""

from __future__ import annotations

import ast
import itertools
import json
import re
import textwrap
from collections.abc import Iterable
from typing import Any, NamedTuple, TypeAlias

from ..exercise import Exercise

Cell: TypeAlias = dict[str, Any]
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


class Setting(NamedTuple):
    """What an export needs to know besides the exercises."""

    language: str = "en"
    seed: int = 0  # of the constants and data that the check draws
    assignment: str = "exercises"
    requirement: str = "minilora"  # what pip installs where submissions are graded


def cell(kind: str, name: str, source: str, **metadata: Any) -> Cell:
    """A markdown or code cell. Its name is its id: a random one would change the bytes of every export."""
    made = {"cell_type": kind, "id": name, "metadata": metadata, "source": source.strip("\n").splitlines(keepends=True)}
    return made | ({"execution_count": None, "outputs": []} if kind == "code" else {})


def notebook(cells: Iterable[Cell], **metadata: Any) -> bytes:
    made = {"cells": list(cells), "metadata": METADATA | metadata, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(made, ensure_ascii=False, indent=1, sort_keys=True).encode() + b"\n"


def code(text: str) -> str:
    """A learner's file without the statement, which is its docstring."""
    return "".join(text.splitlines(keepends=True)[ast.parse(text).body[0].end_lineno :]).strip("\n")


def statement(exercise: Exercise, language: str) -> str:
    """The statement in Markdown; blocks that are laid out in columns become code, which keeps their layout."""
    title, *blocks = exercise.statement(language).split("\n\n")
    parts = [f"# {title}"]
    for columns, group in itertools.groupby(blocks, in_columns):
        text = "\n\n".join(group)
        parts.append(f"```text\n{textwrap.dedent(text)}\n```" if columns else escaped(text))
    return "\n\n".join(parts)


def in_columns(block: str) -> bool:
    return bool(re.search(r"^ |\S {2,}\S", block, re.MULTILINE)) and not re.match(r"\d+\. ", block)


def escaped(text: str) -> str:
    """Markdown that shows these letters as they are, and `names` as code; no space comes between lines of Chinese."""
    text = re.sub(r"(?<=[\u3000-\u9fff\uff00-\uffef])\n(?=[\u3000-\u9fff\uff00-\uffef])", "", text)
    return re.sub(r"`[^`]+`|([*<$\\]|(?<![^\W_])_)", lambda found: f"\\{found[1]}" if found[1] else found[0], text)


def check(exercise: Exercise, setting: Setting) -> str:
    """The call that checks an exercise in a notebook."""
    given = [f'"{exercise.number}"', *(part.name for part in exercise.parts)]
    given += [f'language="{setting.language}"'] if setting.language != "en" else []
    given += [f"seed={setting.seed}"] if setting.seed else []
    return f"check({', '.join(given)})"


def seconds(*tasks: Exercise) -> int:
    """How long a check may take: long enough for a busy server."""
    return max(60, *(int(task.limit) for task in tasks))
