"""The sprint: seven exercises against the clock, and a card at the end instead of a score."""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Iterator
from typing import Any

from ..files import write_whole
from .catalogue import exercise, numbers
from .exercise import Exercise
from .help import any_result
from .progress import Progress, Record
from .questions.ask import Asking
from .questions.catalogue import Question, chosen
from .session import Session
from .terminal import Events
from .tracks import ONE_IS_ENOUGH, SPRINT, full_path
from .worker import Worker
from .workspace import Workspace, free

FLASH = 10  # questions at the end


def prepare(base: Workspace, language: str) -> Workspace:
    """A folder of its own beside the learner's files, with fresh stubs and constants that nobody has seen."""
    folder = free(base.folder / f"sprint-{time.strftime('%Y-%m-%d')}")
    folder.mkdir(parents=True)
    workspace = Workspace(folder, Progress(folder / "progress.json", language, 1 + secrets.randbelow(2**31)))
    for number in SPRINT:
        if number in numbers():
            workspace.reset(exercise(number))
    workspace.progress.save()
    return workspace


class Sprint(Session):
    """The loop over the seven, with a clock that stands still while a check runs."""

    def __init__(self, workspace: Workspace, worker: Worker, console: Any, minutes: float, base: Progress):
        self.base = base  # what was done outside of the sprint
        self.limit, self.started, self.paused = 60 * minutes, time.monotonic(), 0.0
        self.graded: dict[Question, bool] = {}  # the questions of the flash round, and whether each was known
        super().__init__(workspace, worker, console, [number for number in SPRINT if number in numbers()])

    @property
    def left(self) -> float:
        """The seconds that are left."""
        return self.limit - (time.monotonic() - self.started - self.paused)

    def planned(self, number: str) -> int:
        """The minutes planned for an exercise: its share of the limit."""
        return max(round(SPRINT[number] * self.limit / 60 / 90), 1)

    def check(self) -> None:
        begun = time.monotonic()
        super().check()
        self.paused += time.monotonic() - begun
        if self.result and self.current.number in ONE_IS_ENOUGH and self.result.right:
            self.progress.record(self.current.number).state = "passed"
            self.progress.save()

    def handle(self, events: Events) -> bool:
        """One event; False at the end of the time, or when all seven are passed."""
        if self.left <= 0 or all(map(self.progress.passed, self.order)):
            return False
        event = events.next(timeout=min(self.left, 60.0))
        if event.kind == "wait":
            self.show()
            return True
        return self.handled(event, events)

    def twin(self) -> None:
        self.notes = [self.said("There are no twins in a sprint; `minilora ex` has them afterwards.")]

    def solution(self) -> None:
        self.notes = [self.said("There are no solutions in a sprint; `minilora ex solution` has them afterwards.")]

    def show(self) -> None:
        super().show()
        left, of = max(round(self.left / 60), 0), self.planned(self.current.number)
        self.console.print(self.said("{n} minutes left, of them {of} planned for this one", n=str(left), of=str(of)))

    def flash(self, events: Events) -> None:
        """Ask ten questions that many sources answer wrongly; none if the learner quit early."""
        if self.left > 0 and not all(map(self.progress.passed, self.order)):
            return
        self.console.print(self.said("Ten questions that many sources answer wrongly, five minutes:"))
        drawn = random.Random(self.progress.seed).sample(chosen(flash=True), FLASH)
        Asking(self.console, events, self.language).ask(drawn, self.graded.__setitem__)

    def finish(self) -> None:
        """Print the card, and write it beside the files."""
        self.console.print()
        if self.left <= 0:
            self.console.print(self.said("The time is over."))
        text = "\n".join(self.card())
        path = self.workspace.folder / "card.md"
        write_whole(path, (text + "\n").encode())
        self.console.print(text.removeprefix("# "))
        self.console.print(self.said("The card is kept in {file}.", file=str(path)))

    def card(self) -> Iterator[str]:
        """Results right at the first try, mistakes by name, minutes, what to revise and what to do next."""
        records = self.progress.records
        used = (self.limit - self.left) / 60
        yield f"# {self.said('Sprint of {day}', day=time.strftime('%Y-%m-%d'))}"
        yield ""
        yield self.said(
            "{passed} of {n} passed in {minutes} minutes",
            passed=str(sum(map(self.progress.passed, self.order))),
            n=str(len(self.order)),
            minutes=f"{used:.0f}",
        )
        yield ""
        for number in self.order:
            task, record = exercise(number), records.get(number)
            title = f"- {number} {task.said(task.title).in_language(self.language)}{self.said(': ')}"
            if not record or not record.attempts:
                yield title + self.said("not tried")
                continue
            right, n = record.first
            tried = self.said("{right} of {n} right at the first try", right=str(right), n=str(n))
            spent = {"minutes": f"{record.minutes:.0f}", "planned": str(self.planned(number))}
            facts = self.said(record.state), tried, self.said("{minutes} of {planned} minutes", **spent)
            yield title + self.said(", ").join(facts)
            yield from (f"  - {says}" for says in self.mistakes_met(task, record))
        yield ""
        if self.graded:
            total = {"known": str(sum(self.graded.values())), "of": str(len(self.graded))}
            yield self.said("flash round: {known} of {of} known", **total)
            yield ""
        yield self.said("Questions to revise:")
        yield from (f"- {self.said(viva.question)}" for viva in self.to_revise())
        for question, known in self.graded.items():
            if not known:
                yield f"- {question.key} {question.question.in_language(self.language)}"
        yield ""
        yield self.said("Exercises to do next:")
        for number in self.to_do_next():
            task = exercise(number)
            yield f"- {number} {task.said(task.title).in_language(self.language)}"

    def mistakes_met(self, task: Exercise, record: Record) -> Iterator[str]:
        """What was said about each mistake that was made in an exercise, once."""
        for part in task.parts:
            for name, mistake in part.all_mistakes().items():
                if name in record.mistakes:
                    yield mistake.says.filled(it=any_result(part)).in_language(self.language)

    def weakest(self) -> list[str]:
        """The exercises of the sprint, those not passed first, then those with most mistakes."""
        records = {number: self.progress.record(number) for number in self.order}
        return sorted(self.order, key=lambda n: (records[n].state == "passed", -sum(records[n].mistakes.values())))

    def to_revise(self, n: int = 3) -> list[Any]:
        """One question from each of the n exercises that went worst."""
        return [exercise(number).viva[0] for number in self.weakest()[:n]]

    def to_do_next(self, n: int = 2) -> list[str]:
        """n exercises that are not passed: first those that the failed ones need, then the failed ones, then the next
        of the full path."""
        failed = [number for number in self.weakest() if not self.progress.passed(number)]
        before = [need for number in failed for need in exercise(number).needs]
        wanted = dict.fromkeys([*before, *failed, *full_path()])
        return [n for n in wanted if not self.progress.passed(n) and not self.base.passed(n)][:n]
