"""The search for the first module whose output is NaN or infinite."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..backend import Array, to_numpy
from ..data import Batch
from ..nn import Module, Sequential
from .gradients import inputs_of


def first_not_finite(model: Sequential, batch: Batch) -> str:
    """The path of the module, first in the order of computation, whose output on `batch` is not finite; "" if none.

    Runs a forward without dropout.
    """
    found: list[str] = []

    def checked(path: str, forward: Callable[..., tuple[Array, Any]]) -> Callable[..., tuple[Array, Any]]:
        def run(*arguments: Any) -> tuple[Array, Any]:
            y, cache = forward(*arguments)
            if not found and not np.isfinite(to_numpy(y)).all():
                found.append(path)
            return y, cache

        return run

    modules: list[tuple[str, Module]] = list(model.named_modules())
    try:
        for path, module in modules:
            vars(module)["forward"] = checked(path, module.forward)
        model.forward(batch.ids, inputs_of(batch))
    finally:
        for _, module in modules:
            vars(module).pop("forward", None)
    return found[0] if found else ""
