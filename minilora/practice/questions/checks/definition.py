"""What LoRA is, what is of low rank in it, and what it costs."""

from collections.abc import Callable
from typing import Any

import numpy as np

from .... import accounting, data, ops
from ....accounting import count
from ....adapters.attach import attach_lora
from ....adapters.lora import LoRALinear
from ....backend import Array
from ....models.pretrained import load_pretrained
from ....models.transformer import Transformer
from ....nn import Gradients, Linear, Parameter
from ....nn.optim import AdamW, cosine_schedule
from ....training.evaluation import evaluate
from ....training.loop import fit


def a_square_layer_hides_a_wrong_order() -> str:
    """y = x Wᵀ + s (x Aᵀ) Bᵀ is x (W + s B A)ᵀ; x B A has the right shape where in = out, and no other."""
    rng = np.random.default_rng(0)
    errors = []
    for n_out in (6, 5):
        W, A, B = (rng.standard_normal(shape) for shape in ((n_out, 6), (2, 6), (n_out, 2)))
        x, s = rng.standard_normal((4, 6)), 8 / 2
        y = x @ W.T + ops.lora_forward(x, A, B, s)[0]
        assert y.shape == (4, n_out)
        assert np.allclose(y, x @ (W + s * B @ A).T)
        errors.append(_relative(x @ W.T + ops.lora_forward(x, A, B, 1)[0], y))  # without the scale
        if n_out == 6:
            errors.append(_relative(x @ W.T + s * x @ B @ A, y))
        else:
            assert x.shape[1] != B.shape[0]  # x B cannot be multiplied
    assert min(errors) > 0.3
    return f"6 × 6: x B A {errors[1]:.2f}, s = 1: {errors[0]:.2f}; 5 × 6: x (4, 6) · B (5, 2) ✗"


def only_the_update_is_of_low_rank() -> str:
    """rank ΔW = r; W, W + ΔW and the attention matrix keep their full rank; scores have the rank of a head's width."""
    rng = np.random.default_rng(0)
    d, r, head, T = 64, 4, 8, 32
    W, A, B = rng.standard_normal((d, d)), rng.standard_normal((r, d)), rng.standard_normal((d, r))
    x, K = rng.standard_normal((T, d)), rng.standard_normal((T, head))
    scores = x @ (W + B @ A).T[:, :head] @ K.T / d
    P = np.exp(scores - scores.max(axis=1, keepdims=True))
    ranks = [int(np.linalg.matrix_rank(M)) for M in (B @ A, W, W + B @ A, x @ (B @ A).T, scores, P)]
    assert ranks[:4] == [r, d, d, r]
    assert ranks[4] == head
    assert ranks[5] > 2 * head
    return "rank: ΔW {}, W₀ {}, W₀ + ΔW {}, x ΔWᵀ {}, q kᵀ {}, softmax {}".format(*ranks)


def the_update_survives_a_cut_to_rank_8() -> str:
    """Full fine-tuning's ΔW is not of low rank; cut to rank 8 it helps about as much."""
    model, W, loss = _builtin()
    base = loss()
    batches = data.random_windows(data.python_source().train, batch=8, length=64, seed=0)
    schedule = cosine_schedule(5, warmup=1)
    fit(model, batches, steps=5, lr=2e-3, schedule=schedule, description=None)
    tuned, updates, left = loss(), {p: p.data - W[p] for p in W}, []
    for p, delta in updates.items():
        p.data = W[p] + _cut(delta, 8)
        left.append(_relative(_cut(delta, 8), delta))
    cut, error = loss(), float(np.mean(left))
    assert base - tuned > 0.1
    assert error > 0.4
    assert base - cut > 0.7 * (base - tuned)
    return f"bits: {base:.2f} → {tuned:.2f}; rank 8: {cut:.2f}, ‖ΔW - ΔW₈‖ / ‖ΔW‖ = {error:.2f}"


def a_trained_dense_update_is_full_fine_tuning() -> str:
    """Adam on W, and Adam on a dense ΔW parallel to a frozen W, take the same steps; B A has rank r."""
    rng = np.random.default_rng(0)
    W, x, target = rng.standard_normal((8, 8)), rng.standard_normal((20, 8)), rng.standard_normal((20, 8))
    dense, parallel = Linear(W.copy()), Linear(0 * W)
    lora = LoRALinear(Linear(W.copy()), r=2, alpha=4, rng=0)
    pairs: list[tuple[Any, Array]] = [(dense, 0 * W), (parallel, W), (lora, 0 * W)]
    for layer, frozen in pairs:
        optimizer = AdamW(layer.trainable_parameters(), lr=1e-2)
        for _ in range(50):
            y, cache = layer.forward(x)
            grads = Gradients()
            layer.backward(y + x @ frozen.T - target, cache, grads)
            optimizer.step(grads)
    ranks = [int(np.linalg.matrix_rank(d, tol=1e-8)) for d in (dense.weight.data - W, lora.delta())]
    difference = float(abs(dense.weight.data - W - parallel.weight.data).max())
    assert difference < 1e-10
    assert ranks == [8, 2]
    counts = [sum(p.data.size for p in layer.trainable_parameters().values()) for layer in (parallel, lora)]
    return (
        f"max |W - (W₀ + ΔW)| = {difference:.0e}; rank ΔW {ranks[0]}, B A {ranks[1]}; ΔW {counts[0]}, A, B {counts[1]}"
    )


def LoRA_starts_at_W_and_a_truncated_SVD_does_not() -> str:
    """With a fresh adapter the loss is the base's to the bit; with every W cut to rank 8 the model is destroyed."""
    model, W, loss = _builtin()
    base = loss()
    kept = []
    for p in W:
        p.data = _cut(W[p], 8)
        kept.append(float((p.data**2).sum() / (W[p] ** 2).sum()))
    cut, share = loss(), float(np.mean(kept))
    for p in W:
        p.data = W[p]
    attach_lora(model, "all-linear", r=8, alpha=16, rng=0)
    start = loss()
    assert start == base
    assert cut > base + 1
    assert 0.4 < share < 0.6
    return f"bits: W₀ {base:.3f}, W₀ + 0·A {start:.3f}, W₀ → rank 8 (‖·‖² × {share:.2f}): {cut:.3f}"


def A_alone_is_not_determined() -> str:
    """(B M, M⁻¹ A) is the same ΔW with other rows of A and another gradient; the row space of A is the same."""
    rng = np.random.default_rng(0)
    A, B, M = rng.standard_normal((4, 32)), rng.standard_normal((24, 4)), rng.standard_normal((4, 4))
    G = rng.standard_normal((24, 32))
    A2, B2 = np.linalg.solve(M, A), B @ M
    cosines = abs((A * A2).sum(axis=1)) / np.linalg.norm(A, axis=1) / np.linalg.norm(A2, axis=1)
    rows, rows2 = (np.linalg.pinv(a) @ a for a in (A, A2))
    steps = [b @ (b.T @ G) + G @ a.T @ a for a, b in ((A, B), (A2, B2))]  # of B A, by SGD
    cosine = float((steps[0] * steps[1]).sum() / np.linalg.norm(steps[0]) / np.linalg.norm(steps[1]))
    assert _relative(B2 @ A2, B @ A) < 1e-12
    assert _relative(rows2, rows) < 1e-10
    assert cosines.min() < 0.5
    assert cosine < 0.9
    same = _relative(B2 @ A2, B @ A)
    return f"ΔW {same:.0e}; |cos| (A, M⁻¹A): {', '.join(f'{c:.2f}' for c in cosines)}; cos (ΔW′, ΔW″) {cosine:.2f}"


def LoRA_and_IA3_merge_and_a_bottleneck_does_not() -> str:
    """(IA)³ merges as LoRA does, though its change has full rank; a bottleneck's is not linear in x."""
    rng = np.random.default_rng(0)
    W, x, z = rng.standard_normal((8, 8)), rng.standard_normal((5, 8)), rng.standard_normal((5, 8))
    gain, A, B = rng.uniform(0.5, 2, 8), rng.standard_normal((2, 8)), rng.standard_normal((8, 2))
    methods = {
        "LoRA": lambda x: x @ W.T + x @ A.T @ B.T,
        "(IA)³": lambda x: gain * (x @ W.T),
        "C → r → C": lambda x: x @ W.T + np.maximum(x @ W.T @ A.T, 0) @ B.T,
    }
    additive = {name: _relative(f(x + z), f(x) + f(z)) for name, f in methods.items()}
    ranks = {name: int(np.linalg.matrix_rank(f(np.eye(8)).T - W)) for name, f in methods.items()}
    assert max(additive["LoRA"], additive["(IA)³"]) < 1e-12
    assert additive["C → r → C"] > 0.1
    assert (ranks["LoRA"], ranks["(IA)³"]) == (2, 8)
    errors = ", ".join(f"{name} {error:.0e}" for name, error in additive.items())
    return f"‖f(x + z) - f(x) - f(z)‖: {errors}; rank ΔW: LoRA {ranks['LoRA']}, (IA)³ {ranks['(IA)³']}"


def low_rank_means_five_things() -> str:
    """rank of what is used, and of its change: truncated SVD, PiSSA, singular values, LoRA, low-rank attention."""
    rng = np.random.default_rng(0)
    d, r, T = 32, 4, 40
    W = rng.standard_normal((d, d))
    U, S, Vt = np.linalg.svd(W)
    A, B = rng.standard_normal((2, r, d)), rng.standard_normal((2, d, r))
    first = (U[:, :r] * S[:r]) @ Vt[:r]
    used = {
        "SVD": first,
        "PiSSA": W - first + (U[:, :r] * S[:r] + B[0]) @ (Vt[:r] + A[0]),
        "SVF": (U * (S * rng.uniform(0.9, 1.1, d))) @ Vt,
        "LoRA": W + B[1] @ A[1],
    }
    P = rng.dirichlet(np.ones(r), T) @ rng.standard_normal((r, T))  # softmax(q (E k)ᵀ) E, keys projected to r
    found = {name: tuple(int(np.linalg.matrix_rank(M)) for M in (w, w - W)) for name, w in used.items()}
    assert found == {"SVD": (r, d - r), "PiSSA": (d, 2 * r), "SVF": (d, d), "LoRA": (d, r)}
    assert int(np.linalg.matrix_rank(P)) == r
    ranks = ", ".join(f"{name} {w} / {delta}" for name, (w, delta) in found.items())
    return f"rank W / ΔW (d = {d}, r = {r}): {ranks}; P (T, T): {np.linalg.matrix_rank(P)}"


def a_7B_step_saves_state_and_no_activations() -> str:
    """LLaMA-2-7B, bfloat16, 512 tokens, r = 16 on all matrices: bytes, FLOPs and file size against full fine-tuning."""
    full = count("llama-2-7b", "full", tokens=512, dtype="bfloat16")
    lora = count("llama-2-7b", "lora", targets="all-linear", r=16, tokens=512, dtype="bfloat16")
    state, kept = (
        [sum(each.memory()[part] for part in parts) / 1e9 for each in (full, lora)]
        for parts in (("gradients", "optimizer"), ("activations",))
    )
    work = [sum(part.products for part in each.flops()) for each in (full, lora)]
    file = accounting.adapter_bytes(lora.model) / 1e6
    assert state[1] < state[0] / 50
    assert abs(kept[1] / kept[0] - 1) < 0.01
    assert 2 / 3 < work[1] / work[0] < 0.7
    return (
        f"gradients + Adam {state[0]:.1f} → {state[1]:.2f} GB; activations {kept[0]:.2f} → {kept[1]:.2f} GB; "
        f"FLOPs × {work[1] / work[0]:.3f}; {lora.trainable:,} ({lora.share:.2%}), {file:.0f} MB"
    )


def _relative(a: Array, b: Array) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def _cut(W: Array, r: int) -> Array:
    """The best approximation of rank r: W projected on the r first eigenvectors of W Wᵀ."""
    U = np.linalg.eigh(W @ W.T)[1][:, -r:] if len(W) <= W.shape[1] else None
    return _cut(W.T, r).T if U is None else U @ (U.T @ W)


def _builtin() -> tuple[Transformer, dict[Parameter, Array], Callable[[], float]]:
    """The model, {weight: its array} of the matrices of its blocks, and its loss, bits per byte of Python source."""
    model = load_pretrained("builtin")
    matrices = [m.weight for path, m in model.named_modules() if isinstance(m, Linear) and "block_" in path]
    windows = list(data.all_windows(data.excerpts(data.python_source().validation, 512), 8, 64))
    return model, {p: p.data for p in matrices}, lambda: data.bits(evaluate(model, windows))
