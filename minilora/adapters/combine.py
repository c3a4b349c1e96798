"""Several adapters of a model into one, and how much they agree. The maths is in combining/, one method a file.

adapters = Adapters(model)
adapters.load("source", "runs/source")
adapters.load("names", "runs/names")
cosines(adapters, "source", "names")                                # {layer: cos(ΔW₁, ΔW₂)}
found = combine(adapters, "both", {"source": 1, "names": 0.5}, how="svd", rank=8)
off_the_sum(found)                                                  # ‖B A - Σ‖ / ‖Σ‖ over all layers
adapters.activate("both")
save_adapter(model, "runs/both")
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import numpy as np

from ..backend import Rng, generator, to_numpy
from ..nn import Embedding, Linear, Module
from ..process import blas_threads
from ..spelling import choose_from
from .attach import low_rank_adapter, wasted_rank
from .base import Adapter
from .combining import combinations
from .combining.cat import cat
from .combining.combination import Factors, Options, positive
from .peft import Adapters
from .spectrum import lora_svd, truncation_error


class Layer(NamedTuple):
    """The combined adapter of one layer, compared with the sum Σ."""

    rank: int  # of the combined adapter
    size: float  # ‖Σ‖
    off: float  # its error ‖B A - Σ‖, of A and B in the dtype of the model
    least: float  # the least error that this rank allows, by the theorem of Eckart and Young


@blas_threads()
def combine(
    adapters: Adapters,
    name: str,
    weights: Mapping[str, float],
    how: str = "svd",
    *,
    rank: int | None = None,
    density: float | None = None,
    rng: Rng = 0,
) -> dict[str, Layer]:
    """Make one LoRA of those that `weights` names, each with its weight, and load it as `name`; return {dotted path of
    a layer: its Layer}.

    A layer that only some of them adapt gets what those give. Layers that are trained whole, such as a classifier, are
    copied as they are; if two adapters have one of the same layer, the two must be equal.

    how         a name of combining/: "cat", "svd", "linear", "ties", "ties_svd", ...
    rank        for "svd" and "..._svd": of each layer, or less where Σ has less; by default the largest of its adapters
    density     for those that prune: the share of entries that stays, above 0 and up to 1
    rng         for "dare_...": a generator, or a seed for one

    Variants whose ΔW is not a product of two matrices, such as DoRA, are for "svd" and "..._svd".
    Raises ValueError for a name that is taken, an option that `how` does not read or needs, weights that are all 0 or
    not finite, different ranks where A and B are summed separately, and adapters that change more than weight matrices
    (a bias), replace W (LoftQ), or adapt an embedding together with its tied head. Nothing is loaded then.
    """
    options = checked(adapters, name, weights, how, rank, density, rng)
    method, used = combinations()[how], {one: w for one, w in weights.items() if w}
    found: dict[str, Layer] = {}
    made: dict[str, Adapter] = {}
    with adapters.base_alone():
        of_each = {one: matrices_of(adapters, one) for one in used}
        whole = saved_whole(adapters, used)
        for path in [path for path, _ in adapters.model.named_modules()]:
            here = {one: layers[path] for one, layers in of_each.items() if path in layers}
            if method.of_factors or (rank is None and "rank" in method.reads) or how == "cat":
                check_are_products(path, here, how)
            summands, w = positive([factors_of(m) for m in here.values()], [used[one] for one in here])
            if not summands:
                continue  # not adapted, or α = 0
            most = options.rank or max(len(A) for A, _, _ in summands)
            try:
                A, B = method.make(summands, w, options._replace(rank=most))
            except ValueError as error:
                raise ValueError(f"{path}: {error}: {how} needs equal ranks; use cat, svd or a NAME_svd") from None
            made[path] = adapter = low_rank_adapter(adapters.model[path], A, B)
            found[path] = compared(path, cat(summands, w), adapter)
    if not made:
        raise ValueError("the sum is 0 in every layer: there is nothing to combine")
    if rank is not None and rank > (most := max(layer.rank for layer in found.values())):
        raise ValueError(f"rank {rank} is above {most}, which the sum has already: give {most} or less")
    if note := wasted_rank({path: (layer.rank, min(made[path].weight.data.shape)) for path, layer in found.items()}):
        warnings.warn(note, stacklevel=2)
    adapters.loaded[name] = {**whole, **made}
    with_labels = next((one for one in used if whole.keys() & adapters.loaded[one].keys()), next(iter(used)))
    adapters.hf_configs[name] = adapters.hf_configs[with_labels]
    return found


def off_the_sum(found: Mapping[str, Layer], least: bool = False) -> float:
    """‖B A - Σ‖ / ‖Σ‖ over all layers together; with `least`, the least that the ranks allow. inf for a Σ of 0."""
    size = math.hypot(*(layer.size for layer in found.values()))
    off = math.hypot(*(layer.least if least else layer.off for layer in found.values()))
    return off / size if size else math.inf


@blas_threads()
def cosines(adapters: Adapters, first: str, second: str) -> dict[str, float]:
    """{dotted path: ⟨ΔW₁, ΔW₂⟩ / (‖ΔW₁‖ ‖ΔW₂‖)} of the layers that both adapt, and under "" that of all layers
    together, to which layers of one adapter alone count too. From the factors: no ΔW is formed.

    1: one is a multiple of the other; 0: ‖ΔW₁ + ΔW₂‖² = ‖ΔW₁‖² + ‖ΔW₂‖²; -1: they undo each other. That of two ΔW in
    independent random directions has the mean 0 and the standard deviation 1/√(in · out).
    """
    if unknown := next((one for one in (first, second) if one not in adapters.loaded), None):
        raise ValueError(f"no adapter is called {unknown!r}: {choose_from(unknown, adapters.loaded)}")
    with adapters.base_alone():
        both = [{path: factors_of(m) for path, m in matrices_of(adapters, name).items()} for name in (first, second)]
    shared = {path: factors.inner(both[1][path]) for path, factors in both[0].items() if path in both[1]}
    squares = [{path: factors.inner(factors) for path, factors in of_one.items()} for of_one in both]
    found = {path: ratio(x, squares[0][path] * squares[1][path]) for path, x in shared.items()}
    return found | {"": ratio(sum(shared.values()), math.prod(sum(of_one.values()) for of_one in squares))}


def ratio(inner: float, squares: float) -> float:
    return inner / math.sqrt(squares) if squares > 0 else 0.0


def checked(
    adapters: Adapters,
    name: str,
    weights: Mapping[str, float],
    how: str,
    rank: int | None,
    density: float | None,
    rng: Rng,
) -> Options:
    """The options of a method. Raises ValueError as combine() does."""
    if how not in combinations():
        raise ValueError(f"no method of combining is called {how!r}: {choose_from(how, combinations())}")
    adapters.check_name(name)
    if unknown := next((one for one in weights if one not in adapters.loaded), None):
        raise ValueError(f"no adapter is called {unknown!r}: {choose_from(unknown, adapters.loaded)}")
    for one, w in weights.items():
        if not math.isfinite(w):
            raise ValueError(f"the weight of {one} is {w}, not a finite number")
    if not any(weights.values()):
        raise ValueError("all weights are 0: give one that is not")
    reads = combinations()[how].reads
    for option, value in (("rank", rank), ("density", density)):
        if value is not None and option not in reads:
            raise ValueError(f"{how} does not read a {option}: leave it out")
    if rank is not None and rank < 1:
        raise ValueError(f"rank {rank!r} is not a whole number from 1 up")
    if "density" in reads and density is None:
        raise ValueError(f"{how} needs a density, the share of entries that stays: 0.5 keeps half")
    if density is not None and not 0 < density <= 1:
        raise ValueError(f"density {density!r} is not a share above 0 and up to 1")
    return Options(rank or 0, 1.0 if density is None else density, generator(rng))


def matrices_of(adapters: Adapters, name: str) -> dict[str, Adapter]:
    """{dotted path: adapter} of a loaded adapter, while none is active. Raises ValueError where it changes more than
    weight matrices."""
    found = {path: m.in_file() for path, m in adapters.loaded[name].items() if isinstance(m, Adapter)}
    for path, adapter in found.items():
        layer: Any = adapters.model[path]
        of = f"{name} is {adapter.variant}, which"
        if not isinstance(layer, Linear | Embedding):
            raise ValueError(f"{of} changes {path}, and that has no matrix: leave {name} out")
        if adapter.weight is not layer.weight:
            raise ValueError(f"{of} holds a W of its own for {path}: merge it, and adapt the merged model")
        bias, own = getattr(layer, "bias", None), getattr(adapter.base, "bias", None)
        if type(adapter).merged is not Adapter.merged:
            changed = bias is not None and adapter.merged()[1] is not bias.data
        else:
            changed = own is not bias
        if changed:
            raise ValueError(f"{of} changes the bias of {path} too, and a LoRA of the sum cannot hold it: merge it")
    if len({adapter.weight for adapter in found.values()}) < len(found):
        raise ValueError(f"{name} adapts an embedding and the head that is tied to it, which a sum cannot: merge it")
    return found


def saved_whole(adapters: Adapters, names: Collection[str]) -> dict[str, Module]:
    """{dotted path: module} of layers that are trained whole. Raises ValueError where two adapters differ in one."""
    found: dict[str, tuple[str, Module]] = {}
    for name in names:
        for path, module in adapters.loaded[name].items():
            if isinstance(module, Adapter):
                continue
            other, first = found.setdefault(path, (name, module))
            pairs = zip(first.parameters(), module.parameters(), strict=True)
            if not all(np.array_equal(to_numpy(a.data), to_numpy(b.data)) for a, b in pairs):
                raise ValueError(f"{other} and {name} have each trained {path} whole: leave one of them out")
    return {path: module for path, (_, module) in found.items()}


def check_are_products(path: str, here: Mapping[str, Adapter], how: str) -> None:
    """Raise ValueError for an adapter whose ΔW is not a product s B A of a known rank."""
    for name, adapter in here.items():
        if adapter.factors() is None:
            instead = "give a rank" if how.endswith("svd") else "take svd or a NAME_svd, with a rank"
            raise ValueError(f"{path}: {name} is {adapter.variant}, whose ΔW is not a product B A of a rank: {instead}")


def factors_of(adapter: Adapter) -> Factors:
    """ΔW = s B A in float64; where it is not such a product, ΔW = I ΔW or ΔW I, with the smaller identity."""
    factors = adapter.factors()
    if factors is not None:
        A, B, s = factors
        return Factors(to_numpy(A).astype(float), to_numpy(B).astype(float), s)
    delta = to_numpy(adapter.delta()).astype(float)
    n_out, n_in = delta.shape
    return Factors(delta, np.eye(n_out), 1.0) if n_out <= n_in else Factors(np.eye(n_in), delta, 1.0)


def compared(path: str, total: tuple[np.ndarray, np.ndarray], adapter: Adapter) -> Layer:
    """The adapter compared with the sum, whose A and B are stacked in `total` (cat). No (out, in) matrix is formed:
    B A - Σ is a product of stacked factors too."""
    A, B, _ = factors_of(adapter)
    if not (np.isfinite(A).all() and np.isfinite(B).all()):
        raise ValueError(f"{path}: the sum is too large for {adapter.weight.data.dtype}: give smaller weights")
    sigma = lora_svd(*total, 1.0).sigma
    off = lora_svd(np.concatenate([total[0], A]), np.concatenate([total[1], -B], axis=1), 1.0).sigma
    least = truncation_error(sigma, min(len(A), len(sigma)))[0]
    return Layer(len(A), float(np.linalg.norm(sigma)), float(np.linalg.norm(off)), least)
