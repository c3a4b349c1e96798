import re
import struct
import sys
from itertools import pairwise
from unicodedata import category, normalize

import examples
import numpy as np
import pytest
from damage import bounded, mutate, refusal
from hypothesis import given, settings
from hypothesis import strategies as st
from made_gguf import KV, TYPES, VALUES, C, D, F, H, V, byte_level_values, random_tensors, shapes, write
from real import agree, real, theirs_in

from minilora.data import english
from minilora.models.gguf import read_gguf, rotary_halves
from minilora.models.gguf_file import WEIGHT_TYPES, read_header
from minilora.models.gguf_tokens import build, gguf_tokenizer

gguf = pytest.importorskip("gguf")
tokenizers = pytest.importorskip("tokenizers")

TEXT = "Héllo, wörld!\n\tIt's 2024: 👩‍🚀 日本語 — don't \x00\x07 x."


def their_permutation(weights, heads):
    """What llama.cpp's converter does to the rows of q and k."""
    halves = weights.reshape(heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:])
    return halves.swapaxes(1, 2).reshape(weights.shape)


@given(heads=st.integers(1, 5), half=st.integers(1, 6), columns=st.none() | st.integers(1, 3))
def test_the_order_of_rotary_rows_is_undone_row_by_row(heads, half, columns):
    W = np.random.default_rng(0).standard_normal((heads * 2 * half, *([columns] if columns else [])))
    stored = their_permutation(W, heads)
    assert np.array_equal(rotary_halves(stored, heads), W)
    for h, s, i in np.ndindex(heads, 2, half):  # the docstring's formula
        assert np.array_equal(W[h * 2 * half + s * half + i], stored[h * 2 * half + 2 * i + s])


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "gpt2", "smollm3"])
def test_every_tensor_comes_back_under_its_name_in_hugging_faces_layout(tmp_path, architecture, tied):
    stored = random_tensors(architecture, tied)
    values, tensors = read_gguf(write(tmp_path / "m.gguf", architecture, stored))
    assert len(tensors) == len(stored)
    assert values["tie_word_embeddings"] is tied
    assert ("lm_head.weight" in tensors) is not tied
    first = "transformer.h.0." if architecture == "gpt2" else "model.layers.0."
    if architecture == "gpt2":
        assert np.array_equal(tensors[first + "attn.c_attn.weight"], stored["blk.0.attn_qkv.weight"])
        assert np.array_equal(tensors[first + "attn.c_attn.bias"], stored["blk.0.attn_qkv.bias"])
        assert np.array_equal(tensors["transformer.wte.weight"], stored["token_embd.weight"])
    else:
        k = stored["blk.0.attn_k.weight"]
        expected = rotary_halves(k, KV) if architecture in ("llama", "smollm3") else k
        assert np.array_equal(tensors[first + "self_attn.k_proj.weight"], expected)
        assert np.array_equal(tensors[first + "mlp.down_proj.weight"], stored["blk.0.ffn_down.weight"])
    if architecture == "qwen3":
        assert np.array_equal(tensors[first + "self_attn.k_norm.weight"], stored["blk.0.attn_k_norm.weight"])
    assert all(x.dtype == np.float32 for x in tensors.values())


def test_a_bias_that_a_family_has_not_is_refused(tmp_path):
    biased = random_tensors() | {"blk.0.attn_q.bias": np.ones(H * D, np.float32)}
    with pytest.raises(ValueError, match=r"the tensor 'blk\.0\.attn_q\.bias' has no place in a llama model"):
        read_gguf(write(tmp_path / "m.gguf", tensors=biased))


@pytest.mark.parametrize("kind", WEIGHT_TYPES)
def test_each_type_of_weights_is_decoded_as_the_package_decodes_it(tmp_path, kind):
    wide = {"embedding_length": 256, "attention.head_count": 32, "attention.head_count_kv": 32}
    rng, tensors = np.random.default_rng(0), {}
    for name, shape in shapes("llama").items():
        x = rng.standard_normal([256 if size in (C, KV * D) else size for size in shape], np.float32)
        if x.ndim == 2 and x.shape[1] == 256 and kind in ("Q4_K", "Q6_K"):  # the package cannot write these
            blocks = rng.integers(0, 256, (x.shape[0], gguf.GGML_QUANT_SIZES[TYPES[kind]][1]), np.uint8)
            scales = (0, 2) if kind == "Q4_K" else (208,)
            for start in scales:
                blocks[:, start : start + 2] = rng.random((x.shape[0], 1)).astype(np.float16).view(np.uint8)
            x = blocks
        tensors[name] = x
    _, read = read_gguf(write(tmp_path / "m.gguf", tensors=tensors, values=wide, kind=kind))
    up = tensors["blk.1.ffn_up.weight"]
    if up.dtype == np.float32 and kind != "F32":
        up = gguf.quantize(up, TYPES[kind])
    found = read["model.layers.1.mlp.up_proj.weight"]
    assert np.array_equal(found, gguf.dequantize(up, TYPES[kind]))
    assert found.shape == (F, 256)
    assert len(np.unique(found)) > 15


def llama3_factors(theta=500000.0, factor=8.0, low=1.0, high=4.0, old=8192):
    """As llama.cpp's converter computes them."""
    factors = []
    for i in range(0, D, 2):
        wavelength = 2 * np.pi * theta ** (i / D)
        if wavelength < old / high:
            factors.append(1.0)
        elif wavelength > old / low:
            factors.append(factor)
        else:
            smooth = (old / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(factors, np.float32)


def test_a_value_is_read_as_the_decimal_that_was_written(tmp_path):
    values, _ = read_gguf(write(tmp_path / "m.gguf"))
    assert values["rms_norm_eps"] == 1e-5  # which the file holds as a float32: 9.99999974737e-06
    assert values["rope_theta"] == 5000.0


@pytest.mark.parametrize("factor", [8.0, 32.0])
@pytest.mark.parametrize("theta", [500000.0, 3e7, 2e5])  # frequencies below, within and above the smooth part
def test_the_factors_of_llama_3_become_its_rule_and_other_factors_are_refused(tmp_path, theta, factor):
    def read(factors):
        tensors = random_tensors() | {"rope_freqs.weight": np.asarray(factors, np.float32)}
        return read_gguf(write(tmp_path / "m.gguf", tensors=tensors, values={"rope.freq_base": theta}))

    values, tensors = read(llama3_factors(theta, factor))
    assert values["rope_scaling"] == {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    assert not any("rope" in name for name in tensors)
    for wrong in ([1.0, 2.0, 3.0, 4.0], llama3_factors(theta, factor, old=80), [0.0] * 4, llama3_factors()[:3]):
        with pytest.raises(ValueError, match=r"rope_freqs\.weight"):
            read(wrong)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"expert_count": 8}, r"llama\.expert_count' = 8 is not supported, only 0"),
        ({"expert_count": [0, 0]}, r"llama\.expert_count' = .* is not supported, only 0"),
        ({"new\nline": 1}, r"'llama\.new\\nline' = 1 is not supported"),
        ({"rope.scaling.type": "yarn"}, r"rope_scaling = {'rope_type': 'yarn', .* is not supported"),
        (
            {"rope.scaling.type": "longrope", "rope.scaling.factor": 4.0},
            r"rope_scaling = .*'longrope'.* is not supported",
        ),
        ({"rope.dimension_count": 4}, r"rope\.dimension_count is not the width of a head, 8: not supported"),
        ({"attention.key_length": 7, "rope.dimension_count": 7}, r"a head's width must be even, and 7 is not"),
        ({"attention.head_count": [4, 4]}, r"attention\.head_count' = .* is not supported"),
        ({"block_count": 0}, r"num_hidden_layers = 0 is not supported"),
        ({"block_count": 3}, r"the tensor 'blk\.2\.attn_norm\.weight' is missing"),
        ({"block_count": 2**31 - 1}, r"it has 2147483647 blocks and 20 tensors: some are missing"),
        ({"block_count": 1}, r"the tensor 'blk\.1\..*' has no place in a llama model"),
        ({"feed_forward_length": 2**30}, r"'blk\.0\.ffn_gate\.weight' has shape \(128, 32\), not \(1073741824, 32\)"),
        ({"attention.head_count_kv": 4}, r"'blk\.0\.attn_k\.weight' has shape"),
        ({"vocab_size": 301}, r"vocab_size = 301, and the embedding has 300 rows"),
        ({"attention.layer_norm_rms_epsilon": float("nan")}, r"rms_epsilon' = nan is not supported"),
        ({"embedding_length": None}, r"its header lacks 'hidden_size'"),
    ],
)
def test_values_that_are_not_supported_or_do_not_fit_the_tensors_are_refused(tmp_path, values, message):
    with pytest.raises(ValueError, match=rf"m\.gguf cannot be read as GGUF: .*{message}"):
        read_gguf(write(tmp_path / "m.gguf", values=values))


@pytest.mark.parametrize("key", ["attention.sliding_window", "attention.sliding_window_pattern"])
def test_a_sliding_window_is_not_used_as_in_llama_cpp_and_that_is_said(tmp_path, key):
    plain = read_gguf(write(tmp_path / "plain.gguf"))[0]
    with pytest.warns(UserWarning, match=rf"m\.gguf: llama\.{key} is not used, as llama\.cpp does not use it"):
        values, _ = read_gguf(write(tmp_path / "m.gguf", values={key: 2}))
    assert values == plain


def test_tensors_without_a_place_and_types_without_a_decoder_are_named(tmp_path):
    more = random_tensors() | {"blk.0.attn_q_norm.weight": np.ones(8, np.float32)}
    with pytest.raises(ValueError, match=r"'blk\.0\.attn_q_norm\.weight' has no place in a llama model"):
        read_gguf(write(tmp_path / "m.gguf", tensors=more))
    wide = {"token_embd.weight": np.ones((V, 256), np.float32)}
    with pytest.raises(ValueError, match=r"is of type TQ1_0: supported are F32, F16, BF16, Q8_0, Q4_0"):
        read_gguf(write(tmp_path / "m.gguf", values={"embedding_length": 256}, tensors=wide, kind="TQ1_0"))
    writer = gguf.GGUFWriter(tmp_path / "other.gguf", "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(
        ValueError, match=r"architecture 'mamba' is not supported, only gemma3, gpt2, llama, .*qwen2, qwen3"
    ):
        read_gguf(tmp_path / "other.gguf")


@pytest.mark.parametrize(("number", "kind"), [(np.nan, "F32"), (np.inf, "F16"), (np.nan, "Q8_0"), (-np.inf, "Q4_1")])
def test_a_number_that_is_not_finite_is_named(tmp_path, number, kind):
    path = write(tmp_path / "m.gguf", kind=kind)
    entry = read_header(path).entries["blk.1.ffn_gate.weight"]
    content = bytearray(path.read_bytes())
    content[entry.start : entry.start + (4 if kind == "F32" else 2)] = (
        np.float32(number) if kind == "F32" else np.float16(number)
    ).tobytes()
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"m\.gguf: the tensor 'blk\.1\.ffn_gate\.weight' holds numbers that are not"):
        dict(read_gguf(path)[1])


def header(values=b"", tensors=b"", value_count=0, tensor_count=0, version=3):
    return b"GGUF" + struct.pack("<IQQ", version, tensor_count, value_count) + values + tensors


def text(content):
    return struct.pack("<Q", len(content)) + content


def tensor(name, dimensions, kind=0, offset=0):
    return text(name) + struct.pack(f"<I{len(dimensions)}QIQ", len(dimensions), *dimensions, kind, offset)


HUGE = 2**64 - 1
HOSTILE = {
    "empty": (b"", "it ends after 0 bytes"),
    "another format": (b"PK\x03\x04" + bytes(40), "does not start with the letters GGUF"),
    "highest byte first": (header(version=3 << 24), "version 50331648 is not supported"),
    "endless values": (header(value_count=HUGE), "it ends after 24 bytes"),
    "endless tensors": (header(tensor_count=HUGE), "it ends after 24 bytes"),
    "endless key": (header(struct.pack("<Q", HUGE) + b"x", value_count=1), "18446744073709551615 more are to come"),
    "endless numbers": (header(text(b"a") + struct.pack("<IIQ", 9, 4, HUGE), value_count=1), "more are to come"),
    "endless texts": (header(text(b"a") + struct.pack("<IIQ", 9, 8, HUGE), value_count=1), "more are to come"),
    "nested arrays": (header(text(b"a") + struct.pack("<IIQ", 9, 9, 1), value_count=1), "type 9 .* is not known"),
    "unknown value": (header(text(b"a") + struct.pack("<I", 77), value_count=1), "type 77 .* is not known"),
    "no text": (header(text(b"\xff") + bytes(5), value_count=1), "not UTF-8"),
    "key twice": (header((text(b"a") + struct.pack("<IB", 0, 1)) * 2, value_count=2), "'a' is in it twice"),
    "tensor twice": (header(tensors=tensor(b"x", [1]) * 2, tensor_count=2), "'x' is in it twice"),
    "no dimensions": (header(tensors=tensor(b"x", []), tensor_count=1), "has 0 dimensions"),
    "endless dimensions": (header(tensors=text(b"x") + b"\xff" * 4, tensor_count=1), "4294967295 dimensions"),
    "a product beyond 2⁶⁴": (header(tensors=tensor(b"x", [2**32] * 4), tensor_count=1), "would end at byte"),
    "no elements": (header(tensors=tensor(b"x", [32, 0]), tensor_count=1), "does not divide"),
    "half a block": (header(tensors=tensor(b"x", [31], 8), tensor_count=1), "does not divide into blocks of 32"),
    "unknown weights": (header(tensors=tensor(b"x", [32], 99), tensor_count=1), "of type number 99"),
    "far away": (header(tensors=tensor(b"x", [1], 0, 2**63), tensor_count=1), "would end at byte"),
    "between": (header(tensors=tensor(b"x", [1], 0, 1), tensor_count=1) + bytes(99), "not a multiple of 32"),
    "overlap": (header(tensors=tensor(b"x", [9]) + tensor(b"y", [9], 0, 32), tensor_count=2) + bytes(199), "overlap"),
    "alignment": (
        header(text(b"general.alignment") + struct.pack("<II", 4, 0), value_count=1),
        r"general\.alignment = 0 is not a power of two",
    ),
    "many architectures": (
        header(text(b"general.architecture") + struct.pack("<IIQ", 9, 8, 1) + text(b"llama"), value_count=1),
        r"architecture \['llama'\] is not supported|tokens is missing",
    ),
    "parts": (header(text(b"split.count") + struct.pack("<IH", 2, 3), value_count=1), "one of 3 parts"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_in_one_line(tmp_path, name):
    content, message = HOSTILE[name]
    (tmp_path / "m.gguf").write_bytes(content)
    for read, start in ((read_gguf, "cannot be read as GGUF"), (gguf_tokenizer, "holds no tokenizer that can be read")):
        with bounded(), pytest.raises(ValueError, match=rf"m\.gguf {start}: .*{message}") as caught:
            read(tmp_path / "m.gguf")
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 500


def test_a_missing_file_and_a_missing_package_say_what_to_do(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"m\.gguf is missing"):
        read_gguf(tmp_path / "m.gguf")
    path = write(tmp_path / "m.gguf")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ImportError, match="pip install 'gguf>="):
        read_gguf(path)


def fuzz(folder, seed, count):
    """Read `count` damaged files, and count the refusals: each is one line, within the bounds of time and memory."""
    whole = write(folder / "whole.gguf", kind="Q8_0")
    # Most of a header is its vocabulary: a second file without one, so that every other byte has its turn.
    bare = write(folder / "bare.gguf", vocabulary={}, kind="Q4_1")
    scored = write(folder / "scored.gguf", "gpt2", vocabulary=sentence_piece_values())
    files = [
        (path.read_bytes(), min(one.start for one in read_header(path).entries.values()))
        for path in (whole, bare, scored)
    ]
    damaged, refused = folder / "damaged.gguf", 0
    for i in range(count):
        damaged.write_bytes(mutate(*files[i % 3], np.random.default_rng([seed, i])))
        for read in (lambda path: dict(read_gguf(path)[1]), gguf_tokenizer):
            line = refusal(read, damaged)
            refused += line is not None
            assert line is None or str(damaged) in line, (seed, i, line)
    return refused


def test_a_hundred_and_fifty_damaged_files_are_read_or_refused_in_one_line(tmp_path):
    assert fuzz(tmp_path, seed=0, count=150) > 150


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_value_of_another_type_or_size_is_read_or_refused_in_one_line(tmp_path, architecture):
    vocabulary = byte_level_values() if architecture == "llama" else sentence_piece_values()
    vocabulary |= {f"tokenizer.ggml.{key}": 1 for key in ("eot_token_id", "add_bos_token", "add_space_prefix")}
    vocabulary["tokenizer.chat_template"] = "x"
    more = {"expert_count": 0, "rope.scaling.type": "none", "rope.scaling.factor": 1.0, "attention.key_length": D}
    settings = VALUES[architecture] | more
    path, refused, keys = tmp_path / "m.gguf", 0, [*settings, *vocabulary]
    for i, value in enumerate((0, 2**32 - 1, -1.0, 1e-38, float("nan"), True, "x", ["x"], [1, 2])):
        for key in keys if examples.every else keys[i % 4 :: 4]:
            changes = {"values": settings | ({key: value} if key in settings else {})}
            write(path, architecture, vocabulary=vocabulary | ({key: value} if key in vocabulary else {}), **changes)
            for read in (read_gguf, gguf_tokenizer):
                line = refusal(read, path)
                refused += line is not None
                assert line is None or str(path) in line, (key, value, line)
    assert refused > (100 if examples.every else 25)


@pytest.mark.slow
def test_two_thousand_damaged_files_are_read_or_refused_in_one_line(tmp_path):
    assert fuzz(tmp_path, seed=1, count=2000) > 2000


texts = st.text(
    st.characters(exclude_categories=["Cs", "Cn"]) | st.sampled_from(" \n'é123inthello<|>\u0301"), max_size=30
)


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "llama-bpe", "qwen2"])
@given(text=texts)
def test_a_byte_level_tokenizer_gives_a_text_back(tmp_path_factory, pre, text):
    tokenizer = cached(tmp_path_factory, pre)
    expected = text
    if pre == "qwen2":
        expected = normalize("NFC", text)
    bare = expected.replace("<|end|>", "")
    assert tokenizer.decode(tokenizer.encode(text, special=False)) == bare
    assert "".join(tokenizer.pieces(tokenizer.encode(text, special=False))) == bare


MADE = {}


def cached(factory, pre):
    if pre not in MADE:
        path = factory.mktemp("vocabulary") / "m.gguf"
        MADE[pre] = gguf_tokenizer(write(path, vocabulary=byte_level_values(pre, bos_token_id=256)))
    return MADE[pre]


@pytest.mark.parametrize(
    ("pre", "digits"), [("gpt-2", ["123", "1"]), ("smollm", ["1", "2", "3", "1"]), ("llama-bpe", ["123", "1"]),
                        ("qwen2", ["1", "2", "3", "1"])],
)  # fmt: skip
def test_each_rule_for_words_has_its_own_way_with_digits(tmp_path_factory, pre, digits):
    tokenizer = cached(tmp_path_factory, pre)
    assert list(tokenizer.pieces(tokenizer.encode("1231", special=False))) == digits
    whole = len(tokenizer.encode("hello", special=False)) == 1
    assert whole is (pre == "llama-bpe")  # which looks a word up before it joins its letters


def test_control_tokens_are_special_and_tokens_of_the_user_are_text(tmp_path_factory):
    tokenizer = cached(tmp_path_factory, "smollm")
    ids = tokenizer.encode("in<|end|><think>in")
    assert len(ids) == 4
    assert tokenizer.decode(ids) == "in<think>in"
    assert (tokenizer.vocab, tokenizer.eos, tokenizer.stop) == (V, 256, {256})


def test_bos_is_added_where_the_file_says_so_or_llama_3_always_has_it(tmp_path):
    def ids(pre, **changes):
        values = byte_level_values(pre, bos_token_id=257, **changes)
        return gguf_tokenizer(write(tmp_path / "m.gguf", vocabulary=values)).encode("in").tolist()

    assert ids("smollm") == [258]
    assert ids("llama-bpe") == [257, 258]
    assert ids("llama-bpe", add_bos_token=False) == [258]
    assert ids("gpt-2", add_bos_token=True, add_eos_token=True) == [257, 258, 256]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "t5"}, r"tokenizer\.ggml\.model = 't5' is not supported, only gpt2 and llama"),
        ({"pre": "tekken"}, r"tokenizer\.ggml\.pre = 'tekken' is not supported: choose from gpt-2, phi-2"),
        ({"pre": None}, r"tokenizer\.ggml\.pre = 'None' is not supported"),
        ({"pre": ["smollm"]}, r"tokenizer\.ggml\.pre = .*smollm.* is not supported"),
        ({"tokens": None}, r"tokenizer\.ggml\.tokens is missing"),
        ({"merges": ["x"]}, "does not join two tokens"),
        ({"merges": ["x yz"]}, "out of vocabulary"),
        ({"tokens": ["a"] * V}, "a token is in .* twice"),
        ({"token_type": [1, 2]}, r"token_type has shape \(2,\): there are 300 tokens"),
        ({"eos_token_id": 300}, r"eos_token_id = 300 is none of 300 tokens"),
    ],
)
def test_a_vocabulary_that_is_not_supported_or_damaged_is_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=rf"m\.gguf holds no tokenizer that can be read: .*{message}"):
        gguf_tokenizer(write(tmp_path / "m.gguf", vocabulary=byte_level_values(**changes)))


PIECES = ["▁", *"abx=", "ab", "▁▁", "aa", "==", "▁a", "▁ab", "▁▁▁▁", "aaaa", "===", "▁aba", "ba", "abab", "▁x"]


def sentence_piece_values(**changes):
    """The keys of a SentencePiece vocabulary: each piece scores less than the one before it."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *PIECES]
    values = {
        "model": "llama",
        "tokens": tokens,
        "token_type": [2, 3, 3] + [6] * 256 + [1] * len(PIECES),
        "scores": [0.0] * 259 + [-1.0 - i for i in range(len(PIECES))],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
    }
    return {f"tokenizer.ggml.{key}": value for key, value in (values | changes).items() if value is not None}


def best_pair_first(text):
    """SentencePiece's rule, word for word: of all pairs join the one whose whole scores best; the first of equals."""
    parts = list("▁" + text.replace(" ", "▁"))
    while pairs := [(PIECES.index(a + b), i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in PIECES]:
        _, i = min(pairs)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return [
        i for part in parts for i in ([259 + PIECES.index(part)] if part in PIECES else [3 + b for b in part.encode()])
    ]


@settings(max_examples=examples.count(500))
@given(text=st.text(st.sampled_from("aaab  ==x") | st.sampled_from("é日👩\n"), min_size=1, max_size=30))
def test_a_vocabulary_with_scores_joins_the_best_pair_first_and_gives_the_text_back(text):
    tokenizer = build(sentence_piece_values())
    ids = tokenizer.encode(text, special=False).tolist()
    assert ids == best_pair_first(text)
    assert tokenizer.encode(text).tolist() == [1, *ids]
    assert tokenizer.decode(ids) == "".join(tokenizer.pieces(ids)) == text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scores": None}, r"tokenizer\.ggml\.scores does not hold a number for each of the 277 tokens"),
        ({"scores": [float("nan")] * 277}, "does not hold a number for each"),
        ({"scores": [0.0] * 277}, "two pieces of .* have the same score"),
        ({"token_type": [2, 3, 4] + [6] * 256 + [1] * 18}, "user-defined or unused beside scores are not supported"),
        (
            {"tokens": [*sentence_piece_values()["tokenizer.ggml.tokens"][:-1], "▁y"]},
            "the letter 'y' is part of tokens",
        ),
    ],
)
def test_scores_that_no_list_of_merges_can_follow_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=rf"m\.gguf holds no tokenizer that can be read: .*{message}"):
        gguf_tokenizer(write(tmp_path / "m.gguf", vocabulary=sentence_piece_values(**changes)))


@pytest.mark.oracle
def test_ids_are_those_of_sentencepiece(tmp_path, rng):
    sentencepiece = pytest.importorskip("sentencepiece")
    text = english().test.decode()
    runs = ["".join(rng.choice(list("ab= "), 30)) for _ in range(300)] + [" " * i + "=" * i for i in range(1, 30)] * 9
    trained = tmp_path / "text"
    trained.write_text("\n".join([*filter(str.strip, text.split("\n")), *runs]))
    sentencepiece.SentencePieceTrainer.train(
        input=str(trained), model_prefix=str(tmp_path / "m"), vocab_size=700, model_type="bpe", byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, allow_whitespace_only_pieces=True,
        character_coverage=1.0, minloglevel=2,
    )  # fmt: skip
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "m.model"))
    tokens = range(theirs.get_piece_size())
    types = [
        2 if theirs.is_unknown(i) else 3 if theirs.is_control(i) else 6 if theirs.is_byte(i) else 1 for i in tokens
    ]
    values = {
        "tokens": [theirs.id_to_piece(i) for i in tokens],
        "scores": np.array([theirs.get_score(i) for i in tokens]),
        "token_type": types,
    }
    tokenizer = build(sentence_piece_values(**values))
    for one in [*runs, *(text[i : i + 50] for i in range(0, len(text) - 50, 50)), TEXT]:
        assert tokenizer.encode(one, special=False).tolist() == theirs.encode(one)


@pytest.mark.each_value
@pytest.mark.oracle
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt2"])  # of a qwen3 they take no other head_dim than 128
@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0"])
@pytest.mark.parametrize("tied", [True, False])
def test_tensors_and_config_are_those_that_transformers_reads(tmp_path, architecture, kind, tied):
    path = write(tmp_path / "m.gguf", architecture, random_tensors(architecture, tied), kind=kind)
    assert agree(path, theirs_in(path)) <= {"rope_scaling", "head_dim"}


@pytest.fixture(scope="module")
def vocabulary():
    """The keys of SmolLM2's: 49,152 tokens and 48,900 merges that a training has found."""
    return read_header(real("smollm2")).values


@pytest.mark.oracle
@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "llama-bpe", "qwen2"])
def test_texts_become_the_ids_that_transformers_gives(vocabulary, pre):
    transformers = pytest.importorskip("transformers")
    from transformers.integrations.gguf import convert_gguf_tokenizer

    tokenizer = build(vocabulary | {"tokenizer.ggml.pre": pre})
    tokens, merges, types = (vocabulary[f"tokenizer.ggml.{key}"] for key in ("tokens", "merges", "token_type"))
    if pre == "qwen2":  # whose own class normalises, as the file's does not say
        ids = {token: i for i, token in enumerate(tokens)}
        theirs = transformers.Qwen2Tokenizer(vocab=ids, merges=[tuple(merge.split(" ")) for merge in merges])
        theirs.add_special_tokens({"additional_special_tokens": [tokens[i] for i in np.flatnonzero(types == 3)]})
        splitter = theirs.backend_tokenizer
    else:
        parts = {"tokenizer_type": "gpt2", "pre_tokenizer_type": pre, "tokens": tokens, "merges": merges}
        splitter, _ = convert_gguf_tokenizer("llama", parts | {"token_type": types.tolist()})
        if pre == "llama-bpe":  # Llama 3's tokenizer.json says so; they leave it out here
            changed = splitter.to_str().replace('"ignore_merges":false', '"ignore_merges":true')
            splitter = tokenizers.Tokenizer.from_str(changed)

    @settings(max_examples=examples.count(300))
    @given(text=texts)
    def agree_on(text):
        parts = [text]
        if pre == "smollm":  # llama.cpp's rule, and that of SmolLM2 itself: each digit apart; theirs knows only GPT-2's
            digits = "".join({letter for letter in text + "1" if category(letter)[0] == "N"})
            parts = re.split(f"([{digits}])", text)
        expected = [i for part in parts for i in splitter.encode(part, add_special_tokens=False).ids]
        assert tokenizer.encode(text, special=False).tolist() == expected

    agree_on()
    agree_on.hypothesis.inner_test(english().test.decode())


@pytest.mark.oracle
def test_smollm2s_tokens_and_chat_are_those_of_transformers():
    transformers = pytest.importorskip("transformers")
    path = real("smollm2")
    tokenizer, theirs = (
        gguf_tokenizer(path),
        transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name),
    )
    expected = theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id, len(theirs)
    assert (tokenizer.bos, tokenizer.eos, tokenizer.pad, tokenizer.vocab) == expected
    assert tokenizer.stop == {theirs.convert_tokens_to_ids("<|im_end|>")}
    messages = [{"role": "user", "content": "Write 日本語, don't 12!"}]
    text = tokenizer.chat(messages)
    assert text == theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = theirs.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert tokenizer.encode(text, special=False).tolist() == ids
    assert tokenizer.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


def test_what_changed_between_two_files_is_found_and_in_the_orientation_of_the_layer(tmp_path):
    from minilora.jobs.changes import checkpoint_changes

    before, after = random_tensors("gpt2"), random_tensors("gpt2")
    after["blk.1.ffn_up.weight"] = after["blk.1.ffn_up.weight"] + np.float32(0.5)
    paths = [write(tmp_path / f"{i}.gguf", "gpt2", tensors) for i, tensors in enumerate((before, after))]
    changes = checkpoint_changes(*paths)
    assert list(changes.layers) == ["transformer.h.1.mlp.c_fc"]
    (change,) = changes.layers.values()
    assert change.shape == (F, C)
    np.testing.assert_allclose(change.update().sigma[:2], [0.5 * np.sqrt(F * C), 0], atol=1e-4)
