"""The figures of the examples; what they show is worked out in the example itself."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from minilora.plots import BASE, LORA, TYPE, png_bytes

GOOD, BAD = "#2a7f4f", "#b3261e"


def save(out, figure):
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    Path(out).write_bytes(png_bytes(figure))


def digits(out, images, labels, guesses, right):
    """Held-out images, six of the old digits above six of the new, and what is read in them; of all, the share right."""
    figure = Figure(figsize=(16, 11), layout="constrained", dpi=100)
    top, bottom = figure.subfigures(2, 1, height_ratios=[1, 1.2])
    for i, ax in enumerate(top.subplots(2, 6).flat):
        ax.imshow(images[i], cmap="gray_r")
        ax.set(xticks=[], yticks=[])
        for side, way in (("left", "base"), ("right", "LoRA")):
            color = GOOD if guesses[way][i] == labels[i] else BAD
            ax.set_title(guesses[way][i], loc=side, color=color, fontsize=26, weight="bold", pad=4)
    top.suptitle(
        "Held-out images. Above each, left: what the base reads; right: what it reads with LoRA", fontsize=TYPE + 4
    )
    ax, x = bottom.subplots(), np.arange(len(right))
    kinds = (-0.2, 0, BASE, "0 .. 6, which the base has learned"), (0.2, 1, LORA, "7, 8, 9, which are new to it")
    for offset, k, color, name in kinds:
        bars = ax.bar(x + offset, [100 * pair[k] for pair in right.values()], 0.38, color=color, label=name)
        ax.bar_label(bars, fmt="%.0f", fontsize=TYPE - 1)
    ax.set_xticks(x, list(right))
    ax.set_yticks(range(0, 101, 20))
    ax.set(ylabel="% of held-out images right", ylim=(0, 125))
    ax.legend(frameon=False, ncols=2, fontsize=TYPE, loc="upper center")
    save(out, figure)
