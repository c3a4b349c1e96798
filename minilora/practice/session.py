"""The loop: one exercise at a time, checked whenever its file is saved."""

from __future__ import annotations

import difflib
import hashlib
import os
import shlex
import subprocess
import time
from collections.abc import Sequence
from typing import Any

from ..verify.language import Words, words
from .catalogue import TWIN, exercise, is_twin, missing, numbers, sheet, twins
from .exercise import Exercise
from .parts import Picture
from .progress import Record
from .result import Result, colour, drawn, largest, panels
from .terminal import Event, Events
from .worker import Worker
from .workspace import Workspace

IDLE = 600.0  # seconds after which the learner is taken to be elsewhere
HEADS = ("exercise", "kind", "min", "level", "state", "attempts")
KEYS = "h hint · l list · n next · t twin · x reset · e editor · s solution · q quit"
TWIN_HEADS = ("in PyTorch", "state", "attempts")


class Session:
    """What is on the screen, and what each key does."""

    def __init__(self, workspace: Workspace, worker: Worker, console: Any, order: Sequence[str] = ()):
        self.workspace, self.worker, self.console = workspace, worker, console
        self.progress = workspace.progress
        self.order = list(order) or workspace.order()
        self.current = exercise(self.next_number(""))
        self.result: Result | None = None
        self.notes: list[str] = []  # below the result, until the file is saved again
        self.checked = ""  # the content that was checked last
        self.since = time.monotonic()
        self.choosing: str | None = None  # the digits typed so far in the list

    # ---- what happens ----

    def run(self, events: Events) -> None:
        """Until q, or the end of the input."""
        self.check()
        self.show()
        while self.handle(events):
            pass

    def handle(self, events: Events) -> bool:
        """Wait for an event. False where it is the last."""
        return self.handled(events.next(), events)

    def handled(self, event: Event, events: Events) -> bool:
        if event.kind == "end" or (event.kind == "key" and event.value in "qQ\x04"):
            return False
        if event.kind == "saved" and event.value == f"{self.current.name}.py":
            self.check()
            self.show()
        elif event.kind == "key":
            self.press(event.value, events)
            if self.choosing is None:
                self.show()
        return True

    def press(self, key: str, events: Events) -> None:
        if self.choosing is not None:
            self.choose(key)
            return
        actions = {"h": self.hint, "n": self.next, "t": self.twin, "x": self.reset, "s": self.solution, "l": self.list}
        if key == "e":
            self.edit(events)
        elif key in actions:
            actions[key]()

    def check(self) -> None:
        """Check the current file. What it takes counts as an attempt if the file is not as it was."""
        path = self.workspace.path(self.current)
        self.result = self.worker.check(self.current.number, path, self.language, self.progress.seed)
        content = hashlib.sha256(path.read_bytes() if path.exists() else b"").hexdigest()
        if content != self.checked:
            now = time.monotonic()
            self.notes = []
            self.progress.add(self.result, min(now - self.since, IDLE) / 60)
            self.progress.save()
            self.checked, self.since = content, now

    def go_to(self, number: str) -> None:
        self.current, self.notes, self.checked, self.since = exercise(number), [], "", time.monotonic()
        self.check()

    def next_number(self, after: str) -> str:
        """The first exercise after this one that is not passed, or before it, or the one after it."""
        place = self.order.index(after) + 1 if after in self.order else 0
        around = self.order[place:] + self.order[:place]
        return next((number for number in around if not self.progress.passed(number)), around[0])

    # ---- the keys ----

    def next(self) -> None:
        self.go_to(self.next_number(self.current.number))

    def twin(self) -> None:
        """To the same task in PyTorch, and back."""
        number = self.current.number
        other = number.removesuffix(TWIN) if is_twin(number) else number + TWIN
        if other not in numbers():
            self.notes = [self.said("{number} has no twin in PyTorch.", number=number)]
        elif package := missing(other):
            self.notes = [needs(package).in_language(self.language)]
        else:
            self.go_to(other)

    def hint(self) -> None:
        self.notes = [next_hint(self.workspace, self.current, self.result).in_language(self.language)]

    def reset(self) -> None:
        kept = self.workspace.reset(self.current)
        self.check()
        self.notes = [self.said("The file is as it was at the start.")]
        self.notes += [self.said("Your attempt is kept in {file}.", file=str(kept))] if kept else []

    def solution(self) -> None:
        self.notes = [solution(self.workspace, self.current, self.language)]

    def edit(self, events: Events) -> None:
        editor = os.environ.get("VISUAL") or os.environ.get("EDITOR")
        path = self.workspace.path(self.current)
        if not editor:
            self.notes = [
                self.said("Set EDITOR to the program that you edit with; the file is {file}.", file=str(path))
            ]
            return
        with events.paused():
            try:
                subprocess.run([*shlex.split(editor), str(path)], check=False)
            except OSError as error:
                self.notes = [f"{editor}: {error.strerror}"]
        self.check()

    def list(self) -> None:
        self.clear()
        self.console.print(table(self.workspace, self.order, self.current.number))
        if any(map(self.workspace.has, twins())):
            self.console.print(table_of_twins(self.workspace, self.current.number))
        self.console.print(self.said("Type the number of an exercise to go to it, or any other key to go back."))
        self.choosing = ""

    def choose(self, key: str) -> None:
        self.choosing = (self.choosing or "") + key
        if not key.isdigit():
            self.choosing = None
        elif len(self.choosing) == 2:
            number, self.choosing = self.choosing, None
            if number in self.order:
                self.go_to(number)

    # ---- the screen ----

    @property
    def language(self) -> str:
        return self.progress.language

    def said(self, sentence: str, **values: str) -> str:
        return words(sentence, **values).in_language(self.language)

    def clear(self) -> None:
        if self.console.is_terminal:
            self.console.clear()
        else:
            self.console.print()

    def show(self) -> None:
        from rich.text import Text

        self.clear()
        path = self.workspace.path(self.current)
        head = Text(
            f"{self.current.number} · {self.current.said(self.current.title).in_language(self.language)}", "bold"
        )
        head.append(f"  {facts(self.current, self.language)}", "not bold dim")
        self.console.print(head)
        self.console.print(Text(str(path), f"link {path.absolute().as_uri()}"))
        self.console.print()
        if self.result:
            show_result(self.console, self.result, self.language)
            if self.result.passed:
                self.console.print(
                    Text(
                        self.said("Passed. Say it aloud: {question}", question=self.said(self.current.viva[0].question))
                    )
                )
            elif self.result.state == "not started":
                self.console.print(self.said("Write it in that file. Each time you save it, it is checked."))
        for note in self.notes:
            self.console.print()
            self.console.print(Text(note))
        self.console.print()
        self.console.print(progress_bar([self.progress.passed(number) for number in self.order]))
        self.console.print(Text(self.said(KEYS), "dim"))


def facts(task: Exercise, language: str) -> str:
    """Kind, minutes, difficulty."""
    minutes = words("{n} min", n=str(task.minutes)).in_language(language)
    return (
        f"{words(task.kind).in_language(language)} · {minutes} · {'●' * task.difficulty}{'○' * (5 - task.difficulty)}"
    )


def show_result(console: Any, result: Result, language: str) -> None:
    """The findings, a line each, with what they ask below."""
    from rich.padding import Padding
    from rich.text import Text

    part = ""
    for line in result.lines(language):
        if len(result.parts) > 1 and line.part != part:
            part = line.part
            console.print(Padding(Text(part, "bold"), (0, 0, 0, 2), expand=False))
        mark = Text("✓ " if line.right else "✗ ", "green" if line.right else "red")
        console.print(Padding(mark + Text(line.says, ""), (0, 0, 0, 2), expand=False))
        if line.asks:
            console.print(Padding(Text(line.asks, "yellow"), (0, 0, 0, 6), expand=False))
    for picture in result.pictures:
        console.print()
        if console.color_system:
            console.print(in_colour(picture, language))
        else:
            console.print(Text("\n".join(drawn(picture, language))), no_wrap=True)
    if note := result.note(language):
        console.print(Padding(Text(note, "dim"), (0, 0, 0, 2), expand=False))
    if result.printed:
        console.print()
        console.print(Text(words("Your file printed:").in_language(language)))
        console.print(Padding(Text(result.printed), (0, 0, 0, 2), expand=False))


def in_colour(picture: Picture, language: str) -> Any:
    """The true matrix, the learner's and the difference side by side."""
    from rich.table import Table
    from rich.text import Text

    top = largest(picture)
    found = Table(box=None, title=picture.tensor, title_justify="left", padding=(0, 2, 0, 2))
    matrices = []
    for name, matrix in panels(picture).items():
        found.add_column(words(name).in_language(language))
        rows = (Text.assemble(*(("  ", "on rgb({},{},{})".format(*colour(v / top))) for v in row)) for row in matrix)
        matrices.append(Text("\n").join(rows))
    found.add_row(*matrices)
    return found


def progress_bar(done: Sequence[bool], width: int = 30) -> str:
    full = round(width * sum(done) / max(len(done), 1))
    return f"{'▓' * full}{'░' * (width - full)} {sum(done)}/{len(done)}"


def table(workspace: Workspace, order: Sequence[str], current: str = "") -> Any:
    """The exercises in order, and what was done in each."""
    from ..display.tables import numbers_right

    language, progress = workspace.progress.language, workspace.progress
    heads = [words(head).in_language(language) for head in HEADS]
    found = numbers_right("", "", *heads, words=(0, 1, 2, 5), box=None)
    for number in order:
        task, record = exercise(number), progress.records.get(number)
        state = words(record.state if record else "not started").in_language(language)
        title = f"{number} {task.said(task.title).in_language(language)}"
        mark = "▶" if number == current else "✓" if progress.passed(number) else ""
        attempts = str(record.attempts) if record and record.attempts else ""
        facts = words(task.kind).in_language(language), str(task.minutes), str(task.difficulty)
        found.add_row(mark, title, *facts, state, attempts)
    return found


def table_of_twins(workspace: Workspace, current: str = "") -> Any:
    """The twins and what was done in each, and what they need where it is not installed; imports none of them."""
    from ..display.tables import numbers_right

    language, progress = workspace.progress.language, workspace.progress
    lacks = next(filter(None, map(missing, twins())), "")
    heads = [words(head).in_language(language) for head in TWIN_HEADS]
    caption = needs(lacks).in_language(language) if lacks else None
    found = numbers_right("", "", *heads, words=(0, 1, 2), box=None, caption=caption, caption_justify="left")
    for number in filter(workspace.has, twins()):
        record = progress.records.get(number, Record())
        mark = "▶" if number == current else "✓" if progress.passed(number) else ""
        state = words(record.state).in_language(language)
        found.add_row(mark, f"{number} {sheet(number).heading(language)}", state, str(record.attempts or ""))
    return found


def needs(package: str) -> Words:
    return words("Twins need {package}, which is not installed: pip install {package}", package=package)


def listed(workspace: Workspace, order: Sequence[str]) -> list[dict[str, Any]]:
    """The same for other programs."""
    found = []
    for number in (*order, *filter(workspace.has, twins())):
        each, record = sheet(number), workspace.progress.records.get(number, Record())
        row: dict[str, Any] = {"exercise": number, "name": each.name}
        row["title"] = {language: each.heading(language) for language in Words._fields}
        if is_twin(number):
            row["lacks"] = missing(number) or None  # the package that it needs and that is not installed
        else:
            task = exercise(number)
            row |= {"kind": task.kind, "minutes": task.minutes, "difficulty": task.difficulty, "needs": [*task.needs]}
        found.append(row | {"state": record.state, "attempts": record.attempts, "mistakes": record.mistakes})
    return found


def first_exercise(workspace: Workspace, console: Any, events: Events) -> None:
    """Ask once, in a terminal, whether to begin with a backward or with LoRA."""
    progress = workspace.progress
    if progress.start:
        return
    progress.start = "03"
    if console.is_terminal and events.single:
        question = "Do you know backpropagation through a linear layer well? y: begin with LoRA, n: begin with that."
        console.print(words(question).in_language(progress.language))
        event = events.next()
        while event.kind == "saved":
            event = events.next()
        progress.start = "01" if event.value in ("y", "Y") else "03"
    progress.save()


def next_hint(workspace: Workspace, task: Exercise, result: Result | None = None) -> Words:
    """The next hint of an exercise: the two hints, and after a wrong attempt the mistakes that people make in it."""
    progress = workspace.progress
    record = progress.record(task.number)
    hints = [task.said(hint) for hint in task.hints]
    if progress.failed_before(task.number):
        hints.append(common_mistakes(task))
    n = record.hints % len(hints)
    record.hints += 1
    progress.save()
    return words("hint {n} of {all}: {hint}", n=str(n + 1), all=str(len(hints)), hint=hints[n])


def common_mistakes(task: Exercise) -> Words:
    """What people get wrong in it, without which of them the learner has made."""
    lines = [words("mistakes that people make here:")]
    for part in task.parts:
        lines += [mistake.says.filled(it=part.name) for mistake in part.all_mistakes().values()]
    return Words("\n  - ".join(line.en for line in lines), "\n  - ".join(line.zh for line in lines))


def solution(workspace: Workspace, task: Exercise, language: str, spoil: bool = False) -> str:
    """The solution, its derivation, and the difference of the learner's file to it; after passing, or with `spoil`."""
    if not spoil and not workspace.progress.passed(task.number):
        return words(
            "The solution is shown when the exercise is passed, or by `minilora ex solution {number} --spoil`.",
            number=task.number,
        ).in_language(language)
    solved, path = task.solution(language), workspace.path(task)
    mine = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    parts = [body(solved)]
    if text := derivation(task):
        parts.append(
            words("The derivation (minilora/ops/{name}.py):", name=task.derivation).in_language(language)
            + "\n\n"
            + text
        )
    changes = difflib.unified_diff(
        body(mine).splitlines(), body(solved).splitlines(), path.name, "solution", lineterm=""
    )
    if mine and (listed := "\n".join(changes)):
        parts.append(words("From yours to the solution:").in_language(language) + "\n\n" + listed)
    return "\n\n".join(parts)


def body(source: str) -> str:
    """A file of the learner without its statement."""
    import ast

    try:
        first = ast.parse(source).body[0]
    except (SyntaxError, ValueError, IndexError):
        return source.strip()
    is_text = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    return "\n".join(source.splitlines()[first.end_lineno if is_text else 0 :]).strip()


def derivation(task: Exercise) -> str:
    """The docstring of the op that derives it."""
    from importlib import import_module

    return (import_module(f"minilora.ops.{task.derivation}").__doc__ or "").strip() if task.derivation else ""
