"""Generation: what is kept of earlier tokens changes nothing, and a draw comes from the distribution it names."""

from collections import Counter
from typing import Any

import examples
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import DECODERS, build, decoder

import minilora
from minilora.models.generation import CHUNK, Sampling, generate, next_ids, stream
from minilora.models.tokenizer import Tokenizer
from minilora.models.transformer import Transformer
from minilora.nn import KVCache, Pass

few = settings(max_examples=examples.count(25), deadline=None, derandomize=True)


@pytest.fixture(params=DECODERS)
def model(request) -> Transformer:
    return decoder(request.param)


def uncached(model: Transformer, ids: np.ndarray, tokens: int, *options: Any) -> list[int]:
    """The plain way: everything again for each token."""
    for _ in range(tokens):
        logits, _ = model.forward(ids[None, -model.config.max_length :])
        ids = np.append(ids, Sampling(*options).choose(logits[0, -1]))
    return ids[-tokens:].tolist()


@few
@given(data=st.data())
def test_tokens_that_come_in_parts_have_the_logits_of_the_whole(data):
    model = decoder(data.draw(st.sampled_from(list(DECODERS))))
    ids = np.array([data.draw(st.lists(st.integers(0, 12), min_size=1, max_size=9))])
    whole, _ = model.forward(ids)
    ends = sorted({data.draw(st.integers(1, ids.shape[1])) for _ in range(3)} | {ids.shape[1]})
    kv_cache, start, parts = KVCache(ids.shape[1]), 0, []
    for end in ends:
        parts.append(model.forward(ids[:, start:end], run=Pass(kv_cache=kv_cache))[0])
        start = end
    assert kv_cache.length == ids.shape[1]
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, rtol=0, atol=1e-12 * np.abs(whole).max())


def test_with_a_past_nothing_is_kept_for_a_backward(model, rng):
    ids = rng.integers(0, 13, (1, 3))
    assert model.forward(ids)[1]
    assert model.forward(ids, run=Pass(kv_cache=KVCache(3)))[1] == []


@pytest.mark.each_value
@pytest.mark.parametrize("prompt", [1, 4, 9, 14])  # the context is 9
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_with_a_cache_and_without_the_tokens_are_the_same_also_past_the_context(model, prompt, temperature, rng):
    ids = rng.integers(0, 13, prompt)
    cached = next_ids(model, ids, 15, (), Sampling(temperature, 5, 0.9, np.random.default_rng(3)))
    assert list(cached) == uncached(model, ids, 15, temperature, 5, 0.9, np.random.default_rng(3))


@pytest.mark.parametrize("window", [None, 5, CHUNK, CHUNK + 9])
def test_a_long_prompt_is_read_in_parts_to_the_same_end(window, rng):
    model = build("mistral", max_length=3 * CHUNK, sliding_window=window)
    ids = rng.integers(0, 13, 2 * CHUNK + 3)
    assert list(next_ids(model, ids, 6)) == uncached(model, ids, 6, 0.0, 0, 1.0, None)


@pytest.mark.parametrize("window", [1, 2, 5, 40])
def test_of_a_layer_with_a_window_no_more_keys_are_kept_than_the_next_token_sees(window, rng):
    model, kv_cache = build("mistral", max_length=30, sliding_window=window), KVCache(30)
    for T in (7, 1, 1, 9, 2):
        model.forward(rng.integers(0, 13, (1, T)), run=Pass(kv_cache=kv_cache))
    assert kv_cache.length == 20
    assert [k.shape[1] for k, _ in kv_cache.arrays.values()] == [min(20, window - 1)] * 2


def test_an_adapter_takes_part(model, rng):
    ids = rng.integers(0, 13, 4)
    before = list(next_ids(model, ids, 5))
    minilora.attach_lora(model, "all-linear", r=2, alpha=40, rng=rng)
    for path, parameter in model.named_parameters().items():
        if path.endswith("lora_B"):
            parameter.data = rng.standard_normal(parameter.data.shape)
    after = list(next_ids(model, ids, 5))
    assert after == uncached(model, ids, 5, 0.0, 0, 1.0, None) != before


def test_a_stop_ends_the_text_and_is_not_part_of_it(model, rng):
    ids = rng.integers(0, 13, 4)
    free = list(next_ids(model, ids, 8))
    stop = free[3]
    assert list(next_ids(model, ids, 8, stop={stop})) == free[: free.index(stop)]


# ---- a draw ----


@few
@given(
    st.lists(st.floats(-4, 4), min_size=2, max_size=7),
    st.floats(0.3, 2),
    st.integers(0, 8),
    st.sampled_from([1.0, 0.95, 0.6, 0.01]),
)
def test_a_draw_is_from_the_softmax_of_the_top_k_and_of_these_from_the_fewest_that_have_top_p(z, temperature, k, p):
    z = np.array(z)
    P = np.exp(z / temperature - (z / temperature).max())
    order = np.argsort(-P, kind="stable")
    if 0 < k < len(z):
        P[P[order[k - 1]] > P] = 0  # those that are as probable as the k-th stay
    P /= P.sum()
    while len(order) > 1 and P[order[:-1]].sum() >= p:  # the least can go while the others have p
        order = order[:-1]
    kept = np.zeros(len(z))
    kept[order] = P[order] / P[order].sum()
    rng, n = np.random.default_rng(0), 2000
    drawn = Counter(Sampling(temperature, k, p, rng).choose(z) for _ in range(n))
    found = np.array([drawn[i] for i in range(len(z))]) / n
    assert not found[kept < 1e-12].any()
    assert np.abs(found - kept).max() < 5 * np.sqrt(0.25 / n)


def test_the_most_probable_is_taken_at_temperature_zero_and_at_the_least_above(rng):
    z = rng.standard_normal(9)
    assert {Sampling(t, 0, 1.0, rng).choose(z) for t in (0.0, 1e-320, 1e-9)} == {int(z.argmax())}


# ---- text ----


def test_a_stream_is_the_text_piece_by_piece():
    model = minilora.load_pretrained()
    pieces = list(stream(model, "Return the ", 30))
    assert len(pieces) > 20
    assert "Return the " + "".join(pieces) == generate(model, "Return the ", 30)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"prompt": ""}, "the prompt is empty"),
        ({"temperature": -1.0}, "temperature -1.0 is not a finite number"),
        ({"temperature": float("nan")}, "temperature nan"),
        ({"temperature": 1.0}, "rng None is neither a seed nor a generator"),
        ({"top_k": -1}, "top_k = -1 is below 0"),
        ({"top_p": 0.0}, "top_p = 0.0 is not a probability"),
        ({"top_p": 1.1}, "top_p = 1.1 is not a probability"),
    ],
)
def test_what_cannot_be_drawn_from_is_refused_before_the_first_piece(options, says):
    with pytest.raises(ValueError, match=says):
        stream(minilora.load_pretrained(), **{"prompt": "x", **options})


def test_an_encoder_a_classifier_and_another_vocabulary_are_refused(rng):
    shape: dict[str, Any] = {"n_layers": 1, "d_model": 8, "n_heads": 2}
    for family, words in (("bert", {}), ("roberta", {"offset": 2}), ("gpt2", {"head": "classify"})):
        model = getattr(minilora, family)(minilora.Config(vocab_size=256, **shape, **words), rng)
        with pytest.raises(ValueError, match="does not continue texts"):
            generate(model, "x")
    with pytest.raises(ValueError, match="a vocabulary of 256: this model's is 300"):
        generate(minilora.gpt2(minilora.Config(vocab_size=300, **shape), rng), "x")

    class Large(Tokenizer):
        vocab = 300

        def encode(self, text, special=True):
            return np.zeros(1, np.int64)

    with pytest.raises(ValueError, match="the tokenizer has 300 ids"):
        generate(minilora.gpt2(minilora.Config(vocab_size=299, **shape), rng), "x", tokenizer=Large())


def test_a_token_past_the_context_is_refused(rng):
    ids = rng.integers(0, 13, (1, 3))
    kv_cache = KVCache(20)
    kv_cache.length = 7
    with pytest.raises(ValueError, match="10 tokens are more than the model's 9 positions"):
        build("llama").forward(ids, run=Pass(kv_cache=kv_cache))
