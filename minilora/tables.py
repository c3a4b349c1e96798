"""Tables in a terminal."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, TextIO


def wide_console(width: int = 120, file: TextIO | None = None) -> Any:
    """A rich Console that takes text as it is. Into a file it writes lines of `width`, not of a narrow terminal."""
    from rich.console import Console

    console = Console(highlight=False, markup=False, file=file)
    if not console.is_terminal:
        console.width = width
    return console


def numbers_right(title: str, *columns: str, **options: Any) -> Any:
    """A rich Table whose columns after the first are numbers, which stay whole where it is narrow."""
    from rich.table import Table

    table = Table(*columns, title=title or None, title_justify="left", **options)
    table.columns[0].overflow = "fold"
    for column in table.columns[1:]:
        column.justify, column.no_wrap = "right", True
    return table


def fits(console: Any, table: Any) -> bool:
    """Does the table need no more than the console's width?"""
    return bool(console.measure(table, options=console.options.update(max_width=1000)).maximum <= console.width)


class Dotted:
    """A dotted name as a cell of a rich Table: where the column is narrow it is broken after a dot, not in a word."""

    def __init__(self, name: str) -> None:
        self.name, self.parts = name, re.findall(r"[^.]+\.?", name)

    def __rich_measure__(self, console: Any, options: Any) -> Any:
        from rich.measure import Measurement

        return Measurement(max(map(len, self.parts)), len(self.name))

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        from rich.text import Text

        lines = [""]
        for part in self.parts:
            if lines[-1] and len(lines[-1] + part) > options.max_width:
                lines.append("")
            lines[-1] += part
        yield Text("\n".join(lines), overflow="fold")


def counted(n: int, what: str) -> str:
    """1 layer, 2 layers."""
    return f"{n:,} {what}{'s' * (n != 1)}"
