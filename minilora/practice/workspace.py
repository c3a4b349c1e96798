"""The folder that a learner works in: one file an exercise, a README, TUTOR.md, progress.json."""

from __future__ import annotations

import re
import time
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..files import write_whole
from .articles.pages import pages as article_pages
from .catalogue import missing, numbers, sheet, twins
from .exercise import Sheet
from .kills import table
from .progress import FILE, Progress
from .questions.pages import pages as question_pages
from .tracks import course, full_path, timetable

PAGES = Path(__file__).parent / "pages"
NAME = "exercises"
CONFTEST = '''"""`pytest` in this folder checks every exercise, one test for each result."""

from minilora.practice.pytest_files import pytest_collect_file
'''


@dataclass
class Workspace:
    """A folder of exercises and what was done in it."""

    folder: Path
    progress: Progress

    @classmethod
    def found(cls, folder: str | None = None) -> Workspace:
        """The given folder, or ./exercises, or the current folder. Raises ValueError where there are no exercises."""
        for path in [Path(folder)] if folder else [Path(NAME), Path()]:
            if (path / FILE).exists() or any((path / f"{name}.py").exists() for name in numbers().values()):
                return cls(path, Progress.of(path))
        where = folder or f"./{NAME} or here"
        raise ValueError(f"there are no exercises in {where}: `minilora ex init {folder or NAME}` writes them")

    def path(self, exercise: Sheet) -> Path:
        return self.folder / f"{exercise.name}.py"

    def order(self) -> list[str]:
        """The exercises to do here, in order: those that have a file or were worked on."""
        path = course() if self.progress.track == "course" else full_path(self.progress.start)
        return list(filter(self.has, path)) or path

    def has(self, number: str) -> bool:
        return number in self.progress.records or self.path(sheet(number)).exists()

    def started(self) -> list[str]:
        """The exercises here, and the twins that can be done, whose file is not as it was handed out."""
        able = [*self.order(), *(number for number in twins() if not missing(number))]
        return [number for number in able if self.text(sheet(number)) not in ("", self.stub(sheet(number)))]

    def stub(self, exercise: Sheet) -> str:
        return exercise.stub(self.progress.language)

    def text(self, exercise: Sheet) -> str:
        """What is in the learner's file; "" where there is none."""
        path = self.path(exercise)
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def reset(self, exercise: Sheet) -> Path | None:
        """Write the stub anew. Returns where the old attempt is kept, if there was one that differs."""
        path, stub = self.path(exercise), exercise.stub(self.progress.language)
        kept = None
        if path.exists() and path.read_bytes() != stub.encode():
            kept = free(self.folder / "attempts" / f"{exercise.name}-{time.strftime('%Y-%m-%d-%H%M%S')}.py")
            kept.parent.mkdir(exist_ok=True)
            kept.write_bytes(path.read_bytes())
        write_whole(path, stub.encode())
        return kept


def free(path: Path) -> Path:
    """The path, or the next one beside it that does not exist."""
    tries = (path.with_stem(f"{path.stem}-{n}") if n else path for n in range(10**6))
    return next(each for each in tries if not each.exists())


def initialise(
    folder: Path, language: str = "en", seed: int = 0, tasks: Iterable[Sheet] | None = None
) -> tuple[list[Path], list[Path]]:
    """Write what is missing in the folder: stubs (default: of all exercises), README.md, TUTOR.md, conftest.py. Returns
    what was written, and what was there already and is left as it was."""
    folder.mkdir(parents=True, exist_ok=True)
    progress = Progress.of(folder)
    fresh = not progress.path.exists()
    written, left = [], []
    for name, text in contents(language if fresh else progress.language, tasks).items():
        path = folder / name
        if path.exists():
            left.append(path)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, text.encode())
            written.append(path)
    if fresh:
        progress.language, progress.seed = language, seed
        progress.save()
        written.append(progress.path)
    return written, left


def contents(language: str = "en", tasks: Iterable[Sheet] | None = None) -> dict[str, str]:
    """{name: text} of everything that a new folder holds, except progress.json. `tasks` are the exercises, by default
    all; only a folder of all has the questions."""
    pages = {path.name: path.read_text(encoding="utf-8") for path in sorted(PAGES.glob("*.md"))}
    pages = {name: text.replace("{kills}", table()).replace("{course}", timetable()) for name, text in pages.items()}
    if tasks is None:
        tasks = map(sheet, numbers())
        pages |= {f"questions/{name}": text for name, text in (question_pages() | article_pages()).items()}
    else:  # some exercises, for a class: no pages of questions, and no paragraph that links to them
        pages["README.md"] = re.sub(r"The interview questions are .*?\n\n", "", pages["README.md"], flags=re.DOTALL)
    stubs = {f"{each.name}.py": each.stub(language) for each in tasks}
    return pages | {"conftest.py": CONFTEST} | stubs


def seed_of(name: str) -> int:
    """A number for a student's name or id: the same for the same name, on every machine."""
    return int(name) if name.isdigit() and len(name) < 10 else zlib.crc32(name.encode()) or 1


def language_of(folder: str | None = None) -> str:
    """The language of the exercises that are found from here; English where there are none."""
    try:
        return Workspace.found(folder).progress.language
    except ValueError:
        return "en"
