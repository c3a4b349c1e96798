"""What rank is enough: the singular values of an adapter, or of the difference of two checkpoints."""

from ...jobs.arguments import positive_int, share
from ..models import print_json
from ..options import ADAPTER, JSON, MODEL, Add, Options, job_options

EXAMPLE = "minilora rank builtin runs/merged --energy 0.9 --out runs/small --plot runs/small.png"
HOLDS = "adapter_config.json, adapter_model.safetensors"


def arguments(add: Add) -> None:
    add("folder", metavar="DIR", help=f"{ADAPTER}; or, with TUNED_DIR, the original checkpoint: {MODEL}")
    add("tuned", metavar="TUNED_DIR", nargs="?", help="the tuned checkpoint: any family, matrices are matched by name")
    add("--base", metavar="MODEL", help=f"the base of an adapter, to look at W too: {MODEL}")
    add("--compare", metavar="ADAPTER", help="another adapter: how much of its directions is shared")
    add("--rank", type=positive_int, metavar="N", help="write the best adapter of this rank to --out")
    add("--energy", type=share, metavar="X", help="or with the lowest ranks that keep this share of ‖ΔW‖², such as 0.9")
    add("--out", metavar="DIR", help="a new folder for that adapter")
    add("--plot", metavar="FILE", help="NAME.png: figures NAME-energy.png, NAME-layers.png, ...")
    add("--json", action="store_true", help=JSON)


def run(options: Options) -> None:
    from ...jobs.rank import study
    from ...jobs.rank_report import print_study

    result = study(**job_options(options, "json"))
    if options.json:
        print_json(result)
    else:
        print_study(result)
        if options.out:
            print(f"written to {options.out}")
