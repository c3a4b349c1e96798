"""The adapters that are compared with LoRA: what each moves, keeps and multiplies, and what it cannot."""

import tracemalloc
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from .... import ops
from ....accounting import executed_flops, nbytes
from ....accounting.live import CountedArray
from ....adapters.ia3 import IA3Linear
from ....adapters.lora import LoRALinear
from ....adapters.vera import VeRALinear
from ....backend import Array
from ....nn import Gradients, Linear, Parameter
from ....verify.problems.dora import backward, dora, norm_held_constant


def the_length_of_V_needs_no_V() -> str:
    """‖V_o‖² from products of W, A and B: exact, in a tenth of V's memory. Only the full dV is orthogonal to V."""
    rng, n, r = np.random.default_rng(0), 512, 8
    W, A, B = (rng.standard_normal(shape) for shape in ((n, n), (r, n), (n, r)))
    s, squares = 2.0, np.einsum("oi,oi->o", W, W)  # W is frozen: once and for all

    def by_products() -> Array:
        P, Q = W @ A.T, A @ A.T
        return np.sqrt(squares + 2 * s * (B * P).sum(axis=1) + s * s * (B @ Q * B).sum(axis=1))

    def by_V() -> Array:
        return np.linalg.norm(W + s * B @ A, axis=1)

    lengths, V_lengths = by_products(), by_V()
    off = float(abs(lengths / V_lengths - 1).max())
    small, large = (_peak(f) / W.nbytes for f in (by_products, by_V))
    assert off < 1e-13
    assert small < 0.1 < 1 < large
    along = {}
    for name, gradient in (("full", backward), ("held", norm_held_constant)):
        given = dora.draw(np.random.default_rng(1), (2, 4, 32, 24, 2, 4, 0))
        A, B, W = given.inputs["A"], given.inputs["B"], given.constants["W"]
        dB = gradient(given.dy, **given.inputs, **given.constants)["dB"]
        dV = _dV(given, full=name == "full")
        assert np.allclose(dB, 2 * dV @ A.T)  # s = 4/2
        # ⟨B_o, dB_o⟩ + ⟨W_o, dV_o⟩ = ⟨V_o, dV_o⟩: the slope of the loss where row o of W and of B grow together
        slopes = np.sum(B * dB, axis=1) + np.sum(W * dV, axis=1)
        along[name] = float(abs(slopes).max() / abs(B * dB).sum(axis=1).max())
    assert along["full"] < 1e-13 < 0.1 < along["held"]
    return (
        f"{n} × {n}, r = {r}: n off {off:.0e}, bytes / W {small:.2f} (V: {large:.1f}); "
        f"⟨V_o, dV_o⟩ full {along['full']:.0e}, ‖V‖ held {along['held']:.2f}"
    )


def only_e_learns_first_and_a_cut_triplet_can_return() -> str:
    """AdaLoRA: at e = 0 dA = dB = 0 and de is not; e ∘ de = ⟨A_k, dA_k⟩ = ⟨B_k, dB_k⟩; the budget falls as a cube."""
    rng, s = np.random.default_rng(0), 0.7
    x, dy = rng.standard_normal((30, 12)), rng.standard_normal((30, 9))
    A, B, e = rng.standard_normal((4, 12)), rng.standard_normal((9, 4)), rng.standard_normal(4)

    def gradients(e: Array, B: Array = B) -> tuple[Array, Array, Array]:
        h = x @ A.T
        M = dy.T @ h
        return (s * dy @ B * e).T @ x, s * M * e, s * (B * M).sum(axis=0)

    def loss(e: Array) -> float:
        return float(np.sum(dy * (s * (x @ A.T * e) @ B.T)))

    dA, dB, de = gradients(0 * e)
    differences = np.array([(loss(unit) - loss(-unit)) / 2 for unit in np.eye(4)])  # exact: y is linear in e
    assert not dA.any()
    assert not dB.any()
    assert np.allclose(de, differences, rtol=1e-12)
    assert abs(de).min() > 0.1  # so a triplet whose e was cut to 0 moves again at the next step
    assert not any(dp.any() for dp in gradients(0 * e, 0 * B))  # with LoRA's start nothing would ever be trained
    dA, dB, de = gradients(e)
    off = max(_relative((A * dA).sum(axis=1), e * de), _relative((B * dB).sum(axis=0), e * de))
    assert off < 1e-14
    first, last, begin, end = 12 * 64, 8 * 64, 100, 800  # triplets of 64 matrices, between these steps

    def budget(t: int) -> int:
        return int((first - last) * (1 - (t - begin) / (end - begin)) ** 3 + last)

    budgets = [budget(t) for t in (100, 250, 450, 800)]
    assert (budgets[0], budgets[-1]) == (first, last)
    assert budget(begin + int(0.21 * (end - begin))) <= (first + last) / 2  # half of the cuts in a fifth of the time
    # PEFT's s is α/(init_r + 1e-5), whatever the rank is now; LoRA at the rank that is left would have α/8
    return f"de at e = 0: min {abs(de).min():.1f}; law {off:.0e}; budget at t = 100, 250, 450, 800: {budgets}"


def one_product_gives_both_gradients_of_VeRA() -> str:
    """With M = dyᵀ h, dd and db need h alone: fewer bytes kept than LoRA, which keeps x; but many more products."""
    rng, n = np.random.default_rng(0), 96
    base = Linear(Parameter(rng.standard_normal((n, n))))
    x, dy = rng.standard_normal((50, n)), rng.standard_normal((50, n))
    vera, lora = VeRALinear.start(base, rng=rng, r=64), LoRALinear.start(Linear(base.weight), rng=rng, r=8)
    A, B, d, _ = vera.tensors
    grads = [_gradients(vera, x, dy)]
    assert [bool(dp.any()) for dp in grads[0].values()] == [False, True]  # d, b: at b = 0 only b moves
    vera.vera_lambda_b.data = b = rng.standard_normal(n)
    grads.append(_gradients(vera, x, dy))
    h = x @ A.T
    u, q = (d * h) @ B.T, (b * dy) @ B  # a backward written line by line keeps u (N, out)
    off = max(
        _relative(grads[1]["vera_lambda_b"], (dy * u).sum(axis=0)),
        _relative(grads[1]["vera_lambda_d"], (q * h).sum(axis=0)),
    )
    assert off < 1e-13
    kept = {name: nbytes(layer.forward(x)[1]) / 50 / 8 for name, layer in (("LoRA", lora), ("VeRA", vera))}
    assert kept == {"LoRA": n + 8, "VeRA": 64}
    base_products = 4 * 50 * n * n  # forward and dx
    products = {name: _executed(layer, x) - base_products for name, layer in (("LoRA", lora), ("VeRA", vera))}
    times = products["VeRA"] / products["LoRA"]
    assert np.isclose(times, 64 / 8 * 5 / 6)  # five thin products and not six, each eight times as large
    return (
        f"{n} × {n}, LoRA r = 8, VeRA r = 64: numbers kept a row {kept['LoRA']:.0f}, {kept['VeRA']:.0f}; thin products "
        f"× {times:.1f}; error of db, dd {off:.0e}"
    )


def IA3_scales_the_bias_and_all_directions() -> str:
    """y = l ∘ (x Wᵀ + b): merged without l ∘ b it is wrong; the change of W has full rank; where l = 0 W is lost."""
    rng = np.random.default_rng(0)
    W, b, x = rng.standard_normal((9, 12)), 3 * rng.standard_normal(9), rng.standard_normal((20, 12))
    layer = IA3Linear.start(Linear(Parameter(W), Parameter(b)), rng=rng)
    l = layer.ia3_l.data = 1 + 0.3 * rng.standard_normal(9)  # noqa: E741
    y, merged = layer.forward(x)[0], layer.merged()
    assert merged[1] is not None
    exact, forgot = (_relative(x @ merged[0].T + bias, y) for bias in (merged[1], b))
    assert exact < 1e-14 < 0.05 < forgot
    rank = int(np.linalg.matrix_rank(merged[0] - W))
    assert rank == 9
    l[3] = 0  # a row that the vector has switched off
    with np.errstate(all="ignore"):
        divided = layer.merged()[0] / l[:, None]
    assert np.isnan(divided[3]).all()
    assert np.allclose(np.delete(divided, 3, 0), np.delete(W, 3, 0))
    return f"l ∘ b: {exact:.0e}, b: {forgot:.2f}; rank of (diag(l) - 1) W: {rank} / 9, by 9 numbers; l_o = 0: 0/0"


def with_A_frozen_W_moves_in_r_directions() -> str:
    """LoRA-FA: nothing moves outside the rows of A, so most of a change of rank r is out of reach; x is not kept."""
    rng, n, r = np.random.default_rng(0), 64, 4
    x = rng.standard_normal((300, n))
    D = rng.standard_normal((n, r)) @ rng.standard_normal((r, n)) / n  # the change that is wanted, of rank r
    layer = LoRALinear.start(Linear(Parameter(np.zeros((n, n)))), rng=rng, r=r, alpha=r)
    A = layer.lora_A.data
    whole = nbytes(layer.forward(x)[1])
    layer.lora_A.trainable = False
    part = nbytes(layer.forward(x)[1])
    assert (whole, part) == (300 * (n + r) * 8, 300 * r * 8)
    rows = np.linalg.svd(A, full_matrices=False)[2]  # an orthonormal basis of A's rows
    floor = float(np.linalg.norm(D - D @ rows.T @ rows) / np.linalg.norm(D))
    for _ in range(400):
        y, cache = layer.forward(x)
        grads = Gradients()
        layer.backward((y - x @ D.T) / len(x), cache, grads)
        # PEFT's step for LoRA-FA divides by A Aᵀ: then W moves along G, projected on the rows of A
        step = grads[layer.lora_B] @ np.linalg.inv(A @ A.T)
        layer.lora_B.data = layer.lora_B.data - 0.5 * step
    outside = float(np.linalg.norm(layer.delta() - layer.delta() @ rows.T @ rows))
    reached = float(np.linalg.norm(layer.delta() - D) / np.linalg.norm(D))
    assert outside < 1e-12
    assert floor < reached < floor + 0.05
    assert floor > 0.9
    return f"kept a row {n + r} → {r}; ‖ΔW - D‖/‖D‖: floor {floor:.2f}, reached {reached:.2f}; LoRA's floor 0"


def an_SVD_serves_three_ends() -> str:
    """One SVD of W: train r² numbers in its first directions (LoRA-XS) or its singular values (SVF), or truncate it."""
    rng, r = np.random.default_rng(0), 4
    W = rng.standard_normal((24, 32))
    U, S, Vt = np.linalg.svd(W, full_matrices=False)
    A, B = Vt[:r], U[:, :r] * S[:r]
    R, z = rng.standard_normal((r, r)), 1 + 0.3 * rng.standard_normal(24)
    used = {"XS": W + B @ R @ A, "SVF": (U * S * z) @ Vt, "cut": (U[:, :r] * S[:r]) @ Vt[:r]}
    ranks = {name: tuple(map(_rank, (used[name], used[name] - W))) for name in used}
    assert ranks == {"XS": (24, 4), "SVF": (24, 24), "cut": (4, 20)}
    lost = float(np.linalg.norm(used["cut"] - W))
    assert np.isclose(lost, np.sqrt(np.sum(S[r:] ** 2)))
    D = np.outer(rng.standard_normal(24), rng.standard_normal(32))  # a change of rank 1, in a direction of its own
    D /= np.linalg.norm(D)
    missed = {
        "XS": np.linalg.norm(D - U[:, :r] @ U[:, :r].T @ D @ Vt[:r].T @ Vt[:r]),
        "SVF": np.linalg.norm(D - (U * np.sum(U * (D @ Vt.T), axis=0)) @ Vt),
    }
    assert min(missed.values()) > 0.9  # LoRA of r = 1 holds it
    flipped = np.array([1, -1, 1, 1])  # another library's SVD is as right with this sign
    assert np.allclose((U[:, :r] * flipped * S[:r]) @ (flipped[:, None] * Vt[:r]), used["cut"])
    other = W + (B * flipped) @ R @ (flipped[:, None] * A)
    moved = _relative(other - W, used["XS"] - W)
    assert moved > 0.5
    rank = "; ".join(f"{name} {a}, {b}" for name, (a, b) in ranks.items())
    return (
        f"24 × 32, r = {r}: rank W', W' - W: {rank}; missed of a rank-1 D: XS {missed['XS']:.2f}, SVF "
        f"{missed['SVF']:.2f}; cut loses {lost / np.linalg.norm(W):.2f} ‖W‖; one sign: R's ΔW off by {moved:.2f}"
    )


def other_products_have_more_rank_for_as_many_numbers() -> str:
    """LoHa (B₁A₁) ∘ (B₂A₂) is a LoRA of rank r². LoKr w₁ ⊗ w₂ has the product of the ranks, and needs no ΔW."""
    rng, r = np.random.default_rng(0), 4
    n_out, n_in = 48, 60
    B1, A1, B2, A2 = (rng.standard_normal(shape) for shape in ((n_out, r), (r, n_in)) * 2)
    w1, w2, x = rng.standard_normal((6, 5)), rng.standard_normal((8, 12)), rng.standard_normal((7, n_in))
    dy = rng.standard_normal((7, n_out))
    ranks = [_rank(W) for W in (B1 @ A1, B1 @ A1 * (B2 @ A2), np.kron(w1, w2))]
    assert ranks == [r, r * r, 5 * 8]
    numbers = r * (n_out + n_in), 2 * r * (n_out + n_in), w1.size + w2.size
    reshaped = w1 @ x.reshape(7, 5, 12) @ w2.T  # of each row: (6, 5) (5, 12) (12, 8)
    off = _relative(reshaped.reshape(7, n_out), x @ np.kron(w1, w2).T)
    assert off < 1e-13
    B = (B1[:, :, None] * B2[:, None, :]).reshape(n_out, -1)
    A = (A1[:, None, :] * A2[None, :, :]).reshape(-1, n_in)
    assert _relative(B @ A, B1 @ A1 * (B2 @ A2)) < 1e-13
    dB = dy.T @ (x @ A.T)  # of that LoRA; dB₁ adds up what each column of B₁ is in
    dB1 = (dB.reshape(n_out, r, r) * B2[:, None, :]).sum(axis=2)
    assert _relative(dB1, (dy.T @ x * (B2 @ A2)) @ A1.T) < 1e-13
    h = 1e-6
    up, down = (np.sum(dy * (x @ ((B1 + e * dB1) @ A1 * (B2 @ A2)).T)) for e in (h, -h))
    assert np.isclose((up - down) / (2 * h), np.sum(dB1 * dB1), rtol=1e-6)
    return (
        f"{n_out} × {n_in}, r = {r}: LoRA {numbers[0]} numbers, rank {ranks[0]}; LoHa {numbers[1]}, rank {ranks[1]}; "
        f"LoKr {numbers[2]}, rank {ranks[2]}; LoKr without ΔW: {off:.0e}"
    )


def _dV(case: Any, full: bool) -> Array:
    """The gradient of V = W + s B A, (out, in)."""
    given = {**case.inputs, **case.constants}
    V = given["W"] + given["alpha"] / given["r"] * given["B"] @ given["A"]
    n = np.linalg.norm(V, axis=1, keepdims=True)
    G = ops.rows.rows(case.dy).T @ ops.rows.rows(given["x"])
    if full:
        G = G - V / n * np.sum(G * V / n, axis=1, keepdims=True)
    return given["m"][:, None] / n * G


def _gradients(layer: Any, x: Array, dy: Array) -> Mapping[str, Array]:
    grads = Gradients()
    layer.backward(dy, layer.forward(x)[1], grads)
    return {name: grads[p] for name, p in layer.own_parameters().items() if p.trainable}


def _executed(layer: Any, x: Array) -> int:
    """FLOPs of the products of a forward and backward."""

    def run() -> None:
        y, cache = layer.forward(x.view(CountedArray))
        layer.backward(y, cache, Gradients())

    return executed_flops(layer, run)["products"]


def _peak(function: Callable[[], Any]) -> int:
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def _rank(W: Array) -> int:
    return int(np.linalg.matrix_rank(W))


def _relative(found: Array, wanted: Array) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))
