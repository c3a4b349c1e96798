"""The report of `python -m benchmarks scaling` as a picture."""

from __future__ import annotations

from statistics import median
from typing import Any

from minilora.display.plots import BASE, FONT_SIZE, FULL, LORA, png_bytes
from minilora.spelling import counted

from .scaling import (
    Point,
    all_points,
    cores_of,
    exponents,
    faster,
    fit_seconds,
    models_of,
    on_cores,
    pairs_of,
    predict,
)

COLUMNS = 3
STYLES: tuple[dict[str, Any], ...] = (
    {"color": LORA, "marker": "o", "ms": 10},
    {"color": BASE, "marker": "s", "ms": 10, "mfc": "none", "mew": 2.5},
)
WHAT = {"time": ("FLOPs", "flops", "ms"), "memory": ("bytes", "bytes", "MiB")}


def scaling_figure(report: dict[str, Any]) -> bytes:
    """A PNG: time and memory along each axis, dots measured and lines counted (of FLOPs, through the point that all
    axes share), what more cores bring, and the fit beside the models that
    it does not know."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    things = [*report["axes"], ""]  # the last: what more cores bring, and the fit
    rows = 2 * -(-len(things) // COLUMNS)
    figure = Figure(figsize=(17, 1.5 + 4.6 * rows), layout="constrained", dpi=80)
    grid = figure.subplots(rows, COLUMNS, squeeze=False)
    for i in range(rows // 2 * COLUMNS):
        above, below = (grid[2 * (i // COLUMNS) + k, i % COLUMNS] for k in (0, 1))
        axis = things[i] if i < len(things) else None
        if axis:
            draw_axis(above, report, axis, "time")
            draw_axis(below, report, axis, "memory")
        elif axis is None:
            above.axis("off")
            below.axis("off")
        else:
            draw_cores(above, report)
            draw_fit(below, report)
    cores = cores_of(report)
    handles = [
        Line2D([], [], ls="", label=f"measured, {counted(n, 'core')}", **STYLES[i % 2]) for i, n in enumerate(cores)
    ]
    handles.append(Line2D([], [], color=FULL, lw=2.5, label="counted: FLOPs, bytes"))
    figure.legend(handles=handles, frameon=False, fontsize=FONT_SIZE, loc="outside lower center", ncols=len(handles))
    figure.suptitle(f"A LoRA step of a GPT-2 around {Point(**report['base'])}", fontsize=FONT_SIZE + 4)
    return png_bytes(figure)


def value(each: dict[str, Any], what: str) -> float:
    return 1e3 * each["seconds"] if what == "time" else each["peak"] / 2**20


def draw_axis(ax: Any, report: dict[str, Any], axis: str, what: str) -> None:
    cores, points = cores_of(report), report["axes"][axis]
    one, (words, key, unit) = on_cores(points, cores[0]), WHAT[what]
    x = [each["point"][axis] for each in one]
    said = [each["flops"] if what == "time" else sum(each["bytes"].values()) / 2**20 for each in one]
    if what == "time":
        base = next((i for i, at in enumerate(x) if at == report["base"][axis]), 0)
        said = [y * value(one[base], what) / said[base] for y in said]
    ax.plot(x, said, color=FULL, lw=2.5)
    for n, style in zip(cores, STYLES, strict=False):
        these = on_cores(points, n)
        ax.plot([e["point"][axis] for e in these], [value(e, what) for e in these], ls="", **style)
    p = exponents(axis, one)
    ax.set_title(f"{axis}: {what} {p[what]:.2f}, {words} {p[key]:.2f}")
    logarithmic(ax, x)
    everything = [value(e, what) for n in cores for e in all_points(report, n)]
    ax.set_ylim(min(everything) / 1.6, max(everything) * 1.6)  # of all panels alike: slopes can be compared
    ax.set(ylabel=unit)


def logarithmic(ax: Any, x: list[int]) -> None:
    """Both ways, with the points as ticks."""
    from matplotlib.ticker import NullLocator

    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xticks(x, [str(at) for at in x])
    ax.yaxis.set_major_formatter("{x:g}")
    ax.grid(alpha=0.3)


def draw_cores(ax: Any, report: dict[str, Any]) -> None:
    for points in report["axes"].values():
        for one, other in pairs_of(points):
            ratios = faster(one, other)
            ax.plot([one["flops"] / 1e9] * 2, [min(ratios), max(ratios)], color=BASE, lw=1.5, alpha=0.6)
            ax.plot(one["flops"] / 1e9, median(ratios), **STYLES[1])
    ax.axhline(1, color="black", lw=1.5)
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter("{x:g}")
    ax.set_ylim(bottom=0)
    ax.set(title="more cores: times faster than one", xlabel="GFLOP of a step")
    ax.grid(alpha=0.3)


def draw_fit(ax: Any, report: dict[str, Any]) -> None:
    ends = []
    for n, style in zip(cores_of(report), STYLES, strict=False):
        seconds = fit_seconds(all_points(report, n))
        for points, more in ((all_points(report, n), {"alpha": 0.3}), (models_of(report, n), {"ms": 14})):
            pairs = [(each["seconds"], predict(each, seconds)) for each in points]
            ends += [end for pair in pairs for end in pair]
            ax.plot(*zip(*pairs, strict=True) if pairs else ([], []), ls="", **style | more)
    ax.plot([min(ends), max(ends)], [min(ends), max(ends)], color="black", lw=1.5)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set(title="the fit; large: not fitted", xlabel="seconds measured", ylabel="predicted")
    for side in (ax.xaxis, ax.yaxis):
        side.set_major_formatter("{x:g}")
    ax.grid(alpha=0.3)
