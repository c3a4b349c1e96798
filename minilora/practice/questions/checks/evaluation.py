"""How to compare methods and runs: fair controls, dead adapters, faulty code, tests over seeds, true statements."""

import numpy as np

from .... import ops
from ....accounting.live import count_parameters
from ....adapters.attach import attach_lora
from ....adapters.lora import LoRALinear
from ....backend import Array
from ....models.pretrained import load_pretrained
from ....nn.inputs import Pass
from ....nn.layers import Linear
from ....nn.module import Gradients, Parameter
from ....nn.optim import SGD, AdamW


def equal_rank_is_not_equal_size_nor_one_rate_fair() -> str:
    """Rank 5 on q and v is a fifth of rank 5 on all layers; α × 16 wins at a shared small rate, and ties at its own."""
    sizes = []
    for targets, r in ((["q_proj", "v_proj"], 5), (["q_proj", "v_proj"], 24), ("all-linear", 5)):
        model = load_pretrained("builtin")
        attach_lora(model, targets, r=r, rng=0)
        sizes.append(count_parameters(model)["trainable"])
    assert sizes[0] < 0.2 * sizes[2]
    assert 0.9 < sizes[1] / sizes[2] < 1.1

    def held_out(alpha: float, eta: float, steps: int = 100) -> float:
        """The error after AdamW on noisy examples of a change of rank 4, relative to the error at the start."""
        rng = np.random.default_rng(0)
        change = rng.standard_normal((24, 4)) @ rng.standard_normal((4, 24)) / 24
        x, new = rng.standard_normal((2, 256, 24))
        t = x @ change.T + 0.3 * rng.standard_normal((256, 24))
        layer = LoRALinear(Linear(np.zeros((24, 24))), r=4, alpha=alpha, rng=1)
        optimizer = AdamW(layer.trainable_parameters(), eta)
        for step in range(steps):
            (y, cache), grads = layer.forward(x), Gradients()
            layer.backward((y - t) / 256, cache, grads)
            optimizer.step(grads, 1 - step / steps)
        return _relative(layer.forward(new)[0], new @ change.T)

    losses = {alpha: [held_out(alpha, eta) for eta in (2e-3, 1.6e-2, 3.2e-2, 6.4e-2)] for alpha in (4.0, 64.0)}
    shared, own = ([f(losses[alpha]) for alpha in losses] for f in (lambda row: row[0], min))
    assert shared[1] < 0.85 * shared[0]
    assert abs(own[1] / own[0] - 1) < 0.1
    return "q, v: {:,} (r = 5), {:,} (r = 24); all-linear: {:,} (r = 5); ".format(*sizes) + (
        "α = 4, 64: {:.2f}, {:.2f} (η = 0.002), {:.2f}, {:.2f} (min over η)".format(*shared, *own)
    )


def three_norms_tell_where_an_adapter_is_dead() -> str:
    """‖dB‖, ‖ΔW‖ and the change of the logits, of one sound adapter and of four whose answers do not change."""
    found = {}
    for fault in ("✓", "A = B = 0", "θ_opt ≠ θ", "y = x Wᵀ", "η = 0.001"):
        rng = np.random.default_rng(0)
        W, x, t = rng.standard_normal((9, 12)), rng.standard_normal((40, 12)), rng.standard_normal((40, 9))
        layer = LoRALinear(Linear(W), r=2, alpha=4, rng=0)
        if fault == "A = B = 0":
            layer.lora_A.data = 0 * layer.lora_A.data
        trained = layer.trainable_parameters()
        if fault == "θ_opt ≠ θ":  # as when a model is copied after the optimizer was made
            trained = {name: Parameter(parameter.data) for name, parameter in trained.items()}
        optimizer = SGD(trained, 1e-3 if fault == "η = 0.001" else 0.1)
        for step in range(5):
            (y, cache), grads = layer.forward(x), Gradients()
            layer.backward((y - t) / 40, cache, grads)
            if step == 0:
                dB = float(np.linalg.norm(grads[layer.lora_B]))
            optimizer.step(grads)
        used = layer.base if fault == "y = x Wᵀ" else layer  # the model that is asked is not the one trained
        logits = used.forward(x)[0]
        tokens = int((logits.argmax(axis=1) != (x @ W.T).argmax(axis=1)).sum())
        found[fault] = dB, float(np.linalg.norm(layer.delta())), float(abs(logits - x @ W.T).max()), tokens
    signs = {fault: tuple(value > 1e-9 for value in row) for fault, row in found.items()}
    assert signs == {
        "✓": (True, True, True, True),
        "A = B = 0": (False, False, False, False),
        "θ_opt ≠ θ": (True, False, False, False),
        "y = x Wᵀ": (True, True, False, False),
        "η = 0.001": (True, True, True, False),
    }
    words = "{}: {:.2g}, {:.2g}, {:.2g}, {}"
    return "‖dB‖, ‖ΔW‖, max|Δlogit|, #Δargmax: " + "; ".join(words.format(f, *row) for f, row in found.items())


def a_softmax_over_the_rank_is_no_update_of_a_weight() -> str:
    """softmax(x Aᵀ) Bᵀ + b, A and B of U(0, 1): no base, not linear, a matrix without a gradient, b trained."""
    rng = np.random.default_rng(0)
    W, x = rng.standard_normal((12, 16)) / 4, rng.standard_normal((2, 20, 16))
    A, B, gate, b = rng.random((4, 16)), rng.random((12, 4)), rng.random((4, 16)), rng.random(12)

    def published(x: Array, gate: Array = gate) -> Array:
        _ = x @ gate.T  # computed, and never used
        z = np.exp(x @ A.T - (x @ A.T).max(axis=-1, keepdims=True))
        return z / z.sum(axis=-1, keepdims=True) @ B.T + b

    def repaired(x: Array) -> Array:
        return x @ W.T + ops.lora_forward(x, A, 0 * B, 2.0)[0]

    start = [_relative(f(x), x @ W.T) for f in (published, repaired)]
    bent = []
    for f in (published, lambda x: x @ W.T + ops.lora_forward(x, A, B, 2.0)[0]):
        (one, two), zero = x, f(0 * x[0])
        bent.append(_relative(f(one) + f(two) - 2 * zero, f(one + two) - zero))  # 0 if f is x Mᵀ + c for some M
    gradient = abs(published(x, gate + 1.0) - published(x)).max()
    merged = _relative(x @ (B @ A).T, published(x))  # what its merge() returns: B A alone
    assert start[0] > 0.5
    assert start[1] == 0
    assert bent[0] > 0.05
    assert bent[1] < 1e-14
    assert gradient == 0
    assert merged > 0.5
    numbers = sum(M.size for M in (A, B, gate, b)), 4 * (16 + 12)
    return (
        f"‖y - x Wᵀ‖/‖x Wᵀ‖ = {start[0]:.2f} (0); f(x + y) - f(x) - f(y) + f(0): {bent[0]:.2f} ({bent[1]:.0e}); "
        f"∂y/∂gate = {gradient:.0f}; x (B A)ᵀ: {merged:.1f}; {numbers[0]} ({numbers[1]})"
    )


def items_of_one_run_cannot_tell_methods_apart() -> str:
    """Two equal methods whose runs vary: a test over items finds a difference too often, one over seeds does not."""
    rng, sims, seeds, items = np.random.default_rng(0), 400, 5, 1000
    ease = 1.5 + 1.5 * rng.standard_normal(items)

    def right() -> Array:
        """(sims, seeds, items): which items each run answers; a run is a little better or worse than its method."""
        logit = ease + 0.1 * rng.standard_normal((sims, seeds, 1))
        return rng.random((sims, seeds, items)) < 1 / (1 + np.exp(-logit))

    a, b = right(), right()
    only_a, only_b = ((one & ~two).sum(axis=1) for one, two in ((a[:, 0], b[:, 0]), (b[:, 0], a[:, 0])))
    over_items = float(np.mean(abs(only_a - only_b) > 1.96 * np.sqrt(only_a + only_b)))  # McNemar's
    d = a.mean(axis=2) - b.mean(axis=2)
    over_seeds = float(np.mean(abs(d.mean(axis=1)) > 2.776 * d.std(axis=1, ddof=1) / np.sqrt(seeds)))
    assert over_items > 0.15
    assert 0.02 < over_seeds < 0.08
    accuracy = rng.normal(0.8, 0.01, (2, seeds))
    ratio = [float(np.var(accuracy[0], ddof=1) / np.var(accuracy[1] + shift, ddof=1)) for shift in (0, 0.1)]
    assert np.isclose(ratio[0], ratio[1])  # F: blind to which is better
    least = [2 / 2**n for n in (5, 6)]  # of a sign test in which every seed agrees
    assert least[0] > 0.05 > least[1]
    return (
        f"5% → {over_items:.0%} (1000 items, 1 + 1 runs), {over_seeds:.0%} (5 + 5 runs); "
        f"F(a, b) = {ratio[0]:.2f}, F(a, b + 0.1) = {ratio[1]:.2f}; 2/2⁵ = {least[0]:g}, 2/2⁶ = {least[1]:g}"
    )


def five_of_the_twelve_statements_hold() -> str:
    """Each of the twelve statements of J10, tried on one layer."""
    rng, s = np.random.default_rng(0), 2.0
    W, x, dy = rng.standard_normal((10, 12)), rng.standard_normal((30, 12)), rng.standard_normal((30, 10))
    A, B, G = rng.standard_normal((2, 12)), rng.standard_normal((10, 2)), dy.T @ x
    layer = LoRALinear(Linear(W), r=2, alpha=4, dropout=0.25, rng=0)
    (start, cache), grads = layer.forward(x), Gradients()
    dx = layer.backward(dy, cache, grads)
    layer.lora_A.data, layer.lora_B.data = A, B
    masked = layer.forward(np.repeat(x[:1], 20_000, axis=0), run=Pass(rng=np.random.default_rng(0)))[0]
    merged, update = layer.merged()[0], layer.delta()
    like_x = x + rng.standard_normal((30, 12)) @ (np.eye(12) - np.linalg.pinv(A) @ A)  # the same h = x Aᵀ
    dA, other = (ops.lora_A_gradients(s * dy @ B, z) for z in (x, like_x))
    first_steps = [scale**2 * G @ A.T @ A for scale in (s, 2 * s)]  # of SGD, from B = 0
    A2, B2, square = rng.standard_normal((2, 12)), rng.standard_normal((10, 2)), rng.standard_normal((12, 12))
    full_step, step = G, G @ square.T @ square  # r = 12
    held = [
        W.size + A.size + B.size < W.size,  # 1: fewer parameters
        np.array_equal(start, x @ W.T),  # 2: the base at the start
        not grads[layer.lora_B].any(),  # 3: no gradient at B = 0
        np.allclose(like_x @ A.T, x @ A.T) and not np.allclose(dA, other),  # 4: dA needs x
        dx is None or not dx.any(),  # 5: no backward through what is frozen
        np.allclose(first_steps[1], 2 * first_steps[0]),  # 6: α is the learning rate
        merged.shape == W.shape and np.allclose(x @ merged.T, layer.forward(x)[0]),  # 7: merged, no cost
        _relative(masked.mean(axis=0) - x[0] @ W.T, update @ x[0]) < 0.05,  # 8: merged without 1 - p
        np.allclose((B + B2) / 2 @ (A + A2) / 2, (B @ A + B2 @ A2) / 2),  # 9: mean of the factors
        np.linalg.matrix_rank(merged) == 2,  # 10: rank r
        np.array_equal(layer.base.forward(x)[0], x @ W.T),  # 11: off, the base
        np.sum(step * full_step) / np.linalg.norm(step) / np.linalg.norm(full_step) > 0.99,  # 12: r = in is full
    ]
    assert [bool(holds) for holds in held] == [n in (2, 4, 7, 8, 11) for n in range(1, 13)]
    return " ".join(f"{n} {'✓' if holds else '✗'}" for n, holds in enumerate(held, 1))


def _relative(a: Array, b: Array) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))
