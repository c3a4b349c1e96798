"""The figure of combined adapters: how far they agree, and the loss of each one's task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..display.plots import BASE, FONT_SIZE, FULL, LORA, new_figure, png_bytes

COLORS = LORA, FULL, "#3a9a5c", "#7a4fa3", "#8c2d04"


def combining_figure(result: dict[str, Any]) -> bytes:
    """A PNG: the cosine of ΔW in each layer of each pair of adapters, and the loss of each text before and after."""
    names = [Path(name).name for name in result["weights"]]
    rows = [row for row in result["losses"] if "bits" in row]
    figure = new_figure(
        f"One adapter of {' and '.join(names)}: do they agree, and what becomes of each task?",
        22,
        2.5 + 0.48 * len(rows),
        5,
    )
    agree, losses = figure.subplots(1, 2, width_ratios=(1, 1.7))
    loss_dots(losses, rows, names)
    cosine_bars(agree, result["cosines"])
    return png_bytes(figure)


def loss_dots(ax: Any, rows: list[dict[str, Any]], names: list[str]) -> None:
    """A line for each row, with a dot for each text; the dashed lines are each text's own adapter."""
    for i, (name, color) in enumerate(zip(names, COLORS, strict=False)):
        ax.plot([row["bits"][i] for row in rows], range(len(rows)), "o", ms=12, color=color, label=f"text of {name}")
        ax.axvline(rows[1 + i]["bits"][i], color=color, ls="--", lw=1.5)
    labels = [f"{Path(row['what']).name} alone" if 0 < i <= len(names) else row["what"] for i, row in enumerate(rows)]
    ax.set_yticks(range(len(rows)), labels)
    ax.axhline(len(names) + 0.5, color=BASE, lw=1)
    ax.grid(axis="y", color=BASE, alpha=0.3)
    ax.invert_yaxis()
    ax.set(title="Held-out text: before and after", xlabel="bits per byte (dashed: its own adapter alone)")
    ax.legend(frameon=False, fontsize=FONT_SIZE - 2, loc="best")


def cosine_bars(ax: Any, pairs: list[dict[str, Any]]) -> None:
    """A bar for each layer, by its place in the model; the line is that of all layers together."""
    for k, pair in enumerate(pairs[: len(COLORS)]):
        layers = dict(pair["layers"])
        total, color = layers.pop(""), BASE if len(pairs) == 1 else COLORS[k]
        width = 0.8 / len(pairs)
        places = [i + (k - (len(pairs) - 1) / 2) * width for i in range(len(layers))]
        ax.bar(places, layers.values(), width, color=color)
        both = " and ".join(Path(name).name for name in pair["adapters"])
        ax.axhline(total, color=color, ls="--", lw=2, label=f"{both}: {total:.3f} over all")
    ax.axhline(0, color="black", lw=1)
    ax.set(title="cos(ΔW₁, ΔW₂)", xlabel="layer, from the first block to the last", ylabel="cosine")
    ax.set_xticks([])
    ax.margins(y=0.2)  # for the legend
    ax.legend(frameon=False, fontsize=FONT_SIZE - 2, loc="upper right")
