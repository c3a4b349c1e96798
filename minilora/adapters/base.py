"""The protocol of adapters: what a variant states about itself. A variant is one file in this folder.

A file has a class for each type of layer that its variant adapts. Attaching, merging, PEFT's files, counting and
verifying find the classes by variants() (registry.py) and read what they state, in the records of statements.py. Each
states, with the LoRA of a Linear (lora.py, LoRALinear) as the example and in the order of the class Adapter below:

    layers      variant = "lora", base_type = Linear, targets = "q_proj", "v_proj"
    tensors     slots = Slot("lora_A", "lora_A.weight", ("r", "n_in")), Slot("lora_B", "lora_B.weight", ("n_out", "r"))
    options     options = Option("r", "r", 8, "rank_pattern"), Option("alpha", "lora_alpha", 8.0, "alpha_pattern"), ...
    PEFT        peft_type = "LORA", keys = Keys("init_lora_weights")
    memory      kept = Kept("x", "n_in", "dA = dhᵀ x", ("lora_A",)), Kept("h", "r", "dB = s dyᵀ h", ("lora_B",))
    FLOPs       products = Products(forward="2 * r * (n_in + n_out)", ...)
    checks      laws = {"Bᵀ dB = dA Aᵀ": exchange}, examples = {"": {"r": 3, "alpha": 5}}

    start       draws A, sets B = 0, and returns the adapter
    path_forward    s (x Aᵀ) Bᵀ, and a cache: what `kept` says, and the dropout mask
    path_backward   adds dA and dB to the gradients and returns dx of that path, by ops/lora.py
                    Both are of a Parallel (parallel.py), whose path is added to the base's y. Others state forward and
                    backward (ia3.py)
    factors     A, B and s of ΔW = s B A. If ΔW is not such a product: delta, ΔW itself; if b changes: merged

Few need the rest, each for the reason given here:

    start_options   start() has arguments that are not options, and not saved               lora_base.py
    inits           each class supports only some values of `init`                          lora_base.py
    modules_key     two classes adapt one type of layer, and a list says which of them      ia3.py
    tied_head       an embedding's adapter can serve the tied head too; always_tied: does   lora.py, token_rows.py
    companion       it can be stored in the config and the file of another variant          token_rows.py

    form            the options decide which slots there are                                lokr.py
    sizes_for       its shapes have letters other than n_in, n_out and r                    token_rows.py
    rank            r is not the option `r`                                                 adalora.py
    check           there is more to refuse than a wrong layer or option                    dora.py
    prepare         how a layer starts depends on the whole model, or on data               lora_base.py
    computed        a slot is not in the file, as it follows from the base                  lora_residual.py
    replaces_weight A and B are added to another weight than the layer's: weight_for        lora_loftq.py
    draw_shared     all layers share a slot, drawn once                                     vera.py
    fit_options     training needs a penalty, or a callback after each step                 adalora.py
    in_file         PEFT has another form of it                                             lora_residual.py
    mergeable       it acts on some tokens only, so that no weight can hold it              alora.py
    join_parts      those on parts of a fused layer can be written as one on the whole      lora.py

What all have follows in Adapter, and behind it what several variants use: sizes_of, uniform, and the errors
relative_difference and same_share for laws. vera.py is a whole variant on a page. dora.py shows how one is made from
another: its class DoRA, a LoRA, has one more slot, for the magnitude, one more option, "use_dora": True among its keys,
its own kept, products and laws; a start that sets the magnitude beside LoRA's A and B; its own forward, backward and
merged; and no factors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar, Self

import numpy as np

from ..backend import Array, Rng, generator
from ..nn import Convolution, Costs, Embedding, FusedLinear, Gradients, LayerNorm, Linear, MetaArray, Module, Parameter
from ..quantization import dense
from .statements import Companion, Kept, Keys, Option, Products, Slot, number, shape, simplified

Law = Callable[[Any, Array, Array, Gradients], float]  # (adapter, x, dy, its gradients) -> relative error


class Adapter(Module):
    """A frozen layer, `base`, and the tensors of the class's slots."""

    is_adapter = True
    base: Any

    # ---- what every variant states ----

    variant: ClassVar[str] = ""  # the name of its file
    base_type: ClassVar[
        type[Linear] | type[Embedding] | type[LayerNorm] | type[Convolution]
    ]  # the layers that the class adapts
    targets: ClassVar[tuple[str, ...]] = ()
    """Last names of the layers that it adapts by default. If no class of a variant has any: all that they can adapt."""
    slots: ClassVar[tuple[Slot, ...]]
    options: ClassVar[tuple[Option, ...]]
    peft_type: ClassVar[str]
    keys: ClassVar[Keys]
    kept: ClassVar[tuple[Kept, ...]]
    products: ClassVar[Products]
    laws: ClassVar[Mapping[str, Law]] = {}  # identities for any values of the slots; checked off their start
    examples: ClassVar[Mapping[str, Mapping[str, Any]]] = {"": {}}  # {what is special: options} that verify checks

    @classmethod
    def start(cls, base: Module, *, rng: Rng, **options: Any) -> Adapter:
        """A new adapter, with which the layer computes what `base` does. Raises ValueError as check() does.

        The Parameters of shared slots, as draw_shared() makes them, are further keywords.
        """
        raise NotImplementedError

    def merged(self) -> tuple[Array, Array | None]:
        """W and b of a plain layer that computes the same, without dropout: W + ΔW by delta(), and b as it is. One that
        does not change is the base's own array, not a copy."""
        bias = getattr(self.base, "bias", None)
        return self.dense() + self.delta(), None if bias is None else bias.data

    def delta(self) -> Array:
        """ΔW, in the shape of W: s B A, else merged W - W. A class implements one of factors(), delta(), merged()."""
        factors = self.factors()
        if factors is None:
            return dense(self.merged()[0]) - self.dense()
        A, B, s = factors
        return (s * (B @ A)).reshape(self.weight.data.shape)  # of a convolution, kernels

    def factors(self) -> tuple[Array, Array, float] | None:
        """A (r, n), B (m, r) and s with ΔW = s B A, for a W (m, n), or kernels W as rows; None if ΔW is not such a
        product."""
        return None

    # ---- what few need ----

    start_options: ClassVar[tuple[str, ...]] = ()  # arguments of start() besides the options; they are not saved
    inits: ClassVar[tuple[str, ...]] = ()
    """The values of the start option `init` that this class supports, if a variant has several classes for them."""
    modules_key: ClassVar[str] = ""
    """If two classes of a variant adapt one type of layer: the option of attach(), and key of PEFT's config, that lists
    the layers of this class; if it is not given, they are its `targets`. Other layers get the class without a
    modules_key."""
    tied_head: ClassVar[type[Adapter] | None] = None
    """For an adapter of the token embedding: the class for a head that is tied to it, which uses the same Parameters,
    with ensure_weight_tying."""
    always_tied: ClassVar[bool] = False  # use tied_head without ensure_weight_tying too
    companion: ClassVar[Companion | None] = None  # how it is stored in the config and file of another variant
    mergeable: Any = True  # False if the adapter acts on some tokens only: no single weight can
    replaces_weight: ClassVar[bool] = False  # True if weight_for() makes a new weight of a W in full precision

    @classmethod
    def form(cls, base: Any, **options: Any) -> type[Adapter]:
        """The class for this layer with these options: itself, unless they decide which slots there are."""
        return cls

    @classmethod
    def sizes_for(cls, base: Any, options: Mapping[str, Any]) -> dict[str, int]:
        """{letter: its value}: n_in and n_out of the base, r where the variant has a rank, and the other letters of the
        class's shapes and formulas."""
        return sizes_of(base) | {"r": cls.rank(options)}

    @classmethod
    def check(cls, base: Module, **options: Any) -> None:
        """Raise ValueError, saying what to change, unless start() can make an adapter with these."""
        if base.is_adapter or base.is_merged:
            raise ValueError("this layer is adapted already: an adapter goes on a plain one")
        if not isinstance(base, cls.base_type):
            kind = "an Embedding" if cls.base_type is Embedding else f"a {cls.base_type.__name__}"
            raise ValueError(f"this adapter is for {kind}, and this is of type {type(base).__name__}")
        for option in cls.options:
            option.check(options.get(option.name, option.default))

    @classmethod
    def prepare(
        cls, model: Module, layers: Mapping[str, Any], options: Mapping[str, dict[str, Any]]
    ) -> dict[str, dict[str, Any]]:
        """{path: options for start()} from `options`, {path: those given to attach()}. For variants in which a layer's
        start depends on the whole model or on data. A path left out gets no adapter. The model is not changed."""
        return dict(options)

    @classmethod
    def computed(cls, base: Any, **options: Any) -> dict[str, Array]:
        """{name of a slot: array} of the slots that the file lacks: they follow from the base and the options."""
        return {}

    @classmethod
    def weight_for(cls, layer: Any, **options: Any) -> Parameter:
        """The weight that the slots of a file belong to: the layer's own, unless the class makes another of it. The
        layer is not changed. Raises ValueError if the weight cannot be made of this layer."""
        W: Parameter = layer.weight
        return W

    @classmethod
    def draw_shared(cls, bases: Collection[Any], **options: Any) -> dict[str, Parameter]:
        """{name of a shared slot: its Parameter}, large enough for each of these layers."""
        return {}

    @classmethod
    def rank(cls, options: Mapping[str, Any]) -> int:
        """The size r of an adapter's tensors, where the variant has one."""
        r: int = options.get("r", 0)
        return r

    @classmethod
    def fit_options(cls, model: Module, steps: int) -> dict[str, Any]:
        """Arguments of training.fit for training the class's adapters on `model` for so many steps: a penalty, or a
        callback after each step."""
        return {}

    def in_file(self) -> Adapter:
        """The adapter that a file holds for this one: itself, unless PEFT has another form of it."""
        return self

    @classmethod
    def join_parts(cls, base: FusedLinear, parts: list[Any]) -> Adapter:
        """One adapter on a fused layer, `base`, that computes what its `parts` do, some of them of this class. Raises
        ValueError where there is none."""
        raise ValueError(
            f"{cls.variant} on parts of a fused layer cannot be written as an adapter on the whole: "
            "attach it to the whole layer instead"
        )

    # ---- what all have ----

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
        dtype, sizes = base.weight.data.dtype, cls.sizes_for(base, cls.defaults() | options)  # type: ignore[attr-defined]
        zeros = {slot.name: np.broadcast_to(np.zeros((), dtype), shape(slot.shape, sizes)) for slot in cls.slots}
        return cls.of(base, {name: options.get(name, x) for name, x in zeros.items()}, **options)

    def hold(self, base: Any, tensors: Mapping[str, Array | Parameter], **options: Any) -> None:
        """Freeze the base; keep the tensors, in its dtype and array library, and the options as attributes."""
        base.freeze()
        W, xp = base.weight.data, base.weight.xp
        self.base = base
        for slot in self.slots:
            x = tensors[slot.name]
            x = x if isinstance(x, Parameter) else Parameter(xp.asarray(x, dtype=W.dtype), slot.trained)
            setattr(self, slot.name, x)
        for name, default in self.defaults().items():
            value = options.get(name, default)
            plain = tuple(map(python_number, value)) if isinstance(default, tuple) else python_number(value)
            setattr(self, name, plain)

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """{name of an option: PEFT's default}"""
        return {option.name: option.default for option in cls.options}

    @classmethod
    def trains_a_matrix(cls) -> bool:
        """Whether it trains matrices of r rows or columns, so that a rank above min(in, out) is wasted."""
        return any(slot.trained and "r" in slot.shape and len(slot.shape) == 2 for slot in cls.slots)

    @property
    def settings(self) -> dict[str, Any]:
        """{name of an option: its value}"""
        return {option.name: getattr(self, option.name) for option in self.options}

    @property
    def weight(self) -> Parameter:
        """The base's: an adapter has its shape."""
        return self.base.weight

    def dense(self) -> Array:
        """W as an array, also if the base is quantised."""
        W: Array = self.base.dense()
        return W

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """The base keeps its own path, so that adapting a layer renames nothing: q_proj.weight, q_proj.lora_A."""
        yield prefix, self
        yield from self.base.named_modules(prefix)

    def own_parameters(self) -> dict[str, Parameter]:
        """{name of a slot: its Parameter}"""
        return {slot.name: getattr(self, slot.name) for slot in self.slots}

    @property
    def learns(self) -> frozenset[str]:
        """The names of the slots that are trainable now."""
        return frozenset(name for name, parameter in self.own_parameters().items() if parameter.trainable)

    @property
    def sizes(self) -> dict[str, int]:
        """The letters of shapes and formulas."""
        return self.sizes_for(self.base, vars(self))

    def positions(self, y: MetaArray) -> tuple[int, ...]:
        """The axes of the base's y that count its rows."""
        return y.shape[:-1]

    def costs(self, x: MetaArray, costs: Costs) -> MetaArray:
        """The base's costs, and `kept` and `products`, without what only frozen slots need."""
        learns = self.learns
        y = self.base.costs(x, costs)
        drops = costs.dropout and bool(getattr(self, "dropout", 0))
        rows = self.positions(y)
        sizes = self.settings | self.sizes | {"n": math.prod(rows), "drops": drops}
        if drops:
            costs.keep(self, "keep", costs.array(*x.shape), "to drop the same of dx")
        held = {"x": costs.array(*x.shape) if drops else x, "ids": x}
        for what, width, why, slots, once in self.kept:
            if slots and learns.isdisjoint(slots):
                continue
            if what not in held and (n := number(width, sizes)):
                held[what] = costs.array(*(() if once else rows), n)
            if what in held:
                costs.keep(self, "x, dropped" if drops and what == "x" else what, held[what], why)

        false = frozenset(name for name, value in sizes.items() if value is False)
        true = frozenset(name for name, value in sizes.items() if value is True)

        def of_learned(products: Mapping[tuple[str, ...], str]) -> list[str]:
            return [formula for slots, formula in products.items() if learns.intersection(slots)]

        def each_row(*formulas: str) -> str:
            return f"n * ({' + '.join(f for f in (simplified(f, true, false) for f in formulas) if f != '0') or 0})"

        forward = each_row(self.products.forward), simplified(self.products.once, true, false)
        dx = self.products.backward if x.needs_dx else self.products.without_dx
        all_rows = self.products.backward_once, *of_learned(self.products.gradients_once)
        backward = each_row(dx, *of_learned(self.products.gradients)), *(simplified(f, true, false) for f in all_rows)
        costs.multiply(self, "adapter", *({f: number(f, sizes) for f in formulas} for formulas in (forward, backward)))
        return replace(y, needs_dx=True) if learns and not y.needs_dx else y


@contextmanager
def preserve_trainable(base: Module) -> Iterator[None]:
    """Keep parameters of the base trainable that a new adapter, made in this block, would freeze."""
    trainable = [parameter for parameter in base.parameters() if parameter.trainable]
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.trainable = True


def python_number(x: Any) -> Any:
    """x, if it is a NumPy scalar as one of Python: a float64 would turn float32 products into float64."""
    return x.item() if isinstance(x, np.generic) else x


def sizes_of(base: Any) -> dict[str, int]:
    """n_in and n_out of a layer; of a norm both are the length of its gain."""
    first, last = base.weight.data.shape[0], base.weight.data.shape[-1]
    n_in, n_out = (first, last) if isinstance(base, Embedding) else (last, first)
    return {"n_in": n_in, "n_out": n_out}


def smaller_side(shape: tuple[int, ...]) -> int:
    """min(out, in) of a W of this shape, the highest rank that it has; of kernels as a matrix over windows."""
    return min(shape[0], math.prod(shape[1:]))


def relative_difference(a: Array, b: Array) -> float:
    """The largest difference, relative to the largest entry of a."""
    return float(abs(a - b).max() / abs(a).max())


def same_share(adapter: Adapter, x: Array, dy: Array, grads: Gradients) -> float:
    """⟨p, dp⟩ is the same for every trained slot p if all are factors of one product: multiplying one by c and another
    by 1/c changes no output."""
    terms = [p.data * grads[p] for p in adapter.own_parameters().values() if p.trainable]
    shares, scales = (np.array([float(x.sum()) for x in each]) for each in (terms, map(abs, terms)))
    return float(np.ptp(shares) / scales.max())


def uniform(cls: type[Adapter], base: Any, zero: str, rng: Rng, **options: Any) -> dict[str, Array]:
    """{slot: array}: the slot `zero` is 0, the others are uniform within ±1/√(number of columns), PEFT's Kaiming start.
    Drawn in their order."""
    rng, sizes = generator(rng), cls.sizes_for(base, cls.defaults() | options)
    shapes = {slot.name: shape(slot.shape, sizes) for slot in cls.slots}
    return {
        name: np.zeros(size) if name == zero else rng.uniform(-1, 1, size) / math.sqrt(size[1])
        for name, size in shapes.items()
    }
