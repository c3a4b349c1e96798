"""LoRA on a W in few bits, with an A and B that begin by compensating its error, as initialisations/loftq.py says."""

from __future__ import annotations

import copy
from typing import Any, ClassVar

from ..backend import to_numpy
from ..nn import Linear, Module, Parameter, Part
from ..process import blas_threads
from ..quantization import Quantized, format_named
from .initialisations.loftq import rounded
from .lora import LoRALinear
from .lora_base import ALPHA, INITS, LOFTQ_KEYS, LoRA, R, scale
from .statements import Option


class LoftQLinear(LoRALinear):
    """A LoRALinear whose W is Q, in few bits, and whose s B A starts as the best approximation of rank r of W - Q.

    `base` becomes a new layer that holds Q as codes, with the bias of the one that is given, which is not written to.
    `quantize` is the format of Q (quantization/), and `rounds` the paper's T. y starts close to the layer's, not equal.

    A file holds A and B, and how Q was made. Q is recomputed from a W that is not Quantized; a W that is, is taken as
    Q, and its hash must be the file's. PEFT's own files are read the same way, and ours by PEFT on a machine with CUDA.
    For a format or layer that PEFT lacks or handles wrongly, the file has a name, "nf4", not 4 bits: PEFT refuses it.
    Raises ValueError as LoRALinear does, for a W that is Quantized already, whose rounding error is not known, and for
    a part of a fused layer, which shares its weight with the other parts.
    """

    base_type = Linear
    keys = LoRA.keys._replace(
        inits=("loftq",),
        wrong_transposed=("loftq",),
        ignored=tuple(k for k in LoRA.keys.ignored if k not in LOFTQ_KEYS),
    )
    inits = tuple(name for name, init in INITS.items() if init.quantizes)
    replaces_weight = True
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
            raise ValueError("it is a part of a fused layer, and LoftQ replaces the whole's weight: target qkv_proj")

    @classmethod
    def weight_for(cls, layer: Linear, **options: Any) -> Parameter:
        """Q, recomputed from W."""
        given, held = cls.defaults() | options, layer.weight.data
        if not isinstance(held, Quantized):
            with blas_threads():
                Q = rounded(to_numpy(held), given["r"], given["quantize"], given["rounds"])
            return Parameter(Q.to(layer.weight.xp), trainable=False)
        if held.name != given["quantize"]:
            raise ValueError(
                f"the adapter compensates the error of {given['quantize']}, and this layer is held in {held.name}: "
                "load the model without quantize"
            )
        return layer.weight
