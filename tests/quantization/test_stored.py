"""Weights as their file has them: GGUF's blocks, bfloat16 and float16, decoded on demand."""

import json
import subprocess
import sys

import made_gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_gguf import TYPES as GGML
from made_gguf import gguf, write
from models import Batch, build, gradients, named, some_batch
from real import real

import minilora
from minilora import accounting
from minilora.adapters.attach import adaptable, attach
from minilora.adapters.peft import load_adapter, save_adapter
from minilora.adapters.registry import variants
from minilora.backend import get_array_module, to_numpy
from minilora.files import load_tensors, open_tensors, stored, tensors_to_bytes
from minilora.models.describe import describe_model
from minilora.models.generation import next_ids
from minilora.models.gguf_file import WEIGHT_TYPES, read_header
from minilora.models.pretrained import load_pretrained
from minilora.models.saving import base_hash, save_pretrained
from minilora.quantization import Quantized, base, dense, formats
from minilora.quantization.bfloat16 import BFloat16, bfloat16_bits, from_bfloat16
from minilora.quantization.float16 import Float16
from minilora.quantization.gguf_blocks import TYPES, GGUFBlocks

each_type = pytest.mark.parametrize("kind", TYPES)
WIDE = {"embedding_length": 256, "feed_forward_length": 256, "attention.head_count": 32, "attention.head_count_kv": 32}


def random_blocks(kind, n_out, n_in, rng):
    """Bytes of every value, with scales that are finite."""
    block, size = gguf.GGML_QUANT_SIZES[GGML[kind]]
    blocks = rng.integers(0, 256, (n_out * n_in // block, size), np.uint8)
    where = TYPES[kind].scales
    scales = 0.1 * rng.standard_normal((len(blocks), (where.stop - where.start) // 2))
    blocks[:, where] = scales.astype(np.float16).view(np.uint8)
    return blocks.reshape(n_out, -1)


def made(folder, kind="Q4_1", architecture="llama", tied=True):
    """A small file whose matrices are all of this type."""
    tensors, values, rng = made_gguf.random_tensors(architecture, tied), None, np.random.default_rng(1)
    if kind in ("Q4_K", "Q6_K"):  # which the package cannot write, and whose rows are wider than those
        values = WIDE
        wide = {made_gguf.C: 256, made_gguf.F: 256, made_gguf.KV * made_gguf.D: 256, made_gguf.V: made_gguf.V}
        shapes = {name: tuple(wide[n] for n in x.shape) for name, x in tensors.items()}
        tensors = {
            name: random_blocks(kind, *shape, rng) if len(shape) == 2 else np.ones(shape, np.float32)
            for name, shape in shapes.items()
        }
    else:
        tensors = {name: x if x.ndim == 1 else 0.2 * x for name, x in tensors.items()}
    return write(folder / f"{kind}.gguf", architecture, tensors, values, kind=kind)


def logits(model):
    return model.forward(np.arange(24).reshape(2, 12) * 7)[0]


def held(model):
    return {path: p.data for path, p in model.named_parameters().items() if isinstance(p.data, Quantized)}


# ---- blocks ----


@each_type
def test_blocks_are_decoded_as_llama_cpps_package_decodes_them_to_the_bit(kind, xp):
    blocks = random_blocks(kind, 40, 512, np.random.default_rng(0))
    found = GGUFBlocks({"blocks": blocks}, (40, 512), kind).to(xp).dense()
    assert get_array_module(found) is xp
    assert to_numpy(found).tobytes() == gguf.dequantize(blocks, GGML[kind]).tobytes()


@each_type
@given(start=st.integers(0, 9), stop=st.integers(0, 9), step=st.integers(1, 3), ids=st.lists(st.integers(0, 8)))
def test_rows_are_decoded_alone_whether_a_slice_or_by_number(kind, start, stop, step, ids):
    Q = GGUFBlocks({"blocks": random_blocks(kind, 9, 256, np.random.default_rng(0))}, (9, 256), kind)
    W = Q.dense()
    assert np.array_equal(Q.dense(slice(start, stop, step)), W[start:stop:step])
    assert np.array_equal(Q.dense(np.array(ids, int)), W[np.array(ids, int)])
    assert np.array_equal(Q[start:stop].dense(slice(1, None)), W[start:stop][1:])


@pytest.mark.each_value
@each_type
@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_a_scale_that_is_not_finite_is_found_wherever_it_is_and_only_then(kind, number):
    Q = GGUFBlocks({"blocks": random_blocks(kind, 6, 512, np.random.default_rng(0))}, (6, 512), kind)
    assert Q.is_finite()
    size, scales = TYPES[kind].size, TYPES[kind].scales
    for start in range(scales.start, scales.stop, 2):
        damaged = Q.arrays["blocks"].copy()
        damaged.reshape(-1, size)[-1, start : start + 2] = np.array([number], np.float16).view(np.uint8)
        with np.errstate(invalid="ignore"):
            other = GGUFBlocks({"blocks": damaged}, (6, 512), kind)
            assert not other.is_finite()
            assert not np.isfinite(other.dense()).all()


def test_what_a_file_has_is_no_format_to_encode_to():
    assert "stored" not in formats()
    with pytest.raises(ValueError, match=r"no format is called 'sored': did you mean 'stored'"):
        load_pretrained(quantize="sored")
    with pytest.raises(ValueError, match="no format is called 'stored'"):
        minilora.models.quantized.quantize(build("llama"), "stored")


# ---- GGUF files ----


@pytest.mark.parametrize(
    ("kind", "architecture", "tied"),
    [*((kind, "llama", True) for kind in WEIGHT_TYPES), ("Q4_0", "gpt2", True), ("Q8_0", "qwen3", False)],
)
def test_a_model_held_as_its_file_has_it_is_the_model_that_is_decoded_at_once(tmp_path, kind, architecture, tied):
    path = made(tmp_path, kind, architecture, tied)
    plain, model = load_pretrained(path), load_pretrained(path, quantize="stored")
    matrices = {name for name, x in plain.state_dict().items() if x.ndim == 2}
    assert set(held(model)) == (set() if kind == "F32" else matrices)
    for name, W in plain.state_dict().items():
        assert dense(model.state_dict()[name]).tobytes() == np.ascontiguousarray(W).tobytes()
    np.testing.assert_allclose(logits(model), logits(plain), rtol=0, atol=1e-5 * abs(logits(plain)).max())
    assert base_hash(model) == base_hash(plain)
    assert (model["lm_head"].weight is model["embed.token"].weight) is tied


@each_type
def test_what_is_held_are_the_bytes_of_the_file_and_count_says_so(tmp_path, kind):
    path = made(tmp_path, kind)
    model, entries = load_pretrained(path, quantize="stored"), read_header(path).entries
    total = sum(one.size for one in entries.values())
    assert sum(p.data.nbytes for p in model.named_parameters().values()) == total
    account = accounting.count(model, "lora", targets="all-linear", r=2)
    assert account.memory()["weights"] == total + 4 * account.trainable
    assert f"in {kind}" in describe_model(path)["weights"]


def test_no_more_than_a_part_of_a_matrix_is_ever_dense(tmp_path, monkeypatch):
    model = load_pretrained(made(tmp_path, "Q8_0"), quantize="stored")
    decoded = []
    monkeypatch.setattr(base, "PART", 512)
    decode = GGUFBlocks.decode

    def recorded(Q, rows):
        decoded.append(decode(Q, rows))
        return decoded[-1]

    monkeypatch.setattr(GGUFBlocks, "decode", recorded)
    logits(model)
    assert max(x.size for x in decoded) == 24 * made_gguf.C  # the embedding's rows of 24 ids
    minilora.attach_lora(model, "all-linear", r=2, alpha=4, rng=0)
    decoded.clear()
    gradients(model, some_batch(np.random.default_rng(0)))
    list(next_ids(model, np.array([1, 2]), 5))
    assert max(x.size for x in decoded) <= 18 * made_gguf.C  # of a batch of 3 × 6; a part of a matrix is 16 rows of 32


@pytest.mark.parametrize(("number", "kind"), [(np.nan, "F16"), (np.inf, "BF16"), (np.nan, "Q8_0"), (-np.inf, "Q4_1")])
def test_a_number_that_is_not_finite_is_refused_in_the_words_of_the_plain_load(tmp_path, number, kind):
    path = made(tmp_path, kind)
    content, entry = bytearray(path.read_bytes()), read_header(path).entries["blk.1.ffn_gate.weight"]
    bits = bfloat16_bits(np.array([number], np.float32)) if kind == "BF16" else np.array([number], np.float16)
    content[entry.start + entry.size // 2 : entry.start + entry.size // 2 + 2] = bits.tobytes()
    path.write_bytes(content)
    said = []
    for quantize in (None, "stored"):
        with pytest.raises(ValueError, match=r"'blk\.1\.ffn_gate\.weight' holds numbers that are not") as caught:
            load_pretrained(path, quantize=quantize)
        said.append(str(caught.value))
    assert said[0] == said[1]


@pytest.mark.parametrize("held_in", ["stored", None])
def test_an_adapter_of_an_embedding_in_blocks_loads_on_them_and_on_their_numbers(tmp_path, held_in):
    path = tmp_path / "m.gguf"
    write(path, "llama", made_gguf.random_tensors("llama", True), kind="Q8_0")
    model = load_pretrained(path, quantize=held_in)
    minilora.attach_lora(model, ["embed", "q_proj"], r=2, rng=0)
    minilora.save_adapter(model, tmp_path / "adapter")
    for quantize in ("stored", None):
        assert minilora.load_adapter(load_pretrained(path, quantize=quantize), tmp_path / "adapter") == ""


# ---- Hugging Face folders ----


def write_as(folder, kinds):
    """Write the folder's model.safetensors anew, the matrices in these types by turns."""
    file = folder / "model.safetensors"
    tensors, metadata = load_tensors(file)
    chosen = {name: kinds[i % len(kinds)] for i, name in enumerate(tensors)}
    changed = {
        name: x.astype(np.float16) if chosen[name] == "F16" else bfloat16_bits(x) if chosen[name] == "BF16" else x
        for name, x in tensors.items()
    }
    content = tensors_to_bytes(changed, metadata)
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    for name in changed:
        header[name]["dtype"] = chosen[name]
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + content[end:])


@pytest.mark.each_value
@pytest.mark.parametrize("family", ["gpt2", "llama", "bert"])
@pytest.mark.parametrize("kinds", [["BF16"], ["F16"], ["BF16", "F32", "F16"]], ids="-".join)
def test_matrices_of_a_folder_stay_in_the_bits_of_its_file(tmp_path, family, kinds):
    save_pretrained(build(family, dtype="float32"), tmp_path / "m")
    write_as(tmp_path / "m", kinds)
    plain, model = load_pretrained(tmp_path / "m"), load_pretrained(tmp_path / "m", quantize="stored")
    file = open_tensors(tmp_path / "m" / "model.safetensors")[0]
    expected = sum(stored(file, name).nbytes for name in file if file[name].ndim == 2)
    assert not model.trainable_parameters()
    assert sum(x.nbytes for path, x in model.state_dict().items() if len(x.shape) == 2) == expected
    kept = held(model)
    assert {type(x) for x in kept.values()} == {{"BF16": BFloat16, "F16": Float16}[kind] for kind in {*kinds} - {"F32"}}
    for name, W in plain.state_dict().items():
        assert np.array_equal(dense(model.state_dict()[name]), W), name
    ids = some_batch(np.random.default_rng(0)).ids
    np.testing.assert_allclose(model.forward(ids)[0], plain.forward(ids)[0], rtol=1e-4, atol=1e-5)
    assert base_hash(model) == base_hash(plain)


@given(bits=st.lists(st.integers(0, 2**16 - 1), min_size=1))
def test_bits_of_bfloat16_are_finite_where_their_numbers_are(bits):
    Q = BFloat16({"bits": np.array([bits], np.uint16)}, (1, len(bits)))
    assert Q.is_finite() == np.isfinite(from_bfloat16(Q.arrays["bits"])).all()


# ---- adapters ----


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gguf")
    return {name: made(folder, kind, name) for name, kind in (("llama", "Q4_1"), ("gpt2", "Q8_0"))}


@pytest.mark.each_value
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("variant", variants())
def test_every_variant_trains_on_weights_as_stored_as_on_the_plain_ones(files, variant, architecture):
    options = variants()[variant][0].examples[""]
    if not adaptable(load_pretrained(files[architecture], quantize="stored"), variant, "all-linear", **options):
        pytest.skip("no layer for it")
    ids = np.random.default_rng(0).integers(0, made_gguf.V, 200)
    batch: Batch = some_batch(np.random.default_rng(1))
    models, losses = [], []
    for quantize in (None, "stored"):
        model = load_pretrained(files[architecture], quantize=quantize)
        attach(model, variant, "all-linear", rng=0, **options)
        history = minilora.fit(model, minilora.data.random_windows(ids, batch=2, length=8, seed=0), steps=3)
        losses.append(history.loss)
        models.append(model)
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)
    plain, model = (named(m, gradients(m, batch)) for m in models)
    assert plain.keys() == model.keys()
    for name in plain:
        np.testing.assert_allclose(model[name], plain[name], rtol=0, atol=1e-2 * abs(plain[name]).max())


def test_an_adapter_of_either_load_goes_on_the_other(files, tmp_path):
    for quantize, other in ((None, "stored"), ("stored", None)):
        model = load_pretrained(files["llama"], quantize=quantize)
        minilora.attach_lora(model, ["q_proj"], r=2, alpha=4, rng=0)
        save_adapter(model, tmp_path / str(quantize))
        load_adapter(load_pretrained(files["llama"], quantize=other), tmp_path / str(quantize))


def test_weights_as_stored_are_not_trained(files):
    model = load_pretrained(files["llama"], quantize="stored")
    with pytest.raises(ValueError, match="a weight in Q4_1 has no gradient: train an adapter beside it"):
        model["block_0.attention.q_proj"].weight.trainable = True


# ---- a model that people use ----

RESIDENT = """
import minilora
from minilora.quantization.gguf_blocks import GGUFBlocks

def resident():
    return 1024 * int(next(x for x in open("/proc/self/status") if x.startswith("VmRSS")).split()[1])

tokenizer, decode, largest = minilora.load_tokenizer("smollm2"), GGUFBlocks.decode, 0

def counted(Q, rows):
    global largest
    x = decode(Q, rows)
    largest = max(largest, x.size)
    return x

GGUFBlocks.decode = counted
before = resident()
model = minilora.load_pretrained("smollm2", quantize="stored")
held = resident() - before
text = minilora.generate(model, "The capital of France is", 4, tokenizer=tokenizer)
print(held, largest, text)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
def test_smollm2_takes_the_memory_of_its_file_and_a_part_of_a_matrix(tmp_path):
    path = real("smollm2")
    done = subprocess.run([sys.executable, "-c", RESIDENT], capture_output=True, text=True, check=True)
    held, largest, *text = done.stdout.split(maxsplit=2)
    assert int(held) < 1.1 * path.stat().st_size
    assert int(largest) <= base.PART  # the embedding alone is 108 of them
    assert "Paris" in text[0]


@pytest.mark.slow
def test_smollm2_as_stored_has_the_logits_of_the_plain_load():
    real("smollm2")
    ids = np.random.default_rng(0).integers(0, 49152, (1, 24))
    plain, model = (load_pretrained("smollm2", quantize=x).forward(ids)[0] for x in (None, "stored"))
    np.testing.assert_allclose(model, plain, rtol=0, atol=1e-5 * abs(plain).max())
