"""The figure of `minilora count --compare`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..display.plots import BASE, FONT_SIZE, FULL, LORA, new_figure, png_bytes


def cost_figure(results: dict[str, dict[str, Any]]) -> bytes:
    """A PNG of several methods on one model: where the bytes of a training step are, and its FLOPs."""
    first = next(iter(results.values()))
    about = f"{first['total']:,} parameters, batch {first['batch']} × {first['tokens']} tokens"
    figure = new_figure(f"One training step of {first['model']}: {about}", 15, 2.6 + 0.8 * len(results), 3)
    bytes_ax, flops_ax = figure.subplots(1, 2, width_ratios=[3, 2], sharey=True)
    memory = {"weights": BASE, "gradients": FULL, "optimizer": "#7fb0e0", "activations": LORA}
    bytes_of = {name: result["memory"] for name, result in results.items()}
    stacked_bars(bytes_ax, bytes_of, memory, "memory", {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30})
    steps, products = {name: result["flops"] for name, result in results.items()}, {"forward": BASE, "backward": FULL}
    stacked_bars(flops_ax, steps, products, "matrix products", {"MFLOP": 1e6, "GFLOP": 1e9, "TFLOP": 1e12})
    bytes_ax.invert_yaxis()  # the first method on top
    return png_bytes(figure)


def stacked_bars(
    ax: Any, rows: dict[str, dict[str, Any]], colors: dict[str, str], label: str, scales: Mapping[str, float]
) -> None:
    """A bar for each row, its parts side by side and their sum at its end, in a unit that keeps it above 1."""
    totals = [sum(row[part] for part in colors) for row in rows.values()]
    units = [name for name, size in scales.items() if size <= max(totals)]
    unit = units[-1] if units else next(iter(scales))
    left = [0.0] * len(rows)
    for part, color in colors.items():
        widths = [row[part] / scales[unit] for row in rows.values()]
        bars = ax.barh(list(rows), widths, 0.7, left, color=color, label=part)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    ax.bar_label(
        bars, [f" {total:,.0f}" if total >= 100 else f" {total:.3g}" for total in left], fontsize=FONT_SIZE - 1
    )
    ax.margins(x=0.2)
    ax.set_xlabel(f"{label} ({unit})")
    ax.legend(frameon=False, ncols=len(colors), loc="lower center", bbox_to_anchor=(0.5, 1.0), fontsize=FONT_SIZE - 2,
              columnspacing=1, handlelength=1.2)  # fmt: skip
