"""What rules of exercises look at beside numbers."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any


def peak_bytes(function: Callable[..., Any], *arguments: Any) -> int:
    """The most memory that a call takes at one time, beside its arguments."""
    tracemalloc.start()
    try:
        function(*arguments)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
