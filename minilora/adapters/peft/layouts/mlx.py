"""Adapters in mlx-lm's layout.

adapters.safetensors has <path>.lora_a (in, r) and .lora_b (r, out), both transposed; adapter_config.json (another one
than PEFT's) has lora_parameters: rank, scale, dropout, keys. There is one rank and one scale, which is the whole
multiplier s. An adapted embedding of a tied model is applied by the head too.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ....files import load_tensors, read_json, tensors_to_bytes, to_json, write_folder
from ...statements import is_number
from ..format import CONFIG, locate_adapter
from .pairs import TABLES, Pair, last, matrices, misfit, read_pairs, write_peft

MLX_WEIGHTS = "adapters.safetensors"


def from_mlx(source: str | Path, folder: str | Path, *, tied: bool | None = None) -> None:
    """Write the adapter in `source`, of mlx-lm, to `folder` in PEFT's format.

    `tied`: whether the base's head is tied to its embedding; needed where the embedding is adapted, since mlx-lm then
    adapts both uses (PEFT's ensure_weight_tying).
    Raises FileNotFoundError for a missing file, ValueError for what is not LoRA of plain layers (DoRA, experts, full
    fine-tuning), for tensors that do not fit each other, and for an embedding without `tied`.
    """
    source = Path(source)
    config, (tensors, _) = read_json(source / CONFIG), load_tensors(source / MLX_WEIGHTS)
    kind, words = config.get("fine_tune_type", "lora"), config.get("lora_parameters")
    if kind != "lora":
        raise ValueError(f"{source / CONFIG}: fine_tune_type = {kind!r:.80} has no exact conversion, only 'lora'")
    if not isinstance(words, dict) or type(words.get("rank")) is not int or not is_number(words.get("scale")):
        raise ValueError(f"{source / CONFIG} lacks lora_parameters with a rank and a scale: it is not mlx-lm's")
    r, s, dropout = words["rank"], float(words["scale"]), float(words.get("dropout") or 0.0)
    pairs: dict[str, Pair] = {}
    for path, (a, b) in matrices(source / MLX_WEIGHTS, tensors, "lora_a", "lora_b").items():
        if not 0 < a.shape[1] == len(b) == r:
            raise misfit(source / MLX_WEIGHTS, path, f"lora_a (in, {r}) and lora_b ({r}, out)", a, b)
        pairs[from_mlx_name(path)] = a.T, b.T, s
    table = table_of(pairs, tied)
    if table and tied:
        A, B, _ = pairs[table]
        pairs["lm_head"] = B.T, A.T, s
    write_peft(folder, pairs, dropout, bool(table and tied))


def to_mlx(source: str | Path, folder: str | Path, *, tied: bool | None = None) -> None:
    """Write the adapter in `source`, of PEFT, a folder or a name on the Hub, to `folder` as mlx-lm reads it. `tied` as
    in from_mlx.

    Layers of a lower rank than the highest get columns of zeros, which add nothing and are never moved.
    Raises FileNotFoundError for a missing file; ValueError for what mlx-lm's layout does not have: layers of another
    scale than others, biases and whole modules, an encoder, and an adapted embedding whose tied head is not adapted.
    """
    source = locate_adapter(source)
    config, pairs, dropout = read_pairs(source)
    scales = {s for _, _, s in pairs.values()}
    if len(scales) > 1:
        raise ValueError(f"{source} scales its layers by {sorted(scales)}, and mlx-lm has one scale for all")
    table = table_of(pairs, tied)
    both = bool(config.get("ensure_weight_tying")) and "lm_head" in pairs
    if table and tied != both:
        raise ValueError(
            f"{source} adapts {'both uses of a tied embedding' if both else 'the embedding alone'}, and mlx-lm adapts "
            f"{'the head too where it is tied' if tied else 'one use where the head has a weight of its own'}"
        )
    if both:
        del pairs["lm_head"]
    r = max(len(A) for A, _, _ in pairs.values())
    tensors = {}
    for name, (A, B, _) in pairs.items():
        path, missing = to_mlx_name(name), r - len(A)
        tensors[f"{path}.lora_a"] = np.pad(A, ((0, missing), (0, 0))).T
        tensors[f"{path}.lora_b"] = np.pad(B, ((0, 0), (0, missing))).T
    words = {"rank": r, "scale": scales.pop(), "dropout": dropout, "keys": sorted(map(to_mlx_name, pairs))}
    written = {"fine_tune_type": "lora", "num_layers": -1, "lora_parameters": words}
    write_folder(folder, {MLX_WEIGHTS: tensors_to_bytes(tensors, {"format": "mlx"}), CONFIG: to_json(written)})


def table_of(pairs: Mapping[str, Pair], tied: bool | None) -> str | None:
    """The name of an adapted embedding. Raises ValueError if there is one, and `tied` does not say what it means."""
    table = next((name for name in pairs if last(name) in TABLES), None)
    if table and tied is None:
        raise ValueError(f"{table} is adapted, which mlx-lm applies to a tied head too: say tied=True or tied=False")
    return table


def from_mlx_name(path: str) -> str:
    """mlx-lm's GPT-2 says model where Hugging Face's says transformer; its llamas say the same."""
    gpt2 = path.startswith(("model.h.", "model.wte", "model.wpe"))
    return path.replace("model.", "transformer.", 1) if gpt2 else path


def to_mlx_name(name: str) -> str:
    """Raises ValueError for a layer of a family that mlx-lm does not have."""
    if not name.startswith(("model.", "transformer.", "lm_head")):
        raise ValueError(f"mlx-lm has language models alone, and {name} is not a layer of one")
    return name.replace("transformer.", "model.", 1) if name.startswith("transformer.") else name
