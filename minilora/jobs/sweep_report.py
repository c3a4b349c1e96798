"""A sweep for people: the table, and what follows from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..display.tables import numbers_right, wide_console
from .sweep_figure import name_of

PNG = "sweep.png"


def called(name: int | str) -> str:
    """The name of a row within a sentence."""
    return f"rank {name}" if isinstance(name, int) else name


def first_word(name: int | str) -> str:
    """The name of a row at the start of a sentence."""
    return f"Rank {name}" if isinstance(name, int) else name


def failures(report: dict[str, Any]) -> list[str]:
    return [
        f"{called(name_of(row))}, seed {i}, failed: {seed['failed']}"
        for row in report["ranks"]
        for i, seed in enumerate(row["seeds"])
        if "failed" in seed
    ]


def headline(report: dict[str, Any]) -> str:
    best, chosen = report["best"], report["chosen"]
    did_best = f"{first_word(best)} did best"
    if chosen is None:
        return f"{did_best}, with one seed and so without a spread"
    if best == name_of(report["ranks"][0]):
        return f"{did_best}, and is the smallest that was tried"
    if chosen == best:
        return f"{did_best}, and no smaller one is within one standard error of it"
    return f"{first_word(chosen)} is the smallest within one standard error of the best, {called(best)}"


def conclusion(report: dict[str, Any]) -> str:
    """What follows from the report, in sentences."""
    best = next(row for row in report["ranks"] if name_of(row) == report["best"])
    what = "method" if "method" in best else "rank"
    lines = [f"{failure}. A {what} with a failed seed is not compared." for failure in failures(report)]
    lines += [f"{headline(report)}."]
    if report["chosen"] is None:
        lines += [f"Nothing says that it is better than the others, or which {what} is enough: give --seeds 3 or more."]
    else:
        error = f"{best['standard_error']:.4f} bits per byte, of {len(best['seeds'])} seeds"
        lines += [f"That error is {error}; to choose by it is the one standard error rule of Breiman et al. (1984)."]
    if best["mean"] >= report["base_bits_per_byte"]:
        lines += [f"But no {what} does better than the base: train longer, or at another learning rate."]
    elif best is report["ranks"][-1]:
        lines += ["The best is the largest that was tried: a larger one may do better."]
    return "\n".join(lines)


def print_sweep(report: dict[str, Any], out: str | Path) -> None:
    """The report as a table, and what follows from it."""
    console = wide_console()
    title = f"Bits per byte of validation text, seeds: {report['settings']['seeds']}"
    what = "method" if "methods" in report["settings"] else "rank"
    table = numbers_right(title, what, "trained", "mean", "std.\ndeviation", "std.\nerror", "", words=(0, -1))
    table.add_row("base", "0", f"{report['base_bits_per_byte']:.4f}", "", "", "")
    for row in report["ranks"]:
        found = [row[name] for name in ("mean", "standard_deviation", "standard_error")]
        numbers = ("-" if number is None else f"{number:.4f}" for number in found)
        notes = [name for name in ("chosen", "best") if name_of(row) == report[name]]
        if not notes and (row["mean"] is None or name_of(row) in report["pareto"]):
            notes = ["failed" if row["mean"] is None else "Pareto"]
        table.add_row(str(name_of(row)), f"{row['trainable']:,}", *numbers, ", ".join(notes))
    console.print(table)
    console.print(conclusion(report), soft_wrap=True)
    console.print(f"written to {out}; look at {Path(out) / PNG}", soft_wrap=True)
