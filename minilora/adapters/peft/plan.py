"""Which modules of a model an adapter's config means."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import numpy as np

from ...models.pretrained import their_name
from ...models.transformer import Transformer
from ...nn import Linear, Module
from ..attach import HEADS, adapter_for
from ..base import Adapter
from ..merge import MergedEmbedding, MergedLinear
from .config import ADDED, REGULAR, TIED_NAMES, WHOLE, entries, first_match, is_saved, is_target, matches, short
from .format import PREFIX, adapter_tensors, every_layer, every_name, layers_of, tied_head


class Plan(NamedTuple):
    """What the files hold for one model, by our paths."""

    adapted: dict[str, tuple[int, float]]  # {path: (r, alpha)}
    head: str | None  # a tied head that has the embedding's adapter, or its saved copy
    saved: list[str]  # layers that are there whole
    biases: list[str]  # other layers whose bias is there


def what_to_adapt(model: Transformer, config: dict[str, Any], tensors: dict[str, np.ndarray]) -> Plan:
    """Raises ValueError as check_names does, and where a layer cannot be adapted so, or has tensors and no name."""
    check_names(model, config)
    if config.get("fan_in_fan_out") and model.family != "gpt2":
        raise ValueError(f"fan_in_fan_out = True is for layers stored as (in, out), and a {model.family} has none")
    layers, ties = layers_of(model), tie_of(model, config, tensors)
    if ties and saves_the_pair(model, config, tensors):
        pair = [their_name(model, path) for path in ("embed.token", ties)]
        config = config | {"modules_to_save": [*(config.get("modules_to_save") or []), *pair]}
    config = config | {"target_modules": targets_of(model, config, tensors, ties)}
    adapted: dict[str, tuple[int, float]] = {}
    for path, layer in layers.items():
        theirs = their_name(model, path)
        if not is_target(config, theirs) or path == ties:
            if path != ties and any(name in tensors for name in adapter_tensors(model, path, layer).values()):
                raise ValueError(
                    f"target_modules = {short(config['target_modules'])} do not name {theirs}, which has tensors"
                )
            continue
        r = first_match(config, "rank_pattern", theirs, config["r"])
        alpha = first_match(config, "alpha_pattern", theirs, config["lora_alpha"])
        try:
            adapter_for(layer).check(layer, alpha=alpha, dropout=config.get("lora_dropout") or 0.0)
        except ValueError as error:
            raise ValueError(f"{theirs}: {error}") from None
        adapted[path] = (r, alpha)
    saved = [path for path in layers if is_saved(config, their_name(model, path))]
    bias = config.get("bias") or "none"
    those = {"none": [], "all": list(layers), "lora_only": list(adapted)}[bias]
    biases = [path for path in those if path not in saved and getattr(base_of(layers[path]), "bias", None) is not None]
    for path in [*saved, *biases]:
        if isinstance(layers[path], Adapter | MergedLinear | MergedEmbedding):
            raise ValueError(
                f"{their_name(model, path)}: this layer is adapted already, and the adapter has a copy of it"
            )
    both = next((path for path in saved if path in adapted), None)
    if both:
        raise ValueError(f"{their_name(model, both)} is among modules_to_save and among target_modules")
    return Plan(adapted, ties, saved, biases)


def check_names(model: Transformer, config: dict[str, Any]) -> None:
    """Raise ValueError for a name, a layer's number or a tie that is not the model's.

    PEFT passes over what matches nothing. But what was made for this base would hardly name what it has not.
    """
    mend = "the adapter is for another base, or this must come out of its config"
    every, layers = every_name(model), every_layer(model)
    added = ADDED.get(str(config.get("task_type")), ())
    for key in (*REGULAR, *WHOLE):
        if key == "target_modules" and isinstance(config.get(key), str):
            continue  # what it does not match has no tensor either
        known = layers if key == "target_modules" else every
        nothing = (
            entry
            for entry in entries(config, key)
            if not (key == "modules_to_save" and entry in added)
            and not any(matches(config, key, entry, name) for name in known)
        )
        first = [short(entry) for entry in itertools.islice(nothing, 4)]
        if first:
            names = f"{', '.join(first[:3])}{', ...' * (len(first) > 3)}"
            raise ValueError(f"{key}: nothing in this {model.family} matches {names}; {mend}")
    wanted = config.get("layers_to_transform")
    beyond = [i for i in ([wanted] if type(wanted) is int else wanted or []) if not 0 <= i < model.config.n_layers]
    if beyond:
        last = model.config.n_layers - 1
        raise ValueError(
            f"layers_to_transform: this {model.family} has layers 0 to {last}, and not {short(beyond[0])}; {mend}"
        )
    if config.get("ensure_weight_tying") and not tied_head(model):
        raise ValueError(f"ensure_weight_tying = True, and this {model.family} ties no head to its embedding; {mend}")


def base_of(layer: Module) -> Any:
    return layer.base if isinstance(layer, Adapter) else layer


def targets_of(model: Transformer, config: dict[str, Any], tensors: dict[str, np.ndarray], ties: str | None) -> Any:
    """target_modules, with what "all-linear" stands for, and a missing one by the tensors that are there."""
    targets, layers = config.get("target_modules"), layers_of(model)
    if targets is None:
        named = {path for path, layer in layers.items() if adapter_tensors(model, path, layer)["lora_A"] in tensors}
        targets = [their_name(model, path) for path in named if path != ties]
    elif isinstance(targets, str) and targets.lower() == "all-linear":
        linears = [path for path, layer in layers.items() if isinstance(base_of(layer), Linear)]
        # PEFT leaves out a head that gives words, and a classifier where the task says that it is one
        heads = ["lm_head"] if model.config.head == "lm" or config.get("task_type") != "SEQ_CLS" else HEADS
        targets = [their_name(model, path) for path in linears if path not in heads]
    elif ties:
        targets = f"(?:{targets})" if isinstance(targets, str) else targets
        embedding = their_name(model, "embed.token")
        targets = rf"{targets}|{embedding}" if isinstance(targets, str) else [*targets, embedding]
    return targets


def tie_of(model: Transformer, config: dict[str, Any], tensors: dict[str, np.ndarray]) -> str | None:
    """The path of the head that ensure_weight_tying gives the embedding's A and B, or its saved copy.

    PEFT ties where the model does and one of the two is named "embed_tokens" or "lm_head"; of GPT-2's it then writes
    the name "wte" alone, so the head's tensors say it too.
    """
    head = tied_head(model)
    if not head or not config.get("ensure_weight_tying"):
        return None
    targets, saved = config.get("target_modules"), config.get("modules_to_save") or []
    named = {name.rpartition(".")[2] for name in [*saved, *(targets if isinstance(targets, list) else [])]}
    there = f"{PREFIX}{their_name(model, head)}"
    if {f"{there}.lora_A.weight", f"{there}.weight"} & tensors.keys():
        return head
    by_regex = isinstance(targets, str) and any(is_target({"target_modules": targets}, name) for name in TIED_NAMES)
    return head if by_regex or named & set(TIED_NAMES) else None


def saves_the_pair(model: Transformer, config: dict[str, Any], tensors: dict[str, np.ndarray]) -> bool:
    """Does a tie mean the copies of modules_to_save, rather than A and B?"""
    saved = {name.rpartition(".")[2] for name in config.get("modules_to_save") or []}
    return bool(saved & set(TIED_NAMES)) or f"{PREFIX}{their_name(model, 'lm_head')}.weight" in tensors
