"""The figure of a run that watches another text: what is learned, and what is forgotten meanwhile."""

from __future__ import annotations

import math
from typing import Any

from ..display.plots import FONT_SIZE, FULL, LORA, new_figure, png_bytes, whole_numbers
from ..display.tables import visible

MOST = 40  # characters of a name that are drawn
ROLES = "learned (held out):", "watched:"


def forgetting_figure(report: dict[str, Any]) -> bytes:
    """A PNG of report["bits_per_byte"] and report["watched"], {step: bits per byte} of the held-out text and of the
    watched one; dashed, what the base has. report["names"] are the two names."""
    curves = report["bits_per_byte"], report["watched"]
    names = [
        f"{what} {visible(' '.join(name.split()))[-MOST:]}" for what, name in zip(ROLES, report["names"], strict=True)
    ]
    changes = [values[max(values)] - values[min(values)] for values in curves]
    title = f"Bits per byte: {changes[0]:+.3f} on the text learned, {changes[1]:+.3f} on the other"
    figure = new_figure(title, 12, 7.4)
    ax = figure.subplots()
    for values, name, color, marker in zip(curves, names, (LORA, FULL), "os", strict=True):
        ax.axhline(values[min(values)], color=color, ls="--", lw=1.5, alpha=0.6)
        ax.plot([*values], [*values.values()], f"{marker}-", color=color, lw=2.5, ms=8, label=name)
    ax.set(xlabel="step", ylabel="bits per byte")
    finite = [x for values in curves for x in values.values() if math.isfinite(x)]
    margin = 0.1 * (max(finite, default=1) - min(finite, default=0)) + 0.02
    ax.set_ylim(min(finite, default=0) - margin, max(finite, default=1) + margin)
    whole_numbers(ax.xaxis)
    legend = figure.legend(loc="outside lower center", ncols=1, frameon=False, fontsize=FONT_SIZE - 1)
    for text in legend.get_texts():
        text.set_parse_math(False)  # a file's name may have a $
    return png_bytes(figure)
