"""Merging into fewer bits: the report before it, when it is refused, and its error over sizes of ΔW."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from ..adapters.kept import LayerKept, kept_by_merge, share_kept
from ..data import Batch
from ..display.tables import numbers_right, wide_console
from ..models.transformer import Transformer
from ..quantization import format_named, formats
from ..quantization.forecast import foretell, measure

LEAST = 0.5  # of ΔW, which a merge has to keep
TOKENS = 64  # that a model reads, to measure the error of outputs
SIZES = 0.003, 0.01, 0.03, 0.1, 0.3

Pair = Callable[[LayerKept], tuple[float, float] | None]  # foretold, measured
MEASURES: dict[str, tuple[Pair, bool, str]] = {  # (of a layer, whether less is worse, how it is printed)
    "entries that change their code": (lambda k: (k.foretold.survive, k.measured.survive), True, ".1%"),
    "⟨kept, ΔW⟩ / ‖ΔW‖²": (lambda k: (k.foretold.share, k.measured.share), True, ".1%"),
    "cos(kept, ΔW)": (lambda k: (k.foretold.cos, k.measured.cos), True, ".3f"),
    "‖kept - ΔW‖ / ‖ΔW‖": (lambda k: (k.foretold.relative_error, k.measured.relative_error), False, ".3f"),
    "error of y / what ΔW adds to y": (
        lambda k: (k.y.foretold / k.y.added, k.y.measured / k.y.added) if k.y and k.y.added else None,
        False,
        ".3f",
    ),
}


def check_merge(model: Transformer, format: str, anyway: bool) -> None:
    """Print how much of the adapters a merge into `format` will keep. Raises ValueError if that is less than half,
    unless `anyway`."""
    ids = np.random.default_rng(0).integers(0, model.config.vocab_size, (1, min(TOKENS, model.config.max_length)))
    found = kept_by_merge(model, format, Batch(ids, ids))
    show_kept(found, format)
    share = share_kept(found)
    if share < LEAST and not anyway:
        wider = "bfloat16 or float32" if format_named(format).for_blocks else "float32"
        raise ValueError(
            f"a merge into {format} keeps {share:.0%} of ΔW, less than half: keep the adapter as a separate file, "
            f"or take --dtype {wider}; --anyway merges nevertheless"
        )


def show_kept(found: Mapping[str, LayerKept], format: str) -> None:
    """Print a table of what is kept, foretold beside measured: the median of the layers, and the worst."""
    if not found:
        print(f"no matrix that {format} rounds is changed by the adapter")
        return
    table = numbers_right(
        f"What {format} keeps of ΔW, kept = rounded(W + ΔW) - W, in {len(found)} matrices",
        "", "median:\nforetold", "\nmeasured", "worst:\nforetold", "\nmeasured", "layer",
        words=(0, 5),
    )  # fmt: skip
    for name, (pair, less_is_worse, form) in MEASURES.items():
        pairs = {path: p for path, layer in found.items() if (p := pair(layer))}
        if pairs:
            worst = (min if less_is_worse else max)(pairs, key=lambda path: pairs[path][1])
            medians = map(statistics.median, zip(*pairs.values(), strict=True))
            table.add_row(name, *(f"{x:{form}}" for x in (*medians, *pairs[worst])), worst)
    console = wide_console()
    console.print(table)
    off = sum(not layer.on_the_grid for layer in found.values())
    if off:
        note = "the error includes rounding them, which happens without an adapter too"
        console.print(f"{off} of these W are not in {format} yet: {note}", soft_wrap=True)


def size_curves(
    W: np.ndarray,
    delta: np.ndarray,
    names: Iterable[str] = ("nf4", "int8", "bfloat16", "float16"),
    sizes: Iterable[float] = SIZES,
) -> list[dict[str, Any]]:
    """A row for each format, size ‖ΔW‖/‖W‖, and base in the format or not: what is kept of ΔW, foretold and measured.

    W and ΔW (out, in) are float32; ΔW is scaled to each size.
    """
    rows = []
    for name in names:
        cls = formats()[name]
        for in_format, base in ((True, cls.of(W).dense()), (False, W)):
            for size in sizes:
                change = (delta * (size * np.linalg.norm(W) / np.linalg.norm(delta))).astype(np.float32)
                row: dict[str, Any] = {"format": name, "in_format": in_format, "size": size}
                for what, kept in (("foretold", foretell(base, change, cls)), ("measured", measure(base, change, cls))):
                    row[what] = {
                        "survive": kept.survive, "share": kept.share, "cos": kept.cos, "error": kept.relative_error,
                    }  # fmt: skip
                rows.append(row)
    return rows
