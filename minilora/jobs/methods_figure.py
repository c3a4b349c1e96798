"""The figure of methods side by side."""

from __future__ import annotations

from typing import Any

from ..display.plots import BASE, FONT_SIZE, FULL, LORA, new_figure, png_bytes


def methods_figure(report: dict[str, Any], titles: list[str]) -> bytes:
    """A PNG: the loss of each method with its spread against what it trains, the bytes that a step keeps, the time that
    it takes. A number stands for the same method in all three."""
    rows = [row for row in report["rows"] if row["mean"] is not None]
    figure = new_figure(titles[0], 24, 3.5 + 0.42 * max(12, len(rows)), 5)
    losses, kept, seconds = figure.subplots(1, 3, width_ratios=[3, 2, 2])
    colors = [LORA if row["difference"] is None else FULL for row in rows]
    losses_against_size(losses, rows, colors, report["seeds"])
    for ax, title, label in (
        (kept, titles[1], "MiB kept for the backward"),
        (seconds, titles[2], "time of a step (the reference: 1)"),
    ):
        values = [row["memory"]["cache"] / 2**20 if ax is kept else row["step_time"] for row in rows]
        ax.barh(range(len(rows)), values, color=colors)
        names = [f"{i}  {row['name']}" for i, row in enumerate(rows, 1)]
        ax.set_yticks(range(len(rows)), names if ax is kept else [str(i) for i in range(1, len(rows) + 1)])
        ax.invert_yaxis()
        ax.set(title="\n".join(broken(title)), xlabel=label)
    return png_bytes(figure)


def losses_against_size(ax: Any, rows: list[dict[str, Any]], colors: list[str], seeds: int) -> None:
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    for row, color in zip(rows, colors, strict=True):
        x, y = row["trainable"], row["mean"]
        ax.errorbar([x], [y], [row["standard_deviation"]], fmt="o", ms=9, lw=2, capsize=6, color=color)
    reference = next((row for row in rows if row["difference"] is None), None)
    if reference:
        ax.axhline(reference["mean"], color=BASE, ls=":", lw=2)
    ax.set_xscale("log")
    ax.margins(0.12, 0.08)
    number_points(ax, [(row["trainable"], row["mean"]) for row in rows])
    ax.xaxis.set_major_locator(LogLocator())
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set(
        title=f"mean of {seeds} seeds ± standard deviation\n(the line: {reference['name'] if reference else ''})",
        xlabel="trained parameters (log scale)",
        ylabel="bits per byte of test text",
    )


def number_points(ax: Any, points: list[tuple[float, float]]) -> None:
    """A number at each of the points, whose y do not fall; apart from each other, with a line to points that are close
    together."""
    pixels, above = ax.transData.transform(points), 0.0
    line = 1.2 * (FONT_SIZE - 2) * ax.figure.dpi / 72
    for i, (point, (x, y)) in enumerate(zip(points, pixels, strict=True), 1):
        above = max(y, above + line) if i > 1 else y
        at = ax.transData.inverted().transform((x + 3 * line, above))
        arrow = {"arrowstyle": "-", "color": "0.6", "shrinkB": 6}
        ax.annotate(str(i), point, at, va="center", fontsize=FONT_SIZE - 2, arrowprops=arrow)


def broken(title: str) -> list[str]:
    """A title on two lines, after the comma."""
    return title.rsplit(", ", 1)
