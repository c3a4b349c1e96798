"""The check: what it accepts, what it refuses and why, and how it prints."""

import itertools

import examples
import numpy as np
import pytest

from minilora import ops
from minilora.nn import Gradients, Linear, Parameter
from minilora.verify import check_backward, check_gradient, check_model


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
    "lora_alpha = r": (
        lambda rng: ({"x": rng.standard_normal(3)}, {"constants": {"lora_alpha": 4, "r": 4}}),
        "alpha = r",
    ),
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
    with pytest.raises(ValueError, match="f writes to its argument x"):
        check_gradient(writes_to_x, lambda dy, x: [2 * dy], x)
    with pytest.raises(ValueError, match="grad writes to its argument dy"):
        check_gradient(lambda x: 2 * x, lambda dy, x: [writes_to_x(dy)], x)
    with pytest.raises(ValueError, match="f returns something else when it is called again"):
        check_gradient(draws(rng), lambda dy, x: [dy], x)
    with pytest.raises(ValueError, match="grad returns something else when it is called again"):
        check_gradient(lambda x: x, lambda dy, x: [draws(rng)(dy)], x)
    with pytest.raises(ValueError, match="grad returns 1 array; it must return 2: dx, dW"):
        check_gradient(linear, lambda dy, x, W: [dy @ W], inputs)


def relu(x):
    return np.where(x > 0, x, 0 * x)


def relu_gradient(dy, x):
    return [dy * (x > 0)]


@pytest.mark.parametrize("rest", [5, 400])
@pytest.mark.parametrize("distance", [0.0, 1e-6, 3e-5, -6.6e-5, 2e-4 / 3, 9.9e-5, -1.5e-4])
def test_a_kink_at_the_inputs_is_refused_and_one_beside_them_is_stepped_between(distance, rest, rng):
    x = rng.uniform(0.5, 1, rest) * rng.choice([-1, 1], rest)
    x[:4] = 1, -1, 1, distance
    if distance:
        check_gradient(relu, relu_gradient, {"x": x}).raise_if_wrong()
        assert not check_gradient(relu, lambda dy, x: [dy * (x > 0) + dy * (x == distance) / 3], {"x": x}).ok
    else:
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
    "steep softmax": (softmax, softmax_gradient, 6.0),
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


EVERY = 10.0 ** np.arange(-6, 7, 2)
SMALL, LARGE = EVERY[EVERY <= 1], EVERY[EVERY >= 1]


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


# f, f', f' with a term missing, the sizes of x at which f and f' are more than rounding
ANALYTIC = {
    "3x": (lambda x: 3 * x, lambda x: 3 + 0 * x, lambda x: 0 * x, EVERY),
    "x²": (lambda x: x * x, lambda x: x + x, lambda x: x, EVERY),
    "x³ + x": (lambda x: x**3 + x, lambda x: 3 * x * x + 1, lambda x: 3 * x * x, EVERY[(EVERY >= 0.1) & (EVERY <= 10)]),
    "x⁵": (lambda x: x**5, lambda x: 5 * x**4, lambda x: x**4, EVERY),
    "x⁴ - x³": (lambda x: x**4 - x**3, lambda x: 4 * x**3 - 3 * x**2, lambda x: 4 * x**3 - x**2, EVERY),
    "√x": (np.sqrt, lambda x: 0.5 / np.sqrt(x), lambda x: 1 / np.sqrt(x), EVERY),
    "x√x": (lambda x: x**1.5, lambda x: np.sqrt(x) + 0.5 * np.sqrt(x), np.sqrt, EVERY),
    "1/x": (lambda x: 1 / x, lambda x: -1 / x**2, lambda x: 0 / x, EVERY),
    "1/x²": (lambda x: 1 / x**2, lambda x: -1 / x**3 - 1 / x**3, lambda x: -1 / x**3, EVERY),
    "x/(1 + x²)": (
        lambda x: x / (1 + x * x),
        lambda x: (1 - x * x) / (1 + x * x) ** 2,
        lambda x: (2 - x * x) / (1 + x * x) ** 2,
        EVERY[EVERY <= 1e3],
    ),
    "log x": (np.log, lambda x: 1 / x, lambda x: 0 / x, EVERY),
    "-log of a mean": (lambda x: -np.log(x).mean(), lambda x: -1 / x / x.size, lambda x: -1 / x / (x.size + 1), EVERY),
    "x log x": (lambda x: x * np.log(x), lambda x: np.log(x) + 1, np.log, EVERY),
    "log² x": (lambda x: np.log(x) ** 2, lambda x: 2 * np.log(x) / x, lambda x: np.log(x) / x, EVERY),
    "log(1 + x)": (np.log1p, lambda x: 1 / (1 + x), lambda x: 0.9 / (1 + x), EVERY),
    "exp x": (np.exp, np.exp, lambda x: 0.9 * np.exp(x), EVERY[EVERY <= 10]),
    "x exp -x": (
        lambda x: x * np.exp(-x),
        lambda x: np.exp(-x) - x * np.exp(-x),
        lambda x: -x * np.exp(-x),
        EVERY[EVERY <= 10],
    ),
    "sin": (np.sin, np.cos, lambda x: 0.9 * np.cos(x), EVERY),
    "sin 1000x": (
        lambda x: np.sin(1000 * x),
        lambda x: 1000 * np.cos(1000 * x),
        lambda x: np.cos(1000 * x),
        EVERY[EVERY <= 1e3],
    ),
    "cos": (np.cos, lambda x: -np.sin(x), lambda x: -0.9 * np.sin(x), EVERY[EVERY >= 1e-4]),
    "tan": (np.tan, lambda x: 1 + np.tan(x) ** 2, lambda x: 1.1 + np.tan(x) ** 2, SMALL / 2),
    "tanh": (np.tanh, lambda x: 1 - np.tanh(x) ** 2, lambda x: 1.1 - np.tanh(x) ** 2, SMALL),
    "tanh 300x": (
        lambda x: np.tanh(300 * x),
        lambda x: 300 * (1 - np.tanh(300 * x) ** 2),
        lambda x: 1 - np.tanh(300 * x) ** 2,
        SMALL / 300,
    ),
    "arctan": (np.arctan, lambda x: 1 / (1 + x * x), lambda x: 1 / (2 + x * x), EVERY[EVERY <= 1e3]),
    "sinh": (np.sinh, np.cosh, lambda x: np.exp(x) / 2, SMALL),
    "sigmoid": (sigmoid, lambda x: sigmoid(x) * sigmoid(-x), lambda x: sigmoid(x), EVERY[EVERY <= 10]),
    "softplus": (lambda x: np.log1p(np.exp(-x)) + x, sigmoid, lambda x: sigmoid(x) - 0.1, EVERY),
    "gauss": (
        lambda x: np.exp(-x * x),
        lambda x: -2 * x * np.exp(-x * x),
        lambda x: -x * np.exp(-x * x),
        EVERY[(EVERY >= 1e-4) & (EVERY <= 1)],
    ),
    "x³ - 1e6": (lambda x: x**3 - 1e6, lambda x: 3 * x * x, lambda x: x * x, LARGE),
}

ENTRY = np.array([1.001, 1, 1, 1, 1])
MISTAKES = {
    "an entry": lambda g: g * (ENTRY[:, None] if g.ndim > 1 else ENTRY[: g.size]),
    "a scale": lambda g: 1.001 * g,
    "a sign": lambda g: -g,
}


def real_only(f):
    def g(x):
        if np.iscomplexobj(x):
            raise TypeError("real numbers only")
        return f(x)

    return g


def passes(f, slope, x):
    """Does dy · slope(x) pass the check? A refusal is no pass."""
    try:
        return check_gradient(f, lambda dy, x: [dy * slope(x)], {"x": x}).ok
    except ValueError:
        return False


@pytest.mark.parametrize("name", ANALYTIC)
def test_at_every_size_of_the_inputs_a_right_gradient_passes_and_a_wrong_one_never(name):
    f, slope, lacking, sizes = ANALYTIC[name]
    assert len(ANALYTIC) >= 25
    for size, shape in examples.some_of(itertools.product(sizes, [(1,), (5,), (5, 9)]), 7):
        x = size * np.random.default_rng(len(name)).uniform(0.3, 1.2, shape)
        for function in (f, real_only(f)):
            report = check_gradient(function, lambda dy, x: [dy * slope(x)], {"x": x})
            report.raise_if_wrong()
            assert "not analytic" not in report.rows[0].note
            assert report.rows[0].limit("central") < 1e-4
            assert not passes(function, lacking, x), size
            for mistake, made in MISTAKES.items():
                assert not passes(function, lambda x, made=made: made(slope(x)), x), (size, mistake)


CONSTANT = {"x": (lambda x: x, lambda x: 1 + 0 * x), "sin": (np.sin, np.cos), "exp": (np.exp, np.exp)}


@pytest.mark.each_value
@pytest.mark.parametrize("constant", [1e9, -1e9, 1e12, 1e15])
@pytest.mark.parametrize("name", CONSTANT)
def test_beside_a_large_constant_a_wrong_gradient_never_passes(name, constant, rng):
    f, slope = CONSTANT[name]
    for x in (rng.standard_normal(4), rng.standard_normal((5, 9))):
        for function in (lambda x: f(x) + constant, real_only(lambda x: f(x) + constant)):
            for made in (*MISTAKES.values(), lambda g: 0 * g, lambda g: 1 + 0.999 * g):
                assert not passes(function, lambda x, made=made: np.resize(made(slope(x)), x.shape), x)


def test_beside_a_large_constant_the_complex_step_alone_decides_and_without_one_the_check_is_refused(rng):
    x = {"x": rng.standard_normal(4)}

    def f(x):
        return np.sin(x) + 1e12

    report = check_gradient(f, lambda dy, x: [dy * np.cos(x)], x)
    assert report.ok
    assert report.rows[0].errors.keys() == {"complex"}
    assert "rounding hides it" in str(report)
    with pytest.raises(ValueError, match=r"rounding hides the gradient of x: f is of size .e\+12 here"):
        check_gradient(real_only(f), lambda dy, x: [dy * np.cos(x)], x)


def test_scores_with_a_mask_of_minus_1e9_added_are_checked_by_the_complex_step(rng):
    mask = np.where(np.tri(4) > 0, 0.0, -1e9)
    inputs = {"q": rng.standard_normal((4, 3)), "k": rng.standard_normal((4, 3))}

    def scores(q, k):
        return q @ k.T + mask

    assert check_gradient(scores, lambda dy, q, k: (dy @ k, dy.T @ q), inputs).ok
    wrong = check_gradient(scores, lambda dy, q, k: (1.001 * dy @ k, dy.T @ q), inputs)
    assert [row.ok for row in wrong.rows] == [False, True]


X = np.array([1.0, 2.0, -0.5])


def square(x):
    return x * x


def square_gradient(dy, x):
    return [2 * x * dy]


# f, grad, inputs, further words, what the check says
MISTAKEN = {
    "a tuple": (lambda x: (x, x), square_gradient, {"x": X}, {}, "goes to check_backward"),
    "nothing": (lambda x: None, square_gradient, {"x": X}, {}, "f returned None"),
    "float32 inside": (lambda x: x.astype("f4"), square_gradient, {"x": X}, {}, "f returns float32, and must"),
    "an empty output": (lambda x: x[:0], square_gradient, {"x": X}, {}, "f returns an empty array"),
    "a value for f": (X, square_gradient, {"x": X}, {}, r"calls f\(x\), but f is not a function: ndarray"),
    "a value for grad": (square, (X,), {"x": X}, {}, r"calls grad\(dy, x\), but grad is not a function: tuple"),
    "f of two": (lambda x, W: x, square_gradient, {"x": X}, {}, r"calls f\(x\): missing .* 'W'"),
    "grad without inputs": (square, lambda dy: dy, {"x": X}, {}, r"calls grad\(dy, x\): too many"),
    "no names": (square, square_gradient, X, {}, "inputs must be a dict of arrays by name"),
    "no inputs": (square, square_gradient, {}, {}, "inputs must be a dict of arrays by name"),
    "integers": (square, square_gradient, {"x": [1, 2]}, {}, r"x is int64: .* pass x.astype\(np.float64\)"),
    "complex inputs": (square, square_gradient, {"x": X + 0j}, {}, "x is complex128"),
    "ragged rows": (square, square_gradient, {"x": [[1.0], [1.0, 2.0]]}, {}, "its rows differ in length"),
    "NaN": (square, square_gradient, {"x": X * np.nan}, {}, "x holds NaN or infinity"),
    "an empty input": (square, square_gradient, {"x": np.zeros((0, 3))}, {}, r"x is empty, of shape \(0, 3\)"),
    "a constant misspelt": (
        lambda x, eps: x, lambda dy, x, eps: dy, {"x": X}, {"constants": {"epz": 1.0}}, "missing .* 'eps'"
    ),
    "constants without names": (square, square_gradient, {"x": X}, {"constants": [1]}, "constants must be a dict"),
    "dy of another shape": (square, square_gradient, {"x": X}, {"dy": X[:2]}, r"dy has shape \(2,\)"),
    "dy in float32": (square, square_gradient, {"x": X}, {"dy": X.astype("f4")}, "dy is float32"),
    "dy is NaN": (square, square_gradient, {"x": X}, {"dy": X * np.nan}, "dy holds NaN"),
    "no directions": (square, square_gradient, {"x": X}, {"directions": 0}, "directions=0"),
    "zero misspelt": (square, square_gradient, {"x": X}, {"zero": ["y"]}, "is not an input; the inputs are x"),
    "a gradient of None": (
        lambda x, b: x + b, lambda dy, x, b: (dy, None), {"x": X, "b": X}, {}, "grad returned None for db"
    ),
    "None by name": (
        lambda x, b: x + b, lambda dy, x, b: {"x": dy, "b": None}, {"x": X, "b": X}, {}, "grad returned None for db"
    ),
    "a gradient in float32": (square, lambda dy, x: (2 * x * dy).astype("f4"), {"x": X}, {}, "dx is float32"),
    "a list of numbers": (square, lambda dy, x: list(2 * x * dy), {"x": X}, {}, "grad returns 3 arrays"),
    "the edge of the domain": (np.sqrt, lambda dy, x: dy / 2, {"x": X[:2] - 1}, {}, "not finite on both sides .* x"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKEN)
def test_what_is_called_in_the_wrong_way_is_told_the_right_one_in_a_line(name):
    f, grad, inputs, words, says = MISTAKEN[name]
    with pytest.raises(ValueError, match=says) as refused:
        check_gradient(f, grad, inputs, **words)
    assert "\n" not in str(refused.value)


def test_what_means_the_same_is_taken_as_it_is(rng):
    assert check_gradient(square, square_gradient, {"x": [1.0, 2.0]}, rng=3).ok
    assert check_gradient(square, square_gradient, {"x": 3.0}, dy=1).ok
    assert check_gradient(lambda x: (x * x / 2).sum(), lambda dy, x: x, {"x": X}, dy=1).ok  # x itself, and no copy
    wrong = check_gradient(square, lambda dy, x: 1.0, {"x": X})
    assert "wrong shape ()" in str(wrong)


def test_a_forward_without_a_cache_and_a_backward_without_one_are_told_so():
    x = {"x": np.ones((2, 3)) + np.arange(3.0)}
    with pytest.raises(ValueError, match=r"forward must return \(y, cache\)"):
        check_backward(square, lambda dy, cache: dy, x)
    with pytest.raises(ValueError, match=r"calls backward\(dy, cache\): too many"):
        check_backward(lambda x: (x * x, x), lambda dy: dy, x)


def test_an_input_that_is_named_in_zero_and_has_a_gradient_is_told_so(rng):
    x = {"x": rng.standard_normal(4)}
    for grad in (square_gradient, lambda dy, x: 0 * x):
        report = check_gradient(square, grad, x, zero=["x"])
        assert not report.ok
        assert "named in zero, but" in str(report)
        assert "as it must be" not in str(report)


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


def test_a_model_is_refused_a_misspelt_zero_float32_and_a_loss_that_is_no_number(rng):
    layer = Linear(Parameter(rng.standard_normal((3, 4))), None)
    x = rng.standard_normal((5, 4))

    def checked(loss=lambda: layer.forward(x)[0].sum(), **words):
        grads = Gradients()
        y, cache = layer.forward(x)
        layer.backward(np.ones_like(y), cache, grads)
        return check_model(layer, loss, grads, rng=rng, **words)

    checked().raise_if_wrong()
    with pytest.raises(ValueError, match="is not an input; the inputs are weight"):
        checked(zero=["wieght"])
    with pytest.raises(ValueError, match=r"loss\(\) has shape \(5, 3\)"):
        checked(lambda: layer.forward(x)[0])
    layer.weight.data = layer.weight.data.astype(np.float32)
    with pytest.raises(ValueError, match="weight is float32"):
        checked()


def squared_relu(x):
    return np.maximum(x, 0) ** 2


def huber(x):
    return np.where(np.abs(np.real(x)) <= 1, x * x / 2, np.sign(np.real(x)) * x - 0.5)


def elu(x):
    return np.where(np.real(x) > 0, x, np.exp(np.where(np.real(x) > 0, 0, x)) - 1)


# f, f': the second derivative of f jumps, at 0 or at ±1
JUMPS = {
    "squared ReLU": (squared_relu, lambda x: 2 * np.maximum(x, 0)),
    "Huber": (huber, lambda x: np.clip(x, -1, 1)),
    "ELU": (elu, lambda x: np.where(x > 0, 1, np.exp(np.minimum(x, 0)))),
}


@pytest.mark.parametrize("name", JUMPS)
def test_a_right_gradient_passes_where_the_second_derivative_jumps(name):
    f, slope = JUMPS[name]
    for seed in range(examples.count(40)):
        rng = np.random.default_rng(seed)
        whole = rng.integers(-2, 3, (3, 4)) + 0.0
        whole[0, :2] = 1, -1
        for x in (whole, np.where(rng.random((3, 4)) < 0.5, 0.0, whole + 0.3), rng.standard_normal((64, 64))):
            for function in (f, real_only(f)):
                report = check_gradient(function, lambda dy, x: dy * slope(x), {"x": x}, rng=rng)
                report.raise_if_wrong()
                assert "not analytic" not in str(report)
                assert not passes(function, lambda x: 1.001 * slope(x), x)


SATURATED = {
    "by the complex step": (lambda x: np.tanh(5 * x), np.array([0.1, 2, -0.2])),
    "by differences": (lambda x: np.tanh(5 * np.real(x)), np.array([0.1, 2, -0.2])),
}


@pytest.mark.parametrize("name", SATURATED)
@pytest.mark.parametrize("factor", [0.0, 0.5, 3.0])
def test_a_small_entry_among_large_ones_is_checked_by_its_own_size(name, factor):
    f, x = SATURATED[name]
    check_gradient(f, lambda dy, x: 5 * dy / np.cosh(5 * x) ** 2, {"x": x}).raise_if_wrong()
    report = check_gradient(f, lambda dy, x: [1, factor, 1] * (5 * dy / np.cosh(5 * x) ** 2), {"x": x})
    assert not report.ok
    assert report.rows[0].where == (1,)


def test_entries_that_rounding_hides_are_counted():
    report = check_gradient(np.tanh, lambda dy, x: dy / np.cosh(x) ** 2, {"x": np.array([0.1, 25, -0.2, -22])})
    assert "2 of 4 entries too small to be seen" in str(report)
    report = check_gradient(relu, relu_gradient, {"x": np.array([0.1, -25, -0.2])})
    assert "too small" not in str(report)  # an entry that is zero is seen


def test_inputs_of_any_size_are_told_no_gradient_that_they_have_is_zero(rng):
    w = rng.standard_normal((3, 2))

    def product(factor):
        inputs = {"x": 1e18 * rng.standard_normal((3, 2)), "w": w}
        return check_gradient(lambda x, w: x * w, lambda dy, x, w: (factor * dy * w, dy * x), inputs)

    product(1.0).raise_if_wrong()
    assert [row.ok for row in product(2.0).rows] == [False, True]
    check_gradient(square, square_gradient, {"x": 1e150 * w}).raise_if_wrong()


def verdict_of(*arguments, **words):
    try:
        return check_gradient(*arguments, **words).ok
    except ValueError as refused:
        return "hidden" if "rounding hides the gradient of x" in str(refused) else str(refused)


@pytest.mark.parametrize("constant", [1e12, 1e15])
def test_a_gradient_that_rounding_hides_is_never_said_to_be_zero(constant):
    for f in (lambda x: np.abs(x) + constant, lambda x: x * np.sign(np.real(x)) + constant):
        for seed in range(examples.count(100)):
            x = {"x": np.random.default_rng(seed).standard_normal((2, 2))}
            for zero in ([], ["x"]):
                found = verdict_of(f, lambda dy, x: dy * np.sign(x), x, zero=zero, rng=seed)
                assert found in (not zero, "hidden")


@pytest.mark.parametrize("distance", [1e-9, -1e-10, 1e-12])
def test_a_kink_too_near_to_be_stepped_between_is_refused(distance):
    with pytest.raises(ValueError, match="kink"):
        check_gradient(relu, relu_gradient, {"x": np.array([1, -1, 0.5, distance])})


@pytest.mark.parametrize("offset", [1e3, 1e4, 1e5, 1e6])
def test_inputs_far_from_zero_are_allowed_the_digits_that_they_have_lost(offset):
    def layer_norm(x):
        centred = x - x.mean(axis=-1, keepdims=True)
        return centred / np.sqrt((centred * centred).mean(axis=-1, keepdims=True) + 1e-5)

    def grad(dy, x):
        xhat, sigma = layer_norm(x), np.sqrt(x.var(axis=-1, keepdims=True) + 1e-5)
        return (dy - dy.mean(-1, keepdims=True) - xhat * (dy * xhat).mean(-1, keepdims=True)) / sigma

    for seed in range(examples.count(10)):
        rng = np.random.default_rng(seed)
        x = {"x": offset + rng.standard_normal((4, 5))}
        assert check_gradient(layer_norm, grad, x, rng=rng).ok
        assert not check_gradient(layer_norm, lambda dy, x: 1.001 * grad(dy, x), x, rng=rng).ok


def test_an_alpha_that_is_an_array_is_compared_whole():
    def f(x, alpha, r):
        return alpha * x / r

    constants = {"alpha": np.array([1.0, 4.0]), "r": 4}
    assert check_gradient(f, lambda dy, x, alpha, r: dy * alpha / r, {"x": X[:2]}, constants=constants).ok


def cross_entropy(z, targets):
    return -np.log(softmax(z)[np.arange(len(z)), targets]).mean()


def textbook(dy, z, targets):
    return dy * (softmax(z) - np.eye(4)[targets]) / len(z)


@pytest.mark.parametrize("margin", [12, 15, 18, 20, 25])
def test_what_cancels_in_a_confident_softmax_is_no_mistake(margin):
    targets = {"targets": np.arange(3)}
    for seed in range(examples.count(8)):
        z = {"z": margin * np.eye(4)[:3] + np.random.default_rng(seed).standard_normal((3, 4))}
        assert check_gradient(cross_entropy, textbook, z, constants=targets).ok
        assert not check_gradient(cross_entropy, lambda *a, **c: 1.001 * textbook(*a, **c), z, constants=targets).ok


@pytest.mark.filterwarnings("ignore:overflow")
def test_what_overflows_on_complex_arrays_is_checked_by_differences_and_told_so():
    x = {"x": np.array([-800.0, 0.3, -1.2])}
    report = check_gradient(sigmoid, lambda dy, x: dy * sigmoid(x) * (1 - sigmoid(x)), x)
    assert report.ok
    assert "f is not finite on complex arrays" in str(report)


def test_what_rounding_hides_is_neither_ok_nor_wrong():
    x = {"x": np.array([38.0, 39.5, 41.0])}  # 1 - sigmoid is 0 there, where the gradient is 1e-17

    def softplus(x):
        return np.log1p(np.exp(-x))

    report = check_gradient(softplus, lambda dy, x: -dy * (1 - sigmoid(x)), x)
    assert report.rows[0].verdict == "cannot tell"
    assert not report.ok
    assert "cannot tell; rounding hides 3 of 3 entries" in str(report)
    report.raise_if_wrong()
    assert check_gradient(softplus, lambda dy, x: -dy * sigmoid(-x), x).ok
    assert "WRONG" in str(check_gradient(softplus, lambda dy, x: dy * sigmoid(x), x))


@pytest.mark.parametrize("factor", [0.0, 0.5, 1.0, 2.0, 1e6])
@pytest.mark.parametrize("function", [np.tanh, real_only(np.tanh)], ids=["complex", "real"])
def test_an_entry_too_small_to_be_seen_is_counted_be_it_right_or_wrong(function, factor):
    x = {"x": np.array([0.1, 12, -0.2])}
    report = check_gradient(function, lambda dy, x: [1, factor, 1] * (dy / np.cosh(x) ** 2), x)
    assert "1 of 3 entries too small to be seen" in str(report)


def test_a_wrong_entry_of_a_large_tensor_is_seen_or_said_to_be_too_small(rng):
    x = {"x": rng.choice([-1, 1], (8, 8)) * np.logspace(-9, 0, 64).reshape(8, 8)}
    for entry in range(0, 64, 7):
        factors = 1 + 1e-3 * (np.arange(64) == entry).reshape(8, 8)
        report = check_gradient(real_only(square), lambda dy, x, factors=factors: 2 * x * dy * factors, x)
        assert not report.ok or "entries too small to be seen" in str(report)
    assert not check_gradient(real_only(square), lambda dy, x: 2 * x * dy * factors, x).ok


# f, the shapes of its inputs; the input whose gradient is summed over the rows
ONE_ROW = {
    "a bias": (lambda x, b: x + b, [(1, 4), (4,)], "b"),
    "a weight": (lambda x, W: x @ W.T, [(1, 4), (3, 4)], "W"),
    "a token": (lambda x, W: x @ W.T, [(1, 1, 4), (3, 4)], "W"),
    "an adapter of rank 1": (lambda x, A, B: x @ A.T @ B.T, [(1, 4), (1, 4), (5, 1)], "B"),
    "a gain": (lambda x, g: x / np.sqrt((x * x).mean(-1, keepdims=True)) * g, [(1, 4), (4,)], "g"),
}
MORE_ROWS = {
    "two": (lambda x, b: x + b, [(2, 4), (4,)]),
    "tokens": (lambda x, W: x @ W.T, [(1, 3, 4), (3, 4)]),
    "a bias with an axis of 1": (lambda x, b: x + b, [(5, 4), (1, 4)]),
    "nothing shared": (lambda x, w: x * w, [(1, 4), (1, 4)]),
    "no row": (lambda x, W: W @ x, [(4,), (1, 4)]),
    "a mean over all": (lambda x, y: ((x - y) ** 2).mean(), [(1, 4), (1, 4)]),
}


def numeric(f):
    """The gradients of any small f, by the complex step."""

    def grad(dy, *arrays):
        return [
            np.array([(dy * f(*arrays[:i], x + 1e-30j * u.reshape(x.shape), *arrays[i + 1 :])).sum().imag / 1e-30
                      for u in np.eye(x.size)]).reshape(x.shape) for i, x in enumerate(arrays)
        ]  # fmt: skip

    return grad


@pytest.mark.parametrize("name", [*ONE_ROW, *MORE_ROWS])
def test_a_batch_of_one_is_refused_where_it_hides_a_mean_and_nowhere_else(name, rng):
    f, shapes, *summed = (ONE_ROW | MORE_ROWS)[name]
    inputs = {letter: rng.standard_normal(shape) for letter, shape in zip(f.__code__.co_varnames, shapes, strict=False)}
    if not summed:
        assert check_gradient(f, numeric(f), inputs).ok
        return
    with pytest.raises(ValueError, match=f"a batch of one: the gradient of .*{summed[0]} is a sum over the rows"):
        check_gradient(f, numeric(f), inputs)
    assert check_gradient(f, numeric(f), inputs, one_row=True).ok


def test_a_loss_of_one_row_is_refused_as_its_mean_is_its_sum(rng):
    for f in (cross_entropy, lambda z, targets: len(z) * cross_entropy(z, targets)):
        with pytest.raises(ValueError, match="a batch of one: f is a sum or a mean over its rows"):
            check_gradient(f, textbook, {"z": rng.standard_normal((1, 4))}, constants={"targets": np.array([2])})


def test_a_loss_of_one_row_is_refused_as_its_mean_over_rows_is_its_sum_though_it_adds_up_columns(rng):
    inputs = {"x": rng.standard_normal((1, 4)), "t": rng.standard_normal((1, 4))}

    def grad(dy, x, t):
        return 2 * dy * (x - t), -2 * dy * (x - t)

    with pytest.raises(ValueError, match="a batch of one: f is a sum or a mean over its rows"):
        check_gradient(lambda x, t: ((x - t) ** 2).sum(axis=-1).mean(), grad, inputs)
    assert check_gradient(lambda x, t: ((x - t) ** 2).sum(), grad, inputs).ok


@pytest.mark.parametrize(
    "constants",
    [{"alpha": 2, "rank": 2}, {"lora_alpha": 2, "lora_r": 2}, {"alpha": 2}, {"scaling": 1}, {"scale": 1.0}, {"s": 1}],
    ids=str,
)
def test_a_scale_of_one_is_refused_by_any_of_its_usual_names(constants, rng):
    inputs = {name: rng.standard_normal(shape) for name, shape in {"x": (3, 4), "A": (2, 4), "B": (5, 2)}.items()}

    def f(x, A, B, **constants):
        return x @ A.T @ B.T

    def scale_forgotten(dy, x, A, B, **constants):
        return dy @ B @ A, (dy @ B).T @ x, dy.T @ (x @ A.T)

    with pytest.raises(ValueError, match="one that is forgotten is not seen"):
        check_gradient(f, scale_forgotten, inputs, constants=constants)
    other = {name: value * 3 if name not in ("rank", "lora_r") else value for name, value in constants.items()}
    assert check_gradient(f, scale_forgotten, inputs, constants=other).ok


def test_a_gradient_that_saturation_makes_zero_is_answered_with_what_to_do():
    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    with pytest.raises(ValueError, match="choose other inputs"):
        check_gradient(sigmoid, lambda dy, x: dy * sigmoid(x) * (1 - sigmoid(x)), {"x": np.array([50.0, 60.0])})


def test_the_worst_error_of_a_method_that_was_not_used_is_nan(inputs):
    report = check_gradient(linear, linear_gradient, inputs)
    assert report.worst() < 1e-7
    assert np.isnan(report.worst("torch"))


def test_a_function_that_fails_is_named_with_the_shapes_it_was_given(inputs):
    fails = r"f failed on x \(5, 4\), W \(4, 3\): ValueError: matmul"
    with pytest.raises(ValueError, match=fails) as caught:
        check_gradient(linear, linear_gradient, inputs | {"W": inputs["W"].T})
    assert isinstance(caught.value.__cause__, ValueError)
    with pytest.raises(ValueError, match=r"grad failed on dy \(5, 3\), x \(5, 4\), W \(3, 4\): ValueError: matmul"):
        check_gradient(linear, lambda dy, x, W: (dy @ W.T, dy.T @ x), inputs)
    words = {"inputs": inputs, "backward": lambda dy, cache: dy @ cache.T}
    with pytest.raises(ValueError, match=r"^backward failed on dy \(5, 3\), cache \(3, 4\): ValueError: matmul"):
        check_backward(lambda x, W: (x @ W.T, W), **words)
    with pytest.raises(ValueError, match=r"^forward failed on x \(5, 4\), W \(3, 4\): ValueError: matmul"):
        check_backward(lambda x, W: (x @ W, W), **words)
    report = check_gradient(linear, lambda dy, x, W: (dy @ W, x.T @ dy), inputs)
    assert "wrong shape (4, 3): it must be that of W, (3, 4)" in str(report)
