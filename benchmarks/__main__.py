"""python -m benchmarks: how fast is minilora beside PyTorch and PEFT, on this machine?"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minilora.cli import execute
from minilora.cli.options import Parser
from minilora.display.plots import check_png
from minilora.files import write_whole
from minilora.jobs.arguments import comma_separated, positive_float, positive_int, positive_ints

from . import bench, figure, lengths, scaling_report, show
from .cases import BASES
from .report import ALL
from .scaling import AXES, read_report, scaling
from .scaling_figure import scaling_figure


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print. The exit code is 2 for what a person can mend, as of every command of minilora."""
    return execute(parser, arguments)


def parser() -> Parser:
    top = Parser(
        prog="python -m benchmarks",
        description="Speed and memory beside PyTorch and PEFT, and each op beside its bound.",
        epilog="example\n  python -m benchmarks --sizes tiny,small:1x128 --measures lora,generate --cores 1,2",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.set_defaults(run=run, threads=1)
    add = top.add_argument
    what = (
        "tiny, small, gpt2, minilm, smollm2; or with batch and tokens, as small:1x128 (default: the first three, both)"
    )
    add("--sizes", type=comma_separated, metavar="A,B", help=what)
    what = f"{', '.join(ALL)} (default: all)"
    add("--measures", type=comma_separated, metavar="A,B", help=what)
    add("--cores", type=positive_ints, metavar="N,N", help="cores for each contestant (default 1)")
    add("--ranks", type=positive_ints, metavar="N,N", help="of adapters (default 8)")
    what = "q_proj,v_proj (default), all-linear, or both, separated by a space"
    add("--targets", nargs="+", metavar="A,B", help=what)
    what = f"how the measure qlora holds the base (default {','.join(BASES)})"
    add("--bases", type=comma_separated, metavar="A,B", help=what)
    what = "kept: every contestant keeps freed memory (default); default: the platform's settings; or both"
    add("--malloc", type=comma_separated, metavar="A,B", help=what)
    add("--rounds", type=positive_int, metavar="N", help="(default 7)")
    add("--seconds", type=positive_float, metavar="X", help="of work in a round, at least (default 0.2)")
    add("--long", action="store_true", help="small on one sequence of 256 to 4096 tokens, with and without blocks")
    add("--device", choices=["cpu", "cuda"], help="where to compute (default cpu; cuda needs CuPy)")
    add("--json", action="store_true", help="print the result as JSON, with every round")
    add("--plot", metavar="FILE", help="a figure of the ratios, or with --long of time and memory: NAME.png")
    add_scaling(top.add_subparsers(metavar="scaling", help="how a step grows: python -m benchmarks scaling --help"))
    return top


def add_scaling(commands: Any) -> None:
    what = "Time and memory of a LoRA step against width, depth, tokens, rank, batch and cores, beside what is counted."
    shared = argparse.SUPPRESS  # an option that both have may come before the word too: no default replaces it
    command = commands.add_parser("scaling", description=what, argument_default=shared)
    command.set_defaults(run=run_scaling)
    add = command.add_argument
    add("--axes", type=comma_separated, default=None, metavar="A,B", help=f"{', '.join(AXES)} (default: all)")
    add("--cores", type=positive_ints, metavar="N,N", help="(default 1,2)")
    add("--rounds", type=positive_int, metavar="N", help="(default 5)")
    add("--seconds", type=positive_float, metavar="X", help="of work in a round, at least (default 0.2)")
    what = f"to predict, as minilora count knows them (default {','.join(scaling_report.MODELS)})"
    add("--models", type=comma_separated, default=list(scaling_report.MODELS), metavar="A,B", help=what)
    add("--read", default=None, metavar="FILE", help="measure nothing: print what --json of another run says")
    add("--json", action="store_true", help="print the result as JSON, with every round")
    add("--plot", metavar="FILE", help="a figure: NAME.png")


def run_scaling(options: argparse.Namespace) -> None:
    if options.plot:
        check_png(options.plot)
    names = "sizes", "measures", "ranks", "targets", "bases", "malloc", "long", "device"
    if others := [name for name in names if getattr(options, name)]:
        raise ValueError(f"scaling varies one model along its axes: leave out --{', --'.join(others)}")
    given = {key: x for key in ("axes", "cores", "rounds", "seconds") if (x := getattr(options, key)) is not None}
    if options.read and given:
        raise ValueError(f"--read measures nothing: leave out --{', --'.join(given)}")
    scaling_report.check_models(options.models)
    report = read_report(options.read) if options.read else scaling(**given)
    if options.json:
        print(json.dumps(report, indent=1, allow_nan=False))
    else:
        scaling_report.show(report, options.models)
    if options.plot:
        write_whole(Path(options.plot), scaling_figure(report))


def run(options: argparse.Namespace) -> None:
    if options.plot:
        check_png(options.plot)
    names = "cores", "ranks", "targets", "rounds", "seconds", "device", "sizes", "measures", "bases", "malloc"
    given = {key: value for key in names if (value := getattr(options, key)) is not None}
    if options.long:
        given = {"sizes": lengths(), "measures": ["lora"]} | given
    report = bench(**given)
    if options.json:
        print(json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False))
    else:
        show(report)
    if options.plot:  # last: a report that has nothing to draw is not lost
        write_whole(Path(options.plot), figure(report))


if __name__ == "__main__":
    sys.exit(main())
