"""The stored notebooks are what their scripts say, were executed, and the check of that notices when they are not."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from minilora.practice.catalogue import sheet
from minilora.practice.tracks import timetable

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("[0-9][0-9]_*.ipynb"))
SCRIPTS = sorted(FOLDER.glob("[0-9][0-9]_*.py"))
FIRST = FOLDER / "00_lora_in_40_lines.py"


@pytest.fixture
def build():
    """notebooks/build.py, which is no package."""
    for needed in ("jupytext", "nbclient", "ipykernel"):
        pytest.importorskip(needed)
    spec = importlib.util.spec_from_file_location("build", FOLDER / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def copy(tmp_path):
    """The first notebook's script in a folder of its own, with its .ipynb beside it."""
    for path in (FIRST, FIRST.with_suffix(".ipynb")):
        shutil.copy(path, tmp_path)
    return tmp_path / FIRST.name


def code_cells(notebook):
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def run(folder, *arguments):
    command = [sys.executable, folder / "build.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=900)


def test_scripts_and_notebooks_come_in_pairs():
    assert FIRST in SCRIPTS
    assert [path.stem for path in SCRIPTS] == [path.stem for path in NOTEBOOKS]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_notebook_is_what_its_script_says(script, build):
    assert build.stored_problems(script) == []


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_was_executed_from_top_to_bottom_without_an_error(notebook):
    cells = code_cells(notebook)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert not [output for cell in cells for output in cell["outputs"] if output["output_type"] == "error"]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_keeps_neither_times_nor_versions(notebook):
    content = json.loads(notebook.read_text(encoding="utf-8"))
    assert content["metadata"]["kernelspec"]["name"] == "python3"
    assert content["metadata"]["language_info"] == {"name": "python"}
    assert [cell["id"] for cell in content["cells"]] == [f"cell-{i:02}" for i in range(len(content["cells"]))]
    assert {key for cell in content["cells"] for key in cell["metadata"]} <= {"tags", "exercise", "notes"}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_has_its_stubs_its_terms_in_chinese_and_its_limits(script, build):
    assert build.source_problems(script) == []


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_the_minutes_in_the_speaker_notes_fill_the_lesson(script, build):
    notes = [cell.metadata["notes"] for cell in build.read_script(script).cells if "notes" in cell.metadata]
    assert sum(int(re.match(r"(\d+) min\b", text)[1]) for text in notes) == (
        90 if script.name[:2] in ("06", "10") else 60
    )


def test_lora_in_40_lines_is_at_most_40_lines_of_numpy():
    """The core: every code cell above the sentence that says so. Exercise, figures and library come after it."""
    cells = json.loads(FIRST.with_suffix(".ipynb").read_text(encoding="utf-8"))["cells"]
    ends = [i for i, cell in enumerate(cells) if "".join(cell["source"]).startswith("Those were the forty lines.")]
    assert len(ends) == 1
    core = ["".join(cell["source"]) for cell in cells[: ends[0]] if cell["cell_type"] == "code"]
    rest = ["".join(cell["source"]) for cell in cells[ends[0] :] if cell["cell_type"] == "code"]
    assert any("matplotlib" in source for source in rest)
    assert any("minilora" in source for source in rest)
    lines = [line.strip() for source in core for line in source.splitlines()]
    code = [line for line in lines if line and not line.startswith("#")]
    assert [line for line in code if "import" in line.split()] == ["import numpy as np"]
    assert not any(";" in line for line in code)
    assert 30 <= len(code) <= 40


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("r, alpha = 4, 8", "r, alpha = 8, 8", "cell-04 is not what the .py says"),
        ("# ## 2. The adapter", "# ## 2. An adapter", "cell-03 is not what the .py says"),
        ("# ## Try it", "# ## Try it\n\n# %%\nprint()", "the .ipynb has 28 cells, the .py 29"),
    ],
    ids=["code", "prose", "a cell more"],
)
def test_the_check_sees_a_changed_source(old, new, problem, copy, build):
    assert build.stored_problems(copy) == []
    text = copy.read_text(encoding="utf-8")
    assert text.count(old) == 1
    copy.write_text(text.replace(old, new), encoding="utf-8")
    assert problem in build.stored_problems(copy)


def test_the_check_sees_a_notebook_that_is_missing_or_was_not_executed(copy, build):
    notebook = copy.with_suffix(".ipynb")
    content = json.loads(notebook.read_text(encoding="utf-8"))
    content["cells"][-2]["execution_count"] = None
    notebook.write_text(json.dumps(content), encoding="utf-8")
    assert build.stored_problems(copy) == ["the .ipynb was not executed"]
    notebook.unlink()
    assert build.stored_problems(copy) == ["there is no .ipynb"]


EXERCISE = """# %% [markdown]
# # A linear layer
#
# The adapter (适配器) comes later. **Not shown here:** all else.

# %% [markdown] tags=["notes"]
# 60 min. Say nothing.

# %%
import numpy as np

from minilora.practice import check

# %% tags=["exercise"] exercise="03"
{stub}

# %%
check("03", linear_backward)
"""


@pytest.fixture
def with_exercise(build, tmp_path):
    """A script with the cell of an exercise."""
    stub = build.functions(sheet("03").stub())["linear_backward"]
    script = tmp_path / "00_linear.py"
    script.write_text(EXERCISE.format(stub=stub), encoding="utf-8")
    return script


def test_the_check_sees_a_solution_in_the_cell_of_an_exercise(build, with_exercise):
    assert build.source_problems(with_exercise) == []
    solution = build.functions(sheet("03").solution())["linear_backward"]
    with_exercise.write_text(EXERCISE.format(stub=solution), encoding="utf-8")
    assert build.source_problems(with_exercise) == ["cell-02 is not the stub of exercise 03"]


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        (' exercise="03"', "", 'cell-02 needs both tags=["exercise"] and exercise="NN"'),
        (" (适配器)", "", "the first “adapter” is not followed by (适配器)"),
        ("**Not shown here:** all else.", "", "no line says what is not shown here"),
    ],
)
def test_the_check_sees_what_a_script_lacks(old, new, problem, build, with_exercise):
    text = with_exercise.read_text(encoding="utf-8")
    assert text.count(old) == 1
    with_exercise.write_text(text.replace(old, new), encoding="utf-8")
    assert problem in build.source_problems(with_exercise)[0]


@pytest.mark.slow
def test_the_cell_of_an_exercise_runs_with_its_solution_and_is_stored_without(build, with_exercise):
    notebook = build.read_script(with_exercise)
    assert build.execute(notebook, with_exercise.parent) == []
    cell, answer = notebook.cells[-2:]
    assert "NotImplementedError" in cell.source
    assert notebook.cells[0].metadata["notes"] == "60 min. Say nothing."
    assert "passed" in answer.outputs[0]["data"]["text/plain"]


@pytest.mark.slow
def test_the_check_sees_a_failing_assert(build, tmp_path):
    """One notebook whose assert depends on a file: it is built, then the file changes and nothing else."""
    for name in ("build.py", "terms.json"):
        shutil.copy(FOLDER / name, tmp_path)
    head = "# %% [markdown]\n# **Not shown here:** circles.\n\n"
    source = head + "# %%\nfrom pathlib import Path\n\nsides = Path('sides').read_text()\nassert sides == 'three'\n"
    (tmp_path / "00_triangle.py").write_text(source, encoding="utf-8")
    (tmp_path / "sides").write_text("three")
    built = run(tmp_path)
    assert built.returncode == 0, built.stdout + built.stderr
    stored = (tmp_path / "00_triangle.ipynb").read_bytes()
    assert run(tmp_path, "--check").returncode == 0

    (tmp_path / "sides").write_text("four")
    checked = run(tmp_path, "--check")
    assert checked.returncode == 1
    assert checked.stdout.splitlines()[1:] == ["    cell-01 raised AssertionError at `assert sides == 'three'`"]
    assert run(tmp_path).returncode == 1  # nor does a build store it
    assert (tmp_path / "00_triangle.ipynb").read_bytes() == stored


def test_the_guide_lists_every_notebook_with_its_minutes_and_exercises_and_has_the_timetable(build):
    guide = (FOLDER / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \[(\d\d) .*?\]\((.*?)\) \|.*?\| (\d+) \|.*?\| ([\d, ]*) ?\|", guide, re.MULTILINE)
    assert [path for _, path, _, _ in rows] == [path.name for path in NOTEBOOKS]
    for number, path, minutes, exercises in rows:
        cells = build.read_script((FOLDER / path).with_suffix(".py")).cells
        wanted = dict.fromkeys(cell.metadata["exercise"] for cell in cells if "exercise" in cell.metadata)
        assert (minutes, exercises.strip()) == ("90" if number in ("06", "10") else "60", ", ".join(wanted))
    assert timetable() in guide
