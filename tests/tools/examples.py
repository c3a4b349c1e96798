"""How many examples a test tries: a few in the default run, all of them in one with the slow tests (pytest -m ...)."""

from collections.abc import Iterable
from typing import Any

every = False  # conftest.py sets it


def count(n: int) -> int:
    """`n` examples, or a tenth of them."""
    return n if every else max(3, n // 10)


def some_of(items: Iterable[Any], nth: int = 4) -> list[Any]:
    """Every item, or each n-th, the first and the last among them."""
    items = list(items)
    return items if every else [*items[:-1:nth], *items[-1:]]
