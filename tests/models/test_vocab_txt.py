"""Folders of a BERT with a vocab.txt and no tokenizer.json: the ids are those of transformers."""

import json

import examples
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minilora import load_tokenizer
from minilora.models.tokenizer_files import read_tokenizer

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PIECES = [
    "the",
    "The",
    "un",
    "##want",
    "##ed",
    "cafe",
    "café",
    "好",
    "##s",
    ",",
    "!",
    "e",
    "##é",
    "É",
    "##e",
    "x\u2028",
]
LETTERS = [*"abcdefghijklmnopqrstuvwxyzß", *map("##{}".format, "abcdefghijklmnopqrstuvwxyzß1")]
ODD = [
    "unwanted, the Café!", "cafe\u0301 ÉÈ ça", "好好学习 the好e", "a\u0000b\ufffdc\u200bd\u00ade",
    "tab\tand\u00a0space\u3000wide", "[CLS] [MASK] the[SEP]", "İstanbul ǅ ﬁ Straße", "x" * 101, "\u2028x\u2029", "",
    "한국어 日本語 ｱ", "𠀀 😀", "don't-stop…",
]  # fmt: skip
CONFIGS = {
    "nothing": None,
    "cased": {"do_lower_case": False},
    "accents kept": {"strip_accents": False},
    "cased, accents taken": {"do_lower_case": False, "strip_accents": True},
    "Chinese in words": {"tokenizer_class": "BertTokenizerFast", "tokenize_chinese_chars": False},
    "other special tokens": {"tokenizer_class": "BertTokenizer", "unk_token": "e", "cls_token": "<new>"},
}


@pytest.fixture
def folder(tmp_path):
    def write(settings=None, lines=None, ending="\n", model_type="bert"):
        text = ending.join([*SPECIAL, *LETTERS, *PIECES] if lines is None else lines) + ending
        (tmp_path / "vocab.txt").write_bytes(text.encode())
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type, "vocab_size": 256}))
        if settings is not None:
            (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
        return tmp_path

    return write


@pytest.mark.oracle
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("name", CONFIGS)
def test_ids_are_those_of_transformers(name, ending, folder):
    transformers = pytest.importorskip("transformers")
    path = folder(CONFIGS[name], ending=ending)
    theirs, ours = transformers.AutoTokenizer.from_pretrained(path), load_tokenizer(path)
    assert type(theirs).__name__.startswith("BertTokenizer")

    def agree(text):
        assert ours.encode(text).tolist() == theirs(text)["input_ids"]
        assert ours.encode(text, special=False).tolist() == theirs(text, add_special_tokens=False)["input_ids"]
        pair = ours.batch([(text, "the")])
        assert pair.ids[0].tolist() == theirs(text, "the")["input_ids"]
        assert pair.segments[0].tolist() == theirs(text, "the")["token_type_ids"]

    for text in ODD:
        agree(text)
    settings(max_examples=examples.count(60), deadline=None, derandomize=True)(given(st.text(max_size=30))(agree))()
    assert ours.names == theirs.special_tokens_map


def test_a_tokenizer_json_beside_it_is_read_instead(folder):
    path = folder()
    read_tokenizer(path).backend.save(str(path / "tokenizer.json"))
    (path / "vocab.txt").write_text("[PAD]\n")
    assert read_tokenizer(path).vocab > 1


def test_the_folder_of_what_was_read_is_copied_whole(folder):
    path = folder({"do_lower_case": False})
    files = read_tokenizer(path).files()
    assert files["vocab.txt"] == (path / "vocab.txt").read_bytes()
    assert set(files) == {"vocab.txt", "tokenizer_config.json"}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"model_type": "gpt2"}, "a GPT2Tokenizer needs a BPE, and the file holds 'WordPiece'"),
        ({"model_type": "llama"}, "enough for a BertTokenizer only, and none is named"),
    ],
)
def test_what_is_no_berts_vocabulary_is_refused(words, says, folder):
    with pytest.raises(ValueError, match=says) as caught:
        load_tokenizer(folder(**words))
    assert "vocab.txt" in str(caught.value)


def test_a_damaged_one_is_named(folder):
    path = folder()
    (path / "vocab.txt").write_bytes(b"[UNK]\n\xff\n")
    with pytest.raises(ValueError, match=r"vocab\.txt cannot be read: .*UTF-8"):
        load_tokenizer(path)
