"""The files of the JupyterLite site: python docs/site/lite.py OUT

A notebook stands at the path of the page that it is on the web site: course/04_lora_backward.ipynb,
exercises/zh/ex04_lora_backward.ipynb, guide/gradients.ipynb.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from doctest import DocTestParser
from pathlib import Path

from minilora.files import write_files
from minilora.practice.catalogue import exercise
from minilora.practice.export.notebook import Cell, Setting, cell, check, code, notebook, statement
from minilora.practice.tracks import full_path

ROOT = Path(__file__).resolve().parents[2]
COURSE = ("00_lora_in_40_lines", "01_gradients_you_can_trust", "04_lora_backward", "07_counting")

# The kernel gets minilora from the wheel that the site holds, and what that needs from Pyodide.
INSTALL = cell("code", "install", "# In a browser, run this cell first.\n%pip install -q minilora")
START = (
    "# minilora in the browser\n\nOpen a notebook and run its cells from the top. What you write stays in this browser."
)


def notebooks() -> dict[str, list[Cell]]:
    """{page: cells} of every page that a browser can run."""
    made = {f"course/{name}": of_course(name) for name in COURSE}
    for language in ("en", "zh"):
        for number in full_path():
            made[f"exercises/{language}/{exercise(number).name}"] = list(of_exercise(number, language))
    made["guide/gradients"] = list(of_page((ROOT / "docs/gradients.md").read_text(encoding="utf-8")))
    return made


def of_course(name: str) -> list[Cell]:
    """The cells of a notebook of the course, with the outputs that are stored."""
    return json.loads((ROOT / f"notebooks/{name}.ipynb").read_text(encoding="utf-8"))["cells"]


def of_exercise(number: str, language: str) -> Iterator[Cell]:
    """The statement, what the learner edits, and the check."""
    task = exercise(number)
    yield cell("markdown", "statement", statement(task, language))
    yield cell("code", "answer", code(task.stub(language)))
    yield cell("code", "check", f"from minilora.practice import check\n\n{check(task, Setting(language))}")


def of_page(text: str) -> Iterator[Cell]:
    """A page of docs/. A cell of code ends where the page shows a result; the page's links lead nowhere here."""
    for i, part in enumerate(re.split(r"^```python\n(.*?)^```\n", text, flags=re.DOTALL | re.MULTILINE)):
        if i % 2 == 0:
            yield cell("markdown", f"text-{i}", re.sub(r"\[([^]]+)\]\([^)]+\)", r"\1", part))
            continue
        lines = ""
        for example in DocTestParser().get_examples(part):
            lines += example.source
            if example.want:
                yield cell("code", f"code-{i}-{example.lineno}", lines)
                lines = ""


def title(cells: list[Cell]) -> str:
    return "".join(cells[0]["source"]).partition("\n")[0].removeprefix("# ")


def files() -> dict[str, bytes]:
    """{path: content} of the notebooks, a first one that links to them, and what those of the course read."""
    made = notebooks()
    links = "\n".join(f"- [{title(cells)}]({page}.ipynb)" for page, cells in made.items())
    there = {"start.ipynb": notebook([cell("markdown", "links", f"{START}\n\n{links}")])}
    there |= {f"{page}.ipynb": notebook([INSTALL, *cells]) for page, cells in made.items()}
    course = ROOT / "notebooks"
    read = [course / "record.py", course / "adapting.py", *course.glob("grids/*.json")]
    return there | {f"course/{path.relative_to(course).as_posix()}": path.read_bytes() for path in read}


if __name__ == "__main__":
    write_files(Path(sys.argv[1]), files())
