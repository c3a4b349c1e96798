import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora import text
from minilora.ops import IGNORE


@given(st.binary(min_size=2, max_size=400), st.integers(1, 20).map(lambda n: 2 * n), st.integers(1, 5))
def test_all_windows_label_every_byte_but_the_first_exactly_once_and_in_order(data, length, batch):
    labels = [t for b in text.all_windows(data, batch, length) for row in b.targets for t in row if t != IGNORE]
    assert bytes(labels) == data[1:]


@given(st.binary(min_size=2, max_size=400), st.integers(1, 20).map(lambda n: 2 * n))
def test_a_label_is_the_byte_after_what_was_read(data, length):
    for batch in text.all_windows(data, 3, length):
        for ids, targets in zip(batch.ids, batch.targets, strict=True):
            real = (targets[:-1] != IGNORE) & (targets[1:] != IGNORE)
            assert (ids[1:][real] == targets[:-1][real]).all()


def test_a_batch_depends_on_seed_and_step_alone():
    data = bytes(range(256)) * 10
    first, again, other = (text.random_windows(data, 4, 16, seed) for seed in (3, 3, 4))
    first(0)
    assert np.array_equal(first(7).ids, again(7).ids)
    assert not np.array_equal(first(7).ids, other(7).ids)
    assert not np.array_equal(first(7).ids, first(8).ids)
    assert np.array_equal(first(7).ids[:, 1:], first(7).targets[:, :-1])


def test_less_text_than_a_batch_is_refused():
    with pytest.raises(ValueError, match="64 tokens are less than one batch of 4 windows of 16"):
        text.random_windows(bytes(64), 4, 16, 0)


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "is empty"), (b"a\0b", "not UTF-8 text"), (b"\xff\xfe", "not UTF-8 text")]
)
def test_a_file_that_is_no_text_is_refused(tmp_path, content, message):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        text.read_text(tmp_path / "file")


@pytest.mark.parametrize("corpus", [text.english, text.python_source])
def test_a_corpus_every_python_carries_has_three_parts_that_share_no_paragraph_of_note(corpus):
    split = corpus()
    assert all(len(part) > 10_000 for part in split)
    if corpus is text.english:
        assert not set(split.train.split(b"\n\n")) & (set(split.test.split(b"\n\n")) - {b""})


def test_documents_are_dealt_by_name_so_that_a_new_one_moves_no_other():
    documents = {f"name{i}": f"text{i}".encode() for i in range(60)}
    fewer = dict(list(documents.items())[:-1])
    for before, after in zip(text.deal(fewer), text.deal(documents), strict=True):
        assert set(before.split(b"\n\n")) <= set(after.split(b"\n\n"))


@given(st.text(max_size=60))
def test_decoding_undoes_encoding(words):
    assert text.decode(text.encode(words)) == words


@given(st.binary(max_size=60))
def test_the_bytes_of_a_command_line_are_read_as_they_were_typed(typed):
    assert bytes(text.encode(typed.decode(errors="surrogateescape")).tolist()) == typed


def test_compressors_and_counting_need_few_bits_for_what_they_were_given():
    given_text = b"the quick brown fox jumps over the lazy dog. " * 40
    for judge in (text.zlib_bits_per_byte, text.lzma_bits_per_byte):
        assert judge(given_text[:400], given_text) < 1 < 5 < judge(np.random.default_rng(0).bytes(400), given_text)
    uniform = np.random.default_rng(0).bytes(4000)
    assert text.bigram_bits_per_byte(given_text, given_text) < 4 < 7.9 < text.bigram_bits_per_byte(uniform, b"")


def test_excerpts_are_evenly_spread_and_of_the_size_asked_for():
    data = bytes(i // 100 for i in range(20_000))
    cut = text.excerpts(data, 1600, pieces=16)
    assert len(cut) == 1600
    assert len(set(cut)) >= 16
    assert text.excerpts(data[:100], 1600) == data[:100]


def test_windows_of_ids_are_those_of_the_bytes_they_stand_for():
    data = bytes(range(100)) * 3
    for windows in (lambda d: [text.random_windows(d, 4, 16, 3)(7)], lambda d: list(text.all_windows(d, 4, 16))):
        for ours, theirs in zip(windows(text.encode(data)), windows(data), strict=True):
            assert np.array_equal(ours.ids, theirs.ids)
            assert np.array_equal(ours.targets, theirs.targets)
