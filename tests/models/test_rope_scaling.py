"""Rotary positions for longer sequences than in training: linear, dynamic, YaRN and Llama 3, beside transformers."""

from typing import Any

import numpy as np
import pytest
from models import build
from their_rope import their_frequencies

import minilora
from minilora import ops
from minilora.models.config_json import read_config, write_config
from minilora.models.describe import describe_model
from minilora.models.generation import CHUNK, next_ids
from minilora.models.rope_json import rope_fields
from minilora.nn import KVCache, Pass

SIZES = {"vocab_size": 43, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
         "intermediate_size": 20, "max_position_embeddings": 64, "rms_norm_eps": 1e-6}  # fmt: skip
LLAMA3 = {"rope_type": "llama3", "low_freq_factor": 0.5, "high_freq_factor": 2.0}
RULES: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear"},
    "dynamic": {"rope_type": "dynamic"},
    "llama3": LLAMA3 | {"original_max_position_embeddings": 16},
    "llama3, of the whole length": LLAMA3,
    "yarn": {"rope_type": "yarn"},
    "yarn, older key": {"type": "yarn", "original_max_position_embeddings": 16},
    "yarn, not rounded": {"rope_type": "yarn", "original_max_position_embeddings": 50, "truncate": False},
    "yarn, all in one pair": {"rope_type": "yarn", "original_max_position_embeddings": 2},
    "yarn, betas": {"rope_type": "yarn", "original_max_position_embeddings": 500, "beta_fast": 8.0, "beta_slow": 2.0},
    "yarn, mscale": {"rope_type": "yarn", "mscale": 0.7, "mscale_all_dim": 1.3},
    "yarn, one mscale": {"rope_type": "yarn", "mscale": 0.7},
    "yarn, attention factor": {"rope_type": "yarn", "attention_factor": 0.77, "mscale": 0.7, "mscale_all_dim": 1.3},
}
each_rule = pytest.mark.parametrize("name", RULES)


@pytest.mark.each_value
@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("factor", [1.0, 3.5])
@pytest.mark.parametrize("beside", [{}, {"original_max_position_embeddings": 33}], ids=["", "length beside it"])
@each_rule
def test_frequencies_and_the_factor_on_cos_and_sin_are_those_of_transformers_to_1e_12(name, beside, factor):
    transformers = pytest.importorskip("transformers")
    rope = {"rope_theta": 500.0, "factor": factor, **RULES[name]}
    fields = rope_fields({**SIZES, **beside, "rope_parameters": dict(rope)})
    config = transformers.LlamaConfig(**SIZES, **beside, rope_parameters=rope)
    for n in (1, 64, 65, 300) if name == "dynamic" else (1, 300):
        omega, amplitude = their_frequencies(config, n)
        ours = ops.rope_frequencies(np, 16, fields["rope_theta"], fields["rope_scaling"], n)
        np.testing.assert_allclose(ours, omega.numpy(), rtol=1e-12)
        assert getattr(fields["rope_scaling"], "amplitude", 1.0) == pytest.approx(amplitude, rel=1e-12)


@each_rule
def test_a_config_comes_back_with_its_rule_and_info_names_it(name, tmp_path):
    values = {**SIZES, "model_type": "llama", "rope_scaling": {"rope_theta": 500.0, "factor": 2.5, **RULES[name]}}
    config = read_config(values, "config.json", "float32")[1]
    assert config.rope_theta == 500.0
    assert config.max_length == (160 if name == "dynamic" else 64)
    model = minilora.llama(config, 0)
    written = write_config(model)
    assert written["max_position_embeddings"] == 64
    assert read_config(written, "config.json", "float32") == ("llama", config)
    assert read_config({**written, "rope_scaling": None}, "config.json", "float32") == ("llama", config)
    minilora.save_pretrained(model, tmp_path / "m")
    kind = written["rope_parameters"]["rope_type"]
    assert f"rotary with theta 500, scaled: {kind} by 2.5" in describe_model(tmp_path / "m")["positions"]


@pytest.mark.parametrize(
    ("rope", "says"),
    [
        ({"rope_type": "longrope", "factor": 2.0}, "longrope.* is not supported, only default, linear, dynamic, yarn"),
        ({"rope_type": "proportional", "factor": 2.0}, "proportional.* is not supported, only default"),
        ({"rope_type": ["yarn"]}, "is not supported"),
        ({"rope_type": "linear", "factor": "2"}, "factor is '2'"),
        ({"rope_type": "linear", "factor": True}, "factor is True"),
        ({"rope_type": "dynamic", "factor": -1}, "factor is -1"),
        ({"rope_type": "yarn"}, "factor is None"),
        ({"rope_type": "yarn", "factor": 2.0, "truncate": 1}, "truncate is 1"),
        ({"rope_type": "yarn", "factor": 2.0, "beta_fast": 1, "beta_slow": 2}, "beta_fast is below beta_slow"),
        ({"rope_type": "yarn", "factor": 2.0, "rope_theta": 1.0}, "or theta 1"),
        ({"rope_type": "yarn", "factor": 2.0, "attention_factor": 10**400}, "attention_factor is 1000"),
        (LLAMA3 | {"factor": 2.0, "low_freq_factor": 3}, "high_freq_factor must be above low_freq_factor"),
        ({"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5 is not"),
    ],
)
def test_rules_and_numbers_that_are_not_there_are_refused_by_name(rope, says):
    with pytest.raises(ValueError, match=says):
        rope_fields({**SIZES, "rope_parameters": rope})
    with pytest.raises(ValueError, match=r"partial_rotary_factor = 0\.75 is not supported: a head is rotated whole"):
        rope_fields({**SIZES, "partial_rotary_factor": 0.75})


def test_with_yarn_dx_is_the_transpose_of_the_same_tables_and_not_the_plain_rotation(rng):
    scaling = ops.YarnScaling(8.0, 5)
    assert scaling.amplitude == pytest.approx(1.2079441541679836)
    omega = ops.rope_frequencies(np, 6, 50.0, scaling)
    tables = ops.rope_tables(np, 4, omega, np.float64, 0, scaling.amplitude)
    x, dy = rng.standard_normal((2, 2, 4, 12))
    inner = (ops.rope_forward(x, *tables) * dy).sum()
    assert (x * ops.rope_backward(dy, *tables)).sum() == pytest.approx(inner, rel=1e-12)
    plain = ops.rope_tables(np, 4, omega, np.float64)
    assert abs((x * ops.rope_backward(dy, *plain)).sum() / inner - 1) > 0.1


# ---- dynamic: the frequencies depend on the length ----

L = 6
DYNAMIC: dict[str, Any] = {"head_dim": 6, "max_length": 4 * L, "rope_scaling": ops.DynamicScaling(4.0, L)}


def read(model, ids, ends):
    """The logits of ids (1, T) that come in parts which end at `ends`."""
    kv_cache, parts = KVCache(ids.shape[1]), []
    for start, end in zip([0, *ends], ends, strict=False):
        parts.append(model.forward(ids[:, start:end], run=Pass(kv_cache=kv_cache))[0])
    return np.concatenate(parts, axis=1)


def test_up_to_the_length_of_the_training_dynamic_changes_nothing_and_a_cache_does_not_either(rng):
    model, plain = build("llama", **DYNAMIC), build("llama", head_dim=6, max_length=4 * L)
    ids = rng.integers(0, 13, (1, 9))
    same = model.forward(ids[:, :L])[0]
    assert np.array_equal(same, plain.forward(ids[:, :L])[0])
    np.testing.assert_allclose(read(model, ids[:, :L], [2, 3, L]), same, atol=1e-12)
    assert np.abs(model.forward(ids)[0] - plain.forward(ids)[0]).max() > 1e-3


def test_the_same_text_has_the_same_logits_whatever_was_read_before(rng):
    """Theirs keep the frequencies of the longest sequence until one is shorter than the trained length."""
    model, ids = build("llama", **DYNAMIC), rng.integers(0, 13, (1, 4 * L))
    before = model.forward(ids[:, :9])[0]
    model.forward(ids)
    assert np.array_equal(model.forward(ids[:, :9])[0], before)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Their model with dynamic scaling and ours, in float64; theirs computes norms and angles in float32."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    rope = {"rope_type": "dynamic", "rope_theta": 50.0, "factor": 30.0}
    config = transformers.LlamaConfig(**SIZES | {"max_position_embeddings": L, "rope_parameters": rope})
    theirs = transformers.LlamaForCausalLM(config).double().eval()
    for parameter in theirs.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, dtype=torch.float64)
    folder = tmp_path_factory.mktemp("dynamic")
    theirs.save_pretrained(folder)
    return theirs, minilora.load_pretrained(folder, "float64")


def close(one, two):
    return np.abs(one - two).max() < 1e-4 * np.abs(two).max()


@pytest.mark.oracle
def test_past_the_length_keys_in_a_cache_keep_their_frequencies_as_in_transformers(both, rng):
    torch = pytest.importorskip("torch")
    (theirs, ours), ids, ends = both, rng.integers(0, 43, (1, 20)), [4, 9, 10, 20]
    past, parts = None, []
    for start, end in zip([0, *ends], ends, strict=False):
        out = theirs(torch.tensor(ids[:, start:end]), past_key_values=past, use_cache=True)
        past, parts = out.past_key_values, [*parts, out.logits.detach().numpy()]
    theirs.model.rotary_emb.max_seq_len_cached = L  # it still has those of 20 tokens
    at_once = theirs(torch.tensor(ids), use_cache=False).logits.detach().numpy()
    assert close(read(ours, ids, ends), np.concatenate(parts, axis=1))
    assert close(ours.forward(ids)[0], at_once)
    assert not close(np.concatenate(parts, axis=1), at_once)


@pytest.mark.oracle
@pytest.mark.parametrize("prompt", [3, CHUNK + 9])
def test_generation_past_the_length_gives_the_tokens_of_transformers(both, prompt, rng):
    torch = pytest.importorskip("torch")
    (theirs, ours), ids = both, rng.integers(3, 43, prompt)
    theirs(torch.tensor([[1]]))  # a short text resets its frequencies
    found = theirs.generate(torch.tensor(ids[None]), max_new_tokens=12, do_sample=False, eos_token_id=None)
    assert list(next_ids(ours, ids, 12)) == found[0, prompt:].tolist()


def test_a_config_with_dynamic_scaling_says_how_long_its_sequences_are():
    with pytest.raises(ValueError, match=r"rope_scaling = DynamicScaling\(.*\) needs max_length = 24, not 9"):
        minilora.Config(8, 1, 4, 1, max_length=9, rope_scaling=ops.DynamicScaling(4.0, 6))
