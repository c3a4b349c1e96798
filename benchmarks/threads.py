"""What BLAS threads cost people who never set their number: the same work in a process with the environment as it is,
and in one with OPENBLAS_NUM_THREADS=1, in rounds; on the machine as it is, and beside two busy processes.

    python -m benchmarks.threads '{"work": "fit", "shards": 2}'
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from statistics import median
from typing import Any

import numpy as np

from minilora.adapters.attach import attach_lora
from minilora.data import english, random_windows
from minilora.models.generation import generate
from minilora.models.pretrained import load_pretrained
from minilora.models.transformer import Transformer
from minilora.process import keep_freed_memory
from minilora.training import evaluate, fit
from minilora.verify import check_gradient

from .cases import NEW, SEED, Job
from .rounds import THREADS, Process, python
from .worker import serve

BUSY = 2  # processes
SPIN = """if True:
    import os, sys, threading
    threading.Thread(target=lambda: sys.stdin.read() or os._exit(0)).start()  # it ends with who started it
    while True:
        pass"""


def adapted() -> Transformer:
    model = load_pretrained()
    attach_lora(model, "all-linear", 8, rng=np.random.default_rng(SEED))
    return model


def fitting(shards: int) -> Callable[[], Any]:
    model, batches = adapted(), random_windows(english().train, 16, 128, SEED)
    return lambda: fit(model, batches, 1, shards=shards, description=None)


def evaluating(shards: int) -> Callable[[], Any]:
    model, batches = adapted(), random_windows(english().train, 8, 128, SEED)
    return lambda: evaluate(model, [batches(0), batches(1)], shards=shards)


def generating(shards: int) -> Callable[[], Any]:
    model = adapted()
    return lambda: generate(model, "The ", NEW)


def checking(shards: int) -> Callable[[], Any]:
    rng = np.random.default_rng(SEED)
    inputs = {"x": rng.standard_normal((64, 128)), "W": rng.standard_normal((344, 128))}
    return lambda: check_gradient(lambda x, W: x @ W.T, lambda dy, x, W: (dy @ W, dy.T @ x), inputs)


WORK = {
    "fit": ("a step of fit, 16 × 128", fitting, (1, 2)),
    "evaluate": ("evaluate, 2 batches of 8 × 128", evaluating, (1, 2)),
    "generate": (f"generate, {NEW} tokens", generating, (1,)),
    "check": ("check_gradient, x (64, 128), W (344, 128)", checking, (1,)),
}


def default_and_pinned(rounds: int, seconds: float) -> list[dict[str, Any]]:
    """{"work", "shards", "busy", "default", "pinned", "ratio", "rounds"} of each piece of work, `busy` processes
    beside it: seconds of one time, medians over the rounds, and default / pinned."""
    default = {name: value for name, value in os.environ.items() if name not in THREADS}
    found = []
    for name, (words, _, all_shards) in WORK.items():
        for shards in all_shards:
            with ExitStack() as stack:
                both = []
                for env in (default, default | dict.fromkeys(THREADS, "1")):
                    process = stack.enter_context(python({"work": name, "shards": shards}, "threads", env))
                    stack.callback(process.kill)
                    both.append(Process(name, process))
                for n in (0, BUSY):
                    with busy(n):
                        for _ in range(rounds):
                            for each in both:
                                each.burst(seconds)
                    walls = [[r["wall"] for r in each.rounds[-rounds:]] for each in both]
                    ratios = [a / b for a, b in zip(*walls, strict=True)]
                    row: dict[str, Any] = {"work": words, "shards": shards, "busy": n, "rounds": ratios}
                    row |= {"default": median(walls[0]), "pinned": median(walls[1]), "ratio": median(ratios)}
                    found.append(row)
    return found


@contextmanager
def busy(n: int) -> Iterator[None]:
    """`n` processes that use all of a core that they can get."""
    with ExitStack() as stack:
        for _ in range(n):
            command = [sys.executable, "-c", SPIN]
            stack.callback(stack.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE)).kill)
        yield


if __name__ == "__main__":
    said = json.loads(sys.argv[1])
    keep_freed_memory()
    serve(Job(WORK[said["work"]][1](said["shards"]), lambda: None), {})
