"""The problems of the convolution are the ops: the same output, the same gradients."""

import numpy as np
import pytest

from minilora import ops
from minilora.verify import diagnose
from minilora.verify.case import apply, relative_error
from minilora.verify.problems import problems

BANK = problems()


def window(kernel, stride, padding):
    return ops.Window((kernel,), (stride,), (padding,), (1,))


def convolution(dy, x, W, b, stride, padding):
    at = window(W.shape[-1], stride, padding)
    y, cache = ops.convolution_forward(x, W, b, at)
    dx, dW = ops.convolution_backward(dy, W, at, x.shape), ops.convolution_gradients(dy, cache, at)
    return y, dx, dW, ops.bias_gradients(ops.channels_last(dy))


def low_rank_convolution(dy, x, A, B, W, stride, padding, alpha, r):
    at, s = window(W.shape[-1], stride, padding), alpha / r
    update, cache = ops.lora_convolution_forward(x, A, B, s, at)
    dx, dh = ops.lora_convolution_backward(dy, A, B, s, at, x.shape)
    dA, dB = ops.lora_convolution_A_gradients(dh, cache.x, at), ops.lora_convolution_B_gradients(dy, cache.h, s)
    base = ops.convolution_forward(x, W, None, at)[0]
    return base + update, ops.convolution_backward(dy, W, at, x.shape) + dx, dA, dB


@pytest.mark.parametrize("of_ops", [convolution, low_rank_convolution])
def test_the_textbook_is_the_op(of_ops):
    problem = BANK[of_ops.__name__]
    for case in problem.cases() + problem.cases(seed=1):
        y = problem.forward(*case.inputs.values(), **case.constants)
        for mine, true in zip([y, *apply(problem.backward, case).values()], apply(of_ops, case), strict=True):
            assert relative_error(mine, true) < 1e-13


@pytest.mark.parametrize("seed", range(5))
def test_the_windows_of_every_case_overlap_and_see_padding(seed):
    for case in BANK["convolution"].cases(seed):
        stride, padding, kernel = (case.sizes[name] for name in ("stride", "padding", "kernel"))
        assert 1 < stride < kernel != 2 * padding + 1
        assert 0 < padding < kernel
        assert case.dy.shape[2] > 1


def test_a_kernel_gradient_with_in_and_out_exchanged_is_told_its_axes():
    def exchanged(*arguments, **constants):
        found = BANK["convolution"].backward(*arguments, **constants)
        return found | {"dW": np.swapaxes(found["dW"], 0, 1)}

    found = diagnose(exchanged, "conv1d").findings
    assert [finding.says.en for finding in found] == [
        "dx is right", "dW has its axes in the order 1, 0, 2", "db is right"
    ]  # fmt: skip
