"""Exercises as tests: pytest collects each ex*.py, and each result that it asks for is one test."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from .catalogue import exercise, missing, numbers, sheet
from .progress import Progress
from .result import Result
from .worker import Worker


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.File | None:
    """A learner's file, by the name of an exercise."""
    if file_path.suffix == ".py" and file_path.stem in numbers().values():
        return ExerciseFile.from_parent(parent, path=file_path)
    return None


class ExerciseFile(pytest.File):
    """A learner's file. It is checked once, in a process with a time limit, for all its tests."""

    @cached_property
    def result(self) -> Result:
        progress = Progress.of(self.path.parent)
        with Worker() as worker:
            return worker.check(self.path.stem, self.path, progress.language, progress.seed)

    def collect(self) -> Iterator[pytest.Item]:
        if package := missing(sheet(self.path.stem).number):
            pytest.skip(f"needs {package}")
        for part in exercise(self.path.stem).parts:
            for tensor in part.results or [part.name]:
                yield ExerciseItem.from_parent(self, name=f"{part.name}:{tensor}", part=part.name, tensor=tensor)


class Wrong(Exception):
    """The text of a result."""


class ExerciseItem(pytest.Item):
    def __init__(self, part: str, tensor: str, **options: Any):
        super().__init__(**options)
        self.part, self.tensor = part, tensor

    def runtest(self) -> None:
        assert isinstance(self.parent, ExerciseFile)
        result = self.parent.result
        if result.state == "broken":
            raise Wrong(result.text())
        about = {tensor: right for (part, tensor), right in result.verdicts().items() if part == self.part}
        others = [right for tensor, right in about.items() if tensor not in exercise(result.number).tensors(self.part)]
        if not all(others) or not about.get(self.tensor, True):
            raise Wrong(result.text())

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        return str(excinfo.value) if isinstance(excinfo.value, Wrong) else super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, int, str]:
        return self.path, 0, f"{self.path.stem}: {self.name}"
