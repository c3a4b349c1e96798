"""The figures of `minilora rank`: each answers one question."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..adapters.spectrum import mean_energy
from ..display.plots import BASE, FONT_SIZE, FULL, LORA, new_figure, png_bytes, whole_numbers


def rank_figures(result: dict[str, Any]) -> dict[str, bytes]:
    """{question: PNG} of what `minilora rank` found: which questions depends on what it knows."""
    figures = {"energy": energy_figure(result), "layers": layers_figure(result)}
    if any("relative_norm" in row for row in result["layers"]):
        figures["spectra"] = spectra_figure(result)
    if "similarity" in result["summary"]:
        figures["subspaces"] = subspaces_figure(result)
    return figures


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
    figure = new_figure(
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
    figure.legend(
        frameon=False, fontsize=FONT_SIZE - 2, loc="outside right center"
    )  # inside, the line of 90 % may cross it
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
    figure = new_figure(title)
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
                ax.text(j, i, f"{value:.1f}", ha="center", va="center", fontsize=FONT_SIZE, color=color)
    figure.colorbar(image, ax=ax).set_label("effective rank of ΔW", labelpad=12)
    return png_bytes(figure)


def spectra_figure(result: dict[str, Any]) -> bytes:
    """W before and after beside ΔW, in the layer that changed most."""
    from matplotlib.ticker import LogLocator, NullFormatter

    row = max(result["layers"], key=lambda row: row.get("relative_norm") or 0)
    sigma = row["singular_values"]
    update = sigma["update"][: row["numerical_rank"]]  # what comes after is rounding
    figure = new_figure(
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
    ax.legend(frameon=False, fontsize=FONT_SIZE)
    return png_bytes(figure)


def subspaces_figure(result: dict[str, Any]) -> bytes:
    """φ(i, j) of two updates, mean over the layers, for the directions of the input and for those of the output."""
    grids = result["summary"]["similarity"]
    figure = new_figure(
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
