"""Tables in a terminal."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, TextIO

CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    r"""`text` with control characters, except tab and newline, as escapes such as \x1b.

    Names and texts come from files, and a terminal would execute their control sequences.
    """
    return CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def printable(text: str, longest: int = 600) -> str:
    """`text` as one line without control characters; of a line longer than `longest`, the middle is left out."""
    line = visible(" ".join(text.split()))
    return line if len(line) <= longest else f"{line[: longest - 200]} ... {line[-200:]}"


def wide_console(width: int = 120, file: TextIO | None = None) -> Any:
    """A rich Console without markup or highlighting. In a file its lines are `width` wide."""
    from rich.console import Console as RichConsole

    class Console(RichConsole):
        def render_str(self, text: str, **options: Any) -> Any:
            return super().render_str(visible(text), **options)

        def on_broken_pipe(self) -> None:
            raise  # rich would exit with 1, the exit code of a wrong gradient

    console = Console(highlight=False, markup=False, file=file)
    if not console.is_terminal:
        console.width = width
    return console


def numbers_right(title: str, *columns: str, words: tuple[int, ...] = (0,), **options: Any) -> Any:
    """A rich Table with right-aligned numbers, except in the columns with these indices, `words`.

    In a narrow terminal, numbers are never broken, and words only at spaces and dots. If even that is too wide, each
    cell has a line of its own.
    """
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
                    label = " ".join(str(column.header).replace("-\n", "").split())
                    if str(cell):
                        yield Text(f"  {label}: {cell}" if label else f"  {cell}")

    table = Table(*columns, title=title or None, title_justify="left", **options)
    for i, column in enumerate(table.columns):
        if i not in (each % len(columns) for each in words):
            column.justify, column.no_wrap = "right", True
    return table


def fits(console: Any, table: Any) -> bool:
    """Whether the table fits the console's width without wrapping."""
    return bool(console.measure(table, options=console.options.update(max_width=1000)).maximum <= console.width)


class Dotted:
    """A cell of a rich Table with a name, which a narrow column breaks only at dots and spaces."""

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
