"""Families in GGUF files, under the names that the package has for Hugging Face's; and scaled rotary positions."""

import numpy as np
import pytest
from made_gguf import byte_level_values, random_tensors, write

import minilora
from minilora.models.gguf import ARCHITECTURES, read_gguf
from minilora.models.gguf_tokens import LLAMA3, RULE_OF, build

gguf = pytest.importorskip("gguf")
SIZES = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4,
         "num_key_value_heads": 2, "intermediate_size": 40, "max_position_embeddings": 64,
         "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}}  # fmt: skip
HEADER = {"embedding_length": 32, "feed_forward_length": 40, "block_count": 4, "attention.head_count": 4,
          "attention.head_count_kv": 2, "context_length": 64, "rope.dimension_count": 8, "rope.freq_base": 5000.0,
          "attention.layer_norm_rms_epsilon": 1e-6, "vocab_size": None}  # fmt: skip
MODELS = {"smollm3": "SmolLM3", "phi3": "Phi3"}
MORE = {"phi3": {"rms_norm_eps": 1e-6, "tie_word_embeddings": True, "pad_token_id": 0}, "smollm3": {"pad_token_id": 0}}


def permuted(W, heads):
    """The rows of q and k as llama.cpp's converter of the architecture llama orders them."""
    return W.reshape(heads, 2, -1, W.shape[1]).swapaxes(1, 2).reshape(W.shape)


@pytest.mark.oracle
@pytest.mark.parametrize("family", MODELS)
def test_a_file_with_the_names_of_llama_cpp_is_the_model_of_transformers(family, tmp_path, rng):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = getattr(transformers, f"{MODELS[family]}Config")(**SIZES, **MORE[family])
    theirs = getattr(transformers, f"{MODELS[family]}ForCausalLM")(config).eval()
    architecture = next(a for a, name in gguf.MODEL_ARCH_NAMES.items() if name == family)
    names, tensors = gguf.get_tensor_name_map(architecture, 4), {}
    for name, parameter in theirs.named_parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape)
        W = parameter.detach().numpy()
        if family == "smollm3" and name.endswith(("q_proj.weight", "k_proj.weight")):
            W = permuted(W, 4 if "q_proj" in name else 2)
        tensors[names.get_name(name, try_suffixes=(".weight",))] = W
    path = write(tmp_path / "m.gguf", family, tensors, values=HEADER)
    model = minilora.load_pretrained(path)
    assert model.family == family
    ids = rng.integers(0, 300, (2, 11))
    expected = theirs(torch.tensor(ids)).logits.detach().numpy()
    assert np.abs(model.forward(ids)[0] - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("name", RULE_OF)
def test_a_name_of_a_word_rule_splits_as_the_name_that_gave_the_rule_its_name(name):
    text = "Don't SAY 1234567 e\u0301é  \n\n x_y=½²٣ 日本語\t!"
    first = {"llama3": "llama-bpe"}.get(RULE_OF[name], RULE_OF[name])
    one, two = (build(byte_level_values(pre)).backend for pre in (name, first))
    normalised = two.normalizer.normalize_str(text) if two.normalizer and not one.normalizer else text
    assert one.pre_tokenizer.pre_tokenize_str(normalised) == two.pre_tokenizer.pre_tokenize_str(normalised)
    assert one.model.ignore_merges == (name in LLAMA3)


@pytest.mark.parametrize(
    "name", ["default", "tekken", "jina-v2-code", "roberta-bpe", "deepseek-llm", "gpt-4o", "qwen35"]
)
def test_a_name_of_another_rule_is_refused_by_name(name):
    with pytest.raises(ValueError, match=f"tokenizer.ggml.pre = '{name}' is not supported: "):
        build(byte_level_values(name))


def scaling(tmp_path, values, architecture="llama"):
    return minilora.load_pretrained(write(tmp_path / "m.gguf", architecture, values=values)).config.rope_scaling


def test_linear_and_yarn_are_read_as_llama_cpp_reads_them(tmp_path):
    linear, yarn = minilora.ops.LinearScaling, minilora.ops.YarnScaling
    factor = {"rope.scaling.factor": 4.0}
    assert scaling(tmp_path, factor | {"rope.scaling.type": "linear"}) == linear(4.0)
    assert scaling(tmp_path, factor) == linear(4.0)  # without a type it is linear
    assert scaling(tmp_path, factor | {"rope.scaling.type": "none"}) is None
    assert scaling(tmp_path, factor | {"rope.scaling.type": "yarn"}) == yarn(4.0, 64)
    trained = {"rope.scaling.type": "yarn", "rope.scaling.original_context_length": 16}
    assert scaling(tmp_path, factor | trained, "qwen2") == yarn(4.0, 16)
    with pytest.raises(ValueError, match=r"attn_factor' = 1.5 is not supported, only 1.0"):
        scaling(tmp_path, factor | trained | {"rope.scaling.attn_factor": 1.5})


def test_a_phi_3_with_the_factors_of_longrope_is_refused_by_their_name(tmp_path):
    tensors = random_tensors("phi3") | {"rope_factors_long.weight": np.ones(4, np.float32)}
    with pytest.raises(ValueError, match=r"the tensor 'rope_factors_long\.weight' has no place in a phi3 model"):
        read_gguf(write(tmp_path / "m.gguf", "phi3", tensors))
    assert {"phi3", "smollm3"} <= set(ARCHITECTURES)
