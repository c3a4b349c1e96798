"""The singular values of ΔW: which rank is enough, and how ΔW lies in W. The command `minilora rank`."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from ..adapters import spectrum
from ..adapters.peft import CONFIG, locate_adapter
from ..adapters.peft.format import MERGE_IT
from ..adapters.spectrum import SVD
from ..display.plots import check_png
from ..files import check_free, write_files, write_whole
from ..models.pretrained import load_pretrained
from ..process import blas_threads
from .bases import base_for, format_for
from .changes import Change, Changes, adapter_changes, checkpoint_changes
from .extraction import LowRank, approximate, check_rank, extracted_files, is_plain, linear_layers, shrunk_files
from .rank_figures import rank_figures

TOP = 10  # singular vectors of W after, the first ones, among which it looks for intruders
SIDES = ("right", "left")
COMPARED = 64  # directions of two updates, at most, that are compared, as in the figures of Hu et al. (2021)


@blas_threads()
def study(
    folder: str,
    tuned: str | None = None,
    *,
    base: str | None = None,
    compare: str | None = None,
    rank: int | None = None,
    energy: float | None = None,
    out: str | None = None,
    plot: str | None = None,
) -> dict[str, Any]:
    """The singular values of ΔW in each layer: of the adapter in `folder`, beside those of W if its `base` is given; or
    of the difference between the checkpoints `folder` and `tuned`.

    Returns {"layers": [...], "summary": {...}}, for JSON. `compare` is another adapter, whose directions are compared
    with these. `out` is a new folder for the best adapter of a `rank`, or of the least ranks that keep a share of the
    `energy`; "adapter" then says what it holds. A `plot` of NAME.png writes NAME-energy.png, and so on. Raises
    ValueError and FileNotFoundError before anything is written.
    """
    from tqdm import tqdm

    if tuned and base:
        raise ValueError("a base goes with an adapter; of two checkpoints, the first is the base")
    check_output(rank, energy, out)
    if plot:
        check_png(plot)
    model, adapter = None, Path()
    if tuned is None:
        adapter = locate_adapter(folder)
        if not (adapter / CONFIG).is_file():
            raise FileNotFoundError(
                f"{adapter} is not an adapter folder, it holds no {CONFIG}; to compare two checkpoints, give both"
            )
        source = base_for(adapter, base) if base else None
        changes = adapter_changes(adapter, source)
        if out and not is_plain(adapter):
            if source is None:
                raise ValueError(f"{adapter} is not a plain LoRA, and the smaller adapter has to be one: {MERGE_IT}")
            model = load_pretrained(source, quantize=format_for(adapter))
    else:
        before = base_for(None, folder) or folder
        changes = checkpoint_changes(before, tuned)
        model = load_pretrained(before) if out else None
    others = adapter_changes(compare, base_for(None, base) if base else None).layers if compare else {}
    if compare and not others.keys() & changes.layers.keys():
        raise ValueError(f"{compare} adapts none of these layers: there is nothing to compare")
    paths = linear_layers(model, changes.layers) if model else {}
    approximated = {name: c for name, c in changes.layers.items() if out and (name in paths or not model)}
    if rank and approximated:
        check_rank(rank, approximated)

    rows, grids, low_rank = [], [], {}
    for name, change in tqdm(changes.layers.items(), desc="decomposing", leave=False, disable=None):
        try:
            update = change.update()
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        rows.append({"name": name, **measure(change, update)})
        if name in others:
            grids.append(similarity(change, update, others[name]))
        if name in approximated:
            low_rank[name] = approximate(name, change, update, rank, energy)
    result: dict[str, Any] = {"layers": rows, "summary": summary(rows, changes, grids)}
    if out:
        result["adapter"] = adapter_report(rows, low_rank, changes)
    figures = rank_figures(result) if plot else {}
    if out:
        write_files(out, extracted_files(model, paths, low_rank) if model else shrunk_files(adapter, low_rank))
    for question, png in figures.items():
        path = Path(str(plot))
        write_whole(path.with_name(f"{path.stem}-{question}.png"), png)
    return result


def check_output(rank: int | None, energy: float | None, out: str | None) -> None:
    """Raise ValueError for options that do not go together, and OSError for a folder that cannot be written."""
    if rank is not None and energy is not None:
        raise ValueError("a rank and a share of the energy both say how much to keep: give one of them")
    if rank is not None and rank < 1:
        raise ValueError(f"rank = {rank!r} is not a whole number from 1 up")
    if energy is not None and not 0 < energy <= 1:
        raise ValueError(f"energy = {energy!r} is not a share above 0 and up to 1")
    if (rank is None and energy is None) != (not out):
        raise ValueError("to write an adapter, give a folder for it and a rank or a share of the energy to keep")
    if out:
        check_free(out)


# ---- one layer ----


def measure(change: Change, update: SVD) -> dict[str, Any]:
    """The norm and ranks of one ΔW, and how it lies in W, if W is known."""
    sigma = update.sigma
    row: dict[str, Any] = {
        "shape": list(change.shape),
        "norm": float(np.linalg.norm(sigma)),
        "stable_rank": spectrum.stable_rank(sigma),
        "effective_rank": spectrum.effective_rank(sigma),
        "numerical_rank": change.numerical_rank(sigma),
        "rank_90": spectrum.rank_for(sigma, 0.9),
        "rank_99": spectrum.rank_for(sigma, 0.99),
        "singular_values": {"update": sigma.tolist()},
    }
    if change.before is None or change.after is None:
        return row
    W, r = change.before.astype(float), row["rank_90"]
    before, after = spectrum.svd(W), spectrum.svd(change.after.astype(float))
    left, right = spectrum.intruders(before, after, TOP)
    factor, size = spectrum.amplification(W, update, r), float(np.linalg.norm(W))
    row |= {
        "relative_norm": row["norm"] / size if size else None,
        "amplification": factor if math.isfinite(factor) else None,
        "projected_norm": {  # table 7 of Hu et al. (2021): on the first r directions of each
            "update": spectrum.projected_norm(W, update, r),
            "weight": spectrum.projected_norm(W, before, r),
            "random": spectrum.random_projected_norm(W, r),
        },
        "intruders": {"left": left.tolist(), "right": right.tolist()},
    }
    row["singular_values"] |= {"before": before.sigma.tolist(), "after": after.sigma.tolist()}
    return row


def similarity(change: Change, update: SVD, other: Change) -> dict[str, np.ndarray]:
    """φ(i, j) of two updates of one layer, for the directions of each that are above rounding."""
    if other.shape != change.shape:
        raise ValueError(f"the layers to compare are of another shape, {other.shape} and not {change.shape}")
    other_update = other.update()
    m = min(COMPARED, change.numerical_rank(update.sigma))
    n = min(COMPARED, other.numerical_rank(other_update.sigma))
    n_out, n_in = change.shape
    return {
        "right": spectrum.subspace_similarity(update.Vt[:m].T, other_update.Vt[:n].T),
        "left": spectrum.subspace_similarity(update.U[:, :m], other_update.U[:, :n]),
        "random_right": spectrum.random_similarity(m, n, n_in),
        "random_left": spectrum.random_similarity(m, n, n_out),
    }


# ---- all layers ----


def summary(rows: list[dict[str, Any]], changes: Changes, grids: list[dict[str, np.ndarray]]) -> dict[str, Any]:
    """Means over the layers that changed, and the names of what else did."""
    kept = spectrum.mean_energy([np.array(row["singular_values"]["update"]) for row in rows])
    found: dict[str, Any] = {
        "layers": len(rows),
        "unchanged": changes.unchanged,
        "other_tensors": changes.others,
        "energy_kept": kept.tolist(),  # by rank 1, 2, ...
        "rank_90": int(np.argmax(kept >= 0.9)) + 1,
        "rank_99": int(np.argmax(kept >= 0.99)) + 1,
        "stable_rank": mean(row["stable_rank"] for row in rows),
        "effective_rank": mean(row["effective_rank"] for row in rows),
    }
    intruders = [row["intruders"] for row in rows if "intruders" in row]
    if intruders:
        found["intruders"] = {side: mean(len(row[side]) for row in intruders) for side in SIDES}
    if grids:
        m, n = (min(grid["right"].shape[axis] for grid in grids) for axis in (0, 1))
        means = {key: np.mean([grid[key][:m, :n] for grid in grids], axis=0).tolist() for key in grids[0]}
        found["similarity"] = {"layers": len(grids), **means}
    return found


def adapter_report(rows: list[dict[str, Any]], low_rank: dict[str, LowRank], changes: Changes) -> dict[str, Any]:
    """The layers of the adapter, its error relative to ‖ΔW‖ of its layers, and the changes that it cannot hold."""
    norms = {row["name"]: row["norm"] for row in rows}
    left_out = {name: "changed" for name in norms if name not in low_rank}
    return {
        "layers": [
            {"name": name, "rank": len(layer.A), "error": layer.error, "bound": layer.bound}
            for name, layer in low_rank.items()
        ],
        "parameters": sum(layer.A.size + layer.B.size for layer in low_rank.values()),
        "relative_error": math.hypot(*(layer.error for layer in low_rank.values()))
        / math.hypot(*(norms[name] for name in low_rank)),
        "not_held": left_out | {name: what for name, what in changes.others.items() if what != "trained whole"},
    }
