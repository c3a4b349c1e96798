"""Every question, read from the files of the topics."""

from __future__ import annotations

import functools
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...verify.language import Words

KINDS = ("code", "run", "talk")  # write it, decided by a run, or by a source


@dataclass(frozen=True)
class Question:
    """A question with its answer, and the answer that is usually given and is wrong."""

    key: str  # B1: the letter of its topic, and a number
    kind: str  # one of KINDS
    level: int  # 1 to 4
    question: Words
    answer: Words
    wrong: Words  # the usual wrong answer, and why it is wrong
    often_wrong: bool = False  # many sources answer it wrongly: a question of the flash round
    check: str = ""  # the function in checks/ that decides
    source: str = ""  # author and year, for what no run decides
    exercise: str = ""
    notebook: str = ""

    @property
    def topic(self) -> str:
        return self.key[0]


@functools.cache
def tables() -> dict[str, dict[str, Any]]:
    """{letter of a topic: its file}."""
    files = sorted(Path(__file__).parent.glob("*.toml"))
    return {path.stem[0].upper(): tomllib.loads(path.read_text(encoding="utf-8")) for path in files}


def topics() -> dict[str, Words]:
    """{letter: title}."""
    return {letter: Words(**table["title"]) for letter, table in tables().items()}


@functools.cache
def questions() -> dict[str, Question]:
    """{key: question}, in order."""
    return {key: read(key, value) for table in tables().values() for key, value in table.items() if key != "title"}


def read(key: str, given: dict[str, Any]) -> Question:
    texts = {
        name: Words(given[name]["en"].strip(), given[name]["zh"].strip()) for name in ("question", "answer", "wrong")
    }
    return Question(key, **(given | texts))


def chosen(topic: str = "", level: int = 0, flash: bool = False) -> list[Question]:
    """The questions of a topic and a level, "" and 0 for all; with `flash`, only those that are often answered wrongly.
    Raises ValueError for a topic that does not exist, or if there are no such questions."""
    if topic and topic.upper() not in topics():
        listed = "; ".join(f"{letter} {title.en}" for letter, title in topics().items())
        raise ValueError(f"there is no topic {topic!r}: choose from {listed}")
    found = [
        each
        for each in questions().values()
        if topic.upper() in ("", each.topic) and level in (0, each.level) and (each.often_wrong or not flash)
    ]
    if not found:
        raise ValueError(f"there is no such question: {topic.upper()} has none of level {level}")
    return found
