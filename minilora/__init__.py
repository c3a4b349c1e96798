"""LoRA from first principles: NumPy, every gradient by hand, derived on the page and proven right."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .accounting import count_parameters as count_parameters
    from .adapters.attach import attach as attach
    from .adapters.attach import attach_lora as attach_lora
    from .adapters.base import Adapter as Adapter
    from .adapters.combine import combine as combine
    from .adapters.combine import cosines as cosines
    from .adapters.kept import kept_by_merge as kept_by_merge
    from .adapters.kept import share_kept as share_kept
    from .adapters.lora import LoRAEmbedding as LoRAEmbedding
    from .adapters.lora import LoRALinear as LoRALinear
    from .adapters.merge import merge as merge
    from .adapters.merge import unmerge as unmerge
    from .adapters.peft import load_adapter as load_adapter
    from .adapters.peft import load_adapters as load_adapters
    from .adapters.peft import save_adapter as save_adapter
    from .models.config import Config as Config
    from .models.families.bert import bert as bert
    from .models.families.gpt2 import gpt2 as gpt2
    from .models.families.llama import llama as llama
    from .models.families.roberta import roberta as roberta
    from .models.generation import generate as generate
    from .models.generation import stream as stream
    from .models.pretrained import load_pretrained as load_pretrained
    from .models.pretrained import load_tokenizer as load_tokenizer
    from .models.quantized import quantize as quantize
    from .models.saving import save_pretrained as save_pretrained
    from .models.transformer import Transformer as Transformer
    from .nn import Gradients as Gradients
    from .nn import Inputs as Inputs
    from .nn import Linear as Linear
    from .nn import Parameter as Parameter
    from .nn import Pass as Pass
    from .nn.optim import SGD as SGD
    from .nn.optim import AdamW as AdamW
    from .nn.optim import cosine_schedule as cosine_schedule
    from .nn.optim import linear_schedule as linear_schedule
    from .training import evaluate as evaluate
    from .training import fit as fit
    from .verify import check_gradient as check_gradient
    from .verify.diagnose import diagnose as diagnose

# Names are loaded when first used: importing takes a hundredth of a second, and `minilora --help` needs no NumPy.
HOMES = {
    "accounting": ["count_parameters"],
    "adapters.attach": ["attach", "attach_lora"],
    "adapters.base": ["Adapter"],
    "adapters.combine": ["combine", "cosines"],
    "adapters.kept": ["kept_by_merge", "share_kept"],
    "adapters.lora": ["LoRAEmbedding", "LoRALinear"],
    "adapters.merge": ["merge", "unmerge"],
    "adapters.peft": ["load_adapter", "load_adapters", "save_adapter"],
    "models.config": ["Config"],
    "models.families.bert": ["bert"],
    "models.families.gpt2": ["gpt2"],
    "models.families.llama": ["llama"],
    "models.families.roberta": ["roberta"],
    "models.generation": ["generate", "stream"],
    "models.pretrained": ["load_pretrained", "load_tokenizer"],
    "models.quantized": ["quantize"],
    "models.saving": ["save_pretrained"],
    "models.transformer": ["Transformer"],
    "nn": ["Gradients", "Inputs", "Linear", "Parameter", "Pass"],
    "nn.optim": ["SGD", "AdamW", "cosine_schedule", "linear_schedule"],
    "training": ["evaluate", "fit"],
    "verify": ["check_gradient", "diagnose"],
}
NAMES = {name: home for home, names in HOMES.items() for name in names}
ROOMS = ["accounting", "adapters", "backend", "data", "models", "nn", "ops", "quantization", "training", "verify"]
__all__ = ["__version__", *NAMES]


def __getattr__(name: str) -> Any:
    if name in NAMES:
        return getattr(importlib.import_module(f"{__name__}.{NAMES[name]}"), name)
    if name in ROOMS:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, *ROOMS]
