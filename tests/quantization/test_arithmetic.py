"""Arithmetic in 16 bits: NumPy's and PyTorch's bits, and the laws of what is lost."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import build

import minilora
from minilora import ops
from minilora.data import Batch
from minilora.models.quantized import quantize
from minilora.nn.optim import AdamW
from minilora.quantization.arithmetic import HALF, BFloat16Array, Float16Array, Half, half_precision
from minilora.training import loss_and_gradients

NAMES = sorted(HALF)
EVERY = np.arange(2**16, dtype=np.uint16)
TABLES = {"float16": EVERY.view(np.float16).astype(np.float32), "bfloat16": (EVERY.astype(np.uint32) << 16).view("f4")}
bits = st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=50).map(
    lambda u: np.array(u, np.uint32).view(np.float32)
)
half = pytest.mark.parametrize("name", NAMES)


def numbers(name):
    """Every finite number of the format, in order, one zero."""
    table = TABLES[name]
    return np.unique(table[np.isfinite(table)])


@half
def test_a_number_of_the_format_stays_as_it_is_to_the_sign_of_zero(name):
    table = TABLES[name]
    table = table[~np.isnan(table)]
    assert np.array_equal(np.asarray(HALF[name].of(table)).view("u4"), table.view("u4"))
    assert np.isnan(HALF[name].of([np.nan, -np.nan])).all()


@half
def test_between_two_numbers_the_nearer_is_taken_and_on_a_tie_the_one_with_an_even_last_bit(name):
    low, high = numbers(name)[:-1], numbers(name)[1:]
    half_way = ((low.astype(np.float64) + high) / 2).astype(np.float32)
    odd = low.astype(np.float64) / (high.astype(np.float64) - low) % 2 == 1  # a whole number of gaps
    assert len(low) > 2**15
    assert np.array_equal(np.asarray(HALF[name].of(half_way)), np.where(odd, high, low))
    with np.errstate(over="ignore"):
        assert np.array_equal(np.asarray(HALF[name].of(np.nextafter(half_way, np.float32(-np.inf)))), low)
        assert np.array_equal(np.asarray(HALF[name].of(np.nextafter(half_way, np.float32(np.inf)))), high)


@given(bits)
def test_float16_is_numpys_to_the_bit(x):
    with np.errstate(all="ignore"):
        wanted, found = x.astype(np.float16).astype(np.float32), np.asarray(Float16Array.of(x))
    number = ~np.isnan(x)
    assert np.isnan(found[~number]).all()
    assert np.array_equal(found[number].view("u4"), wanted[number].view("u4"))


@half
def test_the_constants_are_those_of_the_format(name):
    H, finite = HALF[name], numbers(name)
    assert H.largest == finite[-1]
    assert H.smallest == finite[finite > 0][0]
    gaps = np.diff(finite[finite > 0].astype(np.float64))
    assert 2 * H.smallest_normal == finite[finite > 0][np.argmax(gaps > H.smallest)]  # as far apart as below it
    assert finite[np.searchsorted(finite, 1) + 1] == 1 + 2 * H.u


# ---- what is a Half ----


@half
@given(seed=st.integers(0, 99))
def test_whatever_is_computed_of_a_half_is_one_and_holds_numbers_of_its_format_alone(name, seed):
    H, rng = HALF[name], np.random.default_rng(seed)
    x, y = H.of(rng.standard_normal((3, 4))), rng.standard_normal((4,)).astype(np.float32)
    z = x.copy()
    z += 0.3
    z[1] = y
    total = np.zeros((5, 4), np.float32)
    np.add.at(total, np.array([0, 2, 0]), x)  # a plain array, in which halves are added up
    found = {
        "an array beside it": x * y,
        "the other way": y * x,
        "float64": x * y.astype(np.float64),
        "a number": 0.1 * x,
        "in place": z,
        "sum": x.sum(axis=0),
        "sum of all": x.sum(),
        "mean": x.mean(),
        "product": x @ x.T,
        "dot": np.dot(x, x.T),
        "einsum": np.einsum("ij,kj->ik", x, x),
        "function": np.exp(x),
        "out": np.exp(x, out=x.copy()),
        "concatenate": np.concatenate([y[None], x]),
        "where": np.where(x > 0, x, 0.3),
        "tile": np.tile(x, (2, 1)),
        "zeros": np.zeros_like(x) + 0.3,
        "svd": np.linalg.svd(x)[1],
        "several": np.split(x / 3, 3)[1],
        "norm": np.linalg.norm(x),
        "cumulative": np.cumsum(x),
    }
    assert {what for what, value in found.items() if type(value) is not H} == set()
    found["add.at"] = total
    off = {what for what, v in found.items() if not np.array_equal(np.asarray(v), np.asarray(H.of(v)))}
    assert off == set()
    assert type(x > 0) is np.ndarray
    assert type(x.argmax(axis=0)) in (np.ndarray, H)


@half
def test_in_place_writes_into_the_same_memory_half_or_not(name):
    H = HALF[name]
    x, plain = H.of(np.full(3, 1.0)), np.ones(3, np.float32)
    first, also = x, plain
    x += 0.3
    plain *= H.of([0.3])
    assert x is first
    assert plain is also
    assert np.array_equal(np.asarray(x), np.asarray(H.of(1.3 * np.ones(3))))
    assert np.array_equal(plain, np.asarray(H.of(0.3 * np.ones(3))))


# ---- the laws ----


@half
def test_one_and_up_to_a_unit_roundoff_is_one(name):
    H = HALF[name]
    one = H.of(1.0)
    assert one + H.u == 1  # a tie, and 1 is even
    assert one + H.of(H.u * (1 + 2 * H.u)) == 1 + 2 * H.u
    assert one - H.of(H.u) == 1 - H.u  # below 1 numbers are half as far apart
    assert Float16Array.of(1.0) + Float16Array.of(2.0**-12) == 1
    assert BFloat16Array.of(1.0) + BFloat16Array.of(2.0**-9) == 1


@half
@given(m=st.floats(1, 2, exclude_max=True), e=st.integers(-14, 14))
def test_a_normal_number_is_rounded_by_no_more_than_a_unit_roundoff(name, m, e):
    x = np.float32(m * 2.0**e)
    assert abs(np.float64(HALF[name].of(x)) - x) <= HALF[name].u * 2.0**e


def test_a_gradient_of_1e_8_is_zero_in_float16_and_not_in_bfloat16():
    assert Float16Array.of(1e-8) == 0
    assert Float16Array.of(2.0**-25) == 0
    assert Float16Array.of(np.nextafter(np.float32(2.0**-25), np.float32(1))) == 2.0**-24
    assert np.isclose(float(BFloat16Array.of(1e-8)), 1e-8, rtol=BFloat16Array.u)


@half
@given(w=st.floats(0.01, 1), share=st.floats(0.01, 0.49), sign=st.sampled_from([-1.0, 1.0]))
def test_updates_below_half_an_ulp_are_lost_without_a_float32_copy_and_add_up_in_one(name, w, share, sign):
    H = HALF[name]
    w = H.of(w)
    spacing = 2 * H.u * 2.0 ** math.floor(math.log2(float(w)))
    step = np.float32(sign * share * spacing / 2)  # below a power of two numbers are half as far apart
    without, copy, steps = w.copy(), np.float32(w), 400
    for _ in range(steps):
        without = without + step
        copy = np.float32(copy + step)
    assert without == w
    assert H.of(copy) != w
    assert np.isclose(float(copy), float(w) + steps * float(step), rtol=1e-4)


@given(st.floats(2.0**-60, 2.0**-26), st.floats(1, 60000))
def test_what_is_lost_with_scale_1_is_kept_with_a_scale_that_brings_it_into_range(g, target):
    S = 2.0 ** math.floor(math.log2(target / g))
    assert Float16Array.of(g) == 0
    assert np.isclose(float(Float16Array.of(S * g)) / S, g, rtol=Float16Array.u)


def test_in_bfloat16_adams_second_moment_neither_decays_nor_grows():
    """0.999 v is v: its distance from v is below half a unit in the last place."""
    v = BFloat16Array.of(numbers("bfloat16")[20000 : 20000 + 2**9])
    assert np.array_equal(0.999 * v, v)
    assert (0.999 * Float16Array.of(np.linspace(1, 1.9, 99)) < Float16Array.of(np.linspace(1, 1.9, 99))).all()


# ---- a model ----


@pytest.fixture
def adapted():
    """A llama whose LoRA has B ≠ 0, and a batch."""
    model, rng = build("llama", dtype="float32"), np.random.default_rng(0)
    minilora.attach_lora(model, "all-linear", r=2, alpha=4, rng=0)
    for path, parameter in model.trainable_parameters().items():
        if path.endswith("lora_B"):
            parameter.data = rng.standard_normal(parameter.data.shape).astype(np.float32) / 10
    ids = rng.integers(0, model.config.vocab_size, (2, 9))
    return model, Batch(ids[:, :-1], ids[:, 1:])


@half
@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "qwen3"])
def test_every_number_of_a_model_forward_and_backward_is_of_the_format_and_near_float32s(name, family):
    model, rng = build(family, dtype="float32"), np.random.default_rng(0)
    ids = rng.integers(0, 13, (3, 6))
    reference = model.forward(ids)[0]
    seen = []
    with half_precision(model.parameters(), name) as H:
        logits, caches = model.forward(ids)
        seen += [logits, *arrays_of_floats(caches)]
        L, cache = ops.cross_entropy_forward(logits, ids)
        grads = minilora.Gradients()
        model.backward(ops.cross_entropy_backward(1.0, cache), caches, grads)
        seen += [L, *grads.values()]
        assert len(grads) == len(model.named_parameters())
    assert all(np.array_equal(np.asarray(x), np.asarray(H.of(x))) for x in seen)
    assert 0 < np.linalg.norm(logits - reference) < 40 * H.u * np.linalg.norm(reference)


def arrays_of_floats(tree):
    if isinstance(tree, np.ndarray):
        return [tree] if isinstance(tree, Half) else []
    return [x for branch in tree for x in arrays_of_floats(branch)] if isinstance(tree, tuple | list) else []


@half
def test_after_it_a_model_has_its_float32_weights_and_gradients_step_them(name, adapted):
    model, batch = adapted
    before = {path: p.data for path, p in model.named_parameters().items()}
    with half_precision(model.parameters(), name) as H:
        assert all(type(p.data) is H for p in model.parameters())
        _, grads = loss_and_gradients(model, batch)
    assert all(p.data is before[path] for path, p in model.named_parameters().items())
    assert {type(g) for g in grads.values()} == {H}
    with pytest.raises(ZeroDivisionError), half_precision(model.parameters(), name):
        1 / 0  # noqa: B018
    assert all(p.data is before[path] for path, p in model.named_parameters().items())


def test_a_model_that_is_quantised_inside_stays_so(adapted):
    model, _ = adapted
    with half_precision(model.parameters(), "bfloat16"):
        quantize(model, "nf4")
    kinds = {type(p.data).__name__ for p in model.parameters()}
    assert kinds == {"ndarray", "NF4", "BFloat16"}


@half
def test_the_training_loop_runs_in_it_unchanged_and_leaves_what_it_learned(name, adapted):
    model, batch = adapted
    before = {path: p.data for path, p in model.named_parameters().items()}

    def train():
        with half_precision(model.parameters(), name):
            optimizer = AdamW(model.trainable_parameters(), 1e-2, eps=1e-3)
            minilora.fit(model, lambda step: batch, 5, optimizer=optimizer, description=None)
            assert {type(slot) for slot in optimizer.state.values()} == {HALF[name]}
        return {path: p.data for path, p in model.named_parameters().items()}

    after = train()
    trained = model.trainable_parameters()
    assert all((after[path] is before[path]) == (path not in trained) for path in before)
    for path in trained:
        assert type(after[path]) is np.ndarray
        assert np.array_equal(after[path], np.asarray(HALF[name].of(after[path])))
        trained[path].data = before[path]
    assert all(np.array_equal(x, after[path]) for path, x in train().items())  # the same bytes again


def test_adamw_in_float16_alone_fails_at_the_first_zero_gradient_for_its_epsilon_is_zero(adapted):
    """dA = 0 while B = 0, so v = 0 and √v + 10⁻⁸ = 0: 0/0. In bfloat16 10⁻⁸ is a number."""
    model, batch = adapted
    for path, p in model.trainable_parameters().items():
        p.data = np.zeros_like(p.data) if path.endswith("lora_B") else p.data
    start = {path: p.data for path, p in model.trainable_parameters().items()}
    nan = {}
    for name in NAMES:
        with half_precision(model.parameters(), name), np.errstate(all="ignore"):
            _, grads = loss_and_gradients(model, batch)
            AdamW(model.trainable_parameters(), 1e-2).step(grads)
        nan[name] = {path for path, p in model.trainable_parameters().items() if np.isnan(p.data).any()}
        for path, p in model.trainable_parameters().items():
            p.data = start[path]
    assert nan == {"bfloat16": set(), "float16": {path for path in start if path.endswith("lora_A")}}


def test_gradients_that_vanish_at_scale_1_are_there_at_65536(adapted):
    """A loss of which 2⁻²⁰ is ours: in float16 nothing is left, and with S = 2¹⁶ all but 1 %; bfloat16 needs no S."""
    model, batch = adapted
    _, reference = loss_and_gradients(model, batch)

    def error(name, S):
        with half_precision(model.parameters(), name):
            _, grads = loss_and_gradients(model, batch, dL=S * 2.0**-20)
        off = [np.asarray(g) / np.float32(S * 2.0**-20) - reference[p] for p, g in grads.items()]
        return np.linalg.norm(np.concatenate([x.ravel() for x in off])) / np.linalg.norm(
            np.concatenate([g.ravel() for g in reference.values()])
        )

    assert error("float16", 1) > 0.99
    assert error("float16", 2.0**16) < 0.1
    assert error("bfloat16", 1) < 0.1
    assert error("bfloat16", 1) == error("bfloat16", 2.0**16)  # a power of two changes no bit of them


def test_in_float16_a_mask_of_1e9_is_infinite_and_a_row_that_sees_no_key_is_nan():
    """Of padding on the left under a causal mask, the first row. Its k and v reach the others, as 0 · NaN."""
    model, ids, padding = build("llama", dtype="float32"), np.arange(12).reshape(2, 6), np.ones((2, 6), bool)
    padding[1, :2] = False
    nan = {}
    for name in NAMES:
        with half_precision(model.parameters(), name), np.errstate(invalid="ignore"):
            nan[name] = np.isnan(model.forward(ids, minilora.Inputs(padding))[0]).any(axis=(1, 2)).tolist()
            right = model.forward(ids, minilora.Inputs(padding[:, ::-1]))[0]
        assert np.isfinite(right).all()
    assert nan == {"bfloat16": [False, False], "float16": [False, True]}


def test_a_quantised_matrix_computes_in_it_and_is_itself_afterwards():
    model = minilora.load_pretrained("builtin", quantize="nf4")
    held, ids = model["block_0.attention.q_proj"].weight.data, np.arange(5)[None]
    reference = model.forward(ids)[0]
    with half_precision(model.parameters(), "bfloat16"):
        logits = model.forward(ids)[0]
    assert model["block_0.attention.q_proj"].weight.data is held
    assert 0 < np.linalg.norm(logits - reference) < 0.05 * np.linalg.norm(reference)


def test_an_unknown_name_is_refused_with_the_one_that_was_meant():
    with pytest.raises(ValueError, match=r"'float61'.*float16"), half_precision([], "float61"):
        pass


# ---- PyTorch on a CPU ----


@pytest.fixture
def torch():
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    return torch


def of_torch(torch, x, learns=False):
    """A tensor in the dtype of a Half."""
    return torch.tensor(np.asarray(x)).to(getattr(torch, type(x).name)).requires_grad_(learns)


def same(x, t):
    return np.array_equal(np.asarray(x), t.detach().float().numpy())


@pytest.mark.oracle
@half
@pytest.mark.parametrize("size", [1.0, 1e-3, 1e-6, 300.0])
def test_an_operation_has_pytorchs_bits(name, size, torch):
    H, rng = HALF[name], np.random.default_rng(0)
    x, y = (H.of(size * rng.standard_normal((64, 96))) for _ in range(2))
    y = np.where(y == 0, H.of(size), y)
    a, b = of_torch(torch, x), of_torch(torch, y)
    with np.errstate(over="ignore"):
        assert same(x + y, a + b)
        assert same(x - y, a - b)
        assert same(x * y, a * b)
        assert same(x / y, a / b)
        assert same(0.1 * x, 0.1 * a)
        assert same(np.sqrt(abs(x)), a.abs().sqrt())
        assert same(np.maximum(x, y), torch.maximum(a, b))
        assert same(x.sum(axis=0), a.sum(0))
        assert same(x.sum(axis=1), a.sum(1))
        assert same(x.max(axis=1), a.amax(1))


def near(x, t, bound):
    """Whether a Half is within `bound` of a tensor, number by number."""
    return bool((abs(np.asarray(x, np.float64) - t.detach().double().numpy()) <= bound).all())


@pytest.mark.oracle
@half
def test_exp_log_and_tanh_differ_from_pytorchs_by_one_last_place_in_few_numbers_if_in_any(name, torch):
    """Both are right to a last place of float32, and rounded. They differ where a rounding's tie lies between them."""
    H = HALF[name]
    x = H.of(numbers(name)[(abs(numbers(name)) < 11) & (abs(numbers(name)) > 1e-4)])
    t = of_torch(torch, x)
    for found, wanted in ((np.exp(x), t.exp()), (np.log(abs(x)), t.abs().log()), (np.tanh(x), t.tanh())):
        wanted = wanted.float().numpy()
        assert np.mean(np.asarray(found) != wanted) < 1e-3
        assert (abs(np.asarray(found) - wanted) <= 2 * H.u * abs(wanted) + H.smallest).all()


@pytest.mark.oracle
@half
@pytest.mark.parametrize("n", [96, 2048])
def test_a_linear_layer_forward_and_backward_is_pytorchs_up_to_the_order_of_a_float32_sum(name, n, torch):
    H, rng, F = HALF[name], np.random.default_rng(0), torch.nn.functional
    x, W, b, dy = (H.of(rng.standard_normal(shape)) for shape in ((64, n), (32, n), (32,), (64, 32)))
    tx, tW, tb = (of_torch(torch, a, learns=True) for a in (x, W, b))
    y = F.linear(tx, tW)
    y.backward(of_torch(torch, dy))
    products = {
        "y": (x @ W.T, y, abs(x) @ abs(W).T, n),
        "dx": (ops.linear_backward(dy, W), tx.grad, abs(dy) @ abs(W), 32),
        "dW": (ops.linear_gradients(dy, x), tW.grad, abs(dy).T @ abs(x), 64),
    }
    for found, wanted, size, terms in products.values():
        # two sums of `terms` products in float32, each off by terms · 2⁻²⁴ of the size at most, and each rounded
        bound = 2 * H.u * abs(wanted.detach().double().numpy()) + 2 * terms * 2.0**-24 * np.asarray(size)
        assert near(found, wanted, bound)
        assert np.mean(np.asarray(found) == wanted.detach().float().numpy()) > 0.99
    # F.linear adds b in float32 and rounds once, the library rounds x Wᵀ and then the sum
    xW, wanted = np.asarray(x @ W.T, np.float64), F.linear(tx, tW, tb)
    bound = H.u * (abs(xW) + 2 * abs(wanted.detach().double().numpy())) + n * 2.0**-24 * np.asarray(abs(x) @ abs(W).T)
    assert near(ops.linear_forward(x, W, b)[0], wanted, bound * (1 + 4 * H.u))
    ty = F.linear(tx, tW, tb)
    ty.backward(of_torch(torch, dy))
    assert same(ops.bias_gradients(dy), tb.grad)


@pytest.mark.oracle
@half
def test_a_softmax_step_by_step_is_pytorchs_step_by_step_and_near_its_fused_one(name, torch):
    """With z = x - max, rounded, and exp z, Z and the quotient rounded: off by at most (|z| + 4) u, as a part of P."""
    H = HALF[name]
    x = H.of(4 * np.random.default_rng(0).standard_normal((64, 300)))
    z = x - x.max(axis=-1, keepdims=True)
    E = np.exp(z)
    P = E / E.sum(axis=-1, keepdims=True)
    t = of_torch(torch, x)
    e = (t - t.amax(-1, keepdim=True)).exp()
    assert np.mean(np.asarray(P) == (e / e.sum(-1, keepdim=True)).float().numpy()) > 0.999
    fused = t.softmax(-1)
    assert near(P, fused, (abs(np.asarray(z)) + 4) * H.u * fused.double().numpy() + H.smallest)


@pytest.mark.oracle
@half
@pytest.mark.parametrize("n", [96, 2048])
def test_a_layer_norm_step_by_step_is_pytorchs_step_by_step_and_near_its_fused_one(name, n, torch):
    """PyTorch's own rounds y once. Here μ, x - μ, σ, x̂, g x̂ and y are: off by at most 8 u of what is added."""
    H, rng = HALF[name], np.random.default_rng(0)
    x, g, b = H.of(rng.standard_normal((64, n))), H.of(rng.normal(1, 0.1, n)), H.of(rng.normal(0, 0.1, n))
    y, cache = ops.layer_norm_forward(x, g, b)
    t, tg, tb = (of_torch(torch, a) for a in (x, g, b))
    xhat = t - t @ torch.full((n, 1), 1 / n, dtype=t.dtype)
    variance = (xhat[:, None, :] @ xhat[:, :, None])[:, :, 0] / n
    xhat = xhat / (variance.float() + 1e-5).to(t.dtype).sqrt()
    assert np.mean(np.asarray(y) == (xhat * tg + tb).float().numpy()) > 0.999
    fused = torch.nn.functional.layer_norm(t, (n,), tg, tb)
    assert near(y, fused, 8 * H.u * (abs(np.asarray(cache.xhat * g)) + abs(np.asarray(b)) + 0.1))


@pytest.mark.oracle
def test_pytorchs_adamw_fails_in_float16_in_the_same_way(torch):
    for dtype, nan in ((torch.float16, True), (torch.bfloat16, False)):
        p = torch.zeros(3, dtype=dtype, requires_grad=True)
        p.grad = torch.zeros_like(p)
        torch.optim.AdamW([p], lr=1e-2).step()
        assert bool(p.isnan().any()) == nan
