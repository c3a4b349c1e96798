"""The report as a picture: ratios of the rounds, or time and memory against the number of tokens."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

from ..plots import BASE, FULL, LORA, TYPE, png_bytes
from ..transformer import Attention
from .cases import Case

COLORS = {"torch": FULL, "peft": LORA, "transformers": BASE, "minilora": BASE}
NAMES = {"torch": "PyTorch", "peft": "PEFT", "transformers": "Transformers"}


def figure(report: dict[str, Any]) -> bytes:
    """A PNG. Raises ValueError for a report without a comparison."""
    cases = [result for result in report["cases"] if result["ratios"]]
    if not cases:
        raise ValueError("nothing to draw: a figure compares, and there was nothing to compare with")
    plain = any("plain" in contestant["name"] for result in cases for contestant in result["contestants"])
    return tokens_figure(cases) if plain else ratio_figure(cases)


def ratio_figure(cases: list[dict[str, Any]]) -> bytes:
    """A row for each pair, its rounds as dots around their median: left of 1, minilora is faster."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    rows = [(Case(**result["case"]), ratio) for result in cases for ratio in result["ratios"]]
    height = 3 + 0.42 * len(rows)
    figure = Figure(figsize=(17, height), layout="constrained", dpi=100)
    time, memory = figure.subplots(1, 2, sharey=True, width_ratios=[5, 2])
    for y, (_, ratio) in enumerate(rows):
        color = COLORS[ratio["theirs"].split()[0]]
        time.plot(ratio["rounds"], [y] * len(ratio["rounds"]), ".", color=color, alpha=0.35, ms=9)
        time.plot(median(ratio["rounds"]), y, "o", color=color, ms=13)
        if ratio["peak"]:
            memory.barh(y, ratio["peak"], 0.6, color=color, alpha=0.8)
            memory.text(ratio["peak"], y, f" {ratio['peak']:.2f}", va="center", fontsize=TYPE - 3)
    labels = [f"{case}{f', {case.cores} cores' * (case.cores > 1)}" for case, _ in rows]
    time.set_yticks(range(len(rows)), labels)
    time.invert_yaxis()
    time.set_xscale("log", base=2)
    time.xaxis.set_major_formatter("{x:g}")
    for ax, title in ((time, "time: minilora / the other (below 1: faster)"), (memory, "memory")):
        ax.axvline(1, color="black", lw=1.5)
        ax.set_title(title)
        ax.grid(axis="y", alpha=0.3)
    memory.set_xlim(0, 1.1)
    met = dict.fromkeys(ratio["theirs"].split()[0] for _, ratio in rows)
    handles = [Line2D([], [], marker="o", ls="", ms=12, color=COLORS[n], label=f"beside {NAMES[n]}") for n in met]
    figure.legend(handles=handles, frameon=False, fontsize=TYPE - 1, loc="outside upper center", ncols=len(handles))
    return png_bytes(figure)


def tokens_figure(cases: list[dict[str, Any]]) -> bytes:
    """Time and memory of a step against T: with attention in blocks, with all T × T scores, and PyTorch's."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 7), layout="constrained", dpi=100)
    styles = {
        "minilora": (LORA, "o-", f"minilora, in blocks from {Attention.blockwise_from} tokens on"),
        "minilora plain attention": (BASE, "s--", "minilora, all T × T scores"),
        "torch": (FULL, "^-", "PyTorch"),
    }
    said: tuple[tuple[Any, str, Callable[[dict[str, Any]], float]], ...] = tuple(
        zip(
            figure.subplots(1, 2),
            ("seconds a step", "most memory of the process (MiB)"),
            (lambda contestant: contestant["wall"], lambda contestant: contestant["peak"] / 2**20),
            strict=True,
        )
    )
    for ax, label, value in said:
        for name, (color, style, words) in styles.items():
            line = [
                (result["case"]["tokens"], value(contestant))
                for result in cases
                for contestant in result["contestants"]
                if contestant["name"] == name
            ]
            if line:
                ax.plot(*zip(*line, strict=True), style, color=color, lw=2.5, ms=9, label=words)
        tokens = [result["case"]["tokens"] for result in cases]
        ticks = [T for T in tokens if max(tokens) / 8 <= T]  # those below would lie on one another
        ax.set_xticks(ticks, [f"{T:,}" for T in ticks])
        ax.set_ylim(bottom=0)  # on straight axes: what grows linearly is a line
        ax.set(xlabel="tokens T of one sequence", ylabel=label)
        ax.legend(frameon=False, fontsize=TYPE - 2)
    case = Case(**cases[0]["case"])
    figure.suptitle(f"A LoRA step of {case.size} on one sequence, {case.cores} core", fontsize=TYPE + 4)
    return png_bytes(figure)
