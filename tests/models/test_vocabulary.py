"""Tokens added to a vocabulary: the new rows, what they cost before they learn, and the new ids of the tokenizer."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_tokenizers import MADE
from models import build, some_batch

from minilora import attach_lora, ops
from minilora.models.quantized import quantize
from minilora.models.tokenizer import ByteTokenizer
from minilora.models.tokenizer_files import read_tokenizer
from minilora.models.vocabulary import add_rows, over_bytes, read_tokens, with_tokens

V, N = 13, 5
CASES = [("gpt2", True), ("llama", True), ("llama", False), ("bert", True)]


def loss(logits, targets):
    return float(ops.cross_entropy_forward(logits, targets)[0])


@pytest.mark.parametrize(("family", "tied"), CASES)
def test_a_new_token_has_the_mean_of_the_old_logits_and_the_old_have_what_they_had(family, tied, rng):
    model, batch = build(family, tied=tied), some_batch(rng)
    before = model.forward(batch.ids, batch.inputs)[0]
    add_rows(model, N)
    after = model.forward(batch.ids, batch.inputs)[0]
    np.testing.assert_allclose(after[..., :V], before, rtol=1e-12)
    np.testing.assert_allclose(after[..., V:], np.repeat(before.mean(-1, keepdims=True), N, -1), rtol=1e-10)
    assert (model.config.vocab_size, model.added_tokens) == (V + N, N)
    assert (model["lm_head"].weight is model["embed.token"].weight) == tied


@pytest.mark.parametrize("zeros", [False, True])
def test_the_loss_of_the_old_text_rises_by_at_most_log_1_plus_n_over_V_and_with_rows_of_0_it_may_rise_by_more(
    zeros, rng
):
    model, batch = build("llama", tied=False), some_batch(rng)
    head = model["lm_head"].weight
    head.data = head.data + 3 * rng.standard_normal(head.data.shape[1])  # a common part: all logits are far from 0
    before = model.forward(batch.ids)[0]
    add_rows(model, N, {"lm_head": np.zeros((V + N, 12))} if zeros else {})
    after = model.forward(batch.ids)[0]
    rise = [
        loss(after[:, t], np.zeros(3, int)) - loss(before[:, t], np.zeros(3, int)) for t in range(batch.ids.shape[1])
    ]
    assert min(rise) > 0
    assert (max(rise) <= np.log(1 + N / V)) is not zeros


@pytest.mark.parametrize("format", ["bfloat16", "float16", "nf4", "int8"])
def test_a_table_in_16_bits_grows_and_its_old_rows_keep_their_codes(format):
    model = build("llama", dtype="float32")
    quantize(model, format)
    before = model["embed.token"].dense()
    add_rows(model, N)
    W = model["embed.token"].weight.data
    assert W.name in ("bfloat16", "float16")
    assert np.array_equal(W.dense()[:V], before)
    np.testing.assert_allclose(W.dense()[V:], np.tile(before.mean(0), (N, 1)), rtol=2**-8)
    assert not model["embed.token"].weight.trainable


def test_an_adapted_table_is_refused_and_left_as_it_was():
    model = build("llama", tied=False)
    attach_lora(model, ["lm_head"], rng=0)
    with pytest.raises(ValueError, match="lm_head is adapted already: add the tokens first"):
        add_rows(model, N)
    assert model.config.vocab_size == len(model["embed.token"].weight.data) == V


# ---- the tokenizer ----


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
def test_bytes_as_a_tokenizer_of_the_package_are_bytes(text):
    theirs = over_bytes()
    assert theirs.encode(text).tolist() == ByteTokenizer().encode(text).tolist()
    assert theirs.decode(theirs.encode(text)) == text


@pytest.mark.parametrize("kind", MADE)
def test_a_new_token_is_one_id_after_the_others_and_comes_back_also_from_the_files(kind, tmp_path):
    old = MADE[kind]
    new = with_tokens(old, ["<x>", "qqz jj"])
    assert new.vocab == old.vocab + 2
    ids = new.encode("a<x>b qqz jj.", special=False).tolist()
    assert [i for i in ids if i >= old.vocab] == [old.vocab, old.vocab + 1]
    assert old.encode("a<x>b", special=False).max() < old.vocab  # it was not written to
    text = "It is as it was."
    assert new.encode(text).tolist() == old.encode(text).tolist()
    for name, content in new.files().items():
        (tmp_path / name).write_bytes(content)
    again = read_tokenizer(tmp_path)
    assert again.encode("a<x>b qqz jj.").tolist() == new.encode("a<x>b qqz jj.").tolist()
    assert again.decode(ids) == new.decode(ids)
    assert again.stop == old.stop


def test_what_is_a_token_already_or_would_not_come_back_is_refused():
    with pytest.raises(ValueError, match="'e' is a token already, 101: leave it out"):
        with_tokens(ByteTokenizer(), ["<x>", "e"])
    for token in ("é", "Ã©", "Ġx"):  # letters that stand for bytes: the decoder makes another text of them
        with pytest.raises(ValueError, match=f"'{token}' cannot be a token"):
            with_tokens(ByteTokenizer(), ["<x>", token])


@pytest.mark.parametrize(
    ("content", "says"),
    [("<a>\n\n<b>\n", "line 2 is empty"), ("<a>\n<b>\n<a>\n", "line 3 is '<a>' again"), ("", "is empty")],
)
def test_a_file_of_tokens_that_is_wrong_is_refused_with_the_line(content, says, tmp_path):
    (tmp_path / "t").write_text(content)
    with pytest.raises(ValueError, match=re.escape(says)):
        read_tokens(tmp_path / "t")


def test_spaces_are_part_of_a_token(tmp_path):
    (tmp_path / "t").write_bytes(b" a \r\n<b>")
    assert read_tokens(tmp_path / "t") == [" a ", "<b>"]
