"""What a job learns from, in numbers: rows, tokens, what is cut, and what the tokenizer cannot read."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any, TextIO

import numpy as np

from ..data import Batch
from ..display.tables import numbers_right, wide_console
from ..models.tokenizer import Tokenizer
from ..spelling import counted

MOST = 0.05  # the share, of unknown tokens or of cut texts, above which a person is warned
LISTED = 8  # labels, at most, of a table

Numbers = dict[str, Any]


def of_texts(texts: Batch, lengths: np.ndarray, tokenizer: Tokenizer, length: int) -> Numbers:
    """The numbers of rows that are read up to `length` tokens; `lengths` (N,) is what they have before they are cut.

    rows, tokens, median and longest (tokens of a row), truncated (the share of rows), unknown (of the tokens that are
    read), and empty (the rows of which the tokenizer makes no token).
    """
    special = len(tokenizer.encode(""))
    return {
        "rows": len(lengths),
        "tokens": int(lengths.sum()),
        "median": float(np.median(lengths)),
        "longest": int(lengths.max()),
        "truncated": float(np.mean(lengths > length)),
        "unknown": unknown(texts.ids if texts.padding is None else texts.ids[texts.padding], tokenizer),
        "empty": int((lengths <= special).sum()),
    }


def of_tokens(ids: Any, tokenizer: Tokenizer) -> Numbers:
    """The numbers of one long text: tokens, and the share of unknown ones."""
    return {"tokens": len(ids), "unknown": unknown(ids, tokenizer)}


def unknown(ids: Any, tokenizer: Tokenizer) -> float:
    """The share of unknown ones among the tokens, but for the special ones around a text."""
    if tokenizer.unknown is None:
        return 0.0
    ids = np.asarray(ids)
    around = int(np.isin(ids, list(tokenizer.special - {tokenizer.unknown})).sum())
    return float((ids == tokenizer.unknown).sum() / max(1, ids.size - around))


def warn(parts: dict[str, Numbers]) -> None:
    """Warn of a text that the tokenizer cannot read."""
    worst = max(part["unknown"] for part in parts.values())
    if worst > MOST:
        warnings.warn(
            f"{worst:.1%} of the tokens are unknown to this tokenizer, and all look alike to the model: take a base "
            "whose tokenizer knows this script",
            stacklevel=2,
        )
    empty = sum(part.get("empty", 0) for part in parts.values())
    if empty:
        warnings.warn(
            f"of {counted(empty, 'text')} the tokenizer makes no token: the model reads nothing", stacklevel=2
        )


def shared(train: Sequence[Any], held_out: Sequence[Any]) -> int:
    """The number of held-out texts that are among those to learn from too."""
    seen = set(train)
    return sum(text in seen for text in held_out)


def show(report: Numbers, file: TextIO | None = None) -> None:
    """The numbers of a job as a table: {"length": ..., "parts": {name: numbers}}, and where they are known "labels",
    {label: rows}, and how many rows are "shared" by the parts or "repeated"."""
    parts = report["parts"]
    words = {
        "rows": ("rows", "{:,}"),
        "tokens": ("tokens", "{:,}"),
        "median": ("median", "{:g}"),
        "longest": ("longest", "{:,}"),
        "truncated": (f"cut at {report['length']}", "{:.1%}"),
        "unknown": ("unknown", "{:.1%}"),
    }
    there = [key for key in words if any(key in part for part in parts.values())]
    table = numbers_right("", "", *(words[key][0] for key in there))
    for name, part in parts.items():
        table.add_row(name, *(words[key][1].format(part[key]) for key in there))
    console = wide_console(file=file)
    console.print(table)
    labels: Counter[str] = Counter(report.get("labels", {}))
    if labels:
        total, common = labels.total(), labels.most_common(LISTED)
        listed = ", ".join(f"{name} {n:,} ({n / total:.1%})" for name, n in common)
        more = f", and {counted(len(labels) - LISTED, 'rarer label')}" if len(labels) > LISTED else ""
        console.print(f"labels: {listed}{more}", soft_wrap=True)
    if report.get("repeated"):
        console.print(f"rows that repeat the text of another: {report['repeated']:,}", soft_wrap=True)
    if report.get("shared"):
        same = f"held-out rows that are among those to learn from too: {report['shared']:,}"
        console.print(f"{same}; scores on them say nothing of new texts", soft_wrap=True)
