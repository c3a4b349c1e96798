"""Whole models of each family: gradients, masks, and what they refuse. test_parity.py compares with transformers."""

import copy
import math
import tracemalloc
from typing import Any

import fakecupy
import numpy as np
import pytest
from models import SHAPE, TEXT, beside, build, close, each_family, fresh, gradients, loss, named
from models import some_batch as some

from minilora import ops
from minilora.backend import to_numpy
from minilora.models.config import Config
from minilora.models.families import FAMILIES
from minilora.models.transformer import Transformer
from minilora.nn import Attention, Gelu, Gradients, Inputs, Pass
from minilora.verify import check_model

each_side = pytest.mark.parametrize("side", ["left", "right"])


# ---- gradients ----


@pytest.mark.parametrize("family", TEXT)
def test_a_forward_whose_backward_will_not_come_gives_the_same_bits_and_keeps_nothing(family, rng):
    model, ids = build(family, max_length=128), rng.integers(0, 13, (4, 100))
    given = ids, beside(model, ids)
    y, _ = model.forward(*given)
    peaks = []
    for run in (Pass(), Pass(needs_cache=False)):
        tracemalloc.start()
        try:
            again, cache = model.forward(*given, run)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
        np.testing.assert_array_equal(again, y)
    assert cache == [] or (cache.decoder, cache.encoder) == ([], [])
    assert peaks[1] < 0.75 * peaks[0]


def zeros(model: Transformer) -> list[str]:
    """The softmax ignores what is added to all the scores of a query: a bias of keys that are not rotated."""
    rotated = any(getattr(part, "rope", None) for _, part in model.named_modules())
    return [name for name in model.named_parameters() if name.endswith("k_proj.bias") and not rotated]


@pytest.mark.each_value
@each_family
@pytest.mark.parametrize(("tied", "side"), [(True, "none"), (False, "left"), (True, "right")])
def test_every_gradient_of_the_model_is_right_and_the_check_leaves_its_weights_as_they_were(family, tied, side, rng):
    model, batch = build(family, tied=tied), some(rng, side)
    zero, before = zeros(model), model.state_dict()
    report = check_model(model, lambda: loss(model, batch), gradients(model, batch), rng=rng, zero=zero, directions=1)
    report.raise_if_wrong()
    assert len(report.rows) == len(model.named_parameters())
    assert all(array is before[name] for name, array in model.state_dict().items())


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_check_of_a_model_fails_a_gradient_that_is_wrong_or_missing_or_one_too_many(family, rng):
    model, batch = build(family), some(rng)
    grads = gradients(model, batch)
    parameter = model.named_parameters()["block_1.norm_1.weight"]
    wrong = Gradients({**grads, parameter: grads[parameter][::-1]})
    report = check_model(
        model, lambda: loss(model, batch), wrong, rng=rng, zero=zeros(model), directions=1, complex_step=False
    )
    assert "block_1.norm_1.weight" in [row.tensor for row in report.rows if not row.ok]
    del wrong[parameter]
    with pytest.raises(ValueError, match="not those of the trainable"):
        check_model(model, lambda: loss(model, batch), wrong, rng=rng)
    parameter.trainable = False
    with pytest.raises(ValueError, match="not those of the trainable"):
        check_model(model, lambda: loss(model, batch), grads, rng=rng)


@pytest.mark.each_value
@each_family
@pytest.mark.parametrize("share", [0.1, 0.5])
def test_the_gradients_are_those_of_the_trainable_parameters_and_the_same_as_when_all_are(family, share, rng):
    model, batch = build(family), some(rng, "left")
    everything = gradients(model, batch)
    for _ in range(5):
        for parameter in everything:
            parameter.trainable = bool(rng.random() < share)
        grads = gradients(model, batch)
        assert set(grads) == set(model.trainable_parameters().values())
        for parameter, gradient in grads.items():
            # the tied weight is one parameter: its lower contribution is there only if the backward went so far
            assert gradient.tobytes() == everything[parameter].tobytes()


@each_family
def test_float32_agrees_with_float64(family, rng):
    batch, single = some(rng, "right"), build(family, dtype="float32")
    double = copy.deepcopy(single)
    double.astype(np.float64)
    logits, exact = (model.forward(batch.ids, batch.inputs)[0] for model in (single, double))
    assert logits.dtype == np.float32
    assert close(logits, exact, 1e-5)
    exact_gradients = named(double, gradients(double, batch))
    largest = max(np.abs(gradient).max() for gradient in exact_gradients.values())
    for name, gradient in named(single, gradients(single, batch)).items():
        assert gradient.dtype == np.float32, name
        np.testing.assert_allclose(gradient, exact_gradients[name], rtol=0, atol=1e-5 * largest, err_msg=name)


@each_family
@pytest.mark.parametrize("xp", ["fakecupy", pytest.param("cupy", marks=pytest.mark.gpu)], indirect=True)
def test_on_a_gpu_the_same_model_gives_the_same_numbers_and_nothing_waits_for_the_host(family, xp, rng):
    model, batch = build(family, dtype="float32"), some(rng, "left")
    logits, _ = model.forward(batch.ids, batch.inputs, batch.run)
    expected = named(model, gradients(model, batch))
    model.to(xp)
    syncs = fakecupy.syncs
    moved, _ = model.forward(batch.ids, batch.inputs, batch.run)
    grads = gradients(model, batch)
    assert fakecupy.syncs == syncs
    exact_gelu = any(isinstance(module, Gelu) and not module.approximate for _, module in model.named_modules())
    rounds_alike = xp.__name__ != "cupy" and not exact_gelu  # CuPy has an erf of its own
    tolerance = 0 if rounds_alike else 1e-4
    assert close(to_numpy(moved), logits, tolerance)
    for name, gradient in named(model, grads).items():
        assert gradient.dtype == np.float32, name
        np.testing.assert_allclose(gradient, expected[name], rtol=0, atol=tolerance, err_msg=name)


# ---- which tokens attend to which ----


@pytest.mark.each_value
@each_family
@each_side
def test_padding_on_either_side_changes_no_real_token(family, side, rng):
    model, batch = build(family), some(rng, side)
    padded, _ = model.forward(batch.ids, batch.inputs, batch.run)
    for i, real in enumerate(batch.real):
        segments = batch.inputs.segments[i : i + 1, real]
        alone, _ = model.forward(batch.ids[i : i + 1, real], Inputs(segments=segments))
        np.testing.assert_allclose(padded[i, real], alone[0], rtol=1e-12, atol=1e-12)


@pytest.mark.each_value
@each_family
@each_side
def test_what_the_padding_holds_changes_no_real_token(family, side, rng):
    model, batch = build(family), some(rng, side)
    other = np.where(batch.real, batch.ids, (batch.ids + 5) % 13)
    before, after = (model.forward(ids, batch.inputs, batch.run)[0] for ids in (batch.ids, other))
    assert before[batch.real].tobytes() == after[batch.real].tobytes()
    assert np.isfinite(before).all()


@each_family
def test_a_token_is_seen_by_earlier_ones_in_encoders_alone(family, rng):
    model, batch = build(family), some(rng)
    later = batch.ids.copy()
    later[:, 4] = (later[:, 4] + 5) % 13
    before, after = (model.forward(ids, batch.inputs, batch.run)[0] for ids in (batch.ids, later))
    changed = (before != after).any(axis=(0, 2))
    assert changed[4:].all()
    assert changed[:4].all() if "bert" in family else not changed[:4].any()


@pytest.mark.parametrize("blockwise", [False, True], ids=["whole", "in blocks"])
def test_with_a_window_a_token_is_seen_by_those_up_to_the_window_and_through_two_layers_by_twice_as_many(
    blockwise, monkeypatch, rng
):
    monkeypatch.setattr(Attention, "blockwise_from", 1 if blockwise else math.inf)
    ids = rng.integers(0, 13, (2, 9))
    other = ids.copy()
    other[:, 1] = (ids[:, 1] + 5) % 13

    def changed(**options: Any) -> list[int]:
        model = build("qwen2", sliding_window=3, **options)
        return np.flatnonzero((model.forward(ids)[0] != model.forward(other)[0]).any(axis=(0, 2))).tolist()

    assert changed(n_layers=1) == [1, 2, 3]
    assert changed() == [1, 2, 3, 4, 5]
    assert changed(max_window_layers=1) == changed(max_window_layers=2) == list(range(1, 9))
    assert changed(n_layers=1, layer_types=("sliding_attention",), max_window_layers=1) == [1, 2, 3]


@pytest.mark.parametrize("side", ["none", "left", "right"])
def test_every_gradient_of_a_model_with_a_window_in_one_layer_is_right(side, rng):
    model, batch = build("qwen2", sliding_window=2, max_window_layers=1), some(rng, side)
    report = check_model(model, lambda: loss(model, batch), gradients(model, batch), rng=rng, directions=1)
    report.raise_if_wrong()


@each_side
def test_with_a_window_padding_on_either_side_changes_no_real_token(side, rng):
    model, batch = build("mistral", sliding_window=2), some(rng, side)
    padded, _ = model.forward(batch.ids, batch.inputs, batch.run)
    for i, real in enumerate(batch.real):
        alone, _ = model.forward(batch.ids[i : i + 1, real])
        np.testing.assert_allclose(padded[i, real], alone[0], rtol=1e-12, atol=1e-12)


@each_family
def test_what_all_layers_need_is_made_once_in_a_forward_and_anew_in_the_next(family, monkeypatch, rng):
    model, batch, made = build(family), some(rng, "left"), []
    for name in ("attention_mask", "rope_tables", "rope_frequencies"):
        make = getattr(ops, name)
        monkeypatch.setattr(ops, name, lambda *words, name=name, make=make: made.append(name) or make(*words))
    layers = [module for _, module in model.named_modules() if isinstance(module, Attention)]
    needed = ["attention_mask"] * len({layer.window for layer in layers})
    needed += ["rope_frequencies", "rope_tables"] * len({layer.rope for layer in layers} - {None})
    for times in (1, 2):
        model.forward(batch.ids, batch.inputs, batch.run)
        assert sorted(made) == sorted(times * needed)


@each_family
def test_the_order_of_the_tokens_matters(family, rng):
    model, ids = build(family), np.array([[3, 7, 5, 1]])
    last, _ = model.forward(ids)
    swapped, _ = model.forward(ids[:, [1, 0, 2, 3]])
    assert np.abs(last[0, 3] - swapped[0, 3]).max() > 1e-3


def test_segments_change_the_logits_of_bert(rng):
    model, batch = build("bert"), some(rng)
    ones, zeros, default = (
        model.forward(batch.ids, Inputs(segments=segments))[0]
        for segments in (np.ones_like(batch.ids), np.zeros_like(batch.ids), None)
    )
    assert np.array_equal(zeros, default)
    assert (ones != zeros).all()


WRONG_INPUTS = [
    ({"padding": np.ones((3, 1), bool)}, r"padding is bool of the ids' shape \(3, 6\), not bool of shape \(3, 1\)"),
    ({"padding": np.ones((6, 3), bool)}, r"not bool of shape \(6, 3\)"),
    ({"padding": np.ones(6, bool)}, r"not bool of shape \(6,\)"),
    ({"padding": np.full((3, 6), 2)}, "padding is bool .* not int64"),
    ({"segments": np.zeros((3, 1), int)}, r"segments is integers of the ids' shape .* not int64 of shape \(3, 1\)"),
    ({"segments": np.zeros((3, 6))}, "segments is integers .* not float64"),
]


@pytest.mark.each_value
@each_family
@pytest.mark.parametrize(("wrong", "message"), WRONG_INPUTS)
def test_padding_and_segments_that_do_not_fit_the_ids_are_refused(family, wrong, message, rng):
    with pytest.raises(ValueError, match=message):
        build(family).forward(some(rng).ids, Inputs(**wrong))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.ones((3, 6), bool),), r"forward\(ids, Inputs\("),
        ((Pass(),), "takes these two types"),
        ((Inputs(), Inputs()), "takes these two types"),
        ((Inputs(), Pass(rng=0)), r"Pass\(rng=0\) is not a generator"),
    ],
)
def test_what_is_no_inputs_or_no_pass_is_refused_by_name(arguments, message, rng):
    with pytest.raises(TypeError, match=message):
        build("llama").forward(some(rng).ids, *arguments)


@pytest.mark.parametrize("wrong", [-1, 3])
def test_a_segment_that_bert_does_not_have_is_refused(wrong, xp, rng):
    model, batch = build("bert", dtype="float32"), some(rng)
    model.to(xp)
    with pytest.raises(ValueError, match=rf"segments from .*{wrong}.* are outside 0\.\.2"):
        model.forward(batch.ids, Inputs(segments=np.where(batch.ids == batch.ids.max(), wrong, 1)))


@each_family
def test_a_fresh_model_knows_nothing_its_loss_is_the_logarithm_of_the_vocabulary(family, rng):
    assert loss(fresh(family, dtype="float32"), some(rng)) == pytest.approx(math.log(13), abs=0.1)


# ---- what is refused ----


@pytest.mark.each_value
@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([[0, 13]], "token id 13 is outside the vocabulary 0..12"),
        ([[0, -1]], "token id -1 is outside the vocabulary 0..12"),
        ([[0.0, 1.0]], r"not float64 of shape \(1, 2\)"),
        ([0, 1], r"not int64 of shape \(2,\)"),
        ([[]], r"shape \(1, 0\)"),
        ([[True, False]], "not bool"),
        ([[0] * 10], "10 tokens are more than the model's 9 positions"),
    ],
)
@each_family
def test_ids_that_no_model_can_read_are_refused(family, ids, message):
    with pytest.raises(ValueError, match=message):
        fresh(family).forward(np.array(ids))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"d_model": 10, "n_heads": 3}, "d_model 10 .* 3 heads"),
        ({"d_model": 12, "n_heads": 6, "n_kv_heads": 4}, "6 heads, .* into 4"),
        ({"n_heads": 3, "sliding_window": 0}, "sliding_window = 0 is not a whole number from 1 up"),
        ({"n_heads": 3, "sliding_window": True}, "sliding_window = True is not a whole number from 1 up"),
        ({"n_heads": 3, "max_window_layers": -1}, "max_window_layers = -1 is not a whole number from 0 up"),
        ({"n_heads": 3, "layer_types": ("full_attention",)}, "layer_types = .* is not .* for each layer"),
        (
            {"n_heads": 3, "layer_types": ("full_attention", "chunked_attention")},
            "is not full_attention or sliding_att",
        ),
        ({"n_heads": 3, "layer_types": ("sliding_attention",) * 2}, "layer_types = .* needs a sliding_window"),
    ],
)
def test_widths_that_do_not_divide_and_windows_that_no_layer_can_have_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Config(**{**SHAPE, **wrong})


def test_a_llama_with_a_sliding_window_is_refused_as_its_files_cannot_have_one():
    with pytest.raises(ValueError, match="a llama has no sliding_window: build a mistral"):
        build("llama", sliding_window=3)


def test_rotary_positions_need_heads_of_an_even_width():
    config = Config(**{**SHAPE, "n_heads": 4})  # heads of 3 numbers, which do not pair up
    with pytest.raises(ValueError, match="even"):
        FAMILIES["llama"].build(config, np.random.default_rng(1))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_classifier_of_tokens_is_for_those_that_see_both_sides(family):
    with pytest.raises(ValueError, match="head 'tokens' is for encoders"):
        fresh(family, head="tokens")


@each_family
def test_ids_may_be_nested_lists(family):
    model, ids = build(family), [[3, 1, 4], [1, 5, 9]]
    assert np.array_equal(model.forward(ids)[0], model.forward(np.array(ids))[0])
