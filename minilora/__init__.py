"""LoRA from first principles: NumPy, every gradient by hand, derived on the page and proven right."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .families import bert as bert
    from .families import gpt2 as gpt2
    from .families import llama as llama
    from .families import roberta as roberta
    from .generation import generate as generate
    from .generation import stream as stream
    from .lora import LoRAEmbedding as LoRAEmbedding
    from .lora import LoRALinear as LoRALinear
    from .lora import attach_lora as attach_lora
    from .lora import merge as merge
    from .lora import unmerge as unmerge
    from .modules import Context as Context
    from .modules import Gradients as Gradients
    from .modules import Linear as Linear
    from .modules import Parameter as Parameter
    from .optim import SGD as SGD
    from .optim import AdamW as AdamW
    from .pretrained import load_pretrained as load_pretrained
    from .pretrained import load_tokenizer as load_tokenizer
    from .pretrained import save_pretrained as save_pretrained
    from .training import evaluate as evaluate
    from .training import fit as fit
    from .transformer import Config as Config

# Names are loaded when first used: importing takes a hundredth of a second, and `minilora --help` needs no NumPy.
HOMES = {
    "families": ["bert", "gpt2", "llama", "roberta"],
    "generation": ["generate", "stream"],
    "lora": ["LoRAEmbedding", "LoRALinear", "attach_lora", "merge", "unmerge"],
    "modules": ["Context", "Gradients", "Linear", "Parameter"],
    "optim": ["SGD", "AdamW"],
    "pretrained": ["load_pretrained", "load_tokenizer", "save_pretrained"],
    "training": ["evaluate", "fit"],
    "transformer": ["Config"],
}
NAMES = {name: home for home, names in HOMES.items() for name in names}
MODULES = ["accounting", "backend", "ops", "peft", "plots", "process", "spectrum", "text", "verify", *HOMES]
__all__ = ["__version__", *NAMES]


def __getattr__(name: str) -> Any:
    if name in NAMES:
        return getattr(importlib.import_module(f"{__name__}.{NAMES[name]}"), name)
    if name in MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, *MODULES]
