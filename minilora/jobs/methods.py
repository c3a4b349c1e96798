"""Methods side by side: each adapts the built-in model to Python source, at its own best learning rate.

The task is that of the demo, with batches half as large, so that all of it takes minutes for each method. All methods
see the same batches and start from the same model. One with a rank runs at the rank of the reference, LoRA of rank 8,
and at the rank at which it trains about as many parameters; one without runs as it is. The rates are chosen on
validation text, with a seed of their own; what is compared is the loss on test text, seed by seed.
"""

from __future__ import annotations

import hashlib
import math
import platform
import re
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..data import excerpts, python_source, random_windows
from ..files import check_free, check_writable, read_json, to_json, write_files, write_whole
from ..models.sources import BUILTIN
from ..process import blas_threads, folder_lock
from ..spelling import counted
from ..training.metrics import paired_test, student_t
from .cluster import Client, connected
from .demo import step_costs
from .finetuning import fit_adapter
from .methods_cells import BATCH, LENGTH, Cell, adapted, cells_of, count
from .methods_figure import methods_figure
from .methods_report import PNG, headlines
from .parallel import check_joblib, run_all
from .pretraining import bits_per_byte

STEPS = 80
EXCERPT = 16384  # bytes of the text of a measurement
RATE, MOST = 0.016, 12  # rates are 0.016 · 2^k, k from -12 to 12
SEARCH_SEED = 1000  # of the runs that choose the rate
RATES = BUILTIN.parent / "rates.json"  # what a search found
RUNS, TASK, JSON, FOUND = "runs", "task.json", "methods.json", "rates.json"
REPEAT = "minilora compare --methods all --search --out DIR"


@blas_threads()
def compare_methods(
    methods: Sequence[str],
    out: str | Path,
    *,
    seeds: int = 3,
    jobs: int = 2,
    cluster: str | None = None,
    search: bool = False,
    resume: bool = False,
) -> dict[str, Any]:
    """Compare `methods`: names of variants, "full", or "all" of these; a name may go on with options of the variant's
    own, as in "dora:through_norm=false".

    A method whose rates the package has recorded takes the best of them; those of others are searched, and with
    `search` those of all. `jobs` runs go at a time, in processes; with `cluster`, the address of a Dask scheduler, its
    workers run them (cluster.py). Each run leaves a file in out/runs, so that with `resume` a comparison that was
    stopped goes on, also with further methods or seeds.

    `out` then holds methods.json, which is also returned, methods.png, and rates.json with every rate that was tried.
    What cannot be attached to the built-in model is left out, with the reason. Raises ValueError, OSError or
    ImportError for bad input, before anything is made.
    """
    check_joblib("a comparison of methods")
    student_t()
    out = Path(out)
    if min(seeds - 1, jobs) < 1:
        raise ValueError(f"{seeds} seeds, {jobs} jobs: give at least two seeds, for a standard deviation, and one job")
    cells, left_out = cells_of(methods)
    task = {"steps": STEPS, "batch": BATCH, "length": LENGTH, "python": platform.python_version()}
    with folder_lock(out), connected(cluster, out, ()) as client:
        check_folder(out, task, resume)
        (out / RUNS).mkdir(parents=True, exist_ok=True)
        try:
            write_whole(out / RUNS / TASK, to_json(task))
            tried = search_rates(cells, out, client or jobs, {} if search else recorded(task))
            best = {name: min(rates, key=lambda k: rates[k]) for name, rates in tried.items()}
            calls = [(out, cell, best[cell.name], seed, "test") for cell in cells for seed in range(seeds)]
            runs = run_all(run, calls, client or jobs, 1, "training", "run")
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"stopped; what is done is kept in {out}; the same command with --resume goes on"
            ) from None
        report = {
            "task": task,
            "seeds": seeds,
            "rows": rows_of(cells, best, tried, [runs[i : i + seeds] for i in range(0, len(runs), seeds)]),
            "left_out": left_out,
            "seconds": sum(read_json(file).get("seconds", 0.0) for file in (out / RUNS).glob("*-*.json")),
        }
        rates = {name: {"best": rate(best[name]), "bits_per_byte": in_rates(tried[name])} for name in tried}
        files = {JSON: to_json(report), PNG: methods_figure(report, headlines(report))}
        write_files(
            out, files | {FOUND: to_json({"task": task, "seed": SEARCH_SEED, "made by": REPEAT, "rates": rates})}
        )
    return report


# ---- runs ----


def check_folder(out: Path, task: dict[str, Any], resume: bool) -> None:
    """Raise ValueError or OSError unless a comparison can begin in `out`, or go on there."""
    before = out / RUNS / TASK
    if not resume:
        if before.is_file():
            raise ValueError(f"{out} already holds a comparison: --resume goes on with it, or choose another folder")
        check_free(out)
    elif not before.is_file():
        raise FileNotFoundError(f"{out} holds no comparison to resume: start it without --resume")
    elif read_json(before) != task:
        raise ValueError(f"{out} holds runs of another task, {read_json(before)}, not {task}: choose another folder")
    else:
        check_writable(out, (JSON, PNG, FOUND))


def run(out: Path, cell: Cell, k: int, seed: int, part: str) -> float:
    """Bits per byte of the validation or test text after one training; inf for one that diverges. A file in out/runs
    holds it, and where that is there already, nothing is trained."""
    name = re.sub(r"[^\w.]+", "_", cell.name)
    name = name if len(name) < 80 else f"{name[:60]}_{hashlib.sha256(name.encode()).hexdigest()[:12]}"
    file = out / RUNS / f"{name}-{k}-{seed}-{part}.json"
    if file.is_file():
        held = read_json(file)["bits_per_byte"]
        return math.inf if held is None else float(held)
    start, source, model = time.process_time(), python_source(), adapted(cell, seed)
    found: dict[str, Any] = {"cell": cell.name, "rate": rate(k), "seed": seed, "bits_per_byte": None}
    try:
        fit_adapter(
            model, random_windows(source.train, BATCH, LENGTH, seed), STEPS,
            cell.settings(lr=rate(k), warmup=STEPS // 8, seed=seed, shards=1), description="training",
        )  # fmt: skip
        loss = bits_per_byte(model, excerpts(getattr(source, part), EXCERPT), 1, "measuring")
        found["bits_per_byte"] = loss if math.isfinite(loss) else None
    except FloatingPointError as error:
        found["failed"] = str(error).partition(":")[0]
    write_whole(file, to_json(found | {"seconds": time.process_time() - start}))
    return math.inf if found["bits_per_byte"] is None else float(found["bits_per_byte"])


# ---- learning rates ----


def rate(k: int) -> float:
    return RATE * 2.0**k


def in_rates(tried: Mapping[int, float]) -> dict[str, float | None]:
    """{rate: bits per byte}, None for a run that diverged."""
    return {f"{rate(k):.6g}": tried[k] if math.isfinite(tried[k]) else None for k in sorted(tried)}


def next_rates(tried: Mapping[int, float]) -> list[int]:
    """The k of the rates to try next: three by factors of 4; further ones while the best is at an edge; then those by a
    factor of 2 beside the best. [] when it is between two that are worse, each by a factor of 2."""
    if not tried:
        return [-2, 0, 2]
    best = min(sorted(tried), key=lambda k: tried[k])
    beside = ([best - 2, best + 2], [best - 1, best + 1]) if best % 2 == 0 else ([best - 1, best + 1],)
    for pair in beside:
        if missing := [k for k in pair if k not in tried and abs(k) <= MOST]:
            return missing
    return []


def search_rates(
    cells: Sequence[Cell], out: Path, jobs: int | Client, known: Mapping[str, Mapping[int, float]]
) -> dict[str, dict[int, float]]:
    """{name of a cell: {k: bits per byte of validation text}}, of those that are not `known` by training."""
    tried: dict[str, dict[int, float]] = {cell.name: dict(known.get(cell.name, {})) for cell in cells}
    for turn in range(1, 2 * MOST):
        todo = [(cell, k) for cell in cells if cell.name not in known for k in next_rates(tried[cell.name])]
        if not todo:
            break
        calls = [(out, cell, k, SEARCH_SEED, "validation") for cell, k in todo]
        for (cell, k), loss in zip(todo, run_all(run, calls, jobs, 1, f"rates, round {turn}", "run"), strict=True):
            tried[cell.name][k] = loss
    return tried


def recorded(task: dict[str, Any]) -> dict[str, dict[int, float]]:
    """What the package's rates.json holds of this task, under any Python: {name of a cell: {k: bits per byte}}."""
    held = read_json(RATES) if RATES.is_file() else {}
    of_task = held.get("task", {})
    if any(of_task.get(key) != value for key, value in task.items() if key != "python"):
        return {}
    return {
        name: {
            round(math.log2(float(lr) / RATE)): math.inf if loss is None else loss
            for lr, loss in cell["bits_per_byte"].items()
        }
        for name, cell in held["rates"].items()
    }


# ---- the report ----


def rows_of(
    cells: Sequence[Cell], best: Mapping[str, int], tried: Mapping[str, Mapping[int, float]], runs: list[list[float]]
) -> list[dict[str, Any]]:
    """A row for each cell, the best first: its losses with mean and standard deviation, the difference to the reference
    with its 95% interval over the seeds, the bytes of a step, and its time as a multiple of the reference's; the two
    are timed alternately."""
    source = python_source()
    rows: list[dict[str, Any]] = []
    for cell, losses in zip(cells, runs, strict=True):
        costs = step_costs({"reference": adapted(cells[0]), "cell": adapted(cell)}, source, 0)
        edge = [k for k in (best[cell.name] - 1, best[cell.name] + 1) if k not in tried[cell.name]]
        row: dict[str, Any] = {
            "name": cell.name, "method": cell.method, "r": cell.r, "why": cell.why, "trainable": count(cell),
            "memory": costs["cell"]["memory"],
            "step_time": costs["cell"]["step_seconds"] / costs["reference"]["step_seconds"] if rows else 1.0,
            "rate": rate(best[cell.name]), "rates": in_rates(tried[cell.name]), "at_the_edge": bool(edge),
            "bits_per_byte": [x if math.isfinite(x) else None for x in losses],
            "mean": None, "standard_deviation": None, "difference": None,
        }  # fmt: skip
        if all(map(math.isfinite, losses)):
            row |= {"mean": statistics.fmean(losses), "standard_deviation": statistics.stdev(losses)}
            if cell is not cells[0] and all(map(math.isfinite, runs[0])):
                each = [a - b for a, b in zip(losses, runs[0], strict=True)]
                found = paired_test(each, 1, 0)  # seeds share no data, as folds do: the plain t-test
                row["difference"] = {key: found[key] for key in ("mean", "low", "high")}
        rows.append(row)
    return sorted(rows, key=lambda row: (row["mean"] is None, row["mean"]))


def describe_methods(folder: Path) -> dict[str, str]:
    """What `minilora info` prints of the folder of a comparison, finished or not."""
    if not (folder / JSON).is_file():
        done = len(list((folder / RUNS).glob("*-*.json")))
        return {"comparison": f"stopped, {counted(done, 'run')} done: minilora compare --methods ... --resume goes on"}
    report = read_json(folder / JSON)
    names = ", ".join(row["name"] for row in report["rows"])
    return {"comparison": f"{names}; {counted(report['seeds'], 'seed')} of each", "found": headlines(report)[0]}
