"""Which rank is enough, what it can hold, and how the rank of an update is measured."""

import itertools

import numpy as np

from ....adapters import spectrum

Array = np.ndarray


def one_run_at_a_large_rank_says_what_smaller_ranks_give() -> str:
    """‖error‖ of an adapter that is trained at r, and of one that is trained at r = 12 and cut to r: within 1 %."""
    rng, d = np.random.default_rng(0), 24
    U, V = (np.linalg.qr(rng.standard_normal((d, d)))[0] for _ in range(2))
    goal, x = (U * 0.7 ** np.arange(d)) @ V.T, rng.standard_normal((400, d))
    large = spectrum.lora_svd(*_trained(goal, x, 12), 1.0)
    lines = []
    for r in (1, 2, 4):
        A, B = _trained(goal, x, r)
        B_cut, A_cut = spectrum.truncate(large, r)
        trained, cut = (np.linalg.norm(change - goal) / np.linalg.norm(goal) for change in (B @ A, B_cut @ A_cut))
        assert abs(cut - trained) < 0.01 * trained
        lines.append(f"r = {r}: {trained:.3f}, {cut:.3f}")
    return "; ".join(lines)


def too_small_a_rank_leaves_an_error_and_too_large_a_one_fits_noise() -> str:
    """A true change of rank 4: the errors of training and of ΔW at r = 1, 4, 16, 32, from 60 and from 2,000 samples."""
    lines = []
    for n in (60, 2000):
        train, new = np.array([_fitted(truth_rank=4, n=n, r=r) for r in (1, 4, 16, 32)]).T
        assert train[0] > 1.2 * train[1]
        assert train[1] > train[2] > train[3]
        assert new.argmin() == 1
        assert (new[3] > 1.5 * new[1]) if n == 60 else (new[3] < 0.2 * new[0])
        lines.append(f"n = {n}: " + ", ".join(f"{a:.2f} → {b:.2f}" for a, b in zip(train, new, strict=True)))
    return "r = 1, 4, 16, 32: " + "; ".join(lines)


def little_data_rewards_a_low_rank_only_if_the_truth_is_low() -> str:
    """The error of ΔW from 60 samples at r = 2, 8, 32, where the true change has rank 2, and where it has rank 32."""
    found = {rank: [_fitted(truth_rank=rank, n=60, r=r)[1] for r in (2, 8, 32)] for rank in (2, 32)}
    low, full = found.values()
    assert low[0] < low[1] < low[2]
    assert full[0] > full[1] > full[2]
    return "r = 2, 8, 32: " + "; ".join(f"rank {k}: {a:.2f}, {b:.2f}, {c:.2f}" for k, (a, b, c) in found.items())


def at_full_rank_the_first_step_is_still_another() -> str:
    """The cosine of LoRA's first ΔW, -η s² G AᵀA, with -G at r = in = out: 1/√2 for a random A, 1 if AᵀA = I."""
    rng = np.random.default_rng(0)
    G, A = rng.standard_normal((200, 200)), rng.uniform(-1, 1, (200, 200)) / 200**0.5
    steps = [G @ M.T @ M for M in (A, np.linalg.qr(A)[0])]
    random, orthogonal = (float((G * step).sum() / np.linalg.norm(G) / np.linalg.norm(step)) for step in steps)
    assert abs(random - 0.5**0.5) < 0.02
    assert abs(orthogonal - 1) < 1e-12
    return f"cos = {random:.3f}; AᵀA = I: {orthogonal:.3f}; {A.size + A.size} > {G.size}"


def one_budget_for_all_layers_beats_one_rank() -> str:
    """Three layers share 12 directions: greedily by σ² each gets a rank of its own, and no other shares keep more."""
    rng = np.random.default_rng(0)
    updates = [rng.standard_normal((24, 24)) * decay ** np.arange(24) for decay in (0.3, 0.7, 0.9)]
    energy = [np.r_[0, np.cumsum(spectrum.singular_values(update) ** 2)] for update in updates]
    ranks = [0, 0, 0]
    for _ in range(12):
        ranks[max(range(3), key=lambda i: energy[i][ranks[i] + 1] - energy[i][ranks[i]])] += 1
    shares = [each for each in itertools.product(range(13), repeat=3) if sum(each) == 12]
    kept = {each: sum(e[r] for e, r in zip(energy, each, strict=True)) / sum(e[-1] for e in energy) for each in shares}
    greedy, same = kept[tuple(ranks)], kept[4, 4, 4]
    assert len(set(ranks)) == 3
    assert same + 0.05 < greedy == max(kept.values())
    return f"Σ r = 12: r = {ranks}: {greedy:.1%}; r = [4, 4, 4]: {same:.1%}"


def the_scale_belongs_to_sigma_and_not_to_the_rank() -> str:
    """σ of s B A by QR of the factors is that of the dense ΔW; without s it is off by s, unlike the three ranks."""
    rng, s = np.random.default_rng(0), 2.5
    A, B = rng.standard_normal((8, 96)) * 0.6 ** np.arange(8)[:, None], rng.standard_normal((80, 8))
    sigma, bare, dense = spectrum.lora_svd(A, B, s).sigma, spectrum.lora_svd(A, B, 1.0).sigma, s * B @ A
    assert np.allclose(sigma, np.linalg.svd(dense, compute_uv=False)[:8])
    assert np.allclose(sigma, s * bare)
    ranks = [
        (spectrum.numerical_rank(x, dense.shape), spectrum.effective_rank(x), spectrum.stable_rank(x))
        for x in (sigma, bare)
    ]
    assert np.allclose(ranks[0], ranks[1])
    numerical, effective, stable = ranks[0]
    assert numerical == 8 > effective > stable > 1
    return f"σ₁ = {sigma[0]:.1f} = {s} · {bare[0]:.1f}; {numerical}, {effective:.1f}, {stable:.1f}"


def directions_are_cut_and_not_rows() -> str:
    """r = 8 to 4: the cut by singular values costs √(Σ σᵢ²) of the rest, rows of A far more; α must become s · 4."""
    rng, s = np.random.default_rng(0), 16 / 8
    A, B = rng.standard_normal((8, 60)), rng.standard_normal((50, 8)) * 0.5 ** np.arange(8)
    M = np.linalg.qr(rng.standard_normal((8, 8)))[0]
    A, B = M.T @ A, B @ M  # the same ΔW: rows of A have no order
    update, change = spectrum.lora_svd(A, B, s), s * B @ A
    B_cut, A_cut = spectrum.truncate(spectrum.lora_svd(A, B, 1.0), 4)
    cut, rows, alpha_kept = (
        float(np.linalg.norm(near - change) / np.linalg.norm(change))
        for near in (s * B_cut @ A_cut, s * B[:, :4] @ A[:4], 16 / 4 * B_cut @ A_cut)
    )
    assert np.isclose(cut, spectrum.truncation_error(update.sigma, 4)[0] / np.linalg.norm(change))
    assert rows > 5 * cut
    assert alpha_kept > 0.9
    return f"‖error‖/‖ΔW‖: σ {cut:.3f}, A[:4] {rows:.2f}; α = 8: {cut:.3f}, α = 16: {alpha_kept:.2f}"


def rank_r_stores_r_random_pairs_and_not_one_more() -> str:
    """The least ‖ΔW x - y‖/‖y‖ over N random pairs at r = 4: 0 for N = 4, and the floor of Eckart and Young above."""
    rng, r, lines = np.random.default_rng(0), 4, []
    for N in (3, 4, 5, 8, 16):
        x, y, A = rng.standard_normal((N, 40)), rng.standard_normal((N, 30)), rng.standard_normal((r, 40))
        for _ in range(60):  # the best B for this A, then the best A for this B
            B = np.linalg.lstsq(x @ A.T, y, rcond=None)[0].T
            A = np.linalg.lstsq(B, y.T @ np.linalg.pinv(x).T, rcond=None)[0]
        error = np.linalg.norm(x @ A.T @ B.T - y) / np.linalg.norm(y)
        floor = np.linalg.norm(np.linalg.svd(y, compute_uv=False)[r:]) / np.linalg.norm(y)
        assert error < 1e-8 if r >= N else error > 0.99 * floor > 0.1
        lines.append(f"N = {N}: {error:.2f}")
    return f"r = {r}: " + ", ".join(lines)


def intruders_depend_on_s_and_on_the_threshold() -> str:
    """An update in new directions gives intruders with its s, none without it, none at ε = 0.2; along W's, none."""
    rng, s = np.random.default_rng(0), 30.0
    U, V, B, A = (np.linalg.qr(rng.standard_normal((64, n)))[0] for n in (64, 64, 3, 3))
    W = U @ np.diag(np.linspace(16, 0.25, 64)) @ V.T
    before = spectrum.svd(W)
    counts = [
        len(spectrum.intruders(before, spectrum.svd(W + change), k, epsilon)[0])
        for change, k, epsilon in (
            (s * B @ A.T, 10, 0.5),
            (B @ A.T, 10, 0.5),
            (s * B @ A.T, 2, 0.5),
            (s * B @ A.T, 10, 0.2),
            (s * before.U[:, 9:12] @ before.Vt[9:12], 10, 0.5),
        )
    ]
    assert counts == [3, 0, 2, 0, 0]
    with_s, bare, two, strict, own = counts
    return f"s = 30: {with_s}; s = 1: {bare}; k = 2: {two}; ε = 0.2: {strict}; U₀V₀ᵀ: {own}"


def _trained(goal: Array, x: Array, r: int, steps: int = 400) -> tuple[Array, Array]:
    """A and B after so many steps down the squared error from B = 0."""
    rng, C = np.random.default_rng(1), x.T @ x / len(x)
    A, B = rng.uniform(-1, 1, (r, len(C))) / len(C) ** 0.5, np.zeros((len(goal), r))
    for _ in range(steps):
        G = (B @ A - goal) @ C
        A, B = A - 0.3 * B.T @ G, B - 0.3 * G @ A.T
    return A, B


def _fitted(truth_rank: int, n: int, r: int, d: int = 32) -> tuple[float, float]:
    """The relative errors of the outputs in training and of ΔW, for the best fit of rank r to n noisy samples.

    It is the least squares solution, projected on the r directions of output that hold most of its fit."""
    errors = []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        goal = rng.standard_normal((d, truth_rank)) @ rng.standard_normal((truth_rank, d)) / (truth_rank * d) ** 0.5
        x = rng.standard_normal((n, d))
        y = x @ goal.T + 0.5 * rng.standard_normal((n, d))
        full = np.linalg.lstsq(x, y, rcond=None)[0].T
        V = np.linalg.eigh(full @ (x.T @ x) @ full.T)[1][:, -r:]
        change = V @ V.T @ full
        pairs = (x @ change.T, y), (change, goal)
        errors.append([np.linalg.norm(near - to) / np.linalg.norm(to) for near, to in pairs])
    train, new = np.mean(errors, axis=0)
    return float(train), float(new)
