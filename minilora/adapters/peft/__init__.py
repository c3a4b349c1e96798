"""Adapters in Hugging Face PEFT's format: adapter_config.json and adapter_model.safetensors.

A tensor is called base_model.model.<path in the Hugging Face model>.<the file name of a slot>: what its adapter says
(Slot.file). One that all layers share has no path. What is trained whole has its own name. The names are those of PEFT
0.21.2 (utils/save_and_load.py).
"""

from __future__ import annotations

from pathlib import Path

from ...models.labels import list_labels
from . import layouts
from .bases import classifier_weight, load_base
from .config import classes_of, companions_in, options_of
from .format import BASE_FORMAT, CONFIG, WEIGHTS, layers_in, locate_adapter, read_adapter, slot_of
from .reading import label_names, load_adapter
from .switching import Adapters, load_adapters
from .view import PREFIX
from .writing import adapter_files, adapters_of, save_adapter

__all__ = [
    "CONFIG",
    "PREFIX",
    "WEIGHTS",
    "Adapters",
    "adapter_files",
    "adapters_of",
    "classes_of",
    "classifier_weight",
    "describe_adapter",
    "layers_in",
    "layouts",
    "load_adapter",
    "load_adapters",
    "load_base",
    "locate_adapter",
    "options_of",
    "read_adapter",
    "save_adapter",
    "slot_of",
]


def describe_adapter(folder: Path) -> dict[str, str]:
    """What `minilora info` says of an adapter folder."""
    config, tensors, metadata = read_adapter(folder)
    cls = classes_of(config)[0]
    options = [f"{option.key} = {config.get(option.key, option.default)}" for option in cls.options if option.key]
    options += [f"{key} = {config[key]}" for key in companions_in(config)]
    slots = {name: slot_of(config, name) for name in tensors}
    layers = dict.fromkeys(found[0] for found in slots.values() if found)
    usual, *those = (cls.rank(options_of(cls, config, name)) for name in ("", *layers))
    ranks = dict(zip(layers, those, strict=True))
    added = sum(tensors[name].size for name, found in slots.items() if found)
    rest = [name for name, found in slots.items() if not found and name.startswith(PREFIX)]
    whole = sum(tensors[name].size for name in rest if ".base_layer.weight" not in name)
    head = classifier_weight(tensors)
    names = list_labels(label_names(metadata, len(head))) if head is not None else ""
    held = f", in {metadata[BASE_FORMAT]}" if BASE_FORMAT in metadata else ""
    kind = [cls.peft_type, *(f"{key} = {value}" for key, value in cls.keys.fixed.items() if value)]
    return {
        "adapter": ", ".join([*kind, *options]),
        "targets": str(config.get("target_modules")),
        **({"ranks": ", ".join(f"{name} {r}" for name, r in ranks.items())} if {*ranks.values()} - {usual} else {}),
        "layers": f"{len(layers)} adapted, {added:,} parameters",
        **({"labels": f"{len(head)}{names or ', whose names are not known'}"} if head is not None else {}),
        **({"beside them": f"{whole:,} parameters of the base, trained whole"} if whole else {}),
        "for base": metadata.get("base_sha256", "not known") + held,
    }
