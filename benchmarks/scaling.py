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
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path
from statistics import StatisticsError, median
from typing import Any

import numpy as np

from minilora.accounting import Account, count
from minilora.accounting.named import gpt2_sizes, read
from minilora.adapters.attach import attach_lora
from minilora.data import Batch
from minilora.files import read_json
from minilora.models.config_json import read_config
from minilora.models.families import FAMILIES
from minilora.process import blas_threads, keep_freed_memory
from minilora.spelling import choose_from

from .cases import SEED, Job
from .ours import step
from .report import machine
from .rounds import THREADS, Process, python
from .worker import numpy_and_blas, serve

TARGETS = "q_proj", "v_proj"
HEAD_WIDTH, VOCAB, POSITIONS = 64, 256, 2048  # of every GPT-2 that is no model's: only the axis changes


@dataclass(frozen=True)
class Point:
    """A step of LoRA on a GPT-2 of this width and depth with random weights, or on `model`, a name of accounting's."""

    width: int = 256
    depth: int = 4
    tokens: int = 128
    batch: int = 4
    rank: int = 8
    cores: int = 1  # the batch is halved for two
    model: str = ""

    def config(self) -> Mapping[str, Any]:
        """What its config.json says."""
        if self.model:
            return read(self.model)[1]
        heads = max(1, self.width // HEAD_WIDTH)
        return gpt2_sizes(self.width, self.depth, heads, vocab_size=VOCAB, n_positions=POSITIONS)

    def account(self) -> Account:
        """Of the step, counted on the model without weights."""
        return count(self.config(), "lora", targets=TARGETS, r=self.rank, batch=self.batch, tokens=self.tokens)

    def __str__(self) -> str:
        return f"{self.model or f'{self.depth} × {self.width}'}, {self.batch} × {self.tokens} tokens"


BASE = Point()
AXES: dict[str, tuple[int, ...]] = {
    "width": (64, 128, 256, 512, 1024),
    "depth": (1, 2, 4, 8, 16),
    "tokens": (64, 128, 256, 512, 1024, 2048),
    "rank": (1, 2, 8, 32, 128),
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
    keep_freed_memory()
    with blas_threads(1):
        tracemalloc.start()
        job = job_of(Point(**said["point"]))
        job.run()  # the optimizer's state is made
        tracemalloc.reset_peak()
        job.run()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()  # which would slow the rounds down
        serve(job._replace(peak=lambda: peak), numpy_and_blas())


def measure(points: Sequence[Point], rounds: int, seconds: float) -> list[dict[str, Any]]:
    """{"point", "rounds", "seconds", "peak", "about", "flops", "bytes", "arrays"} of each: seconds of a step in each
    round and their median, bytes at the peak; and as counts() has them, those of accounting."""
    env = os.environ | dict.fromkeys(THREADS, "1")
    with ExitStack() as stack:
        processes = []
        for point in points:
            process = stack.enter_context(python({"point": asdict(point)}, "scaling", env))
            stack.callback(process.kill)
            processes.append(Process(str(point), process))
        for _ in range(rounds):
            for each in processes:
                each.burst(seconds)
        for each in processes:
            each.end()
    walls = [[r["wall"] for r in each.rounds] for each in processes]
    return [
        {"point": asdict(point), "rounds": w, "seconds": median(w), "peak": p.peak, "about": p.about, **counts(point)}
        for point, p, w in zip(points, processes, walls, strict=True)
    ]


def counts(point: Point) -> dict[str, Any]:
    """FLOPs of the matrix products, {part: bytes}, and how many arrays the forward keeps."""
    account = point.account()
    flops = sum(part.products for part in account.flops())
    return {"flops": flops, "bytes": account.memory(), "arrays": len(account.ledger())}


def scaling(
    axes: Sequence[str] | None = None, cores: Sequence[int] = (1, 2), rounds: int = 5, seconds: float = 0.2
) -> dict[str, Any]:
    """{"machine", "base": the Point that all axes share, "axes": {axis: points as of measure()}, "held_out": points}.
    Each point is measured on every number of `cores` for which it has a sequence each. Without `axes`, all of AXES.
    Raises ValueError for a name that is not there.
    """
    from tqdm import tqdm

    axes = list(AXES) if axes is None else axes
    if not axes:
        raise ValueError(f"no axis is named: choose from {', '.join(AXES)}")
    for name in axes:
        if name not in AXES:
            raise ValueError(f"no axis is called {name!r}: {choose_from(name, AXES)}")
    wanted = {name: [Point(**asdict(BASE) | {name: value}) for value in AXES[name]] for name in dict.fromkeys(axes)}
    wanted[""] = [BASE, *HELD_OUT]
    if max(cores) > BASE.batch:
        raise ValueError(f"{max(cores)} cores cannot share {BASE.batch} sequences: give {BASE.batch} at most")
    found = {}
    for name, points in (bar := tqdm(wanted.items(), "measuring", disable=None, leave=False)):
        bar.set_postfix_str(name)
        each = [replace(point, cores=n) for n in dict.fromkeys(cores) for point in points if point.batch >= n]
        found[name] = measure(each, rounds, seconds)
    about = machine() | {"memory": memory_of_machine()}
    return {"machine": about, "base": asdict(BASE), "held_out": found.pop(""), "axes": found}


def read_report(path: str) -> dict[str, Any]:
    """What scaling() returned and --json printed. Raises ValueError for a file that holds something else."""
    report = read_json(Path(path))
    try:
        for cores in cores_of(report) or [1]:
            fit = fit_seconds(all_points(report, cores))
            _ = [predict(each, fit) / each["peak"] for each in models_of(report, cores)]
        _ = report["machine"]["memory"]
    except (ArithmeticError, AttributeError, LookupError, StatisticsError, TypeError, ValueError):
        raise ValueError(f"{path} does not hold what python -m benchmarks scaling --json prints") from None
    return report


def memory_of_machine() -> int:
    """Bytes; 0 where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return 0


# ---- what follows ----


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """p of y = c xᵖ, by least squares on the logarithms."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def exponents(axis: str, points: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The slopes of "time", "flops", "memory" and "bytes" along the axis, that of time being the median of the rounds',
    the least and the greatest of which are "rounds"; and "last time" and "last flops", of the last two points alone."""
    x = [each["point"][axis] for each in points]
    y = {
        "flops": [each["flops"] for each in points],
        "memory": [each["peak"] for each in points],
        "bytes": [sum(each["bytes"].values()) for each in points],
    }
    found: dict[str, Any] = {name: slope(x, values) for name, values in y.items()}
    walls = [*zip(*(each["rounds"] for each in points), strict=True)]
    rounds = [slope(x, times) for times in walls]
    found |= {"time": median(rounds), "rounds": (min(rounds), max(rounds))}
    found["last time"] = median(slope(x[-2:], times[-2:]) for times in walls)
    return found | {"last flops": slope(x[-2:], y["flops"][-2:])}


def terms(each: dict[str, Any]) -> list[float]:
    """What a step's time is made of: FLOPs, bytes that are written and read again, calls."""
    return [each["flops"], each["bytes"]["activations"], each["arrays"]]


def fit_seconds(points: Sequence[dict[str, Any]]) -> np.ndarray:
    """Seconds of each of terms(): those not below 0 with which terms @ seconds has the least squared relative error."""
    X = np.array([terms(each) for each in points]) / np.array([[each["seconds"]] for each in points])
    best, least = np.zeros(X.shape[1]), float(len(points))
    for n in range(1, X.shape[1] + 1):
        for columns in map(list, combinations(range(X.shape[1]), n)):
            scale = X[:, columns].max(axis=0)  # FLOPs are 1e10, arrays 1e2
            found = np.linalg.lstsq(X[:, columns] / scale, np.ones(len(X)), rcond=None)[0] / scale
            error = float(((X[:, columns] @ found - 1) ** 2).sum())
            if (found >= 0).all() and error < least:
                least, best = error, np.zeros(X.shape[1])
                best[columns] = found
    return best


def predict(each: dict[str, Any], seconds: np.ndarray) -> float:
    """Seconds of a step, from counts() and what fit_seconds() found."""
    return float(np.array(terms(each)) @ seconds)


def cores_of(report: dict[str, Any]) -> list[int]:
    """The numbers of cores, in their order."""
    return list(dict.fromkeys(each["point"]["cores"] for points in report["axes"].values() for each in points))


def on_cores(points: Sequence[dict[str, Any]], cores: int) -> list[dict[str, Any]]:
    return [each for each in points if each["point"]["cores"] == cores]


def base_seconds(report: dict[str, Any], cores: int) -> float:
    """Of a step of the point that all axes share: the median over them."""
    return median(base_of(report, points, cores)["seconds"] for points in report["axes"].values())


def base_of(report: dict[str, Any], points: Sequence[dict[str, Any]], cores: int) -> dict[str, Any]:
    (base,) = (each for each in points if each["point"] == report["base"] | {"cores": cores})
    return base


def levelled(report: dict[str, Any], points: Sequence[dict[str, Any]], cores: int) -> list[dict[str, Any]]:
    """Those on so many cores of points that took turns, with seconds that can be compared with other axes': the median
    of their ratios to BASE's in the same rounds, times base_seconds()."""
    base, typical = base_of(report, points, cores), base_seconds(report, cores)
    return [each | {"seconds": typical * median(faster(each, base))} for each in on_cores(points, cores)]


def all_points(report: dict[str, Any], cores: int) -> list[dict[str, Any]]:
    """Those of every axis on so many cores, levelled."""
    return [each for points in report["axes"].values() for each in levelled(report, points, cores)]


def models_of(report: dict[str, Any], cores: int) -> list[dict[str, Any]]:
    """The models held out, on so many cores, levelled."""
    return [each for each in levelled(report, report["held_out"], cores) if each["point"]["model"]]


def faster(one: dict[str, Any], other: dict[str, Any]) -> list[float]:
    """How many times as fast as `one` the other is, round by round: the ratio of their times."""
    return [a / b for a, b in zip(one["rounds"], other["rounds"], strict=True)]


def pairs_of(points: Sequence[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Each point on one core, and the same on more."""
    alone = {Point(**each["point"]): each for each in points}
    for point, each in alone.items():
        one = alone.get(replace(point, cores=1))
        if one and point.cores > 1:
            yield one, each


if __name__ == "__main__":
    worker(json.loads(sys.argv[1]))
