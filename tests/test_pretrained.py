import json
import math

import numpy as np
import pytest

import minilora
from minilora import peft, pretrained
from minilora.checkpoint import load_tensors, save_tensors, tensors_to_bytes, write_folder


def small(rng, **changes):
    shape = {"vocab": 64, "layers": 2, "width": 16, "heads": 4, "kv_heads": 2, "hidden": 24, "context": 32} | changes
    model = minilora.llama(minilora.Config(**shape), rng)
    for parameter in model.named_parameters().values():
        parameter.data = (parameter.data + 0.2 * rng.standard_normal(parameter.data.shape)).astype(
            shape.get("dtype", "f4")
        )
    return model


@pytest.fixture
def ids(rng):
    return rng.integers(0, 64, (2, 9))


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_that_was_saved_loads_to_the_same_bits(tmp_path, rng, ids, tied):
    model = small(rng, tied=tied)
    minilora.save_pretrained(model, tmp_path / "m")
    loaded = minilora.load_pretrained(tmp_path / "m")
    assert loaded.config == model.config
    assert np.array_equal(loaded.forward(ids)[0], model.forward(ids)[0])
    assert pretrained.base_hash(loaded) == pretrained.base_hash(model)


def test_every_parameter_has_a_name_of_its_own_in_hugging_face(rng):
    model = small(rng, tied=False)
    theirs = [pretrained.their_name(model, path) for path in model.named_parameters()]
    assert len(set(theirs)) == len(theirs)
    with pytest.raises(ValueError, match="not yet for gpt2"):
        pretrained.their_name(minilora.gpt2(minilora.Config(8, 1, 4, 1), rng), "embed.token")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mamba"}, "family 'mamba' is not supported"),
        ({"hidden_act": "relu"}, "hidden_act = 'relu' is not supported"),
        ({"attention_bias": True}, "attention_bias = True is not supported"),
        ({"rope_scaling": {"rope_type": "llama3"}}, "rope_scaling"),
        ({"rope_parameters": {"rope_type": "llama3"}}, "rope_parameters = .*llama3.* is not supported"),
        ({"head_dim": 7}, "head_dim = 7 is not supported"),
        ({"hidden_size": None}, "lacks 'hidden_size'"),
        ({"intermediate_size": 25}, "does not fit its config.json"),
        ({"num_hidden_layers": 3}, "missing"),
        ({"num_hidden_layers": 1}, "unexpected"),
    ],
)
def test_a_config_that_is_not_implemented_or_does_not_fit_is_refused_by_name(tmp_path, rng, changes, message):
    minilora.save_pretrained(small(rng), tmp_path / "m")
    path = tmp_path / "m" / "config.json"
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))
    with pytest.raises(ValueError, match=message):
        minilora.load_pretrained(tmp_path / "m")


def test_the_scale_of_the_embedding_does_not_hide_in_the_hash(rng):
    model = small(rng)
    before = pretrained.base_hash(model)
    model["embed.token"].weight.data = np.nextafter(model["embed.token"].weight.data, np.float32(9))
    assert pretrained.base_hash(model) != before
    wide = small(np.random.default_rng(0))
    narrow_hash = pretrained.base_hash(wide)
    wide.astype(np.float64)
    assert pretrained.base_hash(wide) == narrow_hash


def test_the_builtin_model_is_what_its_recipe_says():
    model = minilora.load_pretrained()
    size = (pretrained.BUILTIN / "model.safetensors").stat().st_size
    assert size <= 4_000_000
    assert minilora.accounting.count_parameters(model)["total"] == 940_416
    note = json.loads((pretrained.BUILTIN / "pretraining.json").read_text())
    assert note["recipe"]["steps"] == len(note["loss"])
    assert note["bits_per_byte"]["model"] < note["bits_per_byte"]["zlib"] < note["bits_per_byte"]["bigram"]
    assert note["loss"][0] == pytest.approx(math.log(256), abs=0.1)


# ---- adapters ----


def adapted(rng, targets=("q_proj", "v_proj"), **words):
    model = small(np.random.default_rng(1))
    minilora.attach_lora(model, targets, rng=rng, **({"r": 3, "alpha": 5} | words))
    for parameter in model.trainable_parameters().values():
        parameter.data = 0.3 * rng.standard_normal(parameter.data.shape, dtype="f4")
    return model


CASES = {
    "q, v": {},
    "all linears, rsLoRA": {"targets": "all-linear", "rslora": True},
    "a rank for each": {"targets": {"q_proj": 2, "block_1.mlp.up_proj": 4}},
    "the head": {"targets": ["lm_head", "o_proj"]},
}


@pytest.mark.parametrize("case", CASES)
def test_an_adapter_comes_back_with_the_same_logits_and_saves_to_the_same_bytes(tmp_path, rng, ids, case):
    model = adapted(rng, **CASES[case])
    peft.save_adapter(model, tmp_path / "a")
    loaded = small(np.random.default_rng(1))
    assert peft.load_adapter(loaded, tmp_path / "a") == ""
    assert np.array_equal(loaded.forward(ids)[0], model.forward(ids)[0])
    assert set(loaded.trainable_parameters()) == set(model.trainable_parameters())
    peft.save_adapter(loaded, tmp_path / "b")
    for name in (peft.CONFIG, peft.WEIGHTS):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_an_adapter_is_refused_by_another_base_and_leaves_it_as_it_was(tmp_path, rng):
    peft.save_adapter(adapted(rng), tmp_path / "a")
    other = small(np.random.default_rng(2))
    before = other.state_dict()
    with pytest.raises(ValueError, match="another base"):
        peft.load_adapter(other, tmp_path / "a")
    assert other.state_dict().keys() == before.keys()


def change(folder, tensors=lambda t: t, config=lambda c: c):
    old, metadata = load_tensors(folder / peft.WEIGHTS)
    save_tensors(folder / peft.WEIGHTS, tensors(old), metadata)
    path = folder / peft.CONFIG
    path.write_text(json.dumps(config(json.loads(path.read_text()))))


FIRST = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"tensors": lambda t: {k: v for k, v in t.items() if k != FIRST}}, "missing: .*lora_A"),
        ({"tensors": lambda t: {k: v for k, v in t.items() if k != FIRST.replace("_A", "_B")}}, "missing"),
        ({"tensors": lambda t: {k.removeprefix("base_model."): v for k, v in t.items()}}, "unexpected"),
        ({"tensors": lambda t: t | {FIRST: t[FIRST][:2]}}, r"has shape \(2, 16\), and \(3, 16\) is needed"),
        ({"config": lambda c: c | {"use_dora": True}}, "use_dora = True is not supported"),
        ({"config": lambda c: c | {"peft_type": "IA3"}}, "peft_type = 'IA3' is not supported"),
        ({"config": lambda c: c | {"modules_to_save": ["lm_head"]}}, "modules_to_save"),
        ({"config": lambda c: {k: v for k, v in c.items() if k != "lora_alpha"}}, "lacks 'lora_alpha'"),
    ],
)
def test_an_adapter_that_would_do_something_else_is_refused_and_the_model_stays(tmp_path, rng, damage, message):
    peft.save_adapter(adapted(rng), tmp_path / "a")
    change(tmp_path / "a", **damage)
    model = small(np.random.default_rng(1))
    with pytest.raises(ValueError, match=message):
        peft.load_adapter(model, tmp_path / "a")
    assert all(parameter.trainable for parameter in model.named_parameters().values())
    assert "block_0.attention.q_proj.lora_A" not in model.state_dict()


def test_saving_is_refused_without_an_adapter_while_merged_and_beside_other_trained_parameters(tmp_path, rng):
    with pytest.raises(ValueError, match="no adapter"):
        peft.save_adapter(small(rng), tmp_path / "a")
    model = adapted(rng)
    with pytest.raises(ValueError, match=r"merge\(model\) first"):
        minilora.save_pretrained(model, tmp_path / "a")
    minilora.merge(model)
    with pytest.raises(ValueError, match=r"unmerge\(model\) first"):
        peft.save_adapter(model, tmp_path / "a")
    with pytest.raises(ValueError, match="train beside the adapters"):
        peft.save_adapter(adapted(rng, train=["norm"]), tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_a_merged_model_is_saved_merged_and_says_so(tmp_path, rng, ids):
    model = adapted(rng)
    minilora.merge(model)
    minilora.save_pretrained(model, tmp_path / "m")
    assert load_tensors(tmp_path / "m" / "model.safetensors")[1]["adapters_merged"] == "4"
    assert np.array_equal(minilora.load_pretrained(tmp_path / "m").forward(ids)[0], model.forward(ids)[0])


def test_merging_an_adapter_of_a_tied_head_unties_the_saved_model(tmp_path, rng, ids):
    model = adapted(rng, targets=["lm_head"])
    minilora.merge(model)
    minilora.save_pretrained(model, tmp_path / "m")
    loaded = minilora.load_pretrained(tmp_path / "m")
    assert not loaded.config.tied
    assert np.array_equal(loaded.forward(ids)[0], model.forward(ids)[0])


def test_the_same_tensors_give_the_same_bytes_and_the_library_reads_them(tmp_path, rng):
    from safetensors import safe_open

    tensors = {"b": rng.standard_normal((2, 3)), "a": np.arange(3, dtype="f4")}
    metadata = {"z": "1", "format": "pt", "a": "é"}
    blob = tensors_to_bytes(tensors, metadata)
    assert blob == tensors_to_bytes(dict(reversed(tensors.items())), dict(reversed(metadata.items())))
    (tmp_path / "t").write_bytes(blob)
    with safe_open(tmp_path / "t", "np") as file:
        assert file.metadata() == metadata
        assert all(np.array_equal(file.get_tensor(name), tensors[name]) for name in tensors)


def test_a_folder_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    import os

    real = os.fsync
    calls = []

    def full(file):
        calls.append(file)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        real(file)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_folder(tmp_path / "out", {"one": b"1", "two": b"2"})
    assert list(tmp_path.iterdir()) == []


# ---- oracles ----


@pytest.mark.oracle
@pytest.mark.parametrize("tied", [True, False])
def test_transformers_loads_what_we_save_with_the_same_logits_and_back(tmp_path, rng, ids, tied):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model = small(rng, tied=tied, rope_theta=500.0)
    minilora.save_pretrained(model, tmp_path / "m")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    ours = model.forward(ids)[0]
    assert np.abs(theirs(torch.tensor(ids)).logits.detach().numpy() - ours).max() < 1e-5 * np.abs(ours).max()
    theirs.save_pretrained(tmp_path / "back")
    assert np.array_equal(minilora.load_pretrained(tmp_path / "back").forward(ids)[0], ours)


@pytest.mark.oracle
def test_transformers_loads_the_builtin_model_with_the_same_logits(ids):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(pretrained.BUILTIN)
    ours = minilora.load_pretrained().forward(ids)[0]
    assert np.abs(theirs(torch.tensor(ids)).logits.detach().numpy() - ours).max() < 1e-5 * np.abs(ours).max()


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
@pytest.mark.parametrize("case", CASES)
def test_peft_loads_what_we_save_with_the_same_logits_and_back(tmp_path, rng, ids, case):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    huggingface_peft = pytest.importorskip("peft")
    minilora.save_pretrained(small(np.random.default_rng(1)), tmp_path / "m")
    model = adapted(rng, **CASES[case])
    peft.save_adapter(model, tmp_path / "a")
    ours = model.forward(ids)[0]
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    theirs = huggingface_peft.PeftModel.from_pretrained(base, tmp_path / "a")
    assert np.abs(theirs(torch.tensor(ids)).logits.detach().numpy() - ours).max() < 1e-5 * np.abs(ours).max()
    theirs.save_pretrained(tmp_path / "back", save_embedding_layers=False)
    again = minilora.load_pretrained(tmp_path / "m")
    assert "does not say which base" in peft.load_adapter(again, tmp_path / "back")
    assert np.array_equal(again.forward(ids)[0], ours)
