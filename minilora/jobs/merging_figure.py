"""The figure of what a merge keeps. `python -m minilora.jobs.merging_figure NAME.png` draws it for random matrices."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from ..display.plots import BASE, FONT_SIZE, FULL, LORA, check_png, new_figure, png_bytes
from ..files import write_whole
from .merging import size_curves

COLORS = {"nf4": LORA, "nf4-dq": "#8c2d04", "int8": FULL, "bfloat16": "#3a9a5c", "float16": "#7a4fa3"}
TITLE = "What a merge keeps: foretold from the format's grid (lines), and measured (dots)"


def merging_figure(rows: list[dict[str, Any]], title: str = TITLE) -> bytes:
    """A PNG of the rows of size_curves(): the error of what is kept over the size of ΔW, for a base that lies in the
    format and one that does not, and the share of ΔW that is kept."""
    figure = new_figure(title, 24, 9, 5)
    panels = figure.subplots(1, 3)
    for ax, in_format, value in zip(panels, (True, False, True), ("error", "error", "share"), strict=True):
        for name in dict.fromkeys(row["format"] for row in rows):
            those = [row for row in rows if row["format"] == name and row["in_format"] is in_format]
            sizes = [row["size"] for row in those]
            ax.plot(sizes, [row["foretold"][value] for row in those], color=COLORS[name], lw=3, label=name)
            ax.plot(sizes, [row["measured"][value] for row in those], "o", color=COLORS[name], ms=9)
        ax.set_xscale("log")
        ax.set_xlabel("‖ΔW‖ / ‖W‖")
        ax.xaxis.set_major_formatter("{x:g}")
    for ax, what in zip(panels, ("W in the format", "W in float32"), strict=False):
        ax.axhline(1, color=BASE, ls=":", lw=2)
        ax.set(title=f"{what}: the error", ylabel="‖kept - ΔW‖ / ‖ΔW‖", yscale="log")
        ax.yaxis.set_major_formatter("{x:g}")
    panels[2].axhline(0.5, color=BASE, ls="--", lw=2)
    panels[2].annotate("less than half is kept", (0.98, 0.48), fontsize=FONT_SIZE - 2, color=BASE, ha="right", va="top",
                       xycoords=panels[2].get_yaxis_transform())  # fmt: skip
    panels[2].set(title="W in the format: what is kept", ylabel="⟨kept, ΔW⟩ / ‖ΔW‖²")
    panels[2].yaxis.set_major_formatter(lambda x, _: f"{x:.0%}")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, fontsize=FONT_SIZE, loc="outside lower center", ncols=len(labels))
    return png_bytes(figure)


def random_rows(seed: int = 0, shape: tuple[int, int] = (768, 768), r: int = 8) -> list[dict[str, Any]]:
    """size_curves() of a normal W and a ΔW = B A of rank r."""
    rng = np.random.default_rng(seed)
    W = (0.04 * rng.standard_normal(shape)).astype(np.float32)
    delta = rng.standard_normal((shape[0], r)) @ rng.standard_normal((r, shape[1]))
    return size_curves(W, delta, sizes=np.geomspace(0.001, 0.5, 13).tolist())


if __name__ == "__main__":
    check_png(sys.argv[1])
    write_whole(Path(sys.argv[1]), merging_figure(random_rows()))
