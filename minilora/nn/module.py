"""Module, Parameter, Gradients. A module holds parameters and calls `ops`; it never stores an activation.

    y, cache = module.forward(x, inputs, run)       the cache is what backward needs
    dx       = module.backward(dy, cache, grads)    adds the gradients of trainable parameters to grads
    y        = module.costs(x, costs)               for arrays without values: counts what the other two keep and
                                                    multiply (costs.py)

Parameters, cache and gradients are three separate values. The contract of every module:

- The cache alone decides which gradients `backward` computes: freezing or unfreezing after the forward changes nothing,
  except in Checkpointed, which runs its forward again. A cache holds no parameter.
- `backward` may be called again with the same cache, and writes neither to `dy` nor to the cache.
- The dx it returns is a new array that the caller may write to. So is the y of a Linear.
- A gradient that it gives to `grads` is a new array too, which it reads no more: sums are formed in place.
- Where run.needs_dx is False nobody reads dx, and a module may return None for it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any, ClassVar

from ..backend import Array, get_array_module, to_numpy
from ..process import blas_threads, let_heap_grow
from ..quantization import Quantized
from ..spelling import choose_from
from .costs import Costs, MetaArray
from .inputs import Inputs, Pass


@dataclass(eq=False)  # compared and hashed by identity: a tied weight is one key of Gradients
class Parameter:
    """A trainable or frozen array. An optimizer replaces `data`; nothing writes into it.

    `data` that is Quantized is frozen. Raises ValueError for setting it to be trained.
    """

    data: Any  # an Array, or Quantized
    trainable: bool = True

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "trainable" and value and isinstance(self.data, Quantized):
            raise ValueError(
                f"a weight in {self.data.name} has no gradient: train an adapter beside it, or load the model "
                "without quantize"
            )
        if name == "data" and isinstance(value, Quantized):
            super().__setattr__("trainable", False)
        super().__setattr__(name, value)

    @property
    def xp(self) -> ModuleType:
        """The array library of `data`."""
        return self.data.xp if isinstance(self.data, Quantized) else get_array_module(self.data)


class Gradients(dict[Parameter, Array]):
    """{Parameter: its gradient}. Gradients of the same parameter (a tied weight, shards of a batch) are summed. During
    the backward of a decoder it holds that of a Memory too (cross_attention.py)."""

    def add(self, parameter: Parameter, gradient: Array) -> None:
        """Add `gradient` (an array that the caller no longer reads) to that of the parameter, in place."""
        if parameter in self:
            self[parameter] += gradient
        else:
            self[parameter] = gradient

    def __add__(self, other: Gradients) -> Gradients:
        both = {parameter: self[parameter] + other[parameter] for parameter in self.keys() & other.keys()}
        return Gradients({**self, **other, **both})


class Module:
    """The base of all modules. Parameters and modules assigned to its attributes are its parameters and children."""

    is_adapter: ClassVar[bool] = False  # wraps a layer of the model, `base`, and adds own_parameters() to it
    acts_on_some_tokens: ClassVar[bool] = False  # an adapter that can act on the tokens of Inputs.active alone
    reads_text: ClassVar[bool] = False  # an adapter that needs Inputs.text
    is_merged: ClassVar[bool] = False  # a plain layer into which an adapter was merged

    def forward(self, x: Array, inputs: Inputs = Inputs(), run: Pass = Pass()) -> tuple[Any, Any]:
        raise NotImplementedError

    def backward(self, dy: Array, cache: Any, grads: Gradients) -> Any:
        raise NotImplementedError

    def costs(self, x: MetaArray, costs: Costs) -> MetaArray:
        """The y of this x, without values. Records in `costs` what forward keeps, and what both passes multiply."""
        raise NotImplementedError

    def children(self) -> dict[str, Module]:
        """{name: module} of those directly below."""
        return {name: child for name, child in vars(self).items() if isinstance(child, Module)}

    def replace(self, name: str, module: Module) -> None:
        """Put `module` in the place of the child `name`."""
        setattr(self, name, module)

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """(dotted path, module) for this module and everything below it."""
        yield prefix, self
        for name, child in self.children().items():
            yield from child.named_modules(join(prefix, name))

    def named_parameters(self, without: Collection[str] = ()) -> dict[str, Parameter]:
        """{dotted path: Parameter}, without the paths in `without`. A tied parameter has the first of its paths."""
        found: dict[Parameter, str] = {}
        for prefix, module in self.named_modules():
            for name, value in vars(module).items():
                if isinstance(value, Parameter) and (path := join(prefix, name)) not in without:
                    found.setdefault(value, path)
        return {path: parameter for parameter, path in found.items()}

    def own_parameters(self) -> dict[str, Parameter]:
        """{name: Parameter} of the parameters that an adapter adds to its base; {} for other modules."""
        return {}

    def base_parameters(self, without: Collection[str] = ()) -> dict[str, Parameter]:
        """named_parameters() without those that adapters add."""
        added = {p for _, module in self.named_modules() for p in module.own_parameters().values()}
        return {path: p for path, p in self.named_parameters(without).items() if p not in added}

    def parameters(self) -> Iterator[Parameter]:
        """The parameters without their paths, which is faster. A tied one comes once for each of its uses."""
        for value in vars(self).values():
            if isinstance(value, Parameter):
                yield value
        for child in self.children().values():
            yield from child.parameters()

    def trainable_parameters(self) -> dict[str, Parameter]:
        """{dotted path: Parameter} of those that are trained."""
        return {path: parameter for path, parameter in self.named_parameters().items() if parameter.trainable}

    @property
    def trainable(self) -> bool:
        """Whether a parameter here or below is trained."""
        return any(parameter.trainable for parameter in self.parameters())

    def above(self, run: Pass) -> Pass:
        """`run` for the module above this one: if this one is trained, that one's dx is read."""
        return run.with_dx() if not run.needs_dx and self.trainable else run

    def freeze(self) -> None:
        for parameter in self.parameters():
            parameter.trainable = False

    def __getitem__(self, path: str) -> Module:
        """The module at a dotted path: model["block_0.attention.q_proj"]."""
        module = self
        for name in filter(None, path.split(".")):
            if name not in module.children():
                raise KeyError(
                    f"no module {path!r}: nothing is called {name!r}, {choose_from(name, module.children())}"
                )
            module = module.children()[name]
        return module

    def __setitem__(self, path: str, module: Module) -> None:
        parent, _, name = path.rpartition(".")
        if not name:
            raise KeyError(f"{path!r} names no module to replace")
        self[path]  # raises KeyError where there is nothing to replace
        self[parent].replace(name, module)

    def state_dict(self) -> dict[str, Array]:
        """{dotted path: array} of all parameters."""
        return {path: parameter.data for path, parameter in self.named_parameters().items()}

    def load_state_dict(self, state: dict[str, Array]) -> None:
        """Load all arrays, each in its parameter's dtype.

        Raises ValueError, with nothing loaded, for a missing or unexpected array, or one of another shape.
        """
        check_fit(state, shapes_of(self.state_dict()))
        for path, parameter in self.named_parameters().items():
            parameter.data = converted(state[path], parameter.xp, parameter.data.dtype)

    def to(self, xp: ModuleType) -> None:
        """Move every parameter to the array library `xp` (see load_backend)."""
        for parameter in self.named_parameters().values():
            parameter.data = converted(parameter.data, xp, parameter.data.dtype)

    def astype(self, dtype: Any) -> None:
        """Convert every parameter, such as to float64 for a gradient check."""
        for parameter in self.named_parameters().values():
            parameter.data = parameter.data.astype(dtype)


def converted(x: Any, xp: ModuleType, dtype: Any) -> Any:
    """An array in this library and dtype; a Quantized one, whose codes stay, is then decoded to it."""
    return x.to(xp).astype(dtype) if isinstance(x, Quantized) else xp.asarray(to_numpy(x), dtype=dtype)


def join(*names: str) -> str:
    """The dotted path of the names, without the empty ones."""
    return ".".join(filter(None, names))


def check_names(given: Iterable[str], wanted: Iterable[str]) -> None:
    """Raise ValueError unless `given` and `wanted` are the same names."""
    missing, unexpected = sorted(set(wanted) - set(given)), sorted(set(given) - set(wanted))
    if missing or unexpected:
        lists = [f"{what}: {', '.join(n[:5])}{' ...' * (len(n) > 5)}" for what, n in
                 (("missing", missing), ("unexpected", unexpected)) if n]  # fmt: skip
        raise ValueError("the names of the tensors do not fit; " + "; ".join(lists))


def check_fit(given: Mapping[str, Array], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise ValueError unless `given` has arrays of exactly these names and shapes."""
    check_names(given, shapes)
    for name, shape in shapes.items():
        if given[name].shape != shape:
            raise ValueError(f"{name} has shape {given[name].shape}, and {shape} is needed")


def shapes_of(arrays: Mapping[str, Array]) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in arrays.items()}


class Sequential(Module):
    """The layers of a whole model, one after another; `backward` returns no dx.

    Layers below the first trainable one keep no cache: nothing needs their gradients. The backward starts at the last
    layer and ends where the caches do. With run.kv_cache, or without run.needs_cache, no layer keeps a cache.
    """

    def __init__(self, layers: dict[str, Module]) -> None:
        self.layers = layers

    def children(self) -> dict[str, Module]:
        return self.layers

    def replace(self, name: str, module: Module) -> None:
        self.layers[name] = module

    def first_trainable(self) -> int:
        """The index of the first trainable layer; the number of layers if all are frozen."""
        layers = self.layers.values()
        return next((i for i, layer in enumerate(layers) if layer.trainable), len(layers))

    @blas_threads()
    def forward(self, x: Array, inputs: Inputs = Inputs(), run: Pass = Pass()) -> tuple[Array, list[Any]]:
        let_heap_grow()
        layers, caches = list(self.layers.values()), []
        first = self.first_trainable() if run.needs_cache and run.kv_cache is None else len(layers)
        below = run._replace(memo={}, needs_cache=False)
        run = below._replace(needs_cache=True)
        for layer in layers[:first]:
            x, _ = layer.forward(x, inputs, below)
        for i, layer in enumerate(layers[first:]):
            x, cache = layer.forward(x, inputs, run if i else run._replace(needs_dx=False))
            caches.append(cache)
        return x, caches

    @blas_threads()
    def backward(self, dy: Array, caches: list[Any], grads: Gradients) -> None:
        for layer, cache in zip(reversed(self.layers.values()), reversed(caches), strict=False):
            dy = layer.backward(dy, cache, grads)

    def costs(self, x: MetaArray, costs: Costs) -> MetaArray:
        first = self.first_trainable()
        for i, layer in enumerate(self.layers.values()):
            if i < first:
                below = costs.empty()
                x = layer.costs(x, below)
                costs.forward += below.forward
            else:
                x = layer.costs(replace(x, needs_dx=False) if i == first else x, costs)
        return x
