"""Everything at once: the check over every op, module, adapter and family, and the laws that need no reference."""

from __future__ import annotations

import math
import time
import zlib
from typing import Any

import numpy as np

from ..display.tables import numbers_right, wide_console
from ..process import blas_threads
from ..spelling import choose_from
from .cases import CHECKS
from .laws import LAWS
from .op import Rng

METHODS = ("central", "complex")


@blas_threads()
def verify(only: str = "", seed: int = 0) -> dict[str, Any]:
    """Run every check and law whose name contains `only`, in upper case or lower; seconds for all.

    Returns {"checks": [{name, tensor, method, worst_relative_error, ok}], "laws": [{law, value, ok}], "seconds"}; the
    worst is over all shapes. Where there is no number it is None, and a "note" says why. Raises ValueError if no name
    contains `only`, ImportError if a check needs a package that is not installed (SciPy).
    """
    from tqdm import tqdm

    start = time.perf_counter()
    wanted = spaced(only)
    chosen = [name for name in [*CHECKS, *LAWS] if wanted in spaced(name)]
    if not chosen:
        raise ValueError(f"no check and no law has {only!r} in its name: {choose_from(wanted, [*CHECKS, *LAWS])}")
    checks: list[dict[str, Any]] = []
    laws: list[dict[str, Any]] = []
    for name in tqdm(chosen, desc="verifying", leave=False, disable=None):
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])  # the same numbers whatever else is chosen
        with np.errstate(all="ignore"):  # what is wrong may overflow: its row says so
            checks += check_entries(name, rng) if name in CHECKS else []
            laws += [law_entry(name, rng)] if name in LAWS else []
    return {"checks": checks, "laws": laws, "seconds": time.perf_counter() - start}


def spaced(name: str) -> str:
    """The name in lower case, with spaces for underscores: layer_norm finds the op "layer norm"."""
    return name.casefold().replace("_", " ")


def check_entries(name: str, rng: Rng) -> list[dict[str, Any]]:
    """One entry for each tensor and method, the worst of all shapes. A check that raises has one entry, not ok and
    without a number."""
    found: dict[tuple[str, str], dict[str, Any]] = {}

    def add(tensor: str, method: str, error: float | None, limit: float, note: str) -> None:
        entry = {"name": name, "tensor": tensor, "method": method}
        entry |= measured("worst_relative_error", error, limit, note)
        found[tensor, method] = max(found.get((tensor, method), entry), entry, key=badness)

    try:
        for report in CHECKS[name](rng):
            for row in report.rows:
                for method, error in (row.errors or {"central": None}).items():
                    error = None if row.verdict == "cannot tell" else error
                    add(row.tensor.removeprefix("module."), method, error, row.limit(method), row.note)
    except ImportError:  # no check ran: it is not wrong, but unknown
        raise
    except Exception as error:  # whatever a broken op does
        add("-", "central", None, 0, f"{type(error).__name__}: {error}")
    return list(found.values())


def badness(entry: dict[str, Any]) -> tuple[bool, float]:
    return not entry["ok"], entry["worst_relative_error"] or 0.0


def law_entry(name: str, rng: Rng) -> dict[str, Any]:
    law, tolerance = LAWS[name]
    try:
        return {"law": name} | measured("value", law(rng), tolerance)
    except ImportError:
        raise
    except Exception as error:
        return {"law": name} | measured("value", None, 0, f"{type(error).__name__}: {error}")


def measured(key: str, value: float | None, tolerance: float, note: str = "") -> dict[str, Any]:
    """JSON has no NaN and no infinity: they are None, and a note."""
    if value is None or not math.isfinite(value):
        return {key: None, "ok": False, "note": note or "not a finite number"}
    return {key: value, "ok": value <= tolerance}


def wrong(result: dict[str, Any]) -> list[str]:
    """The names of the checks and laws that do not hold."""
    return list(dict.fromkeys(e.get("law") or e["name"] for e in [*result["checks"], *result["laws"]] if not e["ok"]))


def show_verification(result: dict[str, Any]) -> None:
    """Both tables, and the verdict in one line."""
    console = wide_console()
    about = "Relative errors in float64, the worst of all shapes"
    tables = {
        "checks": numbers_right(about, "check", "tensor", *METHODS, "", words=(0, 1, -1)),
        "laws": numbers_right("Laws, and by how much they are broken", "law", "broken by", "", words=(0, -1)),
    }
    tensors: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for entry in result["checks"]:
        tensors.setdefault((entry["name"], entry["tensor"]), {})[entry["method"]] = entry
    for row, found in tensors.items():
        errors = [number(found[m]["worst_relative_error"]) if m in found else "-" for m in METHODS]
        tables["checks"].add_row(*row, *errors, verdict(*found.values()))
    for entry in result["laws"]:
        tables["laws"].add_row(entry["law"], number(entry["value"]), verdict(entry))
    for kind, table in tables.items():
        if result[kind]:
            console.print(table)
    bad, counts = wrong(result), f"{len(tensors)} tensors and {len(result['laws'])} laws, {result['seconds']:.1f} s"
    console.print(f"WRONG: {', '.join(bad)} ({counts})" if bad else f"all is right: {counts}", soft_wrap=True)


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1e}" if value else "0"


def verdict(*entries: dict[str, Any]) -> str:
    notes = dict.fromkeys(e["note"] for e in entries if "note" in e)
    return " ".join(["ok" if all(e["ok"] for e in entries) else "WRONG", *notes])
