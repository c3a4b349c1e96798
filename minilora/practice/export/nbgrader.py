"""An nbgrader course: source/ASSIGNMENT/NN.ipynb for each exercise, and nbgrader_config.py.

nbgrader replaces every solution by the same stub, while an exercise may hand out code to repair. So a cell has the
exercise's stub first, then the whole solution between nbgrader's marks, which nbgrader replaces by nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from ...files import write_folder
from ..exercise import Exercise
from .notebook import Cell, Setting, cell, check, code, notebook, seconds, statement

CONFIG = """c = get_config()  # noqa: F821

c.CourseDirectory.course_id = "minilora"
c.ClearSolutions.code_stub = {{"python": ""}}  # the stub stands above the solution
c.Execute.timeout = {seconds}  # seconds for one cell; nbgrader's default is 30
"""

# The points must be a plain float and the last value: for anything else, and for none, nbgrader gives full marks.
GRADE = """from IPython.display import display
from minilora.practice import check

result = {check}
display(result)
float(result.points)  # of {points}; nbgrader reads them here"""


def write(path: str | Path, tasks: Sequence[Exercise], setting: Setting) -> None:
    """Write a new folder. Raises ValueError if it holds anything already."""
    write_folder(path, {"nbgrader_config.py": config(tasks).encode(), **source(tasks, setting)})


def config(tasks: Iterable[Exercise]) -> str:
    return CONFIG.format(seconds=seconds(*tasks))


def source(tasks: Iterable[Exercise], setting: Setting) -> dict[str, bytes]:
    """{name: content} of the notebooks of one assignment, with their solutions."""
    return {f"source/{setting.assignment}/{task.number}.ipynb": notebook(cells(task, setting)) for task in tasks}


def cells(task: Exercise, setting: Setting) -> Iterable[Cell]:
    language = setting.language
    stub, solution = code(task.stub(language)), code(task.solution(language))
    both = f"{stub}\n\n\n### BEGIN SOLUTION\n{solution}\n### END SOLUTION"
    yield graded("markdown", f"ex{task.number}-statement", statement(task, language))
    yield graded("code", f"ex{task.number}-solution", both, solution=True, locked=False)
    grade = GRADE.format(check=check(task, setting), points=task.asked)
    yield graded("code", f"ex{task.number}-check", grade, grade=True, points=task.asked, cell_type="code")


def graded(kind: str, name: str, text: str, **keys: object) -> Cell:
    """A cell with the metadata that nbgrader reads, locked unless said otherwise."""
    usual = {"grade": False, "grade_id": name, "locked": True, "schema_version": 3, "solution": False, "task": False}
    return cell(kind, name, text, nbgrader=usual | keys)
