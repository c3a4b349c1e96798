"""The report as a picture: ratios of the rounds, or time and memory against the number of tokens."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

from minilora.display.plots import BASE, FONT_SIZE, FULL, LORA, png_bytes
from minilora.nn import Attention

from .cases import MEASURES, Case

COMPILED = "#009E73"
COLORS = {"torch": FULL, "torch compiled": COMPILED, "peft": LORA, "transformers": BASE, "minilora": BASE}
NAMES = {"torch": "PyTorch", "torch compiled": "torch.compile", "peft": "PEFT", "transformers": "Transformers"}


def figure(report: dict[str, Any]) -> bytes:
    """A PNG. Raises ValueError for a report without a case."""
    drawn = [result for result in report["cases"] if not result["case"].get("bases")]
    if not drawn:
        raise ValueError(f"nothing to draw: a figure shows {', '.join(MEASURES)}, and none was measured")
    cases = [result for result in drawn if result["ratios"]]
    if not cases:
        return alone_figure(drawn)
    plain = any("plain" in contestant["name"] for result in cases for contestant in result["contestants"])
    return tokens_figure(cases) if plain else ratio_figure(cases)


def alone_figure(cases: list[dict[str, Any]]) -> bytes:
    """Time and memory of minilora, where there is nothing to compare it with."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    figure = Figure(figsize=(14, 2.5 + 0.42 * len(cases)), layout="constrained", dpi=80)
    time, memory = figure.subplots(1, 2, sharey=True, width_ratios=[3, 2])
    for y, result in enumerate(cases):
        ours = result["contestants"][0]
        time.plot(
            [1e3 * r["wall"] for r in ours["rounds"]], [y] * len(ours["rounds"]), ".", color=LORA, alpha=0.35, ms=9
        )
        time.plot(1e3 * ours["wall"], y, "o", color=LORA, ms=13)
        memory.barh(y, ours["peak"] / 2**20, 0.6, color=LORA, alpha=0.8)
    names = [str(Case(**result["case"])) for result in cases]
    cores = {result["case"]["cores"] for result in cases}
    if len(cores) > 1:
        names = [f"{name}, {result['case']['cores']} cores" for name, result in zip(names, cases, strict=True)]
    time.set_yticks(range(len(cases)), names)
    time.set_ylim(len(cases) - 0.4, -0.6)
    time.set_xscale("log")
    time.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    time.xaxis.set_major_formatter("{x:g}")
    time.xaxis.set_minor_formatter(NullFormatter())
    time.set(title="time (ms, log scale)")
    time.grid(axis="y", alpha=0.3)
    memory.set(title="most memory (MiB)")
    figure.suptitle("minilora alone: nothing to compare it with is installed", fontsize=FONT_SIZE + 4)
    return png_bytes(figure)


def ratio_figure(cases: list[dict[str, Any]]) -> bytes:
    """A row for each pair and a column for each number of cores; the rounds are dots around their median."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    found: dict[tuple[str, str], dict[int, Any]] = {}
    for result in cases:
        case = Case(**result["case"])
        libraries = {contestant["name"]: contestant["library"] for contestant in result["contestants"]}
        for ratio in result["ratios"]:
            found.setdefault((str(case), libraries[ratio["theirs"]]), {})[case.cores] = ratio
    cores = list(dict.fromkeys(result["case"]["cores"] for result in cases))
    figure = Figure(figsize=(9 + 5 * len(cores), 2.5 + 0.42 * len(found)), layout="constrained", dpi=80)
    *times, memory = figure.subplots(1, len(cores) + 1, sharey=True, width_ratios=[*[3] * len(cores), 2])
    for y, ((_, theirs), ratios) in enumerate(found.items()):
        color = COLORS[theirs]
        for ax, n in zip(times, cores, strict=True):
            if n in ratios:
                ax.plot(ratios[n]["rounds"], [y] * len(ratios[n]["rounds"]), ".", color=color, alpha=0.35, ms=9)
                ax.plot(median(ratios[n]["rounds"]), y, "o", color=color, ms=13)
        peak = ratios[min(ratios)]["peak"]
        if peak:
            memory.barh(y, peak, 0.6, color=color, alpha=0.8)
            memory.text(peak, y, f" {peak:.2f}", va="center", fontsize=FONT_SIZE - 3)
    memory.set_yticks(range(len(found)), [name for name, _ in found])
    memory.set_ylim(len(found) - 0.4, -0.6)
    memory.margins(x=0.2)
    for ax, n in zip(times, cores, strict=True):
        ax.set_title(f"time, {n} core{'s' * (n > 1)}")
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_formatter("{x:g}")
    memory.set_title("most memory")
    for ax in (*times, memory):
        ax.axvline(1, color="black", lw=1.5)
        ax.grid(axis="y", alpha=0.3)
    met = dict.fromkeys(theirs for _, theirs in found)
    handles = [Line2D([], [], marker="o", ls="", ms=12, color=COLORS[n], label=f"beside {NAMES[n]}") for n in met]
    figure.legend(
        handles=handles, frameon=False, fontsize=FONT_SIZE - 1, loc="outside lower center", ncols=len(handles)
    )
    figure.suptitle("minilora / the other: left of 1, minilora takes less", fontsize=FONT_SIZE + 4)
    return png_bytes(figure)


def tokens_figure(cases: list[dict[str, Any]]) -> bytes:
    """Time and memory of a step against T: with attention in blocks, with all T × T scores, and PyTorch's."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 7), layout="constrained", dpi=100)
    styles = {
        "minilora": (LORA, "o-", f"minilora, in blocks from {Attention.blockwise_from} tokens on"),
        "minilora plain attention": (BASE, "s--", "minilora, all T × T scores"),
        "torch": (FULL, "^-", "PyTorch"),
        "torch compiled": (COMPILED, "v-", "torch.compile"),
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
        ax.legend(frameon=False, fontsize=FONT_SIZE - 2)
    case = Case(**cases[0]["case"])
    figure.suptitle(f"A LoRA step of {case.size} on one sequence, {case.cores} core", fontsize=FONT_SIZE + 4)
    return png_bytes(figure)
