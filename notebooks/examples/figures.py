"""The figures of the examples; what they show is worked out in the example itself."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from minilora.display.plots import BASE, FONT_SIZE, FULL, LORA, png_bytes

GOOD, BAD = "#2a7f4f", "#b3261e"
KINDS = {"PER": ("#f6c177", "people"), "LOC": ("#9ccfa3", "places"), "ORG": ("#9fc5e8", "organisations")}


def save(out, figure):
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    Path(out).write_bytes(png_bytes(figure))


def digits(out, images, labels, guesses, right):
    """Held-out images, six of the old digits above six of the new, and how they are read; below, the shares right."""
    figure = Figure(figsize=(16, 11), layout="constrained", dpi=100)
    top, bottom = figure.subfigures(2, 1, height_ratios=[1, 1.2])
    for i, ax in enumerate(top.subplots(2, 6).flat):
        ax.imshow(images[i], cmap="gray_r")
        ax.set(xticks=[], yticks=[])
        for side, way in (("left", "base"), ("right", "LoRA")):
            color = GOOD if guesses[way][i] == labels[i] else BAD
            ax.set_title(guesses[way][i], loc=side, color=color, fontsize=26, weight="bold", pad=4)
    top.suptitle(
        "Held-out images. Above each, left: what the base reads; right: what it reads with LoRA", fontsize=FONT_SIZE + 4
    )
    ax, x = bottom.subplots(), np.arange(len(right))
    kinds = (-0.2, 0, BASE, "0 .. 6, which the base has learned"), (0.2, 1, LORA, "7, 8, 9, which are new to it")
    for offset, k, color, name in kinds:
        shares = 100 * np.array([shares[:, k] for shares in right.values()])  # (ways, splits)
        mean = shares.mean(axis=1)
        bars = ax.bar(x + offset, mean, 0.38, color=color, label=name)
        ax.bar_label(
            bars, [f"{share:.0f}" for share in mean], fontsize=FONT_SIZE - 1, label_type="center", color="white"
        )
        ax.plot(np.repeat(x + offset, shares.shape[1]), shares.ravel(), "o", color="black", ms=5)
    ax.set_xticks(x, list(right))
    ax.set_yticks(range(0, 101, 20))
    ax.set(ylabel="% of held-out images right:\nmean, and each split (dots)", ylim=(0, 125))
    ax.legend(frameon=False, ncols=2, fontsize=FONT_SIZE, loc="upper center")
    save(out, figure)


def named_entities(out, sentences, truth, guesses, scores, spans):
    """Held-out sentences, the first with each two kinds of name, and the names found there; below, F1 of each kind."""
    figure = Figure(figsize=(16, 11), layout="constrained", dpi=100)
    top, bottom = figure.subfigures(2, 1, height_ratios=[1.1, 1])
    ax = top.subplots()
    ax.set(xlim=(0, 84), ylim=(10.6, -0.6))  # a letter of the words is one unit wide
    ax.axis("off")
    kinds = [{kind for _, _, kind in spans(tags)} for tags in truth]
    for block, pair in enumerate(({"PER", "LOC"}, {"PER", "ORG"}, {"LOC", "ORG"})):
        i = kinds.index(pair)
        words = [word for word, _ in sentences[i]]
        x = 10 + np.cumsum([0, *(len(word) + 1 for word in words)])
        for line, way in enumerate(("truth", "new head", "LoRA")):
            tags, y = truth[i] if way == "truth" else guesses[way][i], 4 * block + line
            color = "black" if way == "truth" else GOOD if tags == truth[i] else BAD
            ax.text(0, y, way, fontsize=FONT_SIZE, color=color, va="center", weight="bold")
            ax.text(x[0], y, " ".join(words), fontsize=22, family="monospace", va="center")
            for first, last, kind in spans(tags):
                box = (x[first] - 0.3, y - 0.4), x[last + 1] - x[first] - 0.4, 0.8
                ax.add_patch(Rectangle(*box, color=KINDS[kind][0], zorder=0))
    ax, x = bottom.subplots(), np.arange(len(scores))
    for k, (kind, (color, name)) in enumerate({**KINDS, "PER LOC ORG": (BASE, "all")}.items()):
        bars = ax.bar(x + 0.2 * (k - 1.5), [row[kind] for row in scores.values()], 0.19, color=color, label=name)
        ax.bar_label(bars, fmt="%.2f", fontsize=FONT_SIZE - 3)
    ax.set_xticks(x, list(scores))
    ax.set(ylabel="F1 on held-out names\nin held-out sentences", ylim=(0, 1.12))
    ax.legend(frameon=False, fontsize=FONT_SIZE, loc="upper left")
    save(out, figure)


STYLES = {
    "the world itself": ("black", "--"), "LoRA": (LORA, "-"), "full": (FULL, "-"), "from nothing": ("#7a9e9f", "-"),
    "base": (BASE, "-"), "most popular": (BASE, ":"),
}  # fmt: skip


def recommender(out, curves):
    """Hit rates on the new market: over the length of the list, and over the sessions there were to learn from."""
    figure = Figure(figsize=(17, 8.5), layout="constrained", dpi=100)
    left, right = figure.subplots(1, 2, sharey=True)
    few = min(curves, key=lambda n: abs(n - 30))
    for way, (color, line) in STYLES.items():
        left.plot(range(1, 21), curves[few][way], line, color=color, lw=3, label=way)
        right.plot(list(curves), [row[way][9] for row in curves.values()], line, color=color, lw=3, marker="o", ms=8)
    left.set(title=f"Learned from {few} sessions", xlabel="items shown, of 200", ylim=(0, 1), xticks=[1, 5, 10, 15, 20])
    left.set_ylabel("share of visits whose next item is shown")
    right.set(title="Ten items shown", xlabel="sessions of the new market to learn from (log scale)", xscale="log")
    right.set_xticks(list(curves), [f"{n:,}" for n in curves])
    right.minorticks_off()
    figure.legend(frameon=False, fontsize=FONT_SIZE, loc="outside lower center", ncols=6)
    figure.suptitle(
        "A new market, whose visitors choose otherwise by a shift of rank 1 (simulated)", fontsize=FONT_SIZE + 4
    )
    save(out, figure)


def distillation(out, table):
    """Over the rank: bits per byte on held-out text, and the divergence from the teacher; a dot for each seed."""
    figure = Figure(figsize=(16, 8), layout="constrained", dpi=100)
    colors = dict(zip(table, (BASE, FULL, "#7a9e9f", LORA, "#b3261e", "#2a7f4f"), strict=True))
    titles = "Held-out text, bits per byte", "KL(teacher ‖ student) on held-out text, nats per byte"
    for k, (ax, title) in enumerate(zip(figure.subplots(1, 2), titles, strict=True)):
        for way, rows in table.items():
            if 0 in rows:
                ax.axhline(rows[0][:, k].mean(), ls="--", lw=2, color=colors[way], label=way)
                continue
            values = np.array([numbers[:, k] for numbers in rows.values()])  # (ranks, seeds)
            ax.plot(list(rows), values.mean(axis=1), "-", lw=3, color=colors[way], label=way)
            ax.plot(np.repeat(list(rows), values.shape[1]), values.ravel(), "o", ms=6, color=colors[way])
            ax.set_xticks(list(rows), [str(r) for r in rows])
        ax.set(title=title, xlabel="rank")
    figure.legend(
        *ax.get_legend_handles_labels(), frameon=False, fontsize=FONT_SIZE, loc="outside lower center", ncols=3
    )
    save(out, figure)


def reversed_words(out, right):
    """The share of held-out numbers said rightly, forwards and backwards: a bar for each way, a dot for a seed."""
    figure = Figure(figsize=(15, 9), layout="constrained", dpi=100)
    ax, y = figure.subplots(), np.arange(len(right))
    for k, color, name in ((0, BASE, "forwards, as the base learned it"), (1, LORA, "backwards, as LoRA did")):
        shares = 100 * np.array([[seed[k] for seed in seeds] for seeds in right.values()])  # (ways, seeds)
        at = y + 0.4 * k - 0.2
        mean = shares.mean(axis=1)
        bars = ax.barh(at, mean, 0.38, color=color, label=name)
        ax.bar_label(
            bars, [f"{share:.0f}" for share in mean], fontsize=FONT_SIZE - 2, label_type="center", color="white"
        )
        ax.plot(shares.ravel(), np.repeat(at, shares.shape[1]), "o", color="black", ms=6)
    ax.set_yticks(y, list(right))
    ax.set(xlabel="% of held-out numbers without a mistake: mean, and each seed", xlim=(0, 104))
    ax.invert_yaxis()
    figure.legend(frameon=False, fontsize=FONT_SIZE, loc="outside lower center", ncols=2)
    save(out, figure)


def ten_values(out, found):
    """Accuracy over the number of singular values that each W keeps: the mean of the seeds, and each seed."""
    figure = Figure(figsize=(15, 8.5), layout="constrained", dpi=100)
    ax = figure.subplots()
    ways = {
        "LoRA": (LORA, "--", "LoRA beside the whole W"),
        "cut": (BASE, "-", "what LoRA made, cut: nothing learns"),
        "cut, then S": (FULL, "-", "what LoRA made, cut, then S learns"),
        "the scheme": (GOOD, "-", "the pretrained W cut, then S learns"),
    }
    for way, (color, line, name) in ways.items():
        k, each = list(found[way]), 100 * np.array(list(found[way].values()))  # (k, seeds)
        ax.plot(k, each.mean(axis=1), line, color=color, lw=3, label=name)
        if way != "LoRA":
            ax.plot(np.repeat(k, each.shape[1]), each.ravel(), "o", color=color, ms=6, alpha=0.6)
    ax.axhline(50, color="black", lw=1)  # chance
    ax.set(xscale="log", xlabel="singular values that each W keeps (log scale)", ylabel="% of held-out texts right")
    k = list(found["cut"])
    ax.set_xticks(k, [f"all {n}" if n == k[-1] else str(n) for n in k])
    ax.minorticks_off()
    figure.legend(frameon=False, fontsize=FONT_SIZE, loc="outside lower center", ncols=2)
    save(out, figure)
