"""LoRA-XS: a trained r × r matrix between two frozen factors, which come from the SVD of W (Bałazy et al., 2024). The
maths is in ops/lora_xs.py."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import numpy as np

from .. import ops
from ..backend import Array, Rng, to_numpy
from ..nn import FusedLinear, Gradients, Linear, Module, Parameter, Pass
from .base import Law, relative_difference
from .lora import LoRALinear
from .lora_base import LoRA
from .parallel import Parallel, dropped
from .spectrum import check_svd_rank, svd
from .statements import Kept, Keys, Products, Slot


def between_A_and_B(adapter: LoRAXSLinear, x: Array, dy: Array, grads: Gradients) -> float:
    A, B, R = adapter.lora_A.data, adapter.lora_B.data, adapter.lora_R
    return relative_difference(grads[R], adapter.scaling * B.T @ ops.linear_gradients(dy, x) @ A.T)


class LoRAXSLinearCache(NamedTuple):
    base: Any
    h: Array | None  # (N, r)      None where R is frozen
    keep: Array | None  # (..., in)   the dropout mask


class LoRAXSLinear(Parallel, LoRA):
    """y = x W₀ᵀ + b + s ((x Aᵀ) Rᵀ) Bᵀ        A (r, in)   R (r, r)   B (out, r)   s = α/r, or α/√r (rsLoRA)

    A = V_rᵀ and B = U_r Σ_r are frozen, of the first r singular values of W₀ = U Σ Vᵀ. At the start R = 0, so y is the
    base's; dR is not 0 there, as neither A nor B is. (The authors draw R with a standard deviation of 1e-5, so that y
    is nearly the base's. Their program decomposes W₀ᵀ, and so has Σ in A; PEFT's TinyLoRA, which has the same path, has
    √Σ in either.) Dropout acts on the adapter's input only.
    PEFT has no LoRA-XS, so the files have a type of their own, LORA_XS. They hold A and B too: an SVD gives singular
    vectors up to their signs, and R fits one choice of them.
    Raises ValueError for a base that is not a plain Linear, and a rank below 1 or above min(in, out).
    """

    variant = "lora-xs"
    peft_type = "LORA_XS"
    keys = Keys("init_lora_weights")
    start_options = ()
    base_type = Linear
    targets = "q_proj", "v_proj"
    slots = (
        Slot("lora_A", "lora_A.weight", ("r", "n_in"), trained=False),
        Slot("lora_B", "lora_B.weight", ("n_out", "r"), trained=False),
        Slot("lora_R", "lora_R.weight", ("r", "r")),
    )
    kept = (Kept("h", "r", "dR = duᵀ h", ("lora_R",)),)
    products = Products(
        forward="2 * r * (n_in + n_out + r)",
        backward="2 * r * (n_in + n_out + r)",
        without_dx="2 * r * (n_in + n_out + r)",
        gradients={("lora_R",): "2 * r * r"},
    )
    laws: ClassVar[dict[str, Law]] = {"dR = s Bᵀ G Aᵀ": between_A_and_B}
    examples: ClassVar[dict[str, dict[str, Any]]] = {
        "": {"r": 3, "alpha": 5},
        " with dropout": {"r": 3, "alpha": 5, "dropout": 0.4},
    }
    lora_R: Parameter

    @classmethod
    def check(cls, base: Module, **options: Any) -> None:
        super().check(base, **options)
        check_svd_rank(base, options.get("r", cls.defaults()["r"]))

    @classmethod
    def start(cls, base: Module, *, rng: Rng, **options: Any) -> LoRAXSLinear:
        """Nothing is drawn from `rng`."""
        cls.check(base, **options)
        r = options.get("r", cls.defaults()["r"])
        U, sigma, Vt = svd(base.dense())  # type: ignore[attr-defined]
        tensors = {"lora_A": Vt[:r].copy(), "lora_B": U[:, :r] * sigma[:r], "lora_R": np.zeros((r, r))}
        return cls.of(base, tensors, **options)

    def path_forward(self, x: Array, run: Pass) -> tuple[Array, LoRAXSLinearCache]:
        x, keep = dropped(x, self.dropout, run.rng)
        y, h = ops.lora_xs_forward(x, *self.tensors, self.scaling)
        return y, LoRAXSLinearCache(None, h if self.lora_R.trainable else None, keep)

    def path_backward(self, dy: Array, cache: LoRAXSLinearCache, grads: Gradients, needs_dx: bool) -> Array:
        dx, du = ops.lora_xs_backward(dy, *self.tensors, self.scaling)
        if cache.h is not None:
            grads.add(self.lora_R, ops.lora_xs_gradients(du, cache.h))
        return dx if cache.keep is None else ops.dropout_backward(dx, cache.keep)

    @property
    def tensors(self) -> tuple[Array, Array, Array]:
        """R, A and B"""
        return self.lora_R.data, self.lora_A.data, self.lora_B.data

    @classmethod
    def join_parts(cls, base: FusedLinear, parts: list[Any]) -> LoRAXSLinear:
        """A and B as of LoRA, and the R of the parts as blocks along the diagonal."""
        lora = LoRALinear.join_parts(base, parts)
        check_svd_rank(base, lora.r)
        R, at = np.zeros((lora.r, lora.r), lora.lora_A.data.dtype), 0
        for part in parts:
            if part.is_adapter:
                R[at : at + part.r, at : at + part.r] = to_numpy(part.lora_R.data)
                at += part.r
        return cls.of(base, {"lora_A": lora.lora_A.data, "lora_B": lora.lora_B.data, "lora_R": R}, **lora.settings)

    def factors(self) -> tuple[Array, Array, float]:
        """ΔW = s B R A"""
        R, A, B = self.tensors
        return A, B @ R, self.scaling
