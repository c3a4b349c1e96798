"""An adapter of a chosen rank, from two checkpoints, or from an adapter of higher rank."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..adapters import DEFAULT
from ..adapters.attach import low_rank_adapter
from ..adapters.peft import CONFIG, PREFIX, WEIGHTS, adapter_files, read_adapter, slot_of
from ..adapters.peft.config import classes_of, nested, options_of
from ..adapters.peft.format import is_whole_in_file
from ..adapters.spectrum import SVD, rank_for, truncate, truncation_error
from ..files import tensors_to_bytes, to_json
from ..models.names import hub_name
from ..models.transformer import Transformer
from ..nn import Embedding, Linear
from .changes import Change


class LowRank(NamedTuple):
    """B A ≈ ΔW of one layer; s = 1."""

    A: np.ndarray  # (r, in)
    B: np.ndarray  # (out, r)
    error: float  # ‖ΔW - B A‖, measured on A and B as they are stored
    bound: float  # the least error that its rank allows, by the theorem of Eckart and Young (1936)


def approximate(name: str, change: Change, update: SVD, rank: int | None, share: float | None) -> LowRank:
    """The best approximation of ΔW of rank `rank`, or else of the least rank that keeps `share` of the energy.

    An adapter of a lower rank than `rank` keeps its own. Raises ValueError for numbers that the dtype cannot hold, and
    ArithmeticError if the measured error is above its bound.
    """
    if rank is None:
        assert share is not None
        rank = rank_for(update.sigma, share)
    r = min(rank, len(update.sigma))
    dtype = change.lora[0].dtype if change.lora else np.dtype(np.float32)
    with np.errstate(over="ignore"):
        B, A = (factor.astype(dtype) for factor in truncate(update, r))
    if not np.isfinite(A).all() or not np.isfinite(B).all():
        raise ValueError(f"{name}: ΔW is too large for an adapter in {dtype}")
    error, bound = change.error(A, B), truncation_error(update.sigma, r)[0]
    rounding = 8 * float(np.finfo(dtype).eps) * math.sqrt(np.sum(update.sigma**2))
    if not error <= bound + rounding:
        raise ArithmeticError(f"{name}: the adapter is {error:.3g} from ΔW, and rank {r} allows {bound:.3g}")
    return LowRank(A, B, error, bound)


def check_rank(rank: int, layers: dict[str, Change]) -> None:
    """Raise ValueError if `rank` is above that of the adapter, or above what one of the matrices can have."""
    most = {name: change.full_rank() for name, change in layers.items()}
    name = min(most, key=lambda name: most[name])
    if layers[name].lora and rank > max(most.values()):
        raise ValueError(f"rank {rank} is above {max(most.values())}, which the adapter has already")
    if not layers[name].lora and rank > most[name]:
        n_out, n_in = layers[name].shape
        raise ValueError(f"{name}: rank {rank} is above {most[name]}, the most a {n_out} x {n_in} weight can have")


def linear_layers(model: Transformer, layers: dict[str, Change]) -> dict[str, str]:
    """{Hugging Face's name: our path} of the `layers` that are linear layers of `model`. Raises ValueError for none."""
    linear = (path for path, module in model.named_modules() if isinstance(module, Linear))
    found = {
        name: path
        for path in linear
        if (name := hub_name(model.family, path, model.config.head, model.config.gated)) in layers
    }
    if not found:
        raise ValueError(f"no linear layer has changed to put an adapter on, only {', '.join(layers)}")
    return found


def extracted_files(model: Transformer, paths: dict[str, str], low_rank: dict[str, LowRank]) -> dict[str, bytes]:
    """{file name: content} of an adapter in PEFT's format, after attaching it to `model` at `paths`."""
    model.freeze()
    for name, path in paths.items():
        model[path] = low_rank_adapter(model[path], low_rank[name].A, low_rank[name].B)
    return adapter_files(model)


def is_plain(folder: Path) -> bool:
    """Whether it holds an adapter of the default variant, which shrunk_files() can write."""
    cls = classes_of(read_adapter(folder)[0])[0]
    return cls.variant == DEFAULT and is_whole_in_file(cls)


def shrunk_files(folder: str | Path, low_rank: dict[str, LowRank]) -> dict[str, bytes]:
    """{file name: content} of the adapter in `folder` with other A and B; its base is not needed.

    Tensors that are trained whole stay, and layers whose ΔW is 0 are left out. Raises ValueError for an adapter of a
    tied embedding, for a trained bias of a layer that is left out, and for LoftQ's with more than one round.
    """
    config, before, metadata = read_adapter(Path(folder))
    if options_of(classes_of(config)[0], config, "").get("rounds", 1) > 1:
        raise ValueError(f"{folder} is a LoftQ of several rounds, whose base depends on the rank: merge it instead")
    slots = {tensor: slot_of(config, tensor) for tensor in before}
    tensors = {tensor: x for tensor, x in before.items() if not slots[tensor]}
    adapted = {found[0]: found[1].base_type is Embedding for found in slots.values() if found}
    if config.get("ensure_weight_tying") and any(adapted.values()):
        raise ValueError(
            f"{folder} adapts an embedding and the head that is tied to it: no smaller adapter is written of it"
        )
    for name in adapted.keys() - low_rank.keys():
        tensors.pop(f"{PREFIX}{name}.base_layer.weight", None)
        if f"{PREFIX}{name}.base_layer.bias" in tensors:
            raise ValueError(f"{folder} trains the bias of {name}, whose ΔW is 0: no smaller adapter is written of it")
    ranks = {name: len(layer.A) for name, layer in low_rank.items()}
    most = max(ranks.values())
    others = {name: r for name, r in ranks.items() if r != most}
    config |= {"r": most, "lora_alpha": most, "rank_pattern": others, "alpha_pattern": others}
    config |= {"use_rslora": False, "target_modules": sorted(low_rank)}
    for name, (A, B, *_) in low_rank.items():
        if adapted[name]:
            tensors |= {f"{PREFIX}{name}.lora_embedding_A": B.T, f"{PREFIX}{name}.lora_embedding_B": A.T}
        else:
            tensors |= {f"{PREFIX}{name}.lora_A.weight": A, f"{PREFIX}{name}.lora_B.weight": B}
    return {WEIGHTS: tensors_to_bytes(tensors, metadata), CONFIG: to_json(nested(config))}
