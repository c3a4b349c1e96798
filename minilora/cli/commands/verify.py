"""Check every gradient and every law of the library. The exit code is 1 if one is wrong."""

import math

from ...jobs.arguments import positive_int
from ..models import print_json
from ..options import JSON, Add, Options

EXAMPLE = "minilora verify --only attention"
SHARED = ("--seed",)


def arguments(add: Add) -> None:
    add("--only", default="", metavar="NAME", help="only the checks with NAME in their name")
    add("--json", action="store_true", help=JSON)
    add("--stability", action="store_true", help="instead, where ops lose precision in float32, bfloat16 and float16")
    add("--mutants", action="store_true", help="instead, break each gradient and see the checks fail")
    add("--sample", type=positive_int, metavar="N", help="with --mutants: N of them (default all)")


def run(options: Options) -> int:
    from ...verify.mutation import mutation_run, show_mutants, unexplained
    from ...verify.suite import show_verification, verify, wrong

    if options.sample and not options.mutants:
        raise ValueError("--sample is a number of mutants: say --mutants too")
    if options.stability and options.mutants:
        raise ValueError("--stability and --mutants are two runs: say one of them")
    if options.stability:
        from ...verify.stability import show_stability, stability

        losses = stability(options.only, options.seed)
        if options.json:
            print_json([loss._asdict() | {"error": finite(loss.error), "verdict": loss.verdict} for loss in losses])
        else:
            show_stability(losses)
        return 0
    if options.mutants:
        outcomes = mutation_run(options.sample, options.seed, options.only)
        if options.json:
            print_json([outcome._asdict() for outcome in outcomes])
        else:
            show_mutants(outcomes)
        return int(bool(unexplained(outcomes)))
    result = verify(options.only, options.seed)
    if options.json:
        print_json(result)
    else:
        show_verification(result)
    return int(bool(wrong(result)))


def finite(x: float) -> float | None:
    """x; None, as JSON has no infinity."""
    return x if math.isfinite(x) else None
