"""Adapters on parts of a fused layer: GPT-2's q_proj and v_proj."""

import copy

import numpy as np
import pytest

from minilora import (
    Config,
    Gradients,
    Inputs,
    Pass,
    attach,
    attach_lora,
    gpt2,
    load_adapter,
    load_pretrained,
    merge,
    save_adapter,
    save_pretrained,
    unmerge,
)
from minilora.models.transformer import Transformer

SMALL = Config(vocab_size=31, n_layers=2, d_model=12, n_heads=3, max_length=16, dtype="float64")
FUSED = "block_0.attention.qkv_proj"


def adapted(rng: np.random.Generator, targets=("q_proj", "v_proj"), **options) -> Transformer:
    """A GPT-2 with adapters on parts of its qkv_proj, every parameter that learns off its start."""
    model = gpt2(SMALL, rng)
    attach_lora(model, targets, **{"r": 2, "alpha": 3, "rng": rng, **options})
    for p in model.trainable_parameters().values():
        p.data = p.data + 0.1 * rng.standard_normal(p.data.shape)
    return model


def test_at_the_start_the_model_computes_what_its_base_does(rng):
    model, ids = gpt2(SMALL, rng), rng.integers(0, 31, (2, 7))
    before = model.forward(ids)[0]
    paths = attach_lora(model, ["q_proj", "v_proj"], rng=rng)
    assert paths == [f"block_{i}.attention.qkv_proj.{part}" for i in range(2) for part in ("q_proj", "v_proj")]
    np.testing.assert_allclose(model.forward(ids)[0], before, atol=1e-14)


@pytest.mark.parametrize("train", ["bias", "qkv_proj"])
def test_every_gradient_is_a_central_difference_also_of_the_weight_and_bias_that_the_parts_share(train, rng):
    model, ids = adapted(rng, train=[train]), rng.integers(0, 31, (2, 7))
    y, cache = model.forward(ids)
    dy, grads = rng.standard_normal(y.shape), Gradients()
    model.backward(dy, cache, grads)
    assert set(grads) == set(model.trainable_parameters().values())
    for p in model.trainable_parameters().values():
        d, x = rng.standard_normal(p.data.shape), p.data
        ends = []
        for p.data in (x + 1e-5 * d, x - 1e-5 * d):
            ends.append((model.forward(ids)[0] * dy).sum())
        p.data = x
        expected = (grads[p] * d).sum()
        assert abs((ends[0] - ends[1]) / 2e-5 - expected) < 1e-7 * max(1, abs(expected))


def test_parts_are_one_adapter_of_higher_rank_on_the_whole(rng):
    model, x = adapted(rng, {"q_proj": 3, "v_proj": 2}, alpha=6, rslora=False, train=()), rng.standard_normal((5, 12))
    with pytest.raises(ValueError, match="differ in scaling"):
        model[FUSED].in_file()
    model = adapted(rng)
    whole, parts = model[FUSED].in_file(), model[FUSED]
    assert whole.r == 4
    np.testing.assert_allclose(whole.forward(x)[0], parts.forward(x)[0], atol=1e-14)
    np.testing.assert_allclose(whole.merged()[0], parts.merged()[0], atol=1e-15)


def test_adapters_of_two_variants_on_the_parts_of_one_layer_run_and_cannot_be_written(rng, tmp_path):
    model = adapted(rng, ["q_proj"])
    attach(model, "ia3", ["v_proj"], rng=rng)
    for name in ("q_proj", "v_proj"):
        assert model[f"{FUSED}.{name}"].is_adapter
    with pytest.raises(ValueError, match="the parts of a fused layer differ in class"):
        save_adapter(model, tmp_path / "adapter")


@pytest.mark.parametrize("variant", ["lora", "ia3"])
def test_writing_parts_changes_nothing_of_what_learns(variant, rng, tmp_path):
    model = gpt2(SMALL, rng)
    attach(model, variant, ["q_proj", "v_proj"], rng=rng, train=["qkv_proj"])
    learns = set(model.trainable_parameters())
    assert f"{FUSED}.bias" in learns
    model[FUSED].in_file()
    assert set(model.trainable_parameters()) == learns


def test_biases_that_learn_beside_parts_are_written_and_read_again(rng, tmp_path):
    save_pretrained(gpt2(SMALL, rng), tmp_path / "base")
    model, ids = load_pretrained(tmp_path / "base", dtype="float64"), rng.integers(0, 31, (2, 7))
    attach_lora(model, ["q_proj", "v_proj"], r=2, rng=rng, train=["bias"])
    for p in model.trainable_parameters().values():
        p.data = p.data + 0.1 * rng.standard_normal(p.data.shape)
    save_adapter(model, tmp_path / "adapter")
    again = load_pretrained(tmp_path / "base", dtype="float64")
    load_adapter(again, tmp_path / "adapter")
    np.testing.assert_allclose(again.forward(ids)[0], model.forward(ids)[0], atol=1e-12)


def test_merged_parts_are_a_plain_layer_and_come_back_bit_for_bit(rng):
    model, ids = adapted(rng), rng.integers(0, 31, (2, 7))
    names, before = set(gpt2(SMALL, rng).state_dict()), model.forward(ids)[0]
    assert merge(model) == ["block_0.attention.qkv_proj", "block_1.attention.qkv_proj"]
    assert set(model.state_dict()) == names
    np.testing.assert_allclose(model.forward(ids)[0], before, atol=1e-13)
    unmerge(model)
    assert (model.forward(ids)[0] == before).all()


def test_no_dx_is_made_below_the_first_layer_that_learns_and_dropout_draws_the_same_again(rng):
    model, x = adapted(rng, dropout=0.4), rng.standard_normal((2, 3, 12))
    layer = model[FUSED]
    (y, cache), (again, _) = (layer.forward(x, Inputs(), Pass(np.random.default_rng(1), needs_dx=False)) for _ in "ab")
    assert (y == again).all()
    assert layer.backward(np.ones_like(y), cache, Gradients()) is None


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (["qkv_proj", "q_proj"], "qkv_proj and a part of it are both targets"),
        (["x_proj"], "no layer is called 'x_proj'"),
    ],
)
def test_targets_that_overlap_or_are_not_there_are_refused_and_nothing_changes(targets, message, rng):
    model = gpt2(SMALL, rng)
    before = dict(copy.copy(model.named_parameters()))
    with pytest.raises(ValueError, match=message):
        attach_lora(model, targets, rng=rng)
    assert model.named_parameters() == before
    attach_lora(model, ["q_proj"], rng=rng)
    with pytest.raises(ValueError, match="adapted already"):
        attach_lora(model, ["qkv_proj"], rng=rng)
    assert attach_lora(model, ["v_proj"], rng=rng)[0] == f"{FUSED}.v_proj"


def test_all_linear_adapts_the_whole_and_no_part(rng):
    assert FUSED in attach_lora(gpt2(SMALL, rng), "all-linear", rng=rng)


def test_gpt_2_medium_with_q_and_v_at_rank_4_trains_393_216_numbers():
    """Hu et al. (2021), the released checkpoint of table 3."""
    model = gpt2(Config(50257, 24, 1024, 16), None)
    rng = np.random.default_rng(0)
    attach_lora(model, ["q_proj", "v_proj"], r=4, rng=rng)
    assert sum(p.data.size for p in model.trainable_parameters().values()) == 393_216
