"""Matrices in fewer bits: what holds of every format, and of each."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minilora
from minilora.adapters.merge import merge, unmerge
from minilora.backend import to_numpy
from minilora.models.config import Config
from minilora.models.families import FAMILIES
from minilora.models.quantized import quantize
from minilora.models.saving import base_hash
from minilora.nn import Parameter
from minilora.quantization import Quantized, dense, format_named, formats
from minilora.quantization.nf4 import LEVELS, LEVELS8, NF4, ZERO, DoubleNF4, double_quantised, nf4_codes

each_format = pytest.mark.parametrize("name", formats())
each_simple_format = pytest.mark.parametrize("name", [name for name in formats() if name != "nf4-dq"])


@st.composite
def matrices(draw, most=40):
    """W (out, in) float32, of sizes and scales of all kinds, with rows of zeros and a few large numbers."""
    n_out, n_in = draw(st.integers(1, most)), draw(st.integers(1, most))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    W = rng.standard_normal((n_out, n_in)) * 10.0 ** draw(st.integers(-4, 3))
    W[rng.random(n_out) < draw(st.sampled_from([0, 0.3, 1]))] = 0
    W[rng.random(W.shape) < 0.02] *= 8
    return W.astype(np.float32)


def per_number(a: np.ndarray, shape: tuple[int, int], block: int) -> np.ndarray:
    """The scale of each number's block."""
    return np.repeat(a, block)[: shape[0] * shape[1]].reshape(shape)


def in_blocks_of(cls: type[NF4], W: np.ndarray, block: int) -> NF4:
    return cls(cls.encode(W, block), W.shape, block=block)


# ---- the numbers ----


@each_simple_format
@given(W=matrices())
def test_what_lies_on_the_grid_keeps_its_codes(name, W):
    cls = format_named(name)
    Q = cls.of(W)
    again = cls.of(Q.dense())
    assert np.array_equal(next(iter(again.arrays.values())), next(iter(Q.arrays.values())))
    assert np.allclose(again.dense(), Q.dense(), rtol=3e-7, atol=0)


@given(W=matrices(), block=st.integers(1, 130))
def test_nf4_takes_the_nearest_of_its_levels_in_blocks_of_any_size(W, block):
    Q = in_blocks_of(NF4, W, block)
    a = per_number(np.array([abs(x).max() for x in np.split(W.ravel(), range(block, W.size, block))]), W.shape, block)
    least = abs(LEVELS * a[..., None] - W[..., None]).min(axis=-1)
    assert (abs(Q.dense() - W) <= least + 1e-6 * a).all()


@given(W=matrices(), block=st.integers(1, 130))
def test_double_quantisation_moves_a_scale_by_half_a_gap_of_its_levels(W, block):
    Q, doubled = in_blocks_of(NF4, W, block), in_blocks_of(DoubleNF4, W, block)
    assert np.array_equal(Q.arrays["codes"], doubled.arrays["codes"])
    a, A = Q.absmax(), np.repeat(doubled.arrays["nested_absmax"], 256)[: len(Q.absmax())]
    assert (abs(doubled.absmax() - a) <= np.diff(LEVELS8).max() / 2 * A + 1e-6 * abs(a).max()).all()


@given(W=matrices())
def test_an_int8_is_off_by_half_a_step_of_its_row(W):
    a = abs(W).max(axis=1, keepdims=True)
    assert (abs(format_named("int8").of(W).dense() - W) <= a / 254 * (1 + 1e-4)).all()


@pytest.mark.parametrize(("name", "fraction", "smallest"), [("bfloat16", 7, 2.0**-133), ("float16", 10, 2.0**-24)])
@given(W=matrices())
def test_half_precision_is_off_by_half_a_unit_in_the_last_place(name, fraction, smallest, W):
    unit = np.maximum(2.0 ** (np.floor(np.log2(np.where(W == 0, 1, abs(W)))) - fraction), smallest)
    assert (abs(format_named(name).of(W).dense() - W) <= unit / 2).all()


@given(bits=st.integers(0, 2**32 - 1).filter(lambda u: u & 0x7F800000 != 0x7F800000))
def test_bfloat16_is_the_nearer_of_two_neighbours_and_of_two_as_near_the_even_one(bits):
    x = np.array([[bits]], np.uint32).view(np.float32)
    lower = bits & 0xFFFF0000
    if (lower & 0x7FFFFFFF) == 0x7F7F0000:
        return  # above it lies infinity
    two = np.array([lower, lower + 0x10000], np.uint32)
    distance = abs(two.view(np.float32).astype(float) - float(x[0, 0]))
    nearest = two[np.argmin(distance)] if distance[0] != distance[1] else two[(two >> 16) % 2 == 0][0]
    assert format_named("bfloat16").of(x).dense().view(np.uint32)[0, 0] == nearest


def test_zeros_are_the_code_of_0_and_stay_zeros():
    for shape in ((4, 64), (3, 50), (1, 1), (3, 21), (96, 171)):
        for name in formats():
            assert not format_named(name).of(np.zeros(shape, np.float32)).dense().any()
        q, _ = nf4_codes(np.zeros(shape, np.float32))
        assert (q == ZERO).all()


scales = st.lists(st.floats(2**-10, 2**10, width=32), min_size=1, max_size=600)


@given(a=scales)
def test_scales_go_to_the_nearest_of_256_levels_around_their_mean(a):
    a = np.array(a, np.float32)
    p, A, mean = double_quantised(a)
    assert mean == np.float32(a.astype(float).mean())
    x, each = (a - mean).astype(float), np.repeat(A, 256)[: len(a)].astype(float)
    least = abs(LEVELS8.astype(float) * each[:, None] - x[:, None]).min(axis=1)
    assert (abs(LEVELS8[p] * each - x) <= least + 1e-6 * each).all()


@given(a=scales)
def test_equal_scales_survive_double_quantisation(a):
    p, A, mean = double_quantised(np.full(len(a), a[0], np.float32))
    assert (LEVELS8[p] * np.repeat(A, 256)[: len(p)] + mean == np.float32(a[0])).all()


@pytest.mark.each_value
@each_format
@pytest.mark.parametrize("wrong", [np.inf, -np.inf, np.nan])
def test_what_is_not_finite_has_no_code(name, wrong):
    W = np.ones((3, 5), np.float32)
    W[1, 2] = wrong
    with pytest.raises(ValueError, match=f"^{name} has no code for {wrong}: "):
        format_named(name).of(W)


def test_float16_says_where_it_ends():
    with pytest.raises(ValueError, match="float16 ends at 65504, and the matrix holds 70000: take bfloat16"):
        format_named("float16").of(np.array([[1, -70000]], np.float32))


def test_an_unknown_format_is_answered_with_the_nearest_name():
    with pytest.raises(ValueError, match=r"no format is called 'nf'.*nf4"):
        format_named("nf")


# ---- parts, bytes, dtypes, devices ----


def some_rows(data: st.DataObject, n: int):
    number = st.integers(-n - 1, n + 1) | st.none()
    part = st.builds(slice, number, number, st.sampled_from([None, 1, 2, 3, -1, -2]))
    return data.draw(part | st.lists(st.integers(0, n - 1), min_size=1, max_size=6))


@each_format
@given(W=matrices(), data=st.data())
def test_rows_are_decoded_alone_as_they_are_among_all(name, W, data):
    Q, rows = format_named(name).of(W), some_rows(data, len(W))
    assert np.array_equal(Q.dense(rows), Q.dense()[rows])
    assert np.array_equal(dense(Q, rows), dense(Q.dense(), rows))


@pytest.mark.parametrize("cls", [NF4, DoubleNF4])
@given(W=matrices(), block=st.integers(1, 130), data=st.data())
def test_rows_are_decoded_alone_in_blocks_of_any_size(cls, W, block, data):
    Q, rows = in_blocks_of(cls, W, block), some_rows(data, len(W))
    assert np.array_equal(Q.dense(rows), Q.dense()[rows])


@pytest.mark.parametrize("cls", [NF4, DoubleNF4])
def test_rows_beyond_the_first_block_of_scales_are_decoded_alone(cls, rng):
    Q = cls.of(rng.standard_normal((1100, 77)).astype(np.float32))
    whole = Q.dense()
    for start in (0, 200, 213, 850, 1099):
        assert np.array_equal(Q.dense(slice(start, start + 31)), whole[start : start + 31])


@each_format
@given(W=matrices(), data=st.data())
def test_a_part_is_rows_of_the_whole_without_arrays_of_its_own(name, W, data):
    Q = format_named(name).of(W)
    start = data.draw(st.integers(0, len(W) - 1))
    stop = data.draw(st.integers(start + 1, len(W)))
    part = Q[start:stop]
    assert part.shape == (stop - start, W.shape[1])
    assert part.arrays == Q.arrays
    assert np.array_equal(part.dense(), Q.dense()[start:stop])
    i = data.draw(st.integers(0, stop - start - 1))
    assert np.array_equal(part.dense([i]), Q.dense()[start:stop][[i]])
    assert np.array_equal(part.dense(slice(i, None)), Q.dense()[start:stop][i:])


@each_format
@given(W=matrices(200))
def test_the_bytes_held_are_foretold_from_the_shape(name, W):
    cls = format_named(name)
    Q = cls.of(W)
    assert Q.nbytes == cls.nbytes_of(W.shape)
    assert {key: (x.shape, x.dtype) for key, x in Q.arrays.items()} == {
        key: (shape, np.dtype(dtype)) for key, (shape, dtype) in cls.sizes(*W.shape).items()
    }


@each_format
def test_codes_and_numbers_are_the_same_on_every_device(name, xp, rng):
    W = rng.standard_normal((9, 37)).astype(np.float32)
    cls = format_named(name)
    host, device = cls.of(W), cls.of(xp.asarray(W))
    assert device.xp is xp
    for Q in (device, host.to(xp)):
        assert Q.xp is xp
        for key, x in host.arrays.items():
            assert np.array_equal(to_numpy(Q.arrays[key]), x)
        assert np.array_equal(to_numpy(Q.dense()), host.dense())
        assert np.array_equal(to_numpy(Q.dense(slice(2, 7))), host.dense(slice(2, 7)))
        assert np.array_equal(to_numpy(Q[1:8].dense()), host.dense(slice(1, 8)))


@pytest.mark.each_value
@each_format
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_a_dtype_changes_the_numbers_and_not_the_codes(name, dtype, rng):
    W = rng.standard_normal((5, 30))
    Q = format_named(name).of(W)
    assert Q.dtype == Q.dense().dtype == np.float64
    other = Q.astype(dtype)
    assert other.dense().dtype == dtype
    assert other.arrays == Q.arrays
    assert np.array_equal(other.dense(), Q.astype("float32").dense().astype(dtype))


# ---- in a model ----


def small(family: str = "llama", **changes) -> minilora.Transformer:
    shape = {"vocab_size": 40, "n_layers": 2, "d_model": 24, "n_heads": 2, "d_ff": 40, "max_length": 16} | changes
    model, rng = FAMILIES[family].build(Config(**shape), 0), np.random.default_rng(1)
    for p in model.parameters():
        p.data = (p.data + 0.2 * rng.standard_normal(p.data.shape)).astype(np.float32)
    return model


@each_format
def test_a_quantised_weight_cannot_be_trained(name):
    p = Parameter(np.ones((2, 3), np.float32))
    p.data = format_named(name).of(p.data)
    assert not p.trainable
    with pytest.raises(ValueError, match=f"a weight in {name} has no gradient: train an adapter"):
        p.trainable = True
    with pytest.raises(ValueError, match=f"a weight in {name} has no gradient"):
        Parameter(p.data, trainable=True)


@pytest.mark.each_value
@each_format
@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_an_adapter_changes_neither_the_hash_nor_the_codes_of_a_quantised_base(name, family):
    model = small(family)
    quantize(model, name)
    before, codes, ids = base_hash(model), model.state_dict(), np.arange(12).reshape(2, 6)
    plain = model.forward(ids)[0]
    minilora.attach_lora(model, r=3, alpha=5, rng=0)
    assert base_hash(model) == before
    for p in model.trainable_parameters().values():
        p.data = p.data + np.float32(0.1)
    adapted = model.forward(ids)[0]
    merge(model)
    merged = model.forward(ids)[0]
    assert np.allclose(merged, adapted, atol=1e-4 * abs(adapted).max())
    assert not np.allclose(merged, plain, atol=1e-2 * abs(plain).max())
    unmerge(model)
    assert np.array_equal(model.forward(ids)[0], adapted)
    held = {path: p.data for path, p in model.base_parameters().items()}
    assert all(held[path] is x for path, x in codes.items())
    assert base_hash(model) == before


@each_format
def test_the_hash_of_a_quantised_model_is_that_of_the_numbers_it_computes_with(name):
    model, decoded = small(), small()
    quantize(model, name)
    decoded.load_state_dict({path: dense(x) for path, x in model.state_dict().items()})
    assert base_hash(model) == base_hash(decoded)
    assert any(isinstance(x, Quantized) for x in model.state_dict().values())


def test_what_is_quantised_twice_keeps_its_first_codes():
    model = small()
    quantize(model, "nf4")
    before = model.state_dict()
    quantize(model, "int8")
    assert all(model.state_dict()[path] is x for path, x in before.items())


@pytest.mark.each_value
@each_format
@pytest.mark.parametrize("W", [np.ones(5, "f4"), np.ones((2, 2, 2), "f4"), np.ones((2, 3), int), np.ones((0, 5), "f4")])
def test_what_is_no_matrix_of_floats_is_refused_with_its_shape(name, W):
    with pytest.raises(ValueError, match=rf"^{name} is for matrices of floats, and this is {W.dtype} of shape \("):
        format_named(name).of(W)


@each_format
def test_numbers_that_would_be_decoded_as_infinity_are_refused_and_those_below_are_not(name):
    largest = np.finfo(np.float32).max
    with pytest.raises(ValueError, match=rf"^{name} has no code for -3\.40"):
        format_named(name).of(np.array([[1, -largest]], np.float32))
    if name != "float16":
        W = np.full((3, 70), 3.38e38, np.float32)
        W[1, ::2] = -1e30
        assert np.isfinite(format_named(name).of(W).dense()).all()


@pytest.mark.each_value
@each_format
@pytest.mark.parametrize("tiny", [1e-45, 1e-42, 1e-38, 3e-37])
def test_rows_of_nearly_nothing_stay_nearly_nothing(name, tiny):
    W = np.random.default_rng(0).uniform(-1, 1, (3, 70)).astype(np.float32)
    W[1] = tiny * W[1]
    W[1, 3] = tiny
    with np.errstate(all="raise", under="ignore"):
        assert abs(format_named(name).of(W[1:2]).dense() - W[1:2]).max() <= tiny
        if name == "int8":  # a block of NF4 has numbers of both rows
            assert abs(format_named(name).of(W).dense()[1] - W[1]).max() <= tiny


@each_format
def test_a_matrix_of_codes_is_no_array_until_it_is_dense(name):
    Q = format_named(name).of(np.ones((2, 3), np.float32))
    with pytest.raises(TypeError, match=f"^a matrix in {name} is no array: dense"):
        np.asarray(Q)


def test_a_model_with_a_matrix_that_has_no_code_stays_as_it_was_and_the_matrix_is_named():
    model = small()
    model["block_1.mlp.up_proj"].weight.data[0, 0] = np.nan
    before = {path: p.data for path, p in model.named_parameters().items()}
    with pytest.raises(ValueError, match=r"^block_1\.mlp\.up_proj\.weight: nf4 has no code for nan"):
        quantize(model, "nf4")
    assert all(p.data is before[path] and p.trainable for path, p in model.named_parameters().items())


@pytest.mark.parametrize("train", ["embed", "o_proj"])
def test_a_matrix_that_is_trained_beside_adapters_is_not_frozen_by_quantising(train):
    model = small()
    minilora.attach_lora(model, ["q_proj"], r=2, rng=0, train=[train])
    before = {path: (id(p.data), p.trainable) for path, p in model.named_parameters().items()}
    with pytest.raises(
        ValueError, match=rf"{train}\S* is trained beside the adapters, and would be frozen in nf4: quant"
    ):
        quantize(model, "nf4")
    for path, p in model.named_parameters().items():
        assert (id(p.data), p.trainable) == before[path]


SLICES = st.builds(slice, *[st.none() | st.integers(-14, 14)] * 2, st.none() | st.sampled_from([-3, -1, 1, 2]))


@pytest.mark.parametrize("name", formats())
@given(first=SLICES, then=SLICES)
def test_rows_of_rows_are_those_that_numpy_takes(name, first, then):
    Q = formats()[name].of(np.random.default_rng(0).standard_normal((12, 70)).astype(np.float32))
    assert np.array_equal(Q[first].dense(then), Q.dense()[first][then])


@pytest.mark.parametrize("name", formats())
def test_what_is_in_a_format_is_not_encoded_again_and_from_another_it_is(name):
    W = np.random.default_rng(0).standard_normal((12, 70)).astype(np.float32)
    Q = formats()[name].of(W)
    assert Q.of(Q) is Q
    for other in formats().values():
        if other is not type(Q):  # of nf4-dq even its own codes would be others: its scales are rounded
            assert np.array_equal(other.of(Q).dense(), other.of(Q.dense()).dense())
