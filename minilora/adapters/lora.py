"""LoRA: a frozen Linear or Embedding with a low-rank path beside it; attaching, merging, unmerging.

The adapter knows its base; no layer, model, optimizer or training loop knows the adapter. What saves, counts,
checks or looks into adapters does (peft/, pretrained/, accounting.py, verify/, spectrum.py, tasks/). Attaching is
visible assignment:

    model.freeze()
    model["block_0.attention.q_proj"] = LoRALinear(model["block_0.attention.q_proj"], r=8, alpha=16, rng=rng)

and attach_lora() is the first line, then the second in a loop.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Collection, Mapping
from numbers import Real
from typing import Any, NamedTuple, Self

import numpy as np

from .. import ops
from ..backend import Array, get_array_module
from ..nn import Embedding, Gradients, Inputs, LayerNorm, Linear, Module, Parameter, Pass, RMSNorm
from ..process import blas_threads
from ..spelling import choose_from

HEADS = "lm_head", "classifier", "classifier_transform"  # what "all-linear" leaves out, as in PEFT


class Adapter(Module):
    """A frozen layer, `base`, and s B A beside it:         A (r, in)   B (out, r)   s = α/r, or α/√r (rsLoRA)"""

    is_adapter = True
    base: Any
    lora_A: Parameter
    lora_B: Parameter
    dropout = 0.0

    def __init__(self, base: Linear | Embedding, alpha: float, rslora: bool, A: Array, B: Array) -> None:
        base.freeze()
        W = base.weight.data
        xp = get_array_module(W)
        self.base = base
        self.lora_A, self.lora_B = Parameter(xp.asarray(A, dtype=W.dtype)), Parameter(xp.asarray(B, dtype=W.dtype))
        # Python numbers: a NumPy float64 would turn float32 products into float64.
        self.r, self.alpha, self.rslora = len(A), float(alpha), rslora

    @classmethod
    def of(cls, base: Linear | Embedding, A: Array, B: Array, alpha: float, *, rslora: bool = False) -> Self:
        """The adapter with these numbers, without a random start and without dropout."""
        adapter = cls.__new__(cls)
        Adapter.__init__(adapter, base, alpha, rslora, A, B)
        return adapter

    @property
    def scaling(self) -> float:
        return self.alpha / (math.sqrt(self.r) if self.rslora else self.r)

    @property
    def weight(self) -> Parameter:
        """The base's: an adapter has its shape."""
        return self.base.weight

    def named_modules(self, prefix: str = "") -> Any:
        """The base keeps its own path, so that adapting a layer renames nothing: q_proj.weight, q_proj.lora_A."""
        yield prefix, self
        yield from self.base.named_modules(prefix)

    def base_parameters(self, prefix: str = "") -> dict[str, Parameter]:
        return self.base.base_parameters(prefix)

    def delta(self) -> Array:
        """ΔW, in the shape of W, formed here for merging and looking only."""
        raise NotImplementedError


class LoRALinearCache(NamedTuple):
    base: Any
    x: Array | None  # (..., in)   after dropout; None where A is frozen
    h: Array | None  # (N, r)      None where B is frozen
    keep: Array | None  # (..., in)   the dropout mask


class LoRALinear(Adapter):
    """y = x W₀ᵀ + b + s (x Aᵀ) Bᵀ         A (r, in)   B (out, r)   s = α/r, or α/√r (rsLoRA)

    Hu et al. (2021), equation 3. At the start B = 0, so y is the base's; A is uniform within ±1/√in, as
    PEFT's, or normal with deviation 1/r (init="gaussian"). Dropout acts on the adapter's input alone. `base`, a
    Linear, is frozen and kept.
    A rank above min(in, out) is allowed, as in PEFT, though B A can be of no higher rank than that.
    Raises ValueError for a base that is no plain Linear, a rank below 1, and an rng that is no generator; the base is
    then as it was.
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
        check_adaptable(base, r, alpha, dropout, init, rng, kind=Linear)
        assert isinstance(base, Linear)
        n_out, n_in = base.weight.data.shape
        A = rng.uniform(-1, 1, (r, n_in)) / math.sqrt(n_in) if init == "uniform" else rng.standard_normal((r, n_in)) / r
        super().__init__(base, alpha, rslora, A, np.zeros((n_out, r)))
        self.dropout = float(dropout)

    def forward(self, x: Array, inputs: Inputs = Inputs(), run: Pass = Pass()) -> tuple[Array, LoRALinearCache]:
        y, cb = self.base.forward(x, inputs, run)
        x, keep = dropped(x, self.dropout, run.rng)
        y_lora, (x, h) = ops.lora_forward(x, self.lora_A.data, self.lora_B.data, self.scaling)
        y += y_lora
        return y, LoRALinearCache(cb, x if self.lora_A.trainable else None, h if self.lora_B.trainable else None, keep)

    def backward(self, dy: Array, cache: LoRALinearCache, grads: Gradients) -> Array | None:
        dx = self.base.backward(dy, cache.base, grads)
        dx_lora, dh = ops.lora_backward(dy, self.lora_A.data, self.lora_B.data, self.scaling)
        if cache.x is not None:
            grads.add(self.lora_A, ops.lora_A_gradients(dh, cache.x))
        if cache.h is not None:
            grads.add(self.lora_B, ops.lora_B_gradients(dy, cache.h, self.scaling))
        if dx is not None:
            dx += dx_lora if cache.keep is None else ops.dropout_backward(dx_lora, cache.keep)
        return dx

    def delta(self) -> Array:
        """ΔW = s B A (out, in)"""
        return self.scaling * (self.lora_B.data @ self.lora_A.data)


class LoRAEmbeddingCache(NamedTuple):
    base: Any
    ids: Array | None  # (...)      None where A is frozen
    h: Array | None  # (N, r)      None where B is frozen


class LoRAEmbedding(Adapter):
    """y = W₀[ids] + s (A[:, ids])ᵀ Bᵀ      A (r, V)   B (C, r)   s = α/r, or α/√r (rsLoRA)

    At the start A = 0 and B is normal, the other way round than in LoRALinear: as PEFT's and loralib's. There is no
    dropout, as ids have none. Where a head is tied to the embedding, the head stays the base's: the adapter acts on
    the input alone, as PEFT's does.
    Raises ValueError as LoRALinear does, for a base that is no plain Embedding.
    """

    def __init__(
        self, base: Module, r: int = 8, alpha: float = 16, *, rng: np.random.Generator, rslora: bool = False
    ) -> None:
        check_adaptable(base, r, alpha, 0.0, "uniform", rng, kind=Embedding)
        assert isinstance(base, Embedding)
        V, C = base.weight.data.shape
        super().__init__(base, alpha, rslora, np.zeros((r, V)), rng.standard_normal((C, r)))

    def forward(self, ids: Array, inputs: Inputs = Inputs(), run: Pass = Pass()) -> tuple[Array, LoRAEmbeddingCache]:
        y, cb = self.base.forward(ids, inputs, run)
        y_lora, (ids, h) = ops.lora_embedding_forward(ids, self.lora_A.data, self.lora_B.data, self.scaling)
        y += y_lora  # W[ids] is a copy
        return y, LoRAEmbeddingCache(cb, ids if self.lora_A.trainable else None, h if self.lora_B.trainable else None)

    def backward(self, dy: Array, cache: LoRAEmbeddingCache, grads: Gradients) -> None:
        self.base.backward(dy, cache.base, grads)
        if cache.ids is not None:
            A, B, s = self.lora_A.data, self.lora_B.data, self.scaling
            grads.add(self.lora_A, ops.lora_embedding_A_gradients(dy, cache.ids, B, s, A.shape[1]))
        if cache.h is not None:
            grads.add(self.lora_B, ops.lora_B_gradients(dy, cache.h, self.scaling))

    def delta(self) -> Array:
        """ΔW = s (B A)ᵀ (V, C)"""
        return self.scaling * (self.lora_B.data @ self.lora_A.data).T


class TiedLoRALinear(Adapter):
    """The other use of an adapted embedding, by the head that is tied to it, with the same W₀, A and B:

        y = x (W₀ + s (B A)ᵀ)ᵀ + b = x W₀ᵀ + b + s (x B) A          x (..., C)   A (r, V)   B (C, r)   y (..., V)

    That is LoRALinear with Bᵀ for its A and Aᵀ for its B, so with h = x B and dh = s dy Aᵀ

        dA = s hᵀ dy         dB = xᵀ dh         dx = dh Bᵀ

    which are added to what the embedding gives to the same two Parameters: one array each, moved once a step. (PEFT
    0.21.2 has a second pair of Parameters over the same memory here. Each is stepped, by its own half of the
    gradient, so what they share moves up to twice as far.)
    """

    def __init__(self, base: Linear, embedding: LoRAEmbedding, dropout: float = 0.0) -> None:
        base.freeze()
        self.base, self.lora_A, self.lora_B = base, embedding.lora_A, embedding.lora_B
        self.r, self.alpha, self.rslora, self.dropout = embedding.r, embedding.alpha, embedding.rslora, dropout

    def forward(self, x: Array, inputs: Inputs = Inputs(), run: Pass = Pass()) -> tuple[Array, LoRALinearCache]:
        y, cb = self.base.forward(x, inputs, run)
        x, keep = dropped(x, self.dropout, run.rng)
        y_lora, (x, h) = ops.lora_forward(x, self.lora_B.data.T, self.lora_A.data.T, self.scaling)
        y += y_lora
        return y, LoRALinearCache(cb, x if self.lora_B.trainable else None, h if self.lora_A.trainable else None, keep)

    def backward(self, dy: Array, cache: LoRALinearCache, grads: Gradients) -> Array | None:
        dx = self.base.backward(dy, cache.base, grads)
        dx_lora, dh = ops.lora_backward(dy, self.lora_B.data.T, self.lora_A.data.T, self.scaling)
        if cache.x is not None:
            grads.add(self.lora_B, ops.lora_A_gradients(dh, cache.x).T)
        if cache.h is not None:
            grads.add(self.lora_A, ops.lora_B_gradients(dy, cache.h, self.scaling).T)
        if dx is not None:
            dx += dx_lora if cache.keep is None else ops.dropout_backward(dx_lora, cache.keep)
        return dx

    def delta(self) -> Array:
        """ΔW = s (B A)ᵀ (V, C)"""
        return self.scaling * (self.lora_B.data @ self.lora_A.data).T


def dropped(x: Array, p: float, rng: np.random.Generator | None) -> tuple[Array, Array | None]:
    """x after dropout, and the mask, drawn on the host and moved; without a generator x itself: randomness is an
    argument."""
    if rng is None or p == 0:
        return x, None
    keep = (rng.random(x.shape, dtype=np.float32) >= p) / (1 - p)
    keep = get_array_module(x).asarray(keep, dtype=x.dtype)
    return ops.dropout_forward(x, keep)[0], keep


def check_adaptable(
    base: Module,
    r: int,
    alpha: float,
    dropout: float,
    init: str,
    rng: np.random.Generator,
    kind: Any = Linear | Embedding,
) -> None:
    """Raise ValueError, saying what to change, unless an adapter for a `kind` of base can be made of these."""
    check_base(base, alpha, dropout, kind)
    if isinstance(r, bool) or not isinstance(r, int | np.integer) or r < 1:
        raise ValueError(f"rank {r!r} is not a whole number from 1 up")
    if init not in ("uniform", "gaussian"):
        raise ValueError(f"init {init!r} is neither 'uniform' nor 'gaussian'")
    if not isinstance(rng, np.random.Generator):
        raise ValueError(f"rng {rng!r} is no generator: rng=numpy.random.default_rng(seed)")


def check_base(base: Module, alpha: float, dropout: float, kind: Any = Linear | Embedding) -> None:
    """The part of check_adaptable that holds for given A and B too."""
    if isinstance(base, Adapter | MergedLinear | MergedEmbedding):
        raise ValueError("this layer is adapted already: an adapter goes on a plain one")
    if not isinstance(base, kind):
        what = {Linear: "Linear", Embedding: "Embedding"}.get(kind, "Linear or an Embedding")
        raise ValueError(f"this adapter is for a {what}, and this is of type {type(base).__name__}")
    if not is_number(alpha):
        raise ValueError(f"alpha {alpha!r} is not a number")
    if not isinstance(dropout, Real) or not 0 <= dropout < 1:
        raise ValueError(f"dropout {dropout!r} is not a probability below 1")


def wasted_rank(ranks: Mapping[str, tuple[int, int]]) -> str:
    """A note on the layers whose rank is more than they can use, of {layer: (rank, min(in, out))}; "" if none is."""
    above = {name: pair for name, pair in ranks.items() if pair[0] > pair[1]}
    if not above:
        return ""
    name, (r, most) = next(iter(above.items()))
    others = f" (and of {len(above) - 1} more)" if len(above) > 1 else ""
    return f"rank {r} of {name}{others} is above {most}, the smaller side of its weight: the rest is wasted"


def is_number(x: Any) -> bool:
    """Is it a finite one, which a float can hold?"""
    return (
        isinstance(x, int | float | np.integer | np.floating)
        and not isinstance(x, bool)
        and bool(-sys.float_info.max <= x <= sys.float_info.max)
    )


def adapt(
    base: Module, r: int, alpha: float, *, rng: np.random.Generator, dropout: float, rslora: bool, init: str = "uniform"
) -> LoRALinear | LoRAEmbedding:
    """The adapter that fits the base. An embedding's has no dropout, and one init."""
    if isinstance(base, Embedding):
        return LoRAEmbedding(base, r, alpha, rng=rng, rslora=rslora)
    return LoRALinear(base, r, alpha, rng=rng, dropout=dropout, rslora=rslora, init=init)


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
    ensure_weight_tying: bool = False,
) -> list[str]:
    """Freeze the model and put an adapter in the place of every target; return the dotted paths replaced.

    `targets`: last names, exactly ("q_proj"; "embed" for the token embedding); or "all-linear", every Linear but those
    of HEADS; or a dict from last names or dotted paths to ranks. `train` names what else learns: "bias" (every bias),
    "norm" (every gain and bias of a norm), or the last name of a module, such as "lm_head".
    An adapter of an embedding acts on the input alone, also where a head is tied to it. With `ensure_weight_tying`
    (PEFT's name for it) such a head is adapted too, by the same A and B: TiedLoRALinear.
    Called again, it adapts further layers: every adapter learns then, one that was frozen meanwhile too, and of the
    rest only what this call's `train` names.
    One warning names the layers whose rank is above min(in, out), which adds numbers to train and nothing to learn.
    Raises ValueError, and leaves the model as it was, when a target matches nothing or is adapted already, when a rank
    is below 1, when there is nothing tied, and for an `rng` that is no generator.
    """
    chosen = choose(model, targets, r)
    extra = trained_beside_adapters(model, train)
    for path, rank in chosen.items():
        try:
            check_adaptable(model[path], rank, alpha, dropout, init, rng)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    heads = tied_heads(model, chosen) if ensure_weight_tying else {}
    layers: dict[str, Any] = {path: model[path] for path in chosen}
    note = wasted_rank({path: (rank, min(layers[path].weight.data.shape)) for path, rank in chosen.items()})
    if note:
        warnings.warn(note, stacklevel=2)
    adapters = [module for _, module in model.named_modules() if isinstance(module, Adapter)]
    model.freeze()
    for path, rank in chosen.items():
        adapter = adapt(model[path], rank, alpha, rng=rng, dropout=dropout, rslora=rslora, init=init)
        model[path] = adapter
        adapters.append(adapter)
    for head, embedding in heads.items():
        model[head] = TiedLoRALinear(model[head], model[embedding], dropout)  # type: ignore[arg-type]
    for parameter in [*extra, *(p for adapter in adapters for p in (adapter.lora_A, adapter.lora_B))]:
        parameter.trainable = True
    return [*chosen, *heads]


def tied_heads(model: Module, chosen: Collection[str]) -> dict[str, str]:
    """{path of a Linear: path of the chosen Embedding whose weight it shares}. Raises ValueError where there is none,
    or where it is to be adapted, or is, by itself."""
    plain = {path: m for path, m in model.named_modules() if isinstance(m, Linear | Embedding)}
    heads = {
        head: path
        for path in chosen
        for head, m in plain.items()
        if isinstance(plain[path], Embedding) and isinstance(m, Linear) and m.weight is plain[path].weight
    }
    if not heads:
        raise ValueError("ensure_weight_tying: no target is an embedding that a head is tied to; it is called 'embed'")
    for head in heads:
        if head in chosen or isinstance(model[head], Adapter):
            raise ValueError(f"ensure_weight_tying: {head} has the embedding's adapter, so it can have no other")
    return heads


def choose(model: Module, targets: str | Collection[str] | Mapping[str, int], r: int) -> dict[str, int]:
    """{path: rank} of the layers that `targets` names, in the model's order."""
    layers = {path: m for path, m in model.named_modules() if isinstance(m, Adapter | Linear | Embedding)}
    if targets == "all-linear":
        targets = {path: r for path, m in layers.items() if isinstance(m, Linear) and last(path) not in HEADS}
    elif isinstance(targets, str):
        targets = [targets]
    ranks = targets if isinstance(targets, Mapping) else dict.fromkeys(targets, r)
    called = {path: last(path.removesuffix(".token")) for path in layers}  # the token embedding: embed
    unmatched = [name for name in ranks if name not in called and name not in called.values()]
    if unmatched or not ranks:
        what = f"no layer is called {', '.join(map(repr, unmatched))}" if unmatched else "no target is named"
        raise ValueError(f"{what}: {choose_from(''.join(unmatched[:1]), called.values())}")
    return {path: ranks.get(path, ranks.get(name, r)) for path, name in called.items() if {path, name} & ranks.keys()}


def trained_beside_adapters(model: Module, names: Collection[str]) -> list[Parameter]:
    """The parameters that `names` names, as attach_lora's `train` says."""
    found: list[Parameter] = []
    for name in [names] if isinstance(names, str) else names:
        modules = [(path, m) for path, m in model.named_modules() if not isinstance(m, Adapter)]
        if name == "bias":
            matched = [p for path, p in model.named_parameters().items() if last(path) == "bias"]
        elif name == "norm":
            matched = [p for _, m in modules if isinstance(m, LayerNorm | RMSNorm) for p in m.parameters()]
        else:
            matched = [p for path, m in modules if last(path) == name for p in m.parameters()]
        if not matched:
            raise ValueError(f"train={name!r} matches nothing: 'bias', 'norm', or the last name of a module")
        found += matched
    return found


def last(path: str) -> str:
    return path.rpartition(".")[2]


class MergedLinear(Linear):
    """y = x (W₀ + ΔW)ᵀ + b: as fast as the base. The adapter waits inside, its W₀ untouched, for unmerge()."""

    is_merged = True

    def __init__(self, adapter: Adapter) -> None:
        super().__init__(Parameter(adapter.weight.data + adapter.delta(), trainable=False), adapter.base.bias)
        self.adapter = adapter

    def children(self) -> dict[str, Module]:
        return {}  # the adapter is kept, but takes no part


class MergedEmbedding(Embedding):
    """y = (W₀ + ΔW)[ids], as MergedLinear."""

    is_merged = True

    def __init__(self, adapter: Adapter) -> None:
        super().__init__(adapter.weight.data + adapter.delta())
        self.weight.trainable = False
        self.adapter = adapter

    def children(self) -> dict[str, Module]:
        return {}


def merge(model: Module) -> list[str]:
    """Put a layer with weight W₀ + ΔW in the place of every adapter; return the dotted paths.

    A merged embedding has a weight of its own. Where a head was tied to it, and was not adapted with it
    (ensure_weight_tying), the head keeps W₀, and so the two are untied; likewise for an adapted head. A warning says
    so, as the model has one large matrix more then.
    """
    adapters = {path: module for path, module in model.named_modules() if isinstance(module, Adapter)}
    sums: dict[tuple[Parameter, Parameter], Parameter] = {}
    with blas_threads():
        for path, adapter in adapters.items():
            merged = MergedEmbedding(adapter) if isinstance(adapter, LoRAEmbedding) else MergedLinear(adapter)
            merged.weight = sums.setdefault((adapter.weight, adapter.lora_A), merged.weight)  # tied before, tied after
            model[path] = merged
    left = set(model.named_parameters().values())
    untied = [path for path, adapter in adapters.items() if adapter.weight in left]
    if untied:
        warnings.warn(f"merged, {', '.join(untied)} is no longer tied: what shared its weight keeps it", stacklevel=2)
    return list(adapters)


def unmerge(model: Module) -> list[str]:
    """Put every merged adapter back on its W₀, which was never written to; return the dotted paths."""
    merged = {path: m for path, m in model.named_modules() if isinstance(m, MergedLinear | MergedEmbedding)}
    for path, layer in merged.items():
        W, adapter = layer.weight.data, layer.adapter
        if type(W) is not type(adapter.lora_A.data):  # the model has moved meanwhile
            adapter.to(get_array_module(W))
        if W.dtype != adapter.lora_A.data.dtype:
            adapter.astype(W.dtype)
        model[path] = adapter
    return list(merged)
