"""From a model with adapters to the two files that PEFT reads."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ...backend import Array
from ...files import tensors_to_bytes, to_json, write_folder
from ...models.config import LABELLED
from ...models.configs import label_maps
from ...models.pretrained import base_hash, labels_of, their_name
from ...models.transformer import Transformer
from ..base import Adapter
from ..lora import LoRA, LoRALinear, TiedLoRALinear
from ..merge import MergedEmbedding, MergedLinear
from .config import CLASSIFIERS, OFF, TIED_NAMES, ends_with
from .format import (
    CONFIG,
    LABELS,
    PREFIX,
    WEIGHTS,
    adapter_tensors,
    carried,
    every_name,
    layers_of,
    own_tensor,
    tied_head,
)


def save_adapter(model: Transformer, folder: str | Path) -> None:
    """Write the adapters of `model`, and what trains beside them, to `folder`, which is made, or must be empty.

    Layers whose weight trains are written whole (modules_to_save), a classifier always, as PEFT does; biases as bias
    "all" or "lora_only". The metadata holds the hash of the rest, the base, so that load_adapter can tell another, and
    the names of a classifier's labels, where they are known. For a base from the Hub the config holds its name and
    commit.
    Raises ValueError when there is no adapter, when it is merged, and for what PEFT's format cannot say: some of the
    biases, a trained weight below an adapter, adapters of different dropout or scaling, and a tied pair that PEFT does
    not tie.
    """
    write_folder(folder, adapter_files(model))


def adapter_files(model: Transformer) -> dict[str, bytes]:
    """{file name: content} of the adapters of `model`. Raises as save_adapter does."""
    adapters = adapters_of(model)
    tied = [path for path, adapter in adapters.items() if isinstance(adapter, TiedLoRALinear)]
    first = next(iter(adapters.values()))
    linear = next((a for a in adapters.values() if not is_of_embedding(a)), first)
    if any(adapter.rslora != first.rslora for adapter in adapters.values()):
        raise ValueError("some adapters scale by alpha/r and some by alpha/sqrt(r): PEFT's config has one use_rslora")
    if any(adapter.dropout != linear.dropout for adapter in adapters.values() if not is_of_embedding(adapter)):
        raise ValueError("some adapters have another dropout than others: PEFT's config has one lora_dropout")
    saved, biases, bias = trained_beside(model, adapters)
    pair = saved_pair(model, saved)
    names = {path: their_name(model, path) for path in layers_of(model)}
    targets = endings(ends_with_part, [names[path] for path in adapters if path not in tied], every_name(model))
    classifies = saves_classifier(model, adapters)
    named = [names[path] for path in saved if path not in pair[1:] and not (classifies and is_of_classifier(path))]
    whole = [*(CLASSIFIERS if classifies else ()), *endings(str.endswith, named, every_name(model))]
    if tied or pair:
        targets, whole = names_of_a_tie(model, targets, whole, tied, pair)
    config: dict[str, Any] = {
        **OFF,
        "peft_type": "LORA",
        "task_type": task_type(model, classifies),
        "base_model_name_or_path": model.hub and model.hub[0],
        "inference_mode": True,
        "target_modules": targets,
        "modules_to_save": whole or None,
        "bias": bias,
        "fan_in_fan_out": model.family == "gpt2" and any("block_" in path for path in adapters),
        "ensure_weight_tying": bool(tied or pair),
        "r": first.r,
        "lora_alpha": first.alpha,
        "rank_pattern": {names[path]: a.r for path, a in adapters.items() if a.r != first.r},
        "alpha_pattern": {names[path]: a.alpha for path, a in adapters.items() if a.alpha != first.alpha},
        "lora_dropout": linear.dropout,
        "use_rslora": first.rslora,
        "init_lora_weights": True,
    }
    if model.hub:
        config["revision"] = model.hub[1]
    metadata = {"format": "pt", "base_sha256": base_hash(model, carried(saved, biases))}
    labels = labels_of(model)
    if labels:
        metadata[LABELS] = json.dumps(label_maps(labels)["id2label"])
    return {
        WEIGHTS: tensors_to_bytes(tensors_of(model, adapters, saved, biases, config), metadata),
        CONFIG: to_json(config),
    }


def adapters_of(model: Transformer) -> dict[str, LoRA]:
    """{dotted path: adapter}. Raises ValueError when there is none, or when they are merged."""
    if any(isinstance(module, MergedLinear | MergedEmbedding) for _, module in model.named_modules()):
        raise ValueError("the adapters are merged: unmerge(model) first")
    found = {path: module for path, module in model.named_modules() if isinstance(module, LoRA)}
    if not found:
        raise ValueError("the model has no adapter: attach_lora(model, ...) first")
    return found


def is_of_embedding(adapter: LoRA) -> bool:
    return not isinstance(adapter, LoRALinear | TiedLoRALinear)


def task_type(model: Transformer, classifies: bool) -> str | None:
    """What PEFT calls it; it has no name for guessing masked words."""
    if model.config.head in LABELLED:
        return {"classify": "SEQ_CLS", "tokens": "TOKEN_CLS"}[model.config.head] if classifies else None
    if model.config.head == "none":
        return "FEATURE_EXTRACTION"
    return "CAUSAL_LM" if model.family in ("gpt2", "llama") else None


def trained_beside(model: Transformer, adapters: dict[str, LoRA]) -> tuple[list[str], list[str], str]:
    """(layers to save whole, layers whose bias alone trains, PEFT's word for those). Raises as save_adapter does."""
    layers, trains = layers_of(model), model.trainable_parameters()
    weight = next((path for path in adapters if f"{path}.weight" in trains), None)
    if weight:
        raise ValueError(
            f"{weight}.weight trains beside its own adapter, and PEFT's format has only the one or the other"
        )
    parameters = set(trains.values())
    saved = [path for path, x in layers.items() if path not in adapters and x.weight in parameters]
    if saves_classifier(model, adapters):
        saved += [path for path in layers if is_of_classifier(path) and path not in saved]
    have = [path for path, x in layers.items() if path not in saved and bias_of(x) is not None]
    biases = [path for path in have if bias_of(layers[path]) in parameters]
    if not biases:
        return saved, [], "none"
    if biases == have:
        return saved, biases, "all"
    if biases == [path for path in have if path in adapters]:
        return saved, biases, "lora_only"
    raise ValueError(
        f"{len(biases)} of {len(have)} biases train ({biases[0]}, ...), and PEFT's format has bias 'none', 'all', or "
        "'lora_only', those of the adapted layers"
    )


def saves_classifier(model: Transformer, adapters: dict[str, LoRA]) -> bool:
    """PEFT saves a classifier whole, whatever trains, where the task says SEQ_CLS or TOKEN_CLS: unless an adapter is on
    it."""
    return model.config.head in LABELLED and not any(map(is_of_classifier, adapters))


def is_of_classifier(path: str) -> bool:
    return path.startswith("classifier")


def bias_of(layer: Any) -> Any:
    return getattr(layer.base if isinstance(layer, Adapter) else layer, "bias", None)


def saved_pair(model: Transformer, saved: list[str]) -> list[str]:
    """The token embedding and the head, if they share one weight and are saved: PEFT must not make two of it."""
    head = tied_head(model)
    return ["embed.token", head] if head and head in saved and "embed.token" in saved else []


def names_of_a_tie(
    model: Transformer, targets: list[str], whole: list[str], tied: list[str], pair: list[str]
) -> tuple[list[str], list[str]]:
    """target_modules and modules_to_save, with one of the two names by which PEFT sees that a tie is meant: it knows
    GPT-2's by its head alone. Raises ValueError for a family that it has no name for."""
    names = [their_name(model, path).rpartition(".")[2] for path in ("embed.token", "lm_head")]
    known = next((name for name in names if name in TIED_NAMES), None)
    if known is None:
        raise ValueError(
            f"PEFT ties only what is called {' or '.join(TIED_NAMES)}, and of {model.family} it is {names}"
        )
    if tied:
        return sorted({known if name == names[0] else name for name in targets}), whole
    return targets, sorted({known if name == names[0] else name for name in whole})


def tensors_of(
    model: Transformer, adapters: dict[str, LoRA], saved: list[str], biases: list[str], config: dict[str, Any]
) -> dict[str, Array]:
    layers, tensors = layers_of(model), {}
    for path, adapter in adapters.items():
        names = adapter_tensors(model, path, adapter.base)
        A, B = adapter.lora_A.data, adapter.lora_B.data
        tensors[names["lora_A"]], tensors[names["lora_B"]] = (
            (B.T, A.T) if isinstance(adapter, TiedLoRALinear) else (A, B)
        )
    for path in saved:
        for what in ("weight", "bias"):
            parameter = getattr(layers[path], what, None)
            if parameter is not None:
                tensors[own_tensor(model, path, what)] = parameter.data
    for path in biases:
        tensors[own_tensor(model, path, "bias")] = bias_of(layers[path]).data
    if config["bias"] == "all" and bias_of(layers.get("lm_head")) is not None and "lm_head" in biases:
        tensors[PREFIX + their_name(model, "lm_head.bias")] = bias_of(
            layers["lm_head"]
        ).data  # PEFT's other name for it
    if set(config["target_modules"]) & set(TIED_NAMES):
        for path in ("embed.token", "lm_head"):
            if path in adapters:
                tensors[f"{PREFIX}{their_name(model, path)}.base_layer.weight"] = adapters[path].weight.data
    return tensors


# ---- names as short as they can be ----


def ends_with_part(name: str, ending: str) -> bool:
    return ends_with(name, [ending])


def endings(matches: Callable[[str, str], bool], chosen: Iterable[str], every: Iterable[str]) -> list[str]:
    """For each chosen name its shortest ending, part by part, that matches no other; "q_proj" for all that are so
    called, "1.mlp.up_proj" for one of them."""
    chosen = set(chosen)
    others = [name for name in every if name not in chosen]
    found = set()
    for name in chosen:
        parts = name.split(".")
        ends = (".".join(parts[i:]) for i in range(len(parts) - 1, -1, -1))
        found.add(next(end for end in ends if end == name or not any(matches(other, end) for other in others)))
    return sorted(found)
