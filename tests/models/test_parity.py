"""The models of `transformers`, and PEFT's adapters on them, beside ours: the same logits, gradients and steps.

Tiny models are built from a config, drawn at random in float64, and saved; ours loads the folder. `transformers` takes
RMS norms and rotary angles in float32 whatever the model is in: for the strict comparison float64 is put in the place
of both, and a second test takes its models as they are.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType, MethodType
from typing import Any, NamedTuple

import numpy as np
import pytest
from models import close
from their_rope import their_frequencies

import minilora
from minilora import ops
from minilora.models.names import hf_name, transpose
from minilora.models.transformer import Transformer
from minilora.nn import Gradients, Inputs
from minilora.nn.optim import AdamW

pytestmark = pytest.mark.oracle
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SIZES = {"vocab_size": 43, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
         "intermediate_size": 20, "max_position_embeddings": 21}  # fmt: skip
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500.0, "factor": 4.0, "low_freq_factor": 0.5, "high_freq_factor": 2.0,
          "original_max_position_embeddings": 16}  # fmt: skip
SCALED = {"rope_theta": 50.0, "factor": 3.0}
LINEAR = {"rope_type": "linear"}
YARN = {"rope_type": "yarn", "original_max_position_embeddings": 7, "beta_fast": 1.5, "beta_slow": 0.2}
ROPE = {"rope_type": "default", "rope_theta": 50.0}
GROUPED = {**SIZES, "rope_parameters": ROPE, "num_key_value_heads": 2}
QUIET = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
GPT2 = {"vocab_size": 43, "n_embd": 24, "n_layer": 2, "n_head": 4, "n_positions": 21, "resid_pdrop": 0.0,
        "embd_pdrop": 0.0, "attn_pdrop": 0.0}  # fmt: skip

TWO_ROPES = {"full_attention": ROPE, "sliding_attention": {"rope_type": "default", "rope_theta": 7.0}}
GEMMA = {**SIZES, "rope_parameters": TWO_ROPES, "num_key_value_heads": 2, "head_dim": 10, "sliding_window": 3,
         "query_pre_attn_scalar": 10, "layer_types": ["sliding_attention", "full_attention"]}  # fmt: skip
MODERNBERT = {**SIZES, "num_hidden_layers": 3, "rope_parameters": TWO_ROPES, "local_attention": 4,
              "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}  # fmt: skip
DISTILBERT = {"vocab_size": 43, "dim": 24, "n_layers": 2, "n_heads": 4, "hidden_dim": 20, "max_position_embeddings": 21,
              "dropout": 0.0, "attention_dropout": 0.0, "qa_dropout": 0.0, "seq_classif_dropout": 0.0}  # fmt: skip


class Kind(NamedTuple):
    config: str
    model: str
    values: dict[str, Any]


KINDS = {
    "gpt2": Kind("GPT2Config", "GPT2LMHeadModel", GPT2),
    "gpt2, hidden width, exact GELU": Kind(
        "GPT2Config", "GPT2LMHeadModel", {**GPT2, "n_inner": 30, "activation_function": "gelu"}
    ),
    "gpt2, headless": Kind("GPT2Config", "GPT2Model", GPT2),
    "gpt2, classifier": Kind("GPT2Config", "GPT2ForSequenceClassification", {**GPT2, "num_labels": 3}),
    "llama": Kind("LlamaConfig", "LlamaForCausalLM", {**SIZES, "rope_parameters": ROPE}),
    "llama, grouped, tied, wide heads": Kind(
        "LlamaConfig", "LlamaForCausalLM",
        {**SIZES, "rope_parameters": ROPE, "num_key_value_heads": 2, "tie_word_embeddings": True, "head_dim": 10},
    ),
    "llama 3": Kind("LlamaConfig", "LlamaForCausalLM", {**SIZES, "rope_parameters": LLAMA3, "num_key_value_heads": 1}),
    "llama, classifier": Kind(
        "LlamaConfig", "LlamaForSequenceClassification", {**SIZES, "rope_parameters": ROPE, "num_labels": 3}
    ),
    "mistral": Kind("MistralConfig", "MistralForCausalLM", {**GROUPED, "sliding_window": None}),
    "mistral, window": Kind("MistralConfig", "MistralForCausalLM", {**GROUPED, "sliding_window": 3}),
    "mistral, window, classifier": Kind(
        "MistralConfig", "MistralForSequenceClassification", {**GROUPED, "sliding_window": 2, "num_labels": 3}
    ),
    "qwen2": Kind("Qwen2Config", "Qwen2ForCausalLM", GROUPED),
    "qwen2, window above": Kind(
        "Qwen2Config", "Qwen2ForCausalLM",
        {**GROUPED, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    ),
    "qwen2, window below": Kind(
        "Qwen2Config", "Qwen2ForCausalLM",
        {**GROUPED, "use_sliding_window": True, "sliding_window": 1,
         "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "qwen3": Kind("Qwen3Config", "Qwen3ForCausalLM", {**GROUPED, "head_dim": 10}),
    "qwen3, window above": Kind(
        "Qwen3Config", "Qwen3ForCausalLM",
        {**GROUPED, "head_dim": 6, "tie_word_embeddings": True, "use_sliding_window": True, "sliding_window": 4,
         "max_window_layers": 1},
    ),
    "qwen3, classifier": Kind(
        "Qwen3Config", "Qwen3ForSequenceClassification", {**GROUPED, "head_dim": 6, "num_labels": 3}
    ),
    "llama, linear": Kind("LlamaConfig", "LlamaForCausalLM", {**SIZES, "rope_parameters": SCALED | LINEAR}),
    "llama, dynamic, past its length": Kind(
        "LlamaConfig", "LlamaForCausalLM",
        {**SIZES, "max_position_embeddings": 4, "rope_parameters": SCALED | {"rope_type": "dynamic"}},
    ),
    "qwen2, YaRN": Kind("Qwen2Config", "Qwen2ForCausalLM", {**GROUPED, "rope_parameters": SCALED | YARN}),
    "smollm3": Kind("SmolLM3Config", "SmolLM3ForCausalLM", {**GROUPED, "no_rope_layers": [1, 0]}),
    "smollm3, every second layer, window": Kind(
        "SmolLM3Config", "SmolLM3ForCausalLM",
        {**GROUPED, "num_hidden_layers": 4, "no_rope_layer_interval": 2, "use_sliding_window": True,
         "sliding_window": 3, "tie_word_embeddings": False},
    ),
    "smollm3, YaRN, classifier": Kind(
        "SmolLM3Config", "SmolLM3ForSequenceClassification",
        {**GROUPED, "rope_parameters": SCALED | YARN, "no_rope_layers": [0, 1], "num_labels": 3},
    ),
    "phi3": Kind("Phi3Config", "Phi3ForCausalLM", GROUPED),
    "phi3, window, tied": Kind(
        "Phi3Config", "Phi3ForCausalLM", {**GROUPED, "sliding_window": 3, "tie_word_embeddings": True}
    ),
    "phi3, classifier": Kind("Phi3Config", "Phi3ForSequenceClassification", {**GROUPED, "num_labels": 3}),
    "gemma3_text": Kind("Gemma3TextConfig", "Gemma3ForCausalLM", GEMMA),
    "gemma3_text, untied, another root, no window": Kind(
        "Gemma3TextConfig", "Gemma3ForCausalLM",
        {**GEMMA, "query_pre_attn_scalar": 7, "tie_word_embeddings": False, "layer_types": ["full_attention"] * 2},
    ),
    "gemma3_text, linear": Kind(
        "Gemma3TextConfig", "Gemma3ForCausalLM",
        {**GEMMA, "rope_parameters": TWO_ROPES | {"full_attention": SCALED | LINEAR}},
    ),
    "gemma3_text, headless": Kind("Gemma3TextConfig", "Gemma3TextModel", GEMMA),
    "gemma3_text, classifier": Kind("Gemma3TextConfig", "Gemma3TextForSequenceClassification",
                                    {**GEMMA, "num_labels": 3}),
    "modernbert": Kind("ModernBertConfig", "ModernBertForMaskedLM", MODERNBERT),
    "modernbert, untied, no window": Kind(
        "ModernBertConfig", "ModernBertForMaskedLM",
        {**MODERNBERT, "tie_word_embeddings": False, "layer_types": ["full_attention"] * 3},
    ),
    "modernbert, headless": Kind("ModernBertConfig", "ModernBertModel", MODERNBERT),
    "modernbert, classifier": Kind("ModernBertConfig", "ModernBertForSequenceClassification",
                                   {**MODERNBERT, "num_labels": 3}),
    "modernbert, mean, classifier": Kind("ModernBertConfig", "ModernBertForSequenceClassification",
                                         {**MODERNBERT, "num_labels": 3, "classifier_pooling": "mean"}),
    "modernbert, tokens": Kind("ModernBertConfig", "ModernBertForTokenClassification", {**MODERNBERT, "num_labels": 3}),
    "distilbert": Kind("DistilBertConfig", "DistilBertForMaskedLM", DISTILBERT),
    "distilbert, untied, tanh GELU, sinusoidal": Kind(
        "DistilBertConfig", "DistilBertForMaskedLM",
        {**DISTILBERT, "tie_word_embeddings": False, "activation": "gelu_new", "sinusoidal_pos_embds": True},
    ),
    "distilbert, headless": Kind("DistilBertConfig", "DistilBertModel", DISTILBERT),
    "distilbert, classifier": Kind("DistilBertConfig", "DistilBertForSequenceClassification",
                                   {**DISTILBERT, "num_labels": 3}),
    "distilbert, tokens": Kind("DistilBertConfig", "DistilBertForTokenClassification", {**DISTILBERT, "num_labels": 3}),
    "bert": Kind("BertConfig", "BertForMaskedLM", {**SIZES, **QUIET, "type_vocab_size": 3}),
    "bert, tanh GELU": Kind("BertConfig", "BertForMaskedLM", {**SIZES, **QUIET, "hidden_act": "gelu_new"}),
    "bert, untied": Kind("BertConfig", "BertForMaskedLM", {**SIZES, **QUIET, "tie_word_embeddings": False}),
    "bert, headless": Kind("BertConfig", "BertModel", {**SIZES, **QUIET}),
    "bert, classifier": Kind("BertConfig", "BertForSequenceClassification", {**SIZES, **QUIET, "num_labels": 3}),
    "bert, tokens": Kind("BertConfig", "BertForTokenClassification", {**SIZES, **QUIET, "num_labels": 3}),
    "roberta": Kind("RobertaConfig", "RobertaForMaskedLM", {**SIZES, **QUIET, "max_position_embeddings": 23}),
    "roberta, tanh GELU": Kind(
        "RobertaConfig", "RobertaForMaskedLM",
        {**SIZES, **QUIET, "max_position_embeddings": 23, "hidden_act": "gelu_new"},
    ),
    "roberta, classifier": Kind("RobertaConfig", "RobertaForSequenceClassification",
                                {**SIZES, **QUIET, "num_labels": 3, "max_position_embeddings": 23}),
    "roberta, tokens": Kind("RobertaConfig", "RobertaForTokenClassification",
                            {**SIZES, **QUIET, "num_labels": 3, "max_position_embeddings": 23}),
}  # fmt: skip
each_kind = pytest.mark.parametrize("kind", KINDS)
ADAPTED = {"gpt2": ["c_attn", "c_proj"], "bert": ["query", "dense"], "roberta": ["value", "intermediate.dense"],
           "phi3": ["qkv_proj", "gate_up_proj"],
           "modernbert": ["Wqkv", "Wi", "Wo"], "distilbert": ["v_lin", "lin1"]}  # fmt: skip


# ---- theirs ----


def theirs(kind: str, **changes: Any) -> Any:
    """Their model, drawn at random: no weight, gain or bias is where it started."""
    config, model, values = KINDS[kind]
    values = {
        "attn_implementation": "sdpa",
        "pad_token_id": 1 if kind.startswith("roberta") else 0,
        **values,
        **changes,
    }
    made = getattr(transformers, model)(getattr(transformers, config)(**values)).double().eval()
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        for parameter in made.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    for module in made.modules():
        if isinstance(module, torch.nn.Embedding):
            module.padding_idx = None  # theirs gives no gradient to the row of the padding's id, real or not
    return made


def in_float64(model: Any) -> Any:
    """`model`, its RMS norms and rotary angles in float64 too."""

    def rms_norm(self: Any, x: Any) -> Any:
        g = 1 + self.weight if type(self).__name__.startswith("Gemma") else self.weight
        eps = getattr(self, "variance_epsilon", None) or self.eps
        return g * x * torch.rsqrt((x * x).mean(-1, keepdim=True) + eps)

    def rotary(self: Any, x: Any, position_ids: Any, layer_type: str | None = None) -> Any:
        rope, D = self.config.rope_parameters, getattr(self.config, "head_dim", None)
        rope = rope[layer_type] if layer_type else rope
        D = D or self.config.hidden_size // self.config.num_attention_heads
        omega, factor = 1.0 / rope["rope_theta"] ** (torch.arange(0, D, 2, dtype=torch.float64) / D), 1.0
        if rope["rope_type"] == "llama3":
            omega = llama3(omega, rope)
        elif rope["rope_type"] == "linear":
            omega = omega / rope["factor"]
        elif rope["rope_type"] != "default":
            omega, factor = their_frequencies(self.config, int(position_ids.max()) + 1)
        angle = position_ids[..., None] * torch.cat([omega, omega])
        return factor * angle.cos(), factor * angle.sin()

    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = MethodType(rms_norm, module)
        if type(module).__name__.endswith("RotaryEmbedding"):
            module.forward = MethodType(rotary, module)
        if type(module).__name__ == "ModernBertAttention":  # whose rotation is in float32, too
            forward = type(module).forward
            rotation = {"apply_rotary_pos_emb": transformers.models.llama.modeling_llama.apply_rotary_pos_emb}
            inside = FunctionType(forward.__code__, forward.__globals__ | rotation, argdefs=forward.__defaults__)
            module.forward = MethodType(inside, module)
    return model


def llama3(omega: Any, rope: dict[str, Any]) -> Any:
    """Llama 3's scaling, pair by pair."""
    scaled, L = [], rope["original_max_position_embeddings"]
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    for w in omega.tolist():
        turn = 2 * math.pi / w  # tokens
        if turn < L / high:
            scaled.append(w)
        elif turn > L / low:
            scaled.append(w / factor)
        else:
            smooth = (L / turn - low) / (high - low)
            scaled.append((1 - smooth) * w / factor + smooth * w)
    return torch.tensor(scaled, dtype=torch.float64)


def logits_of(model: Any, batch: Batch, **words: Any) -> Any:
    words |= {"input_ids": torch.tensor(batch.ids), "attention_mask": torch.tensor(batch.real).long()}
    if model.config.model_type == "bert":
        words["token_type_ids"] = torch.tensor(batch.segments)
    out = model(**words)
    return out.logits if hasattr(out, "logits") else out.last_hidden_state


# ---- ours ----


class Batch(NamedTuple):
    """Three sequences, padded on one side with the id that a padding has."""

    ids: np.ndarray
    real: np.ndarray
    segments: np.ndarray

    @property
    def inputs(self) -> Inputs:
        return Inputs(self.real, self.segments)


def batch_for(model: Transformer, rng: np.random.Generator, left: bool = False) -> Batch:
    T, lengths = 9, np.array([9, 7, 2])
    real = np.arange(T)[:: -1 if left else 1] < lengths[:, None]
    pad = 1 if model.family == "roberta" else 0
    ids = np.where(real, rng.integers(2, 43, (3, T)), pad)
    few = model.config.segments if model.family == "bert" else 1
    return Batch(ids, real, rng.integers(0, few, (3, T)))


def load(model: Any, folder: Path) -> Transformer:
    """Ours, out of their folder."""
    model.save_pretrained(folder)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*tensors are for another head")  # a headless BERT has a pooler
        return minilora.load_pretrained(folder, "float64")


def upstream(y: np.ndarray, batch: Batch, rng: np.random.Generator) -> np.ndarray:
    dy = rng.standard_normal(y.shape)
    return dy * batch.real[..., None] if y.ndim == 3 else dy


def real(y: np.ndarray, batch: Batch) -> np.ndarray:
    return y[batch.real] if y.ndim == 3 else y


# ---- the base ----


@each_kind
def test_logits_are_those_of_transformers_to_1e_12(kind, tmp_path, rng):
    other = in_float64(theirs(kind))
    model = load(other, tmp_path / "m")
    batch = batch_for(model, rng)
    expected = logits_of(other, batch).detach().numpy()
    assert close(real(model.forward(batch.ids, batch.inputs)[0], batch), real(expected, batch), 1e-12)


# Their encoders' classifiers read token 0, which is padding then; ours read the first real one.
@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if not kind.endswith(("bert, classifier", "roberta, classifier"))]
)
def test_logits_of_texts_padded_on_the_left_are_those_of_transformers_where_positions_count_real_tokens(
    kind, tmp_path, rng
):
    other = in_float64(theirs(kind))
    model = load(other, tmp_path / "m")
    batch = batch_for(model, rng, left=True)
    words = {}
    if model.family in (
        "gpt2",
        "bert",
        "distilbert",
    ):  # what their generate() says; unsaid, their forward counts the padding too
        words["position_ids"] = torch.tensor(np.maximum(np.cumsum(batch.real, axis=1) - 1, 0))
    expected = logits_of(other, batch, **words).detach().numpy()
    assert close(real(model.forward(batch.ids, batch.inputs)[0], batch), real(expected, batch), 1e-12)


@pytest.mark.parametrize(("kind", "same"), [("gpt2", False), ("bert", False), ("distilbert", False),
                                           ("roberta", True), ("llama", True), ("gemma3_text", True),
                                           ("modernbert", True)])  # fmt: skip
def test_padding_on_the_left_changes_what_transformers_says_of_a_text_in_families_that_learn_positions(
    kind, same, tmp_path, rng
):
    """Why `positions` in nn/embeddings.py counts only real tokens: so padding changes no logits."""
    other = in_float64(theirs(kind))
    batch = batch_for(load(other, tmp_path / "m"), rng, left=True)
    padded = logits_of(other, batch).detach().numpy()[1, batch.real[1]]
    row = Batch(*(array[1:2, batch.real[1]] for array in batch))
    assert close(padded, logits_of(other, row).detach().numpy()[0], 1e-12) == same


@each_kind
def test_logits_are_those_of_transformers_as_it_is(kind, tmp_path, rng):
    other = theirs(kind)
    model = load(other, tmp_path / "m")
    batch = batch_for(model, rng)
    expected = logits_of(other, batch).detach().numpy()
    assert close(real(model.forward(batch.ids, batch.inputs)[0], batch), real(expected, batch), 1e-5)


@each_kind
def test_every_gradient_of_the_base_is_theirs_to_1e_10(kind, tmp_path, rng):
    other = in_float64(theirs(kind))
    model = load(other, tmp_path / "m")
    batch, grads = batch_for(model, rng, left=model.family == "llama"), Gradients()
    y, cache = model.forward(batch.ids, batch.inputs)
    dy = upstream(y, batch, rng)
    model.backward(dy, cache, grads)
    (torch.tensor(dy) * logits_of(other, batch)).sum().backward()
    parameters = {name: p for name, p in other.named_parameters() if p.grad is not None}
    largest = max(float(p.grad.abs().max()) for p in parameters.values())
    for path, parameter in model.named_parameters().items():
        name = hf_name(model, path)
        if name not in parameters:  # an untied head of BERT has a second bias, and reads that one
            name = name.replace("predictions.bias", "predictions.decoder.bias")
        expected = parameters.pop(name).grad.numpy()
        expected = transpose(model.family, name, expected)
        np.testing.assert_allclose(grads[parameter], expected, rtol=0, atol=1e-10 * largest, err_msg=path)
    assert not parameters, "what is theirs alone"


@each_kind
def test_what_ours_writes_transformers_loads_and_computes_alike(kind, tmp_path, rng):
    model = load(theirs(kind), tmp_path / "m")
    minilora.save_pretrained(model, tmp_path / "again")
    _, name, _ = KINDS[kind]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a pooler that is not there
        other = getattr(transformers, name).from_pretrained(tmp_path / "again", dtype=torch.float64).eval()
    other.config.pad_token_id = 0  # where theirs looks for the last token; ours is told
    batch = batch_for(model, rng)
    ours = real(model.forward(batch.ids, batch.inputs)[0], batch)
    assert close(ours, real(logits_of(other, batch).detach().numpy(), batch), 1e-5)
    again = minilora.load_pretrained(tmp_path / "again", "float64")
    assert again.config == model.config
    assert np.array_equal(real(again.forward(batch.ids, batch.inputs)[0], batch), ours)


@pytest.mark.parametrize("kind", ["gpt2", "bert", "roberta", "llama"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_weights_in_sixteen_bits_and_in_shards_are_read_exactly(kind, dtype, tmp_path):
    other = theirs(kind).to(getattr(torch, dtype))
    other.save_pretrained(tmp_path / "m", max_shard_size="8KB")
    assert (tmp_path / "m" / "model.safetensors.index.json").is_file()
    model = minilora.load_pretrained(tmp_path / "m")
    parameters = dict(other.named_parameters())
    for path, data in model.state_dict().items():
        name = hf_name(model, path)
        expected = parameters[name].detach().float().numpy()
        assert data.dtype == np.float32
        assert np.array_equal(data, transpose(model.family, name, expected)), path


DRAWN = [("gpt2", "classify", 1), ("llama", "classify", 1), ("bert", "classify", 4), ("roberta", "classify", 4),
         ("bert", "tokens", 2), ("roberta", "tokens", 2), ("gemma3_text", "classify", 1), ("distilbert", "classify", 4),
         ("distilbert", "tokens", 2), ("modernbert", "classify", 2), ("modernbert", "tokens", 2),
         ("modernbert, headless", "classify", 4)]  # fmt: skip


@pytest.mark.parametrize(("kind", "head", "drawn"), DRAWN)
def test_a_classifier_on_a_language_model_is_drawn_and_said_to_be_new(kind, head, drawn, tmp_path, rng):
    theirs(kind).save_pretrained(tmp_path / "m")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        model = minilora.load_pretrained(tmp_path / "m", "float64", head=head, labels=5)
    batch = batch_for(model, rng)
    assert model.forward(batch.ids, batch.inputs)[0].shape == ((3, 5) if head == "classify" else (3, 9, 5))
    lines = [str(warning.message) for warning in said]
    (new,) = [line for line in lines if "drawn anew, to be trained" in line]
    assert new.count(".weight") + new.count(".bias") == drawn
    left_over = "headless" not in kind and kind not in ("gpt2", "gemma3_text")  # whose head is their embedding
    assert len(lines) == 1 + left_over
    assert all("for another head" in line for line in lines if line != new)


@pytest.mark.parametrize("kind", ["mistral", "mistral, window", "qwen2, window above", "gemma3_text", "modernbert"])
def test_in_blocks_too_a_model_with_a_window_has_the_logits_and_gradients_of_transformers(kind, tmp_path, rng):
    changes = {"modernbert": {"local_attention": 150}, "mistral": {}}.get(kind, {"sliding_window": 150})
    other = in_float64(theirs(kind, **changes, max_position_embeddings=600))
    model = load(other, tmp_path / "m")
    ids, real = rng.integers(2, 43, (2, 600)), np.arange(600) >= [[0], [170]]
    batch, grads = Batch(ids, real, 0 * ids), Gradients()
    y, cache = model.forward(ids, batch.inputs)
    expected = logits_of(other, batch)
    assert close(y[real], expected.detach().numpy()[real], 1e-12)
    dy = upstream(y, batch, rng)
    model.backward(dy, cache, grads)
    (torch.tensor(dy) * expected).sum().backward()
    parameters = dict(other.named_parameters())
    largest = max(float(p.grad.abs().max()) for p in parameters.values())
    for path, parameter in model.named_parameters().items():
        gradient = parameters[hf_name(model, path)].grad.numpy()
        np.testing.assert_allclose(grads[parameter], gradient, rtol=0, atol=1e-10 * largest, err_msg=path)


# ---- PEFT on it ----


def adapted(kind: str, folder: Path) -> tuple[Any, Transformer]:
    """Their model with an adapter whose B is not 0, and ours with both loaded from their folders."""
    peft = pytest.importorskip("peft")
    other = in_float64(theirs(kind))
    model = load(other, folder / "m")
    words = {"r": 3, "lora_alpha": 5, "init_lora_weights": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Conv1D, which stores W as (in, out)
        targets = ADAPTED.get(model.family, ["q_proj", "down_proj"])
        wrapped = peft.get_peft_model(other, peft.LoraConfig(target_modules=targets, **words)).double()
        wrapped.save_pretrained(folder / "adapter")
    minilora.load_adapter(model, folder / "adapter")
    return wrapped, model


def pairs(wrapped: Any, model: Transformer) -> Iterator[tuple[str, Any, Any]]:
    """(path, our parameter, theirs) of every A and B."""
    parameters = dict(wrapped.named_parameters())
    for path, parameter in model.trainable_parameters().items():
        layer, _, side = path.rpartition(".")
        yield path, parameter, parameters[f"base_model.model.{hf_name(model, layer)}.{side}.default.weight"]


@pytest.mark.parametrize("kind", ["gpt2", "llama", "llama 3", "qwen2", "qwen3", "bert", "bert, tokens", "roberta",
                                  "mistral, window", "qwen2, window above", "qwen2, YaRN", "smollm3", "phi3",
                                  "gemma3_text", "modernbert", "modernbert, mean, classifier", "distilbert",
                                  "distilbert, tokens"])  # fmt: skip
def test_the_gradients_of_an_adapter_are_those_of_peft_to_1e_10(kind, tmp_path, rng):
    wrapped, model = adapted(kind, tmp_path)
    batch, grads = batch_for(model, rng), Gradients()
    y, cache = model.forward(batch.ids, batch.inputs)
    assert close(real(y, batch), real(logits_of(wrapped, batch).detach().numpy(), batch), 1e-12)
    dy = upstream(y, batch, rng)
    model.backward(dy, cache, grads)
    (torch.tensor(dy) * logits_of(wrapped, batch)).sum().backward()
    found = list(pairs(wrapped, model))
    assert len(found) == sum("lora_" in name for name, _ in wrapped.named_parameters())
    largest = max(float(other.grad.abs().max()) for _, _, other in found)
    for path, parameter, other in found:
        np.testing.assert_allclose(grads[parameter], other.grad.numpy(), rtol=0, atol=1e-10 * largest, err_msg=path)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "bert", "roberta", "gemma3_text", "modernbert", "distilbert"])
def test_ten_steps_of_adamw_end_where_those_of_peft_do_to_1e_9(kind, tmp_path, rng):
    wrapped, model = adapted(kind, tmp_path)
    words = {"lr": 0.01, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1}
    ours = AdamW(model.trainable_parameters(), **words)
    learns = [p for p in wrapped.parameters() if p.requires_grad]
    their = torch.optim.AdamW(learns, **words)
    for _ in range(10):
        batch, grads = batch_for(model, rng), Gradients()
        targets = np.where(batch.real, rng.integers(0, 43, batch.ids.shape), ops.IGNORE)
        logits, cache = model.forward(batch.ids, batch.inputs)
        _, ce = ops.cross_entropy_forward(logits, targets)
        model.backward(ops.cross_entropy_backward(1.0, ce), cache, grads)
        ours.step(grads)
        their.zero_grad()
        loss = torch.nn.functional.cross_entropy(
            logits_of(wrapped, batch).flatten(0, 1), torch.tensor(targets).flatten()
        )
        loss.backward()
        their.step()
    for path, parameter, other in pairs(wrapped, model):
        assert close(parameter.data, other.detach().numpy(), 1e-9), path
