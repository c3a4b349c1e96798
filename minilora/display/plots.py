"""Figures."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from ..adapters.spectrum import mean_energy
from ..files import check_writable
from .tables import visible

BASE, FULL, LORA = "#8a8a8a", "#1f5fa8", "#d9621d"
MOST_NAMED = 15  # labels of a confusion matrix that are drawn with their names and counts
TYPE = 17  # points: to be read from the back of a room


def check_png(plot: str) -> None:
    """Raise ValueError or OSError, before the work, if a figure cannot be written to `plot`."""
    path = Path(plot)
    if path.suffix != ".png" or not path.parent.is_dir():
        raise ValueError(f"{plot} is not the name of a .png file in a folder that is there")
    check_writable(path.parent, [path.name])


def png_bytes(figure: Any) -> bytes:
    for ax in figure.axes:
        ax.tick_params(labelsize=TYPE - 2)
        for label in (ax.title, ax.xaxis.label, ax.yaxis.label):
            label.set_fontsize(TYPE)
    from matplotlib.text import Text

    texts = figure.findobj(Text)
    families = fonts_for("".join(text.get_text() for text in texts))
    for text in texts:
        text.set_fontfamily(families)
    png = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # fonts_for has said so, in one line
        figure.savefig(png, format="png", metadata={"Software": None})
    return png.getvalue()


def fonts_for(text: str) -> list[str]:
    """The families of fonts to draw `text` with: Matplotlib's own, and for letters that it lacks, such as Chinese ones,
    installed ones that have them. Warns of letters that none has."""
    from matplotlib import font_manager, rcParams

    def letters(path: str) -> set[str]:
        return set(map(chr, font_manager.get_font(path).get_charmap()))

    families, fonts = list(rcParams["font.family"]), font_manager.fontManager
    missing = {letter for letter in text if not letter.isspace()}
    missing -= letters(font_manager.findfont(font_manager.FontProperties()))
    if missing:
        for path in {*font_manager.findSystemFonts()} - {font.fname for font in fonts.ttflist}:
            with suppress(OSError, RuntimeError):  # Matplotlib's list is of the day on which it first ran
                fonts.addfont(path)
        regular = [
            font for font in fonts.ttflist if font.style == "normal" and font.weight in (400, "normal", "regular")
        ]
        has = {font.name: letters(font.fname) for font in regular if "Last Resort" not in font.name}  # that has boxes
        while missing:
            best = max(has, key=lambda family: len(missing & has[family]))
            if not missing & has[best]:
                warnings.warn(
                    f"no installed font has {''.join(sorted(missing)):.20}, drawn as boxes: install one, such as Noto "
                    "Sans CJK (apt install fonts-noto-cjk)",
                    stacklevel=2,
                )
                break
            families.append(best)
            missing -= has[best]
    return families


def whole_numbers(axis: Any) -> None:
    """Ticks of steps and ranks, which have no fractions."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def report_figure(report: dict[str, Any]) -> bytes:
    """A PNG of the demo on one page: learning curves, what is trained and kept, the rank of what was learned."""
    from matplotlib.figure import Figure  # not pyplot: no global state, no display

    figure = Figure(figsize=(18.6, 7), layout="constrained", dpi=110)
    curves, bars, spectra = figure.subplots(1, 3)
    learning_curves(curves, report)
    memory_bars(bars, report)
    spectrum_curves(spectra, report)
    target = report["target"]["bits_per_byte"]
    figure.suptitle(
        f"LoRA closes {report['lora']['share_of_gain']:.0%} of full fine-tuning's gain "
        f"with {report['lora']['trainable'] / report['base']['params']:.1%} of the parameters\n"
        f"(bits per byte of test text: {target['base']:.2f} → {target['lora']:.2f}, against {target['full']:.2f})",
        fontsize=TYPE + 5,
    )
    for ax, top in ((curves, 0.9), (bars, 1), (spectra, 1)):  # in the first, below the base
        ax.legend(frameon=False, fontsize=TYPE - 1, handlelength=1.5, loc="upper right", bbox_to_anchor=(1, top))
    return png_bytes(figure)


def learning_curves(ax: Any, report: dict[str, Any]) -> None:
    ax.plot([], [], color=BASE, alpha=0.5, lw=1, label="training text (faint)")
    for name, color in (("full", FULL), ("lora", LORA)):
        curve = report[name]["curve"]
        ax.plot(range(1, len(curve["train"]) + 1), curve["train"], color=color, alpha=0.2, lw=1)
        steps, values = zip(*curve["held_out"], strict=True)
        ax.plot(steps, values, "o-", lw=2.5, ms=7, color=color, label=report[name]["label"])
    base = report["full"]["curve"]["held_out"][0][1]
    ax.axhline(base, color=BASE, ls="--", lw=2)
    ax.annotate("base model, frozen", (1, base), (-8, 5), ("axes fraction", "data"), textcoords="offset points",
                ha="right", fontsize=TYPE - 1)  # fmt: skip
    bottom, top = ax.get_ylim()
    ax.set_ylim(bottom, max(top, base + 0.1 * (base - bottom)))
    ax.set(title="Learning Python source: validation text", xlabel="step", ylabel="bits per byte")
    whole_numbers(ax.xaxis)


def memory_bars(ax: Any, report: dict[str, Any]) -> None:
    kinds = ["weights", "cache", "gradients", "optimizer"]
    for offset, name, color in ((-0.2, "full", FULL), (0.2, "lora", LORA)):
        sizes = [report[name]["memory"][kind] / 2**20 for kind in kinds]
        drawn = ax.bar([i + offset for i in range(4)], sizes, 0.38, color=color,
                       label=f"{report[name]['label']}: {report[name]['trainable']:,} trained")  # fmt: skip
        ax.bar_label(drawn, [f"{size:.2g}" if size < 10 else f"{size:.0f}" for size in sizes], fontsize=TYPE - 2)
    ax.set_xticks(range(4), kinds)
    ax.set_yscale("log")
    ax.set(title="Memory of one training step", ylabel="MiB (log scale)")
    ax.set_ylim(top=ax.get_ylim()[1] * 6)


def spectrum_curves(ax: Any, report: dict[str, Any]) -> None:
    for name, color in (("full", FULL), ("lora", LORA)):
        curve = report["rank"][name]["mean_spectrum"]
        label = f"{report[name]['label']}: effective rank {report['rank'][name]['effective_rank']:.1f}"
        ax.plot(range(1, len(curve) + 1), curve, color=color, lw=3, label=label)
    ax.vlines(report["lora"]["rank"], 0.03, 1, color=BASE, ls=":", lw=2, label=f"r = {report['lora']['rank']}")
    ax.set_yscale("log")
    ax.set_ylim(0.03, 3)
    ax.set(title="Singular values of ΔW, mean of the layers", xlabel="index i", ylabel="σᵢ / σ₁ (log scale)")
    whole_numbers(ax.xaxis)


def sweep_figure(report: dict[str, Any], title: str) -> bytes:
    """A PNG of a sweep: what the ranks gain on the base, and the same closer by, with the spread over seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 8.5), layout="constrained", dpi=110)
    whole, close = figure.subplots(1, 2, width_ratios=[2, 3])
    rows = [row for row in report["ranks"] if row["mean"] is not None]
    best = next(row for row in rows if row["rank"] == report["best"])
    for ax, name in ((whole, "Beside the base"), (close, "Closer by")):
        rank_losses(ax, rows, report["pareto"])
        ax.set(title=name, xlabel="trained parameters (log scale)", ylabel="bits per byte of validation text")
    line = whole.axhline(report["base_bits_per_byte"], color=BASE, ls="--", lw=2, label="base model, frozen")
    if best["standard_error"] is not None:
        close.axhspan(best["mean"], best["mean"] + best["standard_error"], color=LORA, alpha=0.15, lw=0,
                      label="within one standard error of the best")  # fmt: skip
    for row in rows:
        weight = "bold" if row["rank"] == report["chosen"] else "normal"
        close.annotate(f"r = {row['rank']}", (row["trainable"], row["mean"]), (12, 10), fontsize=18, weight=weight,
                       textcoords="offset points")  # fmt: skip
    close.margins(x=0.3)  # room for the last of these names
    handles = [line, *close.get_legend_handles_labels()[0]]
    figure.legend(handles=handles, frameon=False, fontsize=TYPE - 1, loc="outside lower center", ncols=3)
    figure.suptitle(title, fontsize=TYPE + 5)
    return png_bytes(figure)


def rank_losses(ax: Any, rows: list[dict[str, Any]], pareto: list[int]) -> None:
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    seeds, label, errors = len(rows[0]["seeds"]), "one seed", None
    sizes, means = [row["trainable"] for row in rows], [row["mean"] for row in rows]
    frontier = [(row["trainable"], row["mean"]) for row in rows if row["rank"] in pareto]
    ax.step(*zip(*frontier, strict=True), where="post", color=FULL, lw=2, label="Pareto frontier")
    if seeds > 1:
        each = [(row["trainable"], seed["bits_per_byte"]) for row in rows for seed in row["seeds"]]
        ax.plot(*zip(*each, strict=True), "x", ms=9, color=BASE, label=label)
        label, errors = f"mean of {seeds} seeds ± one standard error", [row["standard_error"] for row in rows]
    ax.errorbar(sizes, means, errors, fmt="o", ms=9, lw=2.5, capsize=9, capthick=2.5, color=LORA, label=label)
    ax.set_xscale("log")
    ax.margins(0.16, 0.1)
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    ax.xaxis.set_minor_formatter(NullFormatter())


def classification_figure(losses: list[float], report: dict[str, Any]) -> bytes:
    """A PNG of a classifier: its learning curves, and what it takes for what."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 6.6), layout="constrained", dpi=110)
    curves, matrix = figure.subplots(1, 2)
    curves.plot(range(1, len(losses) + 1), losses, color=LORA, alpha=0.3, lw=1, label="training batches")
    steps, held_out = zip(*report["losses"], strict=True)
    curves.plot(steps, held_out, "o-", color=LORA, lw=2.5, ms=7, label="held out")
    curves.set(title="Learning curves", xlabel="step", ylabel="nats per text")
    whole_numbers(curves.xaxis)
    curves.set_ylim(0, 1.05 * max(filter(math.isfinite, [*losses, *held_out]), default=1.0))
    curves.legend(frameon=False, fontsize=TYPE - 1)
    counts, names = np.array(report["confusion"]), [visible(" ".join(name.split())) for name in report["labels"]]
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    matrix.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    drawn = counts if len(names) <= MOST_NAMED else np.empty((0, 0))
    for (i, j), count in np.ndenumerate(drawn):
        matrix.text(j, i, f"{count}", ha="center", va="center", fontsize=TYPE, color="wk"[int(shares[i, j] < 0.5)])
    if len(names) <= MOST_NAMED:
        names = [name if len(name) <= 24 else f"{name[:23]}…" for name in names]
        turned = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if max(map(len, names)) > 8 else {}
        matrix.set_xticks(range(len(names)), names, parse_math=False, **turned)
        matrix.set_yticks(range(len(names)), names, parse_math=False)
    else:  # the ticks are their numbers
        whole_numbers(matrix.xaxis)
        whole_numbers(matrix.yaxis)
    matrix.set(title="Confusion matrix, held out", xlabel="predicted", ylabel="true")
    accuracy, trained = report["accuracy"], report["trainable"]
    figure.suptitle(f"Accuracy {accuracy:.1%} with {trained:,} trained parameters", fontsize=TYPE + 5)
    return png_bytes(figure)


def rank_figures(result: dict[str, Any]) -> dict[str, bytes]:
    """{question: PNG} of what `minilora rank` found: which questions depends on what it knows."""
    figures = {"energy": energy_figure(result), "layers": layers_figure(result)}
    if any("relative_norm" in row for row in result["layers"]):
        figures["spectra"] = spectra_figure(result)
    if "similarity" in result["summary"]:
        figures["subspaces"] = subspaces_figure(result)
    return figures


def large_figure(title: str) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6.6), layout="constrained", dpi=110)
    figure.suptitle(title, fontsize=TYPE + 4)
    return figure


def blocks_and_kinds(result: dict[str, Any]) -> list[tuple[int | None, str]]:
    """(3, "q_proj") for model.layers.3.self_attn.q_proj, for every layer; no block for what is outside of them.

    The kind is the last name, or all that follows the block's number where two kinds have the same last name.
    """
    found: list[tuple[int | None, str]] = []
    for row in result["layers"]:
        parts = row["name"].split(".")
        at = next((i for i, part in enumerate(parts) if part.isdecimal()), None)
        found.append((None, row["name"]) if at is None else (int(parts[at]), ".".join(parts[at + 1 :])))
    kinds = {kind for _, kind in found}
    if len({kind.rpartition(".")[2] for kind in kinds}) < len(kinds):
        return found
    return [(block, kind.rpartition(".")[2]) for block, kind in found]


def energy_figure(result: dict[str, Any]) -> bytes:
    """What rank is enough: the energy that each rank keeps, a line for each kind of layer."""
    total = result["summary"]
    figure = large_figure(
        f"Rank {total['rank_90']} keeps 90 % of the update's energy, rank {total['rank_99']} keeps 99 %"
    )
    ax = figure.subplots()
    spectra: dict[str, list[np.ndarray]] = {}
    for row, (_, kind) in zip(result["layers"], blocks_and_kinds(result), strict=True):
        spectra.setdefault(kind, []).append(np.array(row["singular_values"]["update"]))
    curves = {kind: mean_energy(sigmas) for kind, sigmas in spectra.items()}
    for kind, kept in sorted(curves.items(), key=lambda curve: -curve[1][0]):
        ax.plot(range(1, len(kept) + 1), 100 * kept, lw=2.5, label=kind)
    kept = np.array(total["energy_kept"])
    ax.plot(range(1, len(kept) + 1), 100 * kept, color="black", lw=4, label="mean of all")
    ax.axhline(90, color=BASE, ls=":", lw=2)
    ax.axvline(total["rank_90"], color=BASE, ls=":", lw=2)
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter("{x:g}")
    ax.set(xlabel="rank kept", ylabel="energy of ΔW kept (%)", ylim=(0, 103))
    figure.legend(frameon=False, fontsize=TYPE - 2, loc="outside right center")  # inside, the line of 90 % may cross it
    return png_bytes(figure)


def layers_figure(result: dict[str, Any]) -> bytes:
    """Which layers use their rank: the effective rank as a map, blocks by kinds."""
    where = blocks_and_kinds(result)
    blocks = sorted({block for block, _ in where}, key=lambda block: (block is None, block))
    kinds = list(dict.fromkeys(kind for _, kind in where))
    grid = np.full((len(blocks), len(kinds)), np.nan)
    for row, (block, kind) in zip(result["layers"], where, strict=True):
        grid[blocks.index(block), kinds.index(kind)] = row["effective_rank"]
    order = np.argsort(np.nanmean(grid, axis=0))
    title = f"ΔW has an effective rank of {np.nanmin(grid):.1f} to {np.nanmax(grid):.1f}"
    if len(kinds) > 1:
        title += f":\nthe highest in {kinds[order[-1]]}, the lowest in {kinds[order[0]]}"
    figure = large_figure(title)
    ax = figure.subplots()
    image = ax.imshow(grid, aspect="auto", cmap="Blues")
    ax.set_xticks(range(len(kinds)), kinds, rotation=25, ha="right")
    step = 1 + (len(blocks) - 1) // 12
    ax.set_yticks(range(0, len(blocks), step), ["outside" if block is None else block for block in blocks[::step]])
    ax.set(ylabel="block")
    if step == 1:  # or the numbers would not fit
        middle = (np.nanmin(grid) + np.nanmax(grid)) / 2
        for (i, j), value in np.ndenumerate(grid):
            if np.isfinite(value):
                color = "white" if value > middle else "black"
                ax.text(j, i, f"{value:.1f}", ha="center", va="center", fontsize=TYPE, color=color)
    figure.colorbar(image, ax=ax).set_label("effective rank of ΔW", labelpad=12)
    return png_bytes(figure)


def spectra_figure(result: dict[str, Any]) -> bytes:
    """W before and after beside ΔW, in the layer that changed most."""
    from matplotlib.ticker import LogLocator, NullFormatter

    row = max(result["layers"], key=lambda row: row.get("relative_norm") or 0)
    sigma = row["singular_values"]
    update = sigma["update"][: row["numerical_rank"]]  # what comes after is rounding
    figure = large_figure(
        f"{row['name']}: ΔW is {100 * row['relative_norm']:.0f} % of W in size,\n"
        f"and {row['rank_90']} of {min(row['shape'])} directions hold 90 % of its energy"
    )
    ax = figure.subplots()
    for values, label, color, width in (
        (sigma["before"], "W before", "#c8c8c8", 8),
        (sigma["after"], "W after", FULL, 2.5),
        (update, "ΔW", LORA, 4),
    ):
        ax.plot(range(1, len(values) + 1), values, color=color, lw=width, label=label)
    ax.axvline(row["rank_90"], color=BASE, ls=":", lw=2)
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.set_ylim(bottom=0.7 * min(update[-1], max(sigma["before"][-1], 1e-3 * sigma["before"][0])))
    ax.set(xlabel="index i", ylabel="singular value σᵢ")
    whole_numbers(ax.xaxis)
    ax.legend(frameon=False, fontsize=TYPE)
    return png_bytes(figure)


def subspaces_figure(result: dict[str, Any]) -> bytes:
    """φ(i, j) of two updates, mean over the layers, for the directions of the input and for those of the output."""
    grids = result["summary"]["similarity"]
    figure = large_figure(
        f"Two updates share their first input direction to φ = {grids['right'][0][0]:.2f}\n"
        f"and their first output direction to φ = {grids['left'][0][0]:.2f}"
    )
    axes = figure.subplots(1, 2)
    for ax, side, name in ((axes[0], "right", "input"), (axes[1], "left", "output")):
        grid, random = (np.array(grids[key]) for key in (side, f"random_{side}"))
        m, n = grid.shape
        extent = (0.5, n + 0.5, 0.5, m + 0.5)
        image = ax.imshow(grid, vmin=0, vmax=1, cmap="magma", origin="lower", extent=extent, aspect="auto")
        ax.set_title(f"{name}: mean {grid.mean():.2f}, at random {random.mean():.2f}")
        ax.set(xlabel="first j directions of the other", ylabel="first i directions of this one")
        for axis in (ax.xaxis, ax.yaxis):
            whole_numbers(axis)
    figure.colorbar(image, ax=axes).set_label("φ(i, j): 1 contained, 0 orthogonal", labelpad=12)
    return png_bytes(figure)


def cost_figure(results: dict[str, dict[str, Any]]) -> bytes:
    """A PNG of several methods on one model: where the bytes of a training step are, and its FLOPs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 2.6 + 0.8 * len(results)), layout="constrained", dpi=110)
    bytes_ax, flops_ax = figure.subplots(1, 2, width_ratios=[3, 2], sharey=True)
    first = next(iter(results.values()))
    memory = {"weights": BASE, "gradients": FULL, "optimizer": "#7fb0e0", "activations": LORA}
    bytes_of = {name: result["memory"] for name, result in results.items()}
    stacked_bars(bytes_ax, bytes_of, memory, "memory", {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30})
    steps, products = {name: result["flops"] for name, result in results.items()}, {"forward": BASE, "backward": FULL}
    stacked_bars(flops_ax, steps, products, "matrix products", {"MFLOP": 1e6, "GFLOP": 1e9, "TFLOP": 1e12})
    bytes_ax.invert_yaxis()  # the first method on top
    about = f"{first['total']:,} parameters, batch {first['batch']} × {first['tokens']} tokens"
    figure.suptitle(f"One training step of {first['model']}: {about}", fontsize=TYPE + 3)
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
    ax.bar_label(bars, [f" {total:,.0f}" if total >= 100 else f" {total:.3g}" for total in left], fontsize=TYPE - 1)
    ax.margins(x=0.2)
    ax.set_xlabel(f"{label} ({unit})")
    ax.legend(frameon=False, ncols=len(colors), loc="lower center", bbox_to_anchor=(0.5, 1.0), fontsize=TYPE - 2,
              columnspacing=1, handlelength=1.2)  # fmt: skip
