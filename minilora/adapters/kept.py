"""How much of each adapter's ΔW would survive a merge into a quantized format, predicted and measured layer by layer.

The error model is in quantization/forecast.py.

    found = kept_by_merge(model, "nf4")
    share_kept(found), found["block_0.attention.q_proj"].measured.cos
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from ..backend import to_numpy
from ..data import Batch
from ..models.quantized import formats_for
from ..models.transformer import Transformer
from ..nn import Linear
from ..process import blas_threads
from ..quantization.forecast import Kept, foretell, measure, on_the_grid
from .merge import merge, to_merge, unmerge
from .recording import record


class OutputError(NamedTuple):
    """The rms, over a layer's outputs for a batch, of what ΔW adds and of the error of a merge."""

    added: float
    foretold: float
    measured: float


class LayerKept(NamedTuple):
    foretold: Kept
    measured: Kept
    on_the_grid: bool  # W is representable in the format, as that of a base that was loaded in it
    y: OutputError | None  # None without a batch, and of an embedding


def kept_by_merge(model: Transformer, format: str, batch: Batch | None = None) -> dict[str, LayerKept]:
    """{path: what is kept of ΔW} of the adapted matrices that quantize(model, format) would round after merge(model).

    A base that is Quantized is merged from its Ŵ. With a batch, the adapted model reads it, and the errors of the
    layers' outputs are those for its x. Matrices whose ΔW is 0 are left out, and so are those that stay in float32, as
    classifiers do. The model is not changed. Raises ValueError as quantize() does.
    """
    formats, found = formats_for(model, format), {}
    adapters = {path: adapter for path, adapter in to_merge(model).items() if adapter.weight in formats}
    moments = {}
    if batch is not None:
        linear = [path for path, adapter in adapters.items() if isinstance(adapter.base, Linear)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of untied weights: unmerge() follows
            merge(model)
        try:
            moments = record(model, {path: model[path] for path in linear}, [batch], "inputs")  # type: ignore[misc]
        finally:
            unmerge(model)
    with blas_threads():
        for path, adapter in adapters.items():
            W, delta = (to_numpy(x).astype(np.float32) for x in (adapter.dense(), adapter.delta()))
            if not delta.any():
                continue
            cls = formats[adapter.weight]
            foretold, measured, y = foretell(W, delta, cls), measure(W, delta, cls), None
            if path in moments:
                xx = moments[path].given("inputs").second()
                error = cls.of(W + delta).dense() - (W + delta)
                added, real = (math.sqrt(np.einsum("oi,oi->", E @ xx, E) / len(E)) for E in (delta, error))
                y = OutputError(added, foretold.error_of_y(len(W), np.diag(xx), added), real)
            found[path] = LayerKept(foretold, measured, on_the_grid(W, cls), y)
    return found


def share_kept(found: Mapping[str, LayerKept]) -> float:
    """The share of ΔW that is kept over all layers together, Σ⟨kept, ΔW⟩ / Σ‖ΔW‖², measured; 1 if `found` is empty."""
    each = [layer.measured for layer in found.values()]
    return sum(kept.along for kept in each) / sum(kept.delta for kept in each) if each else 1.0
