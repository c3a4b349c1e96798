"""What the articles say of training, of the rank, of penalties and of the relatives in compression."""

import numpy as np

from .... import ops
from ....accounting import count
from ....adapters import spectrum
from ....adapters.lora import LoRALinear
from ....backend import Array
from ....nn import Gradients, Linear
from ....nn.optim import AdamW


def factors_taken_from_W_are_subtracted_from_it() -> str:
    """B A = the cut of W to rank 8: added to W it changes the layer; added to W - B A, as in PiSSA, it does not."""
    W = np.random.default_rng(0).standard_normal((64, 64)) / 8
    B, A = spectrum.truncate(spectrum.svd(W), 8)
    added, subtracted = _relative(W + B @ A, W), _relative((W - B @ A) + B @ A, W)
    assert subtracted < 1e-15 < 0.5 < added
    return f"W + B A: {added:.2f}; (W - B A) + B A: {subtracted:.0e}"


def the_loop_moves_A_and_B_and_nothing_else() -> str:
    """300 steps of one loop: the loss falls and W is the same to the bit; other inputs then move neither A nor B."""
    rng = np.random.default_rng(0)
    layer, x = LoRALinear(Linear(rng.standard_normal((16, 16))), r=4, alpha=8, rng=1), rng.standard_normal((64, 16))
    goal, W = layer.forward(x)[0] + x @ _low_rank(rng, 16, 2), layer.base.weight.data.tobytes()
    optimizer, losses = AdamW(layer.trainable_parameters(), lr=0.02), []
    for _ in range(300):
        y, cache = layer.forward(x)
        grads = Gradients()
        layer.backward((y - goal) / len(x), cache, grads)
        optimizer.step(grads)
        losses.append(float(((y - goal) ** 2).mean()))
    factors = layer.lora_A.data.tobytes(), layer.lora_B.data.tobytes()
    layer.forward(100 * rng.standard_normal((500, 16)))
    assert losses[-1] < 1e-3 * losses[0]
    assert layer.base.weight.data.tobytes() == W
    assert factors == (layer.lora_A.data.tobytes(), layer.lora_B.data.tobytes())
    return f"loss {losses[0]:.2f} → {losses[-1]:.0e}; W: 0 bytes changed; A, B by other inputs: 0 bytes"


def a_falling_rate_settles_noise_and_not_overfitting() -> str:
    """Small batches of new data: a rate that falls to 0 ends nearer the truth. 48 samples, r = 16: as far from it."""
    found = {}
    for name, n, batch, steps, lr in (("8 new samples a step", 0, 8, 600, 0.05), ("48 samples", 48, 0, 1000, 0.1)):
        for falls in (False, True):
            found[name, falls] = _noisy_descent(n, batch, steps, lr, falls)
    (noise, settled), (fitted, fitted_too) = np.reshape(list(found.values()), (2, 2))
    assert settled < 0.6 * noise
    assert fitted_too > 0.9 * fitted > 0.3
    lines = f"8 new samples a step: {noise:.2f} → {settled:.2f}; 48 samples: {fitted:.2f} → {fitted_too:.2f}"
    return f"constant → falling: {lines}"


def a_rank_grows_without_a_jump_by_zero_columns_of_B() -> str:
    """r = 8 to 12: zero columns of B change nothing, random ones do, and α/r computed again cuts ΔW by a third."""
    rng, s = np.random.default_rng(0), 16 / 8
    A, B = rng.standard_normal((12, 48)), rng.standard_normal((48, 8))
    change, zero, random = s * B @ A[:8], np.zeros((48, 4)), rng.standard_normal((48, 4))
    kept, filled, rescaled = (
        _relative(scale * np.hstack([B, columns]) @ A, change)
        for scale, columns in ((s, zero), (s, random), (16 / 12, zero))
    )
    assert kept == 0
    assert filled > 0.5
    assert np.isclose(rescaled, 1 - 8 / 12)
    return f"r = 8 → 12: B | 0: {kept:g}; B | random: {filled:.2f}; α/12: {rescaled:.2f}"


def a_large_rank_on_little_data_is_best_before_its_end() -> str:
    """60 noisy samples of a change of rank 2, r = 16: ‖ΔW - truth‖ has its minimum early, and ends far above it."""
    errors = _Task(truth_rank=2, n=60, noise=0.5).train([16], steps=800)
    best = int(np.argmin(errors))
    assert best < 0.2 * len(errors)
    assert errors[-1] > 1.5 * errors[best]
    return f"r = 16: step {best}: {errors[best]:.2f}; step {len(errors)}: {errors[-1]:.2f}"


def small_steps_need_a_float32_copy() -> str:
    """1,000 steps of 1e-6 from 0.01, and what 1e-4 is in float16: added to 1 nothing, and times itself 0."""
    half, single = np.float16(0.01), np.float32(0.01)
    for _ in range(1000):
        half, single = np.float16(half + np.float16(1e-6)), np.float32(single + np.float32(1e-6))
    small = np.float16(1e-4)
    assert half < 0.0101
    assert abs(single - 0.011) < 1e-6
    assert np.float16(1) + small == 1
    assert small * small == 0
    return f"0.01 + 1000 · 1e-6: float16 {half:.6f}, float32 {single:.6f}; float16: 1 + 1e-4 = 1, 1e-4 · 1e-4 = 0"


def gradients_of_shards_add_up_and_are_small() -> str:
    """Four workers with a quarter of the batch each: their dA and dB sum to the whole ones; bytes at 4096, r = 8."""
    rng = np.random.default_rng(0)
    x, dy = rng.standard_normal((64, 24)), rng.standard_normal((64, 20))
    A, B, s = rng.standard_normal((4, 24)), rng.standard_normal((20, 4)), 2.0

    def gradients(rows: slice) -> Array:
        dh = ops.lora_backward(dy[rows], A, B, s)[1]
        dA, dB = ops.lora_A_gradients(dh, x[rows]), ops.lora_B_gradients(dy[rows], x[rows] @ A.T, s)
        return np.concatenate([dA.ravel(), dB.ravel()])

    error = _relative(np.sum([gradients(slice(i, None, 4)) for i in range(4)], axis=0), gradients(slice(None)))
    full, lora = 4 * 4096 * 4096, 4 * 8 * (4096 + 4096)
    assert error < 1e-14
    assert full == 256 * lora
    return f"Σ of 4: {error:.0e}; a step sends {full / 1e6:.1f} MB or {lora / 1e6:.2f} MB: 1/{full // lora}"


def four_times_the_data_is_four_times_the_work() -> str:
    """Llama 2 7B: with 4 × the samples FLOPs × 4 and the same A and B; a teacher of its size adds half a step."""
    one, four = (count("llama-2-7b", "lora", r=16, tokens=512, batch=batch) for batch in (1, 4))
    forward, *rest = (part.products for part in one.flops())
    step = forward + sum(rest)
    work, teacher = sum(part.products for part in four.flops()) / step, (step + forward) / step
    assert work == 4
    assert four.trainable == one.trainable
    assert 1.45 < teacher < 1.55
    return f"samples × 4: FLOPs × {work:g}, {one.trainable:,} parameters as before; with a teacher × {teacher:.2f}"


def the_largest_stable_rate_moves_with_s() -> str:
    """The largest of the rates 2^k with which descent ends within 1 % of a change of rank 2: W, and A, B by s."""
    rng, d = np.random.default_rng(0), 32
    x, goal = rng.standard_normal((300, d)), _low_rank(rng, d, 2) * 4
    C, rates, found = x.T @ x / len(x), 2.0 ** np.arange(-6, 4), {}
    start = rng.uniform(-1, 1, (4, d)) / d**0.5
    for name, s in {"W": 0.0, "s = 4": 4.0, "s = 1": 1.0, "s = 1/16": 1 / 16}.items():
        A, B = np.tile(start, (len(rates), 1, 1)), np.zeros((len(rates), d, 4))
        W, lr = np.zeros((len(rates), d, d)), rates[:, None, None]
        with np.errstate(all="ignore"):
            for _ in range(250):
                G = ((s * B @ A if s else W) - goal) @ C
                W = W - lr * G
                A, B = A - lr * s * B.swapaxes(1, 2) @ G, B - lr * s * G @ A.swapaxes(1, 2)
            good = [_relative(each, goal) < 0.01 for each in (s * B @ A if s else W)]
        found[name] = float(rates[good].max())
    assert found["s = 4"] < found["s = 1"] < found["W"] < found["s = 1/16"]
    return "; ".join(f"{name}: η ≤ {rate:g}" for name, rate in found.items())


def an_adapter_changes_inputs_that_it_never_saw() -> str:
    """Trained on half of the directions: the outputs of the other half change too, and more if the halves overlap."""
    rng, d = np.random.default_rng(0), 32
    Q, W, update = np.linalg.qr(rng.standard_normal((d, d)))[0], rng.standard_normal((d, d)) / 6, _low_rank(rng, d, 2)
    seen, other, changes = rng.standard_normal((100, 16)) @ Q[:16], rng.standard_normal((100, 16)) @ Q[16:], []
    for overlap in (0.0, 0.5):
        x = seen + overlap * other
        A, B = rng.standard_normal((2, d)) / d**0.5, np.zeros((d, 2))
        for _ in range(500):
            G = (B @ A - 3 * update) @ (x.T @ x / len(x))
            A, B = A - 0.05 * B.T @ G, B - 0.05 * G @ A.T
        new = rng.standard_normal((200, 16)) @ Q[16:]
        changes.append(float(np.linalg.norm(new @ (B @ A).T) / np.linalg.norm(new @ W.T)))
    assert 0.1 < changes[0] < changes[1]
    return f"‖ΔW x‖/‖W x‖, x ⊥ what it was trained on: {changes[0]:.2f}; overlap 0.5: {changes[1]:.2f}; off: 0"


def factors_are_smaller_than_W_up_to_a_break_even_rank() -> str:
    """A and B have fewer numbers than W while r < in · out / (in + out), which is d/2 for a square W."""
    lines = []
    for n_out, n_in in ((768, 768), (3072, 768)):
        even, base = n_out * n_in / (n_out + n_in), Linear(np.zeros((n_out, n_in)))
        for r in (int(even) - 1, int(even) + 1):
            layer = LoRALinear(base, r=r, rng=0)
            assert (layer.lora_A.data.size + layer.lora_B.data.size < n_out * n_in) == (r < even)
        lines.append(f"{n_in} → {n_out}: r < {even:g}")
    return "; ".join(lines)


def more_data_asks_for_a_larger_rank_only_if_the_truth_has_a_tail() -> str:
    """The best rank to cut a noisy ΔW to, by n, where the true one has rank 4, and where σᵢ = 1/i."""
    rng, d, lines, amounts = np.random.default_rng(0), 40, [], (100, 1000, 10_000)
    for name, sigma in {"rank 4": np.arange(d) < 4, "σᵢ = 1/i": 1 / np.arange(1, d + 1)}.items():
        U, V = (np.linalg.qr(rng.standard_normal((d, d)))[0] for _ in range(2))
        truth, best = (U * sigma) @ V, []
        for n in amounts:
            errors = np.zeros(d)
            for _ in range(4):
                found = spectrum.svd(truth + 0.3 * rng.standard_normal((d, d)) / n**0.5)
                cuts = np.cumsum([s * np.outer(u, v) for u, s, v in zip(found.U.T, *found[1:], strict=True)], axis=0)
                errors += ((cuts - truth) ** 2).sum(axis=(1, 2))
            best.append(int(errors.argmin()) + 1)
        assert best == [4, 4, 4] if name == "rank 4" else best[0] < 4 < best[1] < best[2]
        lines.append(f"{name}: " + ", ".join(map(str, best)))
    return "n = 100, 1000, 10000: " + "; ".join(lines)


def a_rank_that_falls_ends_where_the_small_one_does() -> str:
    """60 noisy samples, r = 16, 8, 4, 2 by cuts of σ: the error of r = 2 from the start; a truth of rank 16 is lost."""
    schedules, lines, found = ([2], [16], [16, 8, 4, 2], [2, 4, 8, 16]), [], {}
    for rank, n in ((2, 60), (16, 2000)):
        task = _Task(truth_rank=rank, n=n, noise=0.5)
        small, large, falls, grows = found[rank] = [task.train(ranks, steps=600)[-1] for ranks in schedules]
        assert abs(falls / small - 1) < 0.1
        lines.append(f"rank {rank}, n = {n}: {small:.2f}, {large:.2f}, {falls:.2f}, {grows:.2f}")
    assert found[2][2] < 0.5 * found[2][1]
    assert found[16][2] > 2 * found[16][1]
    return "r = 2, 16, 16 → 2, 2 → 16: " + "; ".join(lines)


def a_rank_too_small_is_not_helped_by_a_smaller_one() -> str:
    """A truth of rank 8: the error that r = 4 leaves grows if r is lowered to 2, and is gone if it is raised to 8."""
    task = _Task(truth_rank=8, n=2000, noise=0.0)
    four, two, eight = (task.train(ranks, steps=800)[-1] for ranks in ([4], [4, 2], [4, 8]))
    assert two > 1.3 * four
    assert eight < 0.01 < 0.3 < four
    return f"r = 4: {four:.2f}; 4 → 2: {two:.2f}; 4 → 8: {eight:.1e}"


def L1_zeroes_numbers_only_by_a_proximal_step() -> str:
    """Zero entries of 384, and zero components of 8, for a truth of rank 2: by λ sign, a proximal step, by groups."""
    rng, d, r, lr, found = np.random.default_rng(1), 24, 8, 0.05, {}
    goal = 4 * _low_rank(rng, d, 2)
    for kind, penalty in {"λ sign": 0.02, "proximal": 0.02, "groups": 0.1}.items():
        A, B = np.random.default_rng(7).standard_normal((r, d)) / d**0.5, np.zeros((d, r))
        for _ in range(1000):
            E = B @ A - goal
            both = np.hstack([A - lr * B.T @ E, (B - lr * E @ A.T).T])  # a row is a component
            if kind == "λ sign":
                both -= lr * penalty * np.sign(np.hstack([A, B.T]))
            else:
                size = abs(both) if kind == "proximal" else np.linalg.norm(both, axis=1, keepdims=True)
                both *= np.maximum(1 - lr * penalty / np.maximum(size, 1e-30), 0)
            A, B = both[:, :d], both[:, d:].T
        dead = ~A.any(axis=1) | ~B.any(axis=0)
        found[kind] = int((both == 0).sum()), int(dead.sum())
    assert found["λ sign"] == (0, 0)
    assert found["groups"] == (288, 6)
    assert found["proximal"][0] > 250
    return "; ".join(f"{kind}: {zeros} of {2 * d * r}, {dead} of {r}" for kind, (zeros, dead) in found.items())


def an_unsquared_norm_has_no_gradient_at_B_0() -> str:
    """From B = 0 ‖B‖ rises along V and along -V, and λ‖B‖ holds B there if ‖dB‖ < λ; ‖B‖² does not. Three norms."""
    rng, h = np.random.default_rng(0), 1e-6
    V = rng.standard_normal((6, 3))
    norms = [float(f) for f in (np.linalg.norm(V, 2), np.linalg.norm(V), np.linalg.norm(V) ** 2)]
    slopes = [float(np.linalg.norm(step * V) / abs(step)) for step in (h, -h)]
    squared = float(np.linalg.norm(h * V) ** 2 / h)
    dB = V / np.linalg.norm(V)
    held, free = (max(0.0, 1 - penalty / float(np.linalg.norm(dB))) for penalty in (1.5, 0.5))
    assert np.allclose(slopes, norms[1])
    assert squared < 1e-4
    assert held == 0 < free
    assert norms[0] < norms[1] < norms[2]
    sizes = "‖V‖₂ {:.2f}, ‖V‖ {:.2f}, ‖V‖² {:.1f}".format(*norms)
    return f"‖B‖: {slopes[0]:.2f} and {slopes[1]:.2f}, ‖B‖²: {squared:.0e}; {sizes}"


def decay_of_both_factors_shortens_the_singular_values_of_BA() -> str:
    """At the minimum of ½‖B A - T‖² + λ/2 (‖A‖² + ‖B‖²) every σ of B A is that of T less λ, and 0 below λ."""
    rng, d, penalty = np.random.default_rng(0), 10, 0.5
    U, V = (np.linalg.qr(rng.standard_normal((d, d)))[0] for _ in range(2))
    sigma = np.array([3.0, 2, 1, 0.8, 0.3, 0.2, 0.1, 0, 0, 0])
    A, B = rng.standard_normal((d, d)) / 3, np.zeros((d, d))
    for _ in range(2500):
        E = B @ A - (U * sigma) @ V
        A, B = A - 0.1 * (B.T @ E + penalty * A), B - 0.1 * (E @ A.T + penalty * B)
    found = spectrum.singular_values(B @ A)
    assert np.allclose(found, np.maximum(sigma - penalty, 0), atol=1e-6)
    assert np.allclose(B @ A, (U * np.maximum(sigma - penalty, 0)) @ V, atol=1e-6)
    assert abs((A**2).sum() + (B**2).sum() - 2 * found.sum()) < 1e-5
    return "σ: " + ", ".join(f"{a:g} → {b:.2f}" for a, b in zip(sigma[:6], found, strict=False)) + f"; λ = {penalty}"


def a_mask_on_A_is_shared_by_the_batch() -> str:
    """Dropout, p = 0.2, 16 equal rows: the noise of y and of the rows' mean, with masks on x, on A, and on A and B."""
    rng, p = np.random.default_rng(0), 0.2
    A, B, x = rng.standard_normal((4, 64)) / 8, rng.standard_normal((64, 4)), np.tile(rng.standard_normal(64), (16, 1))
    y, lines, found = x @ A.T @ B.T, [], {}

    def keep(*shape: int) -> Array:
        return (rng.random((1000, *shape)) >= p) / (1 - p)

    masked = {
        "x": (x * keep(16, 64)) @ A.T @ B.T,
        "A": x @ (A * keep(4, 64)).swapaxes(1, 2) @ B.T,
        "A, B": x @ (A * keep(4, 64)).swapaxes(1, 2) @ (B * keep(64, 4)).swapaxes(1, 2),
    }
    for name, outputs in masked.items():
        squares = [((z - w) ** 2).mean() for z, w in ((outputs, y), (outputs.mean(axis=1), y[0]))]
        found[name] = [float(square / (y**2).mean()) ** 0.5 for square in squares]
        assert _relative(outputs.mean(axis=0), y) < 0.05
        lines.append(f"{name}: {found[name][0]:.2f}, {found[name][1]:.2f}")
    assert found["A, B"][0] > 1.2 * found["A"][0]
    assert found["x"][1] < 0.3 * found["A"][1]
    return "; ".join(lines)


def weight_decay_helps_where_there_is_noise_to_fit() -> str:
    """r = 16, a truth of rank 2: the final error without and with decay of A and B, for 60 samples and for 20,000."""
    lines, found = [], {}
    for n in (60, 20_000):
        task = _Task(truth_rank=2, n=n, noise=0.5)
        found[n] = without, decayed = [task.train([16], steps=600, decay=decay)[-1] for decay in (0.0, 0.2)]
        lines.append(f"n = {n}: {without:.2f} → {decayed:.2f}")
    assert found[60][1] < 0.9 * found[60][0]
    assert found[20_000][1] > 2 * found[20_000][0]
    return "; ".join(lines)


def zeros_of_a_sparse_start_fill_in() -> str:
    """The share of zeros in a sparse A at the start and after three steps; A has as many numbers as before."""
    rng = np.random.default_rng(0)
    goal, A, B = _low_rank(rng, 40, 8), rng.standard_normal((4, 40)) * (rng.random((4, 40)) < 0.1), np.zeros((40, 4))
    before, size = float((A == 0).mean()), A.size
    for _ in range(3):
        E = B @ A - goal
        A, B = A - 0.05 * B.T @ E, B - 0.05 * E @ A.T
    after = float((A == 0).mean())
    assert before > 0.8
    assert after == 0
    assert A.size == size
    return f"A = 0: {before:.0%} → {after:.0%}; {A.size} numbers"


def distilling_beats_a_cut_of_the_weights_where_inputs_are_unequal() -> str:
    """A student of rank 4 of a linear teacher, errors of outputs and of weights: a cut of W, and a fit of outputs."""
    rng, d, r, found = np.random.default_rng(0), 40, 4, {}
    W, Q = rng.standard_normal((d, d)), np.linalg.qr(rng.standard_normal((d, d)))[0]
    for name, spread in {"unequal": 1 / np.arange(1, d + 1), "equal": np.ones(d)}.items():
        root, inverse = (Q * spread) @ Q.T, (Q / spread) @ Q.T  # of the inputs' covariance
        students = _cut(W, r), _cut(W @ root, r) @ inverse
        found[name] = [(_relative(M @ root, W @ root), _relative(M, W)) for M in students]
    (cut, cut_W), (fit, fit_W) = found["unequal"]
    assert fit < 0.6 * cut
    assert fit_W > cut_W
    assert np.ptp(found["equal"], axis=0).max() < 1e-12
    equal = ", ".join(f"{outputs:.2f}" for outputs, _ in found["equal"])
    return f"outputs: cut {cut:.2f}, distilled {fit:.2f}; weights: {cut_W:.2f}, {fit_W:.2f}; equal inputs: {equal}"


def pruned_entries_depend_on_how_A_and_B_are_written() -> str:
    """Half of an adapter's numbers dropped: by σ, by entries of A and B, and by entries of the same ΔW as U√Σ, √ΣVᵀ."""
    rng, d, r, lines, found = np.random.default_rng(0), 64, 8, [], {}
    for decay in (0.5, 1.0):
        A, B = rng.standard_normal((r, d)) * decay ** np.arange(r)[:, None], rng.standard_normal((d, r))
        B_even, A_even = spectrum.truncate(spectrum.lora_svd(A, B, 1.0), r)
        pruned = [_prune(*factors) for factors in ((A, B), (A_even, B_even))]
        found[decay] = [_relative(M, B @ A) for M in (_cut(B @ A, r // 2), *pruned)]
        assert min(float((M != 0).mean()) for M in pruned) > 0.7  # ΔW is not sparse
        lines.append(f"σ × {decay:g}: {found[decay][0]:.3f}, {found[decay][1]:.3f}, {found[decay][2]:.3f}")
    assert found[0.5][0] < found[0.5][2] < 0.6 * found[0.5][1]
    assert found[1.0][0] > 1.3 * max(found[1.0][1:])
    return "; ".join(lines)


def PCA_without_its_mean_is_not_W() -> str:
    """A W with entries of mean 3, at rank 5: the principal components alone, with the mean, and the cut of W."""
    W = np.random.default_rng(0).standard_normal((60, 100)) + 3
    mean = W.mean(axis=0)
    components = _cut(W - mean, 5)
    alone, whole, cut = (_relative(M, W) for M in (components, components + mean, _cut(W, 5)))
    assert alone > 0.9
    assert max(whole, cut) < 0.35
    return f"without the mean {alone:.2f}, with it {whole:.3f}, SVD {cut:.3f}"


class _Task:
    """A change of W that is to be fitted to n noisy samples."""

    def __init__(self, truth_rank: int, n: int, noise: float, d: int = 40) -> None:
        rng = np.random.default_rng(0)
        self.truth = _low_rank(rng, d, truth_rank) * 10
        x = rng.standard_normal((n, d))
        self.C, self.D = x.T @ x / n, self.truth @ (x.T @ x) / n + noise * rng.standard_normal((n, d)).T @ x / n

    def train(self, ranks: list[int], steps: int, decay: float = 0.0, lr: float = 0.1) -> list[float]:
        """‖ΔW - truth‖/‖truth‖ after each step; every rank gets an equal share of them."""
        rng, d = np.random.default_rng(3), len(self.truth)
        A, B, errors = np.zeros((0, d)), np.zeros((d, 0)), []
        for r in ranks:
            if r < len(A):
                B, A = spectrum.truncate(spectrum.lora_svd(A, B, 1.0), r)
            else:
                new = r - len(A)
                A, B = np.vstack([A, rng.standard_normal((new, d)) / d**0.5]), np.hstack([B, np.zeros((d, new))])
            for _ in range(steps // len(ranks)):
                G = B @ (A @ self.C) - self.D
                A, B = A - lr * (B.T @ G + decay * A), B - lr * (G @ A.T + decay * B)
                errors.append(_relative(B @ A, self.truth))
        return errors


def _noisy_descent(n: int, batch: int, steps: int, lr: float, falls: bool, d: int = 32) -> float:
    """The last ‖ΔW - truth‖/‖truth‖ at a constant or a falling rate: r = 16 on n samples, r = 2 on new ones."""
    rng = np.random.default_rng(0)
    truth, r = _low_rank(rng, d, 2) * 8, 16 if n else 2
    A, B, x = rng.standard_normal((r, d)) / d**0.5, np.zeros((d, r)), rng.standard_normal((n, d))
    noise = rng.standard_normal((n, d)) / 2
    for t in range(steps):
        if batch:
            x, noise = rng.standard_normal((batch, d)), rng.standard_normal((batch, d)) / 2
        G = (x @ (B @ A - truth).T - noise).T @ x / len(x)
        rate = lr * (1 - t / steps if falls else 1)
        A, B = A - rate * B.T @ G, B - rate * G @ A.T
    return _relative(B @ A, truth)


def _low_rank(rng: np.random.Generator, d: int, rank: int) -> Array:
    """(d, d), of norm 1."""
    M = rng.standard_normal((d, rank)) @ rng.standard_normal((rank, d))
    return M / np.linalg.norm(M)


def _cut(M: Array, r: int) -> Array:
    B, A = spectrum.truncate(spectrum.svd(M), r)
    return B @ A


def _prune(A: Array, B: Array) -> Array:
    """ΔW without the smaller half of the numbers of both factors."""
    least = np.median(abs(np.concatenate([A.ravel(), B.ravel()])))
    return np.where(abs(B) > least, B, 0) @ np.where(abs(A) > least, A, 0)


def _relative(found: Array, wanted: Array) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))
