"""What five articles say of inputs, applicability, evaluation and number formats, decided by computing."""

import numpy as np

from .... import ops
from ....adapters.lora import LoRAEmbedding, LoRALinear
from ....backend import Array
from ....nn.layers import Embedding, Linear


def a_mask_needs_no_change_of_LoRA() -> str:
    """With adapted q, k, v: padding that is masked changes no real token, and no token sees what comes after it."""
    rng = np.random.default_rng(0)
    x, W = rng.standard_normal((7, 16)), _adapted(rng, 16)
    padded, padding = np.vstack([x, 5 * rng.standard_normal((5, 16))]), np.zeros((12, 12))
    padding[:, 7:] = -1e9
    future = np.triu(np.full((7, 7), -1e9), 1)
    real = _relative(_attention(padded, W, padding)[:7], _attention(x, W))
    other = np.vstack([x[:-1], x[-1:] + 3])
    change = abs(_attention(other, W, future) - _attention(x, W, future)).max(axis=1)
    assert real < 1e-14
    assert change[:-1].max() == 0 < change[-1]
    return (
        f"padding masked: {real:.0e}; the last token changed: earlier ones {change[:-1].max():g}, last {change[-1]:.2f}"
    )


def padding_needs_a_mask_of_keys_and_one_of_the_loss() -> str:
    """7 tokens, 5 of padding: unmasked keys change the outputs; a mean over all 12 makes every gradient 7/12."""
    rng = np.random.default_rng(0)
    x, W, targets = rng.standard_normal((7, 16)), _adapted(rng, 16), rng.integers(0, 16, 12)
    padded, padding = np.vstack([x, 5 * rng.standard_normal((5, 16))]), np.zeros((12, 12))
    padding[:, 7:], targets[7:] = -1e9, -100  # no loss there
    masked, open_ = (_relative(_attention(padded, W, mask)[:7], _attention(x, W)) for mask in (padding, None))
    logits = _attention(padded, W, padding)[None]
    right, wrong = (
        ops.cross_entropy_backward(1.0, ops.cross_entropy_forward(logits, targets[None], count)[1]) for count in (7, 12)
    )
    assert masked < 1e-14 < 0.5 < open_
    assert not right[:, 7:].any()
    assert np.allclose(wrong, 7 / 12 * right)
    ratio = np.linalg.norm(wrong) / np.linalg.norm(right)
    return f"‖Δy‖/‖y‖: keys masked {masked:.0e}, open {open_:.1f}; mean over all: gradients × {ratio:.3f}"


def a_hard_mask_has_no_gradient_and_a_bias_has_one() -> str:
    """The loss does not depend on the scores behind a mask of -1e9; a bias that is added to open scores has slopes."""
    rng = np.random.default_rng(0)
    x, W, dy = rng.standard_normal((6, 8)), _adapted(rng, 8), rng.standard_normal((6, 8))
    hard, soft, h = np.triu(np.full((6, 6), -1e9), 1), np.zeros((6, 6)), 1e-6

    def slope(mask: Array, i: int, j: int) -> float:
        step = np.zeros_like(mask)
        step[i, j] = h
        up, down = ((dy * _attention(x, W, mask + each)).sum() for each in (step, -step))
        return float(up - down) / (2 * h)

    behind = [abs(slope(hard, i, j)) for i in range(6) for j in range(i + 1, 6)]
    open_ = [abs(slope(soft, i, j)) for i in range(6) for j in range(6)]
    assert max(behind) == 0
    assert min(open_) > 0
    assert max(open_) > 0.1
    return f"max |dL/dm|: hard mask {max(behind):g}, bias {max(open_):.2f}"


def chunks_are_exact_if_softmax_is_merged() -> str:
    """Cut into 8 chunks: the branch x Aᵀ Bᵀ is the same, attention inside chunks is not, a running softmax is."""
    rng = np.random.default_rng(0)
    n, d, c = 256, 16, 32
    x, W = rng.standard_normal((n, d)), _adapted(rng, d)
    A, B, whole = rng.standard_normal((2, d)), rng.standard_normal((d, 2)), _attention(x, W)
    parts = [slice(i, i + c) for i in range(0, n, c)]
    branch = _relative(np.vstack([x[p] @ A.T @ B.T for p in parts]), x @ A.T @ B.T)
    local = _relative(np.vstack([_attention(x[p], W) for p in parts]), whole)
    q, k, v = (x @ w.T for w in W)
    y, Z, top = np.zeros((n, d)), np.zeros((n, 1)), np.full((n, 1), -np.inf)
    for p in parts:
        S = q @ k[p].T / d**0.5
        new = np.maximum(top, S.max(axis=1, keepdims=True))
        E, shrink = np.exp(S - new), np.exp(top - new)
        y, Z, top = y * shrink + E @ v[p], Z * shrink + E.sum(axis=1, keepdims=True), new
    merged = _relative(y / Z, whole)
    assert max(branch, merged) < 1e-14
    assert local > 0.5
    return f"x Aᵀ Bᵀ {branch:.0e}, local {local:.2f}, running softmax {merged:.0e}; scores {n * n:,} → {n * c:,}"


def attention_follows_the_input_while_A_and_B_stay() -> str:
    """A forward pass writes no parameter: another sequence has another attention matrix from the same A and B."""
    rng = np.random.default_rng(0)
    q, k = (LoRALinear(Linear(rng.standard_normal((16, 16)) / 4), r=2, rng=0) for _ in "qk")
    q.lora_B.data, k.lora_B.data = rng.standard_normal((2, 16, 2)) / 16
    parameters = [p for layer in (q, k) for p in layer.parameters()]
    before, P = [p.data.tobytes() for p in parameters], []
    for x in rng.standard_normal((3, 9, 16)):
        P.append(_softmax(q.forward(x)[0] @ k.forward(x)[0].T / 4))
    changes = [float(abs(P[i] - P[j]).max()) for i, j in ((0, 1), (1, 2), (0, 2))]
    written = sum(p.data.tobytes() != then for p, then in zip(parameters, before, strict=True))
    assert min(changes) > 0.1
    assert written == 0
    return f"3 sequences: max |ΔP| ≥ {min(changes):.2f}; parameters written: {written} / {len(parameters)}"


def sparse_inputs_save_little_in_the_branch_alone() -> str:
    """2 % of x not zero: x Aᵀ and dA from those alone are exact; a dense x Wᵀ costs what it did; B A has no zeros."""
    rng = np.random.default_rng(0)
    n, d, r = 200, 500, 4
    x = np.where(rng.random((n, d)) < 0.02, rng.standard_normal((n, d)), 0)
    x[:, 450:] = 0  # never used
    A, B, dy = rng.standard_normal((r, d)), rng.standard_normal((d, r)), rng.standard_normal((n, d))
    i, j = np.nonzero(x)
    h, dA, dh = np.zeros((n, r)), np.zeros((r, d)), ops.lora_backward(dy, A, B, 1.0)[1]
    np.add.at(h, i, x[i, j, None] * A.T[j])
    np.add.at(dA.T, j, x[i, j, None] * dh[i])
    errors = [_relative(h, x @ A.T), _relative(dA, ops.lora_A_gradients(dh, x))]
    unused = int((dA == 0).all(axis=0).sum())
    assert max(errors) < 1e-14
    assert unused >= 50
    assert (B @ A).all()
    products = f"{len(i) * r:,} / {n * d * r:,}; x Wᵀ {n * d * d:,}, branch {2 * r / d:.1%} of it"
    return f"x Aᵀ, dA: {max(errors):.0e}; multiplications of x Aᵀ: {products}; zero columns of dA: {unused}"


def an_index_reads_what_a_one_hot_product_computes() -> str:
    """A[:, ids] is onehot Aᵀ to the bit; dA by adding rows at their ids is the product's, zero for unseen ids."""
    rng = np.random.default_rng(0)
    V, d, r = 40, 16, 4
    ids, A, B = rng.integers(0, V, 30), rng.standard_normal((r, V)), rng.standard_normal((d, r))
    one_hot, dy = np.eye(V)[ids], rng.standard_normal((30, d))
    y = ops.lora_embedding_forward(ids, A, B, 2.0)[0]
    dA = ops.lora_embedding_A_gradients(dy, ids, B, 2.0, V)
    read = float(abs(A.T[ids] - one_hot @ A.T).max())
    assert read == 0
    assert _relative(y, ops.lora_forward(one_hot, A, B, 2.0)[0]) < 1e-14
    assert _relative(dA, ops.lora_A_gradients(ops.lora_backward(dy, A, B, 2.0)[1], one_hot)) < 1e-14
    unseen = V - len(set(ids.tolist()))
    assert int((dA == 0).all(axis=0).sum()) == unseen
    return f"max |A[:, ids] - onehot Aᵀ| = {read:g}; V = {V}: {unseen} unseen, as many zero columns of dA"


def a_trained_adapter_has_no_zeros() -> str:
    """A, B and B A are dense after a few steps; with half of the entries of A and B set to zero B A is dense still."""
    rng = np.random.default_rng(0)
    d, r = 64, 8
    x, goal = rng.standard_normal((200, d)), rng.standard_normal((d, d))
    A, B = rng.uniform(-1, 1, (r, d)) / d**0.5, np.zeros((d, r))
    for _ in range(20):
        G = (B @ A - goal) @ (x.T @ x) / len(x)
        A, B = A - 0.05 * B.T @ G, B - 0.05 * G @ A.T
    zeros = [int((M == 0).sum()) for M in (A, B, B @ A)]
    half = np.median(abs(np.r_[A.ravel(), B.ravel()]))
    A, B = (np.where(abs(M) < half, 0, M) for M in (A, B))
    share = [float((M == 0).mean()) for M in (np.r_[A.ravel(), B.ravel()], B @ A)]
    assert zeros == [0, 0, 0]
    assert share[1] < share[0] / 2
    return f"zeros of A, B, B A: {zeros[0]}, {zeros[1]}, {zeros[2]}; {share[0]:.0%} of A, B cut: {share[1]:.0%} of B A"


def an_adapter_moves_what_it_was_not_trained_on() -> str:
    """Equal to the base at the start; after training other inputs have other outputs too, orthogonal ones included."""
    rng, moved = np.random.default_rng(0), []
    d = 32
    basis, W = np.linalg.qr(rng.standard_normal((d, d)))[0], rng.standard_normal((d, d)) / 6
    for overlap in (0.0, 0.5):
        x = rng.standard_normal((100, 16)) @ basis[:16] + overlap * rng.standard_normal((100, 16)) @ basis[16:]
        other = rng.standard_normal((200, 16)) @ basis[16:]
        goal = rng.standard_normal((d, 2)) @ rng.standard_normal((2, d)) / 16
        A, B = rng.standard_normal((2, d)) / d**0.5, np.zeros((d, 2))
        assert np.array_equal(other @ W.T + other @ A.T @ B.T, other @ W.T)
        B, A = _descend(x, x @ goal.T, B, A)
        moved.append(float(np.linalg.norm(other @ A.T @ B.T) / np.linalg.norm(other @ W.T)))
        assert _relative(x @ A.T @ B.T, x @ goal.T) < 0.05  # learnt
    assert min(moved) > 0.05
    return f"‖Δy‖/‖y‖: step 0: 0; inputs unlike those of training: {moved[0]:.2f}, half alike: {moved[1]:.2f}"


def shared_factors_help_only_tasks_that_agree() -> str:
    """Two tasks: the mean error of ΔW with rank 2 for each, and with one for both, of rank 4 (the same size) or 2."""
    rng, lines = np.random.default_rng(0), []
    d, n = 32, 60
    for name, sign in (("opposite", -1), ("unrelated", 0), ("same", 1)):
        first, new = rng.standard_normal((2, d, 2)) @ rng.standard_normal((2, 2, d)) / d**0.5
        goals = [first, sign * first if sign else new]
        x = rng.standard_normal((2, n, d))
        y = [u @ D.T + 0.3 * rng.standard_normal((n, d)) for u, D in zip(x, goals, strict=True)]
        apart = float(np.mean([_relative(_fitted(u, z, 2), D) for u, z, D in zip(x, y, goals, strict=True)]))
        both = [_fitted(np.vstack(list(x)), np.vstack(y), r) for r in (4, 2)]
        shared = [float(np.mean([_relative(change, D) for D in goals])) for change in both]
        assert apart < 0.15
        assert min(shared) > 5 * apart if sign < 1 else shared[1] < apart
        lines.append(f"{name} {apart:.2f} → {shared[0]:.2f}, {shared[1]:.2f}")
    return "2 × r = 2 → 1 × r = 4, 1 × r = 2: " + "; ".join(lines)


def an_adapted_table_grows_and_learns_in_few_numbers() -> str:
    """An embedding with LoRA: r (V + d) numbers are trained, and all V d are kept: more is stored than before."""
    rng = np.random.default_rng(0)
    V, d, r = 1000, 64, 4
    table = LoRAEmbedding(Embedding(rng.standard_normal((V, d))), r=r, rng=0)
    trainable = sum(p.data.size for p in table.trainable_parameters().values())
    total = sum(p.data.size for p in table.parameters())
    assert trainable == r * (V + d)
    assert total == V * d + trainable
    V = 1_000_000
    return f"1,000 × 64, r = 4: {trainable:,} of {total:,} trained; V = 10⁶: {r * (V + d):,}, table {V * d:,}"


def F1_is_of_precision_and_recall() -> str:
    """TP = FP = FN = 1, TN = 97: F1 is 1/2; a harmonic mean of accuracy and recall praises the many easy negatives."""
    tp, fp, fn, tn = 1, 1, 1, 97
    accuracy, precision, recall = (tp + tn) / (tp + fp + fn + tn), tp / (tp + fp), tp / (tp + fn)
    right, wrong = (2 * each * recall / (each + recall) for each in (precision, accuracy))
    assert right == 2 * tp / (2 * tp + fp + fn)
    assert wrong > right + 0.1
    return f"F1 {right:.3f}; of accuracy ({accuracy:.2f}) and recall: {wrong:.3f}"


def cross_validation_does_not_see_another_data_set() -> str:
    """An update fitted in 5 folds of one set errs little on the fold left out, and much on a set of other inputs."""
    rng = np.random.default_rng(0)
    d = 24
    goal, basis = rng.standard_normal((d, d)) / d**0.5, np.linalg.qr(rng.standard_normal((d, d)))[0]
    sizes = np.where(np.arange(d) < 12, 1, 0.02)
    sets = [rng.standard_normal((200, d)) * size @ basis for size in (sizes, sizes[::-1])]
    (x, y), (other, wanted) = ((u, u @ goal.T + 0.1 * rng.standard_normal((200, d))) for u in sets)
    folds = np.arange(200) % 5
    inside = [_relative(x[folds == f] @ _fitted(x[folds != f], y[folds != f], 12).T, y[folds == f]) for f in range(5)]
    within, outside = float(np.mean(inside)), _relative(other @ _fitted(x, y, 12).T, wanted)
    assert within < 0.2
    assert outside > 3 * within
    return f"‖error‖/‖y‖: 5 folds {within:.2f}, another data set {outside:.2f}"


def a_mean_over_sets_hides_the_one_that_gets_worse() -> str:
    """One adapter for four sets, of which three agree: the mean error falls, and the fourth set's rises."""
    rng = np.random.default_rng(0)
    d, n = 16, 100
    D = rng.standard_normal((d, 2)) @ rng.standard_normal((2, d)) / d**0.5
    sets = [(x, sign * x @ D.T) for x, sign in zip(rng.standard_normal((4, n, d)), (1, 1, 1, -0.5), strict=True)]
    change = _fitted(np.vstack([x for x, _ in sets]), np.vstack([y for _, y in sets]), r=2)
    base = [float(np.mean(y**2)) for _, y in sets]
    adapted = [float(np.mean((y - x @ change.T) ** 2)) for x, y in sets]
    assert np.mean(adapted) < 0.8 * np.mean(base)
    assert adapted[3] > 2 * base[3]
    return (
        f"base → adapted: mean {np.mean(base):.2f} → {np.mean(adapted):.2f}; "
        f"fourth set {base[3]:.2f} → {adapted[3]:.2f}"
    )


def pairs_show_a_gain_that_seeds_hide() -> str:
    """A gain of 0.01, seeds that move both scores by 0.05: t unpaired and paired; the least p of a sign test of n."""
    rng = np.random.default_rng(0)
    luck = 0.05 * rng.standard_normal(8)
    base, lora = (0.8 + gain + luck + 0.003 * rng.standard_normal(8) for gain in (0, 0.01))
    spread = ((base.var(ddof=1) + lora.var(ddof=1)) / 8) ** 0.5
    unpaired = float((lora.mean() - base.mean()) / spread)
    gain = lora - base
    paired = float(gain.mean() / (gain.std(ddof=1) / 8**0.5))
    F = float(max(lora.var(ddof=1), base.var(ddof=1)) / min(lora.var(ddof=1), base.var(ddof=1)))
    least = {n: 2 / 2**n for n in (5, 6)}
    assert unpaired < 1
    assert paired > 4
    assert F < 2  # equal spreads say nothing of the means
    assert least[5] > 0.05 > least[6]
    p = ", ".join(f"n = {n} {each:.4f}" for n, each in least.items())
    return f"8 seeds: t = {unpaired:.2f}, paired {paired:.1f}; F = {F:.2f}; least p: {p}"


def the_training_loss_falls_while_the_adapter_overfits() -> str:
    """Rank 16 on 60 noisy samples of a change of rank 2: both losses fall, then the validation loss rises with ‖ΔW‖."""
    rng = np.random.default_rng(0)
    d, n = 40, 60
    goal = rng.standard_normal((d, 2)) @ rng.standard_normal((2, d)) / d**0.5
    x, new = rng.standard_normal((n, d)), rng.standard_normal((400, d))
    y, wanted = (u @ goal.T + 0.5 * rng.standard_normal((len(u), d)) for u in (x, new))
    A, B, logs = rng.standard_normal((16, d)) / d**0.5, np.zeros((d, 16)), []
    for _ in range(10):
        B, A = _descend(x, y, B, A, steps=40)
        D = B @ A
        logs.append([np.mean((x @ D.T - y) ** 2), np.mean((new @ D.T - wanted) ** 2), np.linalg.norm(D)])
    train, validation, size = np.array(logs).T
    best = int(validation.argmin())
    assert best < 4
    assert (np.diff(train) < 0).all()
    assert validation[-1] > 1.3 * validation[best]
    assert size[-1] > 1.05 * size[best]
    return (
        f"step {40 * (best + 1)} → 400: training {train[best]:.2f} → {train[-1]:.2f}, "
        f"validation {validation[best]:.2f} → {validation[-1]:.2f}, ‖ΔW‖ {size[best]:.1f} → {size[-1]:.1f}"
    )


def always_one_half_has_a_loss_of_ln_2() -> str:
    """The cross-entropy of the constant ½ is ln 2, whatever the labels; of 1 in 25,000 for a word it is ln 25,000."""
    labels = np.arange(100)[None] % 2
    half = float(ops.cross_entropy_forward(np.zeros((1, 100, 2)), labels)[0])
    words = float(ops.cross_entropy_forward(np.zeros((1, 1, 25_000)), np.zeros((1, 1), int))[0])
    assert abs(half - np.log(2)) < 1e-12
    assert half < 0.7131
    assert words > 10
    return f"ln 2 = {half:.4f} < 0.7131; ln 25,000 = {words:.2f}"


def rows_of_P_sum_to_1_and_the_output_does_not() -> str:
    """softmax(q kᵀ/√d) has entries in (0, 1) and rows that sum to 1; P v, the output, has neither."""
    rng = np.random.default_rng(0)
    x, W = rng.standard_normal((5, 10)), _adapted(rng, 10)
    P, y = _softmax(x @ W[0].T @ W[1] @ x.T / 10**0.5), _attention(x, W)
    assert np.allclose(P.sum(axis=1), 1)
    assert 0 < P.min() < P.max() < 1
    assert y.min() < 0
    assert abs(y.sum(axis=1) - 1).min() > 0.1
    sums = (f"{M.sum(axis=1).min():.2f} … {M.sum(axis=1).max():.2f}" for M in (P, y))
    return "P {}, P v {}; sums of rows: {}, {}".format(P.shape, y.shape, *sums)


def a_normalised_output_is_another_function() -> str:
    """LayerNorm after a layer: f(2x) = f(x), the size of x is lost. After x Aᵀ Bᵀ: no longer linear, so no merge."""
    rng = np.random.default_rng(0)
    x, z, W = rng.standard_normal((3, 16, 16))
    A, B = rng.standard_normal((2, 16)), rng.standard_normal((16, 2))

    def norm(y: Array) -> Array:
        return ops.layer_norm_forward(y, np.ones(16), np.zeros(16), eps=0)[0]

    def f(x: Array) -> Array:
        return x @ W.T + norm(x @ A.T @ B.T)

    twice, additive = _relative(norm(2 * x @ W.T), norm(x @ W.T)), _relative(f(x + z), f(x) + f(z))
    assert twice < 1e-14
    assert additive > 0.1
    assert _relative((x + z) @ (W + B @ A).T, x @ (W + B @ A).T + z @ (W + B @ A).T) < 1e-14
    return f"‖f(2x) - f(x)‖/‖f‖ = {twice:.0e}; x Wᵀ + norm(x Aᵀ Bᵀ), at x + z: {additive:.2f} off the sum of x and z"


def no_optimiser_brings_back_what_rounding_lost() -> str:
    """100 steps of 1e-4 from 1.0, by SGD, RMSprop and Adam: float16 stays at 1, float32 does not."""
    w: dict[str, dict[str, float]] = {}
    for dtype in (np.float16, np.float32):
        ends = {}
        for name in ("SGD", "RMSprop", "Adam"):
            p, m, v = dtype(1), 0.0, 0.0
            for t in range(1, 101):
                g = 0.5
                m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g
                root = (v / (1 - 0.99**t)) ** 0.5
                step = {"SGD": 2 * g, "RMSprop": g / root, "Adam": m / (1 - 0.9**t) / root}[name]
                p = dtype(p - dtype(1e-4 * step))
            ends[name] = float(p)
        w[dtype.__name__] = ends
    assert set(w["float16"].values()) == {1.0}
    assert all(abs(end - 0.99) < 1e-5 for end in w["float32"].values())
    return "; ".join(f"{name}: " + ", ".join(f"{k} {end:.4f}" for k, end in ends.items()) for name, ends in w.items())


def a_scale_saves_what_float16_rounds_to_zero() -> str:
    """1e-4 · 1e-4 = 0 in float16, not under a scale of 1024; (x Aᵀ) Bᵀ keeps what B A loses, and what a merge loses."""
    rng, half = np.random.default_rng(0), np.float16
    product, scaled = half(1e-4) * half(1e-4), float(half(1e-4) * half(1024) * half(1e-4)) / 1024
    shapes = ((50, 64), 10), ((4, 64), 1e-4), ((64, 4), 1e-4)
    x, A, B = (size * rng.standard_normal(shape) for shape, size in shapes)
    x16, A16, B16 = (M.astype(half) for M in (x, A, B))
    formed, apart = (_relative(y.astype(float), x @ A.T @ B.T) for y in (x16 @ (B16 @ A16).T, (x16 @ A16.T) @ B16.T))
    W, D = rng.standard_normal((256, 256)) / 16, rng.standard_normal((256, 8)) @ rng.standard_normal((8, 256))
    D *= 1e-3 * np.linalg.norm(W) / np.linalg.norm(D)
    lost = float((W.astype(half) + D.astype(half) == W.astype(half)).mean())
    assert product == 0
    assert abs(scaled / 1e-8 - 1) < 0.01
    assert apart < 0.05 < 0.5 < formed
    assert 0.1 < lost < 0.5
    return (
        f"1e-4 · 1e-4 = {product:g}, × 1024: {scaled:.0e}; ‖error‖: x (B A)ᵀ {formed:.2f}, (x Aᵀ) Bᵀ {apart:.3f}; "
        f"W + ΔW, ‖ΔW‖ = 0.1% ‖W‖: {lost:.0%} of W unchanged"
    )


def _attention(x: Array, W: list[Array], mask: Array | None = None) -> Array:
    q, k, v = ((x @ w.T)[None] for w in W)
    return ops.attention_forward(q, k, v, mask, x.shape[1])[0][0]


def _softmax(S: Array) -> Array:
    E = np.exp(S - S.max(axis=1, keepdims=True))
    return E / E.sum(axis=1, keepdims=True)


def _adapted(rng: np.random.Generator, d: int) -> list[Array]:
    """W + B A of q, k, v."""
    return [
        rng.standard_normal((d, d)) / d**0.5 + rng.standard_normal((d, 2)) @ rng.standard_normal((2, d)) / 8
        for _ in "qkv"
    ]


def _descend(x: Array, y: Array, B: Array, A: Array, steps: int = 400, lr: float = 0.05) -> tuple[Array, Array]:
    """Gradient descent on ‖x Aᵀ Bᵀ - y‖²/2n."""
    C, D = x.T @ x / len(x), y.T @ x / len(x)
    for _ in range(steps):
        G = B @ A @ C - D
        A, B = A - lr * B.T @ G, B - lr * G @ A.T
    return B, A


def _fitted(x: Array, y: Array, r: int) -> Array:
    """The ΔW of rank r with the least ‖x ΔWᵀ - y‖."""
    full = np.linalg.lstsq(x, y, rcond=None)[0].T
    V = np.linalg.eigh(full @ (x.T @ x) @ full.T)[1][:, -r:]
    return V @ V.T @ full


def _relative(a: Array, b: Array) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))
