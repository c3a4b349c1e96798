"""The theory of LoRA on one page: a test's name is a theorem, its docstring the proof, its body the check.

    y = x Wᵀ        W = W₀ + ΔW        ΔW = s B A        G = dyᵀ x, the gradient of the dense W

All of it follows from the chain rule through that product, dA = s Bᵀ G and dB = s G Aᵀ, and from how A and B start.
⟨X, Y⟩ = tr Xᵀ Y and ‖X‖² = ⟨X, X⟩; η is the learning rate, λ the decay, ε Adam's. Where a theorem has a condition that
can be broken, the check breaks it too, and sees the theorem fail.
"""

import math
from functools import partial
from typing import Any

import examples
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minilora import ops
from minilora.adapters.lora import LoRALinear
from minilora.backend import Array
from minilora.nn import Gradients, Linear, Module
from minilora.nn.optim import SGD, AdamW, Optimizer, ParamGroup

few = settings(max_examples=examples.count(20), deadline=None, derandomize=True)
seeds = st.integers(0, 2**32 - 1)
equal = partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-11)
rank = partial(np.linalg.matrix_rank, rtol=1e-10)
adam = partial(AdamW, eps=0.0)
ETA, ALPHA = 0.07, 5.0


def new(rng: np.random.Generator, n_in: int = 7, n_out: int = 6, r: int = 3, rslora: bool = False) -> LoRALinear:
    return LoRALinear(Linear(rng.standard_normal((n_out, n_in))), r, ALPHA, rng=rng, rslora=rslora)


def trained(layer: LoRALinear, rng: np.random.Generator) -> LoRALinear:
    """As after some steps: B ≠ 0."""
    layer.lora_B.data = rng.standard_normal(layer.lora_B.data.shape)
    return layer


@st.composite
def problems(draw: Any) -> tuple[LoRALinear, Array, Array, Array, Array, np.random.Generator]:
    """A layer of some shape with r < in, out, its A and B; x and dy of some tokens; a generator for the rest."""
    rng, r = np.random.default_rng(draw(seeds)), draw(st.integers(1, 3))
    n_in, n_out, N = r + draw(st.integers(1, 4)), r + draw(st.integers(1, 4)), draw(st.integers(1, 9))
    layer = trained(new(rng, n_in, n_out, r, draw(st.booleans())), rng)
    x, dy = rng.standard_normal((N, n_in)), rng.standard_normal((N, n_out))
    return layer, layer.lora_A.data, layer.lora_B.data, x, dy, rng


def gradients(layer: Module, x: Array, dy: Array) -> Gradients:
    """Of an adapter: dA, then dB."""
    grads = Gradients()
    layer.backward(dy, layer.forward(x)[1], grads)
    return grads


def train(layer: LoRALinear, optimizer: Optimizer, x: Array, target: Array, steps: int) -> None:
    """Steps down the mean squared error."""
    for _ in range(steps):
        _, residual = ops.mean_squared_error_forward(layer.forward(x)[0], target)
        optimizer.step(gradients(layer, x, ops.mean_squared_error_backward(1.0, residual)))


def away(X: Array, Y: Array) -> float:
    """The distance of X from Y, as a share of Y."""
    return float(np.linalg.norm(X - Y) / np.linalg.norm(Y))


# ---- what the gradients see ----


@few
@given(problems())
def test_dA_and_dB_are_projections_of_the_gradient_of_the_dense_weight(problem):
    """δL = ⟨G, δW⟩ = s ⟨G, δB A + B δA⟩ = ⟨s G Aᵀ, δB⟩ + ⟨s Bᵀ G, δA⟩, so dB = s G Aᵀ and dA = s Bᵀ G.
    LoRA sees the G of full fine-tuning, through A and through B."""
    layer, A, B, x, dy, _ = problem
    (G,) = gradients(Linear(layer.base.weight.data + layer.delta()), x, dy).values()
    dA, dB = gradients(layer, x, dy).values()
    equal(dA, layer.scaling * B.T @ G)
    equal(dB, layer.scaling * G @ A.T)


@few
@given(problems())
def test_a_token_outside_the_row_space_of_A_and_the_column_space_of_B_is_never_seen(problem):
    """A token adds dy xᵀ to G, so s (Bᵀ dy) xᵀ to dA and s dy (A x)ᵀ to dB: nothing if A x = 0 and Bᵀ dy = 0, were it
    the loudest of the batch. What can be learned now is decided by where A and B are now."""
    layer, A, B, x, dy, rng = problem
    x_seen, dy_seen = 9 * rng.standard_normal((2, A.shape[1])), 9 * rng.standard_normal((2, len(B)))
    x_hidden, dy_hidden = x_seen - x_seen @ np.linalg.pinv(A) @ A, dy_seen - dy_seen @ B @ np.linalg.pinv(B)

    def changed(more_x: Array, more_dy: Array) -> list[bool]:
        before, after = gradients(layer, x, dy), gradients(layer, np.r_[x, more_x], np.r_[dy, more_dy])
        return [away(after[p], before[p]) > 1e-9 for p in (layer.lora_A, layer.lora_B)]

    assert changed(x_hidden, dy_hidden) == [False, False]
    assert changed(x_hidden, dy_seen) == [True, False]
    assert changed(x_seen, dy_hidden) == [False, True]


@few
@given(problems())
def test_at_B_zero_dA_is_zero_and_the_first_step_moves_B_alone_and_at_A_zero_the_reverse(problem):
    """At B = 0, dA = s Bᵀ G = 0 exactly, whatever the data; dB = s G Aᵀ is not. At A = 0, dB = 0 and dA is not."""
    layer, A, B, x, dy, _ = problem
    for zero, other in [(layer.lora_B, layer.lora_A), (layer.lora_A, layer.lora_B)]:
        layer.lora_A.data, layer.lora_B.data = A, B
        zero.data, before = np.zeros_like(zero.data), other.data
        SGD(layer.trainable_parameters(), lr=ETA).step(gradients(layer, x, dy))
        assert zero.data.all()
        assert (other.data == before).all()


@pytest.mark.parametrize("optimizer", [SGD, partial(SGD, momentum=0.9), partial(AdamW, weight_decay=0.1)])
def test_from_A_and_B_both_zero_no_optimizer_ever_moves(optimizer, rng):
    """There dA = s Bᵀ G = 0 and dB = s G Aᵀ = 0; momentum and decay of zeros are zero; the next step starts there too.
    It is a saddle: L = L₀ + s ⟨G, B A⟩ + ..., of second order in (A, B) and of either sign. A alone at random is
    enough: ΔW = 0 still, and the way out is open."""
    x, target = rng.standard_normal((8, 7)), rng.standard_normal((8, 6))
    for keep, moves in [(0, False), (1, True)]:
        layer = new(rng)
        layer.lora_A.data = keep * layer.lora_A.data
        train(layer, optimizer(layer.trainable_parameters(), lr=ETA), x, target, 5)
        assert [X.any() for X in (layer.lora_A.data, layer.lora_B.data, layer.delta())] == 3 * [moves]


# ---- the first step of a new adapter, and what the rank does to it ----


def tokens(rng: np.random.Generator, n_in: int = 10, n_out: int = 9, N: int = 12) -> tuple[Array, Array, Array]:
    """x, dy and their G."""
    x, dy = rng.standard_normal((N, n_in)), rng.standard_normal((N, n_out))
    return x, dy, dy.T @ x


def first_steps(optimizer: Any, x: Array, dy: Array, r: int, rslora: bool, rng: Any, draws: int = 600) -> Array:
    """(draws, out, in): ΔW after one step of new adapters, each with an A of its own."""
    deltas = []
    for _ in range(draws):
        layer = new(rng, x.shape[1], dy.shape[1], r, rslora)
        # B alone: dA is 0, by which SGD moves nothing, and of which Adam with ε = 0 makes 0/0.
        optimizer({"B": layer.lora_B}, lr=ETA).step(gradients(layer, x, dy))
        deltas.append(layer.delta())
    return np.array(deltas)


def six_errors(samples: Array) -> Array:
    """Six standard errors of the mean over the first axis."""
    return 6 * samples.std(axis=0) / math.sqrt(len(samples))


@pytest.mark.parametrize("rslora", [False, True])
def test_the_first_step_of_SGD_is_on_average_one_of_full_fine_tuning_at_another_rate(rslora, rng):
    """B₁ = -η dB = -η s G Aᵀ and A₁ = A, so ΔW = -η s² G AᵀA. The entries of A are uniform within ±1/√in: mean 0,
    variance v = 1/(3 in), fourth moment 9/5 v². So E[(AᵀA)_ij] = Σ_k E[A_ki A_kj] = r v if i = j, else 0, and
        E[ΔW] = -η s² r/(3 in) G
        E‖ΔW‖² = (η s² v)² r (r + in - 1/5) ‖G‖²        from E[(AᵀA)²] = v² r (r + in - 1/5) I
    (the check cannot tell 1/5 from 0). ‖E[ΔW]‖² is r/(r + in - 1/5) of E‖ΔW‖²: at a small rank nearly all of one step
    is noise of A."""
    (x, dy, G), r, n_in = tokens(rng), 3, 10
    s = ALPHA / (math.sqrt(r) if rslora else r)
    deltas, rate = first_steps(SGD, x, dy, r, rslora, rng, draws=2000), ETA * s**2 * r / (3 * n_in)
    squares, square = np.sum(deltas**2, axis=(1, 2)), rate**2 * (r + n_in - 1 / 5) / r * np.sum(G**2)
    for samples, expected in [(deltas, -rate * G), (squares, square)]:
        assert (abs(samples.mean(axis=0) - expected) < six_errors(samples)).all()
        assert np.linalg.norm(six_errors(samples)) < 0.25 * np.linalg.norm(expected)


@pytest.mark.parametrize(
    ("optimizer", "rslora", "power"),
    [(SGD, False, -1), (SGD, True, 0), (adam, False, 0), (adam, True, 1 / 2)],
    ids=["SGD, α/r: 1/r", "SGD, α/√r: constant", "Adam, α/r: constant", "Adam, α/√r: √r"],
)
def test_the_progress_of_the_first_step_is_as_s2_r_by_SGD_and_as_s_r_by_Adam(optimizer, rslora, power, rng):
    """Progress is -⟨G, ΔW⟩, the fall of L to first order: a sum over the r independent rows a_k of A.
        SGD     B₁ = -η s G Aᵀ          -⟨G, ΔW⟩ = η s² ‖G Aᵀ‖² = η s² Σ_k ‖G a_k‖²             E ∝ s² r
        Adam    B₁ = -η sign(G Aᵀ)      -⟨G, ΔW⟩ = η s ⟨sign(G Aᵀ), G Aᵀ⟩ = η s Σ_k ‖G a_k‖₁    E ∝ s r
    as Adam's first m̂/√v̂ is g/|g|. E[ΔW], a sum over k too, grows alike. So "α/√r makes the step independent of the
    rank" (rsLoRA: Kalajdzievski, 2023) is true of SGD; "α/r does" (Schulman, 2025, "LoRA Without Regret"), of Adam."""
    x, dy, G = tokens(rng)
    at_2, at_8 = (-np.sum(G * first_steps(optimizer, x, dy, r, rslora, rng), axis=(1, 2)) for r in (2, 8))
    six = six_errors(at_2) / at_2.mean() + six_errors(at_8) / at_8.mean()
    assert abs(at_8.mean() / at_2.mean() / 4**power - 1) < six < 0.25


@pytest.mark.parametrize("r", [2, 8])
def test_the_size_of_the_first_step_of_Adam_is_as_s_root_r_while_the_rank_is_small(r, rng):
    """Row o of ΔW is -η s Σ_k ±a_k, ± = sign(g_o · a_k): r independent terms of some mean μ_o, and E‖a‖² = in v = 1/3.
        E‖ΔW‖² = η² s² (r out/3 + r (r-1) Σ_o ‖μ_o‖²)       ‖μ‖² = E[±a · μ] ≤ E|a · μ| ≤ ‖μ‖ √v, so ‖μ‖² ≤ 1/(3 in)
    It is η² s² r out/3 to within a factor 1 + (r-1)/in: α/√r holds the size of Adam's step, α/r its progress, and
    nothing both, because most of the step is noise of A."""
    x, dy, _ = tokens(rng, n_in=60)
    squares = np.sum(first_steps(adam, x, dy, r, True, rng) ** 2, axis=(1, 2))
    six, least = six_errors(squares), (ETA * ALPHA) ** 2 * dy.shape[1] / 3  # s² r = α²
    assert least - six < squares.mean() < least * (1 + (r - 1) / 60) + six
    assert six < 0.1 * least


@pytest.mark.parametrize(("r", "rslora"), [(2, False), (8, False), (2, True), (8, True)])
def test_the_output_of_independent_factors_has_a_variance_as_s2_r(r, rslora, rng):
    """Let the entries of B be independent too, of mean 0 and variance 1. (s B A x)_o = s Σ_k Σ_i B_ok A_ki x_i is a sum
    of uncorrelated terms of variance s² r ‖x‖²/(3 in) in all: constant in r for α/√r. This, the other argument for
    α/√r, says nothing of a first step, whose B = -η s G Aᵀ depends on A."""
    x, layers = rng.standard_normal((1, 10)), [trained(new(rng, 10, 9, r, rslora), rng) for _ in range(1000)]
    squares = np.array([np.mean((layer.forward(x)[0] - layer.base.forward(x)[0]) ** 2) for layer in layers])
    variance = (ALPHA**2 if rslora else ALPHA**2 / r) * np.sum(x**2) / (3 * 10)
    assert abs(squares.mean() - variance) < six_errors(squares) < 0.25 * variance


# ---- gauge: many pairs (A, B), one function ----


@few
@given(problems())
def test_a_gauge_changes_gradients_and_steps_but_not_the_function_and_a_rotation_no_step(problem):
    """(B M)(M⁻¹ A) = B A: ΔW and G are the same, dA → s (B M)ᵀ G = Mᵀ dA, dB → s G (M⁻¹ A)ᵀ = dB M⁻ᵀ. A step of SGD
    changes ΔW by s (-η (dB A + B dA) + η² dB dA), after the gauge by s (-η (dB (M Mᵀ)⁻¹ A + B M Mᵀ dA) + η² dB dA):
    alike if M Mᵀ = I, and in general another step, from the same function, on the same data."""
    layer, A, B, x, dy, rng = problem
    y, (dA, dB) = layer.forward(x)[0], gradients(layer, x, dy).values()

    def after_a_step(M: Array) -> Array:
        layer.lora_A.data, layer.lora_B.data = np.linalg.solve(M, A), B @ M
        equal(layer.forward(x)[0], y)
        grads = gradients(layer, x, dy)
        equal(grads[layer.lora_A], M.T @ dA)
        equal(grads[layer.lora_B] @ M.T, dB)
        SGD(layer.trainable_parameters(), lr=ETA).step(grads)
        return layer.delta()

    rotation, stretch = np.linalg.qr(rng.standard_normal((len(A), len(A))))[0], np.diag(rng.uniform(1.5, 3, len(A)))
    plain = after_a_step(np.eye(len(A)))
    equal(after_a_step(rotation), plain)
    assert away(after_a_step(stretch @ rotation), plain) > 1e-6


def imbalance(layer: LoRALinear) -> Array:
    A, B = layer.lora_A.data, layer.lora_B.data
    return B.T @ B - A @ A.T


@few
@given(problems())
def test_gauge_directions_carry_no_slope_so_gradient_flow_conserves_BtB_minus_AAt(problem):
    """Bᵀ dB = s Bᵀ G Aᵀ = dA Aᵀ: L is flat along every direction of gauge, δB = B K and δA = -K A, since
        δL = ⟨dB, B K⟩ - ⟨dA, K A⟩ = ⟨Bᵀ dB - dA Aᵀ, K⟩ = 0 for all K
    Under the flow Ȧ = -dA, Ḃ = -dB: d/dt (BᵀB - AAᵀ) = -(Bᵀ dB + dBᵀ B) + (dA Aᵀ + A dAᵀ) = 0. From B = 0, then,
    ‖B‖² = ‖A‖² - ‖A₀‖² for ever. A step of SGD keeps that to first order, and adds η² (dBᵀ dB - dA dAᵀ)."""
    layer, A, B, x, dy, _ = problem
    before, grads = imbalance(layer), gradients(layer, x, dy)
    dA, dB = grads.values()
    equal(B.T @ dB, dA @ A.T)
    SGD(layer.trainable_parameters(), lr=ETA).step(grads)
    equal(imbalance(layer) - before, ETA**2 * (dB.T @ dB - dA @ dA.T))


@pytest.mark.parametrize(("optimizer", "ratio"), [(SGD, 2), (adam, 1)], ids=["SGD", "Adam"])
def test_at_half_the_rate_BtB_minus_AAt_drifts_half_as_far_by_SGD_and_as_far_by_Adam(optimizer, ratio, rng):
    """A time T is T/η steps that add O(η²) each: O(η) in all, nothing in the limit. Adam's limit, the flow along the
    signs of dA and dB, does not conserve it."""
    x, target, drift = rng.standard_normal((8, 7)), rng.standard_normal((8, 6)), []
    for halves in (1, 2):
        layer = trained(new(np.random.default_rng(1)), np.random.default_rng(2))
        before = imbalance(layer)
        train(layer, optimizer(layer.trainable_parameters(), lr=1e-3 / halves), x, target, 100 * halves)
        drift.append(np.linalg.norm(imbalance(layer) - before))
    assert drift[0] / drift[1] == pytest.approx(ratio, rel=0.2)  # O(η) off


@pytest.mark.parametrize(("optimizer", "power"), [(adam, 1), (SGD, 2)], ids=["Adam", "SGD"])
@few
@given(st.floats(1.5, 2.5), st.floats(0.4, 0.7), seeds)
def test_alpha_the_sizes_of_A_and_B_and_their_rates_can_be_exchanged(optimizer, power, p, q, seed):
    """α → α/(pq), A₀ → p A₀, B₀ → q B₀ keep ΔW and G, so dA → dA/p, dB → dB/q. Steps must grow as A and B did. Adam
    with ε = 0 does not see the size of dA: η_A → p η_A, η_B → q η_B (Schulman, 2025). A step of SGD has shrunk as dA
    did: η_A → p² η_A, η_B → q² η_B. By induction the whole run has the same ΔW. With p = 1 and q = s, s is gone into B:
    a scale is a choice of rates. From B₀ = 0, Adam's α, ‖A₀‖, η_A, η_B are but two numbers, α ‖A₀‖ η_B and ‖A₀‖/η_A.
    (The check starts at B₀ ≠ 0: at B₀ = 0 the first step of A, with ε = 0, is 0/0.)"""
    x, target = np.random.default_rng(seed).standard_normal((2, 8, 7))

    def run(p: float, q: float, power: int) -> Array:
        layer = trained(new(np.random.default_rng(seed), 7, 7), np.random.default_rng(seed + 1))
        layer.alpha /= p * q
        layer.lora_A.data, layer.lora_B.data = p * layer.lora_A.data, q * layer.lora_B.data
        rates = [ParamGroup({"A": layer.lora_A}, 4e-3 * p**power), ParamGroup({"B": layer.lora_B}, 3e-3 * q**power)]
        train(layer, optimizer(rates), x, target, 20)
        return layer.delta()

    plain = run(1, 1, power)
    assert away(run(p, q, power), plain) < 1e-10
    assert away(run(p, q, 3 - power), plain) > 1e-6  # the rule of the other optimizer


# ---- rank and decay ----


@few
@given(st.integers(1, 4), st.integers(1, 4), seeds)
def test_the_gradient_of_N_tokens_has_rank_N_and_k_steps_of_SGD_on_the_dense_weight_rank_kN(N, k, seed):
    """G = Σ_n dy_n x_nᵀ is a sum of N matrices of rank 1: of rank ≤ min(N, in, out), in general equal to it. Ranks add
    up at most, so -η Σ G over k batches has rank ≤ k N. Not so by Adam: sign(G), its first step, can have more."""
    rng = np.random.default_rng(seed)
    dense = Linear(rng.standard_normal((9, 10)))
    W0, optimizer = dense.weight.data, SGD(dense.trainable_parameters(), lr=ETA)
    for steps in range(1, k + 1):
        x, dy, _ = tokens(rng, N=N)
        grads = gradients(dense, x, dy)
        assert rank(grads[dense.weight]) == N
        optimizer.step(grads)
        assert rank(dense.weight.data - W0) == min(steps * N, 9)
    _, _, G = tokens(np.random.default_rng(0), N=2)
    assert rank(G) == 2 < rank(np.sign(G))


@pytest.mark.parametrize("optimizer", [SGD, AdamW])
def test_the_update_of_LoRA_has_rank_r_whatever_the_optimizer_and_the_number_of_steps(optimizer, rng):
    """x ΔWᵀ passes through the r numbers x Aᵀ, so ΔW has rank ≤ r after any number of steps. One step, the difference
    of two such, may have rank 2 r: the bound is on where a run is, not on the ways it may turn."""
    layer, x, target, r = new(rng), rng.standard_normal((30, 7)), rng.standard_normal((30, 6)), 3
    run = optimizer(layer.trainable_parameters(), lr=ETA)
    train(layer, run, x, target, 40)
    before = layer.delta()
    train(layer, run, x, target, 1)
    assert [rank(before), rank(layer.delta()), rank(layer.delta() - before)] == [r, r, 2 * r]


def test_decay_of_A_and_B_pulls_towards_W0_at_twice_the_rate_and_decay_of_W_towards_zero(rng):
    """Without a gradient, A ← (1-ηλ) A and B ← (1-ηλ) B, so ΔW ← (1-ηλ)² ΔW = (1 - 2ηλ + η²λ²) ΔW, and W → W₀.
    In full fine-tuning W ← (1-ηλ) W → 0: it forgets the base."""
    layer, decay, steps = trained(new(rng), rng), 0.4, 30
    delta, dense = layer.delta(), Linear(layer.base.weight.data + layer.delta())
    W, parameters = dense.weight.data, {"W": dense.weight, **layer.trainable_parameters()}
    optimizer = AdamW(parameters, lr=ETA, weight_decay=decay)
    for _ in range(steps):
        optimizer.step(Gradients({p: np.zeros_like(p.data) for p in parameters.values()}))
    equal(layer.delta(), (1 - ETA * decay) ** (2 * steps) * delta, atol=0)
    equal(dense.weight.data, (1 - ETA * decay) ** steps * W, atol=0)


@few
@given(problems())
def test_the_least_of_A2_plus_B2_over_the_gauge_is_twice_the_nuclear_norm_of_B_A(problem):
    """With B A = U Σ Vᵀ, the sum of the singular values is
        ‖B A‖_* = tr Uᵀ (B A) V = ⟨Bᵀ U, A V⟩ ≤ ‖Bᵀ U‖ ‖A V‖ ≤ ‖B‖ ‖A‖ ≤ (‖A‖² + ‖B‖²)/2
    with equality at B = U √Σ, A = √Σ Vᵀ, the balanced gauge, BᵀB = AAᵀ. So an L2 penalty on the factors is one on the
    singular values of ΔW, and asks for a low rank."""
    _, A, B, _, _, rng = problem
    r, (U, sigma, Vt) = len(A), np.linalg.svd(B @ A)
    least, balanced_B, balanced_A = 2 * sigma.sum(), U[:, :r] * np.sqrt(sigma[:r]), np.sqrt(sigma[:r, None]) * Vt[:r]
    equal(balanced_B @ balanced_A, B @ A)
    equal(np.sum(balanced_A**2) + np.sum(balanced_B**2), least)
    for size in (0.01, 0.1, 1):  # near the balanced gauge, and far from it
        M = np.eye(r) + size * rng.standard_normal((r, r))
        assert np.sum(np.linalg.solve(M, balanced_A) ** 2) + np.sum((balanced_B @ M) ** 2) > least
