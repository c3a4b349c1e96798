"""Variants of LoRA: DoRA's axis and gradient, what each trains, a race at one rate and at each one's own, GaLore."""

import numpy as np

from ....accounting import count
from ....backend import Array
from ....verify.problems.dora import backward, dora, forward, norm_held_constant


def dora_is_per_output_and_its_norm_has_a_gradient() -> str:
    """Rows of W and B may grow, y does not; either axis starts at the base; ‖V‖ held constant is not the gradient."""
    given = dora.draw(np.random.default_rng(0), (2, 4, 32, 24, 2, 4, 0))
    dy, inputs, constants = given.dy, given.inputs, given.constants
    x, A, B, W = inputs["x"], inputs["A"], inputs["B"], constants["W"]

    def per_input(W: Array, B: Array, m: Array) -> Array:
        V = W + 2 * B @ A  # α/r = 4/2
        return x @ (m * V / np.linalg.norm(V, axis=0)).T

    def per_output(W: Array, B: Array, m: Array) -> Array:
        return forward(**inputs | {"B": B, "m": m}, **constants | {"W": W})

    off = []
    for y, axis in ((per_output, 1), (per_input, 0)):
        m, c = np.linalg.norm(W, axis=axis), np.linspace(0.5, 2, 24)[:, None]
        assert np.allclose(y(W, 0 * B, m), x @ W.T)  # the start cannot tell the axes apart
        off.append(_relative(y(c * W, c * B, m), y(W, B, m)))
    assert off[0] < 1e-14 < 0.1 < off[1]
    full, held = (gradient(dy, **inputs, **constants) for gradient in (backward, norm_held_constant))
    errors, cosines = [], []
    for name in ("A", "B"):
        v, h = np.random.default_rng(1).standard_normal(inputs[name].shape), 1e-6
        up, down = (forward(**inputs | {name: inputs[name] + e * v}, **constants) for e in (h, -h))
        slope = np.sum(dy * (up - down)) / (2 * h)
        true, short = full[f"d{name}"], held[f"d{name}"]
        errors.append(abs(np.sum(true * v) / slope - 1))
        cosines.append(np.sum(true * short) / np.linalg.norm(true) / np.linalg.norm(short))
        assert abs(np.sum(short * v) / slope - 1) > 0.01
    assert max(errors) < 1e-6
    assert max(cosines) < 0.999
    return "cW, cB: m (out,) {:.0e}, m (in,) {:.2f}; ‖V‖ moves: {:.0e}; ‖V‖ held: cos dA {:.2f}, dB {:.2f}".format(
        *off, max(errors), *cosines
    )


def what_each_variant_learns_in_a_line() -> str:
    """Llama-2-7B, 64 square matrices: LoRA r (in + out), VeRA out + r, LoRA-FA r out, LoRA-XS r², (IA)³ out."""
    n, matrices, r, found = 4096, 64, 8, {}
    per_matrix = {"lora": r * 2 * n, "lora-fa": r * n, "vera": n + r, "lora-xs": r * r, "dora": r * 2 * n + n}
    for method, each in per_matrix.items():
        found[method] = count("llama-2-7b", method, targets=["q_proj", "v_proj"], r=r).trainable
        assert found[method] == matrices * each
    found["ia3"] = count("llama-2-7b", "ia3").trainable
    assert found["ia3"] == 32 * (n + n + 11008)  # k, v: out; down_proj: in
    rng = np.random.default_rng(0)
    (B1, A1), (B2, A2) = ((rng.standard_normal((40, 3)), rng.standard_normal((3, 50))) for _ in range(2))
    rank = int(np.linalg.matrix_rank((B1 @ A1) * (B2 @ A2)))
    assert rank == 9  # LoHa: 2 r (in + out) numbers, a rank of r²
    return ", ".join(f"{method} {size:,}" for method, size in found.items()) + f"; LoHa r = 3: rank {rank}"


def one_shared_rate_names_the_wrong_winner() -> str:
    """A linear layer, rank 2, Adam. 20 steps: the winner at a shared rate is last at own rates. 200 steps: all tie."""
    lines = []
    for steps, one in ((20, 4), (200, 1)):
        loss = {
            name: np.mean([_race(*start, steps, seed) for seed in range(3)], axis=0) for name, start in STARTS.items()
        }
        shared, own = ({name: float(found(x)) for name, x in loss.items()} for found in (lambda x, k=one: x[k], min))
        if steps == 20:
            assert min(shared, key=shared.__getitem__) == max(own, key=own.__getitem__) == "α × 4"
            assert max(own.values()) > 1.5 * min(own.values())
        else:
            assert max(shared.values()) > 1.5 * min(shared.values())
            assert max(own.values()) < 1.01 * min(own.values())
        lines.append(
            f"{steps}, η = {RATES[one]:g} → min_η: "
            + ", ".join(f"{name} {shared[name]:.3f} → {own[name]:.3f}" for name in STARTS)
        )
    return "; ".join(lines)


def galore_changes_W_beyond_rank_r() -> str:
    """W -= η P Pᵀ G, P new every 50 steps: rank 3 r after three P, and a loss that no change of rank r has."""
    rng, n, r = np.random.default_rng(0), 32, 2
    x, D = rng.standard_normal((400, n)), rng.standard_normal((n, n))
    C, change, ranks = x.T @ x / len(x), np.zeros((n, n)), []
    for step in range(150):
        G = (change - D) @ C
        if step % 50 == 0:
            P = np.linalg.svd(G)[0][:, :r]  # (out, r)
        change = change - 0.5 * P @ (P.T @ G)
        ranks.append(int(np.linalg.matrix_rank(change, tol=1e-6)))
    assert ranks[49::50] == [r, 2 * r, 3 * r]
    root = np.linalg.cholesky(C)
    sigma = np.linalg.svd(D @ root, compute_uv=False)
    least = np.sum(sigma[r:] ** 2)  # of any change of rank r
    reached = np.linalg.norm((change - D) @ root) ** 2
    assert reached < least
    states = {"GaLore": 2 * r * n + r * n, "LoRA": 2 * r * (n + n), "W": 2 * n * n}  # of Adam, and P
    assert states["GaLore"] < states["LoRA"] < states["W"]
    numbers = ", ".join(f"{name} {size}" for name, size in states.items())
    shown = ", ".join(map(str, ranks[49::50]))
    return f"r = {r}: rank ΔW {shown}; loss / min (rank {r}): {reached / least:.2f}; m, v, P: {numbers}"


STARTS = {"LoRA": (1, 0, 2.0), "A = 0": (0, 1, 2.0), "α × 4": (1, 0, 8.0), "α / 4": (1, 0, 0.5)}
RATES = 5e-4 * 2.0 ** np.arange(10)


def _race(size_A: float, size_B: float, s: float, steps: int, seed: int, n: int = 24, r: int = 2) -> Array:
    """The loss of y = x (W₀ + Δ)ᵀ, in units of the base's, after training A and B with Adam at each of RATES."""
    rng = np.random.default_rng(seed)
    U, V = (np.linalg.qr(rng.standard_normal((n, n)))[0] for _ in range(2))
    D = U * ([1, 0.7] + [0.1] * (n - 2)) @ V.T
    x = rng.standard_normal((200, n))
    A, B = (
        size * rng.uniform(-1, 1, (len(RATES), *shape)) / np.sqrt(n)
        for size, shape in ((size_A, (r, n)), (size_B, (n, r)))
    )
    m, v = [0 * A, 0 * B], [0 * A, 0 * B]
    C = x.T @ x / len(x)
    for t in range(1, steps + 1):
        G = (s * B @ A - D) @ C
        for i, (p, g) in enumerate(((A, s * B.swapaxes(1, 2) @ G), (B, s * G @ A.swapaxes(1, 2)))):
            m[i], v[i] = 0.9 * m[i] + 0.1 * g, 0.999 * v[i] + 0.001 * g * g
            step = m[i] / (1 - 0.9**t) / (np.sqrt(v[i] / (1 - 0.999**t)) + 1e-12)
            p -= RATES[:, None, None] * (1 + np.cos(np.pi * t / steps)) / 2 * step
    E = s * B @ A - D
    return np.sum(E @ C * E, axis=(1, 2)) / np.sum(D @ C * D)


def _relative(found: Array, wanted: Array) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))
