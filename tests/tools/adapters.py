"""Small models with adapters."""

from typing import Any

import numpy as np
from models import build

from minilora.adapters.attach import attach_lora
from minilora.models.transformer import Transformer
from minilora.nn import Module


def adapted(family: str = "llama", targets: Any = "all-linear", **options: Any) -> Transformer:
    """A small model with adapters whose B is not 0."""
    model, rng = (
        build(family, **{k: options.pop(k) for k in ("tied", "dtype") if k in options}),
        np.random.default_rng(3),
    )
    attach_lora(model, targets, **{"r": 2, "alpha": 3, "rng": rng, **options})
    for name, parameter in model.named_parameters().items():
        if name.endswith("lora_B") and "embed" not in name:
            B = 0.3 * rng.standard_normal(parameter.data.shape)
            parameter.data = B.astype(parameter.data.dtype)
    return model


def lora_names(model: Module) -> set[str]:
    return {name for name in model.named_parameters() if name.endswith(("lora_A", "lora_B"))}


def snapshot(model: Module) -> dict[str, Any]:
    """All there is to know about a model: what its layers are, their numbers, and who learns."""
    parameters = {name: (p, p.trainable, p.data.tobytes()) for name, p in model.named_parameters().items()}
    return {"modules": dict(model.named_modules()), "parameters": parameters}


class Counted(np.ndarray):
    """An array that counts the floating-point operations of its matrix products."""

    flops = 0

    def __matmul__(self, other):
        Counted.flops += 2 * self.size * other.shape[-1]
        return super().__matmul__(other)

    def __rmatmul__(self, other):
        Counted.flops += 2 * other.size * self.shape[-1]
        return super().__rmatmul__(other)
