"""Compare two settings of a classifier by cross-validation, with a test corrected for overlapping training sets."""

import math
import sys
from functools import partial

from ...jobs.arguments import positive_int
from ...process import keep_freed_memory
from ..models import backend, print_json
from ..options import CLASSIFYING, COLUMNS, JSON, LEARNING, Add, Options, add_settings, against, job_options

EXAMPLE = "minilora compare --base minilm --data reviews.csv --rank 8 --against '--rank 2'"
SHARED = "--base", "--device", "--seed", "--shards"


def arguments(add: Add) -> None:
    add("--data", required=True, metavar="FILE", help="a .csv, .tsv or .jsonl, rotten_tomatoes or imdb")
    add("--against", type=against, required=True, metavar="OPTIONS", help="what differs in the second setting")
    add("--folds", type=positive_int, default=5, metavar="N", help="(default 5)")
    add_settings(add, "rank", "encoding", *LEARNING, *CLASSIFYING, *COLUMNS)
    add("--json", action="store_true", help=JSON)


def run(options: Options) -> None:
    keep_freed_memory()
    from ...jobs.crossvalidation import cross_validate, print_comparison
    from ...jobs.data import print_data

    show_data = partial(print_data, file=sys.stderr)
    report = cross_validate(backend=backend(options), show_data=show_data, **job_options(options, "json"))
    if options.json:
        print_json(report | {"t": report["t"] if math.isfinite(report["t"]) else None})  # JSON knows no infinity
    else:
        print_comparison(report)
