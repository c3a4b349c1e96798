"""ViT: against transformers and PEFT, counted, saved and loaded; what it reads and what it refuses."""

import json

import numpy as np
import pytest
from models import close

import minilora
from minilora import ops
from minilora.accounting import count
from minilora.accounting.memory import ledger
from minilora.accounting.named import without_weights
from minilora.data import Batch
from minilora.files import load_tensors
from minilora.models.config import Config
from minilora.models.families.vit import vit
from minilora.models.names import hf_name
from minilora.nn import Gradients, Inputs, KVCache

SHAPE = {"image_size": 7, "patch_size": 3, "channels": 2, "n_layers": 2, "d_model": 12, "n_heads": 3, "d_ff": 10,
         "activation": "gelu", "eps": 0.01, "labels": 4, "dtype": "float64"}  # fmt: skip


def build(head="classify", **options):
    """A small model in which nothing is where it started. 7 pixels are two patches of 3, and one left over."""
    model, rng = vit(Config(0, head=head, **{**SHAPE, **options}), 1), np.random.default_rng(2)
    for p in model.named_parameters().values():
        p.data = (p.data + 0.3 * rng.standard_normal(p.data.shape)).astype(p.data.dtype)
    return model


def images(rng, n=3):
    return rng.standard_normal((n, 2, 7, 7))


def adapted(head="classify", targets=("projection", "q_proj", "v_proj", "up_proj")):
    model, rng = build(head), np.random.default_rng(3)
    minilora.attach_lora(model, list(targets), r=2, alpha=3, rng=rng, train=["classifier"] * (head == "classify"))
    for path, p in model.named_parameters().items():
        if path.endswith("lora_B"):
            p.data = 0.3 * rng.standard_normal(p.data.shape)
    return model


def gradients(model, x, dy):
    y, caches = model.forward(x)
    grads = Gradients()
    model.backward(dy, caches, grads)
    return y, grads


@pytest.fixture(scope="module")
def oracle():
    return pytest.importorskip("torch"), pytest.importorskip("transformers"), pytest.importorskip("peft")


def theirs_of(model, folder, transformers):
    """The model of transformers, loaded from the folder that ours is saved to."""
    minilora.save_pretrained(model, folder)
    cls = transformers.ViTForImageClassification if model.config.head == "classify" else transformers.ViTModel
    other, info = cls.from_pretrained(folder, output_loading_info=True, dtype="float64")
    new = {"pooler.dense.weight", "pooler.dense.bias"} if model.config.head == "none" else set()
    assert {*info["missing_keys"]} == new
    assert not info["unexpected_keys"]
    return other


def output(other, x, torch):
    y = other(torch.tensor(x))
    return y.logits if hasattr(y, "logits") else y.last_hidden_state


@pytest.mark.oracle
@pytest.mark.parametrize("head", ["classify", "none"])
def test_outputs_and_gradients_are_those_of_transformers(head, oracle, rng, tmp_path):
    torch, transformers, _ = oracle
    model, x = build(head), images(rng)
    other = theirs_of(model, tmp_path / "model", transformers)
    expected = output(other, x, torch)
    dy = rng.standard_normal(expected.shape)
    expected.backward(torch.tensor(dy))
    y, grads = gradients(model, x, dy)
    assert close(y, expected.detach().numpy(), 1e-12)
    theirs = dict(other.named_parameters())
    ours = {hf_name(model, path): p for path, p in model.named_parameters().items()}
    assert theirs.keys() - ours.keys() == ({"pooler.dense.weight", "pooler.dense.bias"} if head == "none" else set())
    for name, p in ours.items():
        expected = theirs[name].grad.numpy()
        if name.endswith("k_proj.bias"):  # the softmax ignores what is added to all scores of a query
            assert np.abs(grads[p]).max() < 1e-12
        else:
            assert close(grads[p], expected, 1e-10), name


@pytest.mark.oracle
@pytest.mark.parametrize("head", ["classify", "none"])
def test_a_folder_of_transformers_loads_and_gives_its_outputs(head, oracle, rng, tmp_path):
    torch, transformers, _ = oracle
    config = transformers.ViTConfig(
        hidden_size=12, num_hidden_layers=2, num_attention_heads=3, intermediate_size=10, image_size=7, patch_size=3,
        num_channels=2, num_labels=4, layer_norm_eps=0.01,
    )  # fmt: skip
    torch.manual_seed(0)
    cls = transformers.ViTForImageClassification if head == "classify" else transformers.ViTModel
    other = cls(config).double()
    other.save_pretrained(tmp_path / "theirs")
    x = images(rng)
    with pytest.warns(UserWarning, match="pooler") if head == "none" else np.errstate():
        model = minilora.load_pretrained(tmp_path / "theirs", dtype="float64")
    assert model.config.head == head
    assert close(model.forward(x)[0], output(other, x, torch).detach().numpy(), 1e-12)
    live = {name: p.detach().numpy() for name, p in other.named_parameters()}
    minilora.files.save_tensors(tmp_path / "theirs" / "model.safetensors", live, {"format": "pt"})  # not renamed
    with pytest.warns(UserWarning, match="pooler") if head == "none" else np.errstate():
        again = minilora.load_pretrained(tmp_path / "theirs", dtype="float64")
    assert again.forward(x)[0].tobytes() == model.forward(x)[0].tobytes()


@pytest.mark.oracle
def test_an_adapter_goes_to_peft_and_its_gradients_are_those_of_peft(oracle, rng, tmp_path):
    torch, transformers, peft = oracle
    model, x = adapted(), images(rng)
    other = theirs_of(build(), tmp_path / "model", transformers)
    minilora.save_adapter(model, tmp_path / "adapter")
    theirs = peft.PeftModel.from_pretrained(other, tmp_path / "adapter", is_trainable=True)
    expected = output(theirs, x, torch)
    dy = rng.standard_normal(expected.shape)
    expected.backward(torch.tensor(dy))
    y, grads = gradients(model, x, dy)
    assert close(y, expected.detach().numpy(), 1e-12)
    named = {name.replace(".default", ""): p for name, p in theirs.named_parameters() if p.grad is not None}
    checked = 0
    for path, module in model.named_modules():
        for slot in getattr(module, "slots", ()):
            gradient = named[f"base_model.model.{hf_name(model, path)}.{slot.file}"].grad.numpy()
            assert close(slot.to_file(grads[getattr(module, slot.name)]), gradient, 1e-10)
            checked += 1
    assert checked == len([name for name in named if "lora_" in name]) == 2 * (1 + 3 * 2)


@pytest.mark.oracle
def test_an_adapter_of_peft_loads_with_its_kernels(oracle, rng, tmp_path):
    torch, transformers, peft = oracle
    model, x = build(), images(rng)
    other = theirs_of(model, tmp_path / "model", transformers)
    config = peft.LoraConfig(r=2, lora_alpha=3, target_modules=["projection", "q_proj", "fc1"])
    theirs = peft.get_peft_model(other, config).double()
    with torch.no_grad():
        for name, p in theirs.named_parameters():
            if "lora_B" in name:
                p.copy_(torch.tensor(0.3 * rng.standard_normal(p.shape)))
    theirs.save_pretrained(tmp_path / "adapter")
    minilora.load_adapter(model, tmp_path / "adapter")
    assert model["embed.projection"].lora_A.data.shape == (2, 2, 3, 3)
    assert close(model.forward(x)[0], output(theirs, x, torch).detach().numpy(), 1e-12)
    minilora.merge(model)
    assert close(model.forward(x)[0], output(theirs.merge_and_unload(), x, torch).detach().numpy(), 1e-12)


@pytest.mark.oracle
@pytest.mark.parametrize("head", ["classify", "none"])
def test_parameters_are_counted_as_transformers_counts_them(head, oracle):
    _, transformers, _ = oracle
    config = transformers.ViTConfig(hidden_size=24, num_hidden_layers=3, num_attention_heads=3, intermediate_size=50,
                                    image_size=20, patch_size=4, num_labels=7)  # fmt: skip
    cls = transformers.ViTForImageClassification if head == "classify" else transformers.ViTModel
    other = cls(config)
    values = json.loads(config.to_json_string()) | {"architectures": [cls.__name__]}
    account = count(values, "full")
    assert account.total == sum(p.numel() for p in other.parameters())
    assert account.tokens == 26


# ---- without an oracle ----


def test_an_adapter_is_saved_and_loaded_to_the_bit(rng, tmp_path):
    model, x = adapted(), images(rng)
    minilora.save_adapter(model, tmp_path / "adapter")
    again = build()
    minilora.load_adapter(again, tmp_path / "adapter")
    assert again.forward(x)[0].tobytes() == model.forward(x)[0].tobytes()
    tensors, _ = load_tensors(tmp_path / "adapter" / "adapter_model.safetensors")
    name = "base_model.model.vit.embeddings.patch_embeddings.projection"
    assert tensors[f"{name}.lora_A.weight"].shape == (2, 2, 3, 3)
    assert tensors[f"{name}.lora_B.weight"].shape == (12, 2, 1, 1)


def test_what_a_step_keeps_is_counted_to_the_byte(rng):
    model = adapted()
    x = images(rng)
    _, caches = model.forward(x)
    found = {}

    def collect(part):
        if isinstance(part, np.ndarray):
            owner = part if part.base is None else part.base
            found[id(owner)] = part
        elif isinstance(part, tuple | list):
            for each in part:
                collect(each)

    collect(caches)
    kept = ledger(model, 3, 5, "float64", loss=False)
    assert sum(part.nbytes for part in found.values()) == sum(array.nbytes for array in kept)


@pytest.mark.parametrize("head", ["classify", "none"])
def test_the_size_of_an_adapters_file_is_foretold(head, tmp_path):
    model = adapted(head, ["projection", "q_proj"])
    account = count(build(head), "lora", targets=["projection", "q_proj"], r=2)
    names = {path for path in account.added if path.endswith("weight")}
    minilora.save_adapter(model, tmp_path / "adapter")
    tensors, _ = load_tensors(tmp_path / "adapter" / "adapter_model.safetensors")
    assert {name: x.shape for name, x in tensors.items() if "lora_" in name} == account.added
    assert names == account.added.keys()


def test_it_learns_and_images_are_read_in_the_dtype_of_the_weights(rng):
    model = build(dtype="float32")
    minilora.attach_lora(model, ["projection", "q_proj"], r=2, alpha=4, rng=0, train=["classifier"])
    x, y = images(rng, 8), np.arange(8) % 4
    assert model.forward(x)[0].dtype == np.float32
    history = minilora.fit(model, lambda step: Batch(x, y), steps=30, lr=2e-2, description=None)
    assert history.loss[-1] < 0.7 * history.loss[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x[:, :1], r"floats of shape \(batch, 2, 7, 7\), not float64 of shape \(3, 1, 7, 7\)"),
        (lambda x: x[0], r"not float64 of shape \(2, 7, 7\)"),
        (lambda x: x[:0], r"not float64 of shape \(0, 2, 7, 7\)"),
        (lambda x: x.astype(int), "not int64"),
    ],
)
def test_other_images_are_refused(change, message, rng):
    with pytest.raises(ValueError, match=message):
        build().forward(change(images(rng)))


def test_padding_and_a_cache_of_words_are_refused(rng):
    for inputs, run in (
        (Inputs(padding=np.ones((3, 5), bool)), minilora.Pass(None)),
        (Inputs(), minilora.Pass(kv_cache=KVCache(9))),
    ):
        with pytest.raises(ValueError, match="images have no padding"):
            build("none").forward(images(rng), inputs, run)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("image_size", [7, 8], r"image_size = \[7, 8\] is not a whole number"),
        ("image_size", 0, "image_size = 0 is not supported"),
        ("patch_size", 9, "patch_size = 9 is more than an image of 7"),
        ("qkv_bias", False, "qkv_bias = False is not supported"),
        ("pooler_output_size", 5, "pooler_output_size = 5 is not supported"),
        ("architectures", ["ViTForMaskedImageModeling"], "is not supported: choose a head"),
        ("architectures", None, "head 'lm' is not one that a vit has: classify, none"),
    ],
)
def test_what_a_vit_here_does_not_have_is_refused_by_name(key, value, message):
    values = {
        "model_type": "vit", "architectures": ["ViTModel"], "hidden_size": 12, "num_hidden_layers": 1,
        "num_attention_heads": 3, "intermediate_size": 10, "layer_norm_eps": 0.01, "hidden_act": "gelu",
        "image_size": 7, "patch_size": 3, "num_channels": 2,
    }  # fmt: skip
    without_weights(values)
    with pytest.raises(ValueError, match=message):
        without_weights(values | {key: value})


def test_a_vit_needs_an_image_size_and_counting_knows_its_tokens():
    with pytest.raises(ValueError, match="a vit reads images: its config needs image_size"):
        vit(Config(5, n_layers=1, d_model=4, n_heads=1), None)
    with pytest.raises(ValueError, match="reads images of 7 x 7, which are 5 tokens"):
        count(build(), "full", tokens=6)


def test_a_patch_is_a_window_in_reading_order(rng):
    model = build(n_layers=1)
    embed, x = model["embed"], images(rng, 1)
    W, b = embed.projection.weight.data, embed.projection.bias.data
    y, _ = embed.forward(x)
    patches = [x[0, :, i : i + 3, j : j + 3].ravel() for i in (0, 3) for j in (0, 3)]
    expected = np.stack(patches) @ ops.kernels(W).T + b + embed.position.data[0, 1:]
    assert close(y[0, 1:], expected, 1e-12)
    assert close(y[0, 0], embed.class_token.data[0, 0] + embed.position.data[0, 0], 1e-12)
