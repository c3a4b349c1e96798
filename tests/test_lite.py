"""docs/site/lite.py and docs/lite/: the notebooks that a browser runs, with JupyterLite and Pyodide."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import lite
import pytest

from minilora.practice.catalogue import exercise
from minilora.practice.tracks import full_path

ROOT = Path(__file__).parent.parent
NOT_IN_PYODIDE = {"curses", "idlelib", "pwd", "pydoc_data", "readline", "resource", "syslog", "tkinter"}
THERE = {
    "minilora",
    "numpy",
    "matplotlib",
    "safetensors",
    "threadpoolctl",
    "tqdm",
} | sys.stdlib_module_names - NOT_IN_PYODIDE


@pytest.fixture(scope="module")
def files():
    return lite.files()


def code_of(content):
    """The cells of code of a notebook, less the first, which installs minilora."""
    cells = ["".join(cell["source"]) for cell in json.loads(content)["cells"] if cell["cell_type"] == "code"]
    assert cells[0].endswith("%pip install -q minilora")
    return cells[1:]


def test_notebooks_import_only_what_is_in_pyodide_or_beside_them(files):
    beside = {Path(path).stem for path in files if path.endswith(".py")}
    texts = [content.decode() for path, content in files.items() if path.endswith(".py")]
    texts += [
        cell
        for path, file in files.items()
        if path.endswith(".ipynb") and path != "start.ipynb"
        for cell in code_of(file)
    ]
    imported = set()
    for node in (node for text in texts for node in ast.walk(ast.parse(text))):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module.partition(".")[0])
    assert {"minilora", "numpy", "matplotlib", "record"} <= imported <= THERE | beside


def test_the_files_that_the_course_reads_lie_beside_it(files):
    read = set()
    for path in files:
        if path.startswith("course/") and path.endswith(".ipynb"):
            for node in (node for cell in code_of(files[path]) for node in ast.walk(ast.parse(cell))):
                if isinstance(node, ast.Call) and ast.unparse(node.func) == "record.read":
                    read.add(f"course/grids/{node.args[0].value}.json")
    assert read
    assert read <= set(files)


def test_the_first_notebook_links_to_every_other(files):
    (cell,) = json.loads(files["start.ipynb"])["cells"]
    links = {line.rpartition("](")[2].rstrip(")\n") for line in cell["source"] if "](" in line}
    assert links == {path for path in files if path.endswith(".ipynb")} - {"start.ipynb"}


def test_a_notebook_has_the_name_of_its_page():
    for page in lite.notebooks():
        room, _, name = page.partition("/")
        stands = {"course": f"notebooks/{name}.ipynb", "guide": f"docs/{name}.md"}.get(
            room, f"minilora/practice/{room}/{Path(page).name}.py"
        )
        assert (ROOT / stands).is_file(), page


@pytest.mark.each_value
@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("number", [pytest.param(n, marks=[pytest.mark.slow] if n > "05" else []) for n in full_path()])
def test_the_notebook_of_an_exercise_checks_what_is_written_in_it(files, number, language):
    task = exercise(number)
    answer, check = code_of(files[f"exercises/{language}/{task.name}.ipynb"])
    *setup, call = ast.parse(check).body
    before = "wrong" if task.kind == "repair" else "not started"
    for text, state in ((answer, before), (task.solution(language), "passed")):
        learner = {}
        exec(text, learner)
        exec(ast.unparse(setup), learner)
        result = eval(ast.unparse(call), learner)
        assert (result.state, result.language) == (state, language)


def test_the_notebook_of_a_page_has_its_examples_and_they_run(files):
    cells, learner = code_of(files["guide/gradients.ipynb"]), {}
    examples = (ROOT / "docs/gradients.md").read_text(encoding="utf-8")
    lines = [line[4:] for line in examples.splitlines() if line.startswith((">>> ", "... "))]
    assert "\n".join(cells).split() == "\n".join(lines).split()
    for cell in cells:
        exec(cell, learner)


@pytest.mark.slow
def test_the_build_holds_the_notebooks_and_what_the_kernel_needs(files, tmp_path):
    pytest.importorskip("jupyterlite_core")
    pytest.importorskip("jupyterlite_pyodide_kernel")
    make = ["make", "-C", ROOT / "docs", "notebooks", f"PYTHON={sys.executable}", f"BUILD={tmp_path}"]
    made = subprocess.run(make, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    site = tmp_path / "html/lite"
    for path, content in files.items():
        assert (site / "files" / path).read_bytes() == content
    subprocess.run(
        [sys.executable, "-m", "jupyterlite_core", "check", "--output-dir", site], cwd=tmp_path / "lite", check=True
    )
    plugins = json.loads((site / "jupyter-lite.json").read_text())["jupyter-config-data"]["litePluginSettings"]
    (kernel,) = plugins.values()
    assert kernel["disablePyPIFallback"]
    here, kernels = (json.loads((site / url.partition("?")[0]).read_text()) for url in kernel["pipliteUrls"])
    assert set(here) == {"minilora", "comm"}  # comm is what the kernel needs and neither brings nor finds in Pyodide
    assert "pyodide-kernel" in kernels
    for release in [releases for package in here.values() for releases in package["releases"].values()]:
        assert (site / "pypi" / release[0]["filename"]).is_file()
