"""SVF: only the singular values of W are trained, not its vectors (Sun et al., 2022). The maths is in ops/svf.py.

truncated() is another thing: W without its smallest singular values.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np

from .. import ops
from ..backend import Array, Rng, to_numpy
from ..nn import Gradients, Linear, Module, Parameter, Pass
from .base import Law, relative_difference
from .parallel import Parallel
from .spectrum import check_svd_rank, svd, truncation_error
from .statements import Kept, Keys, Option, Products, Slot


def along_the_vectors(adapter: SVFLinear, x: Array, dy: Array, grads: Gradients) -> float:
    """dz = S diag(Uᵀ G V): of G, what lies along each pair of singular vectors."""
    _, U, S, V = adapter.tensors
    G = ops.linear_gradients(dy, x)
    return relative_difference(grads[adapter.svf_z], S * (U.T @ G @ V).diagonal())


class SVFLinearCache(NamedTuple):
    base: Any
    p: Array | None  # (N, r)      None where z is frozen


class SVFLinear(Parallel):
    """y = x W'ᵀ + b,   W' = U diag(S ∘ z) Vᵀ          U (out, r)   S, z (r,)   V (in, r)      W₀ = U diag(S) Vᵀ

    U, S and V are frozen, of the first r singular values of W₀; r = 0, the default, takes all min(in, out) of them. If
    r is less, the rest of W₀ is in W' unchanged. At the start z = 1, so y is the base's. PEFT has no SVF, so the files
    have a type of their own, and store U, S and V too, which are not unique if singular values are equal.
    Raises ValueError for a base that is not a plain Linear, and for an r above min(in, out).
    """

    variant = "svf"
    peft_type = "SVF"
    keys = Keys("init_weights")
    base_type = Linear
    targets = "q_proj", "v_proj"
    options = (Option("r", "r", 0, "rank_pattern"),)
    slots = (
        Slot("svf_U", "svf_U", ("n_out", "r"), trained=False),
        Slot("svf_S", "svf_S", ("r",), trained=False),
        Slot("svf_V", "svf_V", ("n_in", "r"), trained=False),
        Slot("svf_z", "svf_z", ("r",)),
    )
    kept = (Kept("p", "r", "dz = S ∘ Σ t ∘ p", ("svf_z",)),)
    products = Products(
        forward="2 * r * (n_in + n_out)",
        backward="2 * r * (n_in + n_out)",
        without_dx="2 * r * (n_in + n_out)",
        gradients={},
    )
    laws: ClassVar[dict[str, Law]] = {"dz = S diag(Uᵀ G V)": along_the_vectors}
    examples: ClassVar[dict[str, dict[str, Any]]] = {"": {"r": 3}, ", all values": {}}
    svf_U: Parameter
    svf_S: Parameter
    svf_V: Parameter
    svf_z: Parameter
    r: int

    @classmethod
    def check(cls, base: Module, **options: Any) -> None:
        super().check(base, **options)
        check_svd_rank(base, options.get("r", 0))

    @classmethod
    def sizes_for(cls, base: Any, options: Mapping[str, Any]) -> dict[str, int]:
        sizes = super().sizes_for(base, options)
        return sizes | {"r": sizes["r"] or min(sizes["n_in"], sizes["n_out"])}

    @classmethod
    def start(cls, base: Module, *, rng: Rng, **options: Any) -> SVFLinear:
        """Nothing is drawn from `rng`."""
        cls.check(base, **options)
        r = cls.sizes_for(base, options)["r"]
        U, S, Vt = svd(base.dense())  # type: ignore[attr-defined]
        tensors = {"svf_U": U[:, :r].copy(), "svf_S": S[:r].copy(), "svf_V": Vt[:r].T.copy(), "svf_z": np.ones(r)}
        return cls.of(base, tensors, **options)

    def path_forward(self, x: Array, run: Pass) -> tuple[Array, SVFLinearCache]:
        y, p = ops.svf_forward(x, *self.tensors)
        return y, SVFLinearCache(None, p if self.svf_z.trainable else None)

    def path_backward(self, dy: Array, cache: SVFLinearCache, grads: Gradients, needs_dx: bool) -> Array:
        dx, t = ops.svf_backward(dy, *self.tensors)
        if cache.p is not None:
            grads.add(self.svf_z, ops.svf_gradients(t, cache.p, self.svf_S.data))
        return dx

    @property
    def tensors(self) -> tuple[Array, Array, Array, Array]:
        """z, U, S and V"""
        return self.svf_z.data, self.svf_U.data, self.svf_S.data, self.svf_V.data

    def factors(self) -> tuple[Array, Array, float]:
        """ΔW = U diag(S ∘ (z - 1)) Vᵀ"""
        z, U, S, V = self.tensors
        return V.T, U * (S * (z - 1)), 1.0


def truncated(W: Array, k: int) -> tuple[Array, float]:
    """W_k = U_k diag(S_k) V_kᵀ, W (out, in) without all but its first k singular values, and ‖W - W_k‖, what is lost.

    No matrix of rank k is nearer to W, and in Frobenius' norm ‖W - W_k‖ = √(Σ_{i>k} S_i²) (Eckart, Young, 1936). So a
    layer with W_k instead of W computes something else. SVF and PiSSA begin with the same decomposition and lose
    nothing: SVF leaves the other singular values in the frozen W, and PiSSA freezes W - W_k.
    Raises ValueError for a k that is not from 0 to min(out, in).
    """
    U, S, Vt = svd(W)
    if not 0 <= k <= len(S):
        raise ValueError(f"k = {k!r} is not from 0 to {len(S)}, the singular values that W has")
    return (U[:, :k] * S[:k]) @ Vt[:k], truncation_error(to_numpy(S), k)[0]
