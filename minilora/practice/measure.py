"""What the rules of exercises measure, apart from results: memory, and instructions."""

from __future__ import annotations

import sys
import tracemalloc
from collections.abc import Callable
from typing import Any


def peak_bytes(function: Callable[..., Any], *arguments: Any) -> int:
    """The peak memory of a call in bytes, without its arguments."""
    tracemalloc.start()
    try:
        function(*arguments)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def instructions(function: Callable[..., Any], *arguments: Any) -> int:
    """The number of bytecode instructions that Python executes in a call."""
    count = 0

    def trace(frame: Any, event: str, argument: Any) -> Any:
        nonlocal count
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        function(*arguments)  # since 3.13, Python traces the instructions of a function from the second call on
        count = 0
        function(*arguments)
    finally:
        sys.settrace(before)
    return count
