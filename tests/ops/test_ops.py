"""Every op against numbers, against PyTorch and against its own laws; and the check itself against known mistakes."""

import math
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import examples
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import close

from minilora import ops
from minilora.backend import Array, get_array_module, normal_cdf, to_numpy
from minilora.ops.rows import row_max
from minilora.verify import Case, Report, check_gradient
from minilora.verify.case import apply, relative_error
from minilora.verify.op import THETA, S
from minilora.verify.op_cases import OPS
from minilora.verify.op_cases.attention import attention_mask
from minilora.verify.op_cases.positions import rope_tables
from minilora.verify.op_cases.tokens import pad
from minilora.verify.problems import problems

few = settings(max_examples=examples.count(20), deadline=None, derandomize=True)
seeds = st.integers(0, 2**32 - 1)
FLOAT32 = 1e-5  # of the largest number
EXACT = 1e-12


# ---- PyTorch's answer to each op: (torch, *inputs, the case's constants) -> y ----


def torch_rope(torch, x, D, theta):  # as a product of complex numbers
    T, H = x.shape[1], x.shape[2] // D
    a, b = x.unflatten(-1, (H, 2, D // 2)).unbind(-2)
    angle = torch.arange(T)[:, None, None] * theta ** (-2.0 * torch.arange(D // 2, dtype=x.dtype) / D)
    turned = torch.complex(a, b) * torch.polar(torch.ones_like(angle), angle)
    return torch.stack([turned.real, turned.imag], -2).reshape(x.shape)


def torch_attention(torch, *qkv, D, causal, padding, window, root):
    B, T, _ = qkv[0].shape
    real = np.ones((B, T), bool) if padding is None else padding
    see = np.tri(T, dtype=bool) if causal else np.ones((T, T), bool)
    if window:
        see &= ~np.tri(T, k=-window, dtype=bool) & (causal or np.tri(T, k=window - 1, dtype=bool))
    y = torch_softmax_attention(torch, *qkv, D=D, mask=see & real[:, None, None, :], scale=root and 1 / root)
    return y * torch.tensor(real)[..., None]


def torch_softmax_attention(torch, *qkv, D, mask, scale=None):
    q, k, v = (x.unflatten(-1, (-1, D)).transpose(1, 2) for x in qkv)
    see, grouped = torch.tensor(mask), q.shape[1] > k.shape[1]
    y = torch.nn.functional.scaled_dot_product_attention(q, k, v, see, scale=scale, enable_gqa=grouped)
    return y.transpose(1, 2).flatten(2)


def torch_relative_attention(torch, q, k, v, W, D, buckets, mask):
    b = W[torch.tensor(buckets)].permute(2, 0, 1) + torch.tensor(mask)
    q, k, v = (x.unflatten(-1, (-1, D)).transpose(1, 2) for x in (q, k, v))
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, b).transpose(1, 2).flatten(2)


def torch_projected_attention(torch, q, k, v, E, F, D):
    return torch_softmax_attention(torch, q, E @ k, F @ v, D=D, mask=np.ones((q.shape[1], len(E)), bool))


def torch_dense(torch, values, indptr, indices, width):
    rows = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
    x = torch.zeros((len(indptr) - 1, width), dtype=values.dtype)
    return x.index_put((torch.tensor(rows), torch.tensor(indices)), values)


def torch_cross_entropy(torch, z, targets, count):
    reduction, divisor = ("mean", 1) if count is None else ("sum", count)
    targets = torch.tensor(targets).flatten()
    return torch.nn.functional.cross_entropy(z.flatten(0, 1), targets, ignore_index=-100, reduction=reduction) / divisor


def torch_convolution(torch, x, W, window):
    convolve = torch.nn.functional.conv1d if x.ndim == 3 else torch.nn.functional.conv2d
    return convolve(x, W, None, *window[1:])


def torch_windows(torch, x, window):
    kernel, stride, padding, dilation = window
    X = torch.nn.functional.unfold(x, kernel, dilation, padding, stride)
    return X.transpose(1, 2).unflatten(1, window.outputs(tuple(x.shape[2:])))


def torch_low_rank_convolution(torch, x, A, B, s, window):
    return s * torch.einsum("or,nr...->no...", B, torch_convolution(torch, x, A, window))


def torch_kl(torch, z, t, T, labelled, count, reverse=False):
    log_q, log_p = (torch.log_softmax(x[torch.tensor(labelled)] / T, dim=-1) for x in (z, torch.tensor(t)))
    pair = (log_p, log_q) if reverse else (log_q, log_p)
    total = torch.nn.functional.kl_div(*pair, reduction="sum", log_target=True)
    return T**2 * total / (count or int(labelled.sum()))


TORCH: dict[str, Callable[..., Any]] = {
    "linear": lambda torch, x, W: torch.nn.functional.linear(x, W),
    "bias": lambda torch, b, x, W: torch.nn.functional.linear(torch.tensor(x), torch.tensor(W), b),
    "low rank": lambda torch, x, A, B, s: s * torch.nn.functional.linear(torch.nn.functional.linear(x, A), B),
    "low rank, on some tokens": lambda torch, x, A, B, s, mask: (
        s * torch.nn.functional.linear(x @ A.T, B) * torch.tensor(mask).unsqueeze(-1)
    ),
    "low rank, a B for each task": lambda torch, x, A, B, s, bounds: torch.cat(
        [s * (x[i:j] @ A.T) @ B_t.T for B_t, i, j in zip(B, bounds, bounds[1:], strict=False)]
    ),
    "low rank, embedding": lambda torch, A, B, ids, s: s * torch.nn.functional.embedding(torch.tensor(ids), A.T) @ B.T,
    "windows": torch_windows,
    **{f"convolution, {n}-D": torch_convolution for n in (1, 2)},
    **{f"low rank, convolution, {n}-D": torch_low_rank_convolution for n in (1, 2)},
    "linear, sparse rows": lambda torch, values, W, **x: torch_dense(torch, values, **x) @ W.T,
    "low rank, sparse rows": lambda torch, values, A, B, s, **x: s * torch_dense(torch, values, **x) @ A.T @ B.T,
    "embedding bag": lambda torch, values, W, indptr, indices, width: torch.nn.functional.embedding_bag(
        torch.tensor(indices), W, torch.tensor(indptr[:-1]), mode="sum", per_sample_weights=values
    ),
    "low-rank attention": torch_projected_attention,
    "low rank, with a bias": lambda torch, x, A, B, c, s: s * torch.nn.functional.linear(x @ A.T, B, c),
    "token rows, embedding": lambda torch, W, T, ids, i: torch.nn.functional.embedding(
        torch.tensor(ids), W.index_copy(0, torch.tensor(i), T)
    ),
    "token rows, linear": lambda torch, x, W, T, b, i: torch.nn.functional.linear(
        x, W.index_copy(0, torch.tensor(i), T), b
    ),
    "low rank, AdaLoRA": lambda torch, x, A, B, e, s: s * torch.nn.functional.linear(e * (x @ A.T), B),
    "orthogonality": lambda torch, A: torch.linalg.matrix_norm(A @ A.T - torch.eye(len(A))),
    "orthogonality, squared": lambda torch, A: torch.linalg.matrix_norm(A @ A.T - torch.eye(len(A))) ** 2,
    "low rank, LoHa": lambda torch, x, B1, A1, B2, A2, s: torch.nn.functional.linear(x, s * (B1 @ A1) * (B2 @ A2)),
    "Kronecker": lambda torch, x, w1, w2, s: torch.nn.functional.linear(x, s * torch.kron(w1, w2)),
    "Kronecker, low rank": lambda torch, x, w1, a, b, s: torch.nn.functional.linear(x, s * torch.kron(w1, a @ b)),
    "low rank, LoRA-XS": lambda torch, x, R, A, B, s: s * (x @ torch.tensor(A).T) @ R.T @ torch.tensor(B).T,
    "singular values, SVF": lambda torch, x, z, U, S, V: torch.nn.functional.linear(
        x, torch.tensor(U) @ torch.diag(torch.tensor(S) * (z - 1)) @ torch.tensor(V).T
    ),
    "quantised base, QLoRA": lambda torch, x, b, W: torch.nn.functional.linear(x, torch.tensor(W), b),
    "low rank, VeRA": lambda torch, x, d, b, A, B: b * (d * (x @ torch.tensor(A).T) @ torch.tensor(B).T),
    "magnitude, DoRA": lambda torch, u, A, B, m, W, s: m / (torch.tensor(W) + s * B @ A).norm(dim=1) * u,
    "rescaling": lambda torch, x, vector: vector * x,
    "layer norm": lambda torch, x, g, b, eps: torch.nn.functional.layer_norm(x, g.shape, g, b, eps),
    "rms norm": lambda torch, x, g, eps: torch.nn.functional.rms_norm(x, g.shape, g, eps),
    "gelu": lambda torch, x: torch.nn.functional.gelu(x),
    "gelu, tanh form": lambda torch, x: torch.nn.functional.gelu(x, approximate="tanh"),
    "tanh": lambda torch, x: torch.tanh(x),
    "select": lambda torch, x, b, t: x[torch.tensor(b), torch.tensor(t)],
    "swiglu": lambda torch, gate, up: torch.nn.functional.silu(gate) * up,
    "geglu": lambda torch, gate, up, approximate: torch.nn.functional.gelu(gate) * up,
    "geglu, tanh form": lambda torch, gate, up, approximate: torch.nn.functional.gelu(gate, approximate="tanh") * up,
    "relu": lambda torch, x: torch.relu(x),
    "mean of tokens": lambda torch, x, real: torch.stack(
        [row[torch.tensor(mine)].mean(0) for row, mine in zip(x, real, strict=True)]
    ),
    "rope": torch_rope,
    **dict.fromkeys((op for op in OPS if op.startswith("attention")), torch_attention),
    "attention, another number of keys": torch_softmax_attention,
    "relative positions": torch_relative_attention,
    "embedding": lambda torch, W, ids: torch.nn.functional.embedding(torch.tensor(ids), W),
    **dict.fromkeys((op for op in OPS if op.startswith("cross-entropy")), torch_cross_entropy),
    **dict.fromkeys((op for op in OPS if op.startswith("KL divergence")), torch_kl),
    "KL divergence, reversed": partial(torch_kl, reverse=True),
    "mean squared error": lambda torch, y, target: torch.nn.functional.mse_loss(y, torch.tensor(target)),
    "dropout": lambda torch, x, keep: x * torch.tensor(keep),
}


# ---- the ops, each on inputs of some size ----

each_op = pytest.mark.parametrize("op", OPS)
on_a_gpu = pytest.mark.parametrize("xp", ["fakecupy", pytest.param("cupy", marks=pytest.mark.gpu)], indirect=True)


def drawn(op: str, data: st.DataObject) -> tuple[Case, np.random.Generator]:
    rng = np.random.default_rng(data.draw(seeds))
    return OPS[op].draw(lambda low=1, high=4: data.draw(st.integers(low, high)), rng), rng


def some(op: str, rng: np.random.Generator) -> Case:
    return OPS[op].draw(lambda low=1, high=4: int(rng.integers(low, high + 1)), rng)


def cubes(op: str, rng: np.random.Generator) -> Case:
    """Every size the same: a gradient that is transposed by mistake still has the right shape."""
    return OPS[op].draw(lambda low=1, high=4: max(low, min(high, 3)), rng)


def cast(case: Case, change: Callable[[np.ndarray], Array]) -> Case:
    """The case with every input and dy changed."""
    return case._replace(dy=change(case.dy), inputs={name: change(x) for name, x in case.inputs.items()})


def output(op: str, case: Case) -> Array:
    return OPS[op].forward(*case.inputs.values(), **case.constants)[0]


def results(op: str, case: Case) -> list[Array]:
    """y and the gradients"""
    return [output(op, case), *apply(OPS[op].grad, case)]


def arrays_in(value: Any) -> Iterator[np.ndarray]:
    if isinstance(value, np.ndarray):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from arrays_in(item)


# ---- what holds for every op ----


@each_op
@few
@given(data=st.data())
def test_gradients_agree_with_central_differences_and_the_complex_step(op, data):
    case, rng = drawn(op, data)
    OPS[op].check(case, rng).raise_if_wrong()


# the ops whose forward is called as that of a problem is
PROBLEMS = {
    "layer norm": "layer_norm", "rms norm": "rms_norm", "gelu, tanh form": "gelu", "swiglu": "swiglu",
    "embedding": "embedding", "cross-entropy": "cross_entropy",
    "mean squared error": "mean_squared_error",
}  # fmt: skip


@pytest.mark.parametrize("op", PROBLEMS)
def test_an_op_is_its_problem_its_output_and_gradients_are_those_of_the_textbook(op):
    problem = problems()[PROBLEMS[op]]
    for case in problem.cases():
        y = problem.forward(*case.inputs.values(), **case.constants)
        for mine, true in zip(results(op, case), [y, *apply(problem.backward, case).values()], strict=True):
            assert relative_error(mine, true) < EXACT


@pytest.mark.oracle
@each_op
def test_outputs_and_gradients_agree_with_pytorch(op, rng):
    torch = pytest.importorskip("torch")
    for _ in range(3):
        case = some(op, rng)
        reference = partial(TORCH[op], torch)
        expected = reference(*map(torch.tensor, case.inputs.values()), **case.constants).numpy()
        assert close(output(op, case), expected, EXACT)
        OPS[op].check(case, rng, torch=reference).raise_if_wrong()


@each_op
def test_float32_stays_float32_and_agrees_with_float64(op, rng):
    single = cast(some(op, rng), lambda x: x.astype(np.float32))
    double = cast(single, lambda x: x.astype(np.float64))
    for result, exact in zip(results(op, single), results(op, double), strict=True):
        assert result.dtype == np.float32
        assert close(result, exact, FLOAT32)


@each_op
@on_a_gpu
def test_a_gpu_array_gives_the_numbers_and_the_dtypes_of_numpy(op, rng, xp):
    case = cast(some(op, rng), lambda x: x.astype(np.float32))
    moved = results(op, cast(case, xp.asarray))
    assert all(get_array_module(result) is xp for result in moved)
    rounds_alike = xp.__name__ != "cupy" and op not in ("gelu", "geglu")  # whose erf is the library's own there
    for result, expected in zip(map(to_numpy, moved), results(op, case), strict=True):
        assert result.dtype == expected.dtype
        assert close(result, expected, 0 if rounds_alike else FLOAT32)


@each_op
def test_no_op_writes_to_its_arguments_to_dy_or_to_its_cache_and_backward_may_run_again(op, rng):
    case = some(op, rng)
    dy, inputs = case.dy, list(case.inputs.values())
    for array in (dy, *inputs):
        array.setflags(write=False)
    _, cache = OPS[op].forward(*inputs, **case.constants)
    for array in arrays_in(cache):
        array.setflags(write=False)
    first, second = (OPS[op].backward(dy, cache, *inputs, **case.constants) for _ in range(2))
    assert all(a.tobytes() == b.tobytes() for a, b in zip(first, second, strict=True))
    assert not any(np.shares_memory(a, b) for a in first for b in [dy, *inputs, *arrays_in(cache)])


# ---- laws that need no reference ----


@few
@given(data=st.data())
def test_Bt_dB_equals_dA_At(data):
    case, _ = drawn("low rank", data)
    _, A, B = case.inputs.values()
    _, dA, dB = apply(OPS["low rank"].grad, case)
    np.testing.assert_allclose(B.T @ dB, dA @ A.T, rtol=0, atol=EXACT * np.abs(dA).max() * np.abs(A).max() * 10)


def test_dA_and_dx_are_exactly_zero_where_B_is_but_dB_is_not(rng):
    x, A, B = some("low rank", rng).inputs.values()
    B = 0 * B
    dx, dh = ops.lora_backward(rng.standard_normal((*x.shape[:-1], len(B))), A, B, S)
    assert not dx.any()
    assert not ops.lora_A_gradients(dh, x).any()
    dy = rng.standard_normal((*x.shape[:-1], len(B)))
    assert ops.lora_B_gradients(dy, ops.lora_forward(x, A, B, S)[1].h, S).all()


def test_a_row_with_nothing_to_look_at_sees_everything_as_if_there_were_no_mask_and_in_float32_alike(rng):
    padding = np.array([[False, False, True, True]])
    for dtype in ("float64", "float32"):
        q, k, v = (rng.standard_normal((1, 4, 3)).astype(dtype) for _ in "qkv")
        masked, _ = ops.attention_forward(q, k, v, ops.attention_mask(np, 4, True, padding, dtype), 3)
        free, _ = ops.attention_forward(q, k, v, np.zeros((4, 4), dtype), 3)
        lost = free[0, :2] if dtype == "float64" else np.broadcast_to(v[0].mean(axis=0), (2, 3))
        np.testing.assert_allclose(masked[0, :2], lost, rtol=0, atol=1e-6)
        assert np.abs(masked[0, 2:] - free[0, 2:]).max() > 1e-2


@pytest.mark.parametrize("op", [name for name in OPS if name.startswith("attention")])
def test_shifting_every_key_changes_nothing_so_dk_sums_to_zero_over_the_keys(op, rng):
    """The rows of dS sum to 0."""
    case = some(op, rng)
    k = case.inputs["k"]
    shifted = case._replace(inputs=case.inputs | {"k": k + rng.standard_normal(k.shape[-1])})
    assert close(output(op, shifted), output(op, case), EXACT)
    _, dk, _ = apply(OPS[op].grad, case)
    np.testing.assert_allclose(dk.sum(axis=1), 0, atol=EXACT)


@few
@given(data=st.data())
def test_rows_of_the_gradient_of_the_logits_sum_to_zero_and_ignored_ones_are_zero(data):
    case, _ = drawn("cross-entropy", data)
    (dlogits,) = apply(OPS["cross-entropy"].grad, case)
    np.testing.assert_allclose(dlogits.sum(axis=-1), 0, atol=EXACT)
    assert not dlogits[:, 1].any()
    assert dlogits[:, 0].all()


def test_losses_and_gradients_of_the_parts_of_a_batch_add_up(rng):
    logits, targets = rng.standard_normal((5, 3, 7)), rng.integers(0, 7, (5, 3))
    targets[1, 2] = ops.IGNORE
    whole, cache = ops.cross_entropy_forward(logits, targets)
    parts = [ops.cross_entropy_forward(logits[i], targets[i], count=14) for i in (slice(2), slice(2, 5))]
    assert sum(L for L, _ in parts) == pytest.approx(whole, rel=EXACT)
    together = np.concatenate([ops.cross_entropy_backward(0.3, c) for _, c in parts])
    assert close(together, ops.cross_entropy_backward(0.3, cache), EXACT)


def test_where_no_position_carries_a_label_the_loss_and_its_gradient_are_zero(rng):
    L, cache = ops.cross_entropy_forward(rng.standard_normal((2, 3, 5)), np.full((2, 3), ops.IGNORE))
    assert L == 0
    assert not ops.cross_entropy_backward(1.7, cache).any()


@pytest.mark.each_value
@pytest.mark.parametrize("scale", [1e2, 1e4])
@pytest.mark.parametrize(
    "op",
    ["gelu", "gelu, tanh form", "tanh", "swiglu", "geglu", "geglu, tanh form", "relu", "cross-entropy",
     "attention, causal", "layer norm", "rms norm"],
)  # fmt: skip
def test_large_numbers_overflow_nothing(op, scale, rng):
    case = cast(some(op, rng), lambda x: np.asarray(scale * x, np.float32))
    assert all(np.isfinite(result).all() for result in results(op, case))


@few
@given(x=st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_in_float32_the_normal_distribution_is_exact_to_two_roundings_at_every_magnitude(x):
    near = np.float32([x, x / 2**20, np.tanh(x), 8 * np.tanh(x)])
    x = np.unique(np.concatenate([near, np.linspace(-8, 8, 20001), np.geomspace(1e-45, 1e19, 200)]).astype(np.float32))
    with np.errstate(over="ignore"):  # of x²
        Phi = normal_cdf(x)
    exact = np.vectorize(math.erfc)(-x.astype(np.float64) * math.sqrt(0.5)) / 2
    assert Phi.dtype == np.float32
    assert np.abs(Phi - exact).max() < np.finfo(np.float32).eps
    assert np.array_equal(Phi[np.abs(x) > 6.5], np.float32(x > 0)[np.abs(x) > 6.5])


@pytest.mark.parametrize("op", ["gelu", "gelu, tanh form", "swiglu", "geglu", "geglu, tanh form"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_without_a_cache_an_activation_gives_the_same_bits(op, dtype, rng):
    case = OPS[op].draw(lambda low=1, high=4: high, rng)
    inputs = [x.astype(dtype) for x in case.inputs.values()]
    y, cache = OPS[op].forward(*inputs, **case.constants)
    again, nothing = OPS[op].forward(*inputs, **case.constants, needs_cache=False)
    np.testing.assert_array_equal(again, y)
    assert cache is not None
    assert nothing is None


@pytest.mark.each_value
@pytest.mark.parametrize("shape", [(1,), (3, 1), (2, 5), (2, 3, 4, 7), (4, 0, 3)])
@pytest.mark.parametrize("dtype", ["float32", "float64", "complex128"])
def test_the_maximum_of_a_row_is_the_largest_of_it_and_nan_where_one_is(shape, dtype, rng):
    x = rng.standard_normal(shape).astype(dtype)
    np.testing.assert_array_equal(row_max(x), x.max(axis=-1, keepdims=True))
    if x.size:
        x[..., -1] = np.nan
        assert np.isnan(row_max(x)).all()


def test_in_float32_gelu_needs_no_scipy_and_in_float64_says_that_it_does(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.special", None)  # makes the import fail
    ops.gelu_forward(np.ones(3, np.float32))
    with pytest.raises(ImportError, match="needs SciPy in float64: pip install scipy"):
        ops.gelu_forward(np.ones(3))


@few
@given(seed=seeds, C=st.integers(3, 6))
def test_layer_norm_ignores_shift_and_scale_so_dx_is_orthogonal_to_ones_and_to_xhat(seed, C):
    rng = np.random.default_rng(seed)
    x, dy, g, b = (rng.standard_normal(shape) for shape in ((4, C), (4, C), C, C))
    y, cache = ops.layer_norm_forward(x, g, b, eps=0)
    assert close(ops.layer_norm_forward(2.5 * x - 0.8, g, b, eps=0)[0], y, 1e-10)
    dx = ops.layer_norm_backward(dy, cache, g)
    scale = np.abs(dx).max()
    assert scale > 0
    np.testing.assert_allclose(dx.sum(axis=-1), 0, atol=1e-11 * scale)
    np.testing.assert_allclose((dx * cache.xhat).sum(axis=-1), 0, atol=1e-11 * scale)


@few
@given(seed=seeds, C=st.integers(2, 6))
def test_rms_norm_ignores_scale_so_dx_is_orthogonal_to_x(seed, C):
    rng = np.random.default_rng(seed)
    x, dy, g = (rng.standard_normal(shape) for shape in ((4, C), (4, C), C))
    y, cache = ops.rms_norm_forward(x, g, eps=0)
    assert close(ops.rms_norm_forward(2.5 * x, g, eps=0)[0], y, EXACT)
    dx = ops.rms_norm_backward(dy, cache, g)
    np.testing.assert_allclose((dx * x).sum(axis=-1), 0, atol=1e-11 * np.abs(dx).max() * np.abs(x).max())


@few
@given(data=st.data())
def test_rope_preserves_lengths_and_its_backward_is_its_inverse(data):
    case, _ = drawn("rope", data)
    (x,) = case.inputs.values()
    y = output("rope", case)
    np.testing.assert_allclose((y * y).sum(-1), (x * x).sum(-1), rtol=EXACT)
    assert close(OPS["rope"].grad(y, x, **case.constants)[0], x, EXACT)


def test_rope_turns_pair_i_at_position_t_by_t_theta_to_the_minus_2i_over_D():
    D, t, i = 6, 4, 2
    x = np.zeros((1, 5, D))
    x[0, t, i] = 1.0
    y, angle = ops.rope_forward(x, *rope_tables(x, D)), t * THETA ** (-2 * i / D)
    assert y[0, t, [i, i + D // 2]] == pytest.approx([math.cos(angle), math.sin(angle)])
    assert np.count_nonzero(y) == 2


def test_rope_scores_depend_on_the_distance_alone(rng):
    q, k = (np.broadcast_to(rng.standard_normal(6), (1, 9, 6)) for _ in "qk")  # one vector at every position
    tables = rope_tables(q, 6)
    scores = ops.rope_forward(q, *tables)[0] @ ops.rope_forward(k, *tables)[0].T
    for distance in range(-8, 9):
        diagonal = np.diagonal(scores, distance)
        np.testing.assert_allclose(diagonal, diagonal[0], rtol=0, atol=EXACT * 10)
    assert np.ptp(scores) > 1e-3


@pytest.mark.parametrize("shape", [(), (1,), (3, 1), (2, 3), (6,), (3, 2, 1)])
def test_a_loss_broadcasts_no_target(shape, rng):
    with pytest.raises(ValueError, match=r"logits \(3, 2, 5\) need targets \(3, 2\)"):
        ops.cross_entropy_forward(rng.standard_normal((3, 2, 5)), np.zeros(shape, int))
    with pytest.raises(ValueError, match=r"and \(3, 2\) is needed"):
        ops.mean_squared_error_forward(rng.standard_normal((3, 2)), np.zeros(shape))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("causal", [True, False])
def test_padding_changes_no_real_token_of_attention(causal, side, rng):
    T, D, lengths = 6, 2, [6, 4, 1, 0]
    padding = pad(side, T, lengths)
    q, k, v = (rng.standard_normal((4, T, n * D)) for n in (4, 2, 2))
    padded, _ = ops.attention_forward(q, k, v, attention_mask(q, causal, padding), D)
    for i, real in enumerate(padding[:3]):
        alone = [x[i : i + 1, real] for x in (q, k, v)]
        y, _ = ops.attention_forward(*alone, attention_mask(alone[0], causal, None), D)
        assert close(padded[i, real], y[0], EXACT)
    assert np.isfinite(padded).all()


def test_there_is_no_mask_where_every_query_may_look_at_every_key():
    padding = np.array([[True, True]])
    assert ops.attention_mask(np, 2, False, None, "float64") is None
    assert ops.attention_mask(np, 1, True, None, "float64", start=4) is None
    assert ops.attention_mask(np, 1, True, None, "float64", start=4, window=5) is None
    assert ops.attention_mask(np, 1, True, None, "float64", start=4, window=4) is not None
    assert ops.attention_mask(np, 2, True, None, "float64") is not None
    assert ops.attention_mask(np, 2, False, padding, "float64") is not None


def test_a_causal_query_looks_at_no_later_key(rng):
    q, k, v = (rng.standard_normal((2, 5, 6)) for _ in "qkv")
    mask = attention_mask(q, True, None)
    y, _ = ops.attention_forward(q, k, v, mask, 3)
    k[:, 3], v[:, 3] = 9.1, -7.3
    changed, _ = ops.attention_forward(q, k, v, mask, 3)
    assert np.array_equal(y[:, :3], changed[:, :3])
    assert (y[:, 3:] != changed[:, 3:]).all()


@pytest.mark.parametrize("window", [1, 2, 5, 7])
def test_without_a_causal_mask_a_window_reaches_as_far_ahead_as_back(window):
    mask = ops.attention_mask(np, 6, False, None, "float64", window=window)
    assert (mask is None) == (window >= 6)
    for i, j in np.ndindex((6, 6)):
        assert mask is None or (mask[i, j] == 0) == (abs(i - j) < window)


@pytest.mark.parametrize("start", [0, 3])
@pytest.mark.parametrize("window", [1, 2, 5, 7])
def test_a_query_sees_its_own_key_and_those_before_it_up_to_the_window(window, start):
    mask = ops.attention_mask(np, 6, True, None, "float64", start, window)
    for i, j in np.ndindex(mask.shape):
        assert (mask[i, j] == 0) == (start + i - window < j <= start + i)


def test_a_window_of_all_the_tokens_changes_no_bit_and_one_of_fewer_does(rng):
    q, k, v, dy = (rng.standard_normal((2, 5, 6)) for _ in "qkvy")

    def plain(window):
        y, cache = ops.attention_forward(q, k, v, attention_mask(q, True, None, window), 3)
        return [y, *ops.attention_backward(dy, cache)]

    def blockwise(window):
        y, cache = ops.blockwise_attention_forward(q, k, v, 3, True, None, 2, window)
        return [y, *ops.blockwise_attention_backward(dy, cache)]

    for run in (plain, blockwise):
        free = run(None)
        for window in (5, 6, 10**9):
            assert all(a.tobytes() == b.tobytes() for a, b in zip(run(window), free, strict=True))
        assert not any(np.allclose(a, b) for a, b in zip(run(4), free, strict=True))


# ---- the check is checked ----

# Those that verify/problems/ does not name (test_diagnose.py runs its own through the same check):
# op, the mistake, and (right, dy, cache, *inputs) -> the wrong gradients, where `right` are the right ones
MISTAKES: list[tuple[str, str, Callable[..., Any]]] = [
    ("linear", "dW is transposed", lambda g, *_: (g[0], g[1].T)),
    ("linear", "dW is off by one in a million", lambda g, *_: (g[0], (1 + 1e-6) * g[1])),
    ("linear", "dW is off by so little that only the complex step sees it", lambda g, *_: (g[0], (1 + 1e-9) * g[1])),
    ("linear", "dW of the first sequence alone", lambda g, dy, c, x, W: (g[0], dy[0].T @ x[0])),
    ("linear", "dW is not finite", lambda g, *_: (g[0], g[1] * np.nan)),
    ("bias", "db is a mean", lambda g, dy, *_: (dy.mean((0, 1)),)),
    ("bias", "db is summed over the batch only", lambda g, dy, *_: (dy.sum(0),)),
    ("low rank, embedding", "dA without the scaling", lambda g, *_: (g[0] / S, g[1])),
    ("low rank, embedding", "dB without the scaling", lambda g, *_: (g[0], g[1] / S)),
    ("low rank, embedding", "dA[:, ids] += dh", lambda g, dy, c, A, B: (overwritten(S * dy @ B, c.x, A.T).T, g[1])),
    ("low rank, embedding", "dB from A and not from h", lambda g, dy, c, A, B: (g[0], S * dy.sum(1).T @ A.T[:3])),
    ("linear, sparse rows", "dW without the values", lambda g, dy, x, *_: (g[0], dy.T @ ones(x))),
    ("linear, sparse rows", "dW of the first row that has one", lambda g, dy, x, *_: (g[0], dy[1:2].T @ x[1:2])),
    ("linear, sparse rows", "dW[:, i] = the last", lambda g, dy, x, *_: (g[0], last_written(dy, x))),
    ("low rank, sparse rows", "dA without the scaling", lambda g, *_: (g[0], g[1] / S, g[2])),
    (
        "low rank, sparse rows",
        "dA without the values",
        lambda g, dy, c, v, A, B: (g[0], S * (dy @ B).T @ ones(c.x), g[2]),
    ),
    ("embedding bag", "dW of the unweighted sum", lambda g, dy, X, *_: (g[0], (dy.T @ ones(X)).T)),
    ("embedding bag", "dW[v] = the last", lambda g, dy, X, *_: (g[0], last_written(dy, X).T)),
    ("embedding bag", "the weights' gradient is that of the bag's sum", lambda g, dy, X, v, W: (v * g[0], g[1])),
    ("low-rank attention", "dk by F", lambda g, dy, c, q, k, v, E, F: (g[0], F.T @ np.linalg.solve(E.T, g[1]), *g[2:])),
    ("low-rank attention", "dE transposed", lambda g, *_: (*g[:3], g[3].swapaxes(0, 1), g[4])),
    (
        "low-rank attention",
        "dF of the first sequence alone",
        lambda g, dy, c, q, k, v, E, F: (*g[:4], of_the_first(dy, c, E, F)),
    ),
    ("attention, grouped", "dk of one head of each group", lambda g, *a: (g[0], first_head_dk(*a), g[2])),
    ("attention, sliding window", "the window of the backward is a key wider", lambda g, *a: another_window(*a, 3)),
    ("attention, sliding window", "the window of the backward is a key narrower", lambda g, *a: another_window(*a, 1)),
    (
        "attention in blocks, sliding window",
        "the window of the backward is a key wider",
        lambda g, dy, c, *_: ops.blockwise_attention_backward(dy, c._replace(window=c.window + 1)),
    ),
    (
        "attention in blocks, sliding window",
        "the window of the backward is a key narrower",
        lambda g, dy, c, *_: ops.blockwise_attention_backward(dy, c._replace(window=c.window - 1)),
    ),
    ("gelu", "the slope of the tanh form", lambda g, dy, c, x: (dy * ops.gelu_tanh_forward(x)[1],)),
    ("gelu, tanh form", "the slope of the exact GELU", lambda g, dy, c, x: (dy * ops.gelu_forward(x)[1],)),
    ("tanh", "the slope at y and not at x", lambda g, dy, y, x: (dy * (1 - np.tanh(y) ** 2),)),
    (
        "geglu",
        "the slope of the tanh form",
        lambda g, dy, c, gate, up: (dy * up * ops.gelu_tanh_forward(gate)[1], g[1]),
    ),
    ("geglu", "dup without the gelu", lambda g, dy, c, gate, up: (g[0], dy * gate)),
    ("geglu, tanh form", "the slope at up", lambda g, dy, c, gate, up: (dy * up * ops.gelu_tanh_forward(up)[1], g[1])),
    ("relu", "the slope of the other side", lambda g, dy, positive, x: (dy * ~positive,)),
    ("mean of tokens", "a mean over the padding too", lambda g, dy, share, x: (0 * x + dy[:, None] / x.shape[1],)),
    (
        "attention, symmetric window",
        "the window of the backward hides later keys",
        lambda g, dy, c, *qkv: ops.attention_backward(
            dy, ops.attention_forward(*qkv, attention_mask(qkv[0], True, None, 2), 3)[1]
        ),
    ),
    (
        "attention in blocks, symmetric window",
        "the window of the backward hides later keys",
        lambda g, dy, c, *_: ops.blockwise_attention_backward(dy, c._replace(causal=True)),
    ),
    ("attention, another root", "√D", lambda g, dy, c, *_: ops.attention_backward(dy, c)),
    (
        "relative positions",
        "dW counts a bucket once",
        lambda g, dy, c, q, k, v, W: (
            *g[:3],
            overwritten(ops.attention_bias_gradients(dy, c[0]).transpose(1, 2, 0), c[1], W),
        ),
    ),
    (
        "relative positions",
        "dW of distances that are turned around",
        lambda g, dy, c, *_: (
            *g[:3],
            ops.relative_bias_gradients(ops.attention_bias_gradients(dy, c[0]).swapaxes(1, 2), c[1], 6),
        ),
    ),
    ("select", "the first token always", lambda g, dy, c, x: (ops.select_backward(dy, (c[0], 0 * c[1], c[2])),)),
]


def ones(x):
    return ops.CSR(x.indptr, x.indices, np.ones_like(x.values), x.shape[1])


def last_written(dy, x):
    dW = np.zeros((dy.shape[1], x.shape[1]))
    for row, (i, v) in zip(dy, x, strict=True):
        dW[:, i] = np.outer(row, v)
    return dW


def of_the_first(dy, cache, E, F):
    *_, dv_m = ops.projected_attention_backward(dy, cache, E, F)
    return ops.projection_gradients(dv_m[:1], cache.v[:1])


def first_head_dk(dy, cache, *_):
    dy = dy.reshape(3, 3, -1, 3, 3).copy()  # B, T, G, R, D
    dy[:, :, :, 1:] = 0
    return ops.attention_backward(dy.reshape(3, 3, -1), cache)[1]


def another_window(dy, cache, q, k, v, window):
    T, D = q.shape[1], cache.k.shape[-1]
    mask = ops.attention_mask(np, T, True, None, q.dtype, window=window)
    return ops.attention_backward(dy, ops.attention_forward(q, k, v, mask, D)[1])


def overwritten(dy, ids, W):
    dW = np.zeros_like(W)
    dW[ids] += dy
    return dW


@pytest.mark.parametrize(("op", "mistake", "wrong"), MISTAKES, ids=[f"{op}: {what}" for op, what, _ in MISTAKES])
def test_the_check_fails_a_known_mistake_and_only_the_tensor_it_is_in(op, mistake, wrong, rng):
    case, seen = cubes(op, rng), {}

    def grad(dy, *inputs, **constants):
        cache = OPS[op].forward(*inputs, **constants)[1]
        seen["right"] = OPS[op].backward(dy, cache, *inputs, **constants)
        seen["wrong"] = wrong(seen["right"], dy, cache, *inputs)
        return seen["wrong"]

    report = OPS[op].check(case, rng, grad)
    assert [row.ok for row in report.rows] == [np.array_equal(*pair) for pair in zip(*seen.values(), strict=True)]
    with pytest.raises(AssertionError, match="a gradient is wrong"):
        report.raise_if_wrong()
    assert "WRONG" in str(report)


def test_the_check_wants_one_gradient_for_each_input(rng):
    with pytest.raises(ValueError, match="grad returns 2 arrays; it must return 1"):
        check_gradient(lambda x: x, lambda dy, x: (dy, dy), {"x": np.ones(3)}, rng=rng)


def constant(x):
    return x - x + 1.0  # its gradient is 0


def test_a_gradient_of_zero_by_every_method_is_refused_unless_it_is_named(rng):
    x = {"x": rng.standard_normal(4)}
    with pytest.raises(ValueError, match=r"zero by every method.*zero=\['x'\]"):
        check_gradient(constant, lambda dy, x: (0 * dy,), x, rng=rng)
    assert check_gradient(constant, lambda dy, x: (0 * dy,), x, rng=rng, zero=["x"]).ok


@pytest.mark.parametrize(
    ("f", "grad"),
    [
        (constant, lambda dy, x: (0.5 * dy,)),
        (lambda x: 2 * x, lambda dy, x: (0 * dy,)),
        (lambda x: 2 * x, lambda dy, x: (2 * dy,)),
    ],
    ids=["the gradient is not zero", "the slope is not zero", "neither is"],
)
def test_what_is_named_zero_must_be_zero(f, grad, rng):
    assert not check_gradient(f, grad, {"x": rng.standard_normal(4)}, rng=rng, zero=["x"]).ok


def test_a_function_that_is_no_number_is_refused_and_such_a_gradient_does_not_pass(rng):
    with pytest.raises(ValueError, match="f is not finite"):
        check_gradient(lambda x: x * np.nan, lambda dy, x: (dy,), {"x": np.ones(3)}, rng=rng)
    assert not check_gradient(lambda x: 2 * x, lambda dy, x: (dy * np.nan,), {"x": np.ones(3)}, rng=rng).ok


def test_a_report_of_nothing_is_not_a_pass(rng):
    assert not Report().ok
