"""Several adapters of one base into one, each with a weight; or one adapter, pruned."""

from ...adapters.combining import descriptions
from ...jobs.arguments import any_float, positive_int, share
from ..models import print_json
from ..options import ADAPTER, JSON, MODEL, Add, Options

EXAMPLE = "minilora combine runs/source runs/names --weights 1 0.5 --how svd --rank 8 --out runs/both"
HOLDS = "adapter_config.json, adapter_model.safetensors"
SHARED = ("--seed",)


def arguments(add: Add) -> None:
    add("adapters", metavar="ADAPTER", nargs="+", help=ADAPTER)
    add("--weights", type=any_float, metavar="X", nargs="+", help="one for each, also below 0 (default: 1 each)")
    ways = "; ".join(f"{name}: {about}" for name, about in descriptions().items() if not name.endswith("_svd"))
    those = ", ".join(name for name in descriptions() if name.endswith("_svd"))
    add("--how", choices=[*descriptions()], default="svd", metavar="NAME", help=f"{ways}; the same on ΔW itself, "
        f"truncated to --rank: {those} (default svd)")  # fmt: skip
    add("--rank", type=positive_int, metavar="N", help="for svd and ..._svd (default: the largest of the adapters)")
    entries = "for ties, dare_..., magnitude_prune: the share of entries to keep"
    add("--density", type=share, metavar="P", help=entries)
    add("--base", metavar="MODEL", help=f"{MODEL} (default: the base that the first adapter names, or builtin)")
    texts = "a text for each adapter: print its loss before and after, by every --how; builtin is Python's own source"
    add("--evaluate", dest="data", metavar="FILE", nargs="+", default=[], help=texts)
    add("--plot", metavar="FILE", help="a .png of those losses, and of how far the adapters agree")
    add("--out", metavar="DIR", help="a new folder")
    add("--json", action="store_true", help=JSON)


def run(options: Options) -> None:
    from ...jobs.combining import combine_adapters, print_combined

    words = "how", "weights", "rank", "density", "seed", "base", "out", "data", "plot"
    show = None if options.json else print_combined
    result = combine_adapters(options.adapters, **{word: getattr(options, word) for word in words}, show=show)
    if options.json:
        print_json(result)
    elif options.out:
        print(f"written to {options.out}")
