"""Pretrain the built-in base model on English prose, from nothing."""

from ...jobs.arguments import positive_int
from ...process import keep_freed_memory
from ..models import backend
from ..options import Add, Options

EXAMPLE = "minilora pretrain --out runs/base"
HOLDS = "config.json, model.safetensors, pretraining.json (recipe, losses)"
SHARED = "--out", "--resume", "--device", "--seed", "--shards"


def arguments(add: Add) -> None:
    add("--steps", type=positive_int, metavar="N", help="(default 1600)")


def run(options: Options) -> None:
    keep_freed_memory()
    from ...jobs.pretraining import pretrain

    changes = {key: value for key in ("seed", "shards", "steps") if (value := getattr(options, key)) is not None}
    report = pretrain(options.out, resume=options.resume, backend=backend(options), **changes)
    for name, value in report["bits_per_byte"].items():
        print(f"{name:<8} {value:.3f} bits per byte of test text")
    print(f"written to {options.out}")
