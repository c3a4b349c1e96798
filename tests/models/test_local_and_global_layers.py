"""Gemma 3, ModernBERT and DistilBERT: what a config.json says of their layers, what is refused, GGUF, tokenizers."""

import json

import numpy as np
import pytest
from made_gguf import write
from models import build

import minilora
from minilora.models.config_json import read_config, write_config
from minilora.models.tokenizer_files import read_tokenizer
from minilora.nn import Attention, Inputs, Rope
from minilora.ops import LinearScaling

GEMMA = {"model_type": "gemma3_text", "vocab_size": 8, "hidden_size": 8, "num_hidden_layers": 7,
         "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4, "intermediate_size": 8,
         "max_position_embeddings": 64}  # fmt: skip
MODERNBERT = {"model_type": "modernbert", "architectures": ["ModernBertForMaskedLM"], "vocab_size": 8, "hidden_size": 8,
              "num_hidden_layers": 7, "num_attention_heads": 2, "intermediate_size": 8,
              "max_position_embeddings": 64}  # fmt: skip
DISTILBERT = {"model_type": "distilbert", "architectures": ["DistilBertForMaskedLM"], "vocab_size": 8, "dim": 8,
              "n_layers": 2, "n_heads": 2, "hidden_dim": 8, "max_position_embeddings": 64}  # fmt: skip


def config(values, **changes):
    return read_config(values | changes, "config.json", "float32")[1]


def windows(found):
    return [found.window(i) for i in range(found.n_layers)]


# ---- which layers have a window, and which theta ----


def test_every_sixth_layer_of_a_gemma_has_no_window_or_those_that_its_file_names():
    assert windows(config(GEMMA)) == [4096] * 5 + [None, 4096]
    assert windows(config(GEMMA, sliding_window=9, sliding_window_pattern=2)) == [9, None, 9, None, 9, None, 9]
    types = ["full_attention", "sliding_attention"] + ["full_attention"] * 5
    assert windows(config(GEMMA, layer_types=types, sliding_window_pattern=2)) == [None, 4096] + [None] * 5
    assert windows(config(GEMMA, layer_types=["full_attention"] * 7)) == [None] * 7


def test_every_third_layer_of_a_modernbert_has_no_window_and_a_token_sees_half_of_it_on_each_side():
    assert windows(config(MODERNBERT)) == [None, 65, 65] * 2 + [None]
    found = config(MODERNBERT, local_attention=5, global_attn_every_n_layers=4)
    assert windows(found) == [None, 3, 3, 3, None, 3, 3]


@pytest.mark.parametrize(
    ("values", "older", "thetas"),
    [
        (GEMMA, {}, (1e6, 1e4)),
        (GEMMA, {"rope_theta": 7.0, "rope_local_base_freq": 3.0}, (7.0, 3.0)),
        (MODERNBERT, {}, (160000.0, 1e4)),
        (MODERNBERT, {"global_rope_theta": 7.0, "local_rope_theta": 3.0}, (7.0, 3.0)),
    ],
)
def test_layers_with_a_window_have_a_theta_of_their_own_in_files_of_both_ages(values, older, thetas):
    found = config(values, **older)
    expected = [Rope(thetas[0]) if window is None else Rope(thetas[1]) for window in windows(found)]
    assert [found.rope(i) for i in range(7)] == expected
    kinds = zip(("full_attention", "sliding_attention"), thetas, strict=True)
    newer = {"rope_parameters": {kind: {"rope_type": "default", "rope_theta": theta} for kind, theta in kinds}}
    assert config(values, **newer) == found


def test_linear_scaling_is_for_the_layers_of_a_gemma_without_a_window():
    rule = {"rope_type": "linear", "factor": 8.0}
    local = {"rope_type": "default", "rope_theta": 1e4}
    by_type = {"full_attention": rule | {"rope_theta": 1e6}, "sliding_attention": local}
    for found in (config(GEMMA, rope_scaling=rule), config(GEMMA, rope_parameters=by_type)):
        assert found.rope(5) == Rope(1e6, LinearScaling(8.0))
        assert found.rope(4) == Rope(1e4)
    model = minilora.models.families.FAMILIES["gemma3_text"].build(found, None)
    assert read_config(write_config(model), "config.json", "float32")[1] == found


def test_queries_are_divided_by_the_root_that_the_config_says_and_else_by_that_of_a_heads_width():
    assert config(GEMMA).query_pre_attn_scalar == 256  # as in transformers
    assert config(GEMMA, query_pre_attn_scalar=4).query_pre_attn_scalar == 0  # the width of a head
    model = build("gemma3_text", query_pre_attn_scalar=36)
    roots = [module.root for _, module in model.named_modules() if isinstance(module, Attention)]
    assert roots == [6.0, 6.0]


def test_the_eps_of_a_distilbert_is_1e_12_whatever_its_config_says(tmp_path):
    model = build("distilbert", eps=0.3)
    assert model.config.eps == model["embed.norm"].eps == 1e-12
    assert not hasattr(model["embed"].segment, "weight")


def test_a_token_sees_those_within_its_window_on_both_sides_and_through_more_layers_more(rng):
    model = build("modernbert", n_layers=3, layer_types=("sliding_attention",) * 3, sliding_window=2, max_length=20)
    ids = rng.integers(0, 13, (1, 15))
    other = ids.copy()
    other[0, 7] = (other[0, 7] + 3) % 13
    changed = (model.forward(ids)[0] != model.forward(other)[0]).any(axis=(0, 2))
    assert np.flatnonzero(changed).tolist() == list(range(4, 11))  # one to each side in a layer


def test_a_mean_is_over_real_tokens_alone_and_the_first_is_the_first_real_one(rng):
    ids, real = rng.integers(0, 13, (1, 6)), np.array([[False, False, True, True, True, True]])
    for pooling in ("mean", "cls"):
        model = build("modernbert", head="classify", labels=3, classifier_pooling=pooling)
        padded, alone = model.forward(ids, Inputs(real))[0], model.forward(ids[:, 2:])[0]
        np.testing.assert_allclose(padded, alone, rtol=1e-12)


# ---- what is not there is refused by name ----


@pytest.mark.parametrize(
    ("values", "changes", "says"),
    [
        (GEMMA, {"model_type": "gemma3"}, "family 'gemma3' is not supported: it reads images as well; .*gemma3_text"),
        (GEMMA, {"final_logit_softcapping": 30.0}, "final_logit_softcapping = 30.0 is not supported, only None"),
        (GEMMA, {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping = 50.0 is not supported, only None"),
        (GEMMA, {"use_bidirectional_attention": True}, "use_bidirectional_attention = True is not supported"),
        (GEMMA, {"attention_bias": True}, "attention_bias = True is not supported"),
        (GEMMA, {"hidden_activation": "gelu"}, "hidden_activation = 'gelu' is not supported"),
        (GEMMA, {"query_pre_attn_scalar": 2.5}, "query_pre_attn_scalar = 2.5 is not a whole number"),
        (GEMMA, {"sliding_window_pattern": 0}, "sliding_window_pattern = 0 is not a whole number from 1 up"),
        (GEMMA, {"layer_types": "full_attention"}, "layer_types = 'full_attention' is not a list of names"),
        (GEMMA, {"layer_types": ["full_attention"] * 6 + ["x"]}, "layer_types = .* for each layer"),
        (GEMMA, {"rope_parameters": [1]}, r"rope_parameters = \[1\] is not supported"),
        (
            GEMMA,
            {"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2.0}}},
            "a scaling in layers with a window",
        ),
        (MODERNBERT, {"norm_bias": True}, "norm_bias = True is not supported, only False"),
        (MODERNBERT, {"mlp_bias": True}, "mlp_bias = True is not supported, only False"),
        (MODERNBERT, {"attention_bias": True}, "attention_bias = True is not supported, only False"),
        (MODERNBERT, {"decoder_bias": False}, "decoder_bias = False is not supported, only True"),
        (MODERNBERT, {"classifier_pooling": "max"}, "classifier_pooling = 'max' is not one of cls, mean"),
        (MODERNBERT, {"local_attention": -1}, "local_attention = -1 is not a whole number from 1 up"),
        (MODERNBERT, {"global_attn_every_n_layers": 0}, "global_attn_every_n_layers = 0 is not a whole number"),
        (MODERNBERT, {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "rope_scaling = .* in a modernbert"),
        (DISTILBERT, {"activation": "relu"}, "activation = 'relu' is not supported, only gelu"),
    ],
)
def test_what_these_families_do_not_have_is_refused_by_name(values, changes, says):
    with pytest.raises(ValueError, match=says) as caught:
        config(values, **changes)
    assert "\n" not in str(caught.value)


# ---- GGUF ----


@pytest.mark.oracle
@pytest.mark.parametrize("more", [{}, {"attention.sliding_window_pattern": 2, "rope.freq_base_swa": 30.0}])
def test_a_gemma_with_the_names_and_norms_of_llama_cpp_is_the_model_of_transformers(more, tmp_path, rng):
    gguf = pytest.importorskip("gguf")
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    every, local = more.get("attention.sliding_window_pattern", 6), more.get("rope.freq_base_swa", 10000.0)
    own = {"vocab_size": 300, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 32, "head_dim": 8,
           "intermediate_size": 40, "sliding_window": 3, "query_pre_attn_scalar": 8, "rope_parameters": {
               "full_attention": {"rope_type": "default", "rope_theta": 5000.0},
               "sliding_attention": {"rope_type": "default", "rope_theta": local},
           }, "layer_types": ["full_attention" if i % every == every - 1 else "sliding_attention" for i in range(7)],
           }  # fmt: skip
    torch.manual_seed(0)
    theirs = transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**GEMMA | own)).eval()
    names, tensors = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GEMMA3, 7), {}
    for name, parameter in theirs.named_parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape)
        W = parameter.detach().numpy()
        tensors[names.get_name(name, try_suffixes=(".weight",))] = W + 1 if "norm" in name else W
    header = {"embedding_length": 32, "feed_forward_length": 40, "block_count": 7, "attention.head_count": 4,
              "attention.head_count_kv": 2, "attention.key_length": 8, "attention.value_length": 8,
              "context_length": 64, "rope.freq_base": 5000.0, "attention.layer_norm_rms_epsilon": 1e-6,
              "attention.sliding_window": 3, "vocab_size": None, "rope.dimension_count": None}  # fmt: skip
    model = minilora.load_pretrained(write(tmp_path / "m.gguf", "gemma3", tensors, values=header | more))
    assert model.family == "gemma3_text"
    ids = rng.integers(0, 300, (2, 11))
    expected = theirs(torch.tensor(ids)).logits.detach().numpy()
    assert np.abs(model.forward(ids)[0] - expected).max() < 1e-5 * np.abs(expected).max()


def test_llama_cpp_divides_by_another_root_in_the_gemma_of_62_layers_alone():
    said = minilora.models.families.FAMILIES["gemma3_text"].gguf_values
    sizes = {"hidden_size": 5376, "num_attention_heads": 32, "head_dim": 128}
    assert said(sizes | {"num_hidden_layers": 62})["query_pre_attn_scalar"] == 168
    assert said(sizes | {"num_hidden_layers": 48})["query_pre_attn_scalar"] == 128


# ---- tokenizers ----


@pytest.mark.oracle
def test_the_tokenizer_of_a_gemma_is_read_as_transformers_reads_it(tmp_path):
    tokenizers, transformers = pytest.importorskip("tokenizers"), pytest.importorskip("transformers")
    vocab = {"<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3, "<mask>": 4}
    vocab |= {f"<0x{byte:02X}>": 5 + byte for byte in range(256)}
    for piece in ("▁", "a", "b", "▁a", "ab", "▁▁", "é"):
        vocab[piece] = len(vocab)
    merges = [("▁", "a"), ("a", "b"), ("▁", "▁")]
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True))
    made.post_processor = tokenizers.processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    made.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text(json.dumps(GEMMA))
    for settings in ({}, {"tokenizer_class": "GemmaTokenizer", "mask_token": None}):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
        ours, theirs = read_tokenizer(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
        for text in ("ab a  b", " aé 日本", "a<eos>b", ""):
            assert ours.encode(text).tolist() == theirs(text)["input_ids"]
            ids = ours.encode(text, special=False)
            assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
        assert (ours.bos, ours.eos, ours.pad) == (2, 1, 0)


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("settings", "values"),
    [({"tokenizer_class": "DistilBertTokenizer"}, DISTILBERT), ({}, DISTILBERT), ({}, MODERNBERT),
     ({"tokenizer_class": "PreTrainedTokenizerFast"}, MODERNBERT)],
)  # fmt: skip
def test_the_tokenizers_of_the_encoders_are_read_as_transformers_reads_them(settings, values, tmp_path):
    made = pytest.importorskip("made_tokenizers").word_piece()
    transformers = pytest.importorskip("transformers")
    made.no_padding()
    made.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text(json.dumps(values))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    ours, theirs = read_tokenizer(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in ("The quick brown fox", "thé 好好 x"):
        assert ours.encode(text).tolist() == theirs(text)["input_ids"]
