"""An exercise: one file in exercises/, which holds what the learner edits and, below a mark, how it is checked.

Above the line `### THE CHECK` is the learner's file: the statement as its docstring, imports, and functions whose
solution is between `### BEGIN SOLUTION` and `### END SOLUTION`. Lines after it that begin with `#|` are handed out
instead of the solution; without any, that is `raise NotImplementedError`, and outside of a function nothing. Below the
mark, EXERCISE holds the rest. The Chinese is in files of the same name: the statement in *.zh.md, every other sentence
in *.zh.json.

A twin is the same task in PyTorch, in a file of its own: ex01t_*.py. What the learner edits is known from the file
alone (a Sheet); the rest takes an import of it, for which torch must be installed.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ..verify.language import Words, words
from .parts import Part

MARK = "### THE CHECK"
SOLUTION = re.compile(
    r"^( *)### BEGIN SOLUTION\n(.*?)^ *### END SOLUTION\n((?: *#\|[^\n]*\n)*)", re.DOTALL | re.MULTILINE
)
KINDS = ("write", "write the test", "repair", "predict, then run", "build")


class Viva(NamedTuple):
    """A question for two minutes of talk, with what a good and a bad answer sound like."""

    question: str
    good: str
    bad: str


@dataclass(frozen=True)
class Sheet:
    """What the learner is given: known from the file of an exercise, without importing it."""

    number: str = ""
    path: Path = Path()

    @property
    def name(self) -> str:
        """ex04_lora_backward"""
        return self.path.stem

    @property
    def source(self) -> str:
        """The learner's file with the solution in it, and the marks around it."""
        return self.path.read_text(encoding="utf-8").partition(MARK)[0].rstrip() + "\n"

    def statement(self, language: str = "en") -> str:
        """One page: the forward equation, shapes, a number worked by hand."""
        if language == "zh":
            return self.path.with_suffix(".zh.md").read_text(encoding="utf-8").strip()
        return ast.get_docstring(ast.parse(self.source)) or ""

    def heading(self, language: str = "en") -> str:
        """The title, as the statement has it."""
        return self.statement(language).partition("\n")[0].partition(" · ")[2]

    def stub(self, language: str = "en") -> str:
        """The learner's file as it is handed out."""
        return re.sub(r"\n{4,}", "\n\n\n", SOLUTION.sub(in_its_place, self.translated(language)))

    def solution(self, language: str = "en") -> str:
        """The learner's file with the solution."""
        return SOLUTION.sub(r"\2", self.translated(language))

    def translated(self, language: str) -> str:
        """The source with the statement in this language as its docstring."""
        if language == "en":
            return self.source
        end = ast.parse(self.source).body[0].end_lineno
        rest = "".join(self.source.splitlines(keepends=True)[end:])
        return f'"""{self.statement(language)}\n"""\n{rest}'


@dataclass(frozen=True, kw_only=True)
class Exercise(Sheet):
    """A whole exercise: the Sheet, how it is graded, hints and questions. `number` and `path` are set by its file."""

    title: str
    kind: str  # one of KINDS
    minutes: int
    difficulty: int  # 1 to 5
    parts: Sequence[Part]  # each function that the learner writes, and how it is graded
    hints: tuple[str, str]
    viva: Sequence[Viva]
    needs: Sequence[str] = ()  # numbers of exercises to do before
    asks: Sequence[str] = ()  # keys of the interview questions that it answers
    may_import: Sequence[str] = ()  # packages that the check refuses in other exercises: torch in a twin
    derivation: str = ""  # the module of ops/ whose docstring derives it
    limit: float = 0.0  # seconds that a check may take, where that is more than others have (worker.py)

    @property
    def asked(self) -> int:
        """How many results of its functions are graded in all."""
        return sum(len(part.results) or 1 for part in self.parts)

    def tensors(self, part: str) -> list[str]:
        """The names of the results that are graded of one of its functions."""
        return next(each.results for each in self.parts if each.name == part)

    def said(self, sentence: str) -> Words:
        """A title, hint or answer in both languages."""
        return words(sentence)


def in_its_place(found: re.Match[str]) -> str:
    """What the learner finds instead of a solution."""
    indent, given = found[1], found[3]
    if given:
        return re.sub(r"^( *)#\| ?", r"\1", given, flags=re.MULTILINE)
    return f"{indent}raise NotImplementedError\n" if indent else ""
