"""Many prompts at once: each has the logits, ids and draws that it has alone, and costs nothing once it has ended."""

from collections import Counter
from itertools import combinations, pairwise
from typing import Any

import examples
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from models import DECODERS, build, decoder
from peft_models import base, trained

import minilora
from minilora import ops
from minilora.accounting import executed_flops
from minilora.adapters import peft
from minilora.adapters.attach import attach
from minilora.adapters.many import Many
from minilora.adapters.merge import merge
from minilora.adapters.registry import variants
from minilora.models.generation import BATCH, Sampling, generate, next_ids, next_ids_of_each
from minilora.models.transformer import Transformer
from minilora.nn import Inputs, KVCache, Pass

KINDS: dict[str, dict[str, Any]] = DECODERS | {
    "gemma3_text, near": {"sliding_window": 3, "layer_types": ("sliding_attention", "full_attention")},
    "llama, linear": {"rope_scaling": ops.LinearScaling(2.0)},
    "llama, dynamic": {"rope_scaling": ops.DynamicScaling(3.0, 3), "head_dim": 6},
    "smollm3, dynamic": {"rope_scaling": ops.DynamicScaling(4.5, 2), "head_dim": 4, "rotary_layers": (True, False)},
    "gpt2, in bfloat16": {},
}
few = settings(max_examples=examples.count(60), deadline=None, derandomize=True)
prompts_of = st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=14), min_size=1, max_size=5)


def model_of(kind: str) -> Transformer:
    model = build(kind.partition(", ")[0], **KINDS[kind])
    if "bfloat16" in kind:
        minilora.quantize(model, "bfloat16")
    return model


def left_padded(rows, T=None):
    T = T or max(map(len, rows))
    real = np.array([[False] * (T - len(row)) + [True] * len(row) for row in rows])
    ids = np.full(real.shape, 7)
    ids[real] = np.concatenate(rows)
    return ids, real


def alone(model, prompts, tokens, stop=(), samplings=None, adapters=None):
    return [
        list(next_ids(model, np.array(ids), tokens, stop, *([samplings[i]] if samplings else [Sampling()]),
                      **({"adapter": adapters[i]} if adapters else {})))
        for i, ids in enumerate(prompts)
    ]  # fmt: skip


def together(model, prompts, tokens, stop=(), samplings=None, adapters=None):
    found: list[list[int]] = [[] for _ in prompts]
    rows, samplings = [np.array(ids) for ids in prompts], samplings or [Sampling()] * len(prompts)
    for row, i in next_ids_of_each(model, rows, tokens, stop, samplings, adapters):
        found[row].append(i)
    return found


def draws(n, temperature, seed=0):
    return [Sampling(temperature, 6, 0.95, np.random.default_rng([seed, i])) for i in range(n)]


# ---- one forward ----


@pytest.mark.parametrize("kind", KINDS)
@settings(few, max_examples=examples.count(30))
@given(data=st.data())
def test_behind_padding_on_the_left_tokens_have_the_logits_of_their_text_alone(kind, data):
    """The ids come in parts: some have padding, the last are one for each row."""
    model = model_of(kind)
    rows = data.draw(st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=6), min_size=2, max_size=4))
    ids, real = left_padded(rows, T := max(map(len, rows)) + data.draw(st.integers(0, 2)))
    more = np.array(data.draw(st.lists(st.lists(st.integers(0, 12), min_size=3, max_size=3), min_size=4, max_size=4)))
    cuts = sorted({0, data.draw(st.integers(0, T)), T}) if "dynamic" not in kind else [0, T]
    kv_cache, parts = KVCache(T + 3), []
    for start, end in pairwise(cuts):
        inputs = Inputs(real[:, start:end])
        parts.append(model.forward(ids[:, start:end], inputs, Pass(kv_cache=kv_cache))[0])
    parts += [model.forward(more[: len(rows), t : t + 1], run=Pass(kv_cache=kv_cache))[0] for t in range(3)]
    found = np.concatenate(parts, axis=1)
    for b, row in enumerate(rows):
        own, expected = KVCache(len(row) + 3), []
        for new in (row, *more[b, :, None]):
            expected.append(model.forward(np.array([new]), run=Pass(kv_cache=own))[0])
        np.testing.assert_allclose(
            found[b : b + 1, T - len(row) :], np.concatenate(expected, axis=1), rtol=0, atol=1e-10
        )


@pytest.mark.parametrize("kind", ["gpt2", "llama", "mistral"])
def test_what_is_in_the_padding_changes_nothing(kind):
    model, found = model_of(kind), []
    for filler in (0, 5):
        ids, real = left_padded([[3, 1], [4, 1, 5, 9, 2]])
        kv_cache = KVCache(6)
        model.forward(np.where(real, ids, filler), Inputs(real), Pass(kv_cache=kv_cache))
        found.append(model.forward(np.array([[1], [2]]), run=Pass(kv_cache=kv_cache))[0])
    assert np.array_equal(*found)


def test_padding_that_hides_nothing_is_none(rng):
    model, ids = decoder("llama"), rng.integers(0, 13, (2, 4))
    plain, told = KVCache(4), KVCache(4)
    expected, _ = model.forward(ids, run=Pass(kv_cache=plain))
    found, _ = model.forward(ids, Inputs(np.ones((2, 4), bool)), Pass(kv_cache=told))
    assert np.array_equal(found, expected)
    assert told.padded is None


@pytest.mark.parametrize(
    "parts",
    [
        [[[1, 1, 0]]],
        [[[0, 1, 0, 1]]],
        [[[0, 1]], [[0, 1]]],
        [[[1, 1], [0, 0]], [[1, 0], [0, 1]]],
    ],
)
def test_padding_behind_a_token_of_a_kv_cache_is_refused_and_what_was_read_before_stays(parts):
    model, kv_cache = decoder("llama"), KVCache(9)
    *before, last = (np.array(part, bool) for part in parts)
    for real in before:
        model.forward(np.zeros(real.shape, int), Inputs(real), Pass(kv_cache=kv_cache))
    length = kv_cache.length
    with pytest.raises(ValueError, match="behind a token: put it first"):
        model.forward(np.zeros(last.shape, int), Inputs(last), Pass(kv_cache=kv_cache))
    assert kv_cache.length == length
    model.forward(np.zeros(last.shape, int), run=Pass(kv_cache=kv_cache))


def test_only_tokens_count_towards_the_positions_of_the_model():
    model, kv_cache = decoder("gpt2"), KVCache(20)  # of 9 positions
    ids, real = left_padded([[1] * 7, [2] * 3], 9)
    model.forward(ids, Inputs(real), Pass(kv_cache=kv_cache))
    model.forward(ids[:, :2], run=Pass(kv_cache=kv_cache))
    with pytest.raises(ValueError, match="10 tokens are more than the model's 9 positions"):
        model.forward(ids[:, :1], run=Pass(kv_cache=kv_cache))


# ---- ids ----


@pytest.mark.parametrize("kind", KINDS)
@settings(few, max_examples=examples.count(30))
@given(prompts_of, st.integers(0, 12), st.sampled_from([0.0, 0.8]), st.sets(st.integers(0, 12), max_size=3))
@example([[3] * 14, [1, 5], [9, 2, 6, 5, 3, 5, 8, 9, 7], [9, 3, 2]], 15, 0.8, set())
def test_each_of_many_prompts_goes_on_as_alone_past_the_context_too(kind, prompts, tokens, temperature, stop):
    model, n = model_of(kind), len(prompts)
    expected = alone(model, prompts, tokens, stop, draws(n, temperature))
    assert together(model, prompts, tokens, stop, draws(n, temperature)) == expected
    if not stop:
        assert {len(new) for new in expected} == {tokens}


@few
@given(st.data())
def test_a_long_prompt_beside_short_ones_is_read_in_parts_to_the_same_end(data):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("minilora.models.generation.CHUNK", data.draw(st.integers(1, 4)))
        model, prompts = model_of(data.draw(st.sampled_from(list(KINDS)))), data.draw(prompts_of)
        assert together(model, prompts, 5) == alone(model, prompts, 5)


@few
@given(prompts_of, st.permutations(range(5)))
def test_in_another_order_and_among_others_the_ids_are_the_same(prompts, order):
    model = decoder("qwen3")
    order = [i for i in order if i < len(prompts)]
    found = together(model, prompts, 6)
    for rows in (order, order[:2]):
        assert together(model, [prompts[i] for i in rows], 6) == [found[i] for i in rows]


def test_a_row_that_has_ended_is_read_no_more(rng):
    """Of each forward the number of rows; and the FLOPs of the last token of the last row, those of one row."""
    model, prompts = decoder("llama", max_length=30), [rng.integers(0, 13, n).tolist() for n in (2, 5, 3)]

    def ends_by(stop):
        return [next((t for t, i in enumerate(new) if i in stop), 12) for new in alone(model, prompts, 12)]

    stop = next(pair for pair in combinations(range(13), 2) if len({0, *ends_by(pair)}) == 4 and 12 in ends_by(pair))
    ends, shapes, logits, flops, forward = ends_by(stop), [], [], [], model.forward

    def counted(ids, *arguments):
        shapes.append(ids.shape)
        done = []
        flops.append(executed_flops(model, lambda: done.append(forward(ids, *arguments))))
        logits.append(done[0][0].shape)
        return done[0]

    model.forward = counted  # type: ignore[method-assign]
    together(model, prompts, 12, stop)
    rows = [sum(end >= t for end in ends) for t in range(12)]
    assert shapes == [(3, 5), *((B, 1) for B in rows[1:])]
    assert {1, 2, 3} == {*rows}
    assert logits[0] == (3, 13)  # of the prompts only what is behind their last tokens
    of_many = flops[-1]
    last = prompts[int(np.argmax(ends))]
    together(model, [([0] * 5 + last)[-5:]], 12)  # as many columns
    assert of_many == flops[-1]


# ---- adapters, other bases, two texts ----


def named_rows(prompts, names):
    return [names[i % len(names)] for i in range(len(prompts))]


@few
@given(prompts_of, st.permutations(["days", None, "count", "days"]))
def test_each_prompt_has_its_own_adapter(prompts, names):
    model = build("llama")
    adapters = peft.Adapters(model)
    adapters.attach("days", "lora", ["q_proj", "v_proj", "lm_head"], r=2, alpha=9, rng=0)
    adapters.attach("count", "dora", ["v_proj", "down_proj"], r=2, alpha=9, rng=1)
    adapters.activate_by_row()
    trained(model)
    assert any(isinstance(m, Many) for m in model.modules())
    names = named_rows(prompts, names)
    assert together(model, prompts, 7, {3}, adapters=names) == alone(model, prompts, 7, {3}, adapters=names)


@pytest.mark.parametrize("variant", variants())
def test_a_model_with_an_adapter_of_any_variant_does(variant, rng):
    model, prompts = base("qwen2"), [rng.integers(2, 31, n).tolist() for n in (3, 9, 1, 16)]
    attach(model, variant, rng=0, **variants()[variant][0].examples[""])
    trained(model)
    expected = alone(model, prompts, 8)
    assert together(model, prompts, 8) == expected
    if variants()[variant][0].mergeable:
        merge(model)
        assert together(model, prompts, 8) == alone(model, prompts, 8)


@few
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 4)), min_size=2, max_size=4), st.integers(1, 5))
def test_an_activated_adapter_is_on_from_the_invocation_of_each_text_and_padding_is_no_part_of_one(places, chunk):
    word = (0, 3)  # 0 is the id of the padding
    prompts = [[5] * before + [*word] * (before % 2) + [3] + [6] * after for before, after in places]
    prompts.append([3])  # behind padding that ends in 0
    model = build("llama", max_length=24)
    attach(model, "alora", ["q_proj", "v_proj", "down_proj"], rng=0, r=2, alpha=50, invocation_tokens=word)
    trained(model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("minilora.models.generation.CHUNK", chunk)
        assert together(model, prompts, 6) == alone(model, prompts, 6)
    ids, real = left_padded(prompts)
    ids = np.where(real, ids, 0)
    kv_cache = KVCache(ids.shape[1])
    found, _ = model.forward(ids, Inputs(real), Pass(kv_cache=kv_cache))
    for b, row in enumerate(prompts):
        own, _ = model.forward(np.array([row]))
        np.testing.assert_allclose(found[b, -len(row) :], own[0], rtol=0, atol=1e-10)


@few
@given(prompts_of, st.sets(st.integers(0, 12), max_size=2), st.sampled_from([0.0, 0.9]))
def test_sources_of_an_encoder_go_side_by_side_too(prompts, stop, temperature):
    model, prompts = build("t5"), [ids[:9] for ids in prompts]
    samplings = [draws(len(prompts), temperature) for _ in range(2)]
    assert together(model, prompts, 12, stop, samplings[0]) == alone(model, prompts, 12, stop, samplings[1])


def test_the_keys_of_a_source_are_computed_once_and_leave_with_its_row(rng, monkeypatch):
    model, prompts = build("t5", max_length=30), [rng.integers(0, 13, n) for n in (4, 7, 2)]
    each = alone(model, prompts, 6)
    stop = {each[0][1]}
    rows = []
    attention = next(m for m in model.modules() if type(m).__name__ == "CrossAttention")
    forward = attention.k_proj.forward
    monkeypatch.setattr(attention.k_proj, "forward", lambda x, *rest: rows.append(len(x)) or forward(x, *rest))
    assert together(model, prompts, 6, stop) == [new[: ([*new, *stop].index(*stop))] for new in each]
    assert rows == [3]


# ---- draws, and texts ----

TEXTS = ["def f(x):\n", "import", "for i in range(", "x", "class Layer:\n    def "]


@pytest.fixture(scope="module")
def builtin() -> Transformer:
    return minilora.load_pretrained(dtype="float64")


def test_a_list_gives_the_texts_of_one_at_a_time_in_their_order_whatever_the_batch(builtin):
    expected = [generate(builtin, text, 30) for text in TEXTS]
    for batch in (1, 2, BATCH):
        assert generate(builtin, TEXTS, 30, batch=batch) == expected
    assert generate(builtin, [], 30) == []
    assert generate(builtin, tuple(TEXTS[:1]), 30) == expected[:1]  # type: ignore[type-var]


def test_what_is_drawn_for_a_prompt_depends_on_its_place_alone(builtin):
    words: dict[str, Any] = {"tokens": 20, "temperature": 1.0, "top_p": 0.9}
    found = generate(builtin, TEXTS, rng=4, **words)
    for batch in (1, 2, 3):
        assert generate(builtin, TEXTS, rng=4, batch=batch, **words) == found
    assert generate(builtin, TEXTS[:2], rng=4, **words) == found[:2]
    others = ["another ", *TEXTS[1:3], "and more of it"]
    assert generate(builtin, others, rng=4, **words)[1:3] == found[1:3]
    assert generate(builtin, TEXTS[0], rng=4, **words) == found[0] == generate(builtin, TEXTS[:1], rng=4, **words)[0]
    assert len({*generate(builtin, ["x"] * 6, rng=4, **words)}) == 6  # the same prompt again is another draw
    assert generate(builtin, TEXTS, rng=5, **words) != found


def test_draws_of_one_prompt_are_those_that_they_were_before_there_were_many(builtin):
    rng, seen = np.random.default_rng(3), [ord("x")]
    for _ in range(8):
        logits = builtin.forward(np.array([seen]))[0][0, -1]
        seen.append(int((logits / 0.7 - logits.max() / 0.7 + rng.gumbel(size=256)).argmax()))
    assert generate(builtin, "x", 8, temperature=0.7, rng=3) == bytes(seen).decode(errors="replace")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"prompt": ["x", ""]}, "prompt 2 is empty: give at least one character"),
        ({"prompt": [""]}, "the prompt is empty"),
        ({"batch": 0}, "batch = 0 is not a number of prompts"),
        ({"adapter": ["a"]}, "adapters are 1 names, and the batch has 2 rows"),
        ({"adapter": "a"}, "this model has none"),
        ({"temperature": 1.0}, "rng None is neither a seed nor a generator"),
    ],
)
def test_what_cannot_be_continued_is_refused_before_anything_is(builtin, options, says, monkeypatch):
    monkeypatch.setattr("minilora.models.generation.next_ids_of_each", None)
    with pytest.raises(ValueError, match=says):
        generate(builtin, **{"prompt": ["x", "y"], **options})


def test_a_source_that_is_too_long_is_named_before_anything_is_read():
    model = build("t5", vocab_size=256)
    with pytest.raises(ValueError, match="prompt 2 has 12 tokens, more than the model's 9 positions"):
        generate(model, ["short", "a longer one"])
    assert len(generate(model, ["short", "shorter"], 3)) == 2


@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral", "t5"])
@pytest.mark.parametrize("xp", ["fakecupy", pytest.param("cupy", marks=pytest.mark.gpu)], indirect=True)
def test_on_a_gpu_many_prompts_go_on_as_on_a_cpu(family, xp):
    prompts = [[3, 1, 4, 1, 5], [9, 2], [6]]
    model = build(family, **({"sliding_window": 3} if family == "mistral" else {}))
    expected = together(model, prompts, 9, {4})
    model.to(xp)
    assert together(model, prompts, 9, {4}) == expected


# ---- the originals ----


@pytest.mark.oracle
@pytest.mark.parametrize("kind", ["Llama", "GPT2", "Qwen2", "Gemma3", "Mistral, 5"])
def test_ids_are_those_of_generate_in_transformers_with_padding_on_the_left(tmp_path, kind):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    name, _, window = kind.partition(", ")
    words: dict[str, Any] = {"vocab_size": 64, "bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
    words |= {"max_position_embeddings": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    words |= {"num_attention_heads": 4, "num_key_value_heads": 2}
    words |= {"sliding_window": int(window)} if window else {}
    words |= {"head_dim": 8, "sliding_window": 4} if name == "Gemma3" else {}
    config = getattr(transformers, f"{name}{'Text' * (name == 'Gemma3')}Config")(**words)
    theirs = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter += 0.3 * torch.randn(parameter.shape)
    theirs.save_pretrained(tmp_path / "m")
    ours = minilora.load_pretrained(tmp_path / "m")
    prompts = [(np.arange(n) * 7 % 63 + 1).tolist() for n in (3, 17, 1, 9)]
    ids, real = left_padded(prompts)
    options = {"max_new_tokens": 20, "do_sample": False, "attention_mask": torch.tensor(real).long()}
    expected = theirs.generate(torch.tensor(np.where(real, ids, 0)), **options)[:, ids.shape[1] :].tolist()
    assert together(ours, prompts, 20) == expected
    assert max(Counter(expected[0]).values()) < 20  # not one id again and again
