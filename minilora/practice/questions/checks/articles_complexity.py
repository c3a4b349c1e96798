"""What the articles say LoRA is, what it computes and what it counts: statements that a small computation decides."""

from collections.abc import Callable

import numpy as np

from ....accounting import count
from ....accounting.named import NAMED
from ....adapters.lora import LoRALinear
from ....backend import Array
from ....nn import Gradients, Linear
from ....nn.optim import SGD
from ....quantization.nf4 import NF4


def noise_does_not_replace_what_a_truncation_cuts() -> str:
    """‖error‖ of y: W cut to rank 8; with noise as large as the rest added; with the rest added; LoRA at its start."""
    rng = np.random.default_rng(2)
    W, x = rng.standard_normal((64, 64)) / 8, rng.standard_normal((100, 64))
    low = _cut(W, 8)
    noise = rng.standard_normal(W.shape) * (W - low).std()
    lora = LoRALinear(Linear(W), r=8, rng=0)
    found = {"W₈": x @ low.T, "W₈ + noise": x @ (low + noise).T, "W₈ + (W - W₈)": x @ (low + (W - low)).T}
    error = {name: _relative(y, x @ W.T) for name, y in found.items()}
    assert error["W₈ + noise"] > error["W₈"] > 0.7
    assert error["W₈ + (W - W₈)"] < 1e-14
    assert np.array_equal(lora.forward(x)[0], x @ W.T)
    return ", ".join(f"{name} {e:.3g}" for name, e in error.items()) + ", LoRA (B = 0) 0"


def one_seed_gives_one_update() -> str:
    """Two runs with the same data and seed: ΔW is equal to the bit, and has rank r. Another seed gives another ΔW."""
    rng = np.random.default_rng(0)
    W, x, target = rng.standard_normal((20, 24)) / 5, rng.standard_normal((40, 24)), rng.standard_normal((40, 20))
    updates = []
    for seed in (0, 0, 1):
        layer = LoRALinear(Linear(W), r=3, alpha=6, rng=seed)
        _descend(layer, x, target, steps=100, lr=0.05)
        updates.append(layer.delta())
    assert updates[0].tobytes() == updates[1].tobytes() != updates[2].tobytes()
    sigma = np.linalg.svd(updates[0], compute_uv=False)
    assert sigma[2] > 0.01 * sigma[0]
    assert sigma[3] < 1e-14 * sigma[0]
    return f"max |Δ|: {abs(updates[0] - updates[1]).max():g}; r = 3: σ₄ / σ₁ < {1e-14:g}"


def a_low_rank_part_keeps_what_the_spectrum_lets_it() -> str:
    """The share of ‖W‖² in its 8 first directions of 256: for a random W, and for one with σᵢ = 1/i."""
    rng = np.random.default_rng(1)
    U, V = (np.linalg.qr(rng.standard_normal((256, 256)))[0] for _ in range(2))
    of = {"random": rng.standard_normal((256, 256)) / 16, "σᵢ = 1/i": U / np.arange(1, 257) @ V.T}
    share = {}
    for name, W in of.items():
        sigma = np.linalg.svd(W, compute_uv=False)
        share[name] = float(np.sum(sigma[:8] ** 2) / np.sum(sigma**2))
    assert share["random"] < 0.15
    assert share["σᵢ = 1/i"] > 0.9
    return ", ".join(f"{name}: {kept:.0%}, ‖error‖ {np.sqrt(1 - kept):.2f}" for name, kept in share.items())


def in_series_the_outputs_have_rank_r() -> str:
    """A low-rank layer after W cuts the outputs to rank r, and to 0 at B = 0; parallel to W it does neither."""
    rng = np.random.default_rng(3)
    W, x = rng.standard_normal((64, 64)) / 8, rng.standard_normal((200, 64))
    A, B, h = rng.standard_normal((4, 64)), rng.standard_normal((64, 4)), x @ W.T
    after, parallel = (int(np.linalg.matrix_rank(y)) for y in (h @ A.T @ B.T, h + x @ A.T @ B.T))
    assert (after, parallel) == (4, 64)
    assert np.linalg.norm(h @ A.T @ (0 * B).T) == 0
    assert np.array_equal(h + x @ A.T @ (0 * B).T, h)
    assert np.allclose(h + x @ A.T @ B.T, x @ (W + B @ A).T)
    return f"rank y: after W {after}, parallel {parallel}; B = 0: after W y = 0, parallel y - x Wᵀ = 0"


def training_adds_numbers_and_changes_no_byte_of_W() -> str:
    """From W as it is, without an SVD: the loss falls to 0, W and b keep their bytes, r (in + out) numbers are new."""
    rng = np.random.default_rng(35)
    W, b, x = rng.standard_normal((32, 48)) / 6, rng.standard_normal(32), rng.standard_normal((200, 48))
    target = x @ (W + _cut(rng.standard_normal((32, 48)), 2) / 8).T + b
    layer = LoRALinear(Linear(W, b), r=4, alpha=4, rng=0)
    frozen = [(p, p.data.tobytes()) for p in layer.base.parameters()]
    before, after = _descend(layer, x, target, steps=200, lr=0.2)
    assert all(p.data.tobytes() == kept for p, kept in frozen)
    new = {name: p.data.size for name, p in layer.trainable_parameters().items()}
    assert set(new) == {"lora_A", "lora_B"}
    assert sum(new.values()) == 4 * (32 + 48)
    assert after < 1e-12 < 0.1 < before
    old = sum(p.data.size for p, _ in frozen)
    return f"loss {before:.2f} → {after:.0e}; old numbers {old:,}: 0 changed; new numbers {sum(new.values()):,}"


def factors_in_place_of_W_leave_rank_r() -> str:
    """With x L instead of x, scores and values have rank r whatever follows; a pre-trained W does not fit."""
    rng = np.random.default_rng(34)
    x, L = rng.standard_normal((12, 8)), rng.standard_normal((8, 2))
    R, K, Q = rng.standard_normal((3, 2, 8))
    Wq, Wk, Wv = rng.standard_normal((3, 8, 8))
    replaced = [(x @ L @ R) @ (x @ L @ K).T, x @ L @ Q]
    added = [x @ (Wq + R.T @ L.T).T @ (x @ Wk.T).T, x @ (Wv + Q.T @ L.T).T]
    ranks = [[int(np.linalg.matrix_rank(M)) for M in each] for each in (replaced, added)]
    assert ranks == [[2, 2], [8, 8]]
    assert _fails(lambda: x @ L @ Wq)  # (n, r) · (d, d)
    return f"rank of scores, values: x L R, x L Q {ranks[0]}, x (W + B A)ᵀ {ranks[1]}; x L (12, 2) · W (8, 8) ✗"


def attention_without_k_mixes_every_text_alike() -> str:
    """softmax(q kᵀ) v: rows sum to 1, at any length. U Vᵀ q mixes by a constant of one length, and cannot mix v."""
    rng = np.random.default_rng(43)
    n, d, r = 6, 4, 2
    q, k, v = rng.standard_normal((3, n, d))
    U, V = rng.standard_normal((2, n, r))
    P = _softmax(q @ k.T / d**0.5)
    assert np.allclose(P.sum(axis=1), 1)
    assert (P @ v).max() <= v.max()
    longer = rng.standard_normal((3, n + 1, d))
    assert _softmax(longer[0] @ longer[1].T) @ longer[2] is not None
    assert (U @ V.T @ q).shape == (n, d) != P.shape
    assert _fails(lambda: _softmax(U @ V.T @ q) @ v)  # (n, d) · (n, d)
    assert _fails(lambda: U @ V.T @ longer[0])
    moved = float(abs(_softmax(q @ (k + 1 + k).T / d**0.5) - P).max())
    assert moved > 0.1  # k decides
    ranks = [int(np.linalg.matrix_rank(M)) for M in (U, V, U @ V.T)]
    assert ranks == [r, r, r]  # U, V: full column rank
    return f"q kᵀ {n} × {n}, U Vᵀ q {n} × {d}; another k: |ΔP| {moved:.2f}; {n + 1} tokens ✗; rank U, V, U Vᵀ: {ranks}"


def sigma_alone_does_not_reach_a_change_of_rank_1() -> str:
    """The best W + U δ Vᵀ for a wanted change of rank 1, and LoRA's at r = 1; a 100 × 300 W has no sum with I."""
    rng = np.random.default_rng(33)
    W, wanted = rng.standard_normal((100, 300)), np.outer(rng.standard_normal(100), rng.standard_normal(300))
    U, _, Vt = np.linalg.svd(W, full_matrices=False)
    delta = np.sum(U * (wanted @ Vt.T), axis=0)  # least squares: uᵢᵀ D vᵢ
    sigma, lora = (U * delta) @ Vt, _cut(wanted, 1)
    left = [_relative(change, wanted) for change in (sigma, lora)]
    ranks = [int(np.linalg.matrix_rank(change)) for change in (sigma, lora)]
    assert left[0] > 0.9 > 1e-12 > left[1]
    assert ranks == [100, 1]
    assert _fails(lambda: W + np.eye(100))
    return (
        f"δ: 100 numbers, rank {ranks[0]}, ‖error‖ {left[0]:.3f}; r = 1: 400 numbers, rank 1, {left[1]:.0e}; "
        f"W (100, 300) + I ✗, W has {W.size:,}"
    )


def heads_of_one_projection_share_A() -> str:
    """ΔW of q, four heads: the rows of every head span the row space of A; those of k, with its own A, B, another."""
    rng = np.random.default_rng(27)
    (A_q, A_k), B_q, B_k = rng.standard_normal((2, 4, 64)), *rng.standard_normal((2, 64, 4))
    heads = np.split(B_q @ A_q, 4)  # 16 rows each
    each = [int(np.linalg.matrix_rank(head)) for head in heads]
    together, with_k = (int(np.linalg.matrix_rank(np.vstack(rows))) for rows in (heads, [*heads, B_k @ A_k]))
    assert each == [4, 4, 4, 4]
    assert (together, with_k) == (4, 8)
    assert int(np.linalg.matrix_rank(np.hstack(heads))) == 16  # B is not shared: other columns in each head
    return f"rank of heads {each}, below one another {together}, with k {with_k}; side by side 16"


def a_slice_is_a_projection_that_learns_nothing() -> str:
    """A slice is x [I 0]ᵀ, constant and blind to the rest of x; q, k and v by W have 3 d² numbers and read all of x."""
    rng = np.random.default_rng(20)
    d = 12
    x, W = rng.standard_normal((5, d)), rng.standard_normal((d, d))
    fixed = np.eye(d // 3, d)
    assert np.array_equal(x @ fixed.T, x[:, : d // 3])
    read = [int(np.sum(abs(M).sum(axis=0) > 0)) for M in (fixed, W)]
    assert read == [d // 3, d]
    projections = count("gpt2", "lora", targets=["q_proj", "k_proj", "v_proj"], r=1).trainable
    assert projections == 12 * 3 * 2 * 768  # three matrices of 768 × 768 in each of 12 blocks
    return f"of {d} coordinates: slice {read[0]}, W {read[1]}; numbers of q, k, v (d = 768): slice 0, W {3 * 768**2:,}"


def attention_has_as_many_parameters_for_every_length() -> str:
    """4 d² weights a block at any n; W x costs ∝ n, q kᵀ and P v ∝ n², and both cost the same at n = 2 d; no mask."""
    d, parameters, work = 1024, set(), {}
    for n in (512, 2048, 8192):
        sizes = {"num_hidden_layers": 1, "max_position_embeddings": n}
        account = count(NAMED["bert-large"] | sizes, "full", tokens=n)
        named = account.model.named_parameters().items()
        parameters.add(sum(p.data.size for path, p in named if ".attention." in path and p.data.ndim == 2))
        assert sum(p.data.size for _, p in named if p.data.shape == (n, d)) == n * d  # learned positions are longer
        costs = account.costs.forward
        scores = sum(part.flops for part in costs if part.kind == "attention")
        work[n] = [sum(p.flops for p in costs if p.kind == "linear" and ".attention." in str(p.layer)), scores]
    assert parameters == {4 * d * d}
    assert work[2048][0] == 4 * work[512][0]
    assert work[2048][1] == 16 * work[512][1]  # not exponential: that would be its fourth power
    assert work[2048][0] == work[2048][1]
    rows = ", ".join(f"n = {n}: {a / 1e9:.1f} + {b / 1e9:.1f}" for n, (a, b) in work.items())
    return f"d = {d}: {parameters.pop():,} numbers at every n; GFLOP of W x and of q kᵀ, P v: {rows}"


def a_low_rank_cut_of_softmax_is_no_attention() -> str:
    """The best P of rank 8 for 64 tokens: 2 n r of n² numbers, rows that do not sum to 1, weights below 0."""
    rng = np.random.default_rng(0)
    n, r = 64, 8
    q, k = rng.standard_normal((2, n, 8)) * 1.5
    P = _softmax(q @ k.T / 8**0.5)
    cut = _cut(P, r)
    error, sums, negative = _relative(cut, P), cut.sum(axis=1), int(np.sum(cut < 0))
    assert error > 0.3
    assert sums.min() < 0.8 < 1.2 < sums.max()
    assert negative > 100
    assert 2 * n * (n // 2) == n * n > 2 * n * r  # what is spared ends at r = n/2
    less = f"{n * n:,} → {2 * n * r:,} numbers: ‖error‖ {error:.2f}"
    return f"{less}; Σ of a row {sums.min():.2f} … {sums.max():.2f}; {negative:,} below 0"


def two_factors_are_cheaper_below_r_75_and_their_product_never() -> str:
    """100 × 300: the factors have r (100 + 300) entries, and as many products a row; W, and their product, 30,000."""
    rng = np.random.default_rng(33)
    W, x = rng.standard_normal((100, 300)), rng.standard_normal((5, 300))
    U, S, Vt = np.linalg.svd(W, full_matrices=False)
    left, right = U[:, :10] * S[:10], Vt[:10]
    assert np.allclose(x @ right.T @ left.T, x @ (left @ right).T)
    factors, formed, even = left.size + right.size, (left @ right).size, W.size / sum(W.shape)
    assert factors == 10 * (100 + 300) < W.size == formed
    assert even == 75
    error = _relative(left @ right, W)
    assert error > 0.8  # of a random W
    sizes = f"r = 10: {factors:,} in factors, {formed:,} multiplied, = {W.size:,} of W"
    return f"{sizes}; even at r = {even:g}; ‖error‖ {error:.2f}"


def the_rate_decides_how_many_steps_are_needed() -> str:
    """Steps of gradient descent to 1 % of a rank-2 change: full, LoRA r = 4 and r = d; at one rate, and at the best."""
    rng = np.random.default_rng(38)
    d, rates = 48, (0.05, 0.1, 0.12, 0.2, 0.5, 0.8, 1.0)
    x = rng.standard_normal((400, d))
    wanted = rng.standard_normal((d, 2)) @ rng.standard_normal((2, d)) / d**0.5
    C = x.T @ x / 400
    steps = {r: {lr: _steps_to(wanted, C, r, lr) for lr in rates} for r in (0, 4, d)}
    equal = [row[0.05] or 0 for row in steps.values()]
    best = [min((n, lr) for lr, n in row.items() if n) for row in steps.values()]
    assert 0 < max(equal[1:]) < equal[0] / 3  # at one rate LoRA is first
    assert best[0][0] < best[2][0] < best[1][0]  # at the best of each it is last, even where a step costs more
    (full, full_lr), (low, low_lr), (square, square_lr) = best
    return (
        f"η = 0.05: full {equal[0]}, r = 4: {equal[1]}, r = {d}: {equal[2]}; "
        f"best: full {full} (η = {full_lr}), r = 4: {low} ({low_lr}), r = {d}: {square} ({square_lr})"
    )


def four_bits_store_as_many_numbers() -> str:
    """NF4, two codes a byte and a scale for 64: as many numbers as before, in 4.5 bits each, with an error of 9 %."""
    W = np.random.default_rng(25).standard_normal((128, 128)).astype(np.float32)
    Q = NF4.of(W)
    numbers, bits, error = 2 * Q.arrays["codes"].size, 8 * Q.nbytes / W.size, _relative(Q.dense(), W)
    assert numbers == W.size
    assert bits == 4.5
    assert 0.05 < error < 0.15
    return f"numbers {W.size:,} → {numbers:,}; bits of one {8 * W.itemsize} → {bits}; ‖error‖/‖W‖ {error:.3f}"


def a_budget_gives_the_rank() -> str:
    """Llama-2-7B, all linear layers, 40 million parameters: r = budget / Σ (in + out); one rank more is too many."""
    d, F, layers, budget = 4096, 11008, 32, 40_000_000
    r = int(budget / (layers * (4 * 2 * d + 3 * (d + F))))
    fits, exceeds = (count("llama-2-7b", targets="all-linear", r=rank, tokens=1).trainable for rank in (r, r + 1))
    assert r == 16
    assert fits <= budget < exceeds
    return f"{budget:,} / Σ (in + out): r = {r}: {fits:,}; r = {r + 1}: {exceeds:,}"


def BERT_is_no_model_of_billions() -> str:
    """The parameters of BERT-base, BERT-large and GPT-3, layer by layer: 0.11, 0.34 and 175 billion."""
    totals = {name: count(name, "full", tokens=1).total for name in ("bert-base", "bert-large", "gpt3-175b")}
    d, F = 768, 3072  # tables and their norm, 12 blocks, the pooler
    by_hand = (30522 + 512 + 2 + 2) * d + 12 * (4 * (d * d + d) + d * F + F + F * d + d + 4 * d) + d * d + d
    assert totals["bert-base"] == by_hand
    assert totals["bert-large"] < 10**9 < totals["gpt3-175b"]
    return ", ".join(f"{name} {total:,}" for name, total in totals.items())


def _steps_to(wanted: Array, C: Array, r: int, lr: float) -> int | None:
    """Steps of gradient descent to a relative error of 1 %: in full where r = 0. None if it diverges."""
    A = np.random.default_rng(2).standard_normal((r, len(wanted))) / len(wanted) ** 0.5
    B, D = np.zeros((len(wanted), r)), 0 * wanted
    for step in range(500):
        off = (B @ A if r else D) - wanted
        if np.linalg.norm(off) < 0.01 * np.linalg.norm(wanted):
            return step
        if np.linalg.norm(off) > 1e6:
            return None
        G = off @ C
        A, B, D = A - lr * B.T @ G, B - lr * G @ A.T, D - lr * G
    return None


def _descend(layer: LoRALinear, x: Array, target: Array, steps: int, lr: float) -> tuple[float, float]:
    """Gradient descent on the mean squared error, which is returned as it was before and after."""
    optimizer, losses = SGD(layer.trainable_parameters(), lr=lr), []
    for _ in range(steps):
        y, cache = layer.forward(x)
        losses.append(float(np.mean((y - target) ** 2)))
        grads = Gradients()
        layer.backward((y - target) / len(x), cache, grads)
        optimizer.step(grads)
    return losses[0], losses[-1]


def _softmax(scores: Array) -> Array:
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def _cut(W: Array, r: int) -> Array:
    U, S, Vt = np.linalg.svd(W, full_matrices=False)
    return (U[:, :r] * S[:r]) @ Vt[:r]


def _relative(found: Array, wanted: Array) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def _fails(product: Callable[[], Array]) -> bool:
    """Whether the shapes do not fit."""
    try:
        product()
    except ValueError:
        return True
    return False
