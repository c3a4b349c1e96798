"""Statistics of the data of a job, shown before the training: rows, tokens, truncated rows, unknown tokens."""

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

WARN_ABOVE = 0.05  # share of unknown tokens, or of truncated texts
MOST_LABELS = 8  # that are listed

Numbers = dict[str, Any]


def numbers_of_rows(texts: Batch, lengths: np.ndarray, tokenizer: Tokenizer, length: int) -> Numbers:
    """Statistics of rows that are truncated to `length` tokens, from `lengths` (N,) before that.

    rows, tokens, median and longest (tokens in a row), truncated (share of the rows), unknown (share of the tokens that
    are left), and empty (rows without a token).
    """
    special = len(tokenizer.encode(""))
    return {
        "rows": len(lengths),
        "tokens": int(lengths.sum()),
        "median": float(np.median(lengths)),
        "longest": int(lengths.max()),
        "truncated": float(np.mean(lengths > length)),
        "unknown": unknown_share(texts.ids if texts.padding is None else texts.ids[texts.padding], tokenizer),
        "empty": int((lengths <= special).sum()),
    }


def numbers_of_tokens(ids: Any, tokenizer: Tokenizer) -> Numbers:
    """Statistics of one long text: tokens, and the share of unknown ones."""
    return {"tokens": len(ids), "unknown": unknown_share(ids, tokenizer)}


def unknown_share(ids: Any, tokenizer: Tokenizer) -> float:
    """The share of unknown tokens, the special ones around a text not counted."""
    if tokenizer.unknown is None:
        return 0.0
    ids = np.asarray(ids)
    around = int(np.isin(ids, list(tokenizer.special - {tokenizer.unknown})).sum())
    return float((ids == tokenizer.unknown).sum() / max(1, ids.size - around))


def warn_of_unreadable(parts: dict[str, Numbers]) -> None:
    """Warn of many unknown tokens, of texts without a token, and of answers that lose many of theirs."""
    worst = max(part["unknown"] for part in parts.values())
    if worst > WARN_ABOVE:
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
    lost = max(part.get("lost", 0.0) for part in parts.values())
    if lost > WARN_ABOVE:
        warnings.warn(
            f"{lost:.1%} of the answers' tokens are cut off and not learned: give a larger --length", stacklevel=2
        )


def count_shared(train: Sequence[Any], held_out: Sequence[Any]) -> int:
    """The number of held-out texts that are in the training data too."""
    seen = set(train)
    return sum(text in seen for text in held_out)


def print_data(report: Numbers, file: TextIO | None = None) -> None:
    """Print {"length": ..., "parts": {name: statistics}} as a table, and below it, where they are given, "labels"
    {label: rows}, the number of rows "shared" by the parts, of "repeated" ones, and of those that were "dropped"."""
    parts = report["parts"]
    columns = {
        "rows": ("rows", "{:,}"),
        "tokens": ("tokens", "{:,}"),
        "median": ("median", "{:g}"),
        "longest": ("longest", "{:,}"),
        "truncated": (f"cut at {report['length']}", "{:.1%}"),
        "unknown": ("unknown", "{:.1%}"),
        "learned": ("learned", "{:,}"),
    }
    present = [key for key in columns if any(key in part for part in parts.values())]
    table = numbers_right("", "", *(columns[key][0] for key in present))
    for name, part in parts.items():
        table.add_row(name, *(columns[key][1].format(part[key]) for key in present))
    console = wide_console(file=file)
    console.print(table)
    labels: Counter[str] = Counter(report.get("labels", {}))
    if labels:
        total, common = labels.total(), labels.most_common(MOST_LABELS)
        listed = ", ".join(f"{name} {n:,} ({n / total:.1%})" for name, n in common)
        more = f", and {counted(len(labels) - MOST_LABELS, 'rarer label')}" if len(labels) > MOST_LABELS else ""
        console.print(f"labels: {listed}{more}", soft_wrap=True)
    if report.get("dropped"):
        left = f"rows whose answers begin after the first {report['length']} tokens, left out: {report['dropped']:,}"
        console.print(left, soft_wrap=True)
    if report.get("repeated"):
        console.print(f"rows that repeat the text of another: {report['repeated']:,}", soft_wrap=True)
    if report.get("shared"):
        same = f"held-out rows that are among those to learn from too: {report['shared']:,}"
        console.print(f"{same}; scores on them say nothing of new texts", soft_wrap=True)
