import json
import math
import tracemalloc
import warnings
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
from models import FAMILY_HEADS

import minilora
from minilora.adapters import peft
from minilora.files import load_tensors, save_tensors, tensors_to_bytes, write_folder
from minilora.models import saving
from minilora.models.describe import describe_model
from minilora.models.families import FAMILIES
from minilora.models.generation import next_ids
from minilora.models.names import hf_name
from minilora.models.sources import BUILTIN
from minilora.models.tokenizer import ByteTokenizer


def small(rng, family="llama", **changes):
    shape = {
        "vocab_size": 64, "n_layers": 2, "d_model": 16, "n_heads": 4, "n_kv_heads": 2, "d_ff": 24, "max_length": 32,
    }  # fmt: skip
    shape |= changes
    model = FAMILIES[family].build(minilora.Config(**shape), rng)
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
    assert saving.base_hash(loaded) == saving.base_hash(model)


@pytest.mark.each_value
@pytest.mark.parametrize(("family", "head"), FAMILY_HEADS)
def test_every_parameter_has_a_name_of_its_own_in_hugging_face(family, head, rng):
    model = FAMILIES[family].build(minilora.Config(8, 1, 4, 1, tied=False, head=head), rng)
    theirs = [hf_name(model, path) for path in model.named_parameters()]
    assert len(set(theirs)) == len(theirs)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mamba"}, "family 'mamba' is not supported"),
        ({"hidden_act": "relu"}, "hidden_act = 'relu' is not supported"),
        ({"attention_bias": True}, "attention_bias = True is not supported"),
        ({"rope_scaling": {"rope_type": "llama3"}}, "rope_scaling"),
        ({"rope_parameters": {"rope_type": "llama3"}}, "rope_parameters = .*llama3.* is not supported"),
        ({"head_dim": 7}, "a head's width must be even, and 7 is not"),
        ({"hidden_size": None}, "lacks 'hidden_size'"),
        ({"intermediate_size": 25}, "do not fit its config.json"),
        ({"num_hidden_layers": 3}, "missing"),
        ({"num_hidden_layers": 1}, "unexpected"),
        (
            {"rope_parameters": {"type": "longrope", "factor": 2.0}},
            "rope_parameters = .*longrope.* is not supported, only",
        ),
        ({"rope_parameters": {"type": "linear"}}, "rope_parameters = .*linear.* is not supported: factor is None"),
        ({"quantization_config": {"bits": 4}}, "quantization_config = {'bits': 4} is not supported"),
        ({"is_causal": False}, "is_causal = False is not supported, only True"),
        ({"model_type": "mistral", "sliding_window": 0}, "sliding_window = 0 is not a whole number from 1 up"),
        ({"model_type": "mistral", "sliding_window": 4.0}, r"sliding_window = 4\.0 is not a whole number from 1 up"),
        ({"model_type": "qwen2", "use_sliding_window": "no"}, "use_sliding_window = 'no' is not true or false"),
        ({"model_type": "qwen2", "max_window_layers": "2"}, "max_window_layers = '2' is not a whole number from 0 up"),
        ({"model_type": "qwen2", "layer_types": 3}, "layer_types = 3 is not a list of names"),
        ({"model_type": "qwen2", "layer_types": ["full_attention"]}, "layer_types = .* for each layer"),
        ({"model_type": "qwen2", "layer_types": ["sliding_attention"] * 2}, "layer_types = .* needs a sliding_window"),
        ({"attention_dropout": 0.1}, "attention_dropout = 0.1 is not supported, only 0.0"),
        ({"rms_norm_eps": math.nan}, "rms_norm_eps = nan is not a positive number"),
        ({"rms_norm_eps": -1e-5}, "rms_norm_eps = -1e-05 is not a positive number"),
        ({"rms_norm_eps": math.inf}, "rms_norm_eps = inf is not"),
        ({"rope_parameters": {"rope_theta": math.nan}}, "rope_theta = nan is not a positive number"),
        ({"num_attention_heads": 0}, "num_attention_heads = 0 is not supported"),
        ({"num_key_value_heads": 0}, "num_key_value_heads = 0 is not supported"),
        ({"intermediate_size": 0}, "intermediate_size = 0 is not supported"),
        ({"hidden_size": 16.0}, "hidden_size = 16.0 is not a whole number from 1 up"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings = 'no' is not True or False"),
        ({"num_attention_heads": 3, "head_dim": None}, "hidden_size 16 does not divide into 3 heads"),
    ],
)
def test_a_config_that_is_not_implemented_or_does_not_fit_is_refused_by_name(tmp_path, rng, changes, message):
    minilora.save_pretrained(small(rng), tmp_path / "m")
    path = tmp_path / "m" / "config.json"
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))
    with pytest.raises(ValueError, match=message):
        minilora.load_pretrained(tmp_path / "m")


@pytest.mark.each_value
@pytest.mark.parametrize("key", ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"])
@pytest.mark.parametrize("size", [10**6, 10**9, 10**18, 10**30])
def test_a_config_of_an_absurd_size_is_refused_before_it_costs_memory(tmp_path, rng, key, size):
    minilora.save_pretrained(small(rng, d_model=8, n_heads=1, n_kv_heads=1), tmp_path / "m")
    path = tmp_path / "m" / "config.json"
    values = json.loads(path.read_text()) | {key: size}
    del values["head_dim"]
    path.write_text(json.dumps(values))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"the tensors of .* do not fit its config\.json"):
            minilora.load_pretrained(tmp_path / "m")
        assert tracemalloc.get_traced_memory()[1] < 2e6
    finally:
        tracemalloc.stop()


def test_a_tied_head_may_be_stored_twice_and_is_refused_where_it_is_another(tmp_path, rng, ids):
    model = small(rng, tied=True)
    minilora.save_pretrained(model, tmp_path / "m")
    path = tmp_path / "m" / "model.safetensors"
    tensors, metadata = load_tensors(path)
    embedding = tensors["model.embed_tokens.weight"]
    save_tensors(path, tensors | {"lm_head.weight": embedding}, metadata)
    assert np.array_equal(minilora.load_pretrained(tmp_path / "m").forward(ids)[0], model.forward(ids)[0])
    save_tensors(path, tensors | {"lm_head.weight": 2 * embedding}, metadata)
    with pytest.raises(ValueError, match=r"lm_head\.weight is not model\.embed_tokens\.weight"):
        minilora.load_pretrained(tmp_path / "m")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_weight_that_is_not_finite_is_named_when_the_model_is_loaded(tmp_path, rng, value):
    model = small(rng)
    weight = model["block_1.mlp.up_proj"].weight
    weight.data[3, 2] = value
    minilora.save_pretrained(model, tmp_path / "m")
    with pytest.raises(ValueError, match=r"m.model\.safetensors: model\.layers\.1\.mlp\.up_proj\.weight holds numbers"):
        minilora.load_pretrained(tmp_path / "m")


def test_the_scale_of_the_embedding_does_not_hide_in_the_hash(rng):
    model = small(rng)
    before = saving.base_hash(model)
    model["embed.token"].weight.data = np.nextafter(model["embed.token"].weight.data, np.float32(9))
    assert saving.base_hash(model) != before
    wide = small(np.random.default_rng(0))
    narrow_hash = saving.base_hash(wide)
    wide.astype(np.float64)
    assert saving.base_hash(wide) == narrow_hash


@pytest.mark.parametrize("tied", [True, False])
def test_the_base_of_an_adapted_model_is_the_model_without_its_adapters(rng, tied):
    model = small(rng, tied=tied)
    before, parameters = saving.base_hash(model), set(model.named_parameters().values())
    without = saving.base_hash(model, ["embed.token.weight"])
    assert (without == before) is False
    minilora.attach_lora(model, ["embed", "q_proj"], rng=rng, ensure_weight_tying=tied)
    assert set(model.base_parameters().values()) == parameters
    assert saving.base_hash(model) == before
    assert saving.base_hash(model, ["embed.token.weight"]) == without


def test_the_builtin_model_is_what_its_recipe_says():
    model = minilora.load_pretrained()
    size = (BUILTIN / "model.safetensors").stat().st_size
    assert size <= 4_000_000
    assert minilora.count_parameters(model)["total"] == 940_416
    note = json.loads((BUILTIN / "pretraining.json").read_text())
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
        (
            {"tensors": lambda t: {k.removeprefix("base_model."): v for k, v in t.items()}},
            r"of another model: model\.model\.layers\.0\..* is there, and base_model\.model\.model\.layers",
        ),
        ({"tensors": lambda t: t | {FIRST: t[FIRST][:2]}}, r"has shape \(2, 16\), and \(3, 16\) is needed"),
        ({"config": lambda c: c | {"use_dora": True}}, "missing: .*q_proj.lora_magnitude_vector"),
        ({"config": lambda c: c | {"use_dora": "yes"}}, "use_dora = 'yes' is not supported"),
        (
            {"config": lambda c: c | {"peft_type": "BOFT"}},
            r"peft_type = 'BOFT' is not read here, only .*: in PEFT, merge it into its base \(merge_and_unload\)",
        ),
        ({"config": lambda c: c | {"modules_to_save": ["lm_head"]}}, r"missing: base_model\.model\.lm_head\.weight"),
        ({"config": lambda c: {k: v for k, v in c.items() if k != "lora_alpha"}}, "lacks 'lora_alpha'"),
        ({"config": lambda c: c | {"use_rslora": "yes"}}, "use_rslora: rslora 'yes' is neither true nor false"),
        ({"config": lambda c: c | {"kasa_config": {}}}, "kasa_config = {} is not supported"),
        ({"config": lambda c: c | {"r": "3"}}, "r: r '3' is not a whole number"),
        ({"config": lambda c: c | {"r": 3.0}}, "r: r 3.0 is not a whole number"),
        ({"config": lambda c: c | {"lora_alpha": True}}, "alpha True is not a number"),
        ({"config": lambda c: c | {"lora_alpha": "5"}}, "alpha '5' is not a number"),
        (
            {"config": lambda c: c | {"target_modules": ["q_proj"]}},
            "do not name model.layers.0.self_attn.v_proj, which",
        ),
        ({"config": lambda c: c | {"target_modules": ["q_proj", "v_proj", "o_proj"]}}, "missing: .*o_proj.lora_A"),
        ({"config": lambda c: c | {"target_modules": "all-linear"}}, "missing: .*down_proj.lora_A"),
        ({"config": lambda c: c | {"target_modules": r".*layers\.0.*[qv]_proj"}}, "do not name model.layers.1.*q_proj"),
        ({"config": lambda c: c | {"target_modules": "q_proj"}}, "do not name model.layers.0.self_attn.q_proj"),
        ({"config": lambda c: c | {"target_modules": "("}}, "target_modules: '\\(' is not a regular expression"),
        (
            {"config": lambda c: c | {"target_modules": 7}},
            "target_modules is a list of names or a regular expression, not 7",
        ),
        (
            {"tensors": lambda t: t | {FIRST: t[FIRST] * np.float32("nan")}},
            f"{FIRST} holds numbers that are not finite",
        ),
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


@pytest.mark.parametrize("targets", [None, ["self_attn.q_proj", "v_proj"], r".*self_attn\.[qv]_proj"])
def test_target_modules_that_name_what_has_tensors_are_taken_in_each_of_their_forms(tmp_path, rng, targets):
    model = adapted(rng)
    peft.save_adapter(model, tmp_path / "a")
    change(tmp_path / "a", config=lambda c: c | {"target_modules": targets})
    loaded = small(np.random.default_rng(1))
    peft.load_adapter(loaded, tmp_path / "a")
    assert set(loaded.trainable_parameters()) == set(model.trainable_parameters())


FOLLOWS_FROM_THE_BASE = ["pissa", "olora"]  # what W gave up can be computed again from W; loftq: test_loftq.py
CHANGES_THE_BASE = ["pissa_niter_4", "corda", "lora_ga"]
KEEPS_THE_BASE = [True, False, "gaussian", "eva", "orthogonal", "mica"]


@pytest.mark.parametrize("init", [*CHANGES_THE_BASE, "of next year"])
def test_an_adapter_that_was_made_by_changing_the_base_is_refused_by_name(tmp_path, rng, init):
    peft.save_adapter(adapted(rng), tmp_path / "a")
    change(tmp_path / "a", config=lambda c: c | {"init_lora_weights": init})
    with pytest.raises(ValueError, match=f"init_lora_weights = '{init}' .* path_initial_model_for_weight_conversion"):
        peft.load_adapter(small(np.random.default_rng(1)), tmp_path / "a")


@pytest.mark.parametrize("init", KEEPS_THE_BASE)
def test_an_adapter_that_began_in_a_way_that_keeps_the_base_is_taken(tmp_path, rng, init):
    peft.save_adapter(adapted(rng), tmp_path / "a")
    change(tmp_path / "a", config=lambda c: c | {"init_lora_weights": init})
    assert peft.load_adapter(small(np.random.default_rng(1)), tmp_path / "a") == ""


@pytest.mark.parametrize("state", ["all adapted", "one adapted", "adapted and thawed", "merged"])
def test_a_model_that_is_adapted_already_is_refused_and_stays_as_it_was(tmp_path, rng, ids, state):
    peft.save_adapter(adapted(rng), tmp_path / "a")
    model = small(np.random.default_rng(1))
    minilora.attach_lora(model, ["block_1.attention.v_proj"] if state == "one adapted" else "all-linear", 2, rng=rng)
    if state == "adapted and thawed":
        model["norm"].weight.trainable = True
    if state == "merged":
        minilora.merge(model)
    before, modules = model.state_dict(), dict(model.named_modules())
    trainable, logits = set(model.trainable_parameters()), model.forward(ids)[0]
    with pytest.raises(ValueError, match=r"self_attn\.[qv]_proj: this layer is adapted already"):
        peft.load_adapter(model, tmp_path / "a")
    assert dict(model.named_modules()) == modules
    assert {name: id(data) for name, data in model.state_dict().items()} == {n: id(x) for n, x in before.items()}
    assert set(model.trainable_parameters()) == trainable
    assert np.array_equal(model.forward(ids)[0], logits)


def test_saving_is_refused_without_an_adapter_while_merged_and_beside_other_trained_parameters(tmp_path, rng):
    with pytest.raises(ValueError, match="no adapter"):
        peft.save_adapter(small(rng), tmp_path / "a")
    model = adapted(rng)
    with pytest.raises(ValueError, match=r"merge\(model\) first"):
        minilora.save_pretrained(model, tmp_path / "a")
    minilora.merge(model)
    with pytest.raises(ValueError, match=r"unmerge\(model\) first"):
        peft.save_adapter(model, tmp_path / "a")
    model = adapted(rng)
    model["block_0.attention.q_proj"].base.weight.trainable = True
    with pytest.raises(ValueError, match=r"block_0\.attention\.q_proj\.weight trains beside its own adapter"):
        peft.save_adapter(model, tmp_path / "a")
    model = adapted(rng)
    model["block_0.attention.q_proj"].dropout = 0.1
    with pytest.raises(ValueError, match="the adapters differ in dropout"):
        peft.save_adapter(model, tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_a_merged_model_is_saved_merged_and_says_so(tmp_path, rng, ids):
    model = adapted(rng)
    minilora.merge(model)
    minilora.save_pretrained(model, tmp_path / "m")
    assert load_tensors(tmp_path / "m" / "model.safetensors")[1]["adapters_merged"] == "4"
    assert np.array_equal(minilora.load_pretrained(tmp_path / "m").forward(ids)[0], model.forward(ids)[0])


def test_merging_an_adapter_of_a_tied_head_unties_the_saved_model(tmp_path, rng, ids):
    model = adapted(rng, targets=["lm_head"])
    with pytest.warns(UserWarning, match="lm_head is no longer tied"):
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
def test_bfloat16_is_read_to_the_bit_and_what_is_smaller_is_refused_by_name(tmp_path):
    torch, safetensors_torch = pytest.importorskip("torch"), pytest.importorskip("safetensors.torch")
    every = torch.arange(2**16, dtype=torch.int32).to(torch.uint16).view(torch.bfloat16)
    tensors = {
        "every": every[torch.isfinite(every)].reshape(2, 5, -1),
        "scalar": torch.tensor(1.5, dtype=torch.bfloat16),
        "none": torch.zeros(0, 3, dtype=torch.bfloat16),
        "half": torch.tensor([0.1], dtype=torch.float16),
        "double": torch.tensor([0.1], dtype=torch.float64),
    }
    safetensors_torch.save_file(tensors, tmp_path / "t", metadata={"format": "pt"})
    ours, metadata = load_tensors(tmp_path / "t")
    assert metadata == {"format": "pt"}
    assert ours.keys() == tensors.keys()
    for name, theirs in tensors.items():
        theirs = theirs.float() if theirs.dtype == torch.bfloat16 else theirs
        assert ours[name].dtype == theirs.numpy().dtype
        assert ours[name].shape == theirs.shape
        assert ours[name].tobytes() == theirs.numpy().tobytes()
    safetensors_torch.save_file({"tiny": torch.ones(3).to(torch.float8_e4m3fn)}, tmp_path / "t")
    with pytest.raises(ValueError, match="tiny is of dtype F8_E4M3, which is not supported"):
        load_tensors(tmp_path / "t")


@pytest.mark.oracle
@pytest.mark.parametrize(
    "init",
    [*FOLLOWS_FROM_THE_BASE, "pissa_niter_4", *KEEPS_THE_BASE],  # the others need data, or CUDA
)
def test_peft_changes_the_base_for_just_the_ways_to_start_that_are_refused_or_computed_again(tmp_path, rng, init):
    transformers, huggingface_peft = pytest.importorskip("transformers"), pytest.importorskip("peft")
    minilora.save_pretrained(small(rng), tmp_path / "m")
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    name = "model.layers.0.self_attn.q_proj.weight"
    before = base.state_dict()[name].clone()
    with warnings.catch_warnings(action="ignore"):
        config = huggingface_peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=init)
        theirs = huggingface_peft.get_peft_model(base, config)
    after = theirs.state_dict()["base_model.model." + name.replace("q_proj", "q_proj.base_layer")]
    assert bool((after != before).any()) == (init not in KEEPS_THE_BASE)


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")
def test_a_pissa_adapter_of_peft_is_taken_with_its_logits_converted_or_not(tmp_path, rng, ids):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    huggingface_peft = pytest.importorskip("peft")
    minilora.save_pretrained(small(rng), tmp_path / "m")
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    config = huggingface_peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights="pissa")
    theirs = huggingface_peft.get_peft_model(base, config)
    theirs.peft_config["default"].init_lora_weights = True
    theirs.save_pretrained(tmp_path / "start")
    theirs.peft_config["default"].init_lora_weights = "pissa"
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_A" in name:
                parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    logits = theirs(torch.tensor(ids)).logits.detach().numpy()
    theirs.save_pretrained(tmp_path / "plain")
    model = minilora.load_pretrained(tmp_path / "m")
    peft.load_adapter(model, tmp_path / "plain")
    assert np.abs(model.forward(ids)[0] - logits).max() < 1e-4 * np.abs(logits).max()
    theirs.save_pretrained(tmp_path / "converted", path_initial_model_for_weight_conversion=str(tmp_path / "start"))
    model = minilora.load_pretrained(tmp_path / "m")
    peft.load_adapter(model, tmp_path / "converted")
    assert np.abs(model.forward(ids)[0] - logits).max() < 1e-4 * np.abs(logits).max()


@pytest.mark.slow
@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")
def test_whatever_a_config_says_transformers_gives_the_same_logits_or_one_of_the_two_refuses_it(tmp_path, rng, ids):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    minilora.save_pretrained(small(rng, tied=False), tmp_path)
    says = json.loads((tmp_path / "config.json").read_text())
    keys = {*says, *transformers.LlamaConfig().to_dict(), "is_causal", "sliding_window", "partial_rotary_factor"}
    rope = {"rope_type": "default", "rope_theta": 20.0, "partial_rotary_factor": 0.5}
    compared = set()
    for key in sorted(keys):
        for value in (None, True, False, 2, 0.5, rope, rope | {"rope_type": "linear", "factor": 4.0}):
            (tmp_path / "config.json").write_text(json.dumps(says | {key: value}))
            try:
                ours = minilora.load_pretrained(tmp_path).forward(ids)[0]
            except ValueError:
                continue
            try:
                theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
                theirs = theirs(torch.tensor(ids), return_dict=True).logits.detach().numpy()
            except Exception:  # whatever it raises, it gives no other answer
                continue
            assert np.abs(theirs - ours).max() < 1e-5 * np.abs(ours).max(), f"{key} = {value!r}"
            compared.add(key)
    assert {"rms_norm_eps", "rope_theta", "rope_parameters"} <= compared


@pytest.mark.oracle
def test_transformers_loads_the_builtin_model_with_the_same_logits(ids):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(BUILTIN)
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


WINDOWED = {
    "Mistral": {"head_dim": 6, "sliding_window": 5},
    "Mistral, no window": {"sliding_window": None},
    "Qwen2": {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    "Qwen2, no window": {"use_sliding_window": False, "sliding_window": 5},
    "Qwen3": {"head_dim": 6, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    "Qwen2, window below": {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 0,
                            "layer_types": ["sliding_attention", "full_attention"]},
}  # fmt: skip


@pytest.mark.oracle
@pytest.mark.parametrize("case", WINDOWED)
def test_a_mistral_and_a_qwen2_are_written_back_as_what_they_were(tmp_path, case, ids):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    words = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    words |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 32}
    rope = {"rope_type": "default", "rope_theta": 500.0}
    config = getattr(transformers, f"{case.partition(',')[0]}Config")(**words, **WINDOWED[case], rope_parameters=rope)
    theirs = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter += 0.2 * torch.randn(parameter.shape)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = minilora.load_pretrained(tmp_path / "theirs")
    assert ours.config.max_length == 32
    minilora.save_pretrained(ours, tmp_path / "ours")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours").eval()
    assert type(again) is type(theirs)
    expected = theirs.config.to_dict()
    assert {key: again.config.to_dict()[key] for key in expected if key != "_name_or_path"} == {
        key: value for key, value in expected.items() if key != "_name_or_path"
    }
    assert again.state_dict().keys() == theirs.state_dict().keys()
    assert all(torch.equal(again.state_dict()[key], x) for key, x in theirs.state_dict().items())
    logits = theirs(torch.tensor(ids)).logits  # 9 tokens, more than the window
    assert torch.equal(again(torch.tensor(ids)).logits, logits)
    assert np.abs(ours.forward(ids)[0] - logits.detach().numpy()).max() < 1e-5 * logits.abs().max()


@pytest.mark.parametrize(
    "options",
    [
        {"family": "mistral", "sliding_window": 3},
        {"family": "qwen2", "sliding_window": 3},
        {"family": "qwen2", "sliding_window": 3, "max_window_layers": 1},
        {"family": "qwen2", "sliding_window": 3, "layer_types": ("sliding_attention", "full_attention")},
        {"family": "qwen3", "sliding_window": 3, "max_window_layers": 1},
        {"family": "qwen2"},
    ],
)
def test_a_window_is_saved_and_loaded_and_shown(options, tmp_path, rng, ids):
    model = small(rng, **options)
    minilora.save_pretrained(model, tmp_path / "m")
    loaded = minilora.load_pretrained(tmp_path / "m")
    assert loaded.config == model.config
    assert np.array_equal(loaded.forward(ids)[0], model.forward(ids)[0])
    windows = [model.config.window(i) for i in range(2)]
    shown = describe_model(tmp_path / "m")["positions"]
    layers = "1 layer" if None in windows else "2 layers"
    assert shown.endswith(f"a window of 3 in {layers}") == ("sliding_window" in options)
    free = small(rng, family=options["family"])
    free.load_state_dict(model.state_dict())
    assert np.array_equal(free.forward(ids)[0], model.forward(ids)[0]) == (windows == [None, None])


SAID = {"use_sliding_window": True, "max_window_layers": 1}


@pytest.mark.parametrize(
    ("kind", "said", "windows"),
    [
        ("mistral", {}, [4096, 4096]),
        ("mistral", {"sliding_window": None}, [None, None]),
        ("mistral", {"sliding_window": 7, "layer_types": ["full_attention"] * 2}, [7, 7]),
        ("qwen2", {}, [None, None]),
        ("qwen2", {"use_sliding_window": True}, [None, None]),
        ("qwen2", {"sliding_window": 0, "layer_types": None}, [None, None]),
        ("qwen2", SAID, [None, 4096]),
        ("qwen2", SAID | {"sliding_window": 7}, [None, 7]),
        ("qwen2", SAID | {"sliding_window": None}, [None, None]),
        ("qwen2", SAID | {"layer_types": ["sliding_attention", "full_attention"]}, [4096, None]),
        ("llama", {"sliding_window": 7, "use_sliding_window": True}, [None, None]),
    ],
)
def test_each_layer_has_the_window_that_transformers_takes(tmp_path, rng, kind, said, windows):
    minilora.save_pretrained(small(rng, kind, max_length=9000), tmp_path / "m")
    path = tmp_path / "m" / "config.json"
    ours = ("sliding_window", "use_sliding_window", "max_window_layers", "layer_types")
    values = {key: value for key, value in json.loads(path.read_text()).items() if key not in ours}
    path.write_text(json.dumps(values | {"model_type": kind} | said))
    model = minilora.load_pretrained(tmp_path / "m")
    assert model.config.max_length == 9000
    assert [model[f"block_{i}.attention"].window for i in range(2)] == windows
    _, counted = minilora.accounting.without_weights(tmp_path / "m")
    assert [counted[f"block_{i}.attention"].window for i in range(2)] == windows


@pytest.mark.oracle
@pytest.mark.parametrize("case", WINDOWED)
def test_generation_far_past_the_window_is_that_of_transformers(tmp_path, case):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    words = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    words |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}
    words |= {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    config = getattr(transformers, f"{case.partition(',')[0]}Config")(**words, **WINDOWED[case])
    theirs = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter += 0.3 * torch.randn(parameter.shape)
    theirs.save_pretrained(tmp_path / "m")
    ours = minilora.load_pretrained(tmp_path / "m")
    for prompt in (3, 77):  # less than the window, and more than is read at once
        ids = np.arange(prompt) * 7 % 64
        expected = theirs.generate(torch.tensor(ids[None]), max_new_tokens=50, do_sample=False)[0, prompt:].tolist()
        assert list(next_ids(ours, ids, 50)) == expected
    free = replace(ours.config, sliding_window=None, layer_types=())
    free = FAMILIES[ours.family].build(free, np.random.default_rng(0))
    free.load_state_dict(ours.state_dict())
    assert (list(next_ids(free, ids, 50)) == expected) == case.endswith("no window")


def sharded(folder, rng, weight_map, **files):
    """The model of small() in shards a and b, as its index says."""
    minilora.save_pretrained(small(rng), folder)
    tensors, _ = load_tensors(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    for name, chosen in files.items():
        save_tensors(folder / f"{name}.safetensors", chosen(tensors), {})
    index = {"weight_map": weight_map(tensors)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


TABLE = "model.embed_tokens.weight"


@pytest.mark.parametrize(
    ("weight_map", "says"),
    [
        (lambda t: {n: "b.safetensors" if n == TABLE else "a.safetensors" for n in t}, None),
        (lambda t: dict.fromkeys(t, "a.safetensors"), "do not agree on model.embed_tokens.weight"),
        (lambda t: {**dict.fromkeys(t, "a.safetensors"), TABLE: "b.safetensors", "x": "b.safetensors"}, "agree on x"),
        (lambda t: dict.fromkeys(t, "../m/b.safetensors"), "is not a .safetensors file of this"),
        (lambda t: dict.fromkeys(t, 3), "no weight_map"),
    ],
)
def test_shards_hold_just_what_their_index_says(weight_map, says, tmp_path, rng):
    rest = lambda tensors: {n: x for n, x in tensors.items() if n != TABLE}  # noqa: E731
    sharded(tmp_path / "m", rng, weight_map, a=rest, b=lambda tensors: {TABLE: tensors[TABLE]})
    if says is None:
        assert minilora.load_pretrained(tmp_path / "m").config.vocab_size == 64
        (tmp_path / "m" / "b.safetensors").unlink()
        with pytest.raises(FileNotFoundError, match=r"m.b\.safetensors is missing"):
            minilora.load_pretrained(tmp_path / "m")
    else:
        with pytest.raises(ValueError, match=says):
            minilora.load_pretrained(tmp_path / "m")


def test_ids_of_special_tokens_and_names_of_labels_are_given_back(tmp_path, rng):
    model = FAMILIES["llama"].build(minilora.Config(8, 1, 4, 1, head="classify", labels=3), rng)
    minilora.save_pretrained(model, tmp_path / "m")
    said = {"pad_token_id": 3, "eos_token_id": [1, 2], "id2label": {"0": "bad", "1": "good", "2": "?"}}
    config = tmp_path / "m" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | said))
    minilora.save_pretrained(minilora.load_pretrained(tmp_path / "m"), tmp_path / "again")
    written = json.loads((tmp_path / "again" / "config.json").read_text())
    assert {key: written[key] for key in said} == said
    with pytest.warns(UserWarning, match="drawn anew"):
        other = minilora.load_pretrained(lm(tmp_path / "lm", rng), head="classify", labels=5)
    minilora.save_pretrained(other, tmp_path / "five")
    assert len(json.loads((tmp_path / "five" / "config.json").read_text())["id2label"]) == 5


@pytest.mark.parametrize(
    ("ids", "padding"),
    [
        ({"pad": 5, "eos": 9}, 5),
        ({"pad": None, "eos": 9}, 3),  # the config's
        ({"pad": 9, "eos": 9}, None),  # every text ends with it
        ({"pad": None, "eos": 9, "said": 9, "bos": 8}, 8),
        ({"pad": None, "eos": None, "said": None}, None),
    ],
)
def test_a_classifier_of_a_decoder_is_padded_with_what_no_text_ends_with(ids, padding, tmp_path, rng):
    class EndsWith9(ByteTokenizer):
        def encode(self, text, special=True):
            return np.array([1, 9])

    tokenizer, model = EndsWith9(), FAMILIES["llama"].build(minilora.Config(16, 1, 4, 1, head="classify"), rng)
    model.hf_config = {"pad_token_id": ids.get("said", 3)}
    tokenizer.pad, tokenizer.eos, tokenizer.bos = ids["pad"], ids["eos"], ids.get("bos")
    with pytest.warns(UserWarning, match="one text at a time") if padding is None else nullcontext():
        minilora.save_pretrained(model, tmp_path / "m", tokenizer)
    assert json.loads((tmp_path / "m" / "config.json").read_text())["pad_token_id"] == padding


def lm(folder, rng):
    minilora.save_pretrained(small(rng), folder)
    return folder


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"architectures": ["LlamaForTokenClassification"]}, "head 'tokens' is not one that a llama has: lm, classify"),
        ({"architectures": ["LlamaForSequenceClassification"], "num_labels": 10**9}, "labels = 1000000000 is not"),
        ({"rope_theta": 10**400, "rope_parameters": None}, "rope_theta = 1000.* is not a positive number"),
    ],
)
def test_what_a_config_cannot_mean_is_refused(changes, says, tmp_path, rng):
    config = lm(tmp_path / "m", rng) / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))
    with pytest.raises(ValueError, match=says):
        minilora.load_pretrained(tmp_path / "m")


def test_a_pointer_of_git_lfs_is_called_so(tmp_path, rng):
    (lm(tmp_path / "m", rng) / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid x\n")
    with pytest.raises(ValueError, match="a pointer of git-lfs"):
        minilora.load_pretrained(tmp_path / "m")
