"""LoHa and LoKr, beside what holds for every variant (test_variants.py): their structure, their forms, and PEFT's."""

import numpy as np
import pytest
from models import close
from peft_models import IDS, PADDING, base, logits, trained

import minilora
from minilora import ops
from minilora.adapters import peft
from minilora.adapters.attach import attach
from minilora.adapters.base import Adapter
from minilora.adapters.loha import LoHaLinear
from minilora.adapters.lokr import LoKrLinear, LoKrLinearLowRank
from minilora.adapters.lora import LoRALinear
from minilora.files import load_tensors
from minilora.nn import Gradients, Linear


def off_start(adapter, rng):
    for parameter in adapter.own_parameters().values():
        parameter.data = parameter.data + 0.3 * rng.standard_normal(parameter.data.shape)
    return adapter


def made(variant, rng, n_in, n_out, bias=True, **options):
    """An adapter of the form that its options ask for, off its start."""
    cls = {"loha": LoHaLinear, "lokr": LoKrLinear}[variant]
    layer = Linear(rng.standard_normal((n_out, n_in)), rng.standard_normal(n_out) if bias else None)
    return off_start(cls.form(layer, **options).start(layer, rng=0, **options), rng)


# ---- LoHa ----


def test_loha_is_lora_of_rank_r_squared_in_outputs_and_dx_and_its_change_has_that_rank(rng):
    adapter, x = made("loha", rng, 20, 15, r=3, alpha=5), rng.standard_normal((2, 4, 20))
    A, B, s = adapter.factors()
    lora = LoRALinear.of(adapter.base, {"lora_A": A, "lora_B": B}, r=9, alpha=9 * s)
    one, two = (layer.forward(x) for layer in (adapter, lora))
    np.testing.assert_allclose(one[0], two[0], rtol=1e-12)
    dy = rng.standard_normal(one[0].shape)
    dx = [layer.backward(dy, cache, Gradients()) for layer, (_, cache) in ((adapter, one), (lora, two))]
    np.testing.assert_allclose(dx[0], dx[1], rtol=1e-12)
    assert np.linalg.matrix_rank(adapter.delta()) == 9


def test_the_gradients_of_loha_are_those_by_the_dense_gradient_of_the_paper(rng):
    adapter, x = made("loha", rng, 7, 6, r=2, alpha=5), rng.standard_normal((3, 7))
    (y, cache), grads = adapter.forward(x), Gradients()
    dy = rng.standard_normal(y.shape)
    adapter.backward(dy, cache, grads)
    B1, A1, B2, A2 = adapter.tensors
    G = 5 / 2 * dy.T @ x
    T1, T2 = G * (B2 @ A2), G * (B1 @ A1)
    for parameter, dense in zip(
        adapter.own_parameters().values(), (T1 @ A1.T, B1.T @ T1, T2 @ A2.T, B2.T @ T2), strict=True
    ):
        np.testing.assert_allclose(grads[parameter], dense, rtol=1e-12)


def test_only_A2_has_a_gradient_at_the_start_of_loha_and_only_w1_at_that_of_lokr(rng):
    for cls, first in ((LoHaLinear, "hada_w2_b"), (LoKrLinear, "lokr_w1"), (LoKrLinearLowRank, "lokr_w1")):
        adapter = cls.start(Linear(rng.standard_normal((6, 8))), rng=0, r=2)
        y, cache = adapter.forward(rng.standard_normal((5, 8)))
        grads = Gradients()
        adapter.backward(rng.standard_normal(y.shape), cache, grads)
        assert {name for name, p in adapter.own_parameters().items() if grads[p].any()} == {first}


# ---- LoKr ----


def test_a_row_of_x_is_a_matrix_row_by_row_and_lokr_multiplies_it_on_both_sides(rng):
    w1, w2, x = rng.standard_normal((2, 3)), rng.standard_normal((5, 4)), rng.standard_normal((7, 12))
    y, _ = ops.lokr_forward(x, w1, w2, 0.7)
    np.testing.assert_allclose(y, x @ (0.7 * np.kron(w1, w2)).T, rtol=1e-10, atol=1e-13)
    np.testing.assert_allclose(y[3].reshape(2, 5), 0.7 * w1 @ x[3].reshape(3, 4) @ w2.T, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize(("r", "cls"), [(1, LoKrLinearLowRank), (2, LoKrLinearLowRank), (3, LoKrLinear)])
def test_w2_is_of_low_rank_where_r_is_below_half_its_larger_side(r, cls):
    layer = Linear(np.zeros((12, 20)))  # 12 = 3 · 4, 20 = 4 · 5: w₂ is (4, 5)
    assert LoKrLinear.form(layer, r=r) is cls


def test_one_attach_makes_the_form_that_each_layer_and_each_rank_needs():
    model = base("llama")
    paths = attach(model, "lokr", {"q_proj": 1, "block_1.mlp.up_proj": 1, "block_0.mlp.up_proj": 9}, rng=0)
    forms = {path: type(model[path]) for path in paths}
    assert forms.pop("block_0.mlp.up_proj") is LoKrLinear
    assert set(forms.values()) == {LoKrLinearLowRank}
    assert len(forms) == 3


@pytest.mark.oracle
def test_sizes_are_split_as_peft_splits_them():
    factorization = pytest.importorskip("peft.tuners.lokr.layer").factorization
    for n in range(1, 200):
        for factor in range(-1, 30):
            assert ops.lokr_sizes(n, factor) == factorization(n, factor), (n, factor)


# ---- PEFT's layers ----

LAYERS = [  # variant, in, out, options
    ("loha", 10, 6, {"r": 4, "alpha": 6}),
    ("loha", 6, 10, {"r": 1, "alpha": 3}),
    ("lokr", 12, 20, {"r": 3, "alpha": 5}),
    ("lokr", 20, 12, {"r": 1, "alpha": 5}),
    ("lokr", 30, 24, {"r": 2, "alpha": 7, "decompose_factor": 2}),
    ("lokr", 7, 13, {"r": 3, "alpha": 1}),
    ("lokr", 9, 9, {"r": 7, "alpha": 2}),
]


@pytest.mark.oracle
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize(("variant", "n_in", "n_out", "options"), LAYERS)
def test_outputs_gradients_and_merged_weights_are_those_of_peft(variant, n_in, n_out, options, bias, rng):
    torch, hf = pytest.importorskip("torch"), pytest.importorskip("peft")
    adapter, x = made(variant, rng, n_in, n_out, bias, **options), rng.standard_normal((3, 2, n_in))
    make = {"loha": hf.LoHaConfig, "lokr": hf.LoKrConfig}[variant]
    theirs = hf.get_peft_model(
        torch.nn.Sequential(torch.nn.Linear(n_in, n_out, bias)), make(target_modules=["0"], **options)
    )
    wrapped = theirs.double().base_model.model[0]
    held = {n.split(".")[0]: p for n, p in wrapped.named_parameters() if n.startswith(("hada", "lokr"))}
    assert held.keys() == adapter.own_parameters().keys()
    with torch.no_grad():
        wrapped.base_layer.weight.copy_(torch.tensor(adapter.weight.data))
        if bias:
            wrapped.base_layer.bias.copy_(torch.tensor(adapter.base.bias.data))
        for name, parameter in adapter.own_parameters().items():
            assert tuple(held[name].shape) == parameter.data.shape
            held[name].copy_(torch.tensor(parameter.data))
    there = torch.tensor(x, requires_grad=True)
    (y, cache), out = adapter.forward(x), theirs(there)
    dy, grads = rng.standard_normal(y.shape), Gradients()
    dx = adapter.backward(dy, cache, grads)
    out.backward(torch.tensor(dy))
    theirs.merge_adapter()
    pairs = {
        "y": (y, out), "dx": (dx, there.grad), "W": (adapter.merged()[0], wrapped.base_layer.weight),
        **{name: (grads[parameter], held[name].grad) for name, parameter in adapter.own_parameters().items()},
    }  # fmt: skip
    for name, (ours, other) in pairs.items():
        assert close(ours, other.detach().numpy(), 1e-12), name


@pytest.mark.oracle
@pytest.mark.parametrize("variant", ["loha", "lokr"])
def test_a_start_is_drawn_within_the_bounds_of_pefts(variant, rng):
    torch, hf = pytest.importorskip("torch"), pytest.importorskip("peft")
    options = {"r": 5, "alpha": 5}
    cls, make = {"loha": (LoHaLinear, hf.LoHaConfig), "lokr": (LoKrLinear, hf.LoKrConfig)}[variant]
    theirs = hf.get_peft_model(torch.nn.Sequential(torch.nn.Linear(900, 400)), make(target_modules=["0"], **options))
    layer = Linear(np.zeros((400, 900)))
    ours = cls.form(layer, **options).start(layer, rng=0, **options).own_parameters()
    drawn = {n.split(".")[-2]: p for n, p in theirs.named_parameters() if n.endswith(".default")}
    assert drawn.keys() == ours.keys()
    for name, parameter in drawn.items():
        one, two = float(parameter.detach().abs().max()), float(np.abs(ours[name].data).max())
        assert one == two == 0 or 0.8 < one / two < 1.25, name


# ---- PEFT's files ----

FILES = {
    "loha": ("loha", {"r": 2, "alpha": 5}, {}),
    "lokr of both forms": ("lokr", {"r": 1, "alpha": 5}, {"rank_pattern": {"up_proj": 9}}),
    "lokr of another factor": ("lokr", {"r": 2, "alpha": 5, "decompose_factor": 2}, {}),
}
TARGETS = ["q_proj", "up_proj", "down_proj"]


def agree(model, theirs):
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        out = theirs(input_ids=torch.tensor(IDS * PADDING), attention_mask=torch.tensor(PADDING).long()).logits
    return close(logits(model)[PADDING], out.double().numpy()[PADDING], 1e-5)  # a llama of theirs has float32 norms


@pytest.fixture
def their_llama(tmp_path):
    """A function that makes Hugging Face's llama of base("llama"), in float64."""
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    minilora.save_pretrained(base("llama"), tmp_path / "base")
    words = {"dtype": torch.float64, "attn_implementation": "eager"}
    return lambda: transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base", **words).eval()


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FILES)
def test_peft_loads_our_file_and_we_load_pefts_with_the_same_logits(name, their_llama, tmp_path):
    hf, torch = pytest.importorskip("peft"), pytest.importorskip("torch")
    variant, options, patterns = FILES[name]
    make = {"loha": hf.LoHaConfig, "lokr": hf.LoKrConfig}[variant]
    theirs = hf.get_peft_model(
        their_llama(), make(target_modules=TARGETS, task_type="CAUSAL_LM", **options, **patterns)
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in theirs.double().parameters():
            if parameter.requires_grad:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    theirs.save_pretrained(tmp_path / "theirs")
    model = base("llama")
    peft.load_adapter(model, tmp_path / "theirs")
    assert agree(model, theirs)
    forms = {type(m) for _, m in model.named_modules() if isinstance(m, Adapter)}
    assert len(forms) == (2 if name == "lokr of both forms" else 1)
    peft.save_adapter(model, tmp_path / "ours")
    assert agree(model, hf.PeftModel.from_pretrained(their_llama(), tmp_path / "ours").double())
    one, two = (load_tensors(tmp_path / folder / peft.WEIGHTS)[0] for folder in ("ours", "theirs"))
    assert {key: x.tobytes() for key, x in one.items()} == {key: x.tobytes() for key, x in two.items()}


@pytest.mark.parametrize("variant", ["loha", "lokr"])
@pytest.mark.parametrize("targets", [["qkv_proj"], ["q_proj", "v_proj"]], ids=["whole", "parts"])
def test_of_a_gpt_2_there_is_no_file_because_peft_adapts_none_and_the_model_can_be_merged(variant, targets, tmp_path):
    model = base("gpt2")
    attach(model, variant, targets, rng=0, r=2)
    trained(model)
    with pytest.raises(ValueError, match=rf"PEFT's {variant.upper()} is not for block_0.*, which a gpt2 stores as"):
        peft.save_adapter(model, tmp_path / "a")
    before = logits(model)
    minilora.merge(model)
    assert close(logits(model), before, 1e-12)
    assert not (tmp_path / "a").exists()


REFUSED = {
    "decompose_both": (True, "decompose_both = True is not supported, only False"),
    "rank_dropout": (0.1, r"rank_dropout = 0\.1 is not supported, only 0\.0"),
    "module_dropout": (0.1, r"module_dropout = 0\.1 is not supported, only 0\.0"),
    "decompose_factor": (-2, "decompose_factor -2 is not a whole number from -1"),
    "init_weights": ("pissa", "init_weights = 'pissa' is not known to leave the base as it is"),
    "alpha": ("x", "alpha 'x' is not a number"),
}


@pytest.mark.parametrize("key", REFUSED)
def test_what_lokr_lacks_here_is_refused_by_its_name_in_a_file(key):
    value, message = REFUSED[key]
    config = {"peft_type": "LOKR", "r": 8, "alpha": 8, "decompose_factor": -1, "target_modules": ["q_proj"], key: value}
    with pytest.raises(ValueError, match=message):
        peft.config.check_config(config)


def test_a_file_of_lokr_does_not_say_the_sizes_of_its_layers(tmp_path):
    model = base("llama")
    attach(model, "lokr", ["q_proj"], rng=0, r=1)
    peft.save_adapter(model, tmp_path / "a")
    config, tensors, _ = peft.read_adapter(tmp_path / "a")
    with pytest.raises(
        ValueError, match=r"does not say the sizes of model\.layers\.0\.self_attn\.q_proj: give its base too"
    ):
        peft.layers_in(tmp_path / "a", config, tensors)
    attach(other := base("llama"), "loha", ["q_proj"], rng=0, r=2)
    peft.save_adapter(trained(other), tmp_path / "b")
    layers = peft.layers_in(tmp_path / "b", *peft.read_adapter(tmp_path / "b")[:2])
    np.testing.assert_allclose(
        layers["model.layers.0.self_attn.q_proj"].delta(), other["block_0.attention.q_proj"].delta(), rtol=1e-12
    )
