"""Four bits: where the levels of NF4 come from, what they cost, and what a merge into them loses."""

from statistics import NormalDist

import numpy as np

from .... import ops
from ....accounting import count, nf4_bits
from ....backend import Array

SHAPE = 256, 256


def nf4_levels_are_quantiles_of_a_normal() -> str:
    """The 16 values by their formula; on normal weights NF4 errs less than int4, unless that has a zero point."""
    assert len(NF4) == 16
    assert np.sum(NF4 == 0) == 1
    assert (NF4.min(), NF4.max()) == (-1, 1)
    assert not np.allclose(NF4, -NF4[::-1])  # 8 levels above 0, 7 below
    printed = [-0.69619, -0.52507, -0.39492, -0.28444, -0.18477, -0.09105, 0, 0.07958, 0.16093, 0.24611, 0.33792]
    assert np.allclose(NF4[1:12], printed, atol=1e-5)  # as in bitsandbytes
    rng = np.random.default_rng(0)
    of = {"N": rng.standard_normal(SHAPE), "U": rng.uniform(-1, 1, SHAPE), "t₄": rng.standard_t(4, SHAPE)}
    error = {name: [_relative(q(W), W) for q in (_nf4, _int4, _int4_with_zero)] for name, W in of.items()}
    assert error["N"][0] < 0.9 * error["N"][1]
    assert abs(error["N"][0] / error["N"][2] - 1) < 0.03  # a tie
    assert error["U"][0] > 1.1 * error["U"][1]
    assert error["t₄"][0] < min(error["t₄"][1:])
    steps = np.diff(NF4)
    lines = "; ".join("{}: {:.3f}, {:.3f}, {:.3f}".format(name, *errors) for name, errors in error.items())
    return f"‖Ŵ - W‖/‖W‖ (NF4, int4, int4 + zero): {lines}; NF4 steps {steps.min():.3f} … {steps.max():.3f}"


def double_quantisation_saves_0_373_bits() -> str:
    """Bits a weight: 4 + 32/64 = 4.5, and 4 + 8/64 + 32/(64 · 256) = 4.127."""
    n = 2**24
    plain, double = nf4_bits(n, double=False) / n, nf4_bits(n, double=True) / n
    assert plain == 4 + 32 / 64
    assert np.isclose(double, 4 + 8 / 64 + 32 / (64 * 256), atol=1e-4)
    assert np.isclose(plain - double, 0.373, atol=1e-3)
    assert (plain - double) / plain < 0.09  # not 30 %
    saved = plain - double
    return f"{plain:.3f} - {double:.3f} = {saved:.3f} bit ({saved / plain:.1%}); 65·10⁹ W: {65 * saved / 8:.2f} GB"


def seven_billion_weights_in_four_bits() -> str:
    """Llama-2-7B, LoRA on all linear layers, r = 8: bytes in bf16, NF4, NF4 doubled; what learns is the same."""
    of = {d: count("llama-2-7b", "qlora" if d != "bfloat16" else "lora", targets="all-linear", dtype=d) for d in DTYPES}
    weights = {dtype: account.memory()["weights"] / 1e9 for dtype, account in of.items()}
    learns = {account.memory()["optimizer"] + account.memory()["gradients"] for account in of.values()}
    assert len(learns) == 1  # what learns is not in four bits
    assert weights["bfloat16"] > 3 * weights["nf4"] > 3 * weights["nf4-dq"]
    rng = np.random.default_rng(0)
    W, A, B = rng.standard_normal((48, 64)), rng.standard_normal((4, 64)), rng.standard_normal((48, 4))
    x, dy, q = rng.standard_normal((9, 64)), rng.standard_normal((9, 48)), _nf4(W)
    dx = dy @ q + ops.lora_backward(dy, A, B, 2.0)[0]  # the gradient of y = x Ŵᵀ + s x Aᵀ Bᵀ
    v = rng.standard_normal(x.shape)
    assert np.isclose(np.sum(dx * v), np.sum(dy * (v @ q.T + ops.lora_forward(v, A, B, 2.0)[0])))
    gigabytes = ", ".join(f"{dtype} {size:.2f}" for dtype, size in weights.items())
    return f"W + A, B: {gigabytes} GB; dA, dB, m, v: {learns.pop() / 1e9:.2f} GB"


def four_bits_swallow_a_small_update() -> str:
    """cos(what a merge into NF4 changes, ΔW) by ‖ΔW‖/‖W‖; from the W before quantisation all of it arrives."""
    W, D = _weights()
    quantised, kept, share = _nf4(W), {}, {}
    for size in (0.01, 0.1, 0.3):
        twice, once = _nf4(quantised + size * D) - quantised, _nf4(W + size * D) - quantised
        kept[size] = float(np.sum(twice * D) / np.linalg.norm(twice) / np.linalg.norm(D))
        share[size] = [float(np.sum(change * D) / np.sum(size * D * D)) for change in (twice, once)]
    assert kept[0.01] < 0.1 < 0.6 < kept[0.1] < 0.9 < kept[0.3]  # a larger update is safer
    assert abs(share[0.01][0]) < 0.2
    assert all(abs(once - 1) < 0.25 for _, once in share.values())
    return "; ".join(
        f"‖ΔW‖/‖W‖ {size}: cos {cos:.2f}, κ {share[size][0]:.2f} (W: {share[size][1]:.2f})"
        for size, cos in kept.items()
    )


def another_grid_is_another_model() -> str:
    """Against Ŵ + ΔW, as it was trained: beside Ŵ nothing is lost; merged into W₀, or into another grid, about 10 %."""
    W, D = _weights()
    x = np.random.default_rng(1).standard_normal((64, SHAPE[1]))
    quantised, update = _nf4(W), 0.1 * D
    y = x @ (quantised + update).T
    deployed = {
        "Ŵ, ΔW": x @ quantised.T + x @ update.T,
        "bf16(Ŵ + ΔW)": x @ _bfloat16(quantised + update).T,
        "W₀ + ΔW": x @ (W + update).T,
        "int4(Ŵ + ΔW)": x @ _int4(quantised + update, 128).T,
        "int4(W₀ + ΔW)": x @ _int4(W + update, 128).T,
    }
    error = {name: _relative(found, y) for name, found in deployed.items()}
    assert error["Ŵ, ΔW"] < 1e-12 < error["bf16(Ŵ + ΔW)"] < 3e-3
    assert min(list(error.values())[2:]) > 0.05
    assert error["int4(W₀ + ΔW)"] > error["W₀ + ΔW"]
    return "; ".join(f"{name} {size:.2g}" for name, size in error.items())


def loftq_minimises_what_is_left_of_W() -> str:
    """‖W - Ŵ - s B A‖ falls by turns of NF4 and SVD; a forgotten 1/s reflects or enlarges the error."""
    rng = np.random.default_rng(0)
    W, s = rng.standard_normal(SHAPE), 2.0
    left: dict[int, list[float]] = {}
    start = _relative(_nf4(W), W)
    for r in (8, 32):
        L, left[r] = 0 * W, []
        for _ in range(3):
            quantised = _nf4(W - L)
            U, S, Vt = np.linalg.svd(W - quantised, full_matrices=False)
            A, B = np.sqrt(S[:r] / s)[:, None] * Vt[:r], U[:, :r] * np.sqrt(S[:r] / s)
            L = s * B @ A
            left[r].append(_relative(quantised + L, W) / start)
        assert 1 > left[r][0] > left[r][1] > left[r][2] > 0.5
    E = W - _nf4(W)
    U, S, Vt = np.linalg.svd(E)
    best = U[:, :8] * S[:8] @ Vt[:8]
    forgotten = [float(np.linalg.norm(E - s * best) / np.linalg.norm(E)) for s in (1, 2, 4)]
    assert np.isclose(forgotten[1], 1)  # E - 2 E₈ is a reflection
    assert forgotten[0] < 1 < forgotten[2]
    printed = _relative(_nf4(W - L), W)  # ‖W - Q(W - L)‖ without the + L outside
    assert printed > start > left[32][-1] * start
    lines = "; ".join(f"r = {r}: " + ", ".join(f"{e:.3f}" for e in errors) for r, errors in left.items())
    without = ", ".join(f"{e:.3f}" for e in forgotten)
    return f"{lines}; 1/s forgotten, s = 1, 2, 4: {without}; ‖W - Q(W - L)‖: {printed / start:.3f}"


DTYPES = "bfloat16", "nf4", "nf4-dq"


def _levels() -> Array:
    """NF4: quantiles of a normal at equal steps of probability, 8 above 0 and 7 below, divided by the largest."""
    end, ppf = 0.9677083, NormalDist().inv_cdf
    above, below = ([ppf(p) for p in np.linspace(end, 0.5, n)[:-1]] for n in (9, 8))
    levels = np.sort([*above, 0.0, *(-x for x in below)])
    return levels / levels.max()


NF4 = _levels()


def _nf4(W: Array, block: int = 64) -> Array:
    """Ŵ: every W/absmax of a block to the nearest level."""
    blocks = W.reshape(-1, block)
    absmax = abs(blocks).max(axis=1, keepdims=True)
    return (NF4[np.searchsorted((NF4[1:] + NF4[:-1]) / 2, blocks / absmax)] * absmax).reshape(W.shape)


def _int4(W: Array, block: int = 64) -> Array:
    """Equal steps of absmax/7."""
    blocks = W.reshape(-1, block)
    step = abs(blocks).max(axis=1, keepdims=True) / 7
    return (np.round(blocks / step) * step).reshape(W.shape)


def _int4_with_zero(W: Array, block: int = 64) -> Array:
    """16 equal steps from the least to the largest, one of them at 0, whose number takes 4 bits a block."""
    blocks = W.reshape(-1, block)
    step = np.ptp(blocks, axis=1, keepdims=True) / 15
    zero = np.round(-blocks.min(axis=1, keepdims=True) / step)
    return ((np.clip(np.round(blocks / step) + zero, 0, 15) - zero) * step).reshape(W.shape)


def _bfloat16(W: Array) -> Array:
    """The upper 16 bits of a float32, half to even."""
    word = W.astype(np.float32).view(np.uint32)
    return ((word + 0x7FFF + (word >> 16 & 1)) & 0xFFFF0000).view(np.float32).astype(float)


def _weights() -> tuple[Array, Array]:
    """W normal, and a ΔW of rank 8 and of its norm."""
    rng = np.random.default_rng(0)
    W = rng.standard_normal(SHAPE)
    D = rng.standard_normal((SHAPE[0], 8)) @ rng.standard_normal((8, SHAPE[1]))
    return W, D * np.linalg.norm(W) / np.linalg.norm(D)


def _relative(found: Array, wanted: Array) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))
