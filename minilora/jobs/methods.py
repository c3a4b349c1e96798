"""Methods side by side: each adapts the built-in model to Python source, at its own best learning rate.

The task is that of the demo, with batches half as large, so that all of it takes minutes for each method. All methods
see the same batches and start from the same model. One with a rank runs at the rank of the reference, LoRA of rank 8,
and at the rank at which it trains about as many parameters; one without runs as it is. The rates are chosen on
validation text, with a seed of their own; what is compared is the loss on test text, seed by seed.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
import re
import statistics
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from ..accounting import count_parameters
from ..adapters import DEFAULT
from ..adapters.attach import attach_without_weights
from ..adapters.base import variants
from ..data import excerpts, python_source, random_windows
from ..display.tables import numbers_right, wide_console
from ..files import check_free, check_writable, read_json, to_json, write_files, write_whole
from ..models.pretrained import load_pretrained
from ..models.sources import BUILTIN
from ..models.transformer import Transformer
from ..process import blas_threads, folder_lock
from ..spelling import counted
from ..training.metrics import paired_test, student_t
from .arguments import json_or_text
from .cluster import Client, connected
from .demo import step_costs
from .finetuning import attach, fit_adapter, options_of, settings_of
from .methods_figure import methods_figure
from .parallel import check_joblib, run_all
from .pretraining import bits_per_byte
from .settings import OF_METHOD, LanguageModelSettings

STEPS, BATCH, LENGTH = 80, 8, 128
EXCERPT = 16384  # bytes of the text of a measurement
RANK, SCALE = 8, 2  # of the reference; s = α/r is the same at every rank
RATE, MOST = 0.016, 12  # rates are 0.016 · 2^k, k from -12 to 12
SEARCH_SEED = 1000  # of the runs that choose the rate
FULL = "full"  # full fine-tuning, in addition to the variants
RATES = BUILTIN.parent / "rates.json"  # what a search found
RUNS, TASK, JSON, PNG, FOUND = "runs", "task.json", "methods.json", "methods.png", "rates.json"
REPEAT = "minilora compare --methods all --search --out DIR"


class Cell(NamedTuple):
    """One method at one size."""

    method: str
    option: dict[str, Any]  # of the method alone
    r: int | None  # at the end of the training; None if it has none, or if `option` holds it
    why: str  # "equal rank", "equal parameters", both, or "as it is"

    @property
    def name(self) -> str:
        said = {} if self.r is None else {"r": self.r}
        return " ".join([self.method, *(f"{key}={json.dumps(x)}" for key, x in (said | self.option).items())])

    def settings(self, **more: Any) -> LanguageModelSettings:
        """Those of a run; `more` are further fields."""
        if self.method == FULL:
            return LanguageModelSettings(**more)
        own, fields = options_of(self.method), {name: field for field, name in OF_METHOD.items()}
        given = {name: x for name, x in self.option.items() if name not in fields}
        if self.r is not None:
            more["rank"] = self.r
            if "target_r" in own:  # AdaLoRA starts with half as many more ranks, and cuts them down to r
                more["rank"], given = self.r + self.r // 2, {"target_r": self.r} | given
        if "alpha" in own:
            more["alpha"] = float(SCALE * self.option.get("r", more.get("rank", own["r"])))
        more |= {fields[name]: x for name, x in self.option.items() if name in fields}
        found: LanguageModelSettings = settings_of(
            LanguageModelSettings, method=self.method, option=given or None, **more
        )
        return found


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


# ---- what is compared ----


def cells_of(methods: Sequence[str]) -> tuple[list[Cell], dict[str, str]]:
    """(the cells, the reference first; {method: why it is left out}). Raises ValueError for a name or option that is
    not known."""
    named = [name for word in methods for name in ((*variants(), FULL) if word == "all" else (word,))]
    reference = Cell(DEFAULT, {}, RANK, "equal rank, equal parameters")
    size, cells, left_out = count(reference), [reference], {}
    for word in dict.fromkeys(named):
        method, *pairs = word.split(":")
        option = {name: json_or_text(text) for name, _, text in (pair.partition("=") for pair in pairs)}
        if method == FULL:
            cells.append(Cell(FULL, {}, None, "as it is"))
            continue
        own = options_of(method)
        ranked = "r" in own and "r" not in option
        try:
            found = sized(method, option, size) if ranked else [Cell(method, option, None, "as it is")]
            for cell in found:
                adapted(cell)
        except ValueError as error:
            if option or word in methods:
                raise
            left_out[word] = str(error)
            continue
        cells += [cell for cell in found if cell.name not in {other.name for other in cells}]
    return cells, left_out


def sized(method: str, option: dict[str, Any], size: int) -> list[Cell]:
    """The method at the rank of the reference, and at the rank, up to the model's width, that trains about as many
    numbers as the reference's `size`."""
    counts: dict[int, int] = {}
    for r in range(1, load_pretrained().config.d_model + 1):
        with suppress(ValueError):  # a rank that this method cannot have
            counts[r] = count(Cell(method, option, r, ""))
        if r not in counts or counts[r] > size:
            break
    if not counts:
        return [Cell(method, option, RANK, "equal rank")]  # the error is attach()'s
    nearest = min(counts, key=lambda r: abs(counts[r] - size))
    if nearest == RANK:
        return [Cell(method, option, RANK, "equal rank, equal parameters")]
    near = abs(counts[nearest] - size) <= size / 10
    most = Cell(method, option, nearest, "equal parameters" if near else "as many parameters as it can have")
    return [Cell(method, option, RANK, "equal rank"), most]


def count(cell: Cell) -> int:
    """The trained numbers of a cell, without weights; after the last cut where it cuts some."""
    model, settings = load_pretrained(), cell.settings()
    if cell.method != FULL:
        options: dict[str, Any] = dict(settings.option or {})
        if settings.rank is not None:
            options["r"] = options.get("target_r", settings.rank)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a rank above the smaller side of a weight
            attach_without_weights(model, cell.method, settings.targets, **options)
    return count_parameters(model)["trainable"]


def adapted(cell: Cell, seed: int = 0) -> Transformer:
    """The built-in model, ready for the training of a cell."""
    model = load_pretrained()
    if cell.method != FULL:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # as in count()
            attach(model, cell.settings(seed=seed), random_windows(python_source().train, BATCH, LENGTH, seed))
    return model


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


def verdict(row: dict[str, Any]) -> str:
    """What the interval of the difference says; a difference below 0 is better."""
    if row["mean"] is None:
        return "diverged"
    if row["difference"] is None:
        return "the reference"
    if row["difference"]["high"] < 0:
        return "better"
    return "worse" if row["difference"]["low"] > 0 else "within the spread"


def headlines(report: dict[str, Any]) -> list[str]:
    """What the rows show, of the losses, of the bytes, and of the seconds."""
    rows = [row for row in report["rows"] if row["mean"] is not None]
    reference = next((row for row in rows if verdict(row) == "the reference"), rows[0])
    better, worse = ([row for row in rows if verdict(row) == word] for word in ("better", "worse"))
    name = reference["name"]
    if better:
        gain = -better[0]["difference"]["mean"]
        losses = f"{better[0]['name']} is {gain:.3f} bits per byte better than {name}, beyond the spread"
    else:
        losses = f"No other is better than {name} beyond the spread"
    losses += f"; {counted(len(worse), 'other')} {'is' if len(worse) == 1 else 'are'} worse"
    kept, of = min(rows, key=lambda row: row["memory"]["cache"]), reference["memory"]["cache"]
    bytes_kept = f"{kept['name']} keeps the least, {kept['memory']['cache'] / of:.0%} of {name}'s"
    if kept is reference:
        bytes_kept = f"No other keeps less than {name}"
    slow = max(rows, key=lambda row: row["step_time"])
    times = f"{slow['name']} takes the longest, {slow['step_time']:.1f} times {name}'s"
    if slow is reference:
        times = f"No other takes longer than {name}"
    return [losses, bytes_kept, times]


def describe_methods(folder: Path) -> dict[str, str]:
    """What `minilora info` prints of the folder of a comparison, finished or not."""
    if not (folder / JSON).is_file():
        done = len(list((folder / RUNS).glob("*-*.json")))
        return {"comparison": f"stopped, {counted(done, 'run')} done: minilora compare --methods ... --resume goes on"}
    report = read_json(folder / JSON)
    names = ", ".join(row["name"] for row in report["rows"])
    return {"comparison": f"{names}; {counted(report['seeds'], 'seed')} of each", "found": headlines(report)[0]}


def print_methods(report: dict[str, Any], out: str | Path) -> None:
    """The report as a table, and what follows from it."""
    console, task = wide_console(150), report["task"]
    title = f"Bits per byte of test text after {task['steps']} steps, {report['seeds']} seeds, each at its best rate"
    columns = (
        *("method", "trained", "mean", "std.\ndeviation", "minus\nreference", "95 % interval", "", "rate"),
        *("kept\nMiB", "time of\na step", "why"),
    )
    table = numbers_right(title, *columns, words=(0, 6, 10))
    for row in report["rows"]:
        loss = [f"{row[key]:.4f}" if row["mean"] is not None else "-" for key in ("mean", "standard_deviation")]
        d = row["difference"]
        by = ["", ""] if d is None else [f"{d['mean']:+.4f}", f"{d['low']:+.4f} to {d['high']:+.4f}"]
        at = f"{row['rate']:.4g}{' (edge)' * row['at_the_edge']}"
        cost = f"{row['memory']['cache'] / 2**20:.1f}", f"{row['step_time']:.2f}"
        table.add_row(row["name"], f"{row['trainable']:,}", *loss, *by, verdict(row), at, *cost, row["why"])
    console.print(table)
    compared = sum(row["difference"] is not None for row in report["rows"])
    lines = [f"{line}." for line in headlines(report)]
    lines += [f"Of {counted(compared, 'interval')} at 95 %, one in twenty misses the true difference by chance."]
    lines += ["The seeds change the batches and what is drawn; the model and the texts are the same."]
    lines += [f"Left out: {method}: {reason}" for method, reason in report["left_out"].items()]
    lines += [f"{report['seconds'] / 60:.0f} minutes of training, on one core each; written to {out}"]
    console.print("\n".join([*lines, f"look at {Path(out) / PNG}"]), soft_wrap=True)
