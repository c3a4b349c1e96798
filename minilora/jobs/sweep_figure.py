"""The figure of a sweep."""

from __future__ import annotations

from typing import Any

from ..display.plots import BASE, FONT_SIZE, FULL, LORA, new_figure, png_bytes


def sweep_figure(report: dict[str, Any], title: str) -> bytes:
    """A PNG of a sweep: the losses of the ranks beside that of the base, and enlarged, with the spread over seeds."""
    figure = new_figure(title, 15, 8.5, 5)
    whole, close = figure.subplots(1, 2, width_ratios=[2, 3])
    rows = [row for row in report["ranks"] if row["mean"] is not None]
    best = next(row for row in rows if name_of(row) == report["best"])
    for ax, name in ((whole, "Beside the base"), (close, "Closer by")):
        rank_losses(ax, rows, report["pareto"])
        ax.set(title=name, xlabel="trained parameters (log scale)", ylabel="bits per byte of validation text")
    line = whole.axhline(report["base_bits_per_byte"], color=BASE, ls="--", lw=2, label="base model, frozen")
    if best["standard_error"] is not None:
        close.axhspan(best["mean"], best["mean"] + best["standard_error"], color=LORA, alpha=0.15, lw=0,
                      label="within one standard error of the best")  # fmt: skip
    for row in rows:
        weight = "bold" if name_of(row) == report["chosen"] else "normal"
        what = name_of(row)
        name = f"r = {what}" if isinstance(what, int) else what
        close.annotate(name, (row["trainable"], row["mean"]), (12, 10), fontsize=18, weight=weight,
                       textcoords="offset points")  # fmt: skip
    close.margins(x=0.3)  # room for the last of these names
    handles = [line, *close.get_legend_handles_labels()[0]]
    figure.legend(handles=handles, frameon=False, fontsize=FONT_SIZE - 1, loc="outside lower center", ncols=3)
    return png_bytes(figure)


def name_of(row: dict[str, Any]) -> int | str:
    """The rank of a row of sweep.json; of a sweep of methods "vera, r = 8", or "ia3"."""
    if "method" not in row:
        return row["rank"]
    return f"{row['method']}, r = {row['rank']}" if "rank" in row else row["method"]


def rank_losses(ax: Any, rows: list[dict[str, Any]], pareto: list[int | str]) -> None:
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    seeds, label, errors = len(rows[0]["seeds"]), "one seed", None
    sizes, means = [row["trainable"] for row in rows], [row["mean"] for row in rows]
    frontier = [(row["trainable"], row["mean"]) for row in rows if name_of(row) in pareto]
    ax.step(*zip(*frontier, strict=True), where="post", color=FULL, lw=2, label="Pareto frontier")
    if seeds > 1:
        each = [(row["trainable"], seed["bits_per_byte"]) for row in rows for seed in row["seeds"]]
        ax.plot(*zip(*each, strict=True), "x", ms=9, color=BASE, label=label)
        label, errors = f"mean of {seeds} seeds ± one standard error", [row["standard_error"] for row in rows]
    ax.errorbar(sizes, means, errors, fmt="o", ms=9, lw=2.5, capsize=9, capthick=2.5, color=LORA, label=label)
    ax.set_xscale("log")
    ax.margins(0.16, 0.1)
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    ax.xaxis.set_minor_formatter(NullFormatter())
