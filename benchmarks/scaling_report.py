"""The report of `python -m benchmarks scaling` in tables: exponents, points, and models predicted."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

import numpy as np

from minilora.accounting import NAMED, weight_bytes
from minilora.display.tables import numbers_right, wide_console
from minilora.spelling import choose_from, counted

from .report import machine_line, milliseconds
from .scaling import (
    Point,
    all_points,
    base_seconds,
    cores_of,
    counts,
    exponents,
    faster,
    fit_seconds,
    models_of,
    on_cores,
    pairs_of,
    predict,
)

STEPS = 1000  # of a fine-tuning
DAY, GIB = 86400, 2**30
HELD = "float32", "bfloat16", "nf4-dq"
GPU, GPU_PEAK = "A100", 312e12  # FLOPs a second in bfloat16, without sparsity: NVIDIA's data sheet of the A100 (2021)
MODELS = "gpt2", "gpt2-xl", "gemma-3-1b", "mistral-7b", "llama-3.1-8b", "llama-2-13b", "llama-2-70b"


def show(report: dict[str, Any], models: Sequence[str] = MODELS) -> None:
    """Print what was measured; and time and memory of `models`, names of accounting's, as they follow from it."""
    console, first = wide_console(), next(iter(report["axes"].values()))[0]
    versions = ", ".join(f"{name} {version}" for name, version in first["about"].items())
    console.print(f"{machine_line(report)}, {versions}", soft_wrap=True)
    fits = {cores: fit_seconds(all_points(report, cores)) for cores in cores_of(report)}
    console.print(exponents_table(report))
    console.print(points_table(report))
    for line in fitted(report, fits):
        console.print(line, soft_wrap=True)
    console.print(held_out_table(report, fits))
    predicted = [(name, Point(model=name, batch=2, tokens=512)) for name in models]
    console.print(times_table(predicted, fits))
    console.print(bytes_table(predicted, fits, report["machine"]["memory"]))


def check_models(names: Sequence[str]) -> None:
    """Raise ValueError for a name that accounting does not know, or a model that reads fewer tokens."""
    for name in names:
        if name not in NAMED:
            raise ValueError(f"no model is called {name!r}: {choose_from(name, NAMED)}")
        Point(model=name, batch=2, tokens=512).account()


def exponents_table(report: dict[str, Any]) -> Any:
    title = "p where time or memory grows as xᵖ; rounds: its range over them; last: of the last two points"
    columns = "x", "from", "to", "cores", "time", "rounds", "FLOPs", "last: time", "FLOPs", "memory", "bytes"
    table = numbers_right(title, *columns)
    for axis, measured in report["axes"].items():
        for cores in cores_of(report):
            points = on_cores(measured, cores)
            p, (low, high) = (found := exponents(axis, points)), found["rounds"]
            ends = (str(points[i]["point"][axis]) for i in (0, -1))
            table.add_row(
                axis, *ends, str(cores), f"{p['time']:.2f}", f"{low:.2f}–{high:.2f}", f"{p['flops']:.2f}",
                f"{p['last time']:.2f}", f"{p['last flops']:.2f}", f"{p['memory']:.2f}", f"{p['bytes']:.2f}",
            )  # fmt: skip
    return table


def points_table(report: dict[str, Any]) -> Any:
    """Every point on the first number of cores, and what more bring."""
    base, rounds = report["base"], len(next(iter(report["axes"].values()))[0]["rounds"])
    about = ", ".join(
        f"{name} {value}" for name, value in base.items() if name in ("width", "depth", "tokens", "batch")
    )
    title = f"a step of LoRA, r = {base['rank']} on q and v, of a GPT-2 of {about}; medians of {rounds} rounds"
    first, *more = cores_of(report)
    columns = [cell for n in more for cell in (counted(n, "core"), "× faster", "rounds")]
    names = "x", "GFLOP", counted(first, "core"), "GFLOP/s", *columns, "memory", "counted", "ratio"
    table = numbers_right(title, *names)
    for axis, measured in report["axes"].items():
        ratios = {Point(**b["point"]): (b, faster(a, b)) for a, b in pairs_of(measured)}
        for each in on_cores(measured, first):
            gflop = each["flops"] / 1e9
            cells = [f"{axis} {each['point'][axis]}", f"{gflop:,.1f}", milliseconds(each["seconds"])]
            cells.append(f"{gflop / each['seconds']:.0f}")
            for n in more:
                other, times = ratios.get(Point(**each["point"] | {"cores": n}), (None, []))
                cells += ([milliseconds(other["seconds"]), f"{median(times):.2f}", f"{min(times):.2f}–{max(times):.2f}"]
                          if other else [""] * 3)  # fmt: skip
            table.add_row(*cells, *memory_cells(each))
        table.add_section()
    return table


def memory_cells(each: dict[str, Any]) -> tuple[str, str, str]:
    found = sum(each["bytes"].values())
    return f"{each['peak'] / 2**20:,.1f} MiB", f"{found / 2**20:,.1f} MiB", f"{each['peak'] / found:.2f}"


# ---- from what was measured to what was not ----


def fitted(report: dict[str, Any], fits: dict[int, np.ndarray]) -> list[str]:
    """For each number of cores, what the fit found, and how far it is from the points that it was fitted to."""
    each = " and ".join(f"{milliseconds(base_seconds(report, n))} on {counted(n, 'core')}" for n in fits)
    lines = [f"the fit: seconds relative to those of {Point(**report['base'])} in the same rounds, which are {each}"]
    for cores, (flop, byte, array) in fits.items():
        points = all_points(report, cores)
        off = [abs(predict(each, fits[cores]) / each["seconds"] - 1) for each in points]
        found = [f"FLOPs at {1e-9 / flop:,.1f} GFLOP/s"] if flop else []
        found += [f"bytes kept at {1e-9 / byte:,.2f} GB/s"] if byte else []
        found += [f"{1e6 * array:,.0f} µs for each array kept"] if array else []
        said = f"{median(off):.0%} off in the median and {max(off):.0%} at most, over {len(points)} points"
        lines.append(f"s on {counted(cores, 'core')} = {' + '.join(found)}: {said}")
    return lines


def held_out_table(report: dict[str, Any], fits: dict[int, np.ndarray]) -> Any:
    """Steps that were measured and not fitted."""
    names = "cores", "predicted", "measured", "ratio", "memory", "counted", "ratio"
    table = numbers_right("models not used for the fit", "model", *names)
    for cores, fit in fits.items():
        for each in models_of(report, cores):
            seconds, measured = predict(each, fit), each["seconds"]
            times = f"{seconds:.2f} s", f"{measured:.2f} s", f"{seconds / measured:.2f}"
            table.add_row(str(Point(**each["point"])), str(cores), *times, *memory_cells(each))
    return table


def times_table(models: Sequence[tuple[str, Point]], fits: dict[int, np.ndarray]) -> Any:
    """What STEPS take here, on as many cores as is fastest, and at least on a GPU."""
    about = f"{GPU}: all at its peak of {GPU_PEAK / 1e12:.0f} TFLOP/s"
    steps = [f"s, {counted(cores, 'core')}" for cores in fits]
    names = "parameters", "TFLOP", *steps, f"{STEPS:,} steps", f"on an {GPU}", "× faster, at most"
    table = numbers_right(f"predicted: LoRA, r = 8 on q and v, 2 × 512 tokens a step; {about}", "model", *names)
    for name, point in models:
        found = counts(point)
        seconds = [predict(found, fit) for fit in fits.values()]
        there = found["flops"] / GPU_PEAK
        table.add_row(
            name, f"{point.account().total / 1e9:.2f}B", f"{found['flops'] / 1e12:.2f}",
            *(f"{s:,.1f}" for s in seconds), duration(STEPS * min(seconds)), duration(STEPS * there),
            f"{min(seconds) / there:,.0f}",
        )  # fmt: skip
    return table


def bytes_table(models: Sequence[tuple[str, Point]], fits: dict[int, np.ndarray], machine: int) -> Any:
    """What a step needs, and whether STEPS of it end within a day in the memory of this machine."""
    has = f"{machine / GIB:.1f} GiB" if machine else "what the system does not say"
    title = f"the base in each format, and the rest of such a step in float32; this machine has {has}"
    names = *HELD, "the rest", "at least", "fits here", f"{STEPS:,} steps in a day"
    table = numbers_right(title, "model", *names)
    for name, point in models:
        found, model = counts(point), point.account().model
        held = {dtype: weight_bytes(model, dtype) for dtype in HELD}
        rest = sum(found["bytes"].values()) - held["float32"]
        fits_here = [dtype for dtype, nbytes in held.items() if nbytes + rest <= machine]
        in_time = STEPS * min(predict(found, fit) for fit in fits.values()) <= DAY
        gib = (f"{nbytes / GIB:,.2f} GiB" for nbytes in (*held.values(), rest, min(held.values()) + rest))
        answers = f"in {fits_here[0]}" if fits_here else "no", "yes" if fits_here and in_time else "no"
        answers = answers if machine else ("?", "?")
        table.add_row(name, *gib, *answers)
    return table


def duration(seconds: float) -> str:
    for name, size in (("days", DAY), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:,.1f} {name}"
    return f"{seconds:.1f} s"
