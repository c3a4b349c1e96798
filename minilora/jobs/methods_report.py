"""A comparison of methods for people: the table, and what its rows show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..display.tables import numbers_right, wide_console
from ..spelling import counted

PNG = "methods.png"


def verdict(row: dict[str, Any]) -> str:
    """What the interval of the difference says; a difference below 0 is better."""
    if row["mean"] is None:
        return "diverged"
    if row["difference"] is None:
        return "the reference"
    if row["difference"]["high"] < 0:
        return "better"
    return "worse" if row["difference"]["low"] > 0 else "within the spread"


def headlines(report: dict[str, Any]) -> list[str]:
    """What the rows show, of the losses, of the bytes, and of the seconds."""
    rows = [row for row in report["rows"] if row["mean"] is not None]
    reference = next((row for row in rows if verdict(row) == "the reference"), rows[0])
    better, worse = ([row for row in rows if verdict(row) == word] for word in ("better", "worse"))
    name = reference["name"]
    if better:
        gain = -better[0]["difference"]["mean"]
        losses = f"{better[0]['name']} is {gain:.3f} bits per byte better than {name}, beyond the spread"
    else:
        losses = f"No other is better than {name} beyond the spread"
    losses += f"; {counted(len(worse), 'other')} {'is' if len(worse) == 1 else 'are'} worse"
    kept, of = min(rows, key=lambda row: row["memory"]["cache"]), reference["memory"]["cache"]
    bytes_kept = f"{kept['name']} keeps the least, {kept['memory']['cache'] / of:.0%} of {name}'s"
    if kept is reference:
        bytes_kept = f"No other keeps less than {name}"
    slow = max(rows, key=lambda row: row["step_time"])
    times = f"{slow['name']} takes the longest, {slow['step_time']:.1f} times {name}'s"
    if slow is reference:
        times = f"No other takes longer than {name}"
    return [losses, bytes_kept, times]


def print_methods(report: dict[str, Any], out: str | Path) -> None:
    """The report as a table, and what follows from it."""
    console, task = wide_console(150), report["task"]
    title = f"Bits per byte of test text after {task['steps']} steps, {report['seeds']} seeds, each at its best rate"
    columns = (
        *("method", "trained", "mean", "std.\ndeviation", "minus\nreference", "95 % interval", "", "rate"),
        *("kept\nMiB", "time of\na step", "why"),
    )
    table = numbers_right(title, *columns, words=(0, 6, 10))
    for row in report["rows"]:
        loss = [f"{row[key]:.4f}" if row["mean"] is not None else "-" for key in ("mean", "standard_deviation")]
        d = row["difference"]
        by = ["", ""] if d is None else [f"{d['mean']:+.4f}", f"{d['low']:+.4f} to {d['high']:+.4f}"]
        at = f"{row['rate']:.4g}{' (edge)' * row['at_the_edge']}"
        cost = f"{row['memory']['cache'] / 2**20:.1f}", f"{row['step_time']:.2f}"
        table.add_row(row["name"], f"{row['trainable']:,}", *loss, *by, verdict(row), at, *cost, row["why"])
    console.print(table)
    compared = sum(row["difference"] is not None for row in report["rows"])
    lines = [f"{line}." for line in headlines(report)]
    lines += [f"Of {counted(compared, 'interval')} at 95 %, one in twenty misses the true difference by chance."]
    lines += ["The seeds change the batches and what is drawn; the model and the texts are the same."]
    lines += [f"Left out: {method}: {reason}" for method, reason in report["left_out"].items()]
    lines += [f"{report['seconds'] / 60:.0f} minutes of training, on one core each; written to {out}"]
    console.print("\n".join([*lines, f"look at {Path(out) / PNG}"]), soft_wrap=True)
