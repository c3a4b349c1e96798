"""What the terminal shows: a result, the pictures of wrong matrices, the list of exercises."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..verify.language import Words, words
from .catalogue import exercise, is_twin, missing, sheet, twins
from .drawing import colour, drawn, largest, legend, panels
from .exercise import Exercise
from .parts import Picture
from .progress import Record
from .result import Result
from .workspace import Workspace

TWIN_HEADS = ("in PyTorch", "state", "attempts")
HEADS = ("exercise", "kind", "min", "level", "state", "attempts")


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
        mark = Text(f"{line.mark} ", "green" if line.right else "red")
        console.print(Padding(mark + Text(line.says, ""), (0, 0, 0, 2), expand=False))
        if line.asks:
            console.print(Padding(Text(line.asks, "yellow"), (0, 0, 0, 6), expand=False))
    if result.pictures and console.is_terminal:
        console.print(
            Padding(Text(words("p draws what is wrong").in_language(language), "dim"), (0, 0, 0, 2), expand=False)
        )
    if note := result.note(language):
        console.print(Padding(Text(note, "dim"), (0, 0, 0, 2), expand=False))
    if result.printed:
        console.print()
        console.print(Text(words("Your file printed:").in_language(language)))
        console.print(Padding(Text(result.printed), (0, 0, 0, 2), expand=False))


def show_pictures(console: Any, result: Result, language: str) -> None:
    """The true matrix, the learner's and the difference, of each wrong tensor that has a picture."""
    from rich.text import Text

    for picture in result.pictures:
        console.print()
        if console.color_system:
            console.print(in_colour(picture, language))
        else:
            console.print(Text("\n".join(drawn(picture, language))), no_wrap=True)


def in_colour(picture: Picture, language: str) -> Any:
    """The true matrix, the learner's and the difference side by side."""
    from rich.table import Table
    from rich.text import Text

    top = largest(picture)
    found = Table(box=None, title=legend(picture, language), title_justify="left", padding=(0, 2, 0, 2))
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
    """The exercises and twins, and what was done in each, as values for JSON."""
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
