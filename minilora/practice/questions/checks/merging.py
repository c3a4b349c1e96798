"""What merging and combining adapters does to the weights: exact in algebra, rounded in bits, and wrong on factors."""

from typing import Any

import numpy as np

from ....adapters.lora import LoRALinear
from ....adapters.merge import merge, unmerge
from ....adapters.spectrum import lora_svd, truncate, truncation_error
from ....backend import Array
from ....nn import Linear, Module


def subtracting_the_update_does_not_restore_W() -> str:
    """A merge rounds as storing W does; W + ΔW - ΔW is not W, and less so after more swaps; a kept W is."""
    lines = []
    for dtype in (np.float32, np.float16):
        rng = np.random.default_rng(0)
        model: Any = Module()
        model.layer = _trained(rng, 128, dtype)
        x, W = rng.standard_normal((64, 128)), model.layer.weight.data.copy()
        exact = x @ (W.astype(float) + model.layer.delta()).T
        stored = _relative(exact.astype(dtype), exact)
        merge(model)
        merged, D = model.layer.weight.data, model.layer.adapter.delta()
        back, swapped = merged - D, [W]
        for i in range(20):
            other = D if i % 2 else D[::-1]
            swapped.append(swapped[-1] + other - other)
        assert back.dtype == swapped[-1].dtype == dtype
        error, changed = _relative(x @ merged.T.astype(float), exact), [np.mean(V != W) for V in (back, swapped[-1])]
        unmerge(model)
        assert 0.5 * stored < error < 2 * stored
        assert 0.05 < changed[0] < changed[1] < 0.9
        assert np.array_equal(model.layer.weight.data, W)  # the W that was kept
        lines.append(
            f"{np.dtype(dtype).name}: y {error:.0e}, W + ΔW - ΔW ≠ W: {changed[0]:.0%}, 20 ×: {changed[1]:.0%}"
        )
    return "; ".join(lines) + "; W kept: 0 %"


def a_second_merge_shows_against_the_base() -> str:
    """ΔW twice, by a second merge or a branch left on: 2 against the base, invisible to a test of the layer alone."""
    rng = np.random.default_rng(0)
    layer = _trained(rng, 24, float)
    x, W, D = rng.standard_normal((50, 24)), layer.weight.data, layer.delta()
    y = layer.forward(x)[0]
    base, reference = x @ W.T, y - x @ W.T

    def times(found: Array) -> float:
        return float(np.sum((found - base) * reference) / np.sum(reference**2))

    merged_twice = W + D + D
    branch_left_on = x @ (W + D).T + layer.scaling * x @ layer.lora_A.data.T @ layer.lora_B.data.T
    found = times(x @ (W + D).T), times(x @ merged_twice.T), times(branch_left_on)
    assert np.allclose(found, (1, 2, 2))
    alone = Linear(merged_twice)
    assert np.allclose(alone.forward(x)[0], x @ alone.weight.data.T)  # what is wrong agrees with itself
    layer.lora_B.data = 0 * layer.lora_B.data
    assert np.array_equal(W + 2 * layer.delta(), layer.merged()[0])  # and at B = 0 nothing can be seen
    return "⟨y - y₀, ΔW x⟩/‖ΔW x‖²: merged {:.0f}, merged twice {:.0f}, merged with the branch on {:.0f}".format(*found)


def averaged_factors_are_not_the_averaged_update() -> str:
    """Concatenation gives Σ w ΔW exactly; averaging A and B apart does not, and depends on how (A, B) is written."""
    rng = np.random.default_rng(0)
    (A1, B1), (A2, B2) = pair = [(rng.standard_normal((4, 40)), rng.standard_normal((30, 4))) for _ in range(2)]
    s1, s2, w1, w2 = 2.0, 0.5, 0.5, 0.5
    wanted = w1 * s1 * B1 @ A1 + w2 * s2 * B2 @ A2
    A, B = np.concatenate([A1, A2]), np.concatenate([w1 * s1 * B1, w2 * s2 * B2], axis=1)
    roots = np.sqrt([w1 * s1, w2 * s2])  # PEFT's "linear"
    linear = (roots[0] * B1 + roots[1] * B2) @ (roots[0] * A1 + roots[1] * A2)
    errors = _relative(B @ A, wanted), _relative(linear, wanted)
    svd = lora_svd(A, B, 1.0)
    cut, least = truncate(svd, 4), truncation_error(svd.sigma, 4)[0] / np.linalg.norm(wanted)
    itself = (B1 - B1) / 2 @ ((A1 - A1) / 2)  # (-A, -B) is the same adapter as (A, B)
    assert np.array_equal(-B1 @ -A1, B1 @ A1)
    assert errors[0] < 1e-14 < 0.5 < errors[1]
    assert np.isclose(_relative(cut[0] @ cut[1], wanted), least)
    assert not itself.any()
    assert len(A) == sum(len(factors[0]) for factors in pair)
    return f"cat: {errors[0]:.0e} (r = {len(A)}); linear: {errors[1]:.2f}; SVD, r = 4: {least:.2f}; (A - A)/2 = 0"


def a_sign_on_both_factors_changes_nothing() -> str:
    """-1 on A and B is +1, w on both is w²; a mask on ΔW raises the rank, on the factors it makes more noise."""
    rng = np.random.default_rng(0)
    A, B = rng.standard_normal((4, 60)), rng.standard_normal((50, 4))
    D, w, p = B @ A, 0.5, 0.5
    assert np.array_equal(-B @ -A, D)
    assert np.allclose(-B @ A, -D)
    assert np.allclose(w * B @ (w * A), w**2 * D)

    def dare(M: Array) -> Array:
        return M * (rng.random(M.shape) < p) / p

    on_update, on_factors = dare(D), dare(B) @ dare(A)
    ranks = [int(np.linalg.matrix_rank(M)) for M in (on_update, on_factors)]
    errors = [_relative(M, D) for M in (on_update, on_factors)]
    assert ranks == [50, 4]
    assert errors[0] < 1.1 < 1.5 < errors[1]  # √(1/p - 1) = 1, √(1/p² - 1) = 1.73
    M = np.diag([4.0, 1, 1, 0.25])  # the same adapter, written otherwise
    trims = [_largest(B @ G) @ _largest(np.linalg.inv(G) @ A) for G in (np.eye(4), M)]
    other = _relative(trims[1], trims[0])
    assert np.allclose(B @ M @ np.linalg.inv(M) @ A, D)
    assert other > 0.1
    return (
        f"(-B)(-A) = ΔW; ½, ½: ¼ ΔW; DARE 0.5: ΔW: {errors[0]:.2f}, r {ranks[0]}; A, B: {errors[1]:.2f}, r {ranks[1]}; "
        f"TIES A, B: BM, M⁻¹A {other:.2f}"
    )


def _largest(M: Array) -> Array:
    """The larger half of the entries, by size; 0 for the others: the trim of TIES."""
    return M * (abs(M) >= np.median(abs(M)))


def _trained(rng: np.random.Generator, n: int, dtype: type) -> LoRALinear:
    """A layer with B ≠ 0 and s = 2, ‖ΔW‖ about a tenth of ‖W‖."""
    layer = LoRALinear(Linear(rng.standard_normal((n, n))), r=4, alpha=8, rng=rng)
    layer.lora_B.data = 0.5 * rng.standard_normal((n, 4))
    layer.astype(np.dtype(dtype))
    return layer


def _relative(found: Array, wanted: Array) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))
