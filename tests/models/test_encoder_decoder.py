"""A model of two stacks: what the decoder reads of the encoder, and what goes back to it. test_t5.py compares with
transformers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import close, fresh

import minilora
from minilora.backend import load_backend
from minilora.data import Batch, shuffled
from minilora.data.batches import take
from minilora.models.config import Config
from minilora.models.config_json import read_config, write_config
from minilora.models.families import FAMILIES
from minilora.models.generation import next_ids
from minilora.nn import CrossAttention, Gradients, Inputs, KVCache, Memory, Pass
from minilora.ops import IGNORE
from minilora.quantization import Quantized
from minilora.verify import check_model

T, S = 5, 7


def build(gated: bool = False, tied: bool = True, dtype: str = "float64"):
    config = Config(13, 2, 12, 3, d_ff=10, max_length=20, eps=0.01, dtype=dtype, head_dim=5, decoder_layers=3,
                    tied=tied, gated=gated, relative_buckets=8, relative_distance=6)  # fmt: skip
    model, rng = FAMILIES["t5"].build(config, 1), np.random.default_rng(2)
    for p in model.named_parameters().values():
        p.data = (p.data + 0.3 * rng.standard_normal(p.data.shape)).astype(dtype)
    return model


def batch(rng, left=False):
    """ids (3, T), and Inputs with sources (3, S), two of which are padded."""
    real = np.arange(S)[:: -1 if left else 1] < np.array([[S], [4], [1]])
    return rng.integers(0, 13, (3, T)), Inputs(source=rng.integers(0, 13, (3, S)), source_padding=real)


def gradients(model, ids, inputs, dy, run=Pass()):
    _, cache = model.forward(ids, inputs, run)
    grads = Gradients()
    model.backward(dy, cache, grads)
    return grads


@pytest.mark.parametrize("gated", [pytest.param(False, marks=pytest.mark.slow), True])
def test_every_gradient_is_right(gated, rng):
    model, (ids, inputs) = build(gated, not gated), batch(rng)
    dy = rng.standard_normal((3, T, 13))
    grads = gradients(model, ids, inputs, dy)
    report = check_model(model, lambda: (dy * model.forward(ids, inputs)[0]).sum(), grads, rng=rng, directions=1)
    report.raise_if_wrong()
    assert len(report.rows) == len(model.named_parameters())


@settings(max_examples=15, deadline=None)
@given(share=st.sampled_from([0.05, 0.3]), seed=st.integers(0, 99))
def test_the_gradients_are_those_of_what_learns_and_the_same_as_when_all_does(share, seed):
    rng, model = np.random.default_rng(seed), build()
    (ids, inputs), dy = batch(rng), rng.standard_normal((3, T, 13))
    everything = gradients(model, ids, inputs, dy)
    for parameter in everything:
        parameter.trainable = bool(rng.random() < share)
    grads = gradients(model, ids, inputs, dy)
    assert set(grads) == set(model.trainable_parameters().values())
    assert all(gradient.tobytes() == everything[parameter].tobytes() for parameter, gradient in grads.items())


def test_the_gradient_of_the_memory_is_the_sum_over_the_decoders_blocks(rng):
    model, (ids, inputs) = build(), batch(rng)
    memory, dy = model.encode(inputs.source, inputs.source_padding), rng.standard_normal((3, T, 13))
    model.freeze()

    def of_blocks(*learn):
        """dm, where the cross-attentions of the other blocks hand nothing back."""
        grads, m = Gradients(), Memory(memory.data, True, memory.padding)
        blocks = [model[f"block_{i}.cross_attention"] for i in range(3)]
        model.first_trainable = lambda: 1
        caches = model.forward(ids, Inputs(memory=m))[1].decoder
        for i, block in enumerate(blocks):
            cross = caches[i].cross_attention
            if i not in learn:
                caches[i] = caches[i]._replace(
                    cross_attention=cross._replace(projections=(*cross.projections[:3], None))
                )
            assert isinstance(block, CrossAttention)
        super(type(model), model).backward(dy, caches, grads)
        return grads[m]

    whole = of_blocks(0, 1, 2)
    assert close(of_blocks(0) + of_blocks(1) + of_blocks(2), whole, 1e-14)
    assert not close(of_blocks(2), whole, 0.1)
    eps, dm = 1e-6, rng.standard_normal(memory.data.shape)
    up, down = (
        model.forward(ids, Inputs(memory=Memory(memory.data + e * dm, False, memory.padding)))[0] for e in (eps, -eps)
    )
    assert abs((dy * (up - down)).sum() / (2 * eps) - (dm * whole).sum()) < 1e-7 * abs((dm * whole).sum())


@pytest.mark.parametrize("left", [False, True])
def test_padding_of_the_source_on_either_side_changes_no_logit(left, rng):
    model, (ids, inputs) = build(), batch(rng, left)
    y, _ = model.forward(ids, inputs)
    for i, real in enumerate(inputs.source_padding):
        alone, _ = model.forward(ids[i : i + 1], Inputs(source=inputs.source[i : i + 1, real]))
        assert close(alone[0], y[i], 1e-12)


def test_no_word_sees_a_later_one_and_the_first_sees_the_end_of_the_source(rng):
    model, (ids, inputs) = build(), batch(rng)
    y, _ = model.forward(ids, inputs)
    later, source = ids.copy(), inputs.source.copy()
    later[:, -1] = (later[:, -1] + 1) % 13
    source[0, -1] = (source[0, -1] + 1) % 13
    assert np.array_equal(model.forward(later, inputs)[0][:, :-1], y[:, :-1])
    assert np.abs(model.forward(ids, inputs._replace(source=source))[0] - y)[0, 0].max() > 1e-3


def test_word_by_word_with_a_cache_is_the_same_and_makes_keys_and_values_of_the_memory_once(rng):
    model, (ids, inputs) = build(), batch(rng)
    y, _ = model.forward(ids, inputs)
    memory, kv_cache, calls = model.encode(inputs.source, inputs.source_padding), KVCache(T), []
    cross = model["block_0.cross_attention"]
    forward = cross.k_proj.forward
    cross.k_proj.forward = lambda *arguments: calls.append(1) or forward(*arguments)
    for i in range(T):
        one, _ = model.forward(ids[:, i : i + 1], Inputs(memory=memory), Pass(kv_cache=kv_cache))
        assert close(one[:, 0], y[:, i], 1e-12)
    assert len(calls) == 1
    other = model.encode(inputs.source[::-1], inputs.source_padding[::-1])
    assert (cross, other) not in kv_cache.arrays  # the keys of one source are never another's


def test_a_greedy_text_is_that_of_a_forward_over_the_whole_each_time(rng):
    model, source = build(), rng.integers(0, 13, 6)
    expected = [0]
    for _ in range(6):
        expected.append(int(model.forward(np.array([expected]), Inputs(source=source[None]))[0][0, -1].argmax()))
    assert list(next_ids(model, source, 6)) == expected[1:]


def test_the_texts_that_are_missing_or_too_many_are_refused(rng):
    model, (ids, inputs) = build(), batch(rng)
    with pytest.raises(ValueError, match="a t5 reads two texts"):
        model.forward(ids)
    with pytest.raises(ValueError, match=r"is outside the vocabulary 0\.\.12"):
        model.forward(ids, Inputs(source=ids + 13 - ids.min()))
    with pytest.raises(ValueError, match="padding is bool of the ids' shape"):
        model.forward(ids, inputs._replace(source_padding=inputs.source_padding[:, 1:]))
    with pytest.raises(ValueError, match="a llama has no encoder"):
        fresh("llama").forward(ids, inputs)
    with pytest.raises(ValueError, match="reads the output of an encoder"):
        model["block_0.cross_attention"].forward(rng.standard_normal((3, T, 12)))
    with pytest.raises(ValueError, match="one adapter for all rows and all tokens"):
        model.forward(ids, inputs._replace(active=np.ones((3, T), bool)))
    with pytest.raises(ValueError, match="relative_distance = 16 is not above half of the buckets"):
        FAMILIES["t5"].build(Config(13, 1, 12, 3, relative_distance=16), None)


def test_lora_learns_from_batches_of_two_texts_and_leaves_the_base_as_it_was(rng):
    source = rng.integers(1, 13, (40, S))
    real = np.arange(S) < rng.integers(2, S + 1, (40, 1))
    targets = np.where(real[:, :T], source[:, :T], IGNORE)  # to say it after
    ids = np.concatenate([np.zeros((40, 1), int), np.where(real, source, 0)[:, : T - 1]], axis=1)
    data = Batch(ids, targets, source=np.where(real, source, 0), source_padding=real)
    model = build(dtype="float32")
    before = {path: p.data for path, p in model.named_parameters().items()}
    paths = minilora.attach_lora(model, ["q_proj", "v_proj"], r=4, alpha=8, rng=0)
    assert len(paths) == 2 * (2 + 2 * 3)
    history = minilora.fit(model, shuffled(data, 20, seed=0), 60, lr=2e-2, shards=2, description=None)
    assert history.loss[-1] < 0.9 * history.loss[0]
    assert all(data is model.base_parameters()[path].data for path, data in before.items())


def test_a_batch_is_cut_to_its_longest_source_and_its_longest_text():
    real = np.array([[1, 1, 0, 0], [1, 0, 0, 0]], bool)
    source_real = np.array([[1, 0, 0, 0, 0], [1, 1, 1, 0, 0]], bool)
    ones = {name: np.ones((2, n), int) for name, n in (("ids", 4), ("targets", 4), ("source", 5))}
    batch = Batch(**ones, padding=real, source_padding=source_real)
    cut = take(batch, np.array([1]))
    assert (cut.ids.shape, cut.targets.shape, cut.source.shape, cut.source_padding.shape) == (
        (1, 1),
        (1, 1),
        (1, 3),
        (1, 3),
    )
    assert take(batch, np.array([0])).source.shape == (1, 1)


def test_the_matrices_of_both_stacks_are_held_in_four_bits(rng):
    model = build(dtype="float32")
    minilora.models.quantized.quantize(model, "nf4")
    state = model.state_dict()
    assert {state[f"{stack}block_0.attention.q_proj.weight"].name for stack in ("", "encoder.")} == {"nf4"}
    assert not isinstance(state["block_0.attention.relative_bias.weight"], Quantized)


@pytest.mark.parametrize("tied", [True, False])
def test_a_config_comes_back_from_its_config_json(tied):
    model = build(not tied, tied, dtype="float32")
    assert read_config(write_config(model), "config.json", "float32") == ("t5", model.config)


def test_transformers_5_writes_that_the_head_is_tied_where_it_is_not():
    values = write_config(build(True, tied=False)) | {"tie_word_embeddings": True}
    assert not read_config(values | {"scale_decoder_outputs": False}, "config.json", "float32")[1].tied
    with pytest.raises(ValueError, match="feed_forward_proj = 'gated-silu' is not supported"):
        read_config(values | {"feed_forward_proj": "gated-silu"}, "config.json", "float32")


def test_the_arrays_may_be_on_a_gpu(xp, rng):
    model, (ids, inputs) = build(dtype="float32"), batch(rng)
    dy = rng.standard_normal((3, T, 13)).astype("float32")
    expected = gradients(model, ids, inputs, dy)
    model.to(xp)
    found = gradients(model, ids, inputs, xp.asarray(dy))
    numpy = load_backend("numpy")
    model.to(numpy)
    for parameter, gradient in expected.items():
        assert close(minilora.backend.to_numpy(found[parameter]), gradient, 1e-4)


def test_an_activated_adapter_waits_for_its_invocation_in_the_decoder_and_acts_on_all_of_the_source(rng):
    model, plain, (ids, inputs) = build(), build(), batch(rng)
    paths = [f"block_{i}.{part}" for i in range(3) for part in ("attention.v_proj", "cross_attention.v_proj")]
    minilora.attach(model, "alora", paths, invocation_tokens=[12], rng=0)
    for parameter in model.trainable_parameters().values():
        parameter.data = parameter.data + 0.3 * rng.standard_normal(parameter.data.shape)
    ids, source = ids % 12, inputs.source[:, :T]
    y, _ = model.forward(ids, Inputs(source=source))
    assert not close(y, plain.forward(ids, Inputs(source=source))[0], 1e-3)  # by the source alone
    for path in paths[::2]:  # without an invocation those of the decoder's own stream have done nothing
        model[path] = model[path].base
    assert close(model.forward(ids, Inputs(source=source))[0], y, 1e-12)
