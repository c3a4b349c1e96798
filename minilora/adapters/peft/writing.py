"""From a model with adapters to the two files that PEFT reads."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ...files import tensors_to_bytes, to_json, write_folder
from ...models.config import LABELLED
from ...models.labels import label_maps, labels_of
from ...models.quantized import format_of
from ...models.saving import base_hash
from ...models.transformer import Transformer
from ...nn import TABLES, Linear
from ..base import Adapter
from ..registry import variants
from .config import CLASSIFIERS, biases_of, nested
from .format import BASE_FORMAT, CONFIG, LABELS, WEIGHTS
from .matching import ends_with
from .plan import Plan, duplicate_rows, tensors_of
from .view import TIED_NAMES, View, view_of


def save_adapter(model: Transformer, folder: str | Path) -> None:
    """Write the adapters of `model`, and what else is trained, to `folder`, which is made, or must be empty.

    Layers whose weight trains are written whole (modules_to_save), a classifier always, as PEFT does; biases all, or
    those of the adapted layers. Adapters on parts of a fused layer are written as one on the whole. The metadata holds
    the hash of the rest, the base, so that load_adapter refuses another, its format, where it is quantised, and the
    names of a classifier's labels, where they are known. For a base from the Hub the config holds its name and commit.
    Raises ValueError when there is no adapter, when it is merged, and for what PEFT's format cannot express: some of
    the biases, a trained weight below an adapter, adapters of two variants (except token rows in a LoRA's file) or of
    different dropout or scaling, a tied pair that PEFT does not tie, and a variant that PEFT does not have for a
    GPT-2's layers.
    """
    write_folder(folder, adapter_files(model))


def adapter_files(model: Transformer) -> dict[str, bytes]:
    """{file name: content} of the adapters of `model`. Raises as save_adapter does."""
    view, everything = view_of(model), adapters_of(model)
    variant = variant_of(everything)
    adapters = {path: adapter for path, adapter in everything.items() if adapter.variant == variant}
    companions = {path: adapter for path, adapter in everything.items() if path not in adapters}
    saved, biases, bias = trained_beside(view, adapters, companions)
    both = [everything[path] for path in ("embed.token", view.head) if path in everything]
    share = len(both) == 2 and both[0].own_parameters() == both[1].own_parameters()
    implied = bool(view.head) and any(adapter.always_tied for adapter in both)  # without ensure_weight_tying
    if implied and not share:
        raise ValueError(f"PEFT gives {view.names[view.head]} the token rows of the embedding, and here it has others")
    tied = bool(view.head) and not implied and (share or {"embed.token", view.head} <= {*saved})
    of_all = {path: (type(adapter), adapter.settings) for path, adapter in everything.items()}
    plan = Plan(of_all, tied or implied, saved, biases, [*companions])
    config = {
        **variant_keys({view.names[path]: adapter for path, adapter in adapters.items()}, view.transposed),
        **names_in_config(view, adapters, plan, tied),
        **companion_keys(view, companions, next(iter(adapters.values())).keys.companions),
        "task_type": task_type(view, everything),
        "base_model_name_or_path": model.hub and model.hub[0],
        "fan_in_fan_out": view.transposed and any("block_" in path for path in adapters),
        "bias": bias,
        "ensure_weight_tying": tied,
    }
    if model.hub:
        config["revision"] = model.hub[1]
    lacks, kind = next(iter(adapters.values())).keys.lacks, config["peft_type"]
    if tied and "ensure_weight_tying" in lacks:
        raise ValueError(f"PEFT's {kind} ties no head to its embedding (ensure_weight_tying)")
    if "modules_to_save" in lacks and saved:
        raise ValueError(f"PEFT's {kind} saves no whole layer (modules_to_save), and {', '.join(saved)} would be lost: "
                         "attach LoRA beside it, which can")  # fmt: skip
    config = {key: value for key, value in config.items() if key not in lacks}
    metadata = {"format": "pt", "base_sha256": base_hash(model, plan.replaced_paths())}
    held_in, labels = format_of(model), labels_of(model)
    if held_in:
        metadata[BASE_FORMAT] = held_in
    if labels:
        metadata[LABELS] = json.dumps(label_maps(labels)["id2label"])
    return {
        WEIGHTS: tensors_to_bytes(tensors_in_file(view, plan, everything, config), metadata),
        CONFIG: to_json(nested(config)),
    }


def adapters_of(model: Transformer) -> dict[str, Adapter]:
    """{dotted path: adapter}; of parts of a fused layer the one on the whole that computes the same.

    Raises ValueError when there is none, when they are merged, for two variants of which neither can be stored in the
    other's config, and for parts that differ in options.
    """
    view = view_of(model)
    layers = view.layers
    if any(layer.is_merged for layer in layers.values()):
        raise ValueError("the adapters are merged: unmerge(model) first")
    adapted = {path: layer for path, layer in layers.items() if layer.is_adapter}
    check_storage(view)
    found = {path: layer.in_file() for path, layer in adapted.items()}
    if not found:
        raise ValueError("the model has no adapter: attach(model, ...) first")
    variant = variant_of(found)
    keys = next(adapter.keys for adapter in found.values() if adapter.variant == variant)
    kinds = {a.variant for a in found.values() if not (a.companion and a.companion.key in keys.companions)} | {variant}
    if len(kinds) > 1:
        names = ", ".join(sorted(kinds))
        raise ValueError(f"the adapters are of {len(kinds)} variants, {names}, and PEFT's file holds one")
    return found


def check_storage(view: View) -> None:
    """Raise ValueError for layers that Hugging Face's model stores as (in, out), if their variant has no key
    fan_in_fan_out: PEFT cannot adapt such layers with it."""
    modules = view.model.named_modules() if view.transposed else ()
    adapters = {path: m for path, m in modules if isinstance(m, Adapter) and m.slots and "block_" in path}
    for path, adapter in adapters.items():
        if "fan_in_fan_out" in adapter.keys.lacks:
            raise ValueError(
                f"PEFT's {adapter.peft_type} is not for {path}, which a {view.model.family} stores as (in, out), so "
                "there is no file for it: merge(model), and save the model"
            )


def variant_of(adapters: Mapping[str, Adapter]) -> str:
    """The variant whose config holds these adapters: one that is stored in another's only if there is no other."""
    return min(adapters.values(), key=lambda adapter: adapter.companion is not None).variant


def companion_keys(view: View, companions: Mapping[str, Adapter], keys: Iterable[str]) -> dict[str, Any]:
    """The keys that hold adapters of other variants: a value for the token embedding alone, or {layer: value}."""
    config: dict[str, Any] = dict.fromkeys(keys)
    for path, adapter in companions.items():
        assert adapter.companion
        if path != view.head or "embed.token" not in companions:
            value = getattr(adapter, adapter.companion.option)
            config[adapter.companion.key] = (config[adapter.companion.key] or {}) | {view.names[path]: value}
    table = view.names.get("embed.token")  # none of a model that reads images
    return {key: values[table] if values and [*values] == [table] else values for key, values in config.items()}


def variant_keys(adapters: Mapping[str, Adapter], transposed: bool) -> dict[str, Any]:
    """The config's keys for the variant and its options; `adapters` is {Hugging Face's name of a layer: its adapter}.
    For an init that PEFT handles wrongly if layers are `transposed`, values are written as ours ("nf4" instead of 4),
    which PEFT refuses. Raises ValueError where PEFT has one value for all and the adapters do not."""
    first = next(iter(adapters.values()))
    linear = {name: a for name, a in adapters.items() if isinstance(a.base, Linear)} or adapters
    inits = {a.keys.inits[0]: type(a).__name__ for a in adapters.values()}
    if len(inits) > 1:
        kinds = " and ".join(inits.values())
        raise ValueError(f"the adapters are {kinds}, and PEFT's config has one {first.keys.init}")
    started = {first.keys.init: next(iter(inits))}
    config = {**first.keys.fixed, "peft_type": first.peft_type, "inference_mode": True, **started}
    for option in (option for option in first.options if option.mask_of):
        masks = {f"{name}.{option.mask_of}": list(getattr(a, option.name)) for name, a in adapters.items()}
        config[option.pattern] = {name: mask for name, mask in masks.items() if mask} or None
    for option in (option for option in first.options if option.key):
        those = linear if option.name == "dropout" else adapters  # ids have no dropout
        values = {name: getattr(a, option.name) for name, a in those.items()}
        value = next(iter(values.values()))
        ours = transposed and started[first.keys.init] in first.keys.wrong_transposed
        config[option.key] = value if ours else option.to_file(value)
        others = {name: other for name, other in values.items() if other != value}
        if option.pattern:
            config[option.pattern] = others
        elif others:
            raise ValueError(f"the adapters differ in {option.name}, and PEFT's config has one {option.key}")
    return config


def names_in_config(view: View, adapters: dict[str, Adapter], plan: Plan, by_key: bool) -> dict[str, Any]:
    """The keys that name layers. A tied pair gets one name; with ensure_weight_tying (`by_key`) it must be one that
    PEFT knows as tied: TIED_NAMES, for GPT-2 the head's. Raises ValueError for a family without such a name."""
    classes = variants()[next(iter(adapters.values())).variant]
    matches = str.endswith if any(cls.modules_key for cls in classes) else ends_with_part
    names = {path: name for path, name in view.names.items() if not (plan.tied and path == view.head)}
    lists: dict[str, Any] = {}
    for key in {cls.modules_key for cls in classes}:
        chosen = [name for path, name in names.items() if path in adapters and adapters[path].modules_key == key]
        lists[key] = endings(matches, chosen, view.modules)
    targets = sorted({ending for those in lists.values() for ending in those})
    classifies = saves_classifier(view, adapters)
    rest = [path for path in plan.saved if path in names and not (classifies and is_of_classifier(path))]
    whole = endings(str.endswith, [names[path] for path in rest], view.modules)
    if by_key:
        last = [view.names[path].rpartition(".")[2] for path in ("embed.token", view.head)]
        known = next((name for name in last if name in TIED_NAMES), None)
        if known is None:
            family = view.model.family
            raise ValueError(f"PEFT ties only what is called {' or '.join(TIED_NAMES)}, and of {family} it is {last}")
        targets, whole = (sorted({known if x == last[0] else x for x in found}) for found in (targets, whole))
    whole = [*(CLASSIFIERS if classifies else ()), *whole]
    lists |= {"target_modules": targets, "modules_to_save": whole or None}
    return {key: value for key, value in lists.items() if key}


def task_type(view: View, adapters: dict[str, Adapter]) -> str | None:
    """PEFT's task_type; None where it has none: for masked language models, and for images (its classes take ids)."""
    head = view.model.config.head
    if view.model.config.image_size:
        return None
    if head in LABELLED:
        return {"classify": "SEQ_CLS", "tokens": "TOKEN_CLS"}[head] if saves_classifier(view, adapters) else None
    if head == "none":
        return "FEATURE_EXTRACTION"
    if view.model.reads_source:
        return "SEQ_2_SEQ_LM"
    return "CAUSAL_LM" if view.model.causal else None


def trained_beside(
    view: View, adapters: dict[str, Adapter], companions: dict[str, Adapter]
) -> tuple[list[str], list[str], str]:
    """(layers to save whole, other layers whose bias is trained, PEFT's `bias`). Raises as save_adapter does."""
    parameters, everything = {p for p in view.model.parameters() if p.trainable}, adapters | companions
    weight = next((path for path, adapter in everything.items() if adapter.weight in parameters), None)
    if weight:
        raise ValueError(
            f"{weight}.weight trains beside its own adapter, and PEFT's format has only the one or the other"
        )
    saved = [path for path, x in view.layers.items() if path not in everything and x.weight in parameters]
    if saves_classifier(view, everything):
        saved += [path for path in view.layers if is_of_classifier(path) and path not in saved]
    values = biases_of(type(next(iter(adapters.values()))))
    have = [path for path, x in view.bases.items() if path not in saved and getattr(x, "bias", None) is not None]
    biases = [path for path in have if view.bases[path].bias in parameters]
    for value, those in zip(values, ([], have, [path for path in have if path in adapters]), strict=False):
        if biases == those:
            return saved, biases, value
    raise ValueError(f"{len(biases)} of {len(have)} biases train ({biases[0]}, ...), and PEFT's `bias` can only be "
                     f"{', '.join(values)}: the last is those of the adapted layers")  # fmt: skip


def saves_classifier(view: View, adapters: dict[str, Adapter]) -> bool:
    """Whether PEFT saves a classifier whole, trained or not: with the task SEQ_CLS or TOKEN_CLS, unless an adapter is
    on it. For images there is no such task, and a classifier is saved if it is trained."""
    config = view.model.config
    return config.head in LABELLED and not config.image_size and not any(map(is_of_classifier, adapters))


def is_of_classifier(path: str) -> bool:
    return path.startswith("classifier")


def tensors_in_file(view: View, plan: Plan, adapters: dict[str, Adapter], config: dict[str, Any]) -> dict[str, Any]:
    """{name in PEFT's file: array}. Raises ValueError where a tensor that all layers share is not the same in all."""
    tensors: dict[str, Any] = {}
    for name, (path, what, slot, form) in tensors_of(view, plan).items():
        if slot is None:
            tensors[name] = getattr(view.bases[path], what).data
            continue
        held = {getattr(adapters[p], what) for p in ([path] if path else adapters)}
        if len(held) > 1:
            raise ValueError(f"the adapters have {len(held)} different {what}, and PEFT's file has one for all")
        x = slot.to_file(held.pop().data)
        tensors[name] = x if path else x[tuple(map(slice, form))]  # as large as the largest of these layers needs
    if config.get("bias") == "all" and view.head_bias and "lm_head" in plan.biases:
        tensors[view.head_bias] = view.bases["lm_head"].bias.data
    if set(config["target_modules"]) & set(TIED_NAMES) and not any(adapter.companion for adapter in adapters.values()):
        for path in adapters.keys() & {"embed.token", "lm_head"}:
            tensors[view.tensor(path, "base_layer.weight")] = view.bases[path].dense()
    if view.model.added_tokens:  # PEFT saves resized embeddings and heads completely
        tensors |= {name: tensors[original] for name, original in duplicate_rows(view, plan).items()}
        for path in (path for path in TABLES if path in view.layers and path not in plan.saved):
            end = f"{plan.prefixes().get(path, '')}base_layer.weight" if path in adapters else "weight"
            tensors[view.tensor(path, end)] = view.bases[path].dense()
    return tensors


# ---- names as short as they can be ----


def ends_with_part(name: str, ending: str) -> bool:
    return ends_with(name, [ending])


def endings(matches: Callable[[str, str], bool], chosen: Iterable[str], every: Iterable[str]) -> list[str]:
    """For each chosen name its shortest ending, in whole parts, that matches no other: "q_proj" for all of that name,
    "1.mlp.up_proj" for one of them."""
    chosen = set(chosen)
    others = [name for name in every if name not in chosen]
    found = set()
    for name in chosen:
        parts = name.split(".")
        ends = (".".join(parts[i:]) for i in range(len(parts) - 1, -1, -1))
        found.add(next(end for end in ends if end == name or not any(matches(other, end) for other in others)))
    return sorted(found)
