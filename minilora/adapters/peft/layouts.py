"""Adapters in the layouts of mlx-lm and of loralib's MergedLinear, from and to PEFT's, wherever that is exact.

mlx-lm      adapters.safetensors with <path>.lora_a (in, r) and .lora_b (r, out), both transposed; adapter_config.json
            (another one than PEFT's) with lora_parameters: rank, scale, dropout, keys. There is one rank and one scale,
            which is the whole multiplier s. An adapted embedding of a tied model is applied by the head too.
loralib     lora_A, lora_B in a state dict, and no config: rank, alpha and what is fused are in a person's code.
            A MergedLinear over [q | k | v] has an A and a B of rank r for each part that is enabled, stacked:

                lora_A (n r, in)    lora_B (n out/parts, r)         ΔW of the i-th enabled part = s Bᵢ Aᵢ

            As one pair, ΔW = s B A, that is of rank n r: A the stack, B (out, n r) block by block,

                    B₁ 0                                        A₁
                B =  0 0        (q and v enabled, k not)    A = A₂          alpha' = n alpha, so that s stays
                     0 B₂

            The other way, a pair whose A serves several parts at once needs a copy of A for each: the same ΔW, of more
            parameters, which part ways when they are trained on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...files import load_tensors, read_json, save_tensors, tensors_to_bytes, to_json, write_folder
from ..base import is_number
from .config import OFF
from .format import CONFIG, PREFIX, WEIGHTS, Pair, locate_adapter, pairs_of, read_adapter

MLX_WEIGHTS = "adapters.safetensors"
TABLES = "embed_tokens", "wte", "word_embeddings"  # last names of token embeddings
CONV1D = "c_attn", "c_proj", "c_fc"


# ---- mlx-lm ----


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
    r, s = words["rank"], float(words["scale"])
    pairs = {}
    for path in sorted({name.rpartition(".")[0] for name in tensors}):
        a, b = tensors.get(f"{path}.lora_a"), tensors.get(f"{path}.lora_b")
        if a is None or b is None or a.ndim != 2 or b.ndim != 2 or not 0 < a.shape[1] == len(b) == r:
            found = ", ".join(
                f"{name} {x.shape}" for name, x in sorted(tensors.items()) if name.rpartition(".")[0] == path
            )
            raise ValueError(
                f"{source / MLX_WEIGHTS}: {path} needs lora_a (in, {r}) and lora_b ({r}, out), not {found}"
            )
        pairs[from_mlx_name(path)] = Pair(a.T, b.T, s)
    extra = set(tensors) - {f"{path.rpartition('.')[0]}.lora_{x}" for path in tensors for x in "ab"}
    if extra:
        raise ValueError(f"{source / MLX_WEIGHTS} holds {min(extra)}, which is no lora_a or lora_b")
    table = next((name for name in pairs if is_table(name)), None)
    if table and tied is None:
        raise ValueError(f"{table} is adapted, which mlx-lm applies to a tied head too: say tied=True or tied=False")
    if table and tied:
        A, B, _ = pairs[table]
        pairs["lm_head"] = Pair(B.T, A.T, s)
    write_peft(folder, pairs, float(words.get("dropout") or 0.0), bool(table and tied))


def to_mlx(source: str | Path, folder: str | Path, *, tied: bool | None = None) -> None:
    """Write the adapter in `source`, of PEFT, a folder or a name on the Hub, to `folder` as mlx-lm reads it. `tied` as
    in from_mlx.

    Layers of a lower rank than the highest get columns of zeros, which add nothing and are never moved.
    Raises FileNotFoundError for a missing file; ValueError for what mlx-lm's layout does not have: layers of another
    scale than others, biases and whole modules, an encoder, and an adapted embedding whose tied head is not adapted.
    """
    source = locate_adapter(source)
    config, pairs = read_pairs(source)
    scales = {pair.s for pair in pairs.values()}
    if len(scales) > 1:
        raise ValueError(f"{source} scales its layers by {sorted(scales)}, and mlx-lm has one scale for all")
    table = next((name for name in pairs if is_table(name)), None)
    both = bool(config.get("ensure_weight_tying")) and "lm_head" in pairs
    if table and tied is None:
        raise ValueError(f"{table} is adapted, which mlx-lm applies to a tied head too: say tied=True or tied=False")
    if table and tied != both:
        raise ValueError(
            f"{source} adapts {'both uses of a tied embedding' if both else 'the embedding alone'}, and mlx-lm adapts "
            f"{'the head too where it is tied' if tied else 'one use where the head has a weight of its own'}"
        )
    r = max(len(pair.A) for pair in pairs.values())
    tensors = {}
    for name, (A, B, _) in pairs.items():
        if both and name == "lm_head":
            continue
        missing = r - len(A)
        path = to_mlx_name(name)
        tensors[f"{path}.lora_a"] = np.pad(A, ((0, missing), (0, 0))).T
        tensors[f"{path}.lora_b"] = np.pad(B, ((0, 0), (0, missing))).T
    paths = sorted({name.rpartition(".")[0] for name in tensors})
    words = {"rank": r, "scale": scales.pop(), "dropout": config.get("lora_dropout") or 0.0, "keys": paths}
    written = {"fine_tune_type": "lora", "num_layers": -1, "lora_parameters": words}
    write_folder(folder, {MLX_WEIGHTS: tensors_to_bytes(tensors, {"format": "mlx"}), CONFIG: to_json(written)})


def from_mlx_name(path: str) -> str:
    """mlx-lm's GPT-2 says model where Hugging Face's says transformer; its llamas say the same."""
    gpt2 = path.startswith(("model.h.", "model.wte", "model.wpe"))
    return path.replace("model.", "transformer.", 1) if gpt2 else path


def to_mlx_name(name: str) -> str:
    """Raises ValueError for a layer of a family that mlx-lm does not have."""
    if not name.startswith(("model.", "transformer.", "lm_head")):
        raise ValueError(f"mlx-lm has language models alone, and {name} is no layer of one")
    return name.replace("transformer.", "model.", 1) if name.startswith("transformer.") else name


# ---- loralib ----


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
    Raises FileNotFoundError for a missing file, ValueError for tensors that do not fit each other and what is said of
    them, and for a file with other weights.
    """
    source, fused = Path(source), fused or {}
    tensors, _ = load_tensors(source)
    if not isinstance(r, int) or r < 1 or not is_number(alpha):
        raise ValueError(f"r = {r!r:.80} and alpha = {alpha!r:.80} must be a whole number from 1 up, and a number")
    extra = sorted(name for name in tensors if not name.endswith((".lora_A", ".lora_B")))
    if extra:
        raise ValueError(f"{source} holds {extra[0]}, which is no lora_A or lora_B: only those are converted")
    pairs = {}
    for path in sorted({name.rpartition(".")[0] for name in tensors}):
        A, B = tensors.get(f"{path}.lora_A"), tensors.get(f"{path}.lora_B")
        enabled = check_enabled(fused.get(last(path), (True,)), path)
        n = sum(enabled)
        if A is None or B is None or A.ndim != 2 or B.ndim != 2 or len(A) != n * r or B.shape[1] != r or len(B) % n:
            found = " and ".join(str(x.shape) for x in (A, B) if x is not None)
            raise ValueError(f"{source}: {path} needs lora_A ({n * r}, in) and lora_B ({n} parts, {r}), not {found}")
        part = len(B) // n
        whole = np.zeros((len(enabled) * part, n * r), B.dtype)
        for i, p in enumerate(np.flatnonzero(enabled)):
            whole[p * part : (p + 1) * part, i * r : (i + 1) * r] = B[i * part : (i + 1) * part]
        pairs[path] = Pair(A, whole, alpha / r)
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
    config, pairs = read_pairs(source)
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


def check_enabled(enabled: Sequence[bool], path: str) -> list[bool]:
    if not len(enabled) or not all(isinstance(on, bool) for on in enabled) or not any(enabled):
        raise ValueError(f"{path}: enable_lora = {enabled!r:.80} is one True or False for each part, and one is True")
    return list(enabled)


# ---- PEFT's side ----


def read_pairs(folder: Path) -> tuple[dict[str, Any], dict[str, Pair]]:
    """The config and {name: pair}. Raises as read_adapter does, and ValueError where it holds more than pairs."""
    config, tensors, _ = read_adapter(folder)
    if config.get("bias") not in ("none", None) or config.get("modules_to_save"):
        raise ValueError(f"{folder} trains whole modules or biases of the base, which this layout has no place for")
    pairs = pairs_of(folder, config, tensors)
    if not pairs:
        raise ValueError(f"{folder / WEIGHTS} holds no tensor")
    return config, pairs


def write_peft(folder: str | Path, pairs: Mapping[str, Pair], dropout: float, ties: bool) -> None:
    if not pairs:
        raise ValueError("there is no lora_A and lora_B to convert")
    r, s = len(next(iter(pairs.values())).A), next(iter(pairs.values())).s
    ranks = {name: len(pair.A) for name, pair in pairs.items() if len(pair.A) != r}
    config: dict[str, Any] = {
        **OFF,
        "peft_type": "LORA",
        "task_type": None,
        "inference_mode": True,
        "target_modules": sorted(pairs),
        "bias": "none",
        "fan_in_fan_out": any(last(name) in CONV1D for name in pairs),
        "ensure_weight_tying": ties,
        "r": r,
        "lora_alpha": alpha_for(s, r),
        "rank_pattern": ranks,
        "alpha_pattern": {name: alpha_for(s, rank) for name, rank in ranks.items()},
        "lora_dropout": dropout,
        "use_rslora": False,
        "init_lora_weights": True,
    }
    tensors = {}
    for name, (A, B, _) in pairs.items():
        one, two = ("embedding_A", "embedding_B") if is_table(name) else ("A.weight", "B.weight")
        tensors[f"{PREFIX}{name}.lora_{one}"], tensors[f"{PREFIX}{name}.lora_{two}"] = A, B
    write_folder(folder, {WEIGHTS: tensors_to_bytes(tensors, {"format": "pt"}), CONFIG: to_json(config)})


def alpha_for(s: float, r: int) -> float:
    """The α with α / r = s, to the last bit where there is one."""
    near = s * r
    return next((alpha for alpha in (near, *np.nextafter(near, (-np.inf, np.inf)).tolist()) if alpha / r == s), near)


def is_table(name: str) -> bool:
    return last(name) in TABLES


def last(name: str) -> str:
    return name.rpartition(".")[2]
