"""A true matrix, yours, and the difference, side by side: in plain text, or in colour for a notebook."""

from __future__ import annotations

import html

import numpy as np

from ..backend import Array
from ..verify.language import words
from .parts import Picture

SHADES = " .:-=+*#%@"


def panels(picture: Picture) -> dict[str, Array]:
    """What is drawn side by side: the true matrix, yours, the difference."""
    return {"true": picture.true, "yours": picture.yours, "difference": picture.yours - picture.true}


def largest(picture: Picture) -> float:
    """The size that is drawn in full colour in all three."""
    return max(float(np.abs(picture.true).max()), float(np.abs(picture.yours).max())) or 1.0


def colour(share: float) -> tuple[int, int, int]:
    """From blue at -1 over white to orange at 1, which colour-blind eyes tell apart."""
    end = (230, 97, 1) if share > 0 else (33, 102, 172)
    weight = min(abs(share), 1.0)
    r, g, b = (round(255 + weight * (value - 255)) for value in end)
    return r, g, b


def legend(picture: Picture, language: str = "en") -> str:
    """What is drawn, and how large its full colour is."""
    says = words(
        "{tensor}: rows are tokens; orange > 0, blue < 0, full colour {size}",
        tensor=picture.tensor,
        size=f"{largest(picture):.2g}",
    )
    return says.in_language(language)


def drawn(picture: Picture, language: str = "en") -> list[str]:
    """The three matrices side by side in plain text, ten shades of size from 0 to the largest entry."""
    each, top = panels(picture), largest(picture)
    width = max(2 * picture.true.shape[1], 12) + 2
    heads = "".join(f"{words(name).in_language(language):<{width}}" for name in each)
    says = words(
        "{tensor}: rows are tokens; the darkest is {size}", tensor=picture.tensor, size=f"{largest(picture):.2g}"
    )
    lines = [f"  {says.in_language(language)}", f"  {heads}".rstrip()]
    for rows in zip(*each.values(), strict=True):
        cells = ("".join(SHADES[min(int(9.99 * abs(v) / top), 9)] * 2 for v in values) for values in rows)
        lines.append("  " + "".join(f"{cell:<{width}}" for cell in cells).rstrip())
    return lines


def painted(picture: Picture, language: str = "en") -> str:
    """The same in colour, for a notebook."""
    cells = []
    for name, matrix in panels(picture).items():
        rows = (
            "".join(f"<td style='background:rgb{colour(v / largest(picture))};padding:7px'></td>" for v in row)
            for row in matrix
        )
        table = "".join(f"<tr>{row}</tr>" for row in rows)
        cells.append(f"<td>{words(name).in_language(language)}<table style='border-spacing:0'>{table}</table></td>")
    return f"<table><caption>{html.escape(legend(picture, language))}</caption><tr>{''.join(cells)}</tr></table>"
