"""Folders with weights in NF4, int8 and half precision, written and read, by Transformers with bitsandbytes too."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import FAMILY_HEADS, HEADS, beside

import minilora
from minilora.accounting import count
from minilora.accounting.memory import weight_bytes
from minilora.adapters.merge import merge
from minilora.files import load_tensors, open_tensors, save_tensors, stored
from minilora.jobs.changes import read_weights
from minilora.models.bitsandbytes import STATE
from minilora.models.config import Config
from minilora.models.describe import describe_model
from minilora.models.families import FAMILIES
from minilora.models.names import hf_name
from minilora.models.quantized import quantize
from minilora.models.saving import base_hash, model_files
from minilora.models.transformer import Transformer
from minilora.quantization import Quantized, format_named, formats
from minilora.quantization.bfloat16 import BFloat16
from minilora.quantization.nf4 import NF4, DoubleNF4

IN_BLOCKS = [name for name, cls in formats().items() if cls.for_blocks]
HALVES = "bfloat16", "float16"
each_format = pytest.mark.parametrize("name", IN_BLOCKS)
IDS = np.random.default_rng(0).integers(2, 96, (2, 12))
CLASSES = {"lm": "CausalLM", "classify": "SequenceClassification", "tokens": "TokenClassification", "none": ""}


def small(family: str = "llama", **changes: Any) -> Transformer:
    """Of widths that are multiples of 64, for which bitsandbytes decodes rightly on every CPU."""
    shape = {"vocab_size": 96, "n_layers": 2, "d_model": 64, "d_ff": 128, "max_length": 32, "labels": 3}
    heads = {"n_heads": 4} | ({"n_kv_heads": 2} if "n_kv_heads" in HEADS[family] else {})
    model, rng = FAMILIES[family].build(Config(**shape | HEADS[family] | heads | changes), 0), np.random.default_rng(1)
    for p in model.named_parameters().values():
        p.data = (p.data + 0.1 * rng.standard_normal(p.data.shape)).astype(np.float32)
    return model


def quantised(name: str, family: str = "llama", **changes: Any) -> Transformer:
    model = small(family, **changes)
    quantize(model, name)
    return model


def saved(model: Transformer, folder: Path) -> Path:
    minilora.save_pretrained(model, folder)
    return folder


def same(a: Any, b: Any) -> bool:
    """The same array, or the same codes and scales in the same format."""
    if not isinstance(a, Quantized):
        return not isinstance(b, Quantized) and np.array_equal(a, b)
    return type(a) is type(b) and all(np.array_equal(x, b.arrays[key]) for key, x in a.arrays.items())


def codes(model: Transformer) -> dict[str, Quantized]:
    return {path: x for path, x in model.state_dict().items() if isinstance(x, Quantized) and x.for_blocks}


def change(folder: Path, to_tensors: Any = dict, **to_config: Any) -> Path:
    tensors, metadata = load_tensors(folder / "model.safetensors")
    save_tensors(folder / "model.safetensors", to_tensors(tensors), metadata)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] |= to_config
    (folder / "config.json").write_text(json.dumps(config))
    return folder


# ---- ours, there and back ----


@pytest.mark.each_value
@each_format
@pytest.mark.parametrize(("family", "head"), FAMILY_HEADS)
def test_codes_that_were_saved_load_as_they_are(tmp_path, name, family, head):
    model = quantised(name, family, head=head)
    folder = saved(model, tmp_path / "m")
    loaded = minilora.load_pretrained(folder)
    held = codes(loaded)
    assert held.keys() == codes(model).keys()
    assert all(same(x, model.state_dict()[path]) for path, x in held.items())
    assert base_hash(loaded) == base_hash(model)
    inputs = beside(model, IDS)
    assert np.array_equal(loaded.forward(IDS, inputs)[0], model.forward(IDS, inputs)[0])
    in_format = minilora.load_pretrained(folder, quantize=name)
    assert all(same(x, model.state_dict()[path]) for path, x in in_format.state_dict().items())


@pytest.mark.each_value
@pytest.mark.parametrize("name", HALVES)
@pytest.mark.parametrize(("family", "head"), FAMILY_HEADS)
def test_half_precision_is_written_as_it_is(tmp_path, name, family, head):
    model = quantised(name, family, head=head)
    folder = saved(model, tmp_path / "m")
    for choice in (name, "stored"):
        loaded = minilora.load_pretrained(folder, quantize=choice)
        assert all(same(x, model.state_dict()[path]) for path, x in loaded.state_dict().items())
    in_float32 = minilora.load_pretrained(folder)
    assert not any(isinstance(x, Quantized) for x in in_float32.state_dict().values())
    inputs = beside(model, IDS)
    assert np.allclose(in_float32.forward(IDS, inputs)[0], model.forward(IDS, inputs)[0], atol=1e-5)


def test_the_file_of_a_half_is_half_as_large():
    sizes = {name: len(model_files(quantised(name))["model.safetensors"]) for name in HALVES}
    assert sizes["bfloat16"] == pytest.approx(len(model_files(small())["model.safetensors"]) / 2, rel=0.03)
    assert sizes["float16"] == pytest.approx(sizes["bfloat16"], rel=0.01)


def test_a_bfloat16_is_written_with_its_own_dtype_and_others_decoded(tmp_path, rng):
    W = rng.standard_normal((5, 7)).astype(np.float32)
    half, fewer = BFloat16.of(W), NF4.of(W)
    save_tensors(tmp_path / "x", {"w": half, "q": fewer, "b": W, "scalar": np.float32(3)}, {"a": "b"})
    tensors, metadata = open_tensors(tmp_path / "x")
    assert metadata == {"a": "b"}
    assert same(stored(tensors, "w"), half)
    assert np.array_equal(tensors["w"], half.dense())
    assert np.array_equal(tensors["q"], fewer.dense())
    assert np.array_equal(tensors["b"], W)
    assert tensors["scalar"].shape == ()


@pytest.mark.parametrize(("name", "dtype"), [("bfloat16", "bfloat16"), ("float16", "float16"), ("nf4", "float32")])
def test_config_json_says_the_dtype_that_all_matrices_are_in(name, dtype):
    values = json.loads(model_files(quantised(name))["config.json"])
    assert values["dtype"] == dtype
    assert ("quantization_config" in values) == (name == "nf4")


def test_a_layer_merged_in_float32_makes_the_dtype_float32():
    model = quantised("bfloat16")
    minilora.attach_lora(model, ["q_proj"], rng=0)
    merge(model)
    assert json.loads(model_files(model)["config.json"])["dtype"] == "float32"


@pytest.mark.each_value
@each_format
@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_merged_layers_are_written_in_full_beside_the_codes(tmp_path, name, family):
    model = quantised(name, family)
    targets = {"gpt2": ["qkv_proj"]}.get(family, ["q_proj", "v_proj"])
    minilora.attach_lora(model, targets, r=2, rng=0)
    for p in model.trainable_parameters().values():
        p.data = p.data + np.float32(0.05)
    paths = merge(model)
    folder = saved(model, tmp_path / "m")
    skipped = json.loads((folder / "config.json").read_text())["quantization_config"]["llm_int8_skip_modules"]
    assert {hf_name(model, path) for path in paths} <= set(skipped)
    loaded = minilora.load_pretrained(folder)
    assert codes(loaded).keys() == codes(model).keys()
    assert np.array_equal(loaded.forward(IDS)[0], model.forward(IDS)[0])


@pytest.mark.parametrize("name", formats())
def test_a_merged_model_can_be_quantised_and_written(tmp_path, name):
    model = small()
    minilora.attach_lora(model, r=2, rng=0)
    for p in model.trainable_parameters().values():
        p.data = p.data + np.float32(0.05)
    merge(model)
    quantize(model, name)
    loaded = minilora.load_pretrained(saved(model, tmp_path / "m"), quantize=name)
    assert all(same(x, loaded.state_dict()[path]) for path, x in model.state_dict().items())
    assert np.array_equal(loaded.forward(IDS)[0], model.forward(IDS)[0])


def test_a_classifier_that_was_quantised_is_decoded_to_be_trained(tmp_path):
    model = quantised("nf4", "bert", head="classify")
    numbers = {path: x for path, x in model.state_dict().items() if path.startswith(("classifier.w", "pooler.w"))}
    for path in numbers:
        layer = model[path.removesuffix(".weight")]
        layer.weight.data = NF4.of(layer.weight.data)
    folder = saved(model, tmp_path / "m")
    assert json.loads((folder / "config.json").read_text())["quantization_config"]["llm_int8_skip_modules"] == []
    loaded = minilora.load_pretrained(folder)
    for path, W in numbers.items():
        assert np.array_equal(loaded.state_dict()[path], NF4.of(W).dense())
    minilora.attach_lora(loaded, r=2, rng=0)  # trains it


def test_a_block_and_a_table_of_the_files_own_are_read(tmp_path, rng):
    model = quantised("nf4-dq")
    layer, W = model["block_0.mlp.up_proj"], rng.standard_normal((128, 64)).astype(np.float32)
    Q = DoubleNF4(DoubleNF4.encode(W, 32), W.shape, block=32)
    Q.levels = np.nextafter(Q.levels, np.float32(2))
    layer.weight.data = Q
    loaded = minilora.load_pretrained(saved(model, tmp_path / "m"))
    assert np.array_equal(loaded["block_0.mlp.up_proj"].dense(), Q.dense())


def test_a_model_in_4_and_8_bits_has_no_config_json():
    model = quantised("nf4")
    layer = model["block_0.mlp.up_proj"]
    layer.weight.data = format_named("int8").of(layer.dense())
    with pytest.raises(ValueError, match=r"layers are in int8 and nf4, and a config\.json has one of"):
        model_files(model)


@each_format
def test_a_shard_holds_parts_of_a_matrix_as_any_tensor(tmp_path, name):
    folder = saved(quantised(name), tmp_path / "m")
    tensors, metadata = load_tensors(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    shards = {f"part-{i}.safetensors": [*tensors][i::2] for i in range(2)}
    for file, names in shards.items():
        save_tensors(folder / file, {key: tensors[key] for key in names}, metadata)
    index = {"weight_map": {key: file for file, names in shards.items() for key in names}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert np.array_equal(minilora.load_pretrained(folder).forward(IDS)[0], quantised(name).forward(IDS)[0])


@each_format
def test_what_reads_a_folder_reads_this_one(tmp_path, name):
    model = quantised(name)
    folder = saved(model, tmp_path / "m")
    assert describe_model(folder)["base sha256"] == base_hash(model)
    assert count(folder, dtype=name).total == sum(p.data.size for p in model.named_parameters().values())
    family, weights = read_weights(folder)
    assert family == "llama"
    assert np.array_equal(weights["model.layers.0.self_attn.q_proj.weight"], model["block_0.attention.q_proj"].dense())


@each_format
def test_the_bytes_that_are_loaded_are_those_that_count_says(tmp_path, name):
    loaded = minilora.load_pretrained(saved(quantised(name), tmp_path / "m"), quantize=name)
    held = sum(p.data.nbytes for p in loaded.named_parameters().values())
    assert held == weight_bytes(count(tmp_path / "m", dtype=name).model, name)


# ---- what is refused ----


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"quant_method": "gptq", "bits": 4}, "the weights are in gptq"),
        ({"quant_method": "awq", "bits": 4}, "the weights are in awq"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "the weights are in fp4"),
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}, "the weights are in fp4"),
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_quant_storage": "bfloat16"}, "nf4 in bfloat16"),
        ({"bits": 4}, "in an unnamed format"),
        ("nf4", "in an unnamed format"),
    ],
)
def test_another_method_is_refused_by_name(tmp_path, config, says):
    folder = saved(small(), tmp_path / "m")
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"quantization_config": config}))
    for read in (minilora.load_pretrained, count):
        with pytest.raises(ValueError, match=f"{says}.*only nf4 and int8 of bitsandbytes are read"):
            read(folder)


@pytest.mark.each_value
@each_format
@pytest.mark.parametrize("other", formats())
def test_a_format_that_contradicts_the_folder_is_refused(tmp_path, name, other):
    folder = saved(quantised(name), tmp_path / "m")
    if other == name:
        assert codes(minilora.load_pretrained(folder, quantize=other))
        return
    with pytest.raises(ValueError, match=f"is in {name}, and cannot be held in {other}: leave quantize out"):
        minilora.load_pretrained(folder, quantize=other)


Q_PROJ = "model.layers.1.self_attn.q_proj."


def cut(part: str, **state: Any) -> Any:
    """A damage: the part is lost, or keys of the JSON in it are others."""

    def damage(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        x = tensors[Q_PROJ + part]
        rest = {name: data for name, data in tensors.items() if name != Q_PROJ + part}
        if not state:
            return rest
        text = json.dumps({**json.loads(x.tobytes()), **state}).encode()
        return rest | {Q_PROJ + part: np.frombuffer(text, np.uint8)}

    return damage


def put(part: str, function: Any) -> Any:
    return lambda tensors: tensors | {Q_PROJ + part: function(tensors[Q_PROJ + part])}


@pytest.mark.parametrize(
    ("name", "damage", "says"),
    [
        ("nf4", cut("weight.absmax"), "q_proj.weight.absmax is missing"),
        ("nf4", cut("weight.quant_map"), "q_proj.weight.quant_map is missing"),
        ("nf4", cut(STATE), f"q_proj.{STATE} is missing"),
        ("nf4-dq", cut("weight.nested_quant_map"), "q_proj.weight.nested_quant_map is missing"),
        ("int8", cut("SCB"), "q_proj.SCB is missing"),
        ("nf4", cut("weight"), "is there without model.layers.1.self_attn.q_proj.weight"),
        ("nf4", cut(STATE, shape=[64]), "is not the JSON of a matrix in NF4"),
        ("nf4", cut(STATE, shape=[64, -64]), "is not the JSON of a matrix in NF4"),
        ("nf4", cut(STATE, shape="ab"), "is not the JSON of a matrix in NF4"),
        ("nf4", cut(STATE, shape=None), "is not the JSON of a matrix in NF4"),
        ("nf4", cut(STATE, blocksize=0), "is not the JSON of a matrix in NF4"),
        (
            "nf4-dq",
            put(STATE, lambda x: np.frombuffer(b'{"shape": [64, 64], "blocksize": 64}', np.uint8)),
            "is not the JSON",
        ),
        ("nf4-dq", cut(STATE, nested_offset="x"), "is not the JSON of a matrix in NF4"),
        ("nf4-dq", cut(STATE, nested_offset=float("nan")), "is not the JSON of a matrix in NF4"),
        ("nf4-dq", cut(STATE, nested_offset=10**400), "is not the JSON of a matrix in NF4"),
        ("nf4-dq", cut(STATE, nested_offset="3"), "is not the JSON of a matrix in NF4"),
        ("nf4", cut(STATE, shape=[32, 64]), r"q_proj.weight is uint8 \(2048, 1\), and uint8 \(1024, 1\) is needed"),
        ("nf4", cut(STATE, shape=[32, 128]), r"has shape \(32, 128\), and \(64, 64\) is needed"),
        ("nf4", cut(STATE, blocksize=32), r"absmax is float32 \(64,\), and float32 \(128,\) is needed"),
        ("nf4", put(STATE, lambda x: x[:-3]), "is not the JSON of a matrix in NF4"),
        ("nf4", put(STATE, lambda x: np.frombuffer(b"[1]", np.uint8)), "is not the JSON of a matrix in NF4"),
        ("nf4", put("weight.quant_map", lambda x: x[::-1]), "quant_map is not the levels of NF4"),
        ("nf4", put("weight.absmax", lambda x: x.reshape(1, 64)), r"absmax is float32 \(1, 64\)"),
        ("nf4-dq", put("weight.nested_absmax", lambda x: x[:0]), r"nested_absmax is float32 \(0,\)"),
        ("int8", put("SCB", lambda x: x[1:]), r"SCB is float32 \(63,\), and float32 \(64,\) is needed"),
        ("int8", put("weight", lambda x: x.astype("f4")), "q_proj.weight is float32"),
        ("int8", put("weight_format", lambda x: x + np.uint8(2)), "is not held row by row: its weight_format"),
    ],
)
def test_damage_is_said_with_the_name_of_the_tensor(tmp_path, name, damage, says):
    folder = change(saved(quantised(name), tmp_path / "m"), damage)
    with pytest.raises(ValueError, match=says):
        minilora.load_pretrained(folder)


@pytest.mark.parametrize("layer", ["", Q_PROJ])
def test_codes_without_any_of_their_scales_are_not_taken_for_numbers(tmp_path, layer):
    def bare(tensors):
        return {key: x for key, x in tensors.items() if not key.startswith(layer) or key.endswith("weight")}

    folder = change(saved(quantised("int8"), tmp_path / "m"), bare)
    for wanted in (None, "int8", "stored"):
        with pytest.raises(ValueError, match=r"proj\.weight is int8, and floats are needed: are these codes whose"):
            minilora.load_pretrained(folder, quantize=wanted)


def test_whole_numbers_are_no_gain_of_a_norm(tmp_path):
    def whole(tensors):
        return tensors | {"model.norm.weight": np.ones(64, np.uint8)}

    folder = change(saved(quantised("nf4"), tmp_path / "m"), whole)
    with pytest.raises(ValueError, match=r"model\.norm\.weight is uint8, and floats are needed"):
        minilora.load_pretrained(folder)


@each_format
def test_a_config_json_that_says_4_bits_of_8_or_8_of_4_is_refused(tmp_path, name):
    folder = change(saved(quantised(name), tmp_path / "m"), load_in_4bit=name == "int8", load_in_8bit=name != "int8")
    says = "nf4" if name == "int8" else "int8"
    for wanted in (None, "stored"):
        with pytest.raises(
            ValueError, match=rf"\.weight is in {name.removesuffix('-dq')}, and config\.json says {says}"
        ):
            minilora.load_pretrained(folder, quantize=wanted)


def test_scales_that_are_not_finite_are_refused(tmp_path):
    folder = change(saved(quantised("nf4"), tmp_path / "m"), put("weight.absmax", lambda x: x * np.float32(np.nan)))
    with pytest.raises(ValueError, match=r"q_proj.weight.absmax holds numbers that are not finite"):
        minilora.load_pretrained(folder)


# ---- Transformers and bitsandbytes ----


def oracle(test: Any) -> Any:
    return pytest.mark.oracle(pytest.mark.filterwarnings("ignore")(test))  # theirs warn, of this and that


@pytest.fixture(scope="module")
def transformers() -> Any:
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    pytest.importorskip("bitsandbytes")
    pytest.importorskip("accelerate")
    import torch._dynamo.config as dynamo

    before, threads = dynamo.disable, torch.get_num_threads()
    dynamo.disable = True  # or it compiles anew for each shape
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    yield transformers
    dynamo.disable = before
    torch.set_num_threads(threads)


def class_of(transformers: Any, family: str, head: str) -> Any:
    masked = head == "lm" and family in ("bert", "roberta")
    return getattr(transformers, f"AutoModel{'For' * (head != 'none')}{'MaskedLM' if masked else CLASSES[head]}")


def their_logits(model: Any, exact: bool = False) -> np.ndarray:
    """`exact`: with dense matrices. Their int8 layer rounds rows of x, and so is off; NF4's is not, in float32."""
    import torch

    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):  # or it computes in bfloat16
            module.support_avx512bf16_for_cpu = False
    model = (model.dequantize() if exact else model).eval()
    with torch.no_grad():
        out = model(torch.tensor(IDS))
    return (out.logits if hasattr(out, "logits") else out[0]).float().numpy()


def check_logits(model: Transformer, theirs: np.ndarray) -> None:
    ours = model.forward(IDS)[0]
    assert ours.shape == theirs.shape
    assert abs(ours - theirs).max() <= 3e-6 * abs(theirs).max()


EXCHANGED = [("llama", "lm"), ("llama", "classify"), ("gpt2", "lm"), ("bert", "lm"), ("bert", "classify"),
             ("bert", "none"), ("roberta", "lm"), ("qwen3", "lm")]  # fmt: skip


@pytest.mark.each_value
@oracle
@each_format
@pytest.mark.parametrize(("family", "head"), EXCHANGED)
def test_transformers_loads_what_is_saved_with_the_same_logits(tmp_path, transformers, name, family, head):
    model = quantised(name, family, head=head)
    model.hf_config["pad_token_id"] = 0 if family != "roberta" else 1  # for a decoder's classifier
    folder = saved(model, tmp_path / "m")
    theirs = class_of(transformers, family, head).from_pretrained(folder)
    layers = dict(theirs.named_modules())
    assert {type(layers[hf_name(model, path.removesuffix(".weight"))]).__name__ for path in codes(model)} == {
        "Linear8bitLt" if name == "int8" else "Linear4bit"
    }
    check_logits(model, their_logits(theirs, exact=name == "int8"))


@oracle
@pytest.mark.parametrize("name", IN_BLOCKS)
def test_transformers_loads_merged_layers_among_codes(tmp_path, transformers, name):
    model = quantised(name, "gpt2")
    minilora.attach_lora(model, ["o_proj"], r=2, rng=0)
    for p in model.trainable_parameters().values():
        p.data = p.data + np.float32(0.05)
    merge(model)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(saved(model, tmp_path / "m"))
    check_logits(model, their_logits(theirs, exact=name == "int8"))


@oracle
@pytest.mark.parametrize("name", HALVES)
@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_transformers_loads_half_precision_bit_for_bit(tmp_path, transformers, name, family):
    import torch

    model = quantised(name, family)
    folder = saved(model, tmp_path / "m")
    cls = class_of(transformers, family, "lm")
    theirs = cls.from_pretrained(folder)
    assert theirs.dtype == getattr(torch, name)
    tensors = theirs.state_dict()
    for path, x in model.state_dict().items():
        if isinstance(x, Quantized):
            their = tensors[hf_name(model, path)].float().numpy()
            assert np.array_equal(their.T if family == "gpt2" and path.startswith("block") else their, x.dense())
    check_logits(model, their_logits(cls.from_pretrained(folder, dtype=torch.float32)))


def theirs_in(transformers: Any, name: str, skip: list[str] | None = None) -> Any:
    if name == "int8":
        return transformers.BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skip)
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type=name[:3], bnb_4bit_use_double_quant=name == "nf4-dq",
        llm_int8_skip_modules=skip,
    )  # fmt: skip


@pytest.mark.each_value
@oracle
@each_format
@pytest.mark.parametrize(("family", "head"), [pair for pair in EXCHANGED if pair[1] != "none"])  # nor has a pooler
def test_what_transformers_quantised_loads_with_its_codes_and_logits(tmp_path, transformers, name, family, head):
    plain = small(family, head=head)
    plain.hf_config["pad_token_id"] = 0 if family != "roberta" else 1
    cls = class_of(transformers, family, head)
    quantization = theirs_in(transformers, name)
    theirs = cls.from_pretrained(saved(plain, tmp_path / "plain"), quantization_config=quantization, device_map="cpu")
    theirs.save_pretrained(tmp_path / "theirs")
    model = minilora.load_pretrained(tmp_path / "theirs")
    file = load_tensors(tmp_path / "theirs" / "model.safetensors")[0]
    assert len(codes(model)) >= (8 if family == "gpt2" else 12)
    for path, Q in codes(model).items():
        in_file = file[hf_name(model, path)]
        assert np.array_equal(Q.arrays["codes"].reshape(in_file.shape), in_file)
    assert {Q.name for Q in codes(model).values()} == {name}
    check_logits(model, their_logits(cls.from_pretrained(tmp_path / "theirs"), exact=name == "int8"))


@oracle
@each_format
def test_layers_that_transformers_skipped_are_as_in_every_folder(tmp_path, transformers, name):
    plain = saved(small("gpt2"), tmp_path / "plain")
    quantization = theirs_in(transformers, name, skip=["c_proj", "lm_head"])
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        plain, quantization_config=quantization, device_map="cpu"
    )
    theirs.save_pretrained(tmp_path / "theirs")
    model = minilora.load_pretrained(tmp_path / "theirs")
    assert {path.split(".")[-2] for path in codes(model)} == {"qkv_proj", "up_proj"}
    skipped = "block_1.mlp.down_proj"
    assert np.array_equal(model[skipped].dense(), minilora.load_pretrained(plain)[skipped].dense())
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "theirs")
    check_logits(model, their_logits(again, exact=name == "int8"))


@oracle
def test_matrices_in_bfloat16_beside_codes_are_held_so(tmp_path, transformers):
    import torch

    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        saved(small(), tmp_path / "plain"), quantization_config=theirs_in(transformers, "nf4"), device_map="cpu",
        dtype=torch.bfloat16,
    )  # fmt: skip
    theirs.save_pretrained(tmp_path / "theirs")
    model = minilora.load_pretrained(tmp_path / "theirs")
    assert isinstance(model["embed.token"].weight.data, BFloat16)
    assert np.array_equal(model["embed.token"].dense(), theirs.get_input_embeddings().weight.detach().float().numpy())
    again = minilora.load_pretrained(saved(model, tmp_path / "ours"))
    assert base_hash(again) == base_hash(model)


@oracle
def test_fp4_of_transformers_is_refused_by_name(tmp_path, transformers):
    quantization = transformers.BitsAndBytesConfig(load_in_4bit=True)  # its default
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        saved(small(), tmp_path / "plain"), quantization_config=quantization, device_map="cpu"
    )
    theirs.save_pretrained(tmp_path / "theirs")
    with pytest.raises(ValueError, match="the weights are in fp4, and only nf4 and int8 of bitsandbytes are read"):
        minilora.load_pretrained(tmp_path / "theirs")
