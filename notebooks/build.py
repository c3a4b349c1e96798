"""Build the notebooks: NN_name.py (jupytext's percent format) is what is written, NN_name.ipynb is made from it.

    python notebooks/build.py                     run every script as a notebook and store it with its outputs
    python notebooks/build.py --check             run every one afresh, store nothing; exit 1 if one raises or is old
    python notebooks/build.py [--check] 00 04     these only

An assert in a cell is a test. Cell ids are positions, and neither times nor versions are stored, so a rebuild is a
small diff. Only sources are compared: a picture may differ by a pixel from one machine to the next.

Needs: pip install -e ".[notebooks]"
"""

import argparse
import os
import re
import sys
import time
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

HERE = Path(__file__).resolve().parent
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
    cells = jupytext.read(script, fmt="py:percent").cells
    for position, cell in enumerate(cells):
        cell.id, cell.metadata = f"cell-{position:02}", {}
    return nbformat.v4.new_notebook(cells=cells, metadata=METADATA)


def execute(notebook: nbformat.NotebookNode, folder: Path) -> list[str]:
    """Run all cells in a fresh kernel, keeping their outputs; return what went wrong, in a line."""
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
    finally:
        notebook.metadata = METADATA  # the kernel has added its version
    return []


def stored_problems(script: Path) -> list[str]:
    """What is wrong with the stored notebook of `script`, a line for each problem; nothing is run."""
    path = script.with_suffix(".ipynb")
    if not path.exists():
        return ["there is no .ipynb"]
    written, stored = read_script(script).cells, nbformat.read(path, as_version=4).cells
    problems = [f"{a.id} is not what the .py says" for a, b in zip(written, stored, strict=False)
                if (a.cell_type, a.source) != (b.cell_type, b.source)]  # fmt: skip
    if len(written) != len(stored):
        problems.append(f"the .ipynb has {len(stored)} cells, the .py {len(written)}")
    if any(cell.cell_type == "code" and cell.source and cell.execution_count is None for cell in stored):
        problems.append("the .ipynb was not executed")
    return problems


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("numbers", nargs="*", metavar="NN", help="these notebooks only")
    parser.add_argument("--check", action="store_true", help="store nothing; exit 1 if a notebook raises or is old")
    arguments = parser.parse_args()
    os.environ |= ENVIRONMENT
    failed = False
    for stem in sorted({path.stem for path in HERE.glob("[0-9][0-9]_*.*")}):
        if arguments.numbers and stem[:2] not in arguments.numbers:
            continue
        script, start, problems = HERE / f"{stem}.py", time.perf_counter(), ["there is no .py"]
        if script.exists():
            notebook = read_script(script)
            problems = execute(notebook, HERE)
            if arguments.check:
                problems += stored_problems(script)
            elif not problems:
                nbformat.write(notebook, script.with_suffix(".ipynb"))
        print(f"{stem:<40}{time.perf_counter() - start:6.1f} s", *problems, sep="\n    ", flush=True)
        failed |= bool(problems)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
