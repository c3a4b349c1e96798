"""A week of LoRA for a teacher who replaces a week of a course: slides, lab, problem set, rubric, oral questions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from ...files import check_free, write_folder
from ...verify.language import Words, words
from ..catalogue import exercise, numbers
from ..exercise import Exercise
from ..progress import FILE, Progress
from ..tracks import WEEK
from ..workspace import contents
from .nbgrader import config, source
from .notebook import Setting
from .slides import headings, need_nbconvert, slides

CLONE = Path(__file__).parents[3]


class Pack(NamedTuple):
    """What a pack is made of, by number. The notebooks that are not lectures are for reading."""

    title: str
    notebooks: tuple[str, ...]
    lectures: tuple[str, ...]  # of 75 minutes
    lab: tuple[str, ...]  # of three hours
    problems: tuple[str, ...]


PACKS = {
    "lora-week": Pack(
        title="A week of LoRA",
        notebooks=tuple(dict.fromkeys(number for day in WEEK for number in day.notebooks)),
        lectures=("04", "06"),
        lab=("01", "02", "04", "10", "28"),
        problems=("05", "07", "19"),
    )
}


def write(name: str, path: str | Path, setting: Setting) -> list[str]:
    """Write the pack into a new folder. Returns what the pack lists but this version lacks, as "exercise 28".

    Raises ValueError for an unknown name, a folder that holds anything already, or a package without its notebooks.
    """
    if name not in PACKS:
        raise ValueError(f"there is no pack {name!r}: choose from {', '.join(PACKS)}")
    pack = PACKS[name]
    check_free(path)
    if not (CLONE / "notebooks").is_dir():
        raise ValueError(
            f"the slides are made from notebooks/, which is not beside the package in {CLONE}: clone the repository, "
            "and run this command there after pip install -e '.[notebooks]'"
        )
    need_nbconvert()
    books = {number: file for number in pack.notebooks for file in (CLONE / "notebooks").glob(f"{number}_*.ipynb")}
    lab, problems = ([exercise(n) for n in wanted if n in numbers()] for wanted in (pack.lab, pack.problems))
    absent = [f"notebook {number}" for number in pack.notebooks if number not in books]
    absent += [f"exercise {number}" for number in sorted(pack.lab + pack.problems) if number not in numbers()]
    texts = {
        "README.md": readme(pack, books, lab, problems, absent),
        "rubric.md": rubric([*lab, *problems]),
        "viva.md": viva([*lab, *problems]),
        "LICENSE": (CLONE / "LICENSE").read_text(encoding="utf-8"),
        "nbgrader/nbgrader_config.py": config([*lab, *problems]),
    }
    files = {file: text.encode() for file, text in texts.items()}
    files |= {f"slides/{file.stem}.html": slides(file) for file in books.values()}
    for folder, tasks in (("lab", lab), ("problem-set", problems)):
        files |= {f"{folder}/{file}": text.encode() for file, text in contents(setting.language, tasks).items()}
        progress = Progress(Path(FILE), setting.language, setting.seed)
        files[f"{folder}/{FILE}"] = progress.content()
        notebooks = source(tasks, setting._replace(assignment=folder))
        files |= {f"nbgrader/{file}": content for file, content in notebooks.items()}
    write_folder(path, files)
    return absent


def readme(
    pack: Pack, books: dict[str, Path], lab: Sequence[Exercise], problems: Sequence[Exercise], absent: Sequence[str]
) -> str:
    """The plan of the week."""
    return f"""# {pack.title}

For a course that has a week to spare for LoRA. Students need Python 3.11 and `pip install` of minilora; two cores are
enough, and nothing asks for a GPU, an account or a network. They should know backpropagation through a linear layer.

| when | what | minutes |
|---|---|---:|
{plan(pack, books)}
| lab | {", ".join(task.number for task in lab)}, then a question or two of [viva.md](viva.md) each | 180 |
| problem set | {", ".join(task.number for task in problems)}, for the week after | {minutes(problems)} |
{missing(absent)}
## Lectures

The slides are the notebooks, one HTML file each that needs no network: arrow keys and space turn pages, `#7` at the end
of the address opens the seventh, `n` shows the speaker's notes, printing gives one page per slide. Long code is
folded away beside its result; a click opens it. Each notebook runs in a minute on two cores, if you would rather run
it live.

{outlines(pack, books)}
## Lab: {minutes(lab)} of 180 minutes, the rest is for questions

{listed(lab)}
## Problem set

{listed(problems)}
`lab/` and `problem-set/` hold the files that students edit, and a README that tells them how. `minilora ex check 04`
in one of them names what is wrong; so do `pytest lab` and `minilora ex --dir lab`, which checks at every save.
`nbgrader/` holds the same as notebooks, with solutions: `cd nbgrader && nbgrader generate_assignment lab`.

[rubric.md](rubric.md) says what the points are for, [viva.md](viva.md) what to ask, with a good and a bad answer, in
English and Chinese. Solutions: `minilora ex solution 04 --spoil`.

MIT licence ([LICENSE](LICENSE)): use, change and hand on all of this, and keep the notice.
"""


def missing(absent: Sequence[str]) -> str:
    return f"\nNot in this version yet: {', '.join(absent)}.\n" if absent else ""


def plan(pack: Pack, books: dict[str, Path]) -> str:
    def row(number: str, when: str, length: str) -> str:
        book = books.get(number)
        what = f"[{headings(book)[0]}](slides/{book.stem}.html)" if book else f"notebook {number}, not here yet"
        return f"| {when} | {what} | {length} |"

    rows = [row(number, f"lecture {i}", "75") for i, number in enumerate(pack.lectures, 1)]
    others = [number for number in pack.notebooks if number not in pack.lectures]
    before = [row(number, "to read before", "60") for number in others if number < pack.lectures[0]]
    return "\n".join([*before, *rows, *(row(n, "to read after", "60") for n in others if n > pack.lectures[0])])


def outlines(pack: Pack, books: dict[str, Path]) -> str:
    text = ""
    for title, *sections in (headings(books[number]) for number in pack.lectures if number in books):
        text += f"{title}\n\n" + "".join(f"- {section}\n" for section in sections) + "\n"
    return text


def listed(tasks: Iterable[Exercise]) -> str:
    return "".join(
        f"- **{task.number} {task.title}**: {task.kind}, {task.minutes} minutes, difficulty {task.difficulty} of 5\n"
        for task in tasks
    )


def minutes(tasks: Iterable[Exercise]) -> int:
    return sum(task.minutes for task in tasks)


def rubric(tasks: Sequence[Exercise]) -> str:
    """What each point is for."""
    numbers = ",".join(task.number for task in tasks)
    text = f"""# Rubric

One point for each result: {sum(task.asked for task in tasks)} in all. The check computes in float64, at six sets of
random inputs where there are inputs. A result is right if it agrees with the true value to rounding on every one, or is
the right word or number; nothing is given for being near. Some exercises have rules, things that numbers do not show,
such as a matrix that must not be formed: a broken one costs a point. Style is yours to grade.

Give each student constants and data of their own with a name or an id, the same in both places:

    minilora ex init work --exercises {numbers} --seed ab123    # the student
    minilora ex check 04 --file ab123/ex04_lora_backward.py --seed ab123    # you; --json for a program

A right solution is right for every seed. The points show that the file is right, not who wrote it: two minutes of
[viva.md](viva.md) do.
"""
    for task in tasks:
        text += f"\n## {task.number} {task.title}: {points(task.asked)}\n\n"
        text += f"{task.kind.capitalize()}, {task.minutes} minutes, difficulty {task.difficulty} of 5.\n"
        for part in task.parts:
            results = part.tensors or [part.name]
            text += (
                f"\n`{part.name}`: {points(len(results))}, for {', '.join(results)}. Rejected and called by name:\n\n"
            )
            mistakes = dict.fromkeys(mistake.says.filled(it="it").en for mistake in part.all_mistakes().values())
            text += "".join(f"- {says}\n" for says in mistakes)
    return text


def points(n: int) -> str:
    return f"{n} point{'s' * (n != 1)}"


def viva(tasks: Iterable[Exercise]) -> str:
    """Two questions of each exercise, in both languages."""
    intro = words("Ask one of two, with the student's own file on the screen: two minutes show who can explain it.")
    text = "\n\n".join(["# Two questions per exercise", *intro]) + "\n"
    for task in tasks:
        text += f"\n## {task.number} {' · '.join(task.said(task.title))}\n"
        for question in task.viva:
            asked, good, bad = map(task.said, question)
            answers = words("good: {answer}", answer=good), words("bad: {answer}", answer=bad)
            for language in Words._fields:
                first, second = (answer.in_language(language) for answer in answers)
                text += f"\n**{asked.in_language(language)}**\n\n- {first}\n- {second}\n"
    return text
