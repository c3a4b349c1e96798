"""Fine-tune at each of several ranks, or methods, with several seeds, and say which is enough."""

from ...jobs.arguments import comma_separated, positive_int, positive_ints
from ...process import keep_freed_memory
from ..models import backend
from ..options import CLUSTER, TUNING, Add, Options, add_settings, job_options
from .finetune import DATA

EXAMPLE = "minilora sweep --ranks 1,2,4,8,16 --seeds 3 --jobs 2 --data builtin --out runs/sweep"
HOLDS = "sweep.json, sweep.png, and for each rank R and seed S what finetune makes, in rank-R/seed-S (METHOD-rank-R)"
SHARED = "--base", "--out", "--resume", "--device"


def arguments(add: Add) -> None:
    ranks = "ranks to try, at the same alpha: each has the scale alpha/rank (with --rslora alpha/sqrt(rank))"
    add("--ranks", type=positive_ints, required=True, metavar="N,N", help=ranks)
    several = "methods to compare, each at every rank (once if it has none), all at the same --lr; instead of --method"
    add("--methods", type=comma_separated, default=[], metavar="A,B", help=several)
    add("--seeds", type=positive_int, default=3, metavar="N", help="runs of each rank, seeds 0 to N-1 (default 3)")
    add("--jobs", type=positive_int, default=2, metavar="N", help="runs at a time; does not change results (default 2)")
    add("--cluster", metavar="ADDRESS", help=CLUSTER)
    shards = "split each batch over N threads in each run (default 1)"
    add("--shards", type=positive_int, default=1, metavar="N", help=shards)
    add("--data", required=True, metavar="FILE", help=DATA)
    add_settings(add, *TUNING)


def run(options: Options) -> None:
    keep_freed_memory()
    from ...jobs.data import print_data
    from ...jobs.sweep import sweep
    from ...jobs.sweep_report import print_sweep

    given = job_options(options) | {"threads": options.threads}
    print_sweep(sweep(backend=backend(options), show_data=print_data, **given), options.out)
