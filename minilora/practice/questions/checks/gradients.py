"""What the gradients of an adapter are, at the start and later."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from .... import accounting, ops
from ....accounting import count
from ....backend import Array
from ....nn import Gradients, Parameter
from ....nn.optim import AdamW, clip_by_global_norm
from ....quantization.nf4 import NF4, nf4_codes
from ....verify.case import Case, apply, relative_error
from ....verify.problems import problems


def only_B_moves_at_the_first_step() -> str:
    """At B = 0 and A random: dA = 0 and dB ≠ 0. At A = B = 0 both are zero."""
    rng = np.random.default_rng(0)
    x, dy, A = rng.standard_normal((9, 6)), rng.standard_normal((9, 5)), rng.standard_normal((2, 6))
    sizes = []
    for start in (A, 0 * A):
        B = np.zeros((5, 2))
        _, cache = ops.lora_forward(x, start, B, 3.0)
        _, dh = ops.lora_backward(dy, start, B, 3.0)
        dA, dB = ops.lora_A_gradients(dh, cache.x), ops.lora_B_gradients(dy, cache.h, 3.0)
        sizes.append((np.linalg.norm(dA), np.linalg.norm(dB)))
    (size_A, size_B), both_zero = sizes
    assert size_A == 0
    assert size_B > 1
    assert both_zero == (0, 0)
    return f"‖dA‖ = {size_A:g}, ‖dB‖ = {size_B:.1f}; with A = 0 too: ‖dA‖ = ‖dB‖ = 0"


def dx_is_the_sum_of_two_paths() -> str:
    """dx = dy W + s (dy B) A, dA and dB are the measured ones; without a path dx is wrong, and Bᵀ dB = dA Aᵀ holds."""
    rng = np.random.default_rng(0)
    x, dy, W = rng.standard_normal((9, 6)), rng.standard_normal((9, 5)), rng.standard_normal((5, 6))
    A, B, s = rng.standard_normal((2, 6)), rng.standard_normal((5, 2)), 3.0
    dx_lora, dh = ops.lora_backward(dy, A, B, s)
    base, dA, dB = ops.linear_backward(dy, W), ops.lora_A_gradients(dh, x), ops.lora_B_gradients(dy, x @ A.T, s)

    def L(x: Array, A: Array, B: Array) -> Array:
        return (dy * (x @ W.T + s * x @ A.T @ B.T)).sum()

    slopes = [_slopes(lambda z: L(z, A, B), x), _slopes(lambda z: L(x, z, B), A), _slopes(lambda z: L(x, A, z), B)]
    right = max(map(relative_error, (base + dx_lora, dA, dB), slopes))
    wrong = [relative_error(dx, slopes[0]) for dx in (dx_lora, base)]
    assert right < 1e-12
    assert min(wrong) > 0.1
    assert relative_error(B.T @ dB, dA @ A.T) < 1e-12
    return f"dx, dA, dB: {right:.0e}; dx - dy W: {wrong[0]:.2f}, dx - s (dy B) A: {wrong[1]:.2f}"


def the_gradient_crosses_a_frozen_W() -> str:
    """Two adapted layers: with dx cut at the upper W₀ the lower dB is wrong, and zero at the start. Products: 2/3."""
    rng = np.random.default_rng(0)
    x, dy, W = rng.standard_normal((9, 8)), rng.standard_normal((9, 8)), rng.standard_normal((2, 8, 8))
    A, B = rng.standard_normal((2, 2, 8)), rng.standard_normal((2, 8, 2)) / 4

    def lower(B: Array, upper: Array) -> Array:
        """dB of the lower layer, for y = x (W₁ + B₁ A₁)ᵀ (W₂ + B₂ A₂)ᵀ."""
        return ops.lora_B_gradients(dy @ (upper + B[1] @ A[1]), x @ A[0].T, 1.0)

    def L(B1: Array) -> Array:
        return (dy * (x @ (W[0] + B1 @ A[0]).T @ (W[1] + B[1] @ A[1]).T)).sum()

    slopes, cut = _slopes(L, B[0]), lower(B, 0 * W[1])
    assert relative_error(lower(B, W[1]), slopes) < 1e-12
    cosine = float((cut * slopes).sum() / np.linalg.norm(cut) / np.linalg.norm(slopes))
    at_the_start = float(np.linalg.norm(lower(0 * B, 0 * W[1])))
    assert cosine < 0.9
    assert at_the_start == 0
    methods: dict[str, dict[str, Any]] = {"full": {}, "lora": {"targets": "all-linear", "r": 16}}
    full, lora = (count("llama-2-7b", name, tokens=512, **options).flops() for name, options in methods.items())
    share = sum(part.products for part in lora) / sum(part.products for part in full)
    assert 2 / 3 < share < 0.7
    return f"✂ W₂: cos {cosine:.2f}, B = 0: ‖dB₁‖ = {at_the_start:g}; 7B, r = 16: FLOPs × {share:.3f}"


def the_scale_enters_each_gradient_once() -> str:
    """s → 2 s doubles dA, dB and the adapter's dx; the first step of ΔW grows by 4 with SGD, by 2 with Adam."""
    rng = np.random.default_rng(0)
    x, dy = rng.standard_normal((9, 6)), rng.standard_normal((9, 5))
    A, B = rng.standard_normal((2, 6)), rng.standard_normal((5, 2))
    sizes = []
    for s in (1.5, 3.0):
        dx, dh = ops.lora_backward(dy, A, B, s)
        dA, dB = ops.lora_A_gradients(dh, x), ops.lora_B_gradients(dy, x @ A.T, s)
        adam = Parameter(0 * B)
        AdamW({"B": adam}, lr=1.0).step(Gradients({adam: dB}))
        steps = [s * dB @ A, s * adam.data @ A]  # of ΔW from B = 0, at a rate of 1
        sizes.append([np.linalg.norm(each) for each in (dA, dB, dx, *steps)])
    powers = np.log2(np.array(sizes[1]) / sizes[0])
    assert np.allclose(powers, [1, 1, 1, 2, 1])
    return "s^k: dA {:.0f}, dB {:.0f}, dx {:.0f}; ΔW₁: SGD {:.0f}, Adam {:.0f}".format(*powers)


def dropout_masks_dx_and_not_the_merge() -> str:
    """dx = dy W + dh A ∘ keep, with keep 0 or 1/(1-p); on average over the masks y is that of the merged W + s B A."""
    rng = np.random.default_rng(0)
    x, dy, W, p, s = rng.standard_normal((9, 6)), rng.standard_normal((9, 5)), rng.standard_normal((5, 6)), 0.4, 3.0
    A, B, keep = rng.standard_normal((2, 6)), rng.standard_normal((5, 2)), (rng.random((9, 6)) >= p) / (1 - p)
    slopes = _slopes(lambda z: (dy * (z @ W.T + s * (z * keep) @ A.T @ B.T)).sum(), x)
    branch = ops.lora_backward(dy, A, B, s)[0]
    errors = [relative_error(dy @ W + branch * mask, slopes) for mask in (keep, 1, keep * (1 - p))]
    masks = (rng.random((20_000, 9, 6)) >= p) / (1 - p)
    mean = x @ W.T + s * (x * masks.mean(axis=0)) @ A.T @ B.T
    merged = [relative_error(x @ (W + factor * s * B @ A).T, mean) for factor in (1, 1 - p)]
    assert errors[0] < 1e-12
    assert min(errors[1:]) > 0.1
    assert merged[0] < 0.02
    assert merged[1] > 0.1
    return (
        f"dx: keep {errors[0]:.0e}, 1: {errors[1]:.2f}, 0/1: {errors[2]:.2f}; "
        f"E y - x (W + s B A)ᵀ: {merged[0]:.3f}, × (1 - p): {merged[1]:.2f}"
    )


def easy_inputs_hide_wrong_gradients() -> str:
    """How many of the known wrong LoRA backwards are right at B = 0, at α = r, at p = 0, or in a batch of one row."""
    lora, hidden = problems()["low_rank"], {}
    good = lora.cases()[:3]
    for name in ("", "B = 0", "α = r", "p = 0", "N = 1"):
        cases = [_easier(case, name) for case in good]
        true = [apply(lora.backward, case) for case in cases]
        hidden[name] = 0
        for fault in lora.faults.values():
            pairs = zip((apply(fault.wrong, case) for case in cases), true, strict=True)
            hidden[name] += all(relative_error(mine[t], right[t]) < 1e-9 for mine, right in pairs for t in mine)
    assert hidden.pop("") == 0
    assert len(lora.faults) == 31
    assert hidden == {"B = 0": 8, "α = r": 6, "p = 0": 6, "N = 1": 3}
    S, dy = np.random.default_rng(0).standard_normal((2, 4, 6))
    P = np.exp(S) / np.exp(S).sum(axis=1, keepdims=True)
    dS = [float(abs(P * (up - (up * P).sum(axis=1, keepdims=True))).max()) for up in (1 + 0 * dy, dy)]
    assert dS[0] < 1e-15 < 0.1 < dS[1]
    numbers = ", ".join(f"{name}: {n}" for name, n in hidden.items())
    return f"{len(lora.faults)}: {numbers}; softmax, dy = 1: {dS[0]:.0e}, N(0, 1): {dS[1]:.2f}"


def a_small_B_makes_dA_small_and_Adam_hides_it() -> str:
    """‖dA‖ ∝ ‖B‖, ‖dB‖ is not: clipping and normalised inputs leave that, Adam's step hides it, A = B = 0 stays."""
    rng = np.random.default_rng(0)
    x, dy = rng.standard_normal((2, 50, 8)) + 1
    A, B = rng.standard_normal((2, 8)), rng.standard_normal((8, 2))

    def dA(B: Array, x: Array = x) -> Array:
        return ops.lora_A_gradients(ops.lora_backward(dy, A, B, 1.0)[1], x)

    def adam(start: Array, g: Array) -> Array:
        p = Parameter(start)
        AdamW({"p": p}, lr=0.1).step(Gradients({p: g}))
        return p.data - start

    small, key, normal = dA(B / 1000), Parameter(A), (x - x.mean(axis=0)) / x.std(axis=0)
    pairs = {
        "dA": (small, dA(B)),
        "clip": (clip_by_global_norm(Gradients({key: small}), 1.0)[0][key], dA(B)),
        "norm": (dA(B / 1000, normal), dA(B, normal)),
        "Adam": (adam(A, small), adam(A, dA(B))),
    }
    ratios = {name: float(np.linalg.norm(after) / np.linalg.norm(before)) for name, (after, before) in pairs.items()}
    assert np.allclose([ratios[name] for name in ("dA", "clip", "norm")], 1e-3)
    assert abs(ratios["Adam"] - 1) < 1e-3
    assert not adam(0 * A, dA(0 * B)).any()
    assert np.linalg.norm(ops.lora_B_gradients(dy, x @ A.T, 1.0)) > 1  # whatever B is
    found = ", ".join(f"{name} × {ratio:.3f}" for name, ratio in ratios.items())
    return f"B → B / 1000: {found}; A = B = 0: Adam 0"


def cross_attention_takes_two_streams() -> str:
    """A_q sees the decoder's x, A_k and A_v the encoder's m: gradients against slopes; the other stream is wrong."""
    rng = np.random.default_rng(0)
    C, r = 6, 2
    W, A, B = rng.standard_normal((3, C, C)) / 2, rng.standard_normal((3, r, C)), rng.standard_normal((3, C, r)) / 2
    errors = []
    for T in (5, 4):
        x, m, do = rng.standard_normal((1, 4, C)), rng.standard_normal((1, T, C)), rng.standard_normal((1, 4, C))
        upstream = ops.attention_backward(do, _cross_attention(A, B, W, x, m)[1])  # dq, dk, dv
        dh = [ops.lora_backward(each, a, b, 1.0)[1] for each, a, b in zip(upstream, A, B, strict=True)]
        slopes = _slopes(partial(_along, do, _cross_attention, B, W, x, m), A)
        found = [ops.lora_A_gradients(each, u) for each, u in zip(dh, (x, m, m), strict=True)]
        errors.append(max(map(relative_error, found, slopes)))
    wrong = relative_error(ops.lora_A_gradients(dh[1], x), slopes[1])  # with as many keys as queries
    assert max(errors) < 1e-12
    assert wrong > 0.5
    return f"dA_q (x), dA_k, dA_v (m): {max(errors):.0e}; dA_k (x): {wrong:.2f}"


def four_bits_store_and_do_not_learn() -> str:
    """Through W in NF4: gradients of x, A, B against slopes; a step of 1e-3 ‖W‖ changes no code."""
    rng = np.random.default_rng(0)
    W, x, dy = rng.standard_normal((64, 64)) / 8, rng.standard_normal((9, 64)), rng.standard_normal((9, 64))
    A, B, s = rng.standard_normal((2, 64)) / 8, rng.standard_normal((64, 2)) / 8, 2.0
    Q = NF4.of(W)
    What = Q.dense()
    dx, dh = ops.lora_backward(dy, A, B, s)
    dx += ops.quantized_linear_backward(dy, Q)
    gradients = dx, ops.lora_A_gradients(dh, x), ops.lora_B_gradients(dy, x @ A.T, s)

    def L(x: Array, A: Array, B: Array) -> Array:
        return (dy * (x @ What.T + s * x @ A.T @ B.T)).sum()

    slopes = [_slopes(lambda z: L(z, A, B), x), _slopes(lambda z: L(x, z, B), A), _slopes(lambda z: L(x, A, z), B)]
    error, rounding = max(map(relative_error, gradients, slopes)), relative_error(What, W)
    step = rng.standard_normal(W.shape)
    after = What + 1e-3 * np.linalg.norm(W) / np.linalg.norm(step) * step
    before, after = (nf4_codes(M.astype(np.float32))[0] for M in (W, after))
    moved = int((after != before).sum())
    assert error < 1e-12
    assert 0.05 < rounding < 0.15
    assert moved == 0
    bits = [accounting.nf4_bits(2**24, double) / 2**24 for double in (False, True)]
    whole = count("llama-2-7b", "qlora", r=16).memory()["weights"] / 1e9
    assert whole < 13.6 / 3
    found = f"dx, dA, dB: {error:.0e}; ‖Ŵ - W‖ {rounding:.3f}; ΔW 1e-3: {moved} / {before.size}"
    return f"{found}; {bits[0]:.2f}, {bits[1]:.3f} bit; 7B {whole:.2f} GB"


def _cross_attention(A: Array, B: Array, W: Array, x: Array, m: Array) -> tuple[Array, Any]:
    """Attention from x to m with one head, (y, cache); A, B and W are stacked for q, k and v."""
    q, k, v = (u @ (w + b @ a).T for u, w, a, b in zip((x, m, m), W, A, B, strict=True))
    return ops.attention_forward(q, k, v, None, q.shape[-1])


def _along(dy: Array, f: Callable[..., Any], *rest: Array) -> Array:
    """Σ dy ∘ y for y, cache = f(z, *rest), where z comes last."""
    *others, z = rest
    return (dy * f(z, *others)[0]).sum()


def _easier(case: Case, name: str) -> Case:
    """The case with inputs that hide something."""
    inputs, constants = case.inputs, case.constants
    if name == "B = 0":
        return case._replace(inputs=inputs | {"B": 0 * inputs["B"]})
    if name == "α = r":
        return case._replace(constants=constants | {"alpha": float(constants["r"])})
    if name == "p = 0":
        return case._replace(constants=constants | {"keep": np.ones(inputs["x"].shape), "p": 0.0})
    if name == "N = 1":
        row, one = {"x": inputs["x"][:1, :1]}, {"keep": constants["keep"][:1, :1]}
        return case._replace(dy=case.dy[:1, :1], inputs=inputs | row, constants=constants | one)
    return case


def _slopes(L: Callable[[Array], Array], x: Array) -> Array:
    """The gradient of L at x, entry by entry, by complex steps."""
    found = np.empty(x.shape)
    for i in np.ndindex(x.shape):
        z = x.astype(complex)
        z[i] += 1e-30j
        found[i] = L(z).imag / 1e-30
    return found
