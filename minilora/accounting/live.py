"""A live model: its parameters, bytes and products, counted."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from ..adapters.base import Adapter
from ..adapters.statements import shape
from ..backend import Array
from ..nn import Gradients, Memory, Module
from ..nn.optim import Optimizer
from ..quantization import Quantized, dense


def count_parameters(model: Module) -> dict[str, int]:
    """`total` (without adapters) and `trainable`, every parameter once, tied or not."""
    trainable = sum(p.data.size for p in model.trainable_parameters().values())
    return {"total": sum(p.data.size for p in model.base_parameters().values()), "trainable": trainable}


def adapter_parameters(model: Module) -> int:
    """Σ r (in + out) over the layers adapted by LoRA, and of other variants what their slots' shapes say: the formula
    for what count_parameters counts. What several layers share is counted once.
    """
    sizes = {
        getattr(m, slot.name): math.prod(shape(slot.shape, m.sizes))
        for _, m in model.named_modules()
        if isinstance(m, Adapter)
        for slot in m.slots
        if slot.trained
    }
    return sum(sizes.values())


def memory(model: Module, cache: Any, grads: Gradients, optimizer: Optimizer) -> dict[str, int]:
    """Bytes of the four values of training: weights, cache, gradients, optimizer state.

    Each buffer is counted once, a view as the array it looks into.
    """
    return {
        "weights": nbytes(parameter.data for parameter in model.named_parameters().values()),
        "cache": nbytes(cache),
        "gradients": nbytes(grads),
        "optimizer": nbytes(optimizer.state),
    }


def nbytes(tree: Any) -> int:
    """Bytes of the distinct buffers behind the arrays in nested tuples, lists, iterables and values of dicts."""
    owners = {id(owner): owner for owner in map(owner_of, arrays(tree))}
    return sum(owner.nbytes for owner in owners.values())


def arrays(tree: Any) -> Iterator[Array]:
    if isinstance(tree, Quantized):
        yield from tree.arrays.values()
    elif isinstance(tree, Memory):
        yield tree.data
    elif hasattr(tree, "nbytes") and hasattr(tree, "shape"):
        yield tree
    elif isinstance(tree, Mapping):
        yield from arrays(tree.values())
    elif isinstance(tree, Iterable) and not isinstance(tree, str):
        for branch in tree:
            yield from arrays(branch)


def owner_of(array: Any) -> Any:
    while hasattr(array.base, "base"):  # bytes read from a file end the chain
        array = array.base
    return array


class CountedArray(np.ndarray):
    """An array that counts the FLOPs of its matrix products; what is made of it counts too."""

    products = 0
    sums = 0

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, out: Any = None, **options: Any) -> Any:
        if out:
            options["out"] = tuple(map(plain, out))
        y = getattr(ufunc, method)(*map(plain, inputs), **options)
        if ufunc is np.matmul:
            # an op adds rows by a product with a vector of constants, a plain array, or of each row with a column
            sums = y.shape[1:] == (1, 1) or not all(isinstance(x, CountedArray) for x in inputs)
            kind = "sums" if sums else "products"
            setattr(CountedArray, kind, getattr(CountedArray, kind) + 2 * inputs[0].shape[-1] * y.size)
        return out[0] if out else counted(y)

    def __array_function__(self, function: Any, types: Any, arguments: Any, options: Any) -> Any:
        return counted(super().__array_function__(function, types, arguments, options))


def plain(x: Any) -> Any:
    return x.view(np.ndarray) if isinstance(x, CountedArray) else x


def counted(y: Any) -> Any:
    if isinstance(y, tuple | list):
        return type(y)(map(counted, y))
    return y.view(CountedArray) if isinstance(y, np.ndarray) else y


def executed_flops(model: Module, run: Callable[[], Any]) -> dict[str, int]:
    """FLOPs of the matrix products while `run` uses `model` on the CPU: "products", and "sums" written as products."""
    parameters = list(model.named_parameters().values())
    CountedArray.products = CountedArray.sums = 0
    before = [parameter.data for parameter in parameters]
    for parameter in parameters:
        parameter.data = dense(parameter.data).view(CountedArray)
    try:
        run()
    finally:
        for parameter, data in zip(parameters, before, strict=True):
            parameter.data = data if isinstance(data, Quantized) else plain(parameter.data)
    return {"products": CountedArray.products, "sums": CountedArray.sums}
