"""An adapter with fewer parameters: cut by entry, and by singular value; loss against bytes. For `minilora prune`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..adapters.base import Adapter
from ..adapters.combine import combine, factors_of, off_the_sum
from ..adapters.peft import Adapters
from ..adapters.spectrum import lora_svd, numerical_rank
from ..display.plots import check_png
from ..display.tables import numbers_right, wide_console
from ..files import write_whole
from ..process import blas_threads
from .combining import bits_per_byte, held_out, loaded
from .pruning_figure import pruning_figure

SHARES = 1.0, 0.75, 0.5, 0.375, 0.25, 0.125  # of the rank, and of the entries


@blas_threads()
def prune(folder: str, data: str, *, base: str | None = None, plot: str | None = None) -> dict[str, Any]:
    """The adapter in `folder`, cut to fewer singular values (svd) and to fewer entries of A and B (magnitude_prune), at
    the same number of parameters; returns {"base", "rows"} for JSON: bits per byte of what finetune holds out of the
    text `data`, and for each cut its loss, bytes, rank and zeros.

    The bytes are those of A and B in the file; `packed` counts the entries that stay, and one bit for each place to say
    which those are: no format of adapters stores that. Raises ValueError and OSError as combine_adapters.
    """
    from tqdm import tqdm

    if plot:
        check_png(plot)
    adapters, tokenizer, _ = loaded([folder], base)
    [dataset] = held_out(adapters.model, tokenizer, [data])
    report: dict[str, Any] = {"adapter": folder, "base": bits_per_byte(adapters, None, dataset), "rows": []}
    factors = [factors_of(m) for m in adapters.loaded[folder].values() if isinstance(m, Adapter)]
    if not any(A.any() and B.any() for A, B, _ in factors):
        raise ValueError(f"{folder}: its ΔW is 0, so there is nothing to cut: train it first")
    r = max(len(A) for A, _, _ in factors)
    ranks = list(dict.fromkeys(max(1, round(share * r)) for share in SHARES))
    for k in tqdm(ranks, desc="cutting", leave=False, disable=None):
        for how, options in {"svd": {"rank": k}, "magnitude_prune": {"density": k / r}}.items():
            name = f"{how} {k}"
            found = combine(adapters, name, {folder: 1.0}, how, **options)
            loss = bits_per_byte(adapters, name, dataset)
            report["rows"].append(
                {"how": how, **options, "bits": loss, "off": off_the_sum(found), **kept(adapters, name)}
            )
    if plot:
        write_whole(Path(plot), pruning_figure(report))
    return report


def kept(adapters: Adapters, name: str) -> dict[str, Any]:
    """Bytes, rank and zeros of all layers of an adapter."""
    layers = [m for m in adapters.loaded[name].values() if isinstance(m, Adapter)]
    each = [(A, B, layer.weight.data.dtype) for layer in layers for A, B, _ in [factors_of(layer)]]
    numbers, zeros = sum(A.size + B.size for A, B, _ in each), sum(np.sum(A == 0) + np.sum(B == 0) for A, B, _ in each)
    size = each[0][2].itemsize
    ranks = [
        numerical_rank(lora_svd(A, B, 1.0).sigma, (len(B), A.shape[1]), np.dtype(np.float32)) for A, B, dtype in each
    ]
    products = [B @ A == 0 for A, B, _ in each]
    return {
        "bytes": numbers * size,
        "packed": int(numbers - zeros) * size + -(-numbers // 8) if zeros else numbers * size,
        "rank": float(np.mean(ranks)),
        "zeros": float(zeros / numbers),
        "zeros_of_delta": float(sum(x.sum() for x in products) / sum(x.size for x in products)),
    }


def print_pruned(report: dict[str, Any]) -> None:
    """The table of the cuts."""
    table = numbers_right(
        f"{report['adapter']}: bits per byte of held-out text, {report['base']:.3f} with the base alone",
        "", "numbers\nkept", "bits per\nbyte", "off\nΔW", "KiB in\nthe file", "KiB\npacked", "rank,\nmean",
        "zeros in\nA and B", "zeros\nin ΔW",
    )  # fmt: skip
    rows = report["rows"]
    whole = rows[0]["bytes"]
    for how, what in (("svd", "singular values"), ("magnitude_prune", "entries")):
        for row in (row for row in rows if row["how"] == how):
            share = row["bytes"] / whole * (1 - row["zeros"])
            size = f"{row['bytes'] / 1024:.0f}", f"{row['packed'] / 1024:.0f}" if how == "magnitude_prune" else ""
            table.add_row(what, f"{share:.1%}", f"{row['bits']:.3f}", f"{row['off']:.1%}", *size, f"{row['rank']:.1f}",
                          f"{row['zeros']:.1%}", f"{row['zeros_of_delta']:.1%}")  # fmt: skip
    wide_console().print(table)
