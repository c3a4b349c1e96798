"""The check: what it accepts, what it refuses and why, and how it prints."""

import numpy as np
import pytest

from minilora import ops
from minilora.verify import check_backward, check_gradient


def linear(x, W):
    return x @ W.T


def linear_gradient(dy, x, W):
    return dy @ W, dy.T @ x


@pytest.fixture
def inputs(rng):
    return {"x": rng.standard_normal((5, 4)), "W": rng.standard_normal((3, 4))}


def test_a_right_gradient_passes_by_every_method(inputs):
    report = check_gradient(linear, linear_gradient, inputs)
    report.raise_if_wrong()
    assert {row.tensor for row in report.rows} == {"x", "W"}
    assert all(row.errors["central"] < 1e-9 and row.errors["complex"] < 1e-13 for row in report.rows)


def test_forward_and_backward_with_a_cache_are_checked_together(rng):
    inputs = {"x": rng.standard_normal((3, 5)), "g": rng.standard_normal(5), "b": rng.standard_normal(5)}
    g = inputs["g"]
    words = {
        "backward": lambda dy, cache: ops.layer_norm_backward(dy, cache, g),
        "gradients": lambda dy, cache: (ops.gain_gradients(dy, cache), ops.bias_gradients(dy)),
    }
    check_backward(ops.layer_norm_forward, inputs=inputs, constants={"eps": 0.1}, **words).raise_if_wrong()
    words["gradients"] = lambda dy, cache: (ops.bias_gradients(dy), ops.gain_gradients(dy, cache))
    report = check_backward(ops.layer_norm_forward, inputs=inputs, constants={"eps": 0.1}, **words)
    assert [row.ok for row in report.rows] == [True, False, False]


def test_the_report_says_where_a_small_tensor_is_worst(inputs):
    def wrong(dy, x, W):
        dx, dW = linear_gradient(dy, x, W)
        dW[2, 1] *= 1.5
        return dx, dW

    report = check_gradient(linear, wrong, inputs)
    assert [row.ok for row in report.rows] == [True, False]
    assert report.rows[1].where == (2, 1)
    assert "[2, 1]" in str(report)
    assert "<td>[2, 1]</td>" in report._repr_html_()
    with pytest.raises(AssertionError, match=r"W .*WRONG"):
        report.raise_if_wrong()


def test_a_function_that_is_not_analytic_is_checked_without_a_complex_step_and_told_so(rng):
    inputs = {"x": rng.standard_normal((3, 4))}
    report = check_gradient(lambda x: x * np.conj(x), lambda dy, x: [2 * x * dy], inputs)
    assert report.ok
    assert "not analytic" in report.rows[0].note
    report = check_gradient(lambda x: np.abs(x) ** 2, lambda dy, x: [2 * x * dy], inputs)
    assert "drops the imaginary part" in report.rows[0].note
    report = check_gradient(lambda x: np.cbrt(x), lambda dy, x: [dy / np.cbrt(x) ** 2 / 3], inputs)
    assert "raises TypeError on complex arrays" in report.rows[0].note
    assert not check_gradient(lambda x: x * np.conj(x), lambda dy, x: [x * dy], inputs).ok


@pytest.mark.oracle
def test_pytorch_is_a_third_witness(inputs):
    torch = pytest.importorskip("torch")
    report = check_gradient(linear, linear_gradient, inputs, torch=lambda x, W: torch.nn.functional.linear(x, W))
    assert all(row.errors["torch"] < 1e-14 for row in report.rows)
    twice = check_gradient(linear, linear_gradient, inputs, torch=lambda x, W: 2 * torch.nn.functional.linear(x, W))
    assert not twice.ok


def low_rank(x, A, B, alpha, r):
    return alpha / r * x @ A.T @ B.T


REFUSED = {
    "float32": (lambda rng: ({"x": rng.standard_normal(3).astype("f4")}, {}), "float64"),
    "a constant dy": (
        lambda rng: ({"x": rng.standard_normal(3)}, {"dy": np.full(3, 2.0)}),
        "the same number everywhere",
    ),
    "B = 0": (lambda rng: ({"x": rng.standard_normal(3)}, {"constants": {"B": np.zeros(3)}}), "B = 0"),
    "alpha = r": (lambda rng: ({"x": rng.standard_normal(3)}, {"constants": {"alpha": 4, "r": 4}}), "alpha = r"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_inputs_under_which_a_wrong_gradient_cannot_be_seen_are_refused(case, rng):
    make, message = REFUSED[case]
    inputs, words = make(rng)
    with pytest.raises(ValueError, match=message):
        check_gradient(lambda x, **_: 3 * x, lambda dy, x, **_: [3 * dy], inputs, **words)


def test_a_scalar_may_have_any_upstream_gradient(rng):
    x = {"x": rng.standard_normal(3)}
    assert check_gradient(lambda x: (x * x).sum(), lambda dy, x: [2 * dy * x], x, dy=np.array(1.0)).ok


def writes_to_x(x):
    x *= 2
    return x


def draws(rng):
    return lambda x: x * rng.random(x.shape)


def test_what_writes_to_its_inputs_or_draws_inside_is_refused(rng, inputs):
    x = {"x": rng.standard_normal(3)}
    with pytest.raises(ValueError, match="f has written to its argument 0"):
        check_gradient(writes_to_x, lambda dy, x: [2 * dy], x)
    with pytest.raises(ValueError, match="grad has written to its argument 0"):
        check_gradient(lambda x: 2 * x, lambda dy, x: [writes_to_x(dy)], x)
    with pytest.raises(ValueError, match="f gives another answer the second time"):
        check_gradient(draws(rng), lambda dy, x: [dy], x)
    with pytest.raises(ValueError, match="grad gives another answer the second time"):
        check_gradient(lambda x: x, lambda dy, x: [draws(rng)(dy)], x)
    with pytest.raises(ValueError, match="1 gradients were returned; 2 are needed: dx, dW"):
        check_gradient(linear, lambda dy, x, W: [dy @ W], inputs)


def relu(x):
    return np.where(x > 0, x, 0 * x)


def relu_gradient(dy, x):
    return [dy * (x > 0)]


@pytest.mark.parametrize("distance", [0.0, 1e-9, 3e-5, -6.6e-5, 9.9e-5, -1.5e-4])
@pytest.mark.parametrize("rest", [5, 400])
def test_a_kink_within_a_step_is_refused_and_one_out_of_reach_is_not(distance, rest, rng):
    x = rng.uniform(0.5, 1, rest) * rng.choice([-1, 1], rest)
    x[:2] = 1, -1
    assert check_gradient(relu, relu_gradient, {"x": x}).ok
    x[3] = distance
    with pytest.raises(ValueError, match=r"kink .* in x: move"):
        check_gradient(relu, relu_gradient, {"x": x})


def softmax(x):
    E = np.exp(x - x.max(axis=-1, keepdims=True))
    return E / E.sum(axis=-1, keepdims=True)


def softmax_gradient(dy, x):
    P = softmax(x)
    return [P * (dy - (P * dy).sum(axis=-1, keepdims=True))]


SMOOTH = {
    "softmax": (softmax, softmax_gradient, 1.0),
    "steep softmax": (softmax, softmax_gradient, 8.0),
    "tanh": (np.tanh, lambda dy, x: [dy * (1 - np.tanh(x) ** 2)], 2.0),
    "cube": (lambda x: x * x * x, lambda dy, x: [3 * x * x * dy], 3.0),
    "inverse": (lambda x: 1 / (x * x + 0.1), lambda dy, x: [-2 * x * dy / (x * x + 0.1) ** 2], 1.0),
    "waves": (lambda x: np.sin(20 * x), lambda dy, x: [20 * np.cos(20 * x) * dy], 1.0),
    "sum": (lambda x: x.sum(), lambda dy, x: [dy + 0 * x], 100.0),
}


@pytest.mark.parametrize("name", SMOOTH)
def test_right_gradients_are_never_called_wrong_nor_refused(name):
    f, grad, size = SMOOTH[name]
    rng = np.random.default_rng(len(name))
    for _ in range(150):
        x = size * rng.standard_normal(rng.integers(2, 7, rng.integers(1, 4)))
        check_gradient(f, grad, {"x": x}, rng=rng).raise_if_wrong()


WORDS = {
    "a tuple": (lambda x: (x, x), {"x": np.ones(2)}, {}, r"goes to check_backward"),
    "float32 inside": (lambda x: x.astype("f4"), {"x": np.ones(2)}, {}, "must compute in float64"),
    "no names": (lambda x: x, np.ones(2), {}, "inputs are named"),
    "dy of another shape": (lambda x: x, {"x": np.ones(2)}, {"dy": np.arange(3.0)}, r"dy has shape \(3,\)"),
    "zero misspelt": (lambda x: x, {"x": np.ones(2)}, {"zero": ["y"]}, "names what is no input; the inputs are x"),
}


@pytest.mark.parametrize("name", WORDS)
def test_what_is_called_in_the_wrong_way_is_told_the_right_one(name):
    f, inputs, words, says = WORDS[name]
    with pytest.raises(ValueError, match=says):
        check_gradient(f, lambda dy, x: [dy], inputs, **words)


def test_gradients_may_come_in_a_dict_by_name(inputs):
    def by_name(dy, x, W):
        return {"dW": dy.T @ x, "dx": dy @ W}

    assert check_gradient(linear, by_name, inputs).ok
    with pytest.raises(ValueError, match=r"the gradients are called dx, db; they must be dx, dW"):
        check_gradient(linear, lambda dy, x, W: {"dx": dy @ W, "db": dy}, inputs)


def test_a_gradient_that_only_rounding_makes_nonzero_is_refused_as_zero(rng):
    inputs = {"x": rng.standard_normal((4, 3)), "b": rng.standard_normal(3)}

    def f(x, b):
        return (x + b) - (x + b).mean(axis=0)

    def grad(dy, x, b):
        dx = dy - dy.mean(axis=0)
        return dx, dx.sum(axis=0)

    with pytest.raises(ValueError, match="the gradient of b is zero by every method"):
        check_gradient(f, grad, inputs)
    assert check_gradient(f, grad, inputs, zero=["b"]).ok
