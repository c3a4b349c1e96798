"""Record the grids that the notebooks draw: many runs, computed once and kept with their seeds and versions.

    python notebooks/record.py                     every grid that is not complete: it goes on where it stopped
    python notebooks/record.py rates placement     these only
    python notebooks/record.py --again rates       from the beginning
    python notebooks/record.py --jobs 4            on as many processes

A grid is a file in grids/: RUNS, the arguments of each run, and run(**arguments), which returns its numbers. The record
is the .json beside it.
"""

import argparse
import json
import os
import platform
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_info
from tqdm import tqdm

import minilora
from minilora.files import write_whole
from minilora.process import blas_threads

GRIDS = Path(__file__).resolve().parent / "grids"
RECORDED_WITH = ("3", "11")  # Python


def read(grid: str) -> list[dict[str, Any]]:
    """The runs of a grid: the arguments of each, and what it found."""
    return json.loads((GRIDS / f"{grid}.json").read_text())["runs"]


def pick(runs: list[dict[str, Any]], number: str, **where: Any) -> np.ndarray:
    """A number of every run that has these arguments: of all its seeds, in their order.

    Raises ValueError if there is none.
    """
    found = [run[number] for run in runs if all(run.get(name) == value for name, value in where.items())]
    if not found:
        raise ValueError(f"no run of this grid has {where}")
    return np.array(found)


def same_text() -> bool:
    """Whether this Python has the standard library, which is the text to learn, that the records were made with."""
    return platform.python_version_tuple()[:2] == RECORDED_WITH


def within_spread(value: float, recorded: np.ndarray) -> bool:
    """Whether a number lies in the range of the recorded seeds, or outside by no more than half of its width.

    Another processor sums in another order. Another Python has another standard library to learn from: then nothing can
    be compared, which is printed, and the answer is True.
    """
    if not same_text():
        with_python = ".".join(RECORDED_WITH)
        print(f"not compared: recorded with the library of Python {with_python}, this is {platform.python_version()}")
        return True
    least, most = recorded.min(), recorded.max()
    return bool(least - (most - least) / 2 <= value <= most + (most - least) / 2)


def record(grid: str, jobs: int, again: bool) -> None:
    """Run what the record lacks. It is written anew after every run, a line for each."""
    path, wanted = GRIDS / f"{grid}.json", import_module(f"grids.{grid}").RUNS
    names = {name for arguments in wanted for name in arguments}
    old = [] if again or not path.exists() else read(grid)
    done = {
        i: run
        for i, arguments in enumerate(wanted)
        for run in old
        if all(run.get(name) == arguments.get(name) for name in names)  # an argument left out is another run
    }
    left = [i for i in range(len(wanted)) if i not in done]
    if not left:
        print(f"{grid}: all {len(wanted)} runs are on record")
        return
    from concurrent.futures import ProcessPoolExecutor, as_completed  # a browser reads the records, and makes none

    with ProcessPoolExecutor(jobs) as pool:
        futures = {pool.submit(one, grid, wanted[i]): i for i in left}
        for future in tqdm(as_completed(futures), grid, len(futures), file=sys.stdout):
            done[futures[future]] = wanted[futures[future]] | future.result()
            write_whole(path, content(grid, [done[i] for i in sorted(done)]))


@blas_threads()
def one(grid: str, arguments: dict[str, Any]) -> dict[str, Any]:
    return import_module(f"grids.{grid}").run(**arguments)


def content(grid: str, runs: list[dict[str, Any]]) -> bytes:
    head = {
        "command": f"python notebooks/record.py {grid}",
        "python": platform.python_version(),
        "numpy": np.__version__,
        "minilora": minilora.__version__,
        "cores": os.cpu_count(),
        # with the processor that it computes for, which decides the last digits
        "blas": [[each["internal_api"], each["version"], each.get("architecture")] for each in threadpool_info()],
    }
    lines = ",\n".join(json.dumps(run, ensure_ascii=False) for run in runs)
    return f'{json.dumps(head)[:-1]}, "runs": [\n{lines}\n]}}\n'.encode()


def main() -> None:
    names = sorted(path.stem for path in GRIDS.glob("*.py"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("grids", nargs="*", metavar="GRID", help=f"of {', '.join(names)}")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="how many runs at a time")
    parser.add_argument("--again", action="store_true", help="run what is recorded, too")
    arguments = parser.parse_args()
    if unknown := set(arguments.grids) - set(names):
        parser.error(f"there is no grid {', '.join(sorted(unknown))}: choose from {', '.join(names)}")
    for grid in arguments.grids or names:
        record(grid, arguments.jobs, arguments.again)


if __name__ == "__main__":
    main()
