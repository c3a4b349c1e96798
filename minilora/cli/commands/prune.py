"""What an adapter loses with fewer numbers: cut by singular value and by entry, loss against bytes."""

from ..models import print_json
from ..options import ADAPTER, JSON, MODEL, Add, Options, job_options

EXAMPLE = "minilora prune runs/demo --data builtin --plot runs/pruned.png"


def arguments(add: Add) -> None:
    smaller = "to write a smaller one: minilora combine ADAPTER --how svd --rank N"
    add("folder", metavar="ADAPTER", help=f"{ADAPTER}; {smaller}")
    texts = "a text, of which a part is held out; 'builtin': Python's own source"
    add("--data", required=True, metavar="FILE", help=texts)
    add("--base", metavar="MODEL", help=f"{MODEL} (default: the base that the adapter names, or builtin)")
    add("--plot", metavar="FILE", help="a .png of the curve")
    add("--json", action="store_true", help=JSON)


def run(options: Options) -> None:
    from ...jobs.pruning import print_pruned, prune

    report = prune(**job_options(options, "json"))
    if options.json:
        print_json(report)
    else:
        print_pruned(report)
