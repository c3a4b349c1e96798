"""The commands. Each parses its words, calls one function, and prints."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from ..process import blas_threads
from .options import COUNTED, parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command: 0 when it is done, 1 when `verify` finds something wrong, 2 (and one line on stderr) for what a
    person can mend, 130 after Ctrl-C."""
    options = parser().parse_args(arguments)
    with blas_threads(options.threads), warnings.catch_warnings():
        warnings.showwarning = note
        return run(options)


def run(options: argparse.Namespace) -> int:
    try:
        return options.run(options) or 0
    except BrokenPipeError:  # whoever reads has seen enough: minilora audit | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (ValueError, OSError, ImportError, RuntimeError, ArithmeticError, MemoryError) as error:
        print(f"minilora: {one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(f"minilora: {one_line(stop) if stop.args else 'stopped'}", file=sys.stderr)
        return 130


def note(message: Any, *_: Any, **__: Any) -> None:
    """A warning, as a line for people."""
    print(f"minilora: note: {message}", file=sys.stderr)


def one_line(error: BaseException) -> str:
    if isinstance(error, MemoryError):
        wanted = f" ({error})" if error.args else ""
        return f"out of memory{wanted}: give smaller numbers, such as --batch, or a smaller model"
    if isinstance(error, OSError) and error.strerror:
        return ": ".join(map(str, filter(None, (error.strerror, error.filename))))
    return " ".join(str(error).split()) or type(error).__name__
