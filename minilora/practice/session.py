"""The loop: one exercise at a time, checked whenever its file is saved."""

from __future__ import annotations

import os
import shlex
import subprocess
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

from ..verify.language import words
from .catalogue import TWIN, exercise, is_twin, missing, numbers, twins
from .help import next_hint, solution
from .result import Result
from .screen import facts, needs, progress_bar, show_pictures, show_result, table, table_of_twins
from .terminal import Event, Events
from .worker import Worker
from .workspace import Workspace

IDLE = 600.0  # seconds after which the learner is taken to be elsewhere
KEYS = "h hint · l list · n next · t twin · x reset · e editor · p picture · s solution · q quit"


class Session:
    """What is on the screen, and what each key does."""

    def __init__(self, workspace: Workspace, worker: Worker, console: Any, order: Sequence[str] = ()):
        self.workspace, self.worker, self.console = workspace, worker, console
        self.progress = workspace.progress
        self.order = list(order) or workspace.order()
        self.current = exercise(self.next_number(""))
        self.result: Result | None = None
        self.notes: list[str] = []  # below the result, until the file is saved again
        self.since = time.monotonic()
        self.drawn = False  # whether to show pictures this time
        self.choosing: str | None = None  # the digits typed so far in the list

    # ---- what happens ----

    def run(self, events: Events) -> None:
        """Handle events until q, or the end of the input."""
        self.check()
        self.show()
        while self.handle(events):
            pass
        self.spend()

    def handle(self, events: Events) -> bool:
        """Wait for an event and handle it. False if it was the last."""
        return self.handled(events.next(), events)

    def handled(self, event: Event, events: Events) -> bool:
        quits = event.kind == "key" and event.value in "qQ\x04" and self.choosing is None
        if event.kind == "end" or quits:
            return False
        if event.kind == "saved":
            self.choosing = None
        if event.kind == "saved" and event.value == f"{self.current.name}.py":
            self.check()
            self.show()
        elif event.kind == "saved":
            self.saved_another(event.value)
        elif event.kind == "key" and self.press(event.value, events) and self.choosing is None:
            self.show()
        return True

    def saved_another(self, file: str) -> None:
        """Say how to go to the exercise whose file it is."""
        number = next((number for number, name in numbers().items() if f"{name}.py" == file), "")
        if number in self.order:
            self.notes = [self.said("You saved {number}; l {number} and Enter goes there.", number=number)]
            self.show()

    def press(self, key: str, events: Events) -> bool:
        """What a key does. False where it does nothing."""
        if self.choosing is not None:
            self.choose(key)
            return True
        actions = {"h": self.hint, "n": self.next, "x": self.reset, "s": self.solution, "l": self.list}
        actions |= {"p": self.picture, "t": self.twin}
        actions["e"] = partial(self.edit, events)
        if key in actions:
            actions[key]()
        return key in actions

    def check(self) -> None:
        """Check the current file. It counts as an attempt if the file has changed since the last check."""
        path = self.workspace.path(self.current)
        content = self.workspace.text(self.current)
        if self.console.is_terminal:
            self.console.print(self.said("checking ..."))
        self.result = self.worker.check(self.current.number, path, self.language, self.progress.seed)
        self.spend()
        self.notes = []
        self.progress.add(self.result, content)
        self.progress.save()

    def spend(self) -> None:
        """Count the time since the last event for the current exercise."""
        now = time.monotonic()
        self.progress.refresh()
        self.progress.spend(self.current.number, min(now - self.since, IDLE) / 60)
        self.progress.save()
        self.since = now

    def go_to(self, number: str) -> None:
        self.spend()
        self.current, self.notes = exercise(number), []
        self.check()

    def next_number(self, after: str) -> str:
        """The first exercise that is not passed, from the one after this on and then from the start; if all are passed,
        the one after this."""
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
        self.notes = [next_hint(self.workspace, self.current).in_language(self.language)]

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
        self.console.print(
            self.said("Type the number of an exercise and Enter to go to it, or any other key to go back.")
        )
        self.choosing = ""

    def choose(self, key: str) -> None:
        """A digit of a number, Enter after it, or any other key to go back."""
        typed = self.choosing or ""
        if (key.isdigit() and len(typed) < 2) or (key == TWIN and typed and not is_twin(typed)):
            self.choosing = typed + key
            self.console.print(key, end="")
            return
        self.choosing = None
        number = typed.zfill(3 if is_twin(typed) else 2)
        if key in "\r\n" and (number in self.order or (number in twins() and not missing(number))):
            self.go_to(number)
        elif key in "\r\n" and typed:
            self.notes = [self.said("There is no exercise {number} here.", number=typed)]

    def picture(self) -> None:
        """The wrong matrices in place of the notes."""
        self.drawn = bool(self.result and self.result.pictures)
        self.notes = [] if self.drawn else [self.said("There is nothing to draw here.")]

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
        self.console.print(Text(str(path)))
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
        if self.drawn and self.result:
            show_pictures(self.console, self.result, self.language)
            self.drawn = False
        for note in self.notes:
            self.console.print()
            self.console.print(Text(note))
        self.console.print()
        self.console.print(progress_bar([self.progress.passed(number) for number in self.order]))
        self.console.print(Text(self.said(KEYS), "dim"))


def first_exercise(workspace: Workspace, console: Any, events: Events) -> None:
    """Ask once, in a terminal, whether to begin with a backward or with LoRA."""
    progress = workspace.progress
    if progress.start:
        return
    progress.start = "03"
    if console.is_terminal and events.single:
        question = "Do you know the backward of a linear layer? y: go straight to LoRA; n: begin with it [n]"
        console.print(words(question).in_language(progress.language))
        event = events.next()
        while event.kind == "saved":
            event = events.next()
        progress.start = "01" if event.value in ("y", "Y") else "03"
    progress.save()
