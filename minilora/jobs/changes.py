"""ΔW of every weight: of an adapter, or of two checkpoints of any family."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..adapters.base import Adapter
from ..adapters.peft import PREFIX, adapters_of, layers_in, locate_adapter, read_adapter, slot_of
from ..adapters.peft.config import classes_of
from ..adapters.peft.fitting import check_base
from ..adapters.peft.format import MERGE_IT, is_whole_in_file
from ..adapters.peft.matching import is_saved
from ..adapters.peft.plan import plan_of
from ..adapters.peft.reading import replaced_weights
from ..adapters.peft.view import view_of
from ..adapters.spectrum import SVD, lora_svd, numerical_rank, svd
from ..models.families import FAMILIES
from ..models.names import add_body
from ..models.pretrained import read_source
from ..models.sources import locate
from ..quantization import dense
from .bases import base_of_run, load_adapted


class Change(NamedTuple):
    """ΔW of one weight: W (out, in) before and after, or (A (r, in), B (out, r), s) of ΔW = s B A, or both.

    They have the dtype of their files; what is computed from them is float64.
    """

    before: np.ndarray | None
    after: np.ndarray | None
    lora: tuple[np.ndarray, np.ndarray, float] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        if self.lora:
            A, B, _ = self.lora
            return len(B), A.shape[1]
        assert self.after is not None
        return self.after.shape

    def full_rank(self) -> int:
        """The highest rank that ΔW can have."""
        n_out, n_in = self.shape
        return min(n_out, n_in, len(self.lora[0])) if self.lora else min(n_out, n_in)

    def update(self) -> SVD:
        """U Σ Vᵀ of ΔW; of an adapter, without forming ΔW. Raises ValueError where float64 cannot hold ‖ΔW‖²."""
        found = None
        with np.errstate(over="ignore", invalid="ignore"):
            if self.lora:
                A, B, s = self.lora
                bound = s * np.linalg.norm(B.astype(float)) * np.linalg.norm(A.astype(float))  # of ‖ΔW‖
                if 0 < bound**2 < math.inf:
                    found = lora_svd(A.astype(float), B.astype(float), s)
            else:
                found = svd(self.delta())
            if found is None or not 0 < np.sum(found.sigma**2) < math.inf:
                raise ValueError(
                    "ΔW is beyond what float64 can square: its numbers, or alpha, are too large or too small"
                )
        return found

    def delta(self) -> np.ndarray:
        """ΔW (out, in) of two checkpoints."""
        assert self.before is not None
        assert self.after is not None
        return self.after.astype(float) - self.before

    def error(self, A: np.ndarray, B: np.ndarray) -> float:
        """‖ΔW - B A‖. The difference of two adapters is an adapter whose rank is their sum: ΔW is not formed."""
        if self.lora:
            A_0, B_0, s = self.lora
            difference = lora_svd(np.vstack([A_0, A]).astype(float), np.hstack([s * B_0.astype(float), -B]), 1).sigma
        else:
            difference = self.delta() - B.astype(float) @ A
        return float(np.linalg.norm(difference))

    def numerical_rank(self, sigma: np.ndarray) -> int:
        """The number of singular values above rounding error, with the ε of the stored dtype, or of float32 if that is
        smaller: with that of half precision, none would be above it."""
        stored = self.lora[0] if self.lora else self.after
        assert stored is not None
        return numerical_rank(sigma, self.shape, np.promote_types(stored.dtype, np.float32))


class Changes(NamedTuple):
    layers: dict[str, Change]  # {name of a module, such as model.layers.0.self_attn.q_proj: its ΔW, which is not 0}
    unchanged: list[str]  # modules whose ΔW is 0
    others: dict[str, str]  # {tensor that is not a matrix in both: how it differs}


def read_weights(source: str | Path) -> tuple[str, dict[str, np.ndarray]]:
    """(family, every tensor) of a checkpoint, a folder or a .gguf file; the family is "" if it is not a known one.

    The tensors of a known family have the names in a model with a head, and GPT-2's Conv1D weights, (in, out) in its
    files, are (out, in). Raises as load_pretrained does for what is missing or damaged.
    """
    values, tensors = read_source(locate(source))
    family = values.get("model_type")
    return family if isinstance(family, str) and family in FAMILIES else "", dict(tensors)


def adapter_changes(folder: str | Path, base: str | Path | None = None) -> Changes:
    """ΔW of every layer of an adapter, as s B A where it is such a product, with W before and after if the checkpoint
    `base` has it.

    Tensors that are trained whole (modules_to_save, biases) are in `others`. Raises FileNotFoundError for a missing
    file; ValueError for what read_adapter does not support, for tensors that do not fit each other, the config or the
    base, for an adapter whose ΔW is 0 everywhere, and for one whose ΔW follows from its base alone and that has none.
    """
    folder = locate_adapter(folder)
    config, tensors, metadata = read_adapter(folder)
    whole = trained_whole(config, tensors)
    those = {name: x for name, x in tensors.items() if name not in whole}
    adapters = adapters_in(folder, config, those, base)
    family, weights = ("", {}) if base is None else read_weights(base)
    if base is not None and "base_sha256" in metadata:
        check_below(folder, config, tensors, metadata, base)
    layers, unchanged = {}, []
    for name in sorted(adapters, key=natural_order):
        factors = adapters[name].factors()
        if factors is None:
            W, merged = adapters[name].dense(), dense(adapters[name].merged()[0])
            if np.array_equal(W, merged):
                unchanged.append(name)
            else:
                layers[name] = Change(W, merged)
            continue
        A, B, s = factors
        before = weights.get(f"{add_body(family, name) if family else name}.weight")
        if before is not None and before.shape != (len(B), A.shape[1]):
            raise ValueError(f"{name} is {before.shape} in {base}, and the adapter is for {(len(B), A.shape[1])}")
        if s == 0 or is_zero(A, B):
            unchanged.append(name)
            continue
        with np.errstate(over="ignore", invalid="ignore"):  # update() refuses it
            after = None if before is None else before + s * (B.astype(float) @ A)
        layers[name] = Change(before, after, (A, B, s))
    if not layers:
        raise ValueError(
            f"ΔW = 0 in every layer of {folder}: an adapter that was not trained, or changes no matrix, has no spectrum"
        )
    if base is not None and all(change.before is None for change in layers.values()):
        raise ValueError(f"{base} has none of the layers of {folder}: it is not its base")
    return Changes(layers, unchanged, {name.removeprefix(PREFIX): "trained whole" for name in whole})


def adapters_in(
    folder: Path, config: dict[str, Any], tensors: dict[str, np.ndarray], base: str | Path | None
) -> dict[str, Adapter]:
    """{Hugging Face's name of a layer: its adapter}, on the layers of `base` where ΔW does not follow from the file
    alone. Raises ValueError where it does not and there is no base."""
    if base is None or all(map(is_whole_in_file, classes_of(config))):
        found = layers_in(folder, config, tensors)
        unknown = next((name for name, adapter in found.items() if adapter.factors() is None), "")
        if not unknown:
            return found
        if base is None:
            raise ValueError(f"{folder}: ΔW of {unknown} depends on W: {MERGE_IT}")
    model, _ = load_adapted(base, folder)
    names = view_of(model).names
    return {names[path]: adapter for path, adapter in adapters_of(model).items()}


def is_zero(A: np.ndarray, B: np.ndarray) -> bool:
    """Whether B A is zero up to rounding, as when the columns of B that are not 0 meet rows of A that are."""
    largest = [float(abs(x).max()) for x in (A, B)]
    if not all(largest):
        return True
    A, B = A / largest[0], B / largest[1]  # so that no square overflows
    rounding = max(len(B), A.shape[1]) * np.finfo(float).eps * np.linalg.norm(A) * np.linalg.norm(B)
    return bool(lora_svd(A.astype(float), B.astype(float), 1).sigma[0] <= rounding)


def check_below(
    folder: Path,
    config: dict[str, Any],
    tensors: dict[str, np.ndarray],
    metadata: dict[str, str],
    base: str | Path,
) -> None:
    """check_base() of `base`, with the head that the adapter in `folder` needs, without the tensors that it
    replaces."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a head is missing or unused
        model = base_of_run(base, folder, config, tensors)
    view = view_of(model)
    plan = plan_of(view, config, tensors)
    check_base(model, plan, metadata, folder, replaced_weights(view, plan), str(base))


def trained_whole(config: dict[str, Any], tensors: Mapping[str, np.ndarray]) -> list[str]:
    """The names of an adapter's tensors that are trained whole: modules_to_save, tied weights, biases."""
    biases, tied = config.get("bias") not in (None, "none"), bool(config.get("ensure_weight_tying"))

    def is_whole(name: str) -> bool:
        if slot_of(config, name) or name.endswith(".base_layer.weight"):
            return False
        by_config = (biases and name.endswith(".bias")) or (tied and name.endswith(".weight"))
        return by_config or is_saved(config, name.removeprefix(PREFIX))

    return list(filter(is_whole, tensors))


def checkpoint_changes(base: str | Path, tuned: str | Path) -> Changes:
    """ΔW of every matrix (two dimensions, floating point) of the same name and shape in both, and what else differs.

    Raises FileNotFoundError for a missing file; ValueError for numbers that are not finite, for checkpoints without
    such a matrix, and for those whose matrices are all equal.
    """
    old, new = read_weights(base)[1], read_weights(tuned)[1]
    layers, unchanged, others = {}, [], {}
    for name in sorted(old.keys() | new.keys(), key=natural_order):
        before, after = old.get(name), new.get(name)
        if before is None or after is None:
            others[name] = f"only in {tuned if before is None else base}"
        elif before.shape != after.shape:
            others[name] = f"{before.shape} became {after.shape}"
        elif before.ndim != 2 or before.dtype.kind != "f":
            if not np.array_equal(before, after):
                others[name] = "changed"
        elif np.array_equal(before, after):
            unchanged.append(name.removesuffix(".weight"))
        else:
            layers[name.removesuffix(".weight")] = Change(before, after)
    if not layers and not unchanged:
        raise ValueError(f"{base} and {tuned} have no weight matrix of the same name and shape in common")
    if not layers:
        also = f"; what differs is not a matrix: {', '.join(others)}" if others else ""
        raise ValueError(f"ΔW = 0: the {len(unchanged)} matrices of {base} and {tuned} are equal{also}")
    return Changes(layers, unchanged, others)


def natural_order(name: str) -> list[tuple[int, str]]:
    """A key that sorts block 10 after block 9."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in name.split(".")]
