"""How many examples a test tries: a few in the default run, all of them in one with the slow tests (pytest -m ...)."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import pytest

every = False  # conftest.py sets it


def count(n: int) -> int:
    """`n` examples, or a tenth of them."""
    return n if every else max(3, n // 10)


def some_of(items: Iterable[Any], nth: int = 4) -> list[Any]:
    """Every item, or each n-th, the first and the last among them."""
    items = list(items)
    return items if every else [*items[:-1:nth], *items[-1:]]


def mark_slow(items: list[pytest.Item]) -> None:
    """Of a test marked `each_value`: what is not needed for each value of each of its parameters to be there once."""
    tests = defaultdict(list)
    for item in items:
        if item.get_closest_marker("each_value") and not any(map(item.get_closest_marker, ("slow", "gpu"))):
            tests[item.nodeid.partition("[")[0]].append(item)
    for combinations in tests.values():
        seen: set[tuple[str, str]] = set()
        chosen = set()
        for new in (all, any):  # first those of which every value is new: there are fewer then
            for item in combinations:
                values = {(name, repr(value)) for name, value in item.callspec.params.items()}
                if new(value not in seen for value in values):
                    seen |= values
                    chosen.add(item)
        for item in combinations:
            if item not in chosen:
                item.add_marker("slow")
