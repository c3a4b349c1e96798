"""The protocol of adapters: what a variant says of itself. A variant is one file beside this one.

A class states its slots (the tensors it adds), how PEFT's config says it, what its forward keeps and multiplies, and
its laws. Attaching, merging, PEFT's files, counting and verifying ask these questions of variants() and name none.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np

from .. import ops
from ..backend import Array, get_array_module
from ..nn import Embedding, Gradients, Linear, Module, Parameter

Law = Callable[[Any, Array, Array, Gradients], float]  # (adapter, x, dy, its gradients) -> relative error


class Slot(NamedTuple):
    """One tensor of an adapter: an attribute that holds a Parameter, and a tensor in PEFT's file."""

    name: str  # of the attribute
    file: str  # how the tensor's name ends in PEFT's file
    shape: tuple[str, str] | tuple[str]  # in the sizes n_in, n_out and r
    trained: bool = True
    shared: bool = False  # one for all layers, as large as the largest needs; its name in the file has no layer
    file_shape: tuple[str, ...] = ()  # the shape in the file, where that has another axis, of "1"


class Option(NamedTuple):
    """One hyperparameter: an attribute of the adapter, and a key of PEFT's config."""

    name: str
    key: str
    default: Any  # of PEFT, where the config does not have the key
    pattern: str = ""  # the key of {regular expression: value} for layers with another value


class Kept(NamedTuple):
    """One array that forward keeps for backward."""

    what: str  # "x" is the layer's own input, which others may keep too
    width: str  # numbers in a row of it, in n_in, n_out and r
    why: str  # the formula that reads it
    slot: str = ""  # the slot whose gradient needs it: not kept while that is frozen; "": always kept


class Products(NamedTuple):
    """FLOPs of matrix products, 2 for a multiplication and an addition, in n_in, n_out and r: for each row of x."""

    forward: str
    backward: str  # whatever is frozen
    gradients: Mapping[str, str]  # {slot: for its gradient}
    once: str = "0"  # in a forward, whatever the number of rows


class Adapter(Module):
    """A frozen layer, `base`, and the tensors of the class's slots beside it."""

    is_adapter = True
    variant: ClassVar[str]  # its name, that of the file
    base_type: ClassVar[type[Linear] | type[Embedding]]  # what it adapts
    peft_type: ClassVar[str]
    flags: ClassVar[Mapping[str, Any]] = {}  # keys of PEFT's config that tell it from others of the same peft_type
    options: ClassVar[tuple[Option, ...]]
    slots: ClassVar[tuple[Slot, ...]]
    kept: ClassVar[tuple[Kept, ...]]
    products: ClassVar[Products]
    laws: ClassVar[Mapping[str, Law]] = {}

    base: Any

    @classmethod
    def start(cls, base: Module, *, rng: np.random.Generator, **options: Any) -> Adapter:
        """A fresh adapter, with which the layer computes what `base` does. Raises ValueError as check() does."""
        raise NotImplementedError

    @classmethod
    def check(cls, base: Module, **options: Any) -> None:
        """Raise ValueError, saying what to change, unless start() can make an adapter of these."""
        check_base(base, cls.base_type)

    @classmethod
    def of(cls, base: Module, tensors: Mapping[str, Array | Parameter], **options: Any) -> Self:
        """The adapter with these tensors, {name of a slot: array}, and without a random start."""
        adapter = cls.__new__(cls)
        adapter.hold(base, tensors, **options)
        return adapter

    @classmethod
    def without_weights(cls, base: Module, **options: Any) -> Self:
        """The adapter for counting: its tensors have shapes, and take no memory."""
        dtype, sizes = base.weight.data.dtype, sizes_of(base, options)  # type: ignore[attr-defined]
        zeros = {slot.name: np.broadcast_to(np.zeros((), dtype), shape(slot.shape, sizes)) for slot in cls.slots}
        return cls.of(base, zeros, **options)

    def hold(self, base: Any, tensors: Mapping[str, Array | Parameter], **options: Any) -> None:
        """Freeze the base; keep the tensors, in its dtype and array library, and the options as attributes."""
        base.freeze()
        W = base.weight.data
        xp = get_array_module(W)
        self.base = base
        for slot in self.slots:
            x = tensors[slot.name]
            setattr(
                self,
                slot.name,
                x if isinstance(x, Parameter) else Parameter(xp.asarray(x, dtype=W.dtype), slot.trained),
            )
        for option in self.options:
            value = options.get(option.name, option.default)
            # Python numbers: a NumPy float64 would turn float32 products into float64.
            setattr(self, option.name, value.item() if isinstance(value, np.generic) else value)

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

    @property
    def sizes(self) -> dict[str, int]:
        """n_in and n_out of the base, and r where the variant has a rank: what shapes and formulas are written in."""
        return sizes_of(self.base, vars(self))

    @classmethod
    def join_parts(cls, base: Module, parts: list[Any]) -> Adapter:
        """One adapter on a fused layer, `base`, that computes what its `parts` do, some of them of this class. Raises
        ValueError where there is none."""
        raise ValueError(f"{cls.variant} on parts of a fused layer cannot be written as an adapter on the whole")

    def merged(self) -> tuple[Array, Array | None]:
        """W and b of a plain layer that computes the same, without dropout."""
        raise NotImplementedError

    def delta(self) -> Array:
        """ΔW, in the shape of W: merged W - W."""
        return self.merged()[0] - self.weight.data


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


@cache
def variants() -> dict[str, list[type[Adapter]]]:
    """{name: its classes, one for each type of base} of every variant that has a file here."""
    for module in pkgutil.iter_modules(importlib.import_module(__package__).__path__):
        if not module.ispkg:
            importlib.import_module(f".{module.name}", __package__)
    found: dict[str, list[type[Adapter]]] = {}

    def visit(cls: type[Adapter]) -> None:
        if "base_type" in vars(cls):
            found.setdefault(cls.variant, []).append(cls)
        for child in cls.__subclasses__():
            visit(child)

    visit(Adapter)
    return found


def dropped(x: Array, p: float, rng: np.random.Generator | None) -> tuple[Array, Array | None]:
    """x after dropout, and the mask, drawn on the host and moved; without a generator x itself: randomness is an
    argument."""
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
