"""The figure of a classifier."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..display.plots import FONT_SIZE, LORA, new_figure, png_bytes, whole_numbers
from ..display.tables import visible

MOST_NAMED = 15  # labels of a confusion matrix that are drawn with their names and counts


def classification_figure(losses: list[float], report: dict[str, Any]) -> bytes:
    """A PNG of a classifier: its learning curves and its confusion matrix."""
    accuracy, trained = report["accuracy"], report["trainable"]
    figure = new_figure(f"Accuracy {accuracy:.1%} with {trained:,} trained parameters", 15, 6.6, 5)
    curves, matrix = figure.subplots(1, 2)
    curves.plot(range(1, len(losses) + 1), losses, color=LORA, alpha=0.3, lw=1, label="training batches")
    steps, held_out = zip(*report["losses"], strict=True)
    curves.plot(steps, held_out, "o-", color=LORA, lw=2.5, ms=7, label="held out")
    curves.set(title="Learning curves", xlabel="step", ylabel="nats per text")
    whole_numbers(curves.xaxis)
    curves.set_ylim(0, 1.05 * max(filter(math.isfinite, [*losses, *held_out]), default=1.0))
    curves.legend(frameon=False, fontsize=FONT_SIZE - 1)
    counts, names = np.array(report["confusion"]), [visible(" ".join(name.split())) for name in report["labels"]]
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    matrix.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    drawn = counts if len(names) <= MOST_NAMED else np.empty((0, 0))
    for (i, j), count in np.ndenumerate(drawn):
        matrix.text(j, i, f"{count}", ha="center", va="center", fontsize=FONT_SIZE, color="wk"[int(shares[i, j] < 0.5)])
    if len(names) <= MOST_NAMED:
        names = [name if len(name) <= 24 else f"{name[:23]}…" for name in names]
        turned = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if max(map(len, names)) > 8 else {}
        matrix.set_xticks(range(len(names)), names, parse_math=False, **turned)
        matrix.set_yticks(range(len(names)), names, parse_math=False)
    else:  # the ticks are their numbers
        whole_numbers(matrix.xaxis)
        whole_numbers(matrix.yaxis)
    matrix.set(title="Confusion matrix, held out", xlabel="predicted", ylabel="true")
    return png_bytes(figure)
