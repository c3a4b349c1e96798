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

            The other way, a pair whose A serves several parts at once needs a copy of A for each part: the same ΔW with
            more parameters. Further training would make the copies differ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from ...files import load_tensors, read_json, save_tensors, tensors_to_bytes, to_json, write_folder
from ...nn import Convolution, Embedding, Linear
from .. import DEFAULT
from ..base import Adapter
from ..registry import variants
from ..statements import is_number
from .config import classes_of
from .format import CONFIG, WEIGHTS, base_without_weights, layers_in, locate_adapter, read_adapter
from .view import PREFIX
from .writing import variant_keys

MLX_WEIGHTS = "adapters.safetensors"
TABLES = "embed_tokens", "wte", "word_embeddings"  # last names of token embeddings
CONV1D = "c_attn", "c_proj", "c_fc"


Pair: TypeAlias = tuple[np.ndarray, np.ndarray, float]
"""A (r, in), B (out, r) and s of one layer: ΔW = s B A, of an embedding its transpose."""


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


def matrices(
    file: Path, tensors: Mapping[str, np.ndarray], one: str, two: str
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{path: its two matrices, so called}. Raises ValueError for anything else in the file."""
    extra = sorted(name for name in tensors if last(name) not in (one, two))
    if extra:
        raise ValueError(f"{file} holds {extra[0]}, which is no {one} or {two}: only those are converted")
    found = {}
    for path in sorted({name.rpartition(".")[0] for name in tensors}):
        pair = [tensors[name] for name in (f"{path}.{one}", f"{path}.{two}") if name in tensors]
        if [x.ndim for x in pair] != [2, 2]:
            raise misfit(file, path, f"{one} and {two}, two matrices", *pair)
        found[path] = pair[0], pair[1]
    return found


def misfit(file: Path, path: str, needed: str, *found: np.ndarray) -> ValueError:
    return ValueError(f"{file}: {path} needs {needed}, not {' and '.join(str(x.shape) for x in found)}")


# ---- PEFT's side ----


def read_pairs(folder: Path) -> tuple[dict[str, Any], dict[str, Pair], float]:
    """The config, {name: pair} and dropout. Raises as read_adapter does, and ValueError where it holds more than
    pairs."""
    config, tensors, _ = read_adapter(folder)
    if config.get("bias") not in ("none", None) or config.get("modules_to_save"):
        raise ValueError(f"{folder} trains whole modules or biases of the base, which this layout has no place for")
    if classes_of(config)[0].makes_weight:
        raise ValueError(f"{folder} has a base in fewer bits, which this layout cannot say: merge it (minilora merge)")
    layers = layers_in(folder, config, tensors)
    if not layers:
        raise ValueError(f"{folder / WEIGHTS} holds no tensor")
    pairs: dict[str, Pair] = {}
    for name, layer in layers.items():
        if isinstance(layer.base, Convolution):
            raise ValueError(f"{folder}: {name} is a convolution, which has no place here: see adapters/lora_conv.py")
        factors = layer.factors()
        if factors is None:
            raise ValueError(f"{folder}: ΔW of {layer.variant} is no product of two matrices, which this layout needs")
        A, B, s = factors
        pairs[name] = (B.T, A.T, s) if isinstance(layer.base, Embedding) else (A, B, s)
    return config, pairs, float(layer.settings.get("dropout") or 0.0)


def write_peft(folder: str | Path, pairs: Mapping[str, Pair], dropout: float, ties: bool) -> None:
    if not pairs:
        raise ValueError("there is no lora_A and lora_B to convert")
    layers = {name: lora(name, *pair, dropout) for name, pair in pairs.items()}
    config = variant_keys(layers, transposed=False) | {
        "task_type": None,
        "target_modules": sorted(layers),
        "bias": "none",
        "fan_in_fan_out": any(last(name) in CONV1D for name in layers),
        "ensure_weight_tying": ties,
    }
    tensors = {
        f"{PREFIX}{name}.{slot.file}": getattr(layer, slot.name).data
        for name, layer in layers.items()
        for slot in layer.slots
    }
    write_folder(folder, {WEIGHTS: tensors_to_bytes(tensors, {"format": "pt"}), CONFIG: to_json(config)})


def lora(name: str, A: np.ndarray, B: np.ndarray, s: float, dropout: float) -> Adapter:
    """The adapter of the layer of that name; its base has no weights."""
    kind = Embedding if last(name) in TABLES else Linear
    cls = next(cls for cls in variants()[DEFAULT] if cls.base_type is kind)
    base = base_without_weights(cls, {"n_in": A.shape[1], "n_out": len(B)}, np.result_type(A, B))
    tensors = dict(zip((slot.name for slot in cls.slots), (A, B), strict=True))
    return cls.of(base, tensors, r=len(A), alpha=alpha_for(s, len(A)), dropout=dropout)


def alpha_for(s: float, r: int) -> float:
    """The α with α / r = s, to the last bit where there is one."""
    near = s * r
    return next((alpha for alpha in (near, *np.nextafter(near, (-np.inf, np.inf)).tolist()) if alpha / r == s), near)


def last(name: str) -> str:
    return name.rpartition(".")[2]
