"""LoRA: a frozen Linear with a low-rank path beside it; attaching, merging, unmerging.

The adapter knows Linear; no layer, model, optimizer or training loop knows the adapter. What saves, counts,
checks or looks into adapters does (peft.py, pretrained.py, accounting, verify, spectrum.py, tasks). Attaching is
visible assignment:

    model.freeze()
    model["block_0.attention.q_proj"] = LoRALinear(model["block_0.attention.q_proj"], r=8, alpha=16, rng=rng)

and attach_lora() is the first line, then the second in a loop.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from numbers import Real
from typing import Any, NamedTuple

import numpy as np

from . import ops
from .backend import Array, get_array_module
from .modules import Context, Gradients, LayerNorm, Linear, Module, Parameter, RMSNorm

HEADS = "lm_head", "classifier", "classifier_transform"  # what "all-linear" leaves out, as in PEFT


class LoRALinearCache(NamedTuple):
    base: Any
    x: Array | None  # (..., in)   after dropout; None where A is frozen
    h: Array | None  # (N, r)      None where B is frozen
    keep: Array | None  # (..., in)   the dropout mask


class LoRALinear(Module):
    """y = x W₀ᵀ + b + s (x Aᵀ) Bᵀ         A (r, in)   B (out, r)   s = α/r, or α/√r (rsLoRA)

    Hu et al. (2021), equation 3. At the start B = 0, so y is the base's; A is uniform within ±1/√in, as
    PEFT's, or normal with deviation 1/r (init="gaussian"). Dropout acts on the adapter's input alone. `base`, a
    Linear, is frozen and kept.
    Raises ValueError for a base that is no plain Linear, a rank outside 1..min(in, out), and an rng that is no
    generator; the base is then as it was.
    """

    def __init__(
        self,
        base: Module,
        r: int = 8,
        alpha: float = 16,
        *,
        rng: np.random.Generator,
        dropout: float = 0.0,
        rslora: bool = False,
        init: str = "uniform",
    ) -> None:
        check_adaptable(base, r, alpha, dropout, init, rng)
        assert isinstance(base, Linear)
        base.freeze()
        W = base.weight.data
        xp, (n_out, n_in) = get_array_module(W), W.shape
        A = rng.uniform(-1, 1, (r, n_in)) / math.sqrt(n_in) if init == "uniform" else rng.standard_normal((r, n_in)) / r
        self.base = base
        self.lora_A = Parameter(xp.asarray(A, dtype=W.dtype))
        self.lora_B = Parameter(xp.zeros((n_out, r), dtype=W.dtype))
        # Python numbers: a NumPy float64 would turn float32 products into float64.
        self.r, self.alpha, self.rslora, self.dropout = int(r), float(alpha), rslora, float(dropout)

    @property
    def scaling(self) -> float:
        return self.alpha / (math.sqrt(self.r) if self.rslora else self.r)

    def named_modules(self, prefix: str = "") -> Any:
        """The base keeps its own path, so that adapting a layer renames nothing: q_proj.weight, q_proj.lora_A."""
        yield prefix, self
        yield from self.base.named_modules(prefix)

    def forward(self, x: Array, context: Context = Context()) -> tuple[Array, LoRALinearCache]:
        y, cb = self.base.forward(x, context)
        keep = dropout_mask(context.rng, self.dropout, x)
        if keep is not None:
            x, _ = ops.dropout_forward(x, keep)
        y_lora, (x, h) = ops.lora_forward(x, self.lora_A.data, self.lora_B.data, self.scaling)
        y += y_lora
        return y, LoRALinearCache(cb, x if self.lora_A.trainable else None, h if self.lora_B.trainable else None, keep)

    def backward(self, dy: Array, cache: LoRALinearCache, grads: Gradients) -> Array:
        dx = self.base.backward(dy, cache.base, grads)
        dx_lora, dh = ops.lora_backward(dy, self.lora_A.data, self.lora_B.data, self.scaling)
        if cache.x is not None:
            grads.add(self.lora_A, ops.lora_A_gradients(dh, cache.x))
        if cache.h is not None:
            grads.add(self.lora_B, ops.lora_B_gradients(dy, cache.h, self.scaling))
        dx += dx_lora if cache.keep is None else ops.dropout_backward(dx_lora, cache.keep)
        return dx

    def delta(self) -> Array:
        """ΔW = s B A (out, in), formed here for merging and looking only."""
        return self.scaling * (self.lora_B.data @ self.lora_A.data)


def dropout_mask(rng: np.random.Generator | None, p: float, x: Array) -> Array | None:
    """A mask for `x`, drawn on the host and moved; None without a generator: randomness is an argument."""
    if rng is None or p == 0:
        return None
    keep = (rng.random(x.shape, dtype=np.float32) >= p) / (1 - p)
    return get_array_module(x).asarray(keep, dtype=x.dtype)


def check_adaptable(base: Module, r: int, alpha: float, dropout: float, init: str, rng: np.random.Generator) -> None:
    """Raise ValueError, saying what to change, unless LoRALinear can be made of these."""
    if isinstance(base, LoRALinear | MergedLinear):
        raise ValueError("this layer is adapted already: an adapter goes on a plain Linear")
    if not isinstance(base, Linear):
        raise ValueError(f"LoRA adapts a Linear, and this is of type {type(base).__name__}")
    n_out, n_in = base.weight.data.shape
    if isinstance(r, bool) or not isinstance(r, int | np.integer) or not 1 <= r <= min(n_in, n_out):
        raise ValueError(f"rank {r!r} is not a whole number from 1 to {min(n_in, n_out)}, the most a {n_out} x {n_in} "
                         "weight can have")  # fmt: skip
    if isinstance(alpha, bool) or not isinstance(alpha, Real) or not math.isfinite(alpha):
        raise ValueError(f"alpha {alpha!r} is not a number")
    if not isinstance(dropout, Real) or not 0 <= dropout < 1:
        raise ValueError(f"dropout {dropout!r} is not a probability below 1")
    if init not in ("uniform", "gaussian"):
        raise ValueError(f"init {init!r} is neither 'uniform' nor 'gaussian'")
    if not isinstance(rng, np.random.Generator):
        raise ValueError(f"rng {rng!r} is no generator: rng=numpy.random.default_rng(seed)")


def attach_lora(
    model: Module,
    targets: str | Collection[str] | Mapping[str, int] = ("q_proj", "v_proj"),
    r: int = 8,
    alpha: float = 16,
    *,
    rng: np.random.Generator,
    dropout: float = 0.0,
    rslora: bool = False,
    init: str = "uniform",
    train: Collection[str] = (),
) -> list[str]:
    """Freeze the model and put a LoRALinear in the place of every target; return the dotted paths replaced.

    `targets`: last names, exactly ("q_proj"); or "all-linear", every Linear but those of HEADS; or a dict from last
    names or dotted paths to ranks. `train` names what else learns: "bias" (every bias), "norm" (every gain and
    bias of a norm), or the last name of a module, such as "lm_head".
    Called again, it adapts further layers: every adapter learns then, one that was frozen meanwhile too, and of the
    rest only what this call's `train` names.
    Raises ValueError, and leaves the model as it was, when a target matches nothing, is adapted already, or
    cannot have the rank, and for an `rng` that is no generator.
    """
    chosen = choose(model, targets, r)
    extra = trained_too(model, train)
    for path, rank in chosen.items():
        try:
            check_adaptable(model[path], rank, alpha, dropout, init, rng)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    adapters = [module for _, module in model.named_modules() if isinstance(module, LoRALinear)]
    model.freeze()
    for path, rank in chosen.items():
        adapter = LoRALinear(model[path], rank, alpha, rng=rng, dropout=dropout, rslora=rslora, init=init)
        model[path] = adapter
        adapters.append(adapter)
    for parameter in [*extra, *(p for adapter in adapters for p in (adapter.lora_A, adapter.lora_B))]:
        parameter.trainable = True
    return list(chosen)


def choose(model: Module, targets: str | Collection[str] | Mapping[str, int], r: int) -> dict[str, int]:
    """{path: rank} of the layers that `targets` names, in the model's order."""
    layers = {path: m for path, m in model.named_modules() if isinstance(m, Linear | LoRALinear)}
    if targets == "all-linear":
        targets = {path: r for path in layers if last(path) not in HEADS}
    elif isinstance(targets, str):
        targets = [targets]
    ranks = targets if isinstance(targets, Mapping) else dict.fromkeys(targets, r)
    unmatched = [name for name in ranks if name not in layers and name not in map(last, layers)]
    if unmatched or not ranks:
        names = ", ".join(dict.fromkeys(map(last, layers)))
        what = f"no layer is called {', '.join(map(repr, unmatched))}" if unmatched else "no target is named"
        raise ValueError(f"{what}; this model has: {names}")
    return {path: ranks.get(path, ranks.get(last(path), r)) for path in layers if path in ranks or last(path) in ranks}


def trained_too(model: Module, names: Collection[str]) -> list[Parameter]:
    """The parameters that `names` names, as attach_lora's `train` says."""
    found: list[Parameter] = []
    for name in [names] if isinstance(names, str) else names:
        modules = [(path, m) for path, m in model.named_modules() if not isinstance(m, LoRALinear)]
        if name == "bias":
            matched = [p for path, p in model.named_parameters().items() if last(path) == "bias"]
        elif name == "norm":
            matched = [p for _, m in modules if isinstance(m, LayerNorm | RMSNorm) for p in parameters(m)]
        else:
            matched = [p for path, m in modules if last(path) == name for p in parameters(m)]
        if not matched:
            raise ValueError(f"train={name!r} matches nothing: 'bias', 'norm', or the last name of a module")
        found += matched
    return found


def parameters(module: Module) -> list[Parameter]:
    return list(module.named_parameters().values())


def last(path: str) -> str:
    return path.rpartition(".")[2]


class MergedLinear(Linear):
    """y = x (W₀ + s B A)ᵀ + b: as fast as the base. The adapter waits inside, its W₀ untouched, for unmerge()."""

    def __init__(self, adapter: LoRALinear) -> None:
        super().__init__(Parameter(adapter.base.weight.data + adapter.delta(), trainable=False), adapter.base.bias)
        self.adapter = adapter

    def children(self) -> dict[str, Module]:
        return {}  # the adapter is kept, but takes no part


def merge(model: Module) -> list[str]:
    """Put a Linear with weight W₀ + s B A in the place of every LoRALinear; return the dotted paths."""
    merged = [path for path, module in model.named_modules() if isinstance(module, LoRALinear)]
    for path in merged:
        adapter = model[path]
        assert isinstance(adapter, LoRALinear)
        model[path] = MergedLinear(adapter)
    return merged


def unmerge(model: Module) -> list[str]:
    """Put every merged adapter back on its W₀, which was never written to; return the dotted paths."""
    unmerged = [path for path, module in model.named_modules() if isinstance(module, MergedLinear)]
    for path in unmerged:
        layer = model[path]
        assert isinstance(layer, MergedLinear)
        W, adapter = layer.weight.data, layer.adapter
        if type(W) is not type(adapter.lora_A.data):  # the model has moved meanwhile
            adapter.to(get_array_module(W))
        if W.dtype != adapter.lora_A.data.dtype:
            adapter.astype(W.dtype)
        model[path] = adapter
    return unmerged
