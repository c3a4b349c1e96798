"""LoRA: a frozen layer, and a low-rank path beside it (Hu et al., 2021). The maths is in ops/lora.py, and how A and B
begin in initialisations/."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np

from .. import ops
from ..backend import Array, Rng, generator, get_array_module, to_numpy
from ..data import Batch
from ..nn import Embedding, FusedLinear, Gradients, Linear, Module, Parameter, Part, Pass
from ..nn.optim import SGD
from ..process import blas_threads
from ..quantization import Quantized, format_named
from ..spelling import choose_from
from .base import (
    Adapter,
    Kept,
    Keys,
    Law,
    Option,
    Parallel,
    Products,
    Slot,
    as_it_learns,
    dropped,
    relative_difference,
    variants,
)
from .initialisations import inits
from .initialisations.loftq import rounded
from .initialisations.start import Data, Start
from .recording import record

INITS = inits()
LOFTQ_KEYS = "loftq_config.loftq_bits", "loftq_config.loftq_iter"
R, ALPHA = 8, 16.0  # by default


def exchange(adapter: LoRA, x: Array, dy: Array, grads: Gradients) -> float:
    """Bᵀ dB = dA Aᵀ: an invertible factor that moves from B to A changes no output."""
    A, B = adapter.lora_A, adapter.lora_B
    return relative_difference(B.data.T @ grads[B], grads[A] @ A.data.T)


def gradient_at_the_start(adapter: LoRA, x: Array, dy: Array, grads: Gradients) -> float:
    grads = at_the_start(adapter, x, dy)
    return float(abs(grads[adapter.lora_A]).max() / abs(grads[adapter.lora_B]).max())


def first_step(adapter: LoRA, x: Array, dy: Array, grads: Gradients) -> float:
    grads = at_the_start(adapter, x, dy)
    A, G, s, eta = adapter.lora_A.data, ops.linear_gradients(dy, x), adapter.scaling, 0.37
    SGD(adapter.trainable_parameters(), lr=eta).step(grads)
    return relative_difference(adapter.delta(), -eta * s**2 * G @ A.T @ A)


def at_the_start(adapter: LoRA, x: Array, dy: Array) -> Gradients:
    adapter.lora_B.data = 0 * adapter.lora_B.data
    grads = Gradients()
    adapter.backward(dy, adapter.forward(x)[1], grads)
    return grads


class LoRA(Adapter):
    """s B A beside a frozen layer:         A (r, in)   B (out, r)   s = α/r, or α/√r (rsLoRA)"""

    variant = "lora"
    peft_type = "LORA"
    keys = Keys(
        init="init_lora_weights",
        # PEFT 0.21.2, tuners/lora/layer.py: these leave W as it is
        inits=(True, False, "gaussian", "eva", "orthogonal", "mica"),
        fixed={
            **{"use_dora": False, "lora_bias": False, "use_qalora": False, "use_bdlora": None},
            **{"layer_replication": None, "target_parameters": None},
            **{"alora_invocation_tokens": None, "kasa_config": None, "arrow_config": None, "monteclora_config": None},
            **{"velora_config": None, "megatron_config": None},
        },
        ignored=(
            *("eva_config", "corda_config", "loftq_config", *LOFTQ_KEYS, "lora_ga_config"),
            *("megatron_core", "qalora_group_size"),
        ),
        beside=("trainable_token_indices",),
    )
    options: ClassVar[tuple[Option, ...]] = (
        Option("r", "r", 8, "rank_pattern"),
        Option("alpha", "lora_alpha", 8.0, "alpha_pattern"),  # PEFT's default for a missing key; __init__'s is 16
        Option("dropout", "lora_dropout", 0.0),
        Option("rslora", "use_rslora", False),
    )
    start_options: ClassVar[tuple[str, ...]] = ("init", "data", "rho")
    inits: ClassVar[tuple[str, ...]] = ("uniform", "gaussian")
    unread: ClassVar[tuple[str, ...]] = ("rho", "quantize", "rounds")
    """What attach() takes for other classes of the variant, or for the layers as a whole, and start() leaves out."""
    laws: ClassVar[dict[str, Law]] = {"Bᵀ dB = dA Aᵀ": exchange}
    examples: ClassVar[dict[str, dict[str, Any]]] = {
        "": {"r": 3, "alpha": 5},
        ", rsLoRA": {"r": 3, "alpha": 5, "rslora": True},
    }
    lora_A: Parameter
    lora_B: Parameter
    r: int
    alpha: float
    dropout: float
    rslora: bool

    @property
    def scaling(self) -> float:
        return scale(self.r, self.alpha, self.rslora)

    @classmethod
    def start(cls, base: Module, *, rng: Rng, **options: Any) -> Any:
        given = {"rng": rng, **options}
        return cls(base, **{name: value for name, value in given.items() if name not in cls.unread})  # type: ignore[call-arg]

    @classmethod
    def check(cls, base: Module, *, data: Any = None, rho: float = 2.0, **options: Any) -> None:
        super().check(base, **options)
        init = options.get("init", cls.inits[0])
        if init not in cls.inits:
            for other in variants()[cls.variant]:
                if init in other.inits:
                    kind = other.base_type.__name__
                    raise ValueError(f"init {init!r} is of {other.__name__}, for a {kind}, and not of {cls.__name__}")
            known = [name for other in variants()[cls.variant] for name in other.inits]
            raise ValueError(f"{cls.variant} has no init {init!r}: {choose_from(init, known)}")

    @classmethod
    def prepare(
        cls, model: Module, layers: Mapping[str, Any], options: Mapping[str, dict[str, Any]]
    ) -> dict[str, dict[str, Any]]:
        """Run the model over `data` where the init needs that; redistribute the ranks of "eva"."""
        given = next(iter(options.values()))
        init, data, rho = given.get("init", cls.inits[0]), given.get("data"), given.get("rho", 2.0)
        needs = INITS[init].needs
        if not needs:
            return {path: {**given, "data": None} for path, given in options.items()}
        if data is None:
            raise ValueError(f"init {init!r} needs the {needs} of the layers: data=, a batch or several")
        seen = record(model, layers, [data] if isinstance(data, Batch) else data, needs)
        options = {path: {"r": R, "alpha": ALPHA, **given, "data": seen[path]} for path, given in options.items()}
        if redistribute := INITS[init].redistribute:
            before = {path: given["r"] for path, given in options.items()}
            after = {path: r for path, r in redistribute(before, seen, rho).items() if r}
            alphas = {path: options[path]["alpha"] * r / before[path] for path, r in after.items()}  # s = α/r stays
            options = {path: {**options[path], "r": r, "alpha": alphas[path]} for path, r in after.items()}
        return options

    @classmethod
    def begin(
        cls, base: Module, init: str, r: int, s: float, rng: Rng | None = None, data: Data = Data(), **own: Any
    ) -> Start:
        """A and B, by the function of initialisations/ that is called `init`, with options of its own. Raises
        ValueError as it does."""
        W = to_numpy(base.dense())  # type: ignore[attr-defined]
        W = W.reshape(len(W), -1)  # kernels as a matrix over windows
        with blas_threads():
            start = INITS[init].make(W, r, s, data._replace(rng=rng), **own)
        if not (np.isfinite(start.A).all() and np.isfinite(start.B).all()):
            raise ValueError(f"init {init!r} gives numbers that are not finite: are those of W and of the data?")
        return start


def scale(r: int, alpha: float, rslora: bool) -> float:
    """s = α/r, or α/√r"""
    return alpha / (math.sqrt(r) if rslora else r)


def in_blocks(fused: FusedLinear, parts: list[np.ndarray | None]) -> np.ndarray:
    """B of the layer `fused` (Σ out, Σ r), from the B (out, r) of each part, None for one that is not adapted: each in
    rows and columns of its own, zeros elsewhere."""
    adapted = [B for B in parts if B is not None]
    whole = np.zeros((fused.ends[-1], sum(B.shape[1] for B in adapted)), adapted[0].dtype)
    column = 0
    for B, end in zip(parts, fused.ends, strict=True):
        if B is not None:
            whole[end - len(B) : end, column : column + B.shape[1]] = B
            column += B.shape[1]
    return whole


class LoRALinearCache(NamedTuple):
    base: Any
    x: Array | None  # (..., in)   after dropout; None where A is frozen
    h: Array | None  # (N, r)      None where B is frozen
    keep: Array | None  # (..., in)   the dropout mask


class LoRALinear(Parallel, LoRA):
    """y = x W₀ᵀ + b + s (x Aᵀ) Bᵀ         A (r, in)   B (out, r)   s = α/r, or α/√r (rsLoRA)

    Hu et al. (2021), equation 3. At the start y is the base's: B = 0, and A is uniform within ±1/√in, as PEFT's, or
    `init` is another name of initialisations/, whose function may look at `data`. Dropout acts on the adapter's input
    alone. `base`, a Linear, is frozen and kept. A rank above min(in, out) is allowed, as in PEFT, though B A can be of
    no higher rank than that.
    Raises ValueError for a base that is no plain Linear, a rank below 1, an `rng` that is neither a seed nor a
    generator, and an init of another class or without its data; the base is then as it was.
    """

    base_type = Linear
    targets = "q_proj", "v_proj"
    keys = LoRA.keys._replace(inits=(True, False, "gaussian", "eva", "orthogonal"))
    inits = tuple(name for name, init in INITS.items() if not (init.takes_from_W or init.freezes_B or init.quantizes))
    laws: ClassVar[dict[str, Law]] = {
        **LoRA.laws,
        "dA = 0 at B = 0": gradient_at_the_start,
        "the first step of SGD is ΔW = -η s² G AᵀA": first_step,
    }
    examples: ClassVar[dict[str, dict[str, Any]]] = {
        "": {"r": 3, "alpha": 5},
        " of rank 1": {"r": 1, "alpha": 5},
        " with dropout": {"r": 3, "alpha": 5, "dropout": 0.4},
        ", rsLoRA": {"r": 3, "alpha": 5, "rslora": True},
    }
    slots = Slot("lora_A", "lora_A.weight", ("r", "n_in")), Slot("lora_B", "lora_B.weight", ("n_out", "r"))
    kept = Kept("x", "n_in", "dA = dhᵀ x", ("lora_A",)), Kept("h", "r", "dB = s dyᵀ h", ("lora_B",))
    products = Products(
        forward="2 * r * (n_in + n_out)",
        backward="2 * r * (n_in + n_out)",
        without_dx="2 * r * n_out",
        gradients={("lora_A",): "2 * r * n_in", ("lora_B",): "2 * r * n_out"},
    )

    def __init__(
        self,
        base: Module,
        r: int = R,
        alpha: float = ALPHA,
        *,
        rng: Rng,
        dropout: float = 0.0,
        rslora: bool = False,
        init: str = "",
        data: Data | None = None,
    ) -> None:
        rng, init = generator(rng), init or self.inits[0]
        options: dict[str, Any] = {"r": r, "alpha": alpha, "dropout": dropout, "rslora": rslora, "init": init}
        self.check(base, **options)
        A, B, _ = self.begin(base, init, r, scale(r, alpha, rslora), rng, data or Data())
        options |= {"alpha": float(alpha), "dropout": float(dropout)}
        start = {"lora_A0": A, "lora_B0": B}  # slots of ResidualLoRALinear alone
        self.hold(base, {"lora_A": A, "lora_B": B, **start}, **options)

    def path_forward(self, x: Array, run: Pass) -> tuple[Array, LoRALinearCache]:
        x, keep = dropped(x, self.dropout, run.rng)
        y, (x, h) = ops.lora_forward(x, self.lora_A.data, self.lora_B.data, self.scaling)
        return y, LoRALinearCache(
            None, x if self.lora_A.trainable else None, h if self.lora_B.trainable else None, keep
        )

    def path_backward(self, dy: Array, cache: LoRALinearCache, grads: Gradients, needs_dx: bool) -> Array | None:
        A, B, s = self.lora_A.data, self.lora_B.data, self.scaling
        dx, dh = ops.lora_backward(dy, A, B, s) if needs_dx else (None, ops.lora_h_backward(dy, B, s))
        if cache.x is not None:
            grads.add(self.lora_A, ops.lora_A_gradients(dh, cache.x))
        if cache.h is not None:
            grads.add(self.lora_B, ops.lora_B_gradients(dy, cache.h, s))
        return dx if dx is None or cache.keep is None else ops.dropout_backward(dx, cache.keep)

    @classmethod
    def join_parts(cls, base: FusedLinear, parts: list[Any]) -> LoRALinear:
        """With two of three parts adapted

            B₁ 0                    A₁
        B =  0 0                A = A₂              ΔW = s B A, of rank r₁ + r₂ at most
             0 B₂
        """
        adapted = [part for part in parts if part.is_adapter]
        first, A = adapted[0], np.concatenate([to_numpy(part.lora_A.data) for part in adapted])
        if {(part.scaling, part.dropout, part.rslora) for part in adapted} != {
            (first.scaling, first.dropout, first.rslora)
        }:
            raise ValueError("the parts of a fused layer differ in scaling or dropout, and one adapter has one of each")
        B = in_blocks(base, [to_numpy(part.lora_B.data) if part.is_adapter else None for part in parts])
        alpha = first.scaling * (math.sqrt(len(A)) if first.rslora else len(A))
        options = {"r": len(A), "alpha": alpha, "rslora": first.rslora, "dropout": first.dropout}
        return cls.of(base, {"lora_A": A, "lora_B": B}, **options)

    def factors(self) -> tuple[Array, Array, float]:
        """ΔW = s B A"""
        return self.lora_A.data, self.lora_B.data, self.scaling


def lora_of_twice_the_rank(adapter: ResidualLoRALinear, x: Array, dy: Array, grads: Gradients) -> float:
    return relative_difference(adapter.forward(x)[0], adapter.in_file().forward(x)[0])


def lora_beside_the_residual(adapter: ResidualLoRALinear, x: Array, dy: Array, grads: Gradients) -> float:
    A, B, A0, B0 = (parameter.data for parameter in adapter.own_parameters().values())
    s, bias = adapter.scaling, adapter.base.bias
    residual = Linear(adapter.dense() - s * (B0 @ A0), None if bias is None else bias.data)
    lora = LoRALinear.of(residual, {"lora_A": A, "lora_B": B}, r=adapter.r, alpha=adapter.alpha, rslora=adapter.rslora)
    return relative_difference(adapter.forward(x)[0], lora.forward(x)[0])


class ResidualLoRALinear(LoRALinear):
    """y = x W₀ᵀ + b + s (x Aᵀ) Bᵀ - s (x A₀ᵀ) B₀ᵀ       A₀ (r, in)   B₀ (out, r)   the start of A and B, frozen

    LoRA beside the residual W₀ - s B₀ A₀, for the initialisations that take A₀ and B₀ from W (PiSSA, OLoRA, CorDA,
    LoRA-GA): what W₀ would give up, A and B have. W₀ itself stays, so merging and unmerging change no bit of it, and
    other adapters share it; the price is r (in + out) numbers, and as many multiplications for each row in each pass.
    At the start both paths are the same products, whose difference is 0, so y is the base's to the bit. Dropout acts on
    the path of A and B alone, as in PEFT, so with it y is not the base's even at the start.

    ΔW = s (B A - B₀ A₀) = s [B | -B₀] [A ; A₀], a plain LoRA of rank 2r, and that is what the file holds. A file of
    PEFT's own "pissa" or "olora" holds A and B alone: A₀ and B₀ are then computed again from the base.
    """

    base_type = Linear
    keys = LoRA.keys._replace(inits=("pissa", "olora"), not_transposed=("olora",))
    inits = tuple(sorted((name for name, init in INITS.items() if init.takes_from_W), key=lambda name: name != "pissa"))
    options = (*LoRA.options, Option("init", "init_lora_weights", inits[0]))
    slots = (  # type: ignore[assignment]
        *LoRALinear.slots,
        Slot("lora_A0", "", ("r", "n_in"), trained=False),
        Slot("lora_B0", "", ("n_out", "r"), trained=False),
    )
    products = LoRALinear.products._replace(
        forward="4 * r * (n_in + n_out)",
        backward="4 * r * (n_in + n_out)",
    )
    laws: ClassVar[dict[str, Law]] = {
        **LoRA.laws,
        "LoRA beside W₀ - s B₀ A₀": lora_beside_the_residual,
        "a residual LoRA is a LoRA of rank 2r": lora_of_twice_the_rank,
    }
    examples: ClassVar[dict[str, dict[str, Any]]] = {
        "": {"r": 3, "alpha": 5, "init": "pissa"},
        " with dropout": {"r": 3, "alpha": 5, "init": "pissa", "dropout": 0.4},
        ", OLoRA, rsLoRA": {"r": 3, "alpha": 5, "init": "olora", "rslora": True},
    }
    lora_A0: Parameter
    lora_B0: Parameter
    init: str

    @classmethod
    def computed(cls, base: Any, **options: Any) -> dict[str, Array]:
        """A₀ and B₀, from the base."""
        given = cls.defaults() | options
        A, B, _ = cls.begin(base, given["init"], given["r"], scale(given["r"], given["alpha"], given["rslora"]))
        return {"lora_A0": A, "lora_B0": B}

    def path_forward(self, x: Array, run: Pass) -> tuple[Array, LoRALinearCache]:
        y_start, _ = ops.lora_forward(x, self.lora_A0.data, self.lora_B0.data, self.scaling)
        y, cache = super().path_forward(x, run)
        y -= y_start
        return y, cache

    def path_backward(self, dy: Array, cache: LoRALinearCache, grads: Gradients, needs_dx: bool) -> Array | None:
        dx = super().path_backward(dy, cache, grads, needs_dx)
        if dx is not None:
            dx -= ops.lora_backward(dy, self.lora_A0.data, self.lora_B0.data, self.scaling)[0]
        return dx

    def in_file(self) -> LoRALinear:
        """s [B | -B₀] [A ; A₀] as a plain LoRA of rank 2r and the same s"""
        A, B, _ = self.factors()
        alpha = self.alpha * (math.sqrt(2) if self.rslora else 2)
        options = {"r": 2 * self.r, "alpha": alpha, "dropout": self.dropout, "rslora": self.rslora}
        with as_it_learns(self.base):
            return LoRALinear.of(self.base, {"lora_A": A, "lora_B": B}, **options)

    @classmethod
    def join_parts(cls, base: FusedLinear, parts: list[Any]) -> LoRALinear:
        return LoRALinear.join_parts(base, [part.in_file() if part.is_adapter else part for part in parts])

    def delta(self) -> Array:
        """ΔW = s (B A - B₀ A₀) (out, in), exactly 0 at the start, which one product of the factors need not be"""
        return self.scaling * (self.lora_B.data @ self.lora_A.data - self.lora_B0.data @ self.lora_A0.data)

    def factors(self) -> tuple[Array, Array, float]:
        """ΔW = s [B | -B₀] [A ; A₀]"""
        xp = get_array_module(self.lora_A.data)
        A = xp.concatenate([self.lora_A.data, self.lora_A0.data])
        B = xp.concatenate([self.lora_B.data, -self.lora_B0.data], axis=1)
        return A, B, self.scaling


def A_by_the_dense_gradient(adapter: MiCALinear, x: Array, dy: Array, grads: Gradients) -> float:
    G = ops.linear_gradients(dy, x)
    return relative_difference(grads[adapter.lora_A], adapter.scaling * adapter.lora_B.data.T @ G)


class MiCALinear(LoRALinear):
    """LoRALinear with B frozen, at the minor singular vectors of W (initialisations/mica.py)."""

    base_type = Linear
    keys = LoRA.keys._replace(inits=("mica",))
    inits = tuple(name for name, init in INITS.items() if init.freezes_B)
    slots = LoRALinear.slots[0], LoRALinear.slots[1]._replace(trained=False)
    kept = LoRALinear.kept[:1]  # type: ignore[assignment]
    products = LoRALinear.products._replace(gradients={("lora_A",): "2 * r * n_in"})
    laws: ClassVar[dict[str, Law]] = {"dA = s Bᵀ G": A_by_the_dense_gradient}
    examples: ClassVar[dict[str, dict[str, Any]]] = {"": {"r": 3, "alpha": 5}}


class LoftQLinear(LoRALinear):
    """LoRALinear beside Q, its W in few bits, with A and B at the best of rank r for W - Q (initialisations/loftq.py).

    `base` becomes a new layer that holds Q as codes, with the bias of the one that is given, which is not written to.
    `quantize` is the format of Q (quantization/), and `rounds` the paper's T. y begins near the layer's, not as it.

    A file holds A and B, and how Q was made: on a W that is not Quantized, Q is made again; one that is, is Q itself,
    or its hash is not the file's. PEFT's own files are read the same way, and ours by PEFT on a machine with CUDA. What
    PEFT does not have, or gets wrong, it refuses by its name: "nf4" in the place of 4 bits.
    Raises ValueError as LoRALinear does, for a W that is Quantized, of which nothing is known that could be made up
    for, and for a part of a fused layer, whose matrix is that of the others too.
    """

    base_type = Linear
    keys = LoRA.keys._replace(
        inits=("loftq",), not_transposed=("loftq",), ignored=tuple(k for k in LoRA.keys.ignored if k not in LOFTQ_KEYS)
    )
    inits = tuple(name for name, init in INITS.items() if init.quantizes)
    makes_weight = True
    unread = "rng", "rho", "init", "data"
    options = (
        *LoRA.options,
        Option("quantize", LOFTQ_KEYS[0], "nf4", words={4: "nf4", 8: "int8"}),
        Option("rounds", LOFTQ_KEYS[1], 1),
    )
    examples: ClassVar[dict[str, dict[str, Any]]] = {
        "": {"r": 3, "alpha": 5},
        " in int8, with dropout": {"r": 3, "alpha": 5, "dropout": 0.4, "quantize": "int8"},
        ", rsLoRA": {"r": 3, "alpha": 5, "rslora": True, "rounds": 2},
    }
    quantize: str
    rounds: int

    def __init__(
        self,
        base: Linear,
        r: int = R,
        alpha: float = ALPHA,
        *,
        dropout: float = 0.0,
        rslora: bool = False,
        quantize: str = "nf4",
        rounds: int = 1,
    ) -> None:
        own: dict[str, Any] = {"quantize": quantize, "rounds": rounds}
        options: dict[str, Any] = {"r": r, "alpha": alpha, "dropout": dropout, "rslora": rslora, **own}
        self.check(base, **options)
        if isinstance(base.weight.data, Quantized):
            raise ValueError(
                f"its weight is held in {base.weight.data.name} already, and what that lost is not known: load the "
                "model without quantize for init 'loftq'"
            )
        A, B, Q = self.begin(base, "loftq", r, scale(r, alpha, rslora), **own)
        assert isinstance(Q, Quantized)
        options |= {"alpha": float(alpha), "dropout": float(dropout)}
        layer = copy.copy(base)
        layer.weight = Parameter(Q.to(base.weight.xp), trainable=False)
        self.hold(layer, {"lora_A": A, "lora_B": B}, **options)

    @classmethod
    def check(cls, base: Module, **options: Any) -> None:
        super().check(base, **options)
        format_named(options.get("quantize", "nf4"))
        if isinstance(base, Part):
            raise ValueError("it is a part of a fused layer, and LoftQ makes another of the whole: name that, qkv_proj")

    @classmethod
    def weight_for(cls, layer: Linear, **options: Any) -> Parameter:
        """Q, made again from W."""
        given, held = cls.defaults() | options, layer.weight.data
        if not isinstance(held, Quantized):
            with blas_threads():
                Q = rounded(to_numpy(held), given["r"], given["quantize"], given["rounds"])
            return Parameter(Q.to(layer.weight.xp), trainable=False)
        if held.name != given["quantize"]:
            raise ValueError(
                f"the adapter makes up for what {given['quantize']} loses, and this layer is held in {held.name}: load "
                "the model without quantize"
            )
        return layer.weight


class LoRAEmbeddingCache(NamedTuple):
    base: Any
    ids: Array | None  # (...)      None where A is frozen
    h: Array | None  # (N, r)      None where B is frozen


class LoRAEmbedding(Parallel, LoRA):
    """y = W₀[ids] + s (A[:, ids])ᵀ Bᵀ      A (r, V)   B (C, r)   s = α/r, or α/√r (rsLoRA)

    At the start A = 0 and B is normal, the other way round than in LoRALinear: as PEFT's and loralib's. There is no
    dropout, as ids have none. Where a head is tied to the embedding, the head stays the base's: the adapter acts on
    the input alone, as PEFT's does.
    Raises ValueError as LoRALinear does, for a base that is no plain Embedding.
    """

    base_type = Embedding
    unread = (*LoRA.unread, "dropout", "init", "data")  # ids have no dropout, and A starts at 0
    slots = Slot("lora_A", "lora_embedding_A", ("r", "n_in")), Slot("lora_B", "lora_embedding_B", ("n_out", "r"))
    kept = Kept("ids", "0", "dA adds dh up by id", ("lora_A",)), Kept("h", "r", "dB = s dyᵀ h", ("lora_B",))
    products = Products(
        forward="2 * r * n_out",
        backward="0",
        gradients={("lora_A",): "2 * r * n_out", ("lora_B",): "2 * r * n_out"},
    )

    def __init__(self, base: Module, r: int = R, alpha: float = ALPHA, *, rng: Rng, rslora: bool = False) -> None:
        rng = generator(rng)
        self.check(base, r=r, alpha=alpha)
        assert isinstance(base, Embedding)
        V, C = base.weight.data.shape
        tensors = {"lora_A": np.zeros((r, V)), "lora_B": rng.standard_normal((C, r))}
        self.hold(base, tensors, r=r, alpha=float(alpha), rslora=rslora)

    def path_forward(self, ids: Array, run: Pass) -> tuple[Array, LoRAEmbeddingCache]:
        y, (ids, h) = ops.lora_embedding_forward(ids, self.lora_A.data, self.lora_B.data, self.scaling)
        return y, LoRAEmbeddingCache(None, ids if self.lora_A.trainable else None, h if self.lora_B.trainable else None)

    def path_backward(self, dy: Array, cache: LoRAEmbeddingCache, grads: Gradients, needs_dx: bool) -> None:
        if cache.ids is not None:
            A, B, s = self.lora_A.data, self.lora_B.data, self.scaling
            grads.add(self.lora_A, ops.lora_embedding_A_gradients(dy, cache.ids, B, s, A.shape[1]))
        if cache.h is not None:
            grads.add(self.lora_B, ops.lora_B_gradients(dy, cache.h, self.scaling))

    def delta(self) -> Array:
        """ΔW = s (B A)ᵀ (V, C)"""
        return self.scaling * (self.lora_B.data @ self.lora_A.data).T

    def factors(self) -> tuple[Array, Array, float]:
        return self.lora_B.data.T, self.lora_A.data.T, self.scaling


class TiedLoRALinear(Parallel, LoRA):
    """The other use of an adapted embedding, by the head that is tied to it, with the same W₀, A and B:

        y = x (W₀ + s (B A)ᵀ)ᵀ + b = x W₀ᵀ + b + s (x B) A          x (..., C)   A (r, V)   B (C, r)   y (..., V)

    That is LoRALinear with Bᵀ for its A and Aᵀ for its B, so with h = x B and dh = s dy Aᵀ

        dA = s hᵀ dy         dB = xᵀ dh         dx = dh Bᵀ

    which are added to what the embedding gives to the same two Parameters: one array each, moved once a step. (PEFT
    0.21.2 has a second pair of Parameters over the same memory here. Each is stepped, by its own half of the
    gradient, so what they share moves up to twice as far.)
    """

    slots = (  # PEFT's file holds them as the A and B of a Linear: transposed, under each other's name
        Slot("lora_A", "lora_B.weight", ("r", "n_out"), file_shape=("n_out", "r")),
        Slot("lora_B", "lora_A.weight", ("n_in", "r"), file_shape=("r", "n_in")),
    )
    kept = Kept("x", "n_in", "dB = xᵀ dh", ("lora_B",)), Kept("h", "r", "dA = s hᵀ dy", ("lora_A",))
    products = Products(
        forward="2 * r * (n_in + n_out)",
        backward="2 * r * (n_in + n_out)",
        without_dx="2 * r * (n_in + n_out)",
        gradients={("lora_B",): "2 * r * n_in", ("lora_A",): "2 * r * n_out"},
    )

    def __init__(self, base: Linear, embedding: LoRAEmbedding, dropout: float = 0.0) -> None:
        options = {"r": embedding.r, "alpha": embedding.alpha, "rslora": embedding.rslora, "dropout": dropout}
        self.hold(base, embedding.own_parameters(), **options)

    def path_forward(self, x: Array, run: Pass) -> tuple[Array, LoRALinearCache]:
        x, keep = dropped(x, self.dropout, run.rng)
        y, (x, h) = ops.lora_forward(x, self.lora_B.data.T, self.lora_A.data.T, self.scaling)
        return y, LoRALinearCache(
            None, x if self.lora_B.trainable else None, h if self.lora_A.trainable else None, keep
        )

    def path_backward(self, dy: Array, cache: LoRALinearCache, grads: Gradients, needs_dx: bool) -> Array:
        dx, dh = ops.lora_backward(dy, self.lora_B.data.T, self.lora_A.data.T, self.scaling)
        if cache.x is not None:
            grads.add(self.lora_B, ops.lora_A_gradients(dh, cache.x).T)
        if cache.h is not None:
            grads.add(self.lora_A, ops.lora_B_gradients(dy, cache.h, self.scaling).T)
        return dx if cache.keep is None else ops.dropout_backward(dx, cache.keep)

    def delta(self) -> Array:
        """ΔW = s (B A)ᵀ (V, C)"""
        return self.scaling * (self.lora_B.data @ self.lora_A.data).T

    def factors(self) -> tuple[Array, Array, float]:
        return self.lora_B.data.T, self.lora_A.data.T, self.scaling


LoRAEmbedding.tied_head = TiedLoRALinear
