"""Exercises: opens at the next one, checks it whenever you save its file, and names your mistake.

`minilora ex init exercises` writes the files. Keys: h hint, l list, n next, t the same task in PyTorch and back, x
reset, e opens $EDITOR, s solution, q quit.
"""

from argparse import SUPPRESS
from typing import Any

from ...options import Add, Options

EXAMPLE = "minilora ex --dir exercises"
COMMANDS = ["list", "check", "hint", "solution", "reset", "sprint", "ask", "init", "export"]


def folder(add: Add, default: Any = SUPPRESS) -> None:
    add(
        "--dir",
        metavar="DIR",
        default=default,
        help="the folder of exercises (default ./exercises, or the current folder)",
    )


def language(add: Add, default: Any = SUPPRESS) -> None:
    add(
        "--lang",
        choices=["en", "zh"],
        default=default,
        help="English or Chinese (default: that of `ex init`, or the last one in the loop)",
    )


def track(add: Add, default: Any = SUPPRESS) -> None:
    help = "in the order of the full path, or of the two-week course (default: as last time, at first full)"
    add("--track", choices=["full", "course"], default=default, help=help)


def arguments(add: Add) -> None:
    track(add, None)
    folder(add, None)  # a subcommand leaves it as it is unless it is given again
    language(add, None)
    add("--limit", type=float, default=10.0, metavar="S", help="seconds that one check may take (default 10)")


def run(options: Options) -> None:
    from ....display.tables import wide_console
    from ....practice.session import Session, first_exercise
    from ....practice.terminal import Events
    from ....practice.worker import Worker
    from ....practice.workspace import Workspace

    workspace, console = Workspace.found(options.dir), wide_console()
    workspace.progress.language = options.lang or workspace.progress.language
    workspace.progress.track = options.track or workspace.progress.track
    with Worker(options.limit) as worker, Events(workspace.folder) as events:
        first_exercise(workspace, console, events)
        Session(workspace, worker, console).run(events)
