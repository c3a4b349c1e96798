"""Adapters in the layout of loralib's MergedLinear.

There are lora_A, lora_B in a state dict, and no config: rank, alpha and what is fused are in a person's code. A
MergedLinear over [q | k | v] has an A and a B of rank r for each part that is enabled, stacked:

    lora_A (n r, in)    lora_B (n out/parts, r)         ΔW of the i-th enabled part = s Bᵢ Aᵢ

As one pair, ΔW = s B A, that is of rank n r: A the stack, B (out, n r) block by block,

        B₁ 0                                        A₁
    B =  0 0        (q and v enabled, k not)    A = A₂          alpha' = n alpha, so that s stays
         0 B₂

The other way, a pair whose A serves several parts at once needs a copy of A for each part: the same ΔW with more
parameters. Further training would make the copies differ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ....files import load_tensors, save_tensors
from ...statements import is_number
from ..format import locate_adapter
from .pairs import Pair, alpha_for, last, matrices, misfit, read_pairs, write_peft


def from_loralib(
    source: str | Path,
    folder: str | Path,
    *,
    r: int,
    alpha: float,
    fused: Mapping[str, Sequence[bool]] | None = None,
) -> None:
    """Write the state dict in the file `source` (safetensors), of loralib, to `folder` in PEFT's format.

    r, alpha: as the layers were made with. fused: {last name: enable_lora} of those that are a MergedLinear, such as
    {"c_attn": (True, False, True)}; they become pairs of rank r times the number of parts that are enabled.
    Raises FileNotFoundError for a missing file, ValueError for tensors that do not fit each other, r and fused, and for
    a file with other weights.
    """
    source, fused = Path(source), fused or {}
    tensors, _ = load_tensors(source)
    if not isinstance(r, int) or r < 1 or not is_number(alpha):
        raise ValueError(f"r = {r!r:.80} and alpha = {alpha!r:.80} must be a whole number from 1 up, and a number")
    pairs: dict[str, Pair] = {}
    for path, (A, B) in matrices(source, tensors, "lora_A", "lora_B").items():
        enabled = list(fused.get(last(path), (True,)))
        if not any(enabled) or not all(isinstance(on, bool) for on in enabled):
            raise ValueError(f"{path}: enable_lora = {enabled!r:.80} is one True or False for each part, and one is "
                             "True")  # fmt: skip
        n = sum(enabled)
        if len(A) != n * r or B.shape[1] != r or len(B) % n:
            raise misfit(source, path, f"lora_A ({n * r}, in) and lora_B ({n} parts, {r})", A, B)
        out = len(B) // n
        blocks = np.zeros((len(enabled), out, n, r), B.dtype)
        for k, part in enumerate(np.flatnonzero(enabled)):
            blocks[part, :, k] = B[k * out : (k + 1) * out]
        pairs[path] = A, blocks.reshape(-1, n * r), alpha / r
    write_peft(folder, pairs, 0.0, False)


def to_loralib(
    source: str | Path, file: str | Path, *, fused: Mapping[str, int] | None = None
) -> dict[str, dict[str, Any]]:
    """Write the adapter in `source`, of PEFT, a folder or a name on the Hub, to `file` as a state dict of loralib
    (safetensors).

    fused: {last name: number of parts} of those that are to be a MergedLinear, such as {"c_attn": 3}. Returns what each
    layer is to be made with, which no file of loralib says: {name: {"r", "lora_alpha", and of a MergedLinear
    "enable_lora"}}. Where B is in blocks, as from_loralib makes it, each part gets its own rows of A; otherwise every
    part gets a copy of A.
    Raises FileNotFoundError for a missing file; ValueError for biases and whole modules, for both uses of a tied
    embedding, and for a layer that does not divide into its parts.
    """
    source, fused = locate_adapter(source), fused or {}
    config, pairs, _ = read_pairs(source)
    if config.get("ensure_weight_tying"):
        raise ValueError(f"{source} has one A and B for two layers (ensure_weight_tying), and loralib none such")
    tensors, made = {}, {}
    for name, (A, B, s) in pairs.items():
        parts = fused.get(last(name), 1)
        if type(parts) is not int or parts < 1 or len(B) % parts:
            raise ValueError(f"{name} gives {len(B)} numbers, which do not divide into {parts!r:.80} equal parts")
        blocks = np.split(B, parts)
        uses = [np.flatnonzero(block.any(axis=0)) for block in blocks]  # the rows of A that each part reads
        enabled = [len(rows) > 0 for rows in uses]
        if not any(enabled):
            enabled, uses = [True] * parts, [np.arange(len(A))] * parts
        r = max(len(rows) for rows in uses)
        As, Bs = [], []
        for block, rows, on in zip(blocks, uses, enabled, strict=True):
            if on:  # zeros where a part reads fewer rows than another: loralib has one rank for all
                As.append(np.pad(A[rows], ((0, r - len(rows)), (0, 0))))
                Bs.append(np.pad(block[:, rows], ((0, 0), (0, r - len(rows)))))
        tensors[f"{name}.lora_A"], tensors[f"{name}.lora_B"] = np.concatenate(As), np.concatenate(Bs)
        made[name] = {"r": r, "lora_alpha": alpha_for(s, r)} | ({"enable_lora": enabled} if parts > 1 else {})
    save_tensors(Path(file), tensors, {"format": "pt"})
    return made
