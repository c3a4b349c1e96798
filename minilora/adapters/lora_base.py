"""LoRA on every type of layer: its options, its keys in PEFT's config, and how A and B start, by the functions of
initialisations/."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from ..backend import Array, Rng, generator, to_numpy
from ..data import Batch
from ..nn import Gradients, Module, Parameter
from ..process import blas_threads
from ..spelling import choose_from
from .base import Adapter, Law, relative_difference
from .initialisations import inits
from .initialisations.start import Data, Start
from .recording import record
from .registry import variants
from .statements import Keys, Option

INITS = inits()
LOFTQ_KEYS = "loftq_config.loftq_bits", "loftq_config.loftq_iter"
R, ALPHA = 8, 16.0  # by default


def exchange(adapter: LoRA, x: Array, dy: Array, grads: Gradients) -> float:
    """Bᵀ dB = dA Aᵀ: B M⁻¹ and M A give the same output for every invertible M."""
    A, B = adapter.lora_A, adapter.lora_B
    return relative_difference(B.data.T @ grads[B], grads[A] @ A.data.T)


class LoRA(Adapter):
    """s B A added to a frozen layer:       A (r, in)   B (out, r)   s = α/r, or α/√r (rsLoRA)"""

    variant = "lora"
    peft_type = "LORA"
    keys = Keys(
        init="init_lora_weights",
        # PEFT 0.21.2, tuners/lora/layer.py: these do not change W
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
        companions=("trainable_token_indices",),
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
    """Options of attach() that start() ignores: they are for other classes of the variant, or used in prepare()."""
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
        W = base.weight.data  # type: ignore[attr-defined]
        tensors = {"lora_A": A.reshape(r, *W.shape[1:]), "lora_B": B}  # on a convolution, A is kernels
        start = {"lora_A0": A, "lora_B0": B}  # slots of ResidualLoRALinear alone
        self.hold(base, tensors | start, **options)

    @property
    def scaling(self) -> float:
        return scale(self.r, self.alpha, self.rslora)

    @classmethod
    def start(cls, base: Module, *, rng: Rng, **options: Any) -> Any:
        given = {"rng": rng, **options}
        return cls(base, **{name: value for name, value in given.items() if name not in cls.unread})

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
        """The Start by the function of initialisations/ that is called `init`, with options of its own. Raises
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
