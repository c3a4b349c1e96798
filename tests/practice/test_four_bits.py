"""Exercise 26's solution is the library's NF4, and its forecast of a merge is what a merge then measures."""

import numpy as np
import pytest

from minilora.practice import check
from minilora.practice.exercises import ex26_four_bits as four_bits
from minilora.practice.exercises.ex26_four_bits import (
    bits,
    dequantise,
    merge_forecast,
    qlora_backward,
    quantise_nf4,
)
from minilora.quantization.nf4 import LEVELS, NF4, unpacked


@pytest.mark.parametrize("shape", [(5, 7), (64, 64), (3, 50)])
def test_codes_scales_and_decoded_weights_are_those_of_the_library(shape, rng):
    W = rng.standard_normal(shape).astype(np.float32)
    codes, absmax = quantise_nf4(W.astype(np.float64), 64)
    Q = NF4.of(W)
    assert np.array_equal(four_bits.LEVELS, LEVELS.astype(np.float64))
    assert np.array_equal(codes, Q.arrays["codes"])
    assert np.array_equal(absmax, Q.arrays["absmax"])
    np.testing.assert_allclose(dequantise(codes, absmax, 64, shape), Q.dense(), rtol=1e-6)


@pytest.mark.parametrize("size", [0.01, 0.03, 0.1, 0.3])
def test_the_forecast_of_a_merge_is_within_five_percent_of_the_merge(size, rng):
    W, D = rng.standard_normal((256, 256)), rng.standard_normal((256, 8)) @ rng.standard_normal((8, 256))
    D *= size * np.linalg.norm(W) / np.linalg.norm(D)
    before = quantise_nf4(W, 64)
    moved, error = merge_forecast(*before, 64, D)
    W_hat = dequantise(*before, 64, W.shape)
    after = quantise_nf4(W_hat + D, 64)
    kept = dequantise(*after, 64, W.shape) - W_hat
    assert moved == pytest.approx(np.mean(unpacked(before[0], W.size) != unpacked(after[0], W.size)), abs=1e-3)
    assert error == pytest.approx(np.linalg.norm(kept - D) / np.linalg.norm(D), rel=0.05)


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (lambda *_: (x for x in "ab"), "W_hat is generator, and must be an array"),
        (lambda *_: np.broadcast_to(0.0, (10**9, 10**9)), "W_hat has shape (1000000000, 1000000000), and must have"),
    ],
    ids=["yield", "zeros without memory"],
)
def test_what_cannot_be_copied_is_refused_as_what_it_is(made, says):
    found = check("26", quantise_nf4, lambda codes, absmax, block, shape: made(), bits, qlora_backward, merge_forecast)
    assert [f.says.en[: len(says)] for f in found.findings if f.kind != "right"] == [says]


@pytest.mark.parametrize(("more", "name"), [("dW", "base_trained"), ("dabsmax", "scales_trained")])
def test_a_gradient_of_what_is_frozen_is_called_so_whatever_it_holds(more, name):
    def with_more(*given):
        return qlora_backward(*given) | {more: np.zeros(3)}

    found = check("26", quantise_nf4, dequantise, bits, with_more, merge_forecast).findings
    assert [finding.name for finding in found if finding.kind != "right"] == [name]
