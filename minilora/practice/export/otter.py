"""A zip that otter-grader runs on Gradescope, and the one notebook that its students get.

Only zipfile is needed. The zip holds what `otter generate` writes, except what makes PDFs. It has a test file for each
exercise, which imports the check: there is no solution in it to leak.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

from ...files import write_whole
from ..exercise import Exercise
from .notebook import Cell, Setting, cell, check, code, notebook, seconds, statement

# otter gives all points of a case or none, so there is a case for each point. It shows the error of each case that
# fails: the diagnosis goes with the first. It has no limit of time, and SIGALRM interrupts a loop that does not end.
TEST = """import signal

from otter.test_files import test_case

from minilora.practice import check

OK_FORMAT = False  # the cases are functions, not doctests
name = "{number}"
points = {points}
SECONDS = {seconds}


class Wrong(Exception):
    pass


def too_long(*_):
    raise TimeoutError(f"no answer within {{SECONDS}} seconds")


def right(k):
    def case(env):
        global result
        if k == 1:
            before = signal.signal(signal.SIGALRM, too_long)
            signal.setitimer(signal.ITIMER_REAL, SECONDS, SECONDS)
            try:
                result = check(name, *map(env.get, {functions}), language="{language}", seed={seed})
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
                signal.signal(signal.SIGALRM, before)
        text = "\\n" + result.text() if k == result.points + 1 else "as above"
        if result.points < k:
            raise Wrong(text)

    return test_case(name=f"{{k}} of {{points}} right")(case)


globals().update({{f"case_{{k}}": right(k) for k in range(1, points + 1)}})
"""

CONFIG = {  # with these three a student sees the points and the diagnosis of each exercise, once
    "show_all_public": True,
    "show_hidden": True,
    "force_public_test_summary": False,
}

SETUP = """#!/usr/bin/env bash
set -e
apt-get update
apt-get install -y wget
conda=https://github.com/conda-forge/miniforge/releases/download/25.3.1-0/Miniforge3-Linux-x86_64.sh
wget -nv $conda -O /tmp/miniforge.sh
bash /tmp/miniforge.sh -b
/root/miniforge3/bin/mamba env create -f /autograder/source/environment.yml
"""

ENVIRONMENT = """name: otter-env
channels:
  - conda-forge
dependencies:
  - python=3.13
  - pip
  - pip:
      - otter-grader[grading]==7.0.0
      - {requirement}
"""

RUN_AUTOGRADER = """#!/usr/bin/env bash
/root/miniforge3/envs/otter-env/bin/python /autograder/source/run_otter.py
"""

RUN_OTTER = """from otter.run.run_autograder import main

if __name__ == "__main__":
    main("/autograder")
"""


def write(path: str | Path, tasks: Sequence[Exercise], setting: Setting) -> None:
    """Write FILE.zip and FILE.ipynb, both new. Raises ValueError for another ending or a file that is there."""
    path = Path(path)
    if path.suffix != ".zip":
        raise ValueError(f"{path} does not end in .zip: Gradescope takes a zip, such as {path.stem or 'lora'}.zip")
    student = path.with_suffix(".ipynb")
    for file in (path, student):
        if file.exists():
            raise ValueError(f"{file} is there already: move it away, or choose another name")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(student, notebook(cells(tasks, setting), otter={"assignment_name": setting.assignment}))
    write_whole(path, zipped(files(tasks, setting)))


def files(tasks: Iterable[Exercise], setting: Setting) -> dict[str, str]:
    """{name: text} of what the zip holds."""
    config = CONFIG | {"assignment_name": setting.assignment}
    return {
        "setup.sh": SETUP,
        "environment.yml": ENVIRONMENT.format(requirement=json.dumps(setting.requirement)),
        "run_autograder": RUN_AUTOGRADER,
        "run_otter.py": RUN_OTTER,
        "otter_config.json": json.dumps(config, indent=2) + "\n",
        **{f"tests/{task.number}.py": test(task, setting) for task in tasks},
    }


def test(task: Exercise, setting: Setting) -> str:
    functions = [part.name for part in task.parts]
    return TEST.format(
        number=task.number, points=task.asked, functions=functions, seconds=seconds(task), language=setting.language,
        seed=setting.seed,
    )  # fmt: skip


def zipped(texts: dict[str, str]) -> bytes:
    """A zip of texts, dated 1980, so that the same texts make the same bytes."""
    content = io.BytesIO()
    with ZipFile(content, "w") as archive:
        for name, text in texts.items():
            entry = ZipInfo(name)
            entry.external_attr = (0o755 if text.startswith("#!") else 0o644) << 16
            archive.writestr(entry, text, ZIP_DEFLATED)
    return content.getvalue()


def cells(tasks: Sequence[Exercise], setting: Setting) -> Iterable[Cell]:
    """The cells of the notebook without solutions.

    An exercise is tested where the next one begins, since two may use one name for different functions. The grader
    leaves out the student's own check.
    """
    done: list[str] = []
    for task in tasks:
        number, language = task.number, setting.language
        yield cell("markdown", f"ex{number}-statement", statement(task, language), otter={"tests": done})
        yield cell("code", f"ex{number}-answer", code(task.stub(language)))
        call = f"from minilora.practice import check\n\n{check(task, setting)}"
        yield cell("code", f"ex{number}-check", call, tags=["otter_ignore"])
        done = [number]
