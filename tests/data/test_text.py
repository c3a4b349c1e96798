import io
import os
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora import files as checkpoint
from minilora.data import (
    all_windows,
    bigram_bits_per_byte,
    decode_bytes,
    encode_bytes,
    english,
    excerpts,
    lines_of,
    lzma_bits_per_byte,
    python_source,
    random_windows,
    read_whole,
    split_documents,
    split_file,
    text,
    zlib_bits_per_byte,
)
from minilora.ops import IGNORE


@given(st.binary(min_size=2, max_size=400), st.integers(1, 20).map(lambda n: 2 * n), st.integers(1, 5))
def test_all_windows_label_every_byte_but_the_first_exactly_once_and_in_order(data, length, batch):
    labels = [t for b in all_windows(data, batch, length) for row in b.targets for t in row if t != IGNORE]
    assert bytes(labels) == data[1:]


@given(st.binary(min_size=2, max_size=400), st.integers(1, 20).map(lambda n: 2 * n))
def test_a_label_is_the_byte_after_what_was_read(data, length):
    for batch in all_windows(data, 3, length):
        for ids, targets in zip(batch.ids, batch.targets, strict=True):
            real = (targets[:-1] != IGNORE) & (targets[1:] != IGNORE)
            assert (ids[1:][real] == targets[:-1][real]).all()


def test_a_batch_depends_on_seed_and_step_alone():
    data = bytes(range(256)) * 10
    first, again, other = (random_windows(data, 4, 16, seed) for seed in (3, 3, 4))
    first(0)
    assert np.array_equal(first(7).ids, again(7).ids)
    assert not np.array_equal(first(7).ids, other(7).ids)
    assert not np.array_equal(first(7).ids, first(8).ids)
    assert np.array_equal(first(7).ids[:, 1:], first(7).targets[:, :-1])


def test_less_text_than_a_batch_is_refused():
    with pytest.raises(ValueError, match="64 tokens are less than one batch of 4 windows of 16"):
        random_windows(bytes(64), 4, 16, 0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\xff\xfe", "is empty"),  # a byte order mark
        (b"a\0b" * 2, "not UTF-8 text: it holds bytes of 0"),
        (b"\xff\xff", "line 1 is not UTF-8"),
        (b"a\n" * 2**20 + b"\xe9\n", "line 1048577 is not UTF-8: say its encoding, as --encoding cp1252, "),
        (b"a" * 2**20 + b"\xc3", "line 1 is not UTF-8"),  # cut within its last letter
    ],
)
def test_a_file_that_is_no_text_is_refused(tmp_path, content, message):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        split_file(tmp_path / "file")


@given(
    st.text(max_size=30), st.sampled_from(["utf-8", "utf-16", "utf-32", "utf-8-sig", "utf-16-le"]), st.integers(1, 5)
)
def test_a_text_in_any_encoding_is_read_as_its_letters_wherever_it_is_cut(words, encoding, piece):
    words = words.replace("\0", "").replace("\r\n", "\n").lstrip("\ufeff") + "."
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patched:
        path = Path(folder, "file")
        path.write_bytes(words.encode(encoding))
        patched.setattr(text, "PIECE", piece)
        assert read_whole(path, encoding).decode() == words


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("latin-99", "did you mean 'latin-1'?"),
        ("UTF_17", "did you mean 'utf-16'?"),
        ("hex", "'hex' is not known: give one such as utf-16, utf-8"),
        ("?", "give one such"),
    ],
)
def test_an_unknown_encoding_is_refused_and_a_near_one_named(name, says, tmp_path):
    (tmp_path / "file").write_bytes(b"words")
    with pytest.raises(ValueError, match=says):
        read_whole(tmp_path / "file", name)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs the pipes of Unix")
def test_what_has_no_end_is_refused_and_a_pipe_is_read_to_its_end(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="/dev/zero is a device, which may have no end"):
        read_whole("/dev/zero")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="pipe is empty"):  # and no one waits for a writer
        read_whole(tmp_path / "pipe")
    read, write = os.pipe()
    os.write(write, b"words")
    os.close(write)
    assert read_whole(f"/dev/fd/{read}") == b"words"
    os.close(read)
    monkeypatch.setattr(checkpoint, "LARGEST", 9)
    (tmp_path / "file").write_bytes(b"ten bytes.")
    with pytest.raises(ValueError, match="file is larger than the"):
        read_whole(tmp_path / "file")


def test_a_text_is_held_once_as_bytes_and_becomes_ids_as_windows_are_drawn(tmp_path):
    (tmp_path / "file").write_bytes(b"some words\r\n" * 10**6)
    tracemalloc.start()
    split = split_file(tmp_path / "file")
    at = random_windows(split.train, 2, 8, 0)
    windows = next(all_windows(split.train, 2, 8))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2.5 * 12 * 10**6
    assert at(0).ids.dtype == at(0).targets.dtype == windows.ids.dtype == windows.targets.dtype == np.int64


def test_a_line_without_an_end_or_in_another_encoding_is_refused():
    assert list(lines_of(io.StringIO("\ufeffa\nb"))) == ["a\n", "b"]
    with pytest.raises(ValueError, match="standard input is not UTF-8: say its encoding"):
        list(lines_of(io.TextIOWrapper(io.BytesIO(b"caf\xe9\n"), "utf-8")))
    with pytest.raises(ValueError, match="a line has more than 1,048,576 letters"):
        list(lines_of(io.StringIO("a" * (2**20 + 1))))


@pytest.mark.parametrize("corpus", [english, python_source])
def test_a_corpus_every_python_carries_has_three_parts_that_share_no_paragraph_of_note(corpus):
    split = corpus()
    assert all(len(part) > 10_000 for part in split)
    if corpus is english:
        assert not set(split.train.split(b"\n\n")) & (set(split.test.split(b"\n\n")) - {b""})


def test_documents_are_split_by_name_so_that_a_new_one_moves_no_other():
    documents = {f"name{i}": f"text{i}".encode() for i in range(60)}
    fewer = dict(list(documents.items())[:-1])
    for before, after in zip(split_documents(fewer), split_documents(documents), strict=True):
        assert set(before.split(b"\n\n")) <= set(after.split(b"\n\n"))


@given(st.text(max_size=60))
def test_decoding_undoes_encoding(words):
    assert decode_bytes(encode_bytes(words)) == words


@given(st.binary(max_size=60))
def test_the_bytes_of_a_command_line_are_read_as_they_were_typed(typed):
    assert bytes(encode_bytes(typed.decode(errors="surrogateescape")).tolist()) == typed


def test_compressors_and_counting_need_few_bits_for_what_they_were_given():
    given_text = b"the quick brown fox jumps over the lazy dog. " * 40
    for bits_of in (zlib_bits_per_byte, lzma_bits_per_byte):
        assert bits_of(given_text[:400], given_text) < 1 < 5 < bits_of(np.random.default_rng(0).bytes(400), given_text)
    uniform = np.random.default_rng(0).bytes(4000)
    assert bigram_bits_per_byte(given_text, given_text) < 4 < 7.9 < bigram_bits_per_byte(uniform, b"")


def test_excerpts_are_evenly_spread_and_of_the_size_asked_for():
    data = bytes(i // 100 for i in range(20_000))
    sample = excerpts(data, 1600, pieces=16)
    assert len(sample) == 1600
    assert len(set(sample)) >= 16
    assert excerpts(data[:100], 1600) == data[:100]


def test_windows_of_ids_are_those_of_the_bytes_they_stand_for():
    data = bytes(range(100)) * 3
    for windows in (lambda d: [random_windows(d, 4, 16, 3)(7)], lambda d: list(all_windows(d, 4, 16))):
        for ours, theirs in zip(windows(encode_bytes(data)), windows(data), strict=True):
            assert np.array_equal(ours.ids, theirs.ids)
            assert np.array_equal(ours.targets, theirs.targets)
