"""Check every gradient of a module, that of its input included, or of a whole model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ..backend import Array
from ..models.encoder_decoder import EncoderDecoder
from ..models.transformer import Transformer
from ..nn import Gradients, Inputs, Module, Parameter, Pass, Sequential
from ..quantization import Quantized
from .check import Report, check_model
from .op import Rng
from .op_cases.tokens import pad

# B, T, C, F and the side of the padding; three heads
SHAPES = ((1, 3, 6, 5, "none"), (3, 2, 12, 7, "left"), (2, 5, 6, 1, "right"))


class Fed(Module):
    """A module together with its input x. A float x is a Parameter, so that its gradient is checked too, unless the
    module is a whole model: that returns no gradient of its images."""

    def __init__(self, module: Module, x: np.ndarray) -> None:
        self.module, self.ids = module, x
        self.x = Parameter(x) if x.dtype.kind == "f" and not isinstance(module, Sequential) else None

    def forward(self, _: Any = None, inputs: Inputs = Inputs(), run: Pass = Pass()) -> tuple[Array, Any]:
        return self.module.forward(self.ids if self.x is None else self.x.data, inputs, run)

    def backward(self, dy: Array, cache: Any, grads: Gradients) -> None:
        dx = self.module.backward(dy, cache, grads)
        if self.x is not None:
            grads.add(self.x, dx)


def check(module: Module, x: np.ndarray, side: str, rng: Rng, adapters: Sequence[str | None] | None = None) -> Report:
    """Check every gradient of Σ dy ∘ module(x). dy is 0 at padding, and dropout draws the same masks in every call."""
    B, T = x.shape[:2]
    real = pad(side, T, [T, *rng.integers(1, T + 1, B - 1)]) if side != "none" else np.ones((B, T), dtype=bool)
    padding, segments = None if side == "none" else real, rng.integers(0, 2, (B, T)) if x.ndim < 4 else None
    inputs = Inputs(padding, segments, adapters=adapters)
    if isinstance(module, EncoderDecoder):
        hidden = None if side == "none" else pad(side, T + 1, [T + 1, *rng.integers(1, T + 2, B - 1)])
        inputs = inputs._replace(source=source_of(module, B, T, rng), source_padding=hidden)
    fed = Fed(module, x)

    def run() -> tuple[Array, Any]:
        return fed.forward(inputs=inputs, run=Pass(np.random.default_rng(0)))

    y, cache = run()
    dy, grads = rng.standard_normal(y.shape) * (real[..., None] if y.ndim == 3 and side != "none" else 1), Gradients()
    fed.backward(dy, cache, grads)
    # a constant as large as the terms: where they cancel, the loss would look too small for what they round
    offset = math.copysign(np.abs(dy * y).sum(), (dy * y).sum())
    # the softmax ignores what is added to all the scores of a query: a bias of the keys, unless positions turn it
    rotary = any(getattr(part, "rope", None) for _, part in module.named_modules())
    zero = [] if rotary else [name for name in fed.named_parameters() if name.endswith("k_proj.bias")]
    return check_model(fed, lambda: offset + (dy * run()[0]).sum(), grads, rng=rng, zero=zero)


def shake(parameters: Iterable[Parameter], rng: Rng) -> None:
    """Add noise to every parameter, so that none is still at its initial 0 or 1; quantised ones stay as they are."""
    for parameter in parameters:
        if not isinstance(parameter.data, Quantized):
            parameter.data = parameter.data + 0.3 * rng.standard_normal(parameter.data.shape)


def shaken(module: Any, rng: Rng) -> Any:
    shake(module.named_parameters().values(), rng)
    return module


def source_of(made: Transformer, B: int, T: int, rng: Rng) -> np.ndarray | None:
    """Source token ids (B, T + 1) for an encoder-decoder; None for any other model."""
    return rng.integers(0, made.config.vocab_size, (B, T + 1)) if made.reads_source else None
