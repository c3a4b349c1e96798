"""How a training step grows: its time and memory against width, depth, tokens, rank, batch and cores, measured, with
the exponents beside those of the FLOPs and bytes that accounting counts; and what that says of models too large to try.

    python -m benchmarks scaling

An axis changes one number of BASE. Each of its points is a process of its own, and all of an axis work in short bursts
that take turns, so that other load hits them alike. An exponent is the slope of a straight line through the logarithms
(least squares), found alike for what was measured and for what was counted.
"""

from __future__ import annotations

import json
import os
import sys
import tracemalloc
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from statistics import median
from typing import Any

import numpy as np

from minilora.accounting import NAMED, Account, count
from minilora.accounting.named import gpt2_sizes
from minilora.accounting.report import readable_bytes
from minilora.adapters.attach import attach_lora
from minilora.data import Batch
from minilora.display.tables import numbers_right, wide_console
from minilora.models.config_json import read_config
from minilora.models.families import FAMILIES
from minilora.process import blas_threads, keep_freed_memory
from minilora.spelling import choose_from, counted

from .cases import SEED, Job
from .ours import step
from .report import machine, milliseconds
from .rounds import Process, start
from .worker import serve

TARGETS = "q_proj", "v_proj"
HEAD_WIDTH, VOCAB, POSITIONS = 64, 256, 2048  # of every GPT-2 that is no model's: only the axis changes


@dataclass(frozen=True)
class Point:
    """A step of LoRA on a GPT-2 of this width and depth with random weights, or on `model`, a name of accounting's."""

    width: int = 256
    depth: int = 4
    tokens: int = 128
    batch: int = 8
    rank: int = 8
    cores: int = 1  # the batch is halved for two
    model: str = ""

    def config(self) -> dict[str, Any]:
        """What its config.json says."""
        heads = max(1, self.width // HEAD_WIDTH)
        return NAMED.get(self.model) or gpt2_sizes(
            self.width, self.depth, heads, vocab_size=VOCAB, n_positions=POSITIONS
        )

    def account(self, dtype: str | None = None, method: str = "lora") -> Account:
        """Of the step, counted on the model without weights."""
        return count(
            self.config(), method, targets=TARGETS, r=self.rank, batch=self.batch, tokens=self.tokens, dtype=dtype
        )

    def __str__(self) -> str:
        return f"{self.model or f'{self.depth} × {self.width}'}, {self.batch} × {self.tokens} tokens"


BASE = Point()
AXES: dict[str, tuple[int, ...]] = {
    "width": (64, 128, 256, 512, 1024),
    "depth": (1, 2, 4, 8, 16),
    "tokens": (64, 128, 256, 512, 1024, 2048),
    "rank": (1, 2, 4, 8, 16, 32, 64, 128),
    "batch": (1, 2, 4, 8, 16, 32),
}
HELD_OUT = Point(model="gpt2", batch=2), Point(model="smollm2-135m", batch=1)  # predicted, and then measured


# ---- measuring ----


def job_of(point: Point) -> Job:
    rng = np.random.default_rng(SEED)
    family, config = read_config(point.config(), str(point), "float32")
    model = FAMILIES[family].build(config, rng)
    attach_lora(model, TARGETS, r=point.rank, alpha=16, rng=rng)
    ids = rng.integers(0, config.vocab_size, (point.batch, point.tokens + 1))
    return step(model, Batch(ids[:, :-1], ids[:, 1:]), ThreadPoolExecutor(point.cores), point.cores, np)


def worker(said: dict[str, Any]) -> None:
    """One point. Its memory is the most that Python and NumPy have allocated during its second step."""
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    keep_freed_memory()
    with blas_threads(1):
        tracemalloc.start()
        job = job_of(Point(**said["point"]))
        job.run()  # the optimizer's state is made
        tracemalloc.reset_peak()
        job.run()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()  # which would slow the rounds down
        about = {"numpy": np.__version__, "blas": f"{blas['name']} {blas['version']}"}
        serve(job._replace(peak=lambda: peak), about)


def measure(points: Sequence[Point], rounds: int, seconds: float) -> list[dict[str, Any]]:
    """{"point", "rounds", "seconds", "peak", "flops", "bytes", "about"} of each: seconds of a step in each round and
    their median, bytes at the peak, and the FLOPs and {part: bytes} that accounting counts."""
    with ExitStack() as stack:
        processes = []
        for point in points:
            process = stack.enter_context(start({"point": asdict(point)}, 1, "scaling"))
            stack.callback(process.kill)
            processes.append(Process(str(point), process))
        for _ in range(rounds):
            for each in processes:
                each.burst(seconds)
        for each in processes:
            each.end()
    found = []
    for point, each in zip(points, processes, strict=True):
        account, walls = point.account(), [r["wall"] for r in each.rounds]
        found.append({
            "point": asdict(point), "rounds": walls, "seconds": median(walls), "peak": each.peak,
            "flops": sum(part.products for part in account.flops()), "bytes": account.memory(), "about": each.about,
        })  # fmt: skip
    return found


def scaling(
    axes: Sequence[str] = tuple(AXES), cores: Sequence[int] = (1, 2), rounds: int = 5, seconds: float = 0.2
) -> dict[str, Any]:
    """{"machine", "axes": {axis: points as of measure()}, "held_out": points}: every axis on every number of cores,
    where the batch can be divided. Raises ValueError for a name that is not in AXES."""
    from tqdm import tqdm

    for name in axes:
        if name not in AXES:
            raise ValueError(f"no axis is called {name!r}: {choose_from(name, AXES)}")
    wanted = {name: [replace(BASE, **{name: value}) for value in AXES[name]] for name in dict.fromkeys(axes)}
    wanted[""] = list(HELD_OUT)
    found = {}
    for name, points in (bar := tqdm(wanted.items(), "measuring", disable=None, leave=False)):
        bar.set_postfix_str(name)
        each = [replace(point, cores=n) for n in cores for point in points if point.batch >= n]
        found[name] = measure(each, rounds, seconds)
    return {"machine": machine() | {"memory": memory_of_machine()}, "held_out": found.pop(""), "axes": found}


def memory_of_machine() -> int:
    """Bytes; 0 where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return 0


if __name__ == "__main__":
    worker(json.loads(sys.argv[1]))
