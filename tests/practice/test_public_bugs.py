"""Gradients as people published them, wrong: each tensor of them gets a name or an explanation, and no wrong one.

From fms-acceleration #97 (2024), LLMs-from-scratch #821 (2025), FlagGems #5392 (2026) and others.
"""

import numpy as np
import pytest

from minilora.practice import check, exercise


def gradient(change):
    """Exercise 04's gradient, changed: change(given, right) returns the tensors that differ."""

    def lora_backward(dy, x, keep, W, A, B, alpha, p):
        given = {"dy": dy, "x": x, "keep": keep, "W": W, "A": A, "B": B, "alpha": alpha, "p": p, "r": len(A)}
        (part,) = exercise("04").parts
        right = dict(zip(("dx", "dA", "dB"), part.solution(dy, x, keep, W, A, B, alpha, p), strict=True))
        changed = right | change(**given, right=right)
        return changed["dx"], changed["dA"], changed["dB"]

    return lora_backward


def low(dy, A, B, s):
    return s * dy @ B @ A


def sums(a, b):
    return np.einsum("bto,bti->oi", a, b)


def scaled(s, dy, x, keep, W, A, B):
    dropped = x * keep
    dh = s * dy @ B
    return {"dx": dy @ W + dh @ A * keep, "dA": sums(dh, dropped), "dB": s * sums(dy, dropped @ A.T)}


BUGS = {  # what the code did: the gradient, and a word of what is said about each wrong tensor
    "no_mask_in_dx": (lambda dy, W, A, B, alpha, r, **_: {"dx": dy @ W + low(dy, A, B, alpha / r)}, ["mask"]),
    "mask_without_its_factor": (
        lambda dy, x, keep, W, A, B, alpha, r, **_: {"dx": dy @ W + low(dy, A, B, alpha / r) * (keep > 0)},
        ["1/(1-p)"],
    ),
    "dB_zero": (lambda right, **_: {"dB": 0 * right["dB"]}, ["zero", "0"]),
    "dB_of_the_last_sample": (
        lambda dy, x, keep, A, alpha, r, **_: {"dB": alpha / r * dy[-1].T @ ((x * keep)[-1] @ A.T)},
        ["last"],
    ),
    "scale_left_out_of_dx_and_dB": (
        lambda dy, x, keep, W, A, B, alpha, r, right, **_: {
            "dx": dy @ W + dy @ B @ A * keep,
            "dB": right["dB"] / (alpha / r),
        },
        ["scale"],
    ),
    "alpha_for_alpha_over_r": (
        lambda dy, x, keep, W, A, B, alpha, **_: scaled(alpha, dy, x, keep, W, A, B),
        ["not divided by the rank"],
    ),
    "scale_of_rslora": (
        lambda dy, x, keep, W, A, B, alpha, r, **_: scaled(alpha / np.sqrt(r), dy, x, keep, W, A, B),
        ["rank-stabilised"],
    ),
    "base_path_and_mask_missing": (
        lambda dy, A, B, alpha, r, **_: {"dx": low(dy, A, B, alpha / r)},
        ["base path", "mask"],
    ),
    "weight_decay_in_dA": (lambda A, right, **_: {"dA": right["dA"] + 0.01 * A}, ["0.01"]),
    "dB_transposed": (lambda right, **_: {"dB": right["dB"].T}, ["transposed"]),
    "clipped": (lambda right, **_: {"dA": np.clip(right["dA"], -1, 1)}, ["clipped"]),
    "a_mask_drawn_anew": (
        lambda dy, x, W, A, B, alpha, p, r, **_: {
            "dx": dy @ W + low(dy, A, B, alpha / r) * (np.random.default_rng(5).random(x.shape) > p) / (1 - p)
        },
        ["another mask", "mask"],
    ),
}


@pytest.mark.parametrize("name", BUGS)
def test_each_wrong_gradient_from_a_public_bug_is_explained(name):
    change, words = BUGS[name]
    result = check("04", gradient(change))
    wrong = [finding for finding in result.findings if finding.kind != "right"]
    assert wrong
    assert not [finding for finding in wrong if finding.kind == "unknown"], result
    for finding in wrong:
        assert any(word in finding.says.en for word in words), result


def test_statistics_over_tokens_are_named_in_layer_norm():
    def layer_norm_backward(dy, x, g, eps):
        mean = lambda a: a.mean(axis=(-1, -2), keepdims=True)  # noqa: E731
        centred = x - mean(x)
        sigma = np.sqrt(mean(centred**2) + eps)
        xhat, dxhat = centred / sigma, dy * g
        dx = (dxhat - mean(dxhat) - xhat * mean(dxhat * xhat)) / sigma
        return dx, (dy * xhat).sum(axis=(0, 1)), dy.sum(axis=(0, 1))

    other = exercise("13").parts[1].solution
    assert check("13", layer_norm_backward, other).mistakes == ["statistics_over_tokens"]
