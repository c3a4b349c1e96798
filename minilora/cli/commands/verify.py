"""Check every gradient and every law of the library. The exit code is 1 if one is wrong."""

from ...jobs.arguments import positive_int
from ..models import print_json
from ..options import JSON, Add, Options

EXAMPLE = "minilora verify --only attention"
SHARED = ("--seed",)


def arguments(add: Add) -> None:
    add("--only", default="", metavar="NAME", help="what has NAME in its name")
    add("--json", action="store_true", help=JSON)
    add("--mutants", action="store_true", help="instead, break each gradient and see the checks fail")
    add("--sample", type=positive_int, metavar="N", help="with --mutants: N of them (default all)")


def run(options: Options) -> int:
    from ...verify.mutation import mutation_run, show_mutants, unexplained
    from ...verify.suite import show_verification, verify, wrong

    if options.sample and not options.mutants:
        raise ValueError("--sample is a number of mutants: say --mutants too")
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
