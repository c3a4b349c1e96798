"""Build the notebooks: NN_name.py (jupytext's percent format) is what is written, NN_name.ipynb is made from it.

    python notebooks/build.py                     run every script as a notebook and store it with its outputs
    python notebooks/build.py --check             run every one afresh, store nothing; exit 1 if one raises or is old
    python notebooks/build.py --slides DIR        the stored notebooks as slides, an HTML file each
    python notebooks/build.py [--check] 00 04     these only

An assert in a cell is a test. Cell ids are positions, and neither times nor versions are stored, so a rebuild is a
small diff. Only sources are compared: a picture may differ by a pixel from one machine to the next.

Two kinds of cell are marked in a script:

    # %% tags=["exercise"] exercise="04"          functions of exercise 04 as a student finds them
    # %% [markdown] tags=["notes"]                what a teacher says to the cell above; on the slides, the key n

A cell of an exercise runs with its solution, so that what stands below is true, and is stored as it is written.

Needs: pip install -e ".[notebooks]"
"""

import argparse
import ast
import copy
import json
import os
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

from minilora.files import write_files, write_whole
from minilora.practice.catalogue import sheet

HERE = Path(__file__).resolve().parent
TERMS = HERE / "terms.json"  # {term: in Chinese}, which stands beside the term where a notebook first uses it
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
ENVIRONMENT = {
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    "PYTHONPATH": os.pathsep.join(filter(None, [str(HERE.parent), os.environ.get("PYTHONPATH")])),  # this minilora
}


def read_script(script: Path) -> nbformat.NotebookNode:
    """The notebook that `script` describes, without outputs."""
    cells: list[nbformat.NotebookNode] = []
    for cell in jupytext.read(script, fmt="py:percent").cells:
        if "notes" in cell.metadata.get("tags", []):
            cells[-1].metadata["notes"] = cell.source
            continue
        cell.id = f"cell-{len(cells):02}"
        cell.metadata = {key: cell.metadata[key] for key in ("tags", "exercise") if key in cell.metadata}
        cells.append(cell)
    return nbformat.v4.new_notebook(cells=cells, metadata=METADATA)


def functions(source: str) -> dict[str, str]:
    """{name: source} of the functions and classes of a text."""
    lines = source.splitlines()
    nodes = (node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef | ast.ClassDef))
    return {node.name: "\n".join(lines[node.lineno - 1 : node.end_lineno]) for node in nodes}


def of_exercise(cell: nbformat.NotebookNode, text: str) -> str:
    """What the cell of an exercise holds if its functions are those of `text`."""
    found = functions(text)
    return "\n\n\n".join(found[name] for name in functions(cell.source) if name in found)


def execute(notebook: nbformat.NotebookNode, folder: Path) -> list[str]:
    """Run all cells in a fresh kernel, keeping their outputs; return what went wrong, in a line."""
    solved = copy.deepcopy(notebook)
    for cell in solved.cells:
        if "exercise" in cell.metadata:
            cell.source = of_exercise(cell, sheet(cell.metadata["exercise"]).solution())
    problems = run(solved, folder)
    for cell, done in zip(notebook.cells, solved.cells, strict=True):
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = done.outputs, done.execution_count
    return problems


def run(notebook: nbformat.NotebookNode, folder: Path) -> list[str]:
    options = {"kernel_name": "python3", "timeout": 600, "record_timing": False, "coalesce_streams": True}
    options["extra_arguments"] = ["--log-level=ERROR"]  # a kernel warns that its local sockets are not encrypted
    try:
        NotebookClient(notebook, resources={"metadata": {"path": str(folder)}}, **options).execute()
    except CellExecutionError as error:
        failed = next(c.id for c in notebook.cells if any(o.output_type == "error" for o in c.get("outputs", [])))
        arrow = re.search(r"^-+> \d+ (.*)$", re.sub(r"\x1b\[[0-9;]*m", "", error.traceback), re.MULTILINE)
        what = f"{error.ename}: {error.evalue}".partition("\n")[0].rstrip(": ")
        return [f"{failed} raised {what}" + (f" at `{arrow[1]}`" if arrow else "")]
    except (CellTimeoutError, DeadKernelError) as error:
        return [f"{type(error).__name__}: {error}".partition("\n")[0]]
    return []


def source_problems(script: Path) -> list[str]:
    """What is wrong with the script of a notebook, a line for each problem; nothing is run."""
    cells = read_script(script).cells
    problems = []
    for cell in cells:
        number = cell.metadata.get("exercise", "")
        if bool(number) != ("exercise" in cell.metadata.get("tags", [])):
            problems.append(f'{cell.id} needs both tags=["exercise"] and exercise="NN"')
        if number and cell.source != of_exercise(cell, sheet(number).stub()):
            problems.append(f"{cell.id} is not the stub of exercise {number}")
    texts = (cell.source for cell in cells if cell.cell_type == "markdown")
    prose = re.sub(r"^#+ .*?$|^\|.*?$|\$\$.*?\$\$|\$.*?\$|`.*?`", "", "\n".join(texts), flags=re.MULTILINE | re.DOTALL)
    prose = " ".join(prose.split())
    prose, limits, _ = prose.partition("**Not shown here")
    if not limits:
        problems.append("no line says what is not shown here")
    for term, chinese in json.loads(TERMS.read_text(encoding="utf-8")).items():
        first = re.search(rf"(?<![\w-]){term}s?(?![\w-])(.{{0,4}}\({chinese})?", prose, re.IGNORECASE)
        if first and not first[1]:
            problems.append(f"the first “{term}” is not followed by ({chinese}): …{prose[first.start() - 30 :][:80]}…")
    return problems


def stored_problems(script: Path) -> list[str]:
    """What is wrong with the stored notebook of `script`, a line for each problem; nothing is run."""
    path = script.with_suffix(".ipynb")
    if not path.exists():
        return ["there is no .ipynb"]
    written, stored = read_script(script).cells, nbformat.read(path, as_version=4).cells
    problems = [f"{a.id} is not what the .py says" for a, b in zip(written, stored, strict=False)
                if (a.cell_type, a.source, a.metadata) != (b.cell_type, b.source, b.metadata)]  # fmt: skip
    if len(written) != len(stored):
        problems.append(f"the .ipynb has {len(stored)} cells, the .py {len(written)}")
    if any(cell.cell_type == "code" and cell.source and cell.execution_count is None for cell in stored):
        problems.append("the .ipynb was not executed")
    return problems


def build(script: Path, check: bool) -> list[str]:
    """Run a notebook and compare it, or store it. Returns what is wrong, after a line with its time."""
    start = time.perf_counter()
    if not script.exists():
        return [script.stem, "    there is no .py"]
    problems = source_problems(script)
    notebook = read_script(script)
    problems += execute(notebook, HERE)
    if check:
        problems += stored_problems(script)
    elif not problems:
        write_whole(script.with_suffix(".ipynb"), nbformat.writes(notebook).encode() + b"\n")
    return [f"{script.stem:<40}{time.perf_counter() - start:6.1f} s", *(f"    {problem}" for problem in problems)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("numbers", nargs="*", metavar="NN", help="these notebooks only")
    parser.add_argument("--check", action="store_true", help="store nothing; exit 1 if a notebook raises or is old")
    parser.add_argument("--slides", metavar="DIR", type=Path, help="write slides into this folder; run nothing")
    parser.add_argument("--jobs", type=int, default=2, help="how many run at a time (2)")
    arguments = parser.parse_args()
    stems = sorted({path.stem for path in HERE.glob("[0-9][0-9]_*.*")})
    scripts = [HERE / f"{stem}.py" for stem in stems if not arguments.numbers or stem[:2] in arguments.numbers]
    if arguments.slides:
        from minilora.practice.export.slides import slides

        write_files(arguments.slides, {f"{s.stem}.html": slides(s.with_suffix(".ipynb")) for s in scripts})
        return 0
    os.environ |= ENVIRONMENT
    failed = False
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for lines in pool.map(lambda script: build(script, arguments.check), scripts):
            print(*lines, sep="\n", flush=True)
            failed |= len(lines) > 1
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
