"""What a method costs on a model: parameters, bytes and FLOPs, each with its formula."""

import argparse
from pathlib import Path

from ...adapters import variant_names
from ...jobs.arguments import comma_separated, positive_int, targets
from ..models import print_json
from ..options import JSON, Add, Options

EXAMPLE = "minilora count --model gpt3-175b --method lora --targets q_proj,v_proj --rank 4"

# accounting.METHODS, which is not imported here: --help need not wait for NumPy
BASES = "full", "top2", "prefix-embed", "prefix-layer"
BESIDE = "qlora", "adapter-houlsby", "adapter-pfeiffer"
COUNTED = f"{', '.join(dict.fromkeys((*BASES, *variant_names(), *BESIDE)))} or adapter-lin"


def arguments(add: Add) -> None:
    what = "a name, a config.json or its folder, or ORG/NAME[@REVISION] on the Hugging Face Hub (default builtin)"
    add("--model", "--base", default="builtin", metavar="NAME", help=what)
    add("--method", metavar="NAME", help=f"{COUNTED} (default lora)")
    add("--compare", type=methods, metavar="A,B", help="several methods side by side: full,lora,qlora")
    add("--targets", type=targets, metavar="A,B", help="layers to adapt, lm_head and embed too (default: the method's)")
    rank = "or the width of a bottleneck (default: what finetune takes, 8 for most; 256 for vera)"
    add("--rank", type=positive_int, metavar="N", help=rank)
    add(
        "--virtual-tokens",
        type=positive_int,
        default=8,
        metavar="N",
        help="of prefix methods, or rows of token-rows (default 8)",
    )
    add("--head", metavar="NAME", help="lm, classify, tokens or none (default: the config's, or the family's)")
    add("--labels", type=positive_int, metavar="N", help="outputs of classify and tokens (default: the config's, or 2)")
    add("--batch", type=positive_int, default=1, metavar="N", help="sequences (default 1)")
    add("--tokens", type=positive_int, metavar="N", help="in a sequence (default 512, or what the model can)")
    add("--source-tokens", type=positive_int, metavar="N", help="of an encoder's source (default: as --tokens)")
    add("--dtype", metavar="NAME", help="of the base: float32 (default), float16, bfloat16, int8, nf4, nf4-dq, float64")
    add("--recompute", action="store_true", help="blocks keep only their input, and are computed again in the backward")
    add("--json", action="store_true", help=JSON)
    add("--plot", metavar="FILE", help="a bar chart of --compare: NAME.png")


def methods(text: str) -> list[str]:
    found = comma_separated(text)
    if len(found) < text.count(",") + 1:
        raise argparse.ArgumentTypeError(f"{text!r} lacks a name, as in full,lora,qlora")
    return found


def run(options: Options) -> None:
    from ...accounting import count as count_one
    from ...accounting import to_dict
    from ...accounting.figure import cost_figure
    from ...accounting.memory import IN_4_BITS
    from ...accounting.methods import OVER_4_BITS, TARGETED
    from ...accounting.report import show_account, show_comparison
    from ...adapters import DEFAULT
    from ...display.plots import check_png
    from ...files import write_whole

    if options.compare and options.method:
        raise ValueError("--compare names the methods: leave --method out")
    if options.plot and not options.compare:
        raise ValueError("--plot draws several methods: say --compare full,lora,qlora")
    if options.plot:
        check_png(options.plot)
    names = options.compare or [options.method or DEFAULT]
    shared = {"r": options.rank, "virtual_tokens": options.virtual_tokens, "batch": options.batch}
    shared |= {"tokens": options.tokens, "recompute": options.recompute, "head": options.head, "labels": options.labels}
    shared |= {"source_tokens": options.source_tokens}
    accounts = {}
    for name in names:  # of several, those that choose their layers get the targets; one alone must take them
        chosen = options.targets if name in TARGETED or not options.compare else None
        dtype = options.dtype  # of several, that of a base that is not in 4 bits
        if name in OVER_4_BITS and options.compare and dtype not in IN_4_BITS:
            dtype = None
        accounts[name] = count_one(options.model, name, targets=chosen, dtype=dtype, **shared)
    if options.plot or options.json:
        results = {name: to_dict(account) for name, account in accounts.items()}
    if options.plot:
        write_whole(Path(options.plot), cost_figure(results))
    if options.json:
        print_json(results if options.compare else results[names[0]])
    elif options.compare:
        show_comparison(accounts)
    else:
        show_account(accounts[names[0]])
