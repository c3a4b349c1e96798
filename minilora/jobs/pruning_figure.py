"""The figure of a pruned adapter: loss against bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..display.plots import BASE, FONT_SIZE, FULL, LORA, new_figure, png_bytes

CURVES = {  # label: (how, what of the row is the bytes, colour, style)
    "singular values": ("svd", "bytes", LORA, "o-"),
    "entries, with a bit for each place": ("magnitude_prune", "packed", FULL, "o-"),
    "entries, in the file as it is": ("magnitude_prune", "bytes", FULL, "x"),
}


def pruning_figure(report: dict[str, Any]) -> bytes:
    """A PNG of the rows of pruning.prune(): bits per byte over KiB."""
    figure = new_figure(f"Pruning {Path(report['adapter']).name}: loss against bytes", 13, 7.5)
    ax = figure.subplots()
    for label, (how, size, color, style) in CURVES.items():
        rows = [row for row in report["rows"] if row["how"] == how]
        ax.plot([row[size] / 1024 for row in rows], [row["bits"] for row in rows], style, color=color, lw=3, ms=11,
                label=label)  # fmt: skip
    ax.axhline(report["base"], color=BASE, ls="--", lw=2, label="the base alone")
    ax.set(xlabel="KiB of A and B", ylabel="bits per byte of held-out text")
    ax.set_xlim(left=0)
    ax.legend(frameon=False, fontsize=FONT_SIZE - 2)
    return png_bytes(figure)
