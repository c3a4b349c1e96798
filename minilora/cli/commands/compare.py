"""Compare two settings of a classifier by cross-validation, or methods side by side at their best learning rates.

With --against, the two settings are trained on the same folds of --data, and tested by a t-test corrected for
overlapping training sets. With --methods, each adapts the built-in model to Python source.
"""

import argparse
import math
import sys
from functools import partial
from typing import Any

from ...jobs.arguments import methods, positive_int
from ...process import keep_freed_memory
from ..models import backend, print_json
from ..options import CLASSIFYING, CLUSTER, COLUMNS, JSON, LEARNING, Add, Options, add_settings, against, job_options
from ..options import SHARED as SHARED_OPTIONS

EXAMPLE = "minilora compare --base minilm --data reviews.csv --rank 8 --against '--rank 2'"
HOLDS = "of --methods: methods.json, methods.png, rates.json, and each run in runs"
SHARED = "--base", "--device", "--seed", "--shards"
SIDE_BY_SIDE = "methods", "out", "seeds", "jobs", "cluster", "search", "resume"


def arguments(add: Add) -> None:
    missing: dict[str, Any] = {"default": argparse.SUPPRESS}
    several = "'all', or variants of adapters, with options of their own as in vera:d_initial=0.5, and 'full'"
    rows = "with --against: a .csv, .tsv, .jsonl or .json, rotten_tomatoes or imdb"
    add("--data", metavar="FILE", help=rows, **missing)
    add("--against", type=against, metavar="OPTIONS", help="what differs in the second setting", **missing)
    add("--folds", type=positive_int, metavar="N", help="with --against: parts of --data (default 5)", **missing)
    add_settings(add, "rank", "encoding", *LEARNING, *CLASSIFYING, *COLUMNS)
    add("--json", action="store_true", help=JSON)
    add("--methods", type=methods, metavar="A,B", help=f"methods side by side: {several}", **missing)
    add("--out", metavar="DIR", help="with --methods: a new folder (default runs/methods)", **missing)
    add("--seeds", type=positive_int, metavar="N", help="with --methods: runs of each (default 3)", **missing)
    add("--jobs", type=positive_int, metavar="N", help="with --methods: runs at a time (default 2)", **missing)
    add("--cluster", metavar="ADDRESS", help=f"with --methods: {CLUSTER}", **missing)
    add("--search", action="store_true", help="with --methods: choose every learning rate anew", **missing)
    add("--resume", action="store_true", help="with --methods: continue from what is in --out", **missing)


def run(options: Options) -> None:
    keep_freed_memory()
    given = job_options(options, "json")
    if "methods" in given:
        side_by_side(given, options)
        return
    if "data" not in given or "against" not in given:
        raise ValueError("give --data and --against, two settings of a classifier, or --methods")
    if unread := next((name for name in SIDE_BY_SIDE if name in given), None):
        raise ValueError(f"--{unread} goes with --methods: leave it out")
    from ...jobs.crossvalidation import cross_validate, print_comparison
    from ...jobs.data import print_data

    show_data = partial(print_data, file=sys.stderr)
    report = cross_validate(backend=backend(options), show_data=show_data, **given)
    if options.json:
        print_json(report | {"t": report["t"] if math.isfinite(report["t"]) else None})  # JSON knows no infinity
    else:
        print_comparison(report)


def side_by_side(given: dict[str, Any], options: Options) -> None:
    from ...jobs.methods import compare_methods
    from ...jobs.methods_report import print_methods

    shared = {name.removeprefix("--"): SHARED_OPTIONS[name]["default"] for name in SHARED}
    changed = [name for name, default in shared.items() if getattr(options, name) != default]
    if unread := next((name for name in (*given, *changed) if name not in {*SIDE_BY_SIDE, *shared} - {*changed}), None):
        raise ValueError(f"--methods, on the built-in model, does not read --{unread.replace('_', '-')}: leave it out")
    chosen = {name: value for name, value in given.items() if name in SIDE_BY_SIDE}
    out = chosen.pop("out", "runs/methods")
    report = compare_methods(out=out, **chosen)
    if options.json:
        print_json(report)
    else:
        print_methods(report, out)
