"""Tables in a terminal."""

from __future__ import annotations

from typing import Any


def wide_console(width: int = 120) -> Any:
    """A rich Console that takes text as it is. Into a file it writes lines of `width`, not of a narrow terminal."""
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = width
    return console


def numbers_right(title: str, *columns: str, **options: Any) -> Any:
    """A rich Table whose columns after the first are numbers, which stay whole where it is narrow."""
    from rich.table import Table

    table = Table(*columns, title=title, title_justify="left", **options)
    table.columns[0].overflow = "fold"
    for column in table.columns[1:]:
        column.justify, column.no_wrap = "right", True
    return table


def fits(console: Any, table: Any) -> bool:
    """Does the table need no more than the console's width?"""
    return bool(console.measure(table, options=console.options.update(max_width=1000)).maximum <= console.width)


def counted(n: int, what: str) -> str:
    """1 layer, 2 layers."""
    return f"{n:,} {what}{'s' * (n != 1)}"
