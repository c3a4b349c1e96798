"""The commands of minilora, one file each: to add one is to add a file, and its name here.

The docstring of a file is the command's help. The file has EXAMPLE; arguments(add), which adds its options;
run(options), which returns an exit code or None; SHARED, the options of options.SHARED that it takes, if any; and
HOLDS, the files in --out, if it has that option; COMMANDS, if it is a package of further commands. run() imports what
is slow, such as NumPy, so that --help need not wait for it.
"""

from __future__ import annotations

from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence
from functools import cache
from importlib import import_module

from ... import __doc__ as description
from ... import __version__
from ..options import SHARED, Parser

COMMANDS = [  # in the order of --help
    *("demo", "pretrain", "finetune", "predict", "compare", "sweep", "generate", "chat", "merge", "combine"),
    *("prune", "info", "rank", "count", "audit", "verify", "ex"),
]


@cache
def parser() -> Parser:
    """The parser of all commands. What it parses has as `run` the function of the given command."""
    top = Parser(prog="minilora", description=description)
    top.add_argument("--version", action="version", version=f"minilora {__version__}")
    add_commands(top, __name__, COMMANDS, required=True)
    return top


def add_commands(above: Parser, package: str, names: Sequence[str], required: bool) -> None:
    """Add the commands of a package of files. One that has COMMANDS of its own is a package too: `minilora ex list`."""
    commands = above.add_subparsers(required=required, metavar="command")
    for name in names:
        command = import_module(f".{name}", package)
        help, holds = command.__doc__ or "", getattr(command, "HOLDS", "")
        sub = commands.add_parser(
            name,
            help=help.splitlines()[0],
            description=help,
            epilog=f"example\n  {command.EXAMPLE}" + (f"\n\n--out will contain\n  {holds}" if holds else ""),
            formatter_class=RawDescriptionHelpFormatter,
        )
        sub.set_defaults(run=command.run)
        for option in (*getattr(command, "SHARED", ()), "--threads"):
            sub.add_argument(option, **SHARED[option])
        command.arguments(sub.add_argument)
        if inner := getattr(command, "COMMANDS", ()):
            add_commands(sub, command.__name__, inner, required=False)
