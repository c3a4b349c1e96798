"""What training practice changes: rates, batches, penalties, padding, forgetting, precision, pruning."""

import numpy as np

from .... import ops
from ....adapters.lora import LoRALinear
from ....adapters.spectrum import lora_svd, svd, truncate
from ....backend import Array
from ....nn import Module
from ....nn.layers import Linear
from ....nn.module import Gradients
from ....nn.optim import SGD, AdamW
from ....quantization.bfloat16 import bfloat16_bits, from_bfloat16


def one_rate_is_another_step_at_another_width() -> str:
    """Adam's first step moves an output of a full layer by η Σ|x|, and one of LoRA by s η Σ|A x|, whatever in is."""
    moves, s, eta = [], 2.0, 1e-3
    for n_in in (64, 1024):
        rng = np.random.default_rng(0)
        x, dy = rng.choice([-1.0, 1.0], (1, n_in)), rng.standard_normal((1, 5))
        row = []
        for adapted in (False, True):
            layer: Module = Linear(rng.standard_normal((5, n_in)))
            expected = eta * abs(x).sum()
            if adapted:
                layer = LoRALinear(layer, r=64, alpha=s * 64, rng=0)
                expected = s * eta * abs(x @ layer.lora_A.data.T).sum()
            (before, cache), grads = layer.forward(x), Gradients()
            layer.backward(dy, cache, grads)
            AdamW(layer.trainable_parameters(), eta, eps=1e-30).step(grads)
            row.append(abs(layer.forward(x)[0] - before).mean())
            assert np.isclose(row[-1], expected)
        moves.append(row)
    (full, lora), (wide_full, wide_lora) = moves
    assert np.isclose(wide_full / full, 16)
    assert 0.7 < wide_lora / lora < 1.4
    return (
        f"in 64 → 1024, η = {eta:g}: full |Δy| {full:.3f} → {wide_full:.3f} (× {wide_full / full:.0f}); "
        f"LoRA {lora:.3f} → {wide_lora:.3f} (× {wide_lora / lora:.1f})"
    )


def batch_noise_falls_alike_but_the_product_is_not_linear() -> str:
    """The noise of dW, dA and dB falls as 1/√batch alike; ΔW's step also has the term η² dB dA, whose share grows."""
    rng = np.random.default_rng(0)
    D, A, B = rng.standard_normal((24, 32)), rng.uniform(-1, 1, (4, 32)) / np.sqrt(32), rng.standard_normal((24, 4)) / 9

    def noise(batch: int) -> Array:
        """For G, BᵀG and GAᵀ: the root mean square of a batch's deviation from the mean gradient, relative to it."""
        x, e = rng.standard_normal((300, batch, 32)), rng.standard_normal((300, batch, 24))
        G = (e - x @ D.T).swapaxes(1, 2) @ x / batch
        triples = (G, -D), (B.T @ G, -B.T @ D), (G @ A.T, -D @ A.T)
        return np.array([np.sqrt(((g - m) ** 2).sum() / 300 / (m**2).sum()) for g, m in triples])

    fall = noise(4) / noise(64)
    dA, dB, share = -B.T @ D, -D @ A.T, []
    for eta in (0.01, 0.04):
        first, second = eta * (dB @ A + B @ dA), eta**2 * dB @ dA
        assert np.allclose((B - eta * dB) @ (A - eta * dA) - B @ A, second - first)
        share.append(np.linalg.norm(second) / np.linalg.norm(first))
    assert np.allclose(fall, 4, rtol=0.1)
    assert np.isclose(share[1] / share[0], 4)
    return "N = 4 → 64: ÷ {:.1f} (dW), ÷ {:.1f} (dA), ÷ {:.1f} (dB); ".format(*fall) + (
        f"‖η² dB dA‖ / ‖η (dB A + B dA)‖ = {share[0]:.2f}, {share[1]:.2f} at η = 0.01, 0.04"
    )


def decay_of_the_factors_thresholds_singular_values() -> str:
    """λ on A and B: σ → max(σ - λ/s, 0) of ΔW, a nuclear norm. λ on ΔW itself: σ → σ / (1 + λ)."""
    sigma, s, decay = np.r_[4.0, 2, 1, 0.5, np.zeros(4)], 2.0, 1.6
    rng = np.random.default_rng(0)
    U, V = (np.linalg.qr(rng.standard_normal((8, 8)))[0] for _ in range(2))
    T = (U * sigma) @ V.T
    A, B, D = rng.uniform(-1, 1, (8, 8)) / np.sqrt(8), np.zeros((8, 8)), np.zeros((8, 8))
    for _ in range(3000):
        G, eta = s * B @ A - T, 0.02
        A, B = (1 - eta * decay) * A - eta * s * B.T @ G, (1 - eta * decay) * B - eta * s * G @ A.T
        D = (1 - eta * decay) * D - eta * (D - T)
    on_factors, on_update = svd(s * B @ A).sigma, svd(D).sigma
    assert np.allclose(on_factors, np.maximum(sigma - decay / s, 0), atol=1e-4)
    assert np.allclose(on_update, sigma / (1 + decay), atol=1e-6)
    assert np.allclose((1 - 0.01) ** 2 * B @ A, (0.99 * B) @ (0.99 * A))  # one decoupled step: twice the decay of ΔW
    numbers = [", ".join(f"{value:.2f}" for value in values[:4]) for values in (sigma, on_factors, on_update)]
    return "σ(ΔW) = {}; λ on A, B: {}; λ on ΔW: {}".format(*numbers)


def three_penalties_lower_the_rank_and_two_write_zeros() -> str:
    """L2, proximal L1 and the group penalty lower ΔW's rank; zeros come with a proximal step, dead components too."""
    rng = np.random.default_rng(0)
    T = rng.standard_normal((16, 2)) @ rng.standard_normal((2, 16))
    T = 4 * T / np.linalg.norm(T) + 0.075 * rng.standard_normal((16, 16))
    start, found = rng.standard_normal((8, 16)) / 4, {}
    for name, size in {"-": 0, "dropout": 0.5, "L2": 0.5, "L1, ∂": 0.05, "L1, prox": 0.05, "group": 0.5}.items():
        A, B, eta = start, np.zeros((16, 8)), 0.02
        for _ in range(2500):
            # dropout's expected gradient, of whitened inputs: p/(1 - p) ΔW
            G = B @ A - T + (size / (1 - size) * B @ A if name == "dropout" else 0)
            grow = {"L2": lambda M: size * M, "L1, ∂": lambda M: size * np.sign(M)}.get(name, np.zeros_like)  # noqa: B023
            A, B = A - eta * (B.T @ G + grow(A)), B - eta * (G @ A.T + grow(B))
            if name == "L1, prox":
                A, B = (np.sign(M) * np.maximum(abs(M) - eta * size, 0) for M in (A, B))
            if name == "group":
                norm = np.sqrt((A**2).sum(axis=1) + (B**2).sum(axis=0))
                keep = np.maximum(1 - eta * size / np.maximum(norm, 1e-30), 0)
                A, B = keep[:, None] * A, keep * B
        sigma = svd(B @ A).sigma
        dead = ((A == 0).all(axis=1) & (B == 0).all(axis=0)).sum()
        found[name] = int((sigma > 1e-3 * sigma[0]).sum()), int((A == 0).sum() + (B == 0).sum()), int(dead)
    assert found["-"] == found["dropout"] == (8, 0, 0)
    assert found["L2"][0] < 8
    assert found["L2"][1:] == found["L1, ∂"][1:] == (0, 0)  # small, and not one of them 0
    assert found["L1, prox"][1] > 0
    assert found["group"][1] == found["group"][2] * 32  # zeros in whole components, which can be deleted
    assert found["group"][0] == 8 - found["group"][2] < 8
    return "r, #0, #dead: " + "; ".join("{} {}, {}, {}".format(name, *numbers) for name, numbers in found.items())


def one_division_by_the_labels_of_the_step() -> str:
    """Padded = accumulated if the sum is divided once, by all labels; a mean of means, and counted pads, are others."""
    rng, lengths = np.random.default_rng(0), (12, 6, 3)
    U, x, labels = rng.standard_normal((9, 5)), rng.standard_normal((3, 12, 5)), rng.integers(9, size=(3, 12))
    targets = np.where(np.arange(12) < np.array(lengths)[:, None], labels, ops.IGNORE)

    def step(parts: list[Array], counts: list[int | None]) -> tuple[float, Array]:
        """The sum of the losses of the parts, and of their gradients in U."""
        loss, dU = 0.0, np.zeros_like(U)
        for rows, count in zip(parts, counts, strict=True):
            L, cache = ops.cross_entropy_forward(x[rows] @ U.T, targets[rows], count)
            loss += float(L)
            dU += ops.linear_gradients(ops.cross_entropy_backward(1.0, cache), x[rows])
        return loss, dU

    all_rows, each = [np.arange(3)], [np.array([i]) for i in range(3)]
    right, again = step(all_rows, [None]), step(each, [21] * 3)
    pads, means = step(all_rows, [36]), step(each, [3 * n for n in lengths])
    assert np.isclose(right[0], again[0], rtol=1e-12)
    assert np.allclose(right[1], again[1], rtol=1e-9)
    assert np.allclose(pads[1], 21 / 36 * right[1])
    cosine = float(np.sum(means[1] * right[1]) / np.linalg.norm(means[1]) / np.linalg.norm(right[1]))
    assert cosine < 0.95  # turned, not only shorter
    weights = ", ".join(f"{21 / (3 * n):.2f}" for n in lengths)
    return (
        f"n = 12 + 6 + 3: L = {right[0]:.4f} = {again[0]:.4f}; 36: × {pads[0] / right[0]:.3f}; "
        f"K n_b: × {weights}, cos = {cosine:.2f}"
    )


def attention_in_blocks_is_exact_with_a_running_softmax() -> str:
    """A low-rank branch cut anywhere is the same; attention only if m, Z and o are carried from block to block."""
    rng = np.random.default_rng(0)
    q, k, v, dy = (rng.standard_normal((1, 256, 32)) for _ in range(4))
    A, B = rng.standard_normal((4, 32)), rng.standard_normal((16, 4))
    whole = ops.lora_forward(q, A, B, 2.0)[0]
    chunks = [slice(i, i + 32) for i in range(0, 256, 32)]
    parts = [ops.lora_forward(q[:, c], A, B, 2.0)[0] for c in chunks]
    branch = _relative(np.concatenate(parts, axis=1), whole)
    masks = {T: ops.attention_mask(np, T, True, None, q.dtype) for T in (256, 32)}
    o, cache = ops.attention_forward(q, k, v, masks[256], 32)
    blocks, block_cache = ops.blockwise_attention_forward(q, k, v, 32, True, block=32)
    pairs = zip(ops.blockwise_attention_backward(dy, block_cache), ops.attention_backward(dy, cache), strict=True)
    exact, backward = _relative(blocks, o), max(_relative(*pair) for pair in pairs)
    alone = [ops.attention_forward(q[:, c], k[:, c], v[:, c], masks[32], 32)[0] for c in chunks]
    local = _relative(np.concatenate(alone, axis=1), o)
    assert branch < 1e-14
    assert exact < 1e-14
    assert backward < 1e-13
    assert local > 1
    return f"LoRA {branch:.0e}; (m, Z, o) {exact:.0e}, dq dk dv {backward:.0e}; softmax(chunk) {local:.2f}"


def a_frozen_base_forgets_where_the_branch_reads_old_inputs() -> str:
    """W₀ never changes, the outputs on old inputs do; full gradient descent changes none that are orthogonal to new."""
    rng = np.random.default_rng(0)
    W0, Q = rng.standard_normal((24, 32)) / 6, np.linalg.qr(rng.standard_normal((32, 32)))[0]
    new, old = rng.standard_normal((200, 8)) @ Q[:8], rng.standard_normal((200, 24)) @ Q[8:]
    t = new @ (W0 + rng.standard_normal((24, 32)) / 6).T
    found = []
    for r in (0, 8):
        base = Linear(W0.copy())
        layer: Module = LoRALinear(base, r=r, alpha=2 * r, rng=1) if r else base
        for _ in range(300):
            (y, cache), grads = layer.forward(new), Gradients()
            layer.backward((y - t) / 200, cache, grads)
            SGD(layer.trainable_parameters(), 0.1).step(grads)
        found.append((_relative(layer.forward(new)[0], t), _relative(layer.forward(old)[0], old @ W0.T)))
    (full_new, full_old), (lora_new, lora_old) = found
    assert max(full_new, lora_new) < 1e-3  # both have learned all of it
    assert full_old < 1e-12
    assert lora_old > 0.1
    assert np.array_equal(base.weight.data, W0)  # of the LoRA: the branch taken off, it is the base, bit for bit
    return (
        f"x ⊥ x_new: full {full_old:.0e}, LoRA (r = 8) {lora_old:.2f}, B A off 0; x_new: {full_new:.0e}, {lora_new:.0e}"
    )


def sharing_costs_where_the_input_does_not_name_the_task() -> str:
    """Two adapters of rank 2 against one of rank 4, as many numbers: a tie only if tasks or inputs allow it."""
    found = {}
    for kind in ("ΔW₂ = -ΔW₁", "ΔW₂ ≠ ΔW₁", "ΔW₂ = ΔW₁", "x₁ ⊥ x₂"):
        errors = []
        for seed in range(3):
            rng = np.random.default_rng(seed)
            T1, T2 = (rng.standard_normal((32, 2)) @ rng.standard_normal((2, 32)) / 6 for _ in range(2))
            T2 = {"ΔW₂ = -ΔW₁": -T1, "ΔW₂ = ΔW₁": T1}.get(kind, T2)
            X1, X2 = rng.standard_normal((2, 60, 32))
            if kind == "x₁ ⊥ x₂":  # each task has inputs of its own
                X1[:, 16:], X2[:, :16] = 0, 0
            Y1, Y2 = (X @ T.T + 0.3 * rng.standard_normal((60, 32)) for X, T in ((X1, T1), (X2, T2)))
            shared = _best_fit(np.r_[X1, X2], np.r_[Y1, Y2], 4)
            pairs = (X1, _best_fit(X1, Y1, 2), T1), (X2, _best_fit(X2, Y2, 2), T2)
            errors.append([np.mean([_relative(X @ (shared if one else M).T, X @ T.T) for X, M, T in pairs])
                           for one in (False, True)])  # fmt: skip
        found[kind] = np.mean(errors, axis=0)
    for kind, (apart, shared) in found.items():
        assert shared < 1.3 * apart if kind in ("ΔW₂ = ΔW₁", "x₁ ⊥ x₂") else shared > 5 * apart
    return "2 × (r = 2), 1 × (r = 4): " + "; ".join("{}: {:.2f}, {:.2f}".format(kind, *e) for kind, e in found.items())


def half_precision_loses_products_steps_and_merges() -> str:
    """fp16 loses small products, fp16 and bf16 small steps of a parameter and much of a small merge; float32 none."""
    rng = np.random.default_rng(0)
    W, D = rng.standard_normal((256, 256)) / 16, rng.standard_normal((256, 8)) @ rng.standard_normal((8, 256))
    D *= 1e-3 * np.linalg.norm(W) / np.linalg.norm(D)
    lines = []
    for name, cast in {"fp16": _fp16, "bf16": _bf16, "fp32": _fp32}.items():
        product = float(cast(cast(1e-4) * cast(1e-4)))
        p = begin = cast(0.01)
        for _ in range(1000):
            p = cast(p + cast(1e-6))
        base = cast(W)
        lost = float(np.mean(cast(base + D) == base))
        lines.append((name, product, float(p - begin), lost))
    assert [product == 0 for _, product, _, _ in lines] == [True, False, False]
    assert [moved == 0 for _, _, moved, _ in lines] == [True, True, False]
    assert 0.1 < lines[0][3] < 0.5 < lines[1][3]
    assert lines[2][3] < 0.001
    words = "{}: 1e-4 · 1e-4 = {:.0e}, 1000 × 1e-6 → {:.4f}, W + ΔW = W: {:.0%}"
    return "; ".join(words.format(*line) for line in lines)


def loss_scaling_saves_gradients_and_no_steps() -> str:
    """Gradients of 1e-10 to 1e-4 in fp16 at three scales of the loss; and a step of 2⁻¹² on a weight of 1."""
    g = 10 ** np.random.default_rng(0).uniform(-10, -4, 100_000)
    scales = 1, 2**8, 2**16
    lost = [float(np.mean(_fp16(scale * g) == 0)) for scale in scales]
    assert lost[0] > 0.4 > 0.05 > lost[1] > lost[2] == 0
    with np.errstate(over="ignore"):
        assert np.isinf(_fp16(2**16 * 1.0))  # a gradient of 1
    assert not np.any(_bf16(g) == 0)
    stays = [float(cast(cast(1.0) + cast(2.0**-12))) == 1 for cast in (_fp16, _bf16, _fp32)]
    assert stays == [True, True, False]
    shares = ", ".join(f"{scale}: {share:.0%}" for scale, share in zip(scales, lost, strict=True))
    return f"gradients that become 0 in fp16, loss times {shares}; 2¹⁶ · 1 = ∞; 1 + 2⁻¹² = 1 in fp16 and bf16"


def the_training_loss_alone_hides_overfitting() -> str:
    """60 noisy examples, rank 16: the loss falls at every step; the held-out loss is lowest early, then doubles."""
    rng = np.random.default_rng(0)
    T = rng.standard_normal((40, 2)) @ rng.standard_normal((2, 40)) / np.sqrt(40)
    x, held = rng.standard_normal((2, 60, 40))
    t, t_held = (z @ T.T + 0.5 * rng.standard_normal((60, 40)) for z in (x, held))
    layer = LoRALinear(Linear(np.zeros((40, 40))), r=16, alpha=16, rng=0)
    log = []
    for _ in range(600):
        (y, cache), grads = layer.forward(x), Gradients()
        layer.backward((y - t) / 60, cache, grads)
        delta = layer.delta()
        log.append((np.mean((y - t) ** 2), np.mean((held @ delta.T - t_held) ** 2), np.linalg.norm(delta)))
        SGD(layer.trainable_parameters(), 0.05).step(grads)
    loss, unseen, size = np.array(log).T
    best = int(unseen.argmin())
    assert (np.diff(loss) < 0).all()
    assert best < 150
    assert unseen[-1] > 1.5 * unseen[best]
    assert size[-1] > size[best]
    return (
        f"t = {best}: L = {loss[best]:.2f}, L_val = {unseen[best]:.2f}, ‖ΔW‖ = {size[best]:.1f}; "
        f"t = 600: {loss[-1]:.2f}, {unseen[-1]:.2f}, {size[-1]:.1f}"
    )


def directions_beat_entries_and_outputs_beat_weights() -> str:
    """Half of an adapter's numbers, kept by σ or by entry; a ΔW cut to rank 4, nearest in weights or in outputs."""
    rng = np.random.default_rng(0)
    A, B = rng.standard_normal((8, 64)) * 0.5 ** np.arange(8)[:, None], rng.standard_normal((64, 8))
    balanced, kept = (truncate(lora_svd(A, B, 1.0), k) for k in (8, 4))
    assert np.allclose(balanced[0] @ balanced[1], B @ A)  # the same adapter, written otherwise
    pruned = []
    for factors in ((B, A), balanced):
        least = np.median(np.abs(np.concatenate(factors, axis=None)))
        pruned.append([np.where(abs(M) > least, M, 0) for M in factors])
    pruned.append(list(kept))
    assert {sum(np.count_nonzero(M) for M in factors) for factors in pruned} == {512}
    entries, of_balanced, directions = (_relative(left @ right, B @ A) for left, right in pruned)
    assert directions < of_balanced < 0.5 * entries

    D, Q, scale = rng.standard_normal((40, 40)), np.linalg.qr(rng.standard_normal((40, 40)))[0], 1 / np.arange(1, 41)
    root, back = (Q * scale) @ Q.T, (Q / scale) @ Q.T  # of C = E xxᵀ: E‖M x‖² = ‖M C^½‖²
    (B1, A1), (B2, A2) = truncate(svd(D), 4), truncate(svd(D @ root), 4)
    by_weights, by_outputs = B1 @ A1, B2 @ A2 @ back
    outputs = [_relative(M @ root, D @ root) for M in (by_weights, by_outputs)]
    weights = [_relative(M, D) for M in (by_weights, by_outputs)]
    assert outputs[1] < 0.6 * outputs[0]
    assert weights[0] < weights[1]
    return (
        f"512 / 1024: (A, B) {entries:.2f}, (√Σ Vᵀ, U √Σ) {of_balanced:.3f}, σ {directions:.3f}; "
        + "r = 4, SVD of ΔW, of ΔW C^½: y {:.2f}, {:.2f}, ΔW {:.2f}, {:.2f}".format(*outputs, *weights)
    )


def adapters_in_a_row_add_up_and_lean_on_each_other() -> str:
    """Three tasks of rank 2, r = 4, each merged before the next: what adds up, what is lost, what leans on what."""
    rng = np.random.default_rng(0)
    W0, old, tasks = rng.standard_normal((32, 32)) / 6, rng.standard_normal((200, 32)), []
    for _ in range(3):
        x = rng.standard_normal((200, 8)) @ np.linalg.qr(rng.standard_normal((32, 8)))[0].T
        tasks.append((x, x @ (W0 + rng.standard_normal((32, 2)) @ rng.standard_normal((2, 32)) / 16).T))

    def error(W: Array, task: int) -> float:
        x, t = tasks[task]
        return float(np.linalg.norm(x @ W.T - t) / np.linalg.norm(x @ W0.T - t))

    def update(W: Array, task: int) -> Array:
        layer, (x, t) = LoRALinear(Linear(W), r=4, alpha=8, rng=task), tasks[task]
        for _ in range(300):
            (y, cache), grads = layer.forward(x), Gradients()
            layer.backward((y - t) / 200, cache, grads)
            SGD(layer.trainable_parameters(), 0.3).step(grads)
        return layer.delta()

    W, rows, updates = W0, [], []
    for task in range(3):
        updates.append(update(W, task))
        W = W + updates[-1]
        rank, drift = (svd(W - W0).sigma > 1e-3).sum(), _relative(old @ W.T, old @ W0.T)
        rows.append((int(rank), drift, error(W, 0), error(W, task)))
    ranks, drifts, first, own = zip(*rows, strict=True)
    alone, leaning = error(W0 + update(W0, 2), 2), error(W0 + updates[1], 1)
    assert ranks == (2, 4, 6)
    assert drifts[0] < drifts[1] < drifts[2]
    assert first[0] < 1e-6 < 0.3 < first[1] < first[2]
    assert own[1] < 1e-6 < 0.2 < leaning  # the second was learned on top of the first
    assert alone < 0.01 < 0.1 < own[2]  # the third would have to undo both, in addition to its own rank 2
    return (
        "W₀ + ΔW₁ + ΔW₂ + ΔW₃: r = {}, {}, {}; ‖Δy‖/‖y‖ = {:.2f}, {:.2f}, {:.2f}; ".format(*ranks, *drifts)
        + "e₁ = {:.2f}, {:.2f}, {:.2f}; ".format(*first)
        + f"e₂ = {own[1]:.2f}, W₀ + ΔW₂: {leaning:.2f}; e₃ = {own[2]:.2f}, W₀ + ΔW: {alone:.2f}"
    )


def _relative(a: Array, b: Array) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def _best_fit(X: Array, Y: Array, r: int) -> Array:
    """The M of rank r with the least ‖X Mᵀ - Y‖: the least-squares fit, projected (Izenman, 1975)."""
    W = np.linalg.lstsq(X, Y)[0].T
    Vt = svd(X @ W.T).Vt
    return Vt[:r].T @ Vt[:r] @ W


def _fp32(x: Array | float) -> Array:
    return np.asarray(x, np.float32)


def _fp16(x: Array | float) -> Array:
    return _fp32(np.asarray(x, np.float16))


def _bf16(x: Array | float) -> Array:
    return from_bfloat16(bfloat16_bits(np.atleast_1d(_fp32(x)))).reshape(np.shape(x))
