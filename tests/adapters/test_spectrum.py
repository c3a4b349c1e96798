"""spectrum.py."""

import math
import time

import examples
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import minilora
from minilora.adapters import spectrum
from minilora.backend import to_numpy


@settings(deadline=None, max_examples=examples.count(25))
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 12), st.integers(0, 99))
def test_the_small_core_has_the_singular_values_of_the_dense_update(n_in, n_out, r, seed):
    rng = np.random.default_rng(seed)
    r = min(r, n_in, n_out)
    layer = minilora.LoRALinear(minilora.Linear(rng.standard_normal((n_out, n_in))), r, 3, rng=rng)
    layer.lora_B.data = rng.standard_normal((n_out, r))
    small, dense = spectrum.adapter_singular_values(layer), spectrum.singular_values(layer.delta())
    assert small.shape == (r,)
    np.testing.assert_allclose(small, dense[:r], rtol=0, atol=1e-12 * dense[0])
    np.testing.assert_allclose(dense[r:], 0, atol=1e-12 * dense[0])


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=20))
def test_energy_grows_to_one_and_is_what_the_best_approximation_keeps(values):
    sigma = np.sort(values)[::-1]
    kept = spectrum.energy(sigma)
    assert (np.diff(kept) >= 0).all()
    assert kept[-1] == pytest.approx(1)
    assert kept[0] == pytest.approx(1 - np.sum(sigma[1:] ** 2) / np.sum(sigma**2))


@given(st.integers(1, 30), st.integers(0, 30), st.floats(0.1, 10))
def test_the_effective_rank_of_n_equal_values_is_n_whatever_zeros_follow(n, zeros, scale):
    assert spectrum.effective_rank(np.r_[np.full(n, scale), np.zeros(zeros)]) == pytest.approx(n)


def test_no_update_has_rank_and_energy_zero():
    assert spectrum.effective_rank(np.zeros(3)) == 0
    assert (spectrum.energy(np.zeros(3)) == 0).all()


@settings(deadline=None, max_examples=examples.count(50))
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 15), st.integers(0, 99))
def test_the_factored_decomposition_is_the_dense_one(n_in, n_out, r, seed):
    rng = np.random.default_rng(seed)
    A, B, s = rng.standard_normal((r, n_in)), rng.standard_normal((n_out, r)), 1.7
    U, sigma, Vt = spectrum.lora_svd(A, B, s)
    dense = np.linalg.svd(s * B @ A, compute_uv=False)
    k = min(r, n_in, n_out)
    assert (U.shape, sigma.shape, Vt.shape) == ((n_out, k), (k,), (k, n_in))
    np.testing.assert_allclose(sigma, dense[:k], rtol=0, atol=1e-12 * dense[0])
    np.testing.assert_allclose(U @ np.diag(sigma) @ Vt, s * B @ A, rtol=0, atol=1e-12 * dense[0])
    for orthonormal in (U.T @ U, Vt @ Vt.T):
        np.testing.assert_allclose(orthonormal, np.eye(k), atol=1e-12)


@pytest.mark.slow
def test_the_factored_decomposition_of_a_large_layer_is_ten_times_as_fast_as_the_dense_one(rng):
    A, B = rng.standard_normal((16, 2048)), rng.standard_normal((2048, 16))
    factored = min(seconds(lambda: spectrum.lora_svd(A, B, 1.7)) for _ in range(5))
    dense = seconds(lambda: spectrum.svd(1.7 * B @ A))
    print(f"dense {dense:.2f} s, factored {factored:.5f} s: {dense / factored:.0f} times")
    assert dense > 10 * factored


def seconds(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


# ---- how many directions ----

SIGMA = st.lists(st.floats(0.01, 100), min_size=1, max_size=20).map(lambda values: np.sort(values)[::-1])


@settings(max_examples=examples.count(50))
@given(SIGMA, st.integers(0, 3), st.floats(1e-3, 1))
def test_the_rank_for_a_share_keeps_it_and_one_less_does_not(sigma, zeros, share):
    sigma = np.r_[sigma, np.zeros(zeros)]
    r = spectrum.rank_for(sigma, share)
    kept = np.r_[0, spectrum.energy(sigma)]
    assert kept[r] >= share - 1e-12
    assert kept[r - 1] < share + 1e-12
    assert r <= np.count_nonzero(sigma) == spectrum.rank_for(sigma, 1)
    assert spectrum.rank_for(sigma, 1e-300) == 1


@pytest.mark.parametrize("share", [0, -0.1, 1.001, math.nan])
def test_a_share_of_energy_is_above_0_and_at_most_1(share):
    with pytest.raises(ValueError, match="not a share above 0 and up to 1"):
        spectrum.rank_for(np.array([2.0, 1.0]), share)


@settings(max_examples=examples.count(50))
@given(SIGMA, st.floats(0.01, 100))
def test_stable_rank_is_at_most_the_effective_rank_and_that_at_most_the_rank_at_any_scale(sigma, scale):
    stable, effective = spectrum.stable_rank(scale * sigma), spectrum.effective_rank(scale * sigma)
    assert stable * (1 + 1e-12) >= 1
    assert stable <= effective * (1 + 1e-12)
    assert effective <= len(sigma) * (1 + 1e-12)
    assert stable == pytest.approx(np.sum(sigma**2) / sigma[0] ** 2)
    assert effective == pytest.approx(spectrum.effective_rank(sigma))


@settings(deadline=None, max_examples=examples.count(30))
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 12), st.sampled_from(["f4", "f8"]), st.integers(0, 99))
def test_the_numerical_rank_is_that_of_numpy(n_in, n_out, r, dtype, seed):
    rng = np.random.default_rng(seed)
    W = (rng.standard_normal((n_out, r)) @ rng.standard_normal((r, n_in))).astype(dtype)
    rank = spectrum.numerical_rank(spectrum.singular_values(W), W.shape)
    assert rank == np.linalg.matrix_rank(W)
    assert rank <= r
    tiny = 1e-50 * spectrum.singular_values(W).astype(float)  # in float32 it would be 0
    assert spectrum.numerical_rank(tiny, W.shape, W.dtype) == rank


@settings(max_examples=examples.count(50))
@given(SIGMA, SIGMA)
def test_the_mean_energy_is_that_of_the_same_matrices_with_zeros_after_their_singular_values(one, two):
    longest = max(len(one), len(two))
    padded = [spectrum.energy(np.pad(sigma, (0, longest - len(sigma)))) for sigma in (one, two)]
    np.testing.assert_allclose(spectrum.mean_energy([one, two]), (padded[0] + padded[1]) / 2)


@settings(deadline=None, max_examples=examples.count(40))
@given(st.integers(1, 10), st.integers(1, 10), st.integers(0, 10), st.integers(0, 99))
def test_truncation_attains_the_bound_of_Eckart_and_Young_and_no_other_matrix_of_its_rank_does_better(
    n_in, n_out, r, seed
):
    rng = np.random.default_rng(seed)
    W, r = rng.standard_normal((n_out, n_in)), min(r, n_in, n_out)
    sigma = np.linalg.svd(W, compute_uv=False)
    B, A = spectrum.truncate(spectrum.svd(W), r)
    assert (B.shape, A.shape) == ((n_out, r), (r, n_in))
    frobenius, spectral = spectrum.truncation_error(sigma, r)
    np.testing.assert_allclose(frobenius, np.linalg.norm(W - B @ A), atol=1e-12 * sigma[0])
    np.testing.assert_allclose(spectral, np.linalg.norm(W - B @ A, 2), atol=1e-12 * sigma[0])
    np.testing.assert_allclose(B.T @ B, np.diag(sigma[:r]), atol=1e-12 * sigma[0])
    np.testing.assert_allclose(A @ A.T, np.diag(sigma[:r]), atol=1e-12 * sigma[0])
    for size in (1e-3, 1e-1, 10.0):  # neighbours of the best, and matrices far from it
        other = (B + size * rng.standard_normal(B.shape)) @ (A + size * rng.standard_normal(A.shape))
        assert np.linalg.norm(W - other) >= frobenius * (1 - 1e-12)
        assert np.linalg.norm(W - other, 2) >= spectral * (1 - 1e-12)


# ---- which directions ----


def orthonormal(rng, d, k):
    return np.linalg.qr(rng.standard_normal((d, k)))[0]


@settings(deadline=None, max_examples=examples.count(30))
@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 4), st.integers(0, 99))
def test_the_similarity_of_subspaces_is_the_formula_of_the_paper_and_one_minus_d2_over_p(m, n, more, seed):
    rng, d = np.random.default_rng(seed), max(m, n) + more
    U, V = orthonormal(rng, d, m), orthonormal(rng, d, n)
    grid = spectrum.subspace_similarity(U, V)
    assert grid.shape == (m, n)
    for i in range(1, m + 1):
        for j in range(1, n + 1):
            cosines, p = np.linalg.svd(U[:, :i].T @ V[:, :j], compute_uv=False), min(i, j)
            assert grid[i - 1, j - 1] == pytest.approx(np.sum(cosines**2) / p)
            distance = p - np.sum(cosines**2)
            assert grid[i - 1, j - 1] == pytest.approx(1 - distance / p)
            if p > 1:  # appendix G prints (1 - d²) / p
                assert grid[i - 1, j - 1] != pytest.approx((1 - distance) / p)


def test_the_similarity_is_1_for_what_is_contained_0_for_what_is_orthogonal_and_blind_to_rotations(rng):
    Q = orthonormal(rng, 9, 7)
    turned = Q[:, :3] @ orthonormal(rng, 3, 3)
    assert spectrum.subspace_similarity(turned, Q[:, :5])[2, 4] == pytest.approx(1)
    assert spectrum.subspace_similarity(Q[:, :5], turned)[4, 2] == pytest.approx(1)
    np.testing.assert_allclose(spectrum.subspace_similarity(Q[:, :3], Q[:, 3:]), 0, atol=1e-15)


def test_random_subspaces_are_as_similar_as_the_larger_is_wide(rng):
    m, n, d, samples = 3, 5, 11, 1000
    pairs = zip(*(np.linalg.qr(rng.standard_normal((samples, d, k)))[0] for k in (m, n)), strict=True)
    grids = [spectrum.subspace_similarity(U, V) for U, V in pairs]
    error = np.std(grids, axis=0) / math.sqrt(samples)
    expected = spectrum.random_similarity(m, n, d)
    assert (np.abs(np.mean(grids, axis=0) - expected) < 4 * error).all()
    assert (error < 0.05 * expected).all()


def test_random_directions_hold_r_over_the_root_of_out_in_of_a_weight(rng):
    W, r, samples = rng.standard_normal((7, 11)) @ np.diag(np.arange(1.0, 12)), 3, 1000
    Us, Vs = (np.linalg.qr(rng.standard_normal((samples, d, 5)))[0] for d in (7, 11))
    random = [spectrum.SVD(U, np.arange(5.0), V.T) for U, V in zip(Us, Vs, strict=True)]
    squares = [spectrum.projected_norm(W, directions, r) ** 2 for directions in random]
    error = np.std(squares) / math.sqrt(samples)
    assert abs(np.mean(squares) - spectrum.random_projected_norm(W, r) ** 2) < 4 * error < 0.1 * np.mean(squares)


def test_the_amplification_is_the_update_over_what_the_weight_has_in_its_directions(rng):
    W, A, B = rng.standard_normal((6, 8)), rng.standard_normal((3, 8)), rng.standard_normal((6, 3))
    update = spectrum.lora_svd(A, B, 1.7)
    U, V = update.U, update.Vt.T
    for r in (1, 2, 3):
        inside = np.linalg.norm(U[:, :r].T @ W @ V[:, :r])
        assert spectrum.projected_norm(W, update, r) == pytest.approx(inside)
        assert spectrum.amplification(W, update, r) == pytest.approx(np.linalg.norm(update.sigma[:r]) / inside)
    whole = np.linalg.norm(1.7 * B @ A) / np.linalg.norm(U.T @ W @ V)  # section 7.3, where r is the adapter's
    assert spectrum.amplification(W, update, 3) == pytest.approx(whole)
    assert spectrum.amplification(np.zeros((6, 8)), update, 3) == math.inf
    assert spectrum.amplification(-3.7 * B @ A, update, 3) == pytest.approx(1.7 / 3.7)


def test_a_weight_has_most_in_its_own_directions(rng):
    W = rng.standard_normal((6, 8))
    own, other = spectrum.svd(W), spectrum.svd(rng.standard_normal((6, 8)))
    for r in range(1, 7):
        assert spectrum.projected_norm(W, own, r) == pytest.approx(np.linalg.norm(own.sigma[:r]))
        assert spectrum.projected_norm(W, other, r) <= spectrum.projected_norm(W, own, r) * (1 + 1e-12)


def weight(rng, n=30):
    U, V = orthonormal(rng, n, n), orthonormal(rng, n, n)
    return spectrum.SVD(U, np.linspace(3, 1, n), V.T)


def dense(parts):
    return parts.U @ np.diag(parts.sigma) @ parts.Vt


def test_a_new_direction_is_an_intruder_on_the_side_where_it_is_new(rng):
    W = weight(rng)
    n = len(W.sigma)
    mixed, known = np.ones(n) / math.sqrt(n), np.eye(n)[4]  # of all singular vectors alike; the fifth of them
    for left, right, found in ((mixed, known, ([0], [])), (known, mixed, ([], [0])), (mixed, mixed, ([0], [0]))):
        tuned = dense(W) + 1e4 * np.outer(W.U @ left, W.Vt.T @ right)
        intruders = spectrum.intruders(spectrum.svd(dense(W)), spectrum.svd(tuned), k=1)
        assert tuple(indices.tolist() for indices in intruders) == found


def test_an_intruder_is_less_like_all_from_before_than_epsilon_and_among_the_first_k(rng):
    W = weight(rng)
    n = len(W.sigma)
    signs = np.where(np.arange(n) % 2, 1, -1) / math.sqrt(n)  # orthogonal to the other mixture
    mixed = np.ones(n) / math.sqrt(n)
    one, two = (np.outer(W.U @ mix, W.Vt.T @ mix) for mix in (mixed, signs))
    before, after = spectrum.svd(dense(W)), spectrum.svd(dense(W) + 2e5 * one + 1e5 * two)
    for k in (1, 2):
        left, right = spectrum.intruders(before, after, k, epsilon=1.01 / math.sqrt(n))
        assert left.tolist() == right.tolist() == list(range(k))
        left, right = spectrum.intruders(before, after, k, epsilon=0.99 / math.sqrt(n))
        assert left.tolist() == right.tolist() == []


def test_a_weight_that_was_scaled_or_negated_has_no_intruder(rng):
    W = rng.standard_normal((9, 6))
    for factor in (2.5, -2.5):
        left, right = spectrum.intruders(spectrum.svd(W), spectrum.svd(factor * W), epsilon=0.99)
        assert left.tolist() == right.tolist() == []


def test_decompositions_on_a_device_equal_those_on_the_host(xp, rng):
    A, B, W = rng.standard_normal((2, 7)), rng.standard_normal((5, 2)), rng.standard_normal((5, 7))

    def study(xp):
        W_0, update = xp.asarray(W), spectrum.lora_svd(xp.asarray(A), xp.asarray(B), 1.7)
        tuned = spectrum.svd(W_0 + update.U @ (update.sigma[:, None] * update.Vt))
        B_1, A_1 = spectrum.truncate(update, 1)
        return [
            to_numpy(B_1 @ A_1),
            spectrum.subspace_similarity(update.U, tuned.U),
            np.array([spectrum.amplification(W_0, update, 2), spectrum.random_projected_norm(W_0, 2)]),
            *spectrum.intruders(spectrum.svd(W_0), tuned, epsilon=0.95),
        ]

    for there, here in zip(study(xp), study(np), strict=True):
        np.testing.assert_allclose(there, here, rtol=1e-10)


def test_spectra_on_a_device_equal_those_on_the_host(xp, rng):
    W = rng.standard_normal((6, 4))
    np.testing.assert_allclose(spectrum.singular_values(xp.asarray(W)), np.linalg.svd(W)[1], rtol=1e-12)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_an_update_of_numbers_that_are_not_finite_has_no_rank(wrong):
    with pytest.raises(ValueError, match="a singular value is not a finite number"):
        spectrum.rank_for(np.array([2.0, wrong]), 0.9)
