"""The start of an adapter, its scale s = α/r, and the learning rate."""

import numpy as np

from .... import ops
from ....adapters.lora import LoRALinear
from ....nn import Gradients, Linear
from ....nn.optim import SGD, AdamW, Optimizer, ParamGroup

Array = np.ndarray
_LARGER_A = (8, 0.01, 1), (8, 0.01, 4), (2, 0.04, 4)  # α, η_A, A₀: as usual; 4 A₀ alone; with α / 4 and 4 η_A


def one_factor_starts_at_zero_and_the_other_must_not() -> str:
    """‖dA‖, ‖dB‖ and ‖y - base‖/‖base‖ of five starts: only one zero and one random factor change nothing and learn."""
    rng = np.random.default_rng(0)
    x, W, dy = rng.standard_normal((50, 64)), rng.standard_normal((64, 64)) / 8, rng.standard_normal((50, 64))
    A, B = rng.standard_normal((8, 64)) / 8, rng.standard_normal((64, 8)) / 8
    lines, found = [], {}
    starts = {"B=0": (A, 0 * B), "A=0": (0 * A, B), "A=B=0": (0 * A, 0 * B), "A,B≠0": (A, B)}
    starts["Xavier"] = A * 4 / 3, B * 4 / 3  # √(2 / (64 + 8)) = 1/6 instead of 1/8
    for name, start in starts.items():
        dA, dB = _gradients(x, dy, *start, s=2.0)
        y = ops.lora_forward(x, *start, 2.0)[0]
        found[name] = [float(np.linalg.norm(z)) for z in (dA, dB)] + [np.linalg.norm(y) / np.linalg.norm(x @ W.T)]
        lines.append(f"{name}: {found[name][0]:.0f}, {found[name][1]:.0f}, {found[name][2]:.0%}")
    assert found["B=0"][0] == found["B=0"][2] == found["A=0"][1] == found["A=0"][2] == 0
    assert min(found["B=0"][1], found["A=0"][0]) > 1
    assert found["A=B=0"] == [0, 0, 0]
    assert found["Xavier"][2] > found["A,B≠0"][2] > 0.5
    return "‖dA‖, ‖dB‖, ‖Δy‖/‖y‖: " + "; ".join(lines)


def equal_rows_of_A_keep_rank_1() -> str:
    """From B = 0 y is the base's bit for bit; after 30 steps ΔW has rank r, and 1 if the rows of A were equal."""
    rng = np.random.default_rng(0)
    x, goal, W = (rng.standard_normal(shape) for shape in ((40, 12), (40, 10), (10, 12)))
    ranks = []
    for rows in (4, 1):
        layer = LoRALinear(Linear(W), r=4, alpha=4, rng=1)
        layer.lora_A.data = np.tile(rng.standard_normal((rows, 12)) / 12**0.5, (4 // rows, 1))
        start = layer.forward(x)[0]
        assert (start == layer.base.forward(x)[0]).all()
        _descend(layer, AdamW(layer.trainable_parameters(), lr=0.01), x, goal, steps=30)
        ranks.append(int(np.linalg.matrix_rank(layer.delta(), tol=1e-9)))
    assert ranks == [4, 1]
    return f"r = 4, y - y₀ = {abs(start - x @ W.T).max():g}; rank ΔW = {ranks[0]}; A₁ = A₂ = A₃ = A₄: {ranks[1]}"


def a_zero_B_limits_what_is_read_and_a_zero_A_what_is_written() -> str:
    """The first step of SGD: ΔW = -η s² G AᵀA has its rows in A's; from A = 0, -η s² B Bᵀ G has its columns in B's."""
    rng = np.random.default_rng(0)
    x, dy = rng.standard_normal((90, 30)), rng.standard_normal((90, 20))
    A, B, G = rng.standard_normal((3, 30)), rng.standard_normal((20, 3)), dy.T @ x
    changes = []
    for start in ((A, 0 * B), (0 * A, B)):
        dA, dB = _gradients(x, dy, *start, s=2.0)
        changes.append(2.0 * (start[1] - 0.1 * dB) @ (start[0] - 0.1 * dA))
    from_B, from_A = changes
    assert np.allclose(from_B, -0.1 * 4 * G @ A.T @ A)
    assert np.allclose(from_A, -0.1 * 4 * B @ B.T @ G)
    reads = [_outside(change.T, A.T) for change in changes]
    writes = [_outside(change, B) for change in changes]
    assert max(reads[0], writes[1]) < 1e-12
    assert min(reads[1], writes[0]) > 0.5
    outside = [f"{read:.0%} ∉ row(A), {written:.0%} ∉ col(B)" for read, written in zip(reads, writes, strict=True)]
    return f"B=0: {outside[0]}; A=0: {outside[1]}"


def with_Adam_alpha_is_the_rate_of_B_alone() -> str:
    """ΔW after 20 steps: twice α is twice the rate of B alone by Adam, four times it by SGD; never the rate of both."""
    found = {}
    for kind, power, lr in ((AdamW, 1, 0.01), (SGD, 2, 0.02)):
        twice = _trained(kind, 8, lr, lr)
        B_alone, both = _trained(kind, 4, lr, 2**power * lr), _trained(kind, 4, 2**power * lr, 2**power * lr)
        found[kind.__name__] = _away(B_alone, twice), _away(both, twice)
    assert max(exact for exact, _ in found.values()) < 1e-9
    assert min(rate for _, rate in found.values()) > 0.02
    (adam, adam_both), (sgd, sgd_both) = found.values()
    return f"α × 2, Adam: η_B × 2: {adam:.0%}, η × 2: {adam_both:.0%}; SGD: η_B × 4: {sgd:.0%}, η × 4: {sgd_both:.0%}"


def alpha_over_r_keeps_the_first_drop_of_Adam_and_not_the_length() -> str:
    """r is doubled: the factors by which the drop -Σ G ∘ ΔW and the length ‖ΔW‖ of the first step grow, for three s."""
    scales = {"α/r": lambda r: 8 / r, "α/√r": lambda r: 8 / r**0.5, "s": lambda r: 1.0}
    ratios, lines = {}, []
    for name, s in scales.items():
        before, after = (np.array([_first_step(adam, s(r), r) for adam in (0, 1)]) for r in (8, 16))
        ratios[name] = (after / before).round(3)  # rows SGD, Adam; columns drop, length
        lines.append(f"{name}: {ratios[name][0, 0]:.2f}, {ratios[name][1, 0]:.2f}, {ratios[name][1, 1]:.2f}")
    law = {"α/r": (1 / 2, 1, 0.5**0.5), "α/√r": (1, 2**0.5, 1), "s": (2, 2, 2**0.5)}
    for name, (sgd, adam, length) in law.items():
        measured = ratios[name][0, 0], ratios[name][1, 0], ratios[name][1, 1]
        assert np.allclose(measured, (sgd, adam, length), rtol=0.1), (name, measured)
    return "r × 2; drop SGD, drop Adam, ‖ΔW‖ Adam: " + "; ".join(lines)


def with_Adam_a_ratio_of_rates_is_an_alpha() -> str:
    """LoRA+: η_B = λ η_A gives at every η_A the loss of the scale α λ; here, each at its best η_A, λ > 1 is no gain."""
    rates = 2.0 ** np.arange(-7, 0, 0.5)
    curves = {(alpha, ratio): _losses(rates, alpha, ratio) for alpha, ratio in ((4, 1), (4, 4), (4, 16), (16, 1))}
    best = {key: curve.min() for key, curve in curves.items()}
    assert np.allclose(curves[4, 4], curves[16, 1], rtol=1e-6)
    assert not np.allclose(curves[4, 4], curves[4, 1], rtol=0.1)
    assert best[4, 1] < best[4, 4] < best[4, 16]
    return "; ".join(f"α={alpha}, λ={ratio}: {loss:.4f}" for (alpha, ratio), loss in best.items())


def the_factor_between_best_rates_falls_with_alpha() -> str:
    """Adam: full's first drop over LoRA's is √3 in/α for every r; LoRA's best rate over full's falls as α grows."""
    for n, alpha, r in ((64, 8, 4), (64, 8, 16), (64, 32, 4), (128, 8, 4)):
        G = np.random.default_rng(7).standard_normal((n, n))
        drop = np.mean([_drop_and_length(G, 1, alpha / r, r, seed)[0] for seed in range(40)])
        assert np.isclose(abs(G).sum() / drop, 3**0.5 * n / alpha, rtol=0.1)
    rates = 2.0 ** np.arange(-8, 0, 0.5)
    full = rates[np.argmin(_losses(rates, None))]
    factors = {alpha: rates[np.argmin(_losses(rates, alpha))] / full for alpha in (4, 16, 64)}
    assert factors[4] > 1
    assert factors[4] > 1.5 * factors[16] > 2 * factors[64]
    return "η*(LoRA)/η*(full): " + ", ".join(f"α={alpha}: {factor:.2g}" for alpha, factor in factors.items())


def a_start_that_takes_from_W_reaches_other_updates() -> str:
    """Least ‖error‖ by r = 4 from LoRA's and from PiSSA's start, for an update of rank 4 and for PiSSA's own kind."""
    rng = np.random.default_rng(0)
    W, D = rng.standard_normal((48, 48)) / 48**0.5, rng.standard_normal((48, 4)) @ rng.standard_normal((4, 48)) / 48
    U, sigma, Vt = np.linalg.svd(W)
    principal = (U[:, :4] * sigma[:4]) @ Vt[:4]  # what PiSSA puts in s B A; W - principal is frozen
    floors = []
    for goal in (W + D, W - principal + D):
        floors.append([_floor(goal - frozen, r) for frozen, r in ((W, 4), (W - principal, 4), (W, 8))])
    (lora, pissa, wide), (lora_2, pissa_2, wide_2) = floors
    assert lora < 1e-12 < 1 < pissa
    assert pissa_2 < 1e-12 < 1 < lora_2
    assert max(wide, wide_2) < 1e-12
    own = f"W - W₄ + D: LoRA {lora_2:.2f}, PiSSA {pissa_2:.2f}, LoRA r=8 {wide_2:.2f}"
    return f"‖D‖ = {np.linalg.norm(D):.2f}; W + D: LoRA {lora:.2f}, PiSSA {pissa:.2f}, LoRA r=8 {wide:.2f}; {own}"


def only_one_over_in_keeps_h_for_every_width() -> str:
    """The variance of h = x Aᵀ, r = 8, for three widths and Var A; a larger A is a larger α and a smaller rate of A."""
    found: dict[str, list[float]] = {"1/r": [], "1/r²": [], "1/(3 in)": []}
    for n in (64, 256, 1024):
        rng = np.random.default_rng(n)
        x, A = rng.standard_normal((400, n)), rng.standard_normal((8, n))
        ours = LoRALinear(Linear(np.zeros((8, n))), r=8, rng=n).lora_A.data
        for variances, start in zip(found.values(), (A / 8**0.5, A / 8, ours), strict=True):
            variances.append(float((x @ start.T).var()))
    assert np.allclose(found["1/r"], [8, 32, 128], rtol=0.15)
    assert np.allclose(found["1/r²"], [1, 4, 16], rtol=0.15)
    assert np.allclose(found["1/(3 in)"], 1 / 3, rtol=0.15)
    usual, large, retuned = (_trained(AdamW, alpha, lr, 0.01, A0) for alpha, lr, A0 in _LARGER_A)
    assert _away(retuned, usual) < 1e-9
    assert _away(large, usual) > 0.1
    return "in = 64, 256, 1024; Var h: " + "; ".join(
        f"Var A = {name}: {a:.2g}, {b:.2g}, {c:.3g}" for name, (a, b, c) in found.items()
    )


def _gradients(x: Array, dy: Array, A: Array, B: Array, s: float) -> tuple[Array, Array]:
    _, cache = ops.lora_forward(x, A, B, s)
    _, dh = ops.lora_backward(dy, A, B, s)
    return ops.lora_A_gradients(dh, cache.x), ops.lora_B_gradients(dy, cache.h, s)


def _outside(M: Array, basis: Array) -> float:
    """The share of ‖M‖ whose columns lie outside those of `basis`."""
    Q = np.linalg.qr(basis)[0]
    return float(np.linalg.norm(M - Q @ (Q.T @ M)) / np.linalg.norm(M))


def _away(X: Array, Y: Array) -> float:
    return float(np.linalg.norm(X - Y) / np.linalg.norm(Y))


def _floor(goal: Array, r: int) -> float:
    """The least distance of a matrix of rank r: Eckart, Young."""
    return float(np.linalg.norm(np.linalg.svd(goal, compute_uv=False)[r:]))


def _trained(kind: type[SGD | AdamW], alpha: float, lr_A: float, lr_B: float, A0: float = 1.0) -> Array:
    """ΔW of a LoRALinear whose A starts A0 times as large, after 20 steps with a rate for each factor."""
    rng = np.random.default_rng(0)
    x, goal = rng.standard_normal((40, 12)), rng.standard_normal((40, 10))
    layer = LoRALinear(Linear(np.zeros((10, 12))), r=2, alpha=alpha, rng=1)
    layer.lora_A.data = A0 * layer.lora_A.data
    groups = [ParamGroup({"A": layer.lora_A}, lr_A), ParamGroup({"B": layer.lora_B}, lr_B)]
    _descend(layer, AdamW(groups, eps=1e-30) if kind is AdamW else SGD(groups), x, goal, steps=20)
    return layer.delta()


def _descend(layer: LoRALinear, optimizer: Optimizer, x: Array, goal: Array, steps: int) -> None:
    """Steps down the mean squared error."""
    for _ in range(steps):
        y, cache = layer.forward(x)
        grads = Gradients()
        layer.backward((y - goal) / len(x), cache, grads)
        optimizer.step(grads)


def _first_step(adam: int, s: float, r: int) -> tuple[float, float]:
    """Drop and length, on average over draws of A."""
    G = np.linalg.qr(np.random.default_rng(7).standard_normal((96, 96)))[0]
    return tuple(np.mean([_drop_and_length(G, adam, s, r, seed) for seed in range(30)], axis=0))


def _drop_and_length(G: Array, adam: int, s: float, r: int, seed: int) -> tuple[float, float]:
    """-Σ G ∘ ΔW and ‖ΔW‖ of the first step from B = 0 at η = 1."""
    A = np.random.default_rng(seed).uniform(-1, 1, (r, len(G))) / len(G) ** 0.5
    dB = s * G @ A.T
    change = s * -(np.sign(dB) if adam else dB) @ A
    return float(-(G * change).sum()), float(np.linalg.norm(change))


def _losses(rates: Array, alpha: float | None, ratio: float = 1.0, n: int = 32, r: int = 4, steps: int = 40) -> Array:
    """Adam down to a W that differs by rank 4: the last loss at each of the rates; in full where α is None."""
    total = np.zeros(len(rates))
    for seed in (0, 1):
        rng, s = np.random.default_rng(seed), alpha / r if alpha else 1.0
        D = np.linalg.qr(rng.standard_normal((n, r)))[0] @ np.linalg.qr(rng.standard_normal((n, r)))[0].T
        C = np.linspace(0.5, 1.5, n) ** 2  # the variances of x
        A = np.repeat(rng.uniform(-1, 1, (1, r, n)) / n**0.5, len(rates), 0)
        p = [A, np.zeros((len(rates), n, r))] if alpha else [np.zeros((len(rates), n, n))]
        moments = [(0 * each, 0 * each) for each in p]
        for t in range(1, steps + 1):
            G = ((s * p[1] @ p[0] if alpha else p[0]) - D) * C
            for i, g in enumerate([s * p[1].swapaxes(1, 2) @ G, s * G @ p[0].swapaxes(1, 2)] if alpha else [G]):
                m, v = moments[i] = 0.9 * moments[i][0] + 0.1 * g, 0.999 * moments[i][1] + 0.001 * g * g
                lr = rates[:, None, None] * (1 + np.cos(np.pi * (t - 1) / steps)) / 2 * (ratio if i else 1)
                p[i] = p[i] - lr * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-30)
        total += ((((s * p[1] @ p[0] if alpha else p[0]) - D) ** 2) * C).sum((1, 2)) / 2
    return total
