"""Count again how many mistakes each exercise detects and names, and write the folder exercises/ of a clone.

python -m minilora.practice.record
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median

from tqdm import tqdm

from ..files import write_whole
from .catalogue import exercises, numbers
from .checking import check
from .exercise import Exercise
from .kills import RECORD, counts, recorded, table
from .workspace import NAME, contents


def main() -> None:
    found = recorded() | {number: counts(task) for number, task in tqdm(exercises().items(), unit=" exercises")}
    found = {number: found[number] for number in numbers() if number in found}  # without torch, twins as they were
    lines = ",\n".join(f' "{number}": {json.dumps(row)}' for number, row in found.items())
    write_whole(RECORD, f"{{\n{lines}\n}}\n".encode())
    folder = Path(__file__).parents[2] / NAME
    if (folder.parent / "pyproject.toml").exists():
        for name, text in contents().items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            write_whole(folder / name, text.encode())
    print(table())
    seconds = {number: warm(task) for number, task in exercises().items()}
    slowest = max(seconds, key=lambda number: seconds[number])
    of = f"median {median(seconds.values()):.2f} s, slowest {seconds[slowest]:.2f} s ({slowest})"
    print(f"a warm check of a right answer: {of}")


def warm(task: Exercise) -> float:
    """Seconds of a check of the solution, the second time."""
    answers = [part.solution for part in task.parts]
    check(task.number, *answers)
    return check(task.number, *answers).seconds


if __name__ == "__main__":
    main()
