"""Activated LoRA: on from its invocation, or where a mask says; the base before, cache and all."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from peft_models import V, base, trained

import minilora
from minilora import ops
from minilora.adapters import peft
from minilora.adapters.alora import go_on_from
from minilora.adapters.attach import attach
from minilora.adapters.lora import LoRALinear
from minilora.adapters.registry import variants
from minilora.models.generation import next_ids
from minilora.nn import Gradients, Inputs, KVCache, Pass

WORD = 7, 3, 7
T = 10
TARGETS = ["q_proj", "v_proj", "down_proj"]


def texts(*starts: int | None) -> np.ndarray:
    """Ids (B, T) without the word, but for where it starts."""
    ids = np.random.default_rng(4).integers(8, V, (len(starts), T))
    for row, start in zip(ids, starts, strict=True):
        if start is not None:
            row[start : start + len(WORD)] = WORD
    return ids


IDS = texts(2, None, 7, 0)


def activated(word=WORD, **options: Any):
    model = base()
    attach(model, "alora", TARGETS, rng=0, r=2, alpha=5, invocation_tokens=word, **options)
    return trained(model)


def as_lora(model):
    """The same numbers as a LoRA that is always on."""
    other = base()
    for path, module in model.named_modules():
        if module.is_adapter:
            settings = {key: value for key, value in module.settings.items() if key != "invocation_tokens"}
            other[path] = LoRALinear.of(other[path], module.own_parameters(), **settings)
    return other


def test_the_last_occurrence_counts_and_overlapping_ones_and_none():
    ids = np.array([[7, 3, 7, 3, 7, 1], [7, 3, 1, 7, 3, 2], [7, 3, 7, 1, 1, 1], [1, 1, 1, 7, 3, 7]])
    on = ops.from_last_occurrence(ids, WORD)
    assert [row.argmax() if row.any() else None for row in on] == [2, None, 0, 3]
    assert all((np.diff(row.astype(int)) >= 0).all() for row in on)
    assert not ops.from_last_occurrence(ids[:, :2], WORD).any()


def test_before_the_invocation_it_is_the_base_bit_for_bit_and_without_one_everywhere():
    model = activated()
    y, plain = model.forward(IDS)[0], base().forward(IDS)[0]
    np.testing.assert_array_equal(y[0, :2], plain[0, :2])
    np.testing.assert_array_equal(y[1], plain[1])
    assert abs(y[0, 2:] - plain[0, 2:]).min(axis=-1).all()
    np.testing.assert_allclose(y[3], as_lora(model).forward(IDS)[0][3], rtol=1e-12, atol=1e-12)


MASKS = [name for name, (cls, *_) in variants().items() if cls.acts_on_some_tokens]


@pytest.mark.parametrize("variant", MASKS)
def test_a_mask_says_where_an_adapter_beside_its_base_acts_and_gradients_are_of_those_tokens(variant):
    model = base("gpt2")
    options = {key: value for key, value in variants()[variant][0].examples[""].items() if key != "mask"}
    attach(model, variant, ["qkv_proj", "down_proj"], rng=0, **options)
    trained(model)
    on = np.random.default_rng(5).random(IDS.shape) < 0.4
    y, cache = model.forward(IDS, Inputs(active=on))
    dy, grads = np.random.default_rng(1).standard_normal(y.shape), Gradients()
    model.backward(dy, cache, grads)
    for parameter, gradient in grads.items():
        d = np.random.default_rng(2).standard_normal(gradient.shape)
        data, losses = parameter.data, []
        for sign in (1, -1):
            parameter.data = data + sign * 1e-6 * d
            losses.append((dy * model.forward(IDS, Inputs(active=on))[0]).sum())
        parameter.data = data
        np.testing.assert_allclose((losses[0] - losses[1]) / 2e-6, (gradient * d).sum(), rtol=1e-5, atol=1e-6)
    nowhere, _ = model.forward(IDS, Inputs(active=np.zeros(IDS.shape, bool)))
    np.testing.assert_array_equal(nowhere, base("gpt2").forward(IDS)[0])
    if variant != "alora":
        everywhere, _ = model.forward(IDS, Inputs(active=np.ones(IDS.shape, bool)))
        np.testing.assert_allclose(everywhere, model.forward(IDS)[0], rtol=1e-12, atol=1e-12)


def test_masks_go_by_row_beside_names_and_the_embedding_and_its_tied_head_have_theirs():
    model = base()
    adapters = peft.Adapters(model)
    adapters.attach("a", "lora", ["embed", "q_proj"], rng=0, r=2)
    adapters.attach("b", "vera", ["q_proj", "up_proj"], rng=1, r=3)
    adapters.activate_by_row()
    trained(model)
    names, on = ["b", "a", None, "b"], np.random.default_rng(5).random(IDS.shape) < 0.4
    y, _ = model.forward(IDS, Inputs(adapters=names, active=on))
    for name in {*names}:
        adapters.activate(name)
        rows = [i for i, other in enumerate(names) if other == name]
        np.testing.assert_allclose(
            y[rows], model.forward(IDS[rows], Inputs(active=on[rows]))[0], rtol=1e-12, atol=1e-12
        )


@pytest.mark.parametrize("variant", [name for name in variants() if name not in MASKS])
def test_an_adapter_that_changes_its_base_refuses_a_mask(variant):
    model = base("gpt2")
    attach(model, variant, rng=0, **variants()[variant][0].examples[""])
    with pytest.raises(ValueError, match="acts on all tokens"):
        model.forward(IDS, Inputs(active=IDS > 9))


def test_positions_that_alone_get_logits_are_on_where_their_tokens_are():
    model = base(tied=False)
    attach(model, "alora", ["lm_head", "q_proj"], rng=0, r=2, invocation_tokens=WORD)
    trained(model)
    b, t = np.array([0, 2, 3, 1, 0]), np.array([9, 8, 0, 5, 1])
    np.testing.assert_allclose(
        model.forward(IDS, Inputs(labelled=(b, t)))[0], model.forward(IDS)[0][b, t], rtol=1e-12, atol=1e-12
    )
    classifier = base("llama", "classify")
    attach(classifier, "alora", ["classifier"], rng=0, r=1, invocation_tokens=WORD)
    with pytest.raises(ValueError, match="gets one vector per text: take it off"):
        classifier.forward(IDS)


def test_text_read_in_parts_with_a_kv_cache_is_on_as_the_whole_is():
    model, ids = activated(), IDS[:1]
    whole, _ = model.forward(ids)
    for given in (None, ids):  # cut within the invocation, it is found too late unless the whole text is known
        for cuts in ((0, 3, 4, T), (0, 2, T)) if given is not None else ((0, 2, T), (0, 1, 2, 6, T)):
            kv_cache = KVCache(T)
            parts = [
                model.forward(ids[:, i:j], Inputs(text=given), Pass(kv_cache=kv_cache))[0] for i, j in pairwise(cuts)
            ]
            np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, rtol=1e-12, atol=1e-12)


def test_generation_goes_on_as_forwards_over_the_whole_text(monkeypatch):
    monkeypatch.setattr("minilora.models.generation.CHUNK", 3)
    model, prompt = activated(), IDS[0, :7]
    seen = prompt.tolist()
    for i in next_ids(model, prompt, 6):
        assert i == model.forward(np.array([seen]))[0][0, -1].argmax()
        seen.append(i)
    plain = list(next_ids(base(), prompt, 6))
    assert seen[7:] != plain


def test_one_cache_of_the_base_serves_rows_of_several_activated_adapters():
    model = base()
    adapters = peft.Adapters(model)
    words = {"a": (5, 6), "b": (6,), "c": (4,)}
    for seed, (name, word) in enumerate(words.items()):
        adapters.attach(name, "alora", TARGETS[: seed + 1], rng=seed, r=seed + 1, invocation_tokens=word)
    adapters.activate_by_row()
    trained(model)
    names = ["b", "a", None, "c", "b"]
    prefix, rest = texts(None)[:, :6], np.array([[6, 9, 9], [5, 6, 9], [9, 9, 9], [9, 4, 9], [9, 6, 9]])
    whole, _ = model.forward(np.concatenate([prefix.repeat(5, axis=0), rest], axis=1), Inputs(adapters=names))
    read = KVCache(9)
    model.forward(prefix, run=Pass(kv_cache=read))
    mine = go_on_from(model, read, names)
    first, _ = model.forward(rest[:, :2], Inputs(adapters=names), Pass(kv_cache=mine))
    last, _ = model.forward(rest[:, 2:], Inputs(adapters=names), Pass(kv_cache=mine))
    np.testing.assert_allclose(np.concatenate([first, last], axis=1), whole[:, 6:], rtol=1e-12, atol=1e-12)
    assert read.length == 6
    again, _ = model.forward(rest[2:3], run=Pass(kv_cache=read))
    np.testing.assert_allclose(again, whole[2:3, 6:], rtol=1e-12, atol=1e-12)


def test_a_cache_of_the_base_serves_a_model_that_has_the_adapter_put_on_afterwards():
    model, ids = base(), IDS[2:3]
    read = KVCache(T)
    model.forward(ids[:, :7], run=Pass(kv_cache=read))
    attach(model, "alora", TARGETS, rng=0, r=2, invocation_tokens=WORD)
    trained(model)
    y, _ = model.forward(ids[:, 7:], run=Pass(kv_cache=go_on_from(model, read)))
    np.testing.assert_allclose(y, model.forward(ids)[0][:, 7:], rtol=1e-12, atol=1e-12)


def test_what_is_not_the_base_s_is_not_gone_on_from():
    model, ids = activated(), IDS[:1]
    read = KVCache(T)
    model.forward(ids[:, :6], run=Pass(kv_cache=read))
    with pytest.raises(ValueError, match="the base of this model did not fill the KV cache"):
        go_on_from(model, read)
    with pytest.raises(ValueError, match="did not fill"):
        go_on_from(activated(), KVCache(T))
    cut = KVCache(T)
    plain = base()
    plain.forward(ids[:, :3], run=Pass(kv_cache=cut))
    attach(plain, "alora", TARGETS, rng=0, r=2, invocation_tokens=WORD)
    with pytest.raises(ValueError, match=r"invocation \[7, 3, 7\] begins among the 3 tokens that the base has read"):
        plain.forward(ids[:, 3:], run=Pass(kv_cache=go_on_from(plain, cut)))
    always = base()
    read = KVCache(T)
    always.forward(ids[:, :2], run=Pass(kv_cache=read))
    minilora.attach_lora(always, rng=0, r=2)
    with pytest.raises(ValueError, match="a lora acts on all tokens"):
        go_on_from(always, read)


def test_it_cannot_be_merged_and_a_model_with_one_is_left_as_it_was():
    model = base()
    minilora.attach_lora(model, ["o_proj"], rng=0, r=2)
    attach(model, "alora", TARGETS, rng=0, r=2, invocation_tokens=WORD)
    before = dict(model.named_modules())
    for path in ("block_1.mlp.down_proj", "block_0.attention.q_proj"):
        with pytest.raises(ValueError, match="acts on some tokens, and a weight acts on all: it cannot be merged"):
            minilora.merge(model)
        assert dict(model.named_modules()) == before
        model[path] = model[path].base
        before = dict(model.named_modules())
    fused = base("gpt2")
    attach(fused, "alora", ["q_proj", "v_proj"], rng=0, r=2, invocation_tokens=WORD)
    with pytest.raises(ValueError, match="it cannot be merged"):
        minilora.merge(fused)


def test_a_file_says_the_invocation_and_there_must_be_one(tmp_path):
    model = activated()
    minilora.save_adapter(model, tmp_path / "a")
    again = base()
    minilora.load_adapter(again, tmp_path / "a")
    np.testing.assert_array_equal(again.forward(IDS)[0], model.forward(IDS)[0])
    assert again["block_0.attention.q_proj"].invocation_tokens == WORD
    with pytest.raises(ValueError, match="invocation_tokens is empty: name the ids that turn the adapter on"):
        activated(word=())
