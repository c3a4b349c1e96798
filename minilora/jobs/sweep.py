"""Choosing a rank, or a method: a fine-tuning run for each of them and each seed, and the smallest that is good enough.

Alpha and the learning rate are the same at every rank, so that the scale s = α/r, or α/√r with rslora, falls as r grows
(the convention of Hu et al., 2021, section 4.1). A seed gives the same batches at every rank and to every method. A
method may do better at another learning rate: methods.py compares each at its own.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ..accounting import count_parameters
from ..adapters import DEFAULT
from ..files import check_free, check_writable, read_json, to_json, write_whole
from ..models.pretrained import load_pretrained
from ..process import folder_lock
from ..spelling import counted
from .bases import base_for
from .cluster import connected
from .finetuning import ShowData, attach, base_format, finetune, options_of, settings_of
from .parallel import check_joblib, run_all
from .runs import CHECKPOINT, SETTINGS, check_settings, progress, read_settings
from .settings import OF_METHOD, LanguageModelSettings
from .sweep_figure import name_of, sweep_figure
from .sweep_report import PNG, failures, headline
from .text import Task

JSON = "sweep.json"
CELLS = f"*/seed-*/{SETTINGS}"  # where a sweep that has begun has its cells
Cell = dict[str, Any]  # {"method": ..., "rank": ..., "seed": ...}, without the method where all have one
Grid = dict[Path, Cell]  # {its folder: a cell}
Row = dict[str, Any]  # of sweep.json: the results of a rank, or of a method at a rank


def sweep(
    base: str,
    data: str,
    out: str | Path,
    ranks: Sequence[int],
    seeds: int = 3,
    *,
    methods: Sequence[str] = (),
    jobs: int = 2,
    cluster: str | None = None,
    shards: int = 1,
    threads: int = 1,
    resume: bool = False,
    show_data: ShowData | None = None,
    backend: ModuleType = np,
    **options: Any,
) -> dict[str, Any]:
    """Fine-tune at every rank with the seeds 0, 1, ..., seeds - 1, and compare the ranks by their validation loss.

    A cell is one rank and one seed: a run of `finetune` on a text with `options`, in out/rank-R/seed-S. With `methods`
    it is one of them at one rank, in out/METHOD-rank-R/seed-S, or in out/METHOD/seed-S where it has none. joblib runs
    `jobs` cells at a time, in processes, or where joblib.parallel_config says (threads, Ray): results do not depend on
    their number. With `cluster`, the address of a Dask scheduler, its workers run them instead (cluster.py). `shards`,
    the threads in a cell, and `threads`, those of BLAS, do change bytes; so they are settings, and never taken from the
    machine. With `resume` the cells that are done are kept, those that were begun go on, and ranks and seeds may be
    added.

    `out` then holds sweep.json, which is also returned, and sweep.png. The loss of a cell is its lowest on validation
    text after step 0, in bits per byte. A cell that diverges has failed and the others go on; its rank has no mean,
    which would be over the lucky seeds alone.

    `show_data` is called before the first cell with statistics of the data, which data.print_data prints. Raises
    ValueError, OSError or ImportError for bad input, before anything is made; FloatingPointError, after sweep.json is
    written, when no rank finished with every seed.
    """
    check_joblib("a sweep")
    out, ranks = Path(out), sorted(ranks)
    if min(seeds, jobs, threads) < 1 or not ranks or len(set(ranks)) < len(ranks):
        given = f"ranks {ranks}, {seeds} seeds, {jobs} jobs, {threads} threads"
        raise ValueError(f"{given}: give each rank once, and at least one of each")
    if methods and ("method" in options or len(set(methods)) < len(methods)):
        raise ValueError("give each of the methods once, and not together with one method")
    if not methods and "r" not in options_of(options.get("method", DEFAULT)):
        raise ValueError(f"{options['method']} has no rank to sweep")
    options |= {"shards": shards}
    kinds = kinds_of(methods, ranks)
    grid = {out / name / f"seed-{i}": {**kind, "seed": i} for name, kind in kinds.items() for i in range(seeds)}
    inputs = [base, data, *(value for value in options.values() if isinstance(value, str))]  # a teacher, for example
    with folder_lock(out) as killed, connected(cluster, out, inputs) as client:
        check_folder(out, begun(grid), resume, killed)
        base = str(base_for(next(iter(begun(grid)), out), base))  # one commit for all cells
        trainable = check_input(grid, base, data, options, show_data)
        options |= {"base": base, "data": data, "backend": backend.__name__}  # a module cannot be pickled
        try:
            cells = [(folder, options | cell) for folder, cell in grid.items()]
            outcomes = run_all(run_cell, cells, client or jobs, threads, "sweeping", "cell")
        except KeyboardInterrupt:
            stopped = f"stopped; what is done is kept in {out}; the same command with --resume goes on"
            raise KeyboardInterrupt(*[stopped] if begun(grid) else []) from None
        settings = read_json(next(iter(grid)) / SETTINGS) | {"ranks": ranks, "seeds": seeds}
        own = ["rank", "seed"]
        if methods:
            settings["methods"] = list(methods)
            own += ["method", "targets", *OF_METHOD]
        rows = [
            {**kind, "trainable": trainable[name], **summary(outcomes[i * seeds : (i + 1) * seeds])}
            for i, (name, kind) in enumerate(kinds.items())
        ]
        rows.sort(key=lambda row: row["trainable"])
        report = {
            "settings": {key: value for key, value in settings.items() if key not in own},
            "base_bits_per_byte": next((losses[0] for losses in outcomes if not isinstance(losses, str)), None),
            "ranks": rows,
            **choose(rows),
        }
        write_whole(out / JSON, to_json(report))
        if report["best"] is None:
            first_failure = failures(report)[0]
            what = "method" if methods else "rank"
            raise FloatingPointError(f"no {what} finished with every seed; {first_failure}: lower the learning rate")
        write_whole(out / PNG, sweep_figure(report, headline(report)))
    return report


def kinds_of(methods: Sequence[str], ranks: Sequence[int]) -> dict[str, Cell]:
    """{name of a folder: a cell without its seed}"""
    if not methods:
        return {f"rank-{rank}": {"rank": rank} for rank in ranks}
    found: dict[str, Cell] = {}
    for method in methods:
        if "r" in options_of(method):
            found |= {f"{method}-rank-{rank}": {"method": method, "rank": rank} for rank in ranks}
        else:
            found[method] = {"method": method}
    return found


def begun(grid: Grid) -> list[Path]:
    return [folder for folder in grid if (folder / SETTINGS).is_file()]


def check_folder(out: Path, cells: list[Path], resume: bool, killed: bool) -> None:
    """Raise ValueError or OSError unless the sweep can begin in `out`, or go on there; `cells` have begun. A sweep that
    was `killed` before its first cell began can be resumed too."""
    if resume:
        if not cells and not killed:
            raise FileNotFoundError(f"{out} holds no cell of this sweep to resume: start it without --resume")
        check_writable(out, (JSON, PNG))
    elif cells:
        raise ValueError(f"{out} already holds a sweep: --resume goes on with it, or choose another folder")
    else:
        check_free(out)


def check_input(
    grid: Grid, base: str, data: str, options: dict[str, Any], show_data: ShowData | None
) -> dict[str, int]:
    """{folder of the cells of one kind: their trainable parameters}. Raises what a cell would for its input, and
    ValueError for one that was begun with other settings. `show_data` is called with the numbers of the data."""
    settings = {folder: settings_of(LanguageModelSettings, **options | cell) for folder, cell in grid.items()}
    trainable: dict[str, int] = {}
    run = None
    for folder, each in settings.items():
        if folder.parent.name in trainable:
            continue
        if run is None:
            run = Task(base, data, each)
            model = run.model
        else:
            model = load_pretrained(base, quantize=base_format(each))
            attach(model, each, run.batches())
        trainable[folder.parent.name] = count_parameters(model)["trainable"]
    assert run
    for folder, each in settings.items():
        if (folder / CHECKPOINT).is_file():  # or it starts again
            check_settings(folder, run.saved | each.saved())
    if show_data:
        show_data(run.numbers)
    return trainable


def run_cell(folder: Path, options: dict[str, Any]) -> dict[int, float] | str:
    """Begin one cell or go on with it. Returns {step: bits per byte of validation text}, or how it failed, in words."""
    options = options | {"backend": import_module(options["backend"]), "resume": (folder / SETTINGS).is_file()}
    try:
        report = finetune(out=folder, **options)
    except FloatingPointError as error:
        return str(error).partition(":")[0]  # what happened; the rest is advice, and a path
    losses = report["bits_per_byte"]
    bad = [f"the validation loss of step {step} is {loss}" for step, loss in losses.items() if not math.isfinite(loss)]
    return bad[0] if bad else losses


def summary(outcomes: list[dict[int, float] | str]) -> Row:
    """The row of a rank: its seeds, the mean of their losses with its standard error, and their standard deviation
    (n - 1). The mean is None where a seed failed, the spread also where there is one seed."""
    seeds: list[Row] = []
    for outcome in outcomes:
        if isinstance(outcome, str):
            seeds.append({"failed": outcome})
        else:
            loss, step = min((loss, step) for step, loss in outcome.items() if step)
            seeds.append({"bits_per_byte": loss, "at_step": step, "steps": max(outcome)})
    row: Row = {"seeds": seeds, "mean": None, "standard_deviation": None, "standard_error": None}
    losses = [seed["bits_per_byte"] for seed in seeds if "failed" not in seed]
    if len(losses) == len(seeds):
        row["mean"] = statistics.fmean(losses)
        if len(losses) > 1:
            row["standard_deviation"] = statistics.stdev(losses)
            row["standard_error"] = row["standard_deviation"] / math.sqrt(len(losses))
    return row


def choose(rows: list[Row]) -> dict[str, Any]:
    """The best rank, by its mean; the Pareto set, the ranks that do better than every smaller one; and the chosen rank,
    each by name_of().

    That is the smallest whose mean is within one standard error of the best mean, the standard error being that of the
    best rank: the 1 SE rule (Breiman, Friedman, Olshen and Stone, Classification and Regression Trees, 1984, section
    3.4.3). One seed has no standard error: then none is chosen.
    """
    rows = [row for row in rows if row["mean"] is not None]
    best = min(rows, key=lambda row: row["mean"], default=None)
    pareto = [name_of(row) for i, row in enumerate(rows) if all(row["mean"] < other["mean"] for other in rows[:i])]
    chosen = None
    if best and best["standard_error"] is not None:
        bound = best["mean"] + best["standard_error"]
        chosen = next(name_of(row) for row in rows if row["mean"] <= bound)
    return {"best": best and name_of(best), "pareto": pareto, "chosen": chosen}


def describe_sweep(folder: Path) -> dict[str, str]:
    """What `minilora info` prints of the folder of a sweep, finished or not. Raises ValueError for a sweep.json of
    something else."""
    if not (folder / JSON).is_file():
        cells = [path.parent for path in folder.glob(CELLS)]
        done = sum(progress(cell)[0] >= read_settings(cell)["steps"] or progress(cell)[1] for cell in cells)
        return {"sweep": f"stopped, {done} of {counted(len(cells), 'cell')} that were begun are done"}
    report = read_json(folder / JSON)
    try:
        settings, found = report["settings"], headline(report) if report["best"] else "no rank finished"
        methods = f"{', '.join(settings['methods'])} at " if "methods" in settings else ""
        ranks = f"ranks {', '.join(map(str, settings['ranks']))}"
        return {
            "sweep": f"{methods}{ranks}, {counted(settings['seeds'], 'seed')} of each",
            "found": found,
            "on": f"{settings['data']}, {counted(settings['steps'], 'step')} in a run",
        }
    except (KeyError, TypeError, IndexError, ValueError):
        raise ValueError(f"{folder / JSON} is not of a sweep: choose another folder") from None
