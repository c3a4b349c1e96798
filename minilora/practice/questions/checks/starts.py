"""Other initialisations: what they take from W, and what belongs to the adapter afterwards."""

from collections.abc import Callable

import numpy as np

from ....adapters.lora import LoRALinear
from ....backend import Array
from ....data.corpora import english
from ....models.pretrained import load_pretrained
from ....nn import Linear, Parameter


def a_start_taken_from_W_is_a_LoRA_of_rank_2r() -> str:
    """W_res + s B A = W + s [B | -B₀] [A; A₀]: exact for PiSSA and OLoRA; A and B alone on W are another model."""
    rng, r, s = np.random.default_rng(0), 4, 2.0
    W, x = rng.standard_normal((24, 32)), rng.standard_normal((10, 32))
    U, S, Vt = np.linalg.svd(W, full_matrices=False)
    Q, R = np.linalg.qr(W)
    root = np.sqrt(S[:r] / s)
    starts = {"PiSSA": (root[:, None] * Vt[:r], U[:, :r] * root), "OLoRA": (R[:r], Q[:, :r])}
    lines = []
    for name, (A0, B0) in starts.items():
        residual = W - s * B0 @ A0
        assert np.allclose(residual + s * B0 @ A0, W)  # s must be in it: at the start y is the base's
        A, B = (x + 0.1 * rng.standard_normal(x.shape) for x in (A0, B0))  # after training
        trained = x @ (residual + s * B @ A).T
        twice = _layer(W, np.vstack([A, A0]), np.hstack([B, -B0]), alpha=2 * s * r)  # rank 2r, so α is 2 α
        rs = _layer(W, np.vstack([A, A0]), np.hstack([B, -B0]), alpha=s * np.sqrt(2 * r), rslora=True)
        alone, kept_alpha = _layer(W, A, B, alpha=s * r), _layer(W, twice.lora_A.data, twice.lora_B.data, alpha=s * r)
        exact = max(_relative(layer.forward(x)[0], trained) for layer in (twice, rs))
        wrong = [_relative(layer.forward(x)[0], trained) for layer in (alone, kept_alpha)]
        assert exact < 1e-13 < 0.1 < min(wrong)
        lines.append(f"{name} rank 2r {exact:.0e}; A, B on W {wrong[0]:.2f}; rank 2r with α for 2 α {wrong[1]:.2f}")
    return ". ".join(lines)


def principal_directions_leave_the_mean_out_and_make_h_larger() -> str:
    """Inputs of our model's layers: an SVD begins with their mean, a PCA does not; held out, h grows many times."""
    rng, r = np.random.default_rng(0), 8
    found: dict[str, list[float]] = {"mean": [], "PCA": [], "SVD": [], "random": [], "h": []}
    shares = []
    for X, held_out in zip(*_inputs(), strict=True):
        mean, n = X.mean(axis=0), X.shape[1]
        first, (variances, directions) = _principal(X)[1], _principal(X - mean)
        random, usual = np.linalg.qr(rng.standard_normal((n, r)))[0].T, rng.uniform(-1, 1, (r, n)) / n**0.5
        rest = held_out - held_out.mean(axis=0)
        found["mean"].append(abs(first[0] @ mean) / np.linalg.norm(mean))
        for name, A in (("PCA", directions[:r]), ("SVD", first[:r]), ("random", random)):
            found[name].append(np.sum((rest @ A.T) ** 2) / np.sum(rest**2))
        found["h"].append(np.sum((rest @ directions[:r].T) ** 2) / np.sum((rest @ usual.T) ** 2))
        shares.append(variances[: 2 * r] / variances.sum())  # at most twice the rank, PEFT's rho = 2
    median = {name: float(np.median(values)) for name, values in found.items()}
    assert median["mean"] > 0.8
    assert median["PCA"] > median["SVD"] > 2 * median["random"]
    assert median["h"] > 9  # 3 of it since rows of EVA's A have length 1, and of the usual A length 1/√3
    least = np.sort(np.concatenate(shares))[-r * len(shares)]  # one pool of directions for all layers
    ranks = [int(np.sum(share >= least)) for share in shares]
    assert 0 <= sum(ranks) - r * len(shares) < 3  # layers with the same input, as q, k and v, tie
    assert min(ranks) < r < max(ranks)
    return (
        f"{len(shares)} layers, medians: |cos(v₁ of an SVD, mean)| {median['mean']:.2f}; variance held out in r = {r}: "
        f"PCA {median['PCA']:.2f}, SVD {median['SVD']:.2f}, random {median['random']:.2f}; Var h × {median['h']:.0f}; "
        f"ranks {min(ranks)} to {max(ranks)}"
    )


def LoRA_GA_takes_the_first_step_of_full_fine_tuning() -> str:
    """A and B from the singular vectors of G: the first step of SGD is G's best rank 2r; its B A depends on signs."""
    rng, r, s = np.random.default_rng(0), 4, 0.5
    G = rng.standard_normal((24, 12)) @ rng.standard_normal((12, 32))
    U, S, Vt = np.linalg.svd(G, full_matrices=False)
    best = (U[:, : 2 * r] * S[: 2 * r]) @ Vt[: 2 * r]
    usual = rng.uniform(-1, 1, (r, 32)) / 32**0.5

    def first_step(A: Array, B: Array) -> Array:
        """ΔW by one small step of SGD on A and B, in units of η s²."""
        dA, dB = s * B.T @ G, s * G @ A.T
        return (dB @ A + B @ dA) / s

    A, B = Vt[:r], U[:, r : 2 * r]  # disjoint: the rows of one are not those of the other
    cosines = {name: _cos(first_step(*start), G) for name, start in {"GA": (A, B), "LoRA": (usual, 0 * B)}.items()}
    off = _relative(first_step(A, B), best)
    assert off < 1e-13
    assert cosines["GA"] > 1.2 * cosines["LoRA"]
    signs = np.array([1, -1, 1, -1])  # as right a decomposition of the same G
    moved = _relative((B * signs) @ A, B @ A)
    assert moved > 1
    assert np.allclose(first_step(A, B * signs), best)
    return (
        f"first step off best rank 2r: {off:.0e}; cos to G: {cosines['GA']:.2f}, LoRA {cosines['LoRA']:.2f}; "
        f"2 of 4 signs: B A moves by {moved:.2f} ‖B A‖, the first step by 0"
    )


def _layer(W: Array, A: Array, B: Array, **options: float) -> LoRALinear:
    return LoRALinear.of(Linear(Parameter(W)), {"lora_A": A, "lora_B": B}, r=len(A), **options)


def _inputs() -> tuple[list[Array], list[Array]]:
    """What goes into every linear layer of the built-in model, (512, in): on training text, and on text held out."""
    model, text = load_pretrained("builtin"), english()
    found: list[Array] = []

    def recorded(layer: Linear) -> Callable[..., object]:
        def forward(x: Array, *rest: object, forward: Callable[..., object] = layer.forward) -> object:
            found.append(x.reshape(-1, x.shape[-1]).astype(np.float64))
            return forward(x, *rest)

        return forward

    for path, layer in model.named_modules():
        if isinstance(layer, Linear) and "block_" in path:
            layer.forward = recorded(layer)  # type: ignore[method-assign,assignment]
    for part in (text.train, text.validation):
        model.forward(np.frombuffer(part[:512], np.uint8).reshape(4, 128).astype(np.int64))
    return found[: len(found) // 2], found[len(found) // 2 :]


def _principal(X: Array) -> tuple[Array, Array]:
    """The squared singular values of X, and its right singular vectors as rows, the largest first."""
    values, vectors = np.linalg.eigh(X.T @ X)
    return values[::-1], vectors.T[::-1]


def _cos(a: Array, b: Array) -> float:
    return float(np.sum(a * b) / np.linalg.norm(a) / np.linalg.norm(b))


def _relative(found: Array, wanted: Array) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))
