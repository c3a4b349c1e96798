"""Adapters in Hugging Face PEFT's format: adapter_config.json and adapter_model.safetensors.

A tensor is called base_model.model.<path in the Hugging Face model>.lora_A.weight (r, in), or .lora_B.weight (out, r);
of an embedding .lora_embedding_A (r, V) and .lora_embedding_B (C, r). What is trained whole has its own name. The
scaling is in no tensor: it follows from lora_alpha, r and use_rslora in the config.
"""

from __future__ import annotations

from pathlib import Path

from ...models.pretrained import listed
from . import layouts
from .format import CONFIG, PREFIX, WEIGHTS, locate_adapter, pairs_of, read_adapter
from .reading import Adapters, classifier_weight, label_names, load_adapter, load_base
from .writing import adapter_files, adapters_of, save_adapter

__all__ = [
    "CONFIG",
    "PREFIX",
    "WEIGHTS",
    "Adapters",
    "adapter_files",
    "adapters_of",
    "classifier_weight",
    "describe_adapter",
    "layouts",
    "load_adapter",
    "load_base",
    "locate_adapter",
    "pairs_of",
    "read_adapter",
    "save_adapter",
]


def describe_adapter(folder: Path) -> dict[str, str]:
    """What `minilora info` says of an adapter folder."""
    config, tensors, metadata = read_adapter(folder)
    scaling = "alpha/sqrt(r)" if config.get("use_rslora") else "alpha/r"
    lora = {name: array for name, array in tensors.items() if ".lora_" in name}
    beside = sum(x.size for name, x in tensors.items() if name not in lora and ".base_layer.weight" not in name)
    head = classifier_weight(tensors)
    names = listed(label_names(metadata, len(head))) if head is not None else ""
    return {
        "adapter": f"LoRA, r = {config['r']}, alpha = {config['lora_alpha']}, scaled by {scaling}",
        "targets": str(config.get("target_modules")),
        "layers": f"{len(lora) // 2} adapted, {sum(array.size for array in lora.values()):,} parameters",
        **({"labels": f"{len(head)}{names or ', whose names are not said'}"} if head is not None else {}),
        **({"beside them": f"{beside:,} parameters of the base, trained whole"} if beside else {}),
        "for base": metadata.get("base_sha256", "not said"),
    }
