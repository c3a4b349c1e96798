"""Parameters and bytes: what is counted, beside what the formula says."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from .backend import Array
from .lora import LoRALinear
from .modules import Gradients, Module
from .optim import Optimizer


def count_parameters(model: Module) -> dict[str, int]:
    """`total` (without adapters) and `trainable`, every parameter once, tied or not."""
    parameters = model.named_parameters()
    total = sum(p.data.size for path, p in parameters.items() if not path.endswith(("lora_A", "lora_B")))
    return {"total": total, "trainable": sum(p.data.size for p in parameters.values() if p.trainable)}


def lora_parameters(model: Module) -> int:
    """Σ r (in + out) over the adapted layers: the formula for what count_parameters counts."""
    adapters = (module for _, module in model.named_modules() if isinstance(module, LoRALinear))
    return sum(adapter.r * sum(adapter.base.weight.data.shape) for adapter in adapters)


def memory(model: Module, cache: Any, grads: Gradients, optimizer: Optimizer) -> dict[str, int]:
    """Bytes of the four values of training: weights, cache, gradients, optimizer state.

    Each buffer is counted once, a view as the array it looks into.
    """
    return {
        "weights": nbytes(parameter.data for parameter in model.named_parameters().values()),
        "cache": nbytes(cache),
        "gradients": nbytes(grads.values()),
        "optimizer": nbytes(optimizer.state.values()),
    }


def nbytes(tree: Any) -> int:
    """Bytes of the distinct buffers behind the arrays in nested tuples, lists and iterables."""
    owners = {id(owner): owner for owner in map(owner_of, arrays(tree))}
    return sum(owner.nbytes for owner in owners.values())


def arrays(tree: Any) -> Iterator[Array]:
    if hasattr(tree, "nbytes") and hasattr(tree, "shape"):
        yield tree
    elif isinstance(tree, Iterable) and not isinstance(tree, str):
        for branch in tree:
            yield from arrays(branch)


def owner_of(array: Array) -> Array:
    while hasattr(array.base, "base"):  # bytes read from a file end the chain
        array = array.base
    return array
