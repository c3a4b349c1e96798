"""The command line: standard streams, errors as one line, exit codes. Each command is a file in commands/."""

from __future__ import annotations

import argparse
import codecs
import json
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from ..display.tables import printable
from ..process import blas_threads
from .commands import parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 when it is done, 1 when `verify` finds something wrong, 2 (and one
    line on stderr) for an error that the user can correct, 130 after Ctrl-C, 141 when the output's reader is gone."""
    return execute(parser, arguments)


def execute(parser: Callable[[], argparse.ArgumentParser], arguments: Sequence[str] | None) -> int:
    """Parse the arguments, call the function that they set as `run`, and return the exit code that main() describes."""
    open_streams()
    try:
        try:
            options = parser().parse_args(arguments)
            with blas_threads(options.threads), warnings.catch_warnings():
                warnings.showwarning = print_warning
                return run(options)
        finally:  # not at exit, where Python would report an error of its own
            sys.stdout.flush()
    except OSError as error:
        for stream in (sys.stdout, sys.stderr):  # or Python would try to flush them again at exit
            with suppress(OSError):
                stream.flush()
                continue
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        if isinstance(error, BrokenPipeError):  # minilora audit | head
            return 141
        print_error(one_line(error))
        return 2


def open_streams() -> None:
    """Make standard input, output and error usable, whatever they are.

    A closed one becomes the null device: otherwise the next file that is opened would get its descriptor, and what is
    printed would go into that file. Characters that an encoding lacks are written as JSON escapes, so that JSON output
    stays valid.
    """
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # it takes the lowest that is free, this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(descriptor, "r" if name == "stdin" else "w", closefd=False))  # noqa: SIM115
    codecs.register_error("json", as_json)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="json")
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(encoding="utf-8")  # as every file that is read


def as_json(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end


def run(options: argparse.Namespace) -> int:
    try:
        return options.run(options) or 0
    except BrokenPipeError:
        raise
    except (ValueError, OSError, ImportError, RuntimeError, ArithmeticError, MemoryError) as error:
        print_error(one_line(error))
        return 2
    except KeyboardInterrupt as stop:
        print_error(one_line(stop) if stop.args else "stopped")
        return 130


def print_error(line: str) -> None:
    print(f"minilora: {line}", file=sys.stderr)


def print_warning(message: Any, *_: Any, **__: Any) -> None:
    """Show a warning as one line, without the file and line of code."""
    print_error(f"note: {printable(str(message))}")


def one_line(error: BaseException) -> str:
    if isinstance(error, MemoryError):
        wanted = f" ({error})" if error.args else ""
        return f"out of memory{wanted}: give smaller numbers, such as --batch or --rank, or a smaller model"
    if isinstance(error, OSError) and error.strerror:
        return printable(": ".join(map(str, filter(None, (error.strerror, error.filename)))))
    return printable(str(error)) or type(error).__name__
