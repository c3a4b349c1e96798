"""Tables in a terminal."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, TextIO

CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    r"""`text` with control characters as escapes, such as \x1b, but for tab and the end of a line: names and texts come
    from files, and a terminal obeys what it is sent."""
    return CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def printable(text: str, longest: int = 600) -> str:
    """A message as one line that a terminal can show: its middle is left out where it is longer."""
    line = visible(" ".join(text.split()))
    return line if len(line) <= longest else f"{line[: longest - 200]} ... {line[-200:]}"


def wide_console(width: int = 120, file: TextIO | None = None) -> Any:
    """A rich Console that takes text as it is. Into a file it writes lines of `width`, not of a narrow terminal."""
    from rich.console import Console as RichConsole

    class Console(RichConsole):
        def render_str(self, text: str, **options: Any) -> Any:
            return super().render_str(visible(text), **options)

        def on_broken_pipe(self) -> None:
            raise  # rich would exit with 1, the code of a gradient that is wrong

    console = Console(highlight=False, markup=False, file=file)
    if not console.is_terminal:
        console.width = width
    return console


def numbers_right(title: str, *columns: str, words: tuple[int, ...] = (0,), **options: Any) -> Any:
    """A rich Table of numbers but for the columns `words`. Where it is narrow, numbers stay whole, and words too: they
    are broken at spaces and dots; and where it is too narrow even for that, each cell has a line."""
    from rich.cells import cell_len
    from rich.measure import Measurement
    from rich.table import Table as RichTable
    from rich.text import Text

    class Table(RichTable):
        def add_row(self, *cells: Any, **options: Any) -> None:
            names = (isinstance(x, str) and not column.no_wrap for x, column in zip(cells, self.columns, strict=True))
            super().add_row(*(Dotted(x) if is_name else x for x, is_name in zip(cells, names, strict=True)), **options)

        def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
            least = (1 + self.padding[1] + self.padding[3]) * len(self.columns) + 1
            for column in self.columns:
                cells = [Measurement.get(console, options.update(max_width=1000), cell) for cell in column.cells]
                header = max(map(cell_len, re.split(r"\n" if column.no_wrap else r"\s", str(column.header))))
                least += max([header, *(cell.maximum if column.no_wrap else cell.minimum for cell in cells)])
            if least <= options.max_width:
                yield from super().__rich_console__(console, options)
                return
            yield Text(str(self.title or ""))
            for name, *others in zip(*(column.cells for column in self.columns), strict=True):
                yield Text(str(name))
                for column, cell in zip(self.columns[1:], others, strict=True):
                    called = " ".join(str(column.header).replace("-\n", "").split())
                    if str(cell):
                        yield Text(f"  {called}: {cell}" if called else f"  {cell}")

    table = Table(*columns, title=title or None, title_justify="left", **options)
    for i, column in enumerate(table.columns):
        if i not in (each % len(columns) for each in words):
            column.justify, column.no_wrap = "right", True
    return table


def fits(console: Any, table: Any) -> bool:
    """Does the table need no more than the console's width?"""
    return bool(console.measure(table, options=console.options.update(max_width=1000)).maximum <= console.width)


class Dotted:
    """A name as a cell of a rich Table: where the column is narrow it is broken at a dot or a space, not in a word."""

    def __init__(self, name: str) -> None:
        self.name = name = visible(name)
        part = r"(?:[^. ]|\.(?=\d))*+[. ]*"  # a number stays whole
        self.lines = [[*filter(None, re.findall(part, line))] or [""] for line in name.split("\n")]

    def __str__(self) -> str:
        return self.name

    def __rich_measure__(self, console: Any, options: Any) -> Any:
        from rich.cells import cell_len
        from rich.measure import Measurement

        widest = max(cell_len(part.rstrip()) for line in self.lines for part in line)
        return Measurement(widest, max(cell_len("".join(line)) for line in self.lines))

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        from rich.cells import cell_len
        from rich.text import Text

        lines = []
        for parts in self.lines:
            lines.append("")
            for part in parts:
                if lines[-1] and cell_len((lines[-1] + part).rstrip()) > options.max_width:
                    lines.append("")
                lines[-1] += part
        yield Text("\n".join(lines), overflow="fold")
