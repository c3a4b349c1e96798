"""What a check found, tensor by tensor, and how it prints."""

from __future__ import annotations

import html
import math
from dataclasses import dataclass, field

import numpy as np

from .differences import TOLERANCE


@dataclass
class Row:
    """One tensor: the worst relative error by each method, None where the method was not used."""

    tensor: str
    shape: tuple[int, ...]
    errors: dict[str, float | None]
    where: tuple[int, ...] | None = None  # the entry with the largest error, if entries were looked at
    note: str = ""
    uncertainty: dict[str, float] = field(default_factory=dict)  # of each method's number, relative as the errors are
    hidden: int = 0  # entries in which rounding would hide a mistake of 1e-3, unless they are very small

    def limit(self, method: str) -> float:
        """The largest error that rounding and truncation explain."""
        return TOLERANCE[method] + self.uncertainty.get(method, 0.0)

    def add(self, method: str, off: np.ndarray, scales: np.ndarray, uncertainty: np.ndarray) -> np.ndarray:
        """Record the error that is largest compared with its limit, of the absolute errors `off`; return the absolute
        limits."""
        limits = TOLERANCE[method] * scales + uncertainty
        worst = int((off / limits).argmax())
        self.errors[method] = float(off[worst] / scales[worst])
        self.uncertainty[method] = float(uncertainty[worst] / scales[worst])
        return limits

    @property
    def verdict(self) -> str:
        """ok, WRONG, or cannot tell."""
        if self.note.startswith("wrong") or not all(
            e is None or e <= self.limit(method) for method, e in self.errors.items()
        ):
            return "WRONG"
        return "cannot tell" if self.hidden else "ok"

    @property
    def ok(self) -> bool:
        """True if the gradient was seen to be right. Where rounding hides that, it is neither ok nor WRONG."""
        return self.verdict == "ok"

    def remark(self, words: str) -> None:
        self.note = f"{self.note}; {words}" if self.note else words

    def hide(self, hidden: int, small: int, size: int) -> None:
        """Note in how many of `size` entries rounding hides a mistake, and how many are too small to matter."""
        self.hidden = hidden
        if hidden:
            self.remark(f"rounding hides {hidden} of {size} entries")
        if small:
            self.remark(f"{small} of {size} entries too small to be seen")

    def cells(self) -> list[str]:
        errors = ["-" if (e := self.errors.get(method)) is None else f"{e:.1e}" for method in TOLERANCE]
        where = "-" if self.where is None or self.verdict != "WRONG" else str(list(self.where))
        verdict = "; ".join(filter(None, [self.verdict, self.note.removeprefix("wrong: ")]))
        return [self.tensor, str(self.shape), *errors, where, verdict]


HEAD = ["tensor", "shape", *TOLERANCE, "worst at", "verdict"]


@dataclass(repr=False)
class Report:
    """A table of rows: print it, or call raise_if_wrong() in a test."""

    rows: list[Row] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return bool(self.rows) and all(row.ok for row in self.rows)

    def worst(self, method: str = "central") -> float:
        """The largest relative error by this method; NaN where it was not used."""
        return max((e for row in self.rows if (e := row.errors.get(method)) is not None), default=math.nan)

    def __str__(self) -> str:
        table = [HEAD, *(row.cells() for row in self.rows)]
        widths = [max(len(cells[i]) for cells in table) for i in range(len(HEAD))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) for cells in table]
        return "\n".join(line.rstrip() for line in [lines[0], "-" * len(lines[0]), *lines[1:]])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """The same table in a notebook."""
        head = "".join(f"<th>{name}</th>" for name in HEAD)
        rows = ("".join(f"<td>{html.escape(cell)}</td>" for cell in row.cells()) for row in self.rows)
        return f"<table><tr>{head}</tr>{''.join(f'<tr>{cells}</tr>' for cells in rows)}</table>"

    def raise_if_wrong(self) -> None:
        """Raise AssertionError with the table if a row is WRONG or there is none; not where the check cannot tell."""
        if not self.rows or any(row.verdict == "WRONG" for row in self.rows):
            raise AssertionError(f"a gradient is wrong\n{self}")
