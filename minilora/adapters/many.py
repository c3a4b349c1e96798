"""Several adapters on one base, and a batch in which each row has its own, or none.

    adapters = load_adapters(model, {"fr": "runs/fr", "de": "runs/de"})
    logits, cache = model.forward(ids, Inputs(adapters=["fr", "de", None, "fr"]))

With a(i) for the adapter of row i, each row of a layer is what it is by itself:

    y_i = x_i Wᵀ + b + path_a(i)(x_i)

The model sorts the rows by adapter, once a batch, so that those of one adapter are a slice of x in every layer, a view,
forward and backward. The rows whose adapter is parallel to the base (parallel.Parallel) share its product. Others,
such as DoRA, (IA)³, or a layer that was trained whole, run on their slice by themselves. The outputs are put back in
the caller's order. Gradients of an adapter are those of a run on its rows alone. Ranks, targets and variants may
differ.

Compare: Sheng et al. (2024), "S-LoRA"; Chen et al. (2024), "Punica", whose SGMV kernel takes such slices.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Any, NamedTuple, NoReturn

from ..backend import Array, get_array_module
from ..nn import AdapterRows, Costs, Embedding, Gradients, Inputs, MetaArray, Module, Parameter, Pass
from ..nn.module import join
from .base import Adapter
from .lora import LoRALinear
from .parallel import Parallel


class Piece(NamedTuple):
    """The cache of consecutive rows: those that share one product of the base, or those of one adapter by itself."""

    rows: slice
    base: Any
    paths: list[tuple[str, slice, Any]]  # (adapter, its rows, its cache)
    by_itself: bool


class Many(Adapter):
    """A frozen layer, and {name: the module that replaces it} for the rows of a batch with an adapter of that name.

    In a batch without Inputs.adapters every row is the base's.
    """

    slots, options, acts_on_some_tokens = (), (), True

    def __init__(self, base: Module, adapters: Mapping[str, Module]) -> None:
        base.freeze()
        self.base = base
        self.adapters = dict(adapters)

    def children(self) -> dict[str, Module]:
        return {"base": self.base, **self.adapters}

    def replace(self, name: str, module: Module) -> None:
        self.adapters[name] = module

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        yield from super().named_modules(prefix)
        for name, adapter in self.adapters.items():
            yield from adapter.named_modules(join(prefix, name))

    def own_parameters(self) -> dict[str, Parameter]:
        base = set(self.base.parameters())
        each = {name: adapter.named_parameters() for name, adapter in self.adapters.items()}
        return {f"{name}.{path}": p for name, found in each.items() for path, p in found.items() if p not in base}

    def alone(self, group: AdapterRows) -> str:
        """The adapter's name if it is not parallel to the base, so that it needs a forward of its own; else ""."""
        adapter = self.adapters.get(group.name or "")
        parallel = adapter is None or (isinstance(adapter, Parallel) and adapter.base is self.base)
        return "" if parallel else group.name or ""

    def forward(self, x: Array, inputs: Inputs = Inputs(), run: Pass = Pass()) -> tuple[Array, list[Piece]]:
        # behind the layer that selects the labelled positions x is (N, C); token ids are (B, T)
        labelled = inputs.labelled is not None and x.ndim == 2 and not isinstance(self.base, Embedding)
        everything = slice(0, len(x))
        ys, pieces = [], []
        for alone, consecutive in groupby(inputs.groups or (AdapterRows(None, everything, everything),), self.alone):
            groups = [(group, group.labelled if labelled else group.rows) for group in consecutive]
            rows = slice(groups[0][1].start, groups[-1][1].stop)
            paths, base = [], None
            if not alone:
                y, base = self.base.forward(x[rows], inputs, run)
            for group, at in groups:
                adapter: Any = self.adapters.get(group.name or "")
                if adapter is None:
                    continue
                own, memo = run.once(("rows of", group.name), with_memo, inputs, group)
                if alone:
                    y, cache = adapter.forward(x[at], own, run._replace(memo=memo))
                else:
                    cache = adapter.add_path(y[within(at, rows)], x[at], own, run._replace(memo=memo))
                paths.append((group.name or "", at, cache))
            ys.append(y)
            pieces.append(Piece(rows, base, paths, bool(alone)))
        return joined(ys), pieces

    def backward(self, dy: Array, cache: list[Piece], grads: Gradients) -> Array | None:
        dxs: list[Any] = []
        for rows, base, paths, by_itself in cache:
            dx = None if by_itself else self.base.backward(dy[rows], base, grads)
            for name, at, own in paths:
                adapter: Any = self.adapters[name]
                if by_itself:
                    dx = adapter.backward(dy[at], own, grads)
                else:
                    adapter.add_path_backward(None if dx is None else dx[within(at, rows)], dy[at], own, grads)
            dxs.append(dx)
        return None if any(dx is None for dx in dxs) else joined(dxs)

    def costs(self, x: MetaArray, costs: Costs) -> MetaArray:
        raise several("counting")

    def merged(self) -> NoReturn:
        raise several("merging")

    def in_file(self) -> NoReturn:
        raise several("saving")


def share_A(model: Module) -> int:
    """Make all LoRA adapters of a layer share one A, the first one's; each keeps its own B (ops/lora_tasks.py). Returns
    the number of parameters saved. dA is then the sum over the rows of all adapters.

    Call it before training: replacing A changes an adapter. Raises ValueError where ranks differ, or where an adapter
    is not a LoRA of a Linear.
    """
    every: list[list[Any]] = [list(m.adapters.values()) for _, m in model.named_modules() if isinstance(m, Many)]
    for adapters in every:
        if wrong := next((a for a in adapters if not isinstance(a, LoRALinear)), None):
            raise ValueError(f"A is shared by the LoRA of Linear layers, and one adapter is a {type(wrong).__name__}: "
                             "leave it out")  # fmt: skip
        if len(ranks := {a.r for a in adapters}) > 1:
            raise ValueError(
                f"one A has one rank, and the adapters of a layer have {', '.join(map(str, sorted(ranks)))}: start all "
                "with one r"
            )
    saved = 0
    for first, *others in every:
        for other in others:
            saved += other.lora_A.data.size * (other.lora_A is not first.lora_A)
            other.lora_A = first.lora_A
    return saved


def with_memo(inputs: Inputs, group: AdapterRows) -> tuple[Inputs, dict[Any, Any]]:
    """The inputs of the rows of one adapter, and a memo for them."""
    return inputs.of(group), {}


def within(at: slice, rows: slice) -> slice:
    """Where the rows `at` are among `rows`."""
    return slice(at.start - rows.start, at.stop - rows.start)


def joined(parts: list[Array]) -> Array:
    return parts[0] if len(parts) == 1 else get_array_module(parts[0]).concatenate(parts)


def several(what: str) -> ValueError:
    return ValueError(f"the layer has several adapters, and {what} needs a single one: activate(name) first")
