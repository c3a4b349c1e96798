"""What the figures of several packages share: colours, sizes, fonts, and the bytes of a PNG."""

from __future__ import annotations

import io
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..files import check_writable

BASE, FULL, LORA = "#8a8a8a", "#1f5fa8", "#d9621d"
FONT_SIZE = 17  # points: legible from the back of a lecture room


def check_png(plot: str) -> None:
    """Raise ValueError or OSError, before the work, if a figure cannot be written to `plot`."""
    path = Path(plot)
    if path.suffix != ".png" or not path.parent.is_dir():
        raise ValueError(f"{plot} is not the name of a .png file in a folder that is there")
    check_writable(path.parent, [path.name])


def new_figure(title: str, width: float = 11, height: float = 6.6, larger: int = 4) -> Any:
    """A Matplotlib Figure of so many inches, its title `larger` points above the other text."""
    from matplotlib.figure import Figure  # not pyplot: no global state, no display

    figure = Figure(figsize=(width, height), layout="constrained", dpi=110)
    figure.suptitle(title, fontsize=FONT_SIZE + larger)
    return figure


def png_bytes(figure: Any) -> bytes:
    """The figure as a PNG, its labels large, in fonts that have its letters. The same figure gives the same bytes."""
    for ax in figure.axes:
        ax.tick_params(labelsize=FONT_SIZE - 2)
        for label in (ax.title, ax.xaxis.label, ax.yaxis.label):
            label.set_fontsize(FONT_SIZE)
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
    """The font families to draw `text` with: Matplotlib's own, and installed ones for letters that it lacks, such as
    Chinese ones. Warns of letters that no font has."""
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
