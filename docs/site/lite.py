"""The notebooks of the JupyterLite site, each at the path of its page on the site, and the files that they read.

    python docs/site/lite.py OUT
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable
from doctest import DocTestParser
from pathlib import Path

from minilora.files import write_files
from minilora.practice import exercise
from minilora.practice.export.notebook import Cell, Setting, cell, check, code, notebook, statement

ROOT = Path(__file__).resolve().parents[2]
COURSE = ("00_lora_in_40_lines", "01_gradients_you_can_trust", "04_lora_backward")
EXERCISES = ("01", "02", "03", "04", "05")

# The kernel has Pyodide's packages. It loads minilora from the wheel beside the site, and what that needs from Pyodide.
FIRST = cell("code", "install", "%pip install -q minilora  # in a browser, run this first")


def notebooks() -> dict[str, bytes]:
    """{path: content}: course/04_lora_backward.ipynb, exercises/en/ex04_lora_backward.ipynb, guide/gradients.ipynb."""
    made = {f"course/{name}": of_course(name) for name in COURSE}
    for language in ("en", "zh"):
        for number in EXERCISES:
            made[f"exercises/{language}/{exercise(number).name}"] = of_exercise(number, language)
    made["guide/gradients"] = of_page((ROOT / "docs" / "gradients.md").read_text(encoding="utf-8"))
    return {f"{path}.ipynb": notebook([FIRST, *cells]) for path, cells in made.items()}


def of_course(name: str) -> Iterable[Cell]:
    """The cells of a notebook of the course, with the outputs that are stored."""
    return json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]


def of_exercise(number: str, language: str) -> Iterable[Cell]:
    """The statement, what the learner edits, and the check."""
    task = exercise(number)
    yield cell("markdown", "statement", statement(task, language))
    yield cell("code", "answer", code(task.stub(language)))
    call = check(task, Setting(language))
    yield cell("code", "check", f"from minilora.practice import check\n\n{call}")


def of_page(text: str) -> Iterable[Cell]:
    """A page of docs/: a cell of code ends where the page shows a result. Its links lead nowhere here."""
    text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", text)
    for i, part in enumerate(re.split(r"^```python\n(.*?)^```\n", text, flags=re.DOTALL | re.MULTILINE)):
        if i % 2 == 0:
            yield cell("markdown", f"text-{i}", part)
            continue
        lines = ""
        for example in DocTestParser().get_examples(part):
            lines += example.source
            if example.want:
                yield cell("code", f"code-{i}-{example.lineno}", lines)
                lines = ""


def start(paths: Iterable[str]) -> bytes:
    """A notebook that links to the others."""
    lines = [f"- [{path.removesuffix('.ipynb')}]({path})" for path in paths]
    text = "# minilora in the browser\n\nOpen a notebook and run its cells from the top. What you write stays in this browser.\n\n"
    return notebook([cell("markdown", "links", text + "\n".join(lines))])


def files() -> dict[str, bytes]:
    """{path: content} of all that the site holds: the notebooks, and what those of the course read."""
    made = notebooks()
    read = ["record.py", "adapting.py", *(f"grids/{path.name}" for path in (ROOT / "notebooks" / "grids").glob("*.json"))]
    return {"start.ipynb": start(made), **made, **{f"course/{name}": (ROOT / "notebooks" / name).read_bytes() for name in read}}


if __name__ == "__main__":
    write_files(Path(sys.argv[1]), files())
