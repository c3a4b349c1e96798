"""What fewer bits do to perplexity, before LoRA has learned beside them and after, with the spread over seeds.

    python -m benchmarks.perplexity --models builtin,smollm2

A seed draws windows of Python's standard library, for training others, of other modules, and the adapter's start. All
bases are given the same, so that each can be set beside float32 seed by seed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from statistics import mean, stdev
from typing import Any

from minilora.adapters.attach import attach_lora
from minilora.cli import execute
from minilora.cli.options import Parser
from minilora.data import python_source, random_windows
from minilora.data.bits import perplexity
from minilora.display.tables import numbers_right, wide_console
from minilora.jobs.arguments import comma_separated, positive_int
from minilora.models.pretrained import load_pretrained, load_tokenizer
from minilora.spelling import choose_from
from minilora.training import evaluate, fit

from .cases import BASES
from .report import machine

READ = 500_000  # bytes of the modules that are drawn from
LENGTH = 128  # tokens in a window
RATES = {"builtin": 8e-3, "smollm2": 2e-3}  # of LoRA, r = 8 on q_proj and v_proj


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    return execute(parser, arguments)


def parser() -> Parser:
    top = Parser(prog="python -m benchmarks.perplexity", description="Perplexity of bases in fewer bits.")
    top.set_defaults(run=run, threads=1)
    add = top.add_argument
    add("--models", type=comma_separated, default=["builtin"], metavar="A,B", help="builtin (default), smollm2")
    add("--bases", type=comma_separated, default=list(BASES), metavar="A,B", help=f"(default {','.join(BASES)})")
    add("--train", type=comma_separated, metavar="A,B", help="bases beside which LoRA learns (default: all)")
    add("--seeds", type=positive_int, default=3, metavar="N", help="(default 3)")
    add("--windows", type=positive_int, default=16, metavar="N", help=f"of {LENGTH} tokens, of a seed (default 16)")
    add("--steps", type=positive_int, default=40, metavar="N", help="of LoRA (default 40)")
    add("--batch", type=positive_int, default=8, metavar="N", help="windows in a step (default 8)")
    add("--json", action="store_true", help="print the result as JSON, seed by seed")
    return top


def run(options: argparse.Namespace) -> None:
    results = []
    for model in options.models:
        if model not in RATES:
            raise ValueError(f"the perplexity of {model!r} is not measured: {choose_from(model, RATES)}")
        sizes = options.seeds, options.windows, options.steps, options.batch
        results.append(measure(model, options.bases, options.bases if options.train is None else options.train, *sizes))
    report = {"machine": machine(), "models": results}
    if options.json:
        print(json.dumps(report, indent=1))
        return
    for result in results:
        wide_console().print(table(result))


def measure(
    name: str, bases: list[str], trained: list[str], seeds: int, windows: int, steps: int, batch: int
) -> dict[str, Any]:
    """{"model", ..., "before", "after": {base: nats a token, of each seed}}"""
    tokenizer, text = load_tokenizer(name), python_source()
    learns, unseen = (tokenizer.encode(part[:READ].decode(errors="ignore")) for part in (text.train, text.test))
    before: dict[str, list[float]] = {}
    after: dict[str, list[float]] = {}
    for base in bases:
        for seed in range(seeds):
            model = load_pretrained(name, quantize=None if base == "float32" else base)
            draw = random_windows(unseen, 1, LENGTH, seed)
            held_out = [draw(i) for i in range(windows)]
            before.setdefault(base, []).append(evaluate(model, held_out, shards=2))
            if base in trained:
                attach_lora(model, ["q_proj", "v_proj"], r=8, alpha=16, rng=seed)
                batches = random_windows(learns, batch, LENGTH, seed)
                fit(model, batches, steps, lr=RATES[name], shards=min(2, batch), description=None)
                after.setdefault(base, []).append(evaluate(model, held_out, shards=2))
            print(f"{name} {base}, seed {seed}", file=sys.stderr)
    sizes = {"windows": windows, "length": LENGTH, "steps": steps, "batch": batch}
    return {"model": name, "seeds": seeds, **sizes, "before": before, "after": after}


def rows(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """Of each base: perplexity, and how much more than float32's on the same windows; before and after LoRA."""
    found = []
    for base in result["before"]:
        cells = [base]
        for when in ("before", "after"):
            nats, full = result[when].get(base), result[when].get("float32")
            cells.append(spread([perplexity(x) for x in nats], ".2f") if nats else "")
            more = [100 * (perplexity(x - y) - 1) for x, y in zip(nats or [], full or [], strict=False)]
            cells.append(f"{spread(more, '+.2f')} %" if more and base != "float32" else "")
        found.append(tuple(cells))
    return found


def spread(numbers: list[float], form: str) -> str:
    """Mean ± standard deviation over the seeds."""
    return f"{mean(numbers):{form}}" + (f" ± {stdev(numbers):{form.strip('+')}}" if len(numbers) > 1 else "")


def table(result: dict[str, Any]) -> Any:
    windows = f"{result['windows']} windows of {result['length']} tokens for each of {result['seeds']} seeds"
    about = f"{result['model']}, {windows}; LoRA: {result['steps']} steps of {result['batch']} windows"
    made = numbers_right(about, "base", "perplexity", "float32's and", "after LoRA", "float32's and")
    for row in rows(result):
        made.add_row(*row)
    return made


if __name__ == "__main__":
    sys.exit(main())
