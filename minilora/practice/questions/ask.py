"""Ask questions in the terminal: a question, time to think, the answer, and a grade that learners give themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from ...verify.language import Words, words
from ..progress import FILE
from ..terminal import Events
from ..workspace import NAME, Workspace
from .boxes import graded, order
from .catalogue import Question, topics
from .checks import checks, run_check


def ask_here(folder: str | None, questions: Sequence[Question], console: Any, language: str) -> None:
    """Ask what is due, and record in the folder of exercises what was known."""
    today = date.today()
    try:
        progress = Workspace.found(folder).progress
    except ValueError:
        if folder or any((path / FILE).exists() for path in (Path(NAME), Path())):
            raise
        progress = None

    def keep(question: Question, known: bool) -> None:
        if progress:
            progress.refresh()
            progress.cards[question.key] = graded(progress.cards.get(question.key), known, today)
            progress.save()

    asked = order(questions, progress.cards if progress else {}, today)
    with Events(progress.path.parent if progress else Path()) as events:
        asking = Asking(console, events, language)
        if not progress:
            asking.show(words("What you knew is not kept here: `minilora ex init exercises` makes a folder for it."))
        if not asked:
            asking.show(words("Nothing is due today."))
            return
        known, of = asking.ask(asked, keep)
        if of:
            asking.show(words("{known} of {of} known", known=str(known), of=str(of)))


class Asking:
    """Questions on a terminal. Any key shows the answer; then y says that it was known, n that it was not."""

    def __init__(self, console: Any, events: Events, language: str):
        self.console, self.events, self.language = console, events, language

    def ask(self, questions: Iterable[Question], graded: Callable[[Question, bool], None]) -> tuple[int, int]:
        """Ask until q or the end of the input. Returns how many were known, of how many."""
        known = asked = 0
        for question in questions:
            self.show(heading(question), "bold")
            self.show(question.question)
            self.show(words("any key: the answer · q: quit"), "dim")
            if self.key() in QUIT:
                break
            for part in revealed(question):
                self.show(part)
            self.show(words("Did you know it? y yes · n no · q quit"), "dim")
            key = self.key("yn")
            if key in QUIT:
                break
            asked += 1
            known += key == "y"
            graded(question, key == "y")
        return known, asked

    def show(self, says: Words, style: str = "") -> None:
        from rich.text import Text

        self.console.print(Text(says.in_language(self.language), style))
        self.console.print()

    def key(self, among: str = "") -> str:
        """The next key, one of `among` where that is given; "" at the end of the input."""
        while True:
            event = self.events.next()
            if event.kind == "end":
                return ""
            if event.kind == "key" and (not among or event.value.lower() in {*among, *QUIT}):
                return event.value.lower()


QUIT = ("", "q", "\x04")


def heading(question: Question) -> Words:
    return words(
        "{key} · {topic} · level {level}", key=question.key, topic=topics()[question.topic], level=str(question.level)
    )


def revealed(question: Question) -> list[Words]:
    """The answer, the usual wrong one, what decides, and where to go on."""
    found = [question.answer, words("Usually wrong: {wrong}", wrong=question.wrong)]
    if question.check:
        shows = (checks()[question.check].__doc__ or "").strip()
        found.append(words("Computed now: {numbers}", numbers=f"{run_check(question.check)}\n({shows})"))
    if question.source:
        found.append(words("Source: {source}", source=question.source))
    further = []
    if question.exercise:
        further.append(words("exercise {number}", number=question.exercise))
    if question.notebook:
        further.append(words("notebook {number}", number=question.notebook))
    if further:
        more = further[0] if len(further) == 1 else words("{a}, {b}", a=further[0], b=further[1])
        found.append(words("More: {more}", more=more))
    return found
