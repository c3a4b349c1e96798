"""Adapt the built-in model to Python source, by LoRA and by full fine-tuning, and show what was learned."""

from typing import Any

from ...process import keep_freed_memory
from ..models import backend
from ..options import Add, Options

EXAMPLE = "minilora demo"
HOLDS = "report.json, report.png, adapter_config.json, adapter_model.safetensors"
SHARED = "--device", "--seed", "--shards"


def arguments(add: Add) -> None:
    add("--out", metavar="DIR", help="(default runs/demo; runs/grid with --grid)")
    add("--grid", action="store_true", help="search the learning rates again, in minutes; --out gets grid.json")


def run(options: Options) -> None:
    keep_freed_memory()
    from ...jobs.demo import demo, print_report, search

    out = options.out or ("runs/grid" if options.grid else "runs/demo")
    settings: dict[str, Any] = {"seed": options.seed, "shards": options.shards, "backend": backend(options)}
    if options.grid:
        search(out, **settings)
    else:
        print_report(demo(out, **settings), out)
