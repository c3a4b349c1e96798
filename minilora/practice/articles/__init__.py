"""Five Chinese articles on LoRA, put on trial: 161 statements with their verdicts, and their headings with the
questions of ours that answer them. Articles are paraphrased, never quoted; `places` say where in them a statement is.
"""

from __future__ import annotations

import functools
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...verify.language import Words

HERE = Path(__file__).parent
VERDICTS = ("true", "true if", "false", "muddled", "not about LoRA")


@dataclass(frozen=True)
class Statement:
    """One thing that an article says."""

    key: str  # W1: the letter of its section, and a number
    places: tuple[str, ...]  # 000#1: article 000, question 1; 003 §4.4: its section
    verdict: str  # one of VERDICTS
    says: Words
    right: Words  # what is true instead, or on which condition
    check: str = ""  # of questions/checks/, which decides


@dataclass(frozen=True)
class Heading:
    """A question that an article asks."""

    place: str  # 000#1, 002 Q1, 003 §9.1
    asks: Words
    questions: tuple[str, ...] = ()  # ours, which answer it
    same_as: str = ""  # an earlier heading that asks the same
    opinion: Words | None = None  # why no question of ours answers it


@functools.cache
def tables() -> dict[str, dict[str, Any]]:
    """{letter of a section: its file}."""
    files = sorted((HERE / "statements").glob("*.toml"))
    return {path.stem[0].upper(): tomllib.loads(path.read_text(encoding="utf-8")) for path in files}


def sections() -> dict[str, Words]:
    """{letter: title}."""
    return {letter: Words(**table["title"]) for letter, table in tables().items()}


@functools.cache
def statements() -> dict[str, Statement]:
    """{key: statement}, section by section."""
    rows = {key: row for table in tables().values() for key, row in table.items() if key != "title"}
    return {key: Statement(key, **with_words(row, "says", "right")) for key, row in rows.items()}


@functools.cache
def headings() -> dict[str, Heading]:
    """{place: heading}, article by article."""
    rows = tomllib.loads((HERE / "headings.toml").read_text(encoding="utf-8"))
    return {place: Heading(place, **with_words(row, "asks", "opinion")) for place, row in rows.items()}


def said_at(place: str) -> list[Statement]:
    """What an article says in one place."""
    return [each for each in statements().values() if place in each.places]


def with_words(row: dict[str, Any], *names: str) -> dict[str, Any]:
    """The row of a table, its texts in both languages as Words, its lists as tuples."""
    found = {name: tuple(value) if isinstance(value, list) else value for name, value in row.items()}
    return found | {name: Words(row[name]["en"].strip(), row[name]["zh"].strip()) for name in names if name in row}
