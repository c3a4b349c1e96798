"""The singular values of ΔW for people: the table of the layers, and what follows from it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from ..display.tables import fits, numbers_right, wide_console
from ..spelling import counted
from .rank import SIDES, TOP


def print_study(result: dict[str, Any]) -> None:
    """The table of the layers, and what follows from it."""
    console = wide_console()
    table = layers_table(result)
    console.print(table if fits(console, table) else layers_table(result, narrow=True))
    if any("intruders" in row for row in result["layers"]):
        console.print("amplified: ‖ΔW‖ / ‖W‖ in the directions that carry 90 % of ΔW", soft_wrap=True)
        vectors = f"the first {TOP} left, right singular vectors of the tuned W"
        console.print(f"intruders: how many of {vectors} resemble none of the original W", soft_wrap=True)
    for line in conclusions(result):
        console.print(line, soft_wrap=True)


def layers_table(result: dict[str, Any], narrow: bool = False) -> Any:
    """A rich Table with a row for each layer; a narrow one has the shape beside the name, and headers in lines."""
    from rich.box import SIMPLE

    with_base = any("intruders" in row for row in result["layers"])
    rows = [layer_cells(row, with_base) for row in result["layers"]]
    if narrow:
        rows = [{"layer": f"{cells.pop('layer')} {cells.pop('shape')}", **cells} for cells in rows]
    headers = (header.replace("-", "-\n" if narrow else "") for header in rows[0])
    title = "The update ΔW: its size and its rank, by four measures"
    # without lines and padding, or a name would not fit beside so many columns
    table = numbers_right(title, *headers, box=SIMPLE, collapse_padding=True, padding=(0, 0 if narrow else 1))
    for cells in rows:
        table.add_row(*cells.values())
    return table


def layer_cells(row: dict[str, Any], with_base: bool) -> dict[str, str]:
    """{header: cell} of a layer; a hyphen in a header is where a narrow one is broken."""
    sides, part, factor = (row.get(key) for key in ("intruders", "relative_norm", "amplification"))
    size = {"of ‖W‖": "-" if part is None else f"{part:.1%}"} if with_base else {"‖ΔW‖": f"{row['norm']:.3g}"}
    beside = {
        "ampli-fied": "-" if factor is None else f"{factor:.2g}",
        "intru-ders": f"{len(sides['left'])}, {len(sides['right'])}" if sides else "-",  # a base may lack a tied head
    }
    return {
        "layer": row["name"],
        "shape": "{}x{}".format(*row["shape"]),
        "σ₁": f"{row['singular_values']['update'][0]:.3g}",
        **size,
        "stable": f"{row['stable_rank']:.1f}",
        "effec-tive": f"{row['effective_rank']:.1f}",
        "numer-ical": str(row["numerical_rank"]),
        "90 %": str(row["rank_90"]),
        **(beside if with_base else {}),
    }


def conclusions(result: dict[str, Any]) -> list[str]:
    """What follows from the numbers, in sentences."""
    total, adapter = result["summary"], result.get("adapter")
    found = [
        f"Rank {total['rank_90']} keeps 90 % of the energy of ΔW and rank {total['rank_99']} keeps 99 %, in the mean "
        f"over {counted(total['layers'], 'layer')}; their effective rank is {total['effective_rank']:.1f}."
    ]
    if total["unchanged"]:
        found += [f"Not changed: {first_few(total['unchanged'])}."]
    if sides := total.get("intruders"):
        found += [f"Intruders, in the mean of a layer: {sides['left']:.1f} left, {sides['right']:.1f} right, of {TOP}."]
    if grids := total.get("similarity"):
        first = ", ".join(f"{s} {grids[s][0][0]:.3f} (at random {grids['random_' + s][0][0]:.3f})" for s in SIDES)
        layers = counted(grids["layers"], "layer")
        found += [f"φ of the first singular vectors of both updates, in the mean of {layers}: {first}."]
    if adapter:
        ranks = [layer["rank"] for layer in adapter["layers"]]
        of_rank = f"{min(ranks)} to {max(ranks)}" if len(set(ranks)) > 1 else str(ranks[0])
        found += [
            f"The adapter has {counted(len(ranks), 'layer')} of rank {of_rank}, {adapter['parameters']:,} parameters; "
            f"it misses {adapter['relative_error']:.1%} of ‖ΔW‖, the least that these ranks allow."
        ]
        if adapter["not_held"]:
            found += [f"It cannot hold what else differs: {first_few(adapter['not_held'])}."]
    elif total["other_tensors"]:
        found += [f"Other tensors that differ, not matrices in both: {first_few(total['other_tensors'])}."]
    return found


def first_few(names: Collection[str]) -> str:
    """The first of the names, and how many more there are."""
    first = ", ".join(list(names)[:4])
    return first if len(names) <= 4 else f"{first} and {len(names) - 4} more"
