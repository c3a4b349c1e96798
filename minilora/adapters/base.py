"""The protocol of adapters: what a variant states about itself. A variant is one file beside this one.

A class states its slots (the tensors it adds), its options and their keys in PEFT's config, what its forward keeps,
what it multiplies, and its laws. Attaching, merging, PEFT's files, counting and verifying read these from the
registry, variants(), and name no variant.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import cache
from types import CodeType
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np

from .. import ops
from ..backend import Array, Rng, get_array_module
from ..nn import Costs, Embedding, Gradients, Linear, MetaArray, Module, Parameter

DEFAULT = "lora"  # the variant, where none is named
Law = Callable[[Any, Array, Array, Gradients], float]  # (adapter, x, dy, its gradients) -> relative error


class Slot(NamedTuple):
    """One tensor of an adapter: an attribute that holds a Parameter, and a tensor in PEFT's file."""

    name: str  # of the attribute
    file: str  # how the tensor's name ends in PEFT's file
    shape: tuple[str, ...]  # in the sizes n_in, n_out and r
    trained: bool = True
    shared: bool = False  # one Parameter for all layers, as large as the largest; its name in the file has no layer
    file_shape: tuple[str, ...] = ()  # the shape in the file, where that has another axis, of "1"


class Option(NamedTuple):
    """One hyperparameter: an attribute of the adapter, and a key of PEFT's config."""

    name: str
    key: str
    default: Any  # PEFT's, for a config without the key
    pattern: str = ""  # the key of {regular expression: value} for layers with another value


class Kept(NamedTuple):
    """One array that forward keeps for backward."""

    what: str  # "x" is the layer's own input, which other layers may keep too
    width: str  # numbers for each row of x, in n_in, n_out and r
    why: str  # the formula that reads it
    slots: tuple[str, ...] = ()  # kept while one of these learns, whose gradients need it; (): always kept


class Products(NamedTuple):
    """FLOPs of the matrix products beside the base's, 2 for a multiplication and an addition, for each row of x.

    Formulas in n_in, n_out and r.
    """

    forward: str
    backward: str  # where dx is read
    gradients: Mapping[tuple[str, ...], str]  # {slots: the product that their gradients share, made while one learns}
    without_dx: str = "0"  # the backward where nobody reads dx
    once: str = "0"  # in a forward, whatever the number of rows


class Adapter(Module):
    """A frozen layer, `base`, and the tensors of the class's slots beside it."""

    is_adapter = True
    variant: ClassVar[str] = ""  # its name, that of the file
    base_type: ClassVar[type[Linear] | type[Embedding]]  # the layers that it adapts
    targets: ClassVar[tuple[str, ...]] = ()  # last names of the layers that it adapts by default
    modules_key: ClassVar[str] = ""
    """Where two classes of a variant adapt one type of layer: the option of attach() and key of PEFT's config that
    names the layers of this class, by default its `targets`. The class whose modules_key is "" adapts the others."""
    peft_type: ClassVar[str]
    flags: ClassVar[Mapping[str, Any]] = {}  # keys of PEFT's config that tell it from others of the same peft_type
    lacks: ClassVar[tuple[str, ...]] = ()  # keys that PEFT's configs have in common, and this one does not
    ignored: ClassVar[tuple[str, ...]] = ()  # keys of PEFT's config that say nothing of what the adapter computes
    init_key: ClassVar[str]  # the key that says how it was started
    inits: ClassVar[tuple[Any, ...]] = (True, False)  # the ways to start that leave the base as it is
    tied_head: ClassVar[type[Adapter] | None] = None
    """Of an adapter of the token embedding: the class by which a head that is tied to it uses the same Parameters."""
    options: ClassVar[tuple[Option, ...]]
    start_options: ClassVar[tuple[str, ...]] = ()  # what start() takes beside the options
    slots: ClassVar[tuple[Slot, ...]]
    kept: ClassVar[tuple[Kept, ...]]
    products: ClassVar[Products]
    laws: ClassVar[Mapping[str, Law]] = {}  # what must hold of an adapter whose slots are off their start
    examples: ClassVar[Mapping[str, Mapping[str, Any]]] = {"": {}}  # {what is special: options} that verify checks

    base: Any

    @classmethod
    def check(cls, base: Module, **options: Any) -> None:
        """Raise ValueError, saying what to change, unless start() can make an adapter with these."""
        check_base(base, cls.base_type)
        for name, default in cls.defaults().items():
            if isinstance(default, bool) and not isinstance(options.get(name, default), bool | np.bool_):
                raise ValueError(f"{name} {options[name]!r} is neither True nor False")

    @classmethod
    def start(cls, base: Module, *, rng: Rng, **options: Any) -> Adapter:
        """A new adapter, with which the layer computes what `base` does. Raises ValueError as check() does.

        The options may hold the shared slots, {name: Parameter}, as draw_shared() makes them.
        """
        raise NotImplementedError

    @classmethod
    def draw_shared(cls, bases: Collection[Any], **options: Any) -> dict[str, Parameter]:
        """{name of a shared slot: its Parameter}, large enough for each of these layers."""
        return {}

    @classmethod
    def file_slots(cls, **options: Any) -> tuple[Slot, ...]:
        """The slots that PEFT's file holds under these options; draw_shared() makes the others."""
        return cls.slots

    @classmethod
    def of(cls, base: Module, tensors: Mapping[str, Array | Parameter], **options: Any) -> Self:
        """The adapter with these tensors, {name of a slot: array}; nothing is drawn."""
        adapter = cls.__new__(cls)
        adapter.hold(base, tensors, **options)
        return adapter

    @classmethod
    def without_weights(cls, base: Module, **options: Any) -> Self:
        """The adapter for counting: its tensors have shapes, and take no memory. Shared slots are options, as in
        start()."""
        dtype, sizes = base.weight.data.dtype, sizes_of(base, cls.defaults() | options)  # type: ignore[attr-defined]
        zeros = {slot.name: np.broadcast_to(np.zeros((), dtype), shape(slot.shape, sizes)) for slot in cls.slots}
        return cls.of(base, {name: options.get(name, x) for name, x in zeros.items()}, **options)

    def hold(self, base: Any, tensors: Mapping[str, Array | Parameter], **options: Any) -> None:
        """Freeze the base; keep the tensors, in its dtype and array library, and the options as attributes."""
        base.freeze()
        W = base.weight.data
        xp = get_array_module(W)
        self.base = base
        for slot in self.slots:
            x = tensors[slot.name]
            x = x if isinstance(x, Parameter) else Parameter(xp.asarray(x, dtype=W.dtype), slot.trained)
            setattr(self, slot.name, x)
        for name, default in self.defaults().items():
            value = options.get(name, default)
            # Python numbers: a NumPy float64 would turn float32 products into float64.
            setattr(self, name, value.item() if isinstance(value, np.generic) else value)

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """{name of an option: PEFT's default}"""
        return {option.name: option.default for option in cls.options}

    @classmethod
    def trains_a_matrix(cls) -> bool:
        """Whether it learns matrices of r rows or columns, so that a rank above min(in, out) is wasted."""
        return any(slot.trained and "r" in slot.shape and len(slot.shape) == 2 for slot in cls.slots)

    @property
    def settings(self) -> dict[str, Any]:
        """{name of an option: its value}"""
        return {option.name: getattr(self, option.name) for option in self.options}

    @property
    def weight(self) -> Parameter:
        """The base's: an adapter has its shape."""
        return self.base.weight

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """The base keeps its own path, so that adapting a layer renames nothing: q_proj.weight, q_proj.lora_A."""
        yield prefix, self
        yield from self.base.named_modules(prefix)

    def own_parameters(self) -> dict[str, Parameter]:
        """{name of a slot: its Parameter}"""
        return {slot.name: getattr(self, slot.name) for slot in self.slots}

    def thaw(self) -> None:
        """Let every slot learn that is trained."""
        for slot in self.slots:
            getattr(self, slot.name).trainable = slot.trained

    @property
    def sizes(self) -> dict[str, int]:
        """n_in and n_out of the base, and r where the variant has a rank: the letters of shapes and formulas."""
        return sizes_of(self.base, vars(self))

    def costs(self, x: MetaArray, costs: Costs) -> MetaArray:
        """Those of the base, and `kept` and `products`, without what only frozen slots need."""
        learns = {name for name, p in self.own_parameters().items() if p.trainable}
        y = self.base.costs(x, costs)
        sizes = self.sizes | {"n": y.rows}
        dropped = costs.dropout and bool(getattr(self, "dropout", 0))
        if dropped:
            costs.keep(self, "keep", costs.array(*x.shape), "to drop the same of dx")
        for what, width, why, slots in self.kept:
            if slots and learns.isdisjoint(slots):
                continue
            if what == "x" and dropped:
                costs.keep(self, "x, dropped", costs.array(*x.shape), why)
            elif what in ("x", "ids"):
                costs.keep(self, what, x, why)
            else:
                costs.keep(self, what, costs.array(*y.shape[:-1], number(width, sizes)), why)
        gradients = [formula for slots, formula in self.products.gradients.items() if learns.intersection(slots)]
        forward = f"n * ({self.products.forward})", self.products.once
        dx = self.products.backward if x.needs_dx else self.products.without_dx
        backward = f"n * ({' + '.join(formula for formula in (dx, *gradients) if formula != '0') or 0})"
        costs.multiply(self, "adapter", {f: number(f, sizes) for f in forward}, {backward: number(backward, sizes)})
        return y

    @classmethod
    def join_parts(cls, base: Module, parts: list[Any]) -> Adapter:
        """One adapter on a fused layer, `base`, that computes what its `parts` do: plain, or of this class. Raises
        ValueError where there is none."""
        raise ValueError(
            f"{cls.variant} on parts of a fused layer cannot be written as an adapter on the whole: "
            "attach it to the whole layer instead"
        )

    def merged(self) -> tuple[Array, Array | None]:
        """W and b of a plain layer that computes the same, without dropout."""
        raise NotImplementedError

    def delta(self) -> Array:
        """ΔW, in the shape of W: merged W - W."""
        return self.merged()[0] - self.weight.data

    def factors(self) -> tuple[Array, Array, float] | None:
        """A (r, in), B (out, r) and s with ΔW = s B A, for a W (out, in); None where ΔW is no such product."""
        return None


def is_number(x: Any) -> bool:
    """Is it a finite one, which a float can hold?"""
    return (
        isinstance(x, int | float | np.integer | np.floating)
        and not isinstance(x, bool)
        and bool(-sys.float_info.max <= x <= sys.float_info.max)
    )


def sizes_of(base: Any, options: Mapping[str, Any]) -> dict[str, int]:
    rows, columns = base.weight.data.shape
    n_in, n_out = (rows, columns) if isinstance(base, Embedding) else (columns, rows)
    return {"n_in": n_in, "n_out": n_out, "r": options.get("r", 0)}


def shape(axes: tuple[str, ...], sizes: Mapping[str, int]) -> tuple[int, ...]:
    """("r", "n_in") -> (8, 64)"""
    return tuple(sizes[axis] if axis in sizes else int(axis) for axis in axes)


def number(formula: str, sizes: Mapping[str, int]) -> int:
    """("2 * r * n_in", its sizes) -> 1024"""
    return eval(compiled(formula), {"__builtins__": {}}, dict(sizes))


@cache
def compiled(formula: str) -> CodeType:
    return compile(formula, formula, "eval")


@cache
def variants() -> dict[str, list[type[Adapter]]]:
    """{name: its classes, one for each type of base} of every variant that has a file here."""
    for module in pkgutil.iter_modules(importlib.import_module(__package__).__path__):
        if not module.ispkg:
            importlib.import_module(f".{module.name}", __package__)
    found: dict[str, list[type[Adapter]]] = {}

    def visit(cls: type[Adapter]) -> None:
        if hasattr(cls, "base_type") and not {"base_type", "variant"}.isdisjoint(vars(cls)):
            found.setdefault(cls.variant, []).append(cls)
        for child in cls.__subclasses__():
            visit(child)

    visit(Adapter)
    return dict(sorted(found.items()))


def apart(a: Array, b: Array) -> float:
    """The largest difference, relative to the largest number of a."""
    return float(abs(a - b).max() / abs(a).max())


def dropped(x: Array, p: float, rng: np.random.Generator | None) -> tuple[Array, Array | None]:
    """x after dropout, and the mask, drawn on the host and moved. Without a generator: x itself, and None."""
    if rng is None or p == 0:
        return x, None
    keep = (rng.random(x.shape, dtype=np.float32) >= p) / (1 - p)
    keep = get_array_module(x).asarray(keep, dtype=x.dtype)
    return ops.dropout_forward(x, keep)[0], keep


def check_base(base: Module, kind: type[Module]) -> None:
    """Raise ValueError unless an adapter for a `kind` of layer can go on `base`."""
    if base.is_adapter or base.is_merged:
        raise ValueError("this layer is adapted already: an adapter goes on a plain one")
    if not isinstance(base, kind):
        article = "an" if kind is Embedding else "a"
        raise ValueError(f"this adapter is for {article} {kind.__name__}, and this is of type {type(base).__name__}")


def check_rank(r: Any) -> None:
    if isinstance(r, bool) or not isinstance(r, int | np.integer) or r < 1:
        raise ValueError(f"rank {r!r} is not a whole number from 1 up")


def check_dropout(p: Any) -> None:
    if not is_number(p) or not 0 <= p < 1:
        raise ValueError(f"dropout {p!r} is not a probability below 1")
