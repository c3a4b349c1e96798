"""DoRA: both of its gradients beside PEFT's and autograd's, without V in memory, in files, and in training."""

import itertools
import json
import tracemalloc
from functools import partial

import numpy as np
import pytest
from adapters import snapshot
from models import build, close, gradients, loss, named, some_batch
from peft_models import IDS, base, logits, trained

from minilora import load_pretrained, merge, ops, save_pretrained, unmerge
from minilora.accounting import executed_flops, nbytes
from minilora.accounting.live import counted
from minilora.adapters import peft
from minilora.adapters.attach import attach
from minilora.adapters.dora import DoRAEmbedding, DoRALinear, angle, orthogonal_to_V, row_norms
from minilora.data import english, random_windows
from minilora.jobs.changes import adapter_changes
from minilora.nn import Costs, Embedding, Gradients, Linear, Pass
from minilora.training import loss_and_gradients
from minilora.verify import check_model

CLASSES = DoRALinear, DoRAEmbedding
each_class = pytest.mark.parametrize("cls", CLASSES)
modes = pytest.mark.parametrize("through_norm", [True, False], ids=["full", "norm held constant"])
SLOTS = "lora_A", "lora_B", "lora_magnitude_vector"


def layer(cls, rng, n_in=6, n_out=4, bias=True, **options):
    """A DoRA with every number off its start, s = 5/3."""
    base = Embedding(rng.standard_normal((n_in, n_out)))
    if cls is DoRALinear:
        base = Linear(rng.standard_normal((n_out, n_in)), rng.standard_normal(n_out) if bias else None)
    made = cls.start(base, rng=0, r=3, alpha=5, **options)
    for parameter in made.own_parameters().values():
        parameter.data = parameter.data + 0.5 * rng.standard_normal(parameter.data.shape)
    return made


def some_x(cls, rng, n_in=6):
    return rng.integers(0, n_in, (3, 2)) if cls is DoRAEmbedding else rng.standard_normal((3, 2, n_in))


def run(adapter, x, dy=None, seed=None, **words):
    """y, dx and {slot: gradient}"""
    y, cache = adapter.forward(x, run=Pass(None if seed is None else np.random.default_rng(seed), **words))
    grads = Gradients()
    dx = adapter.backward(np.random.default_rng(1).standard_normal(y.shape) if dy is None else dy, cache, grads)
    return y, dx, {name: grads[p] for name, p in adapter.own_parameters().items() if p in grads}


# ---- beside PyTorch and PEFT ----


def test_the_full_gradient_is_autograds_of_the_formula_of_the_paper(rng):
    torch = pytest.importorskip("torch")
    for cls, seed in ((DoRALinear, None), (DoRALinear, 5), (DoRAEmbedding, None)):
        adapter, x = layer(cls, rng, dropout=0.4), some_x(cls, rng)
        y, cache = adapter.forward(x, run=Pass(None if seed is None else np.random.default_rng(seed)))
        dy, grads = rng.standard_normal(y.shape), Gradients()
        dx = adapter.backward(dy, cache, grads)
        W, *held = (torch.tensor(np.ascontiguousarray(a)) for a in adapter.tensors[:4])
        for tensor in held:
            tensor.requires_grad_()
        A, B, m = held
        V = W + adapter.scaling * B @ A
        merged = (m / V.norm(dim=1))[:, None] * V
        if cls is DoRAEmbedding:
            out = merged.T[torch.tensor(x)]
        else:
            there = torch.tensor(x, requires_grad=True)
            dropped = there if cache.keep is None else there * torch.tensor(cache.keep)
            out = (there - dropped) @ W.T + dropped @ merged.T + torch.tensor(adapter.base.bias.data)
        out.backward(torch.tensor(dy))
        np.testing.assert_allclose(y, out.detach().numpy(), rtol=1e-12, atol=1e-13)
        for name, tensor in zip(SLOTS, held, strict=True):
            np.testing.assert_allclose(grads[getattr(adapter, name)], tensor.grad.numpy(), rtol=1e-11, atol=1e-12)
        if dx is not None:
            np.testing.assert_allclose(dx, there.grad.numpy(), rtol=1e-12, atol=1e-13)


def wrapped_by_peft(adapter, conv=False, dropout=0.0):
    """PEFT's layer of the same numbers, in float64, and its parameters by our names."""
    torch, hf = pytest.importorskip("torch"), pytest.importorskip("peft")
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D
    n_out, n_in = adapter.sizes["n_out"], adapter.sizes["n_in"]
    if isinstance(adapter, DoRAEmbedding):
        inner = torch.nn.Embedding(n_in, n_out)
    else:
        inner = conv1d(n_out, n_in) if conv else torch.nn.Linear(n_in, n_out, adapter.base.bias is not None)
    config = hf.LoraConfig(
        r=3, lora_alpha=5, target_modules=["0"], use_dora=True, fan_in_fan_out=conv, lora_dropout=dropout
    )
    model = hf.get_peft_model(torch.nn.Sequential(inner), config).double()
    theirs = model.base_model.model[0]
    with torch.no_grad():
        W = adapter.weight.data
        theirs.base_layer.weight.copy_(torch.tensor(W.T if conv else W))
        if getattr(adapter.base, "bias", None) is not None:
            theirs.base_layer.bias.copy_(torch.tensor(adapter.base.bias.data))
        embeds = isinstance(adapter, DoRAEmbedding)
        held = {
            "lora_A": theirs.lora_embedding_A["default"] if embeds else theirs.lora_A["default"].weight,
            "lora_B": theirs.lora_embedding_B["default"] if embeds else theirs.lora_B["default"].weight,
            "lora_magnitude_vector": theirs.lora_magnitude_vector["default"].weight,
        }
        for name, parameter in held.items():
            assert tuple(parameter.shape) == getattr(adapter, name).data.shape
            parameter.copy_(torch.tensor(getattr(adapter, name).data))
    return model, theirs, held


@pytest.mark.each_value
@pytest.mark.oracle
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("n_out", [4, 6, 9])
@pytest.mark.parametrize("kind", ["Linear", "Conv1D", "Embedding"])
def test_with_the_norm_held_constant_everything_is_pefts(kind, n_out, bias, rng):
    torch = pytest.importorskip("torch")
    cls, conv = DoRAEmbedding if kind == "Embedding" else DoRALinear, kind == "Conv1D"
    adapter, x = layer(cls, rng, n_out=n_out, bias=bias or conv, through_norm=False), some_x(cls, rng)
    model, theirs, held = wrapped_by_peft(adapter, conv)
    there = torch.tensor(x, requires_grad=cls is DoRALinear)
    out, dy = model(there), rng.standard_normal((3, 2, n_out))
    out.backward(torch.tensor(dy))
    y, dx, found = run(adapter, x, dy)
    np.testing.assert_allclose(y, out.detach().numpy(), rtol=1e-12, atol=1e-13)
    for name, parameter in held.items():
        np.testing.assert_allclose(found[name], parameter.grad.numpy(), rtol=1e-11, atol=1e-12, err_msg=name)
    if dx is not None:
        np.testing.assert_allclose(dx, there.grad.numpy(), rtol=1e-12, atol=1e-13)
    model.merge_adapter()
    W, b = adapter.merged()
    np.testing.assert_allclose(W.T if conv else W, theirs.base_layer.weight.detach().numpy(), rtol=1e-11, atol=1e-12)
    assert (b is None) == (kind == "Embedding" or not (bias or conv))


@pytest.mark.oracle
@pytest.mark.parametrize("conv", [False, True], ids=["Linear", "Conv1D"])
def test_dropout_is_pefts_with_the_mask_that_torch_draws(conv, rng, monkeypatch):
    torch = pytest.importorskip("torch")
    adapter, x = layer(DoRALinear, rng, through_norm=False, dropout=0.4), some_x(DoRALinear, rng)
    model, _, held = wrapped_by_peft(adapter, conv, dropout=0.4)
    model.train()
    torch.manual_seed(7)
    keep = torch.nn.functional.dropout(torch.ones(x.shape, dtype=torch.float64), 0.4).numpy()
    monkeypatch.setattr("minilora.adapters.dora.dropped", lambda x, p, rng: (x * keep, keep))
    there, dy = torch.tensor(x, requires_grad=True), rng.standard_normal((3, 2, 4))
    torch.manual_seed(7)
    out = model(there)
    out.backward(torch.tensor(dy))
    y, dx, found = run(adapter, x, dy)
    np.testing.assert_allclose(y, out.detach().numpy(), rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(dx, there.grad.numpy(), rtol=1e-12, atol=1e-12)
    for name, parameter in held.items():
        np.testing.assert_allclose(found[name], parameter.grad.numpy(), rtol=1e-11, atol=1e-12, err_msg=name)


# ---- laws, and what tells the two gradients apart ----


@each_class
@modes
def test_the_gradient_has_no_part_along_V_and_that_of_peft_has(cls, through_norm, rng):
    adapter, x = layer(cls, rng, through_norm=through_norm), some_x(cls, rng)
    y, cache = adapter.forward(x)
    dy, grads = rng.standard_normal(y.shape), Gradients()
    adapter.backward(dy, cache, grads)
    off = orthogonal_to_V(adapter, x, dy, grads)
    assert off < 1e-12 if through_norm else off > 0.1


@each_class
def test_y_stays_when_a_row_of_W_and_of_B_grow_by_one_factor(cls, rng):
    adapter, x, c = layer(cls, rng, bias=False), some_x(cls, rng), np.array([3.0, 0.5, 2.0, 1.0])
    before = adapter.forward(x)[0]
    W = adapter.weight.data
    adapter.weight.data = W * c if cls is DoRAEmbedding else c[:, None] * W
    adapter.lora_B.data = c[:, None] * adapter.lora_B.data
    np.testing.assert_allclose(adapter.forward(x)[0], before, rtol=1e-12)


@each_class
def test_a_row_of_the_merged_W_is_as_long_as_m_says(cls, rng):
    adapter = layer(cls, rng)
    W = adapter.merged()[0]
    m = np.linalg.norm(W, axis=0 if cls is DoRAEmbedding else 1)
    np.testing.assert_allclose(m, abs(adapter.lora_magnitude_vector.data), rtol=1e-12)


@pytest.mark.parametrize("size", [1e-8, 1.0, 10.0])
def test_the_lengths_are_as_exact_in_float32_as_those_of_V_itself(size, rng):
    W, A, B = (rng.standard_normal(shape, dtype=np.float32) for shape in ((50, 300), (8, 300), (50, 8)))
    B *= np.float32(size * np.linalg.norm(W) / np.linalg.norm(B @ A))
    n, P = ops.dora_norms(W, A, B, 0.7)
    V = W.astype(float) + 0.7 * B.astype(float) @ A
    assert n.dtype == P.dtype == np.float32
    assert abs(n / np.linalg.norm(V, axis=1) - 1).max() < 1e-6
    assert close(P.astype(float), V @ A.T, 1e-5)


# ---- start, dropout, bias ----


@each_class
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_at_the_start_m_over_n_is_1_and_y_is_the_bases_to_the_bit_with_dropout_too(cls, dtype, rng):
    base = layer(cls, rng, 60, 40).base
    base.astype(dtype)
    adapter, x = cls.start(base, rng=0, r=3, dropout=0.4), some_x(cls, rng, 60)
    x = x if cls is DoRAEmbedding else x.astype(dtype)
    assert (adapter.lora_magnitude_vector.data / row_norms(adapter) == 1).all()
    for seed in (None, 1):
        y, _ = adapter.forward(x, run=Pass(None if seed is None else np.random.default_rng(seed)))
        assert y.tobytes() == base.forward(x)[0].tobytes()


def test_dropout_puts_no_noise_in_the_base_as_long_as_m_is_the_length(rng):
    adapter, x = layer(DoRALinear, rng, dropout=0.4), some_x(DoRALinear, rng)
    adapter.lora_B.data = 0 * adapter.lora_B.data

    def noise():
        one, two = (run(adapter, x, seed=seed)[0] for seed in (1, 2))
        return abs(one - two).max()

    adapter.lora_magnitude_vector.data = row_norms(adapter)
    assert noise() < 1e-14
    adapter.lora_magnitude_vector.data = 1.5 * row_norms(adapter)
    assert noise() > 0.1


@pytest.mark.parametrize("seed", [None, 3], ids=["no dropout", "dropout"])
@pytest.mark.parametrize("needs_dx", [True, False])
def test_a_bias_below_is_not_scaled_and_gets_the_sum_of_dy(seed, needs_dx, rng):
    adapter, x = layer(DoRALinear, rng, dropout=0.4), some_x(DoRALinear, rng)
    bias = adapter.base.bias
    bias.trainable = True
    y, cache = adapter.forward(x, run=Pass(None if seed is None else np.random.default_rng(seed), needs_dx=needs_dx))
    dy, grads = rng.standard_normal(y.shape), Gradients()
    assert (adapter.backward(dy, cache, grads) is None) != needs_dx
    np.testing.assert_allclose(grads[bias], dy.sum(axis=(0, 1)), rtol=1e-12)
    shifted = rng.standard_normal(4)
    bias.data = bias.data + shifted
    again = adapter.forward(x, run=Pass(None if seed is None else np.random.default_rng(seed)))[0]
    np.testing.assert_allclose(again - y, np.broadcast_to(shifted, y.shape), rtol=1e-11)


@modes
def test_the_gradients_of_biases_that_train_beside_parts_of_a_fused_layer_are_right(through_norm, rng):
    model, batch = build("gpt2"), some_batch(rng, "left")
    attach(model, "dora", ["q_proj", "v_proj"], rng=0, r=3, train="bias", through_norm=through_norm)
    for p in model.trainable_parameters().values():
        p.data = p.data + 0.3 * rng.standard_normal(p.data.shape)
    found = named(model, gradients(model, batch))
    assert "block_0.attention.qkv_proj.bias" in found
    if through_norm:
        check_model(model, lambda: loss(model, batch), gradients(model, batch), rng=rng).raise_if_wrong()
    else:
        full = build("gpt2")
        attach(full, "dora", ["q_proj", "v_proj"], rng=0, r=3, train="bias")
        full.load_state_dict(model.state_dict())
        for name, other in named(full, gradients(full, batch)).items():
            same = np.allclose(found[name], other, rtol=1e-10, atol=1e-14)
            assert same == (not name.endswith(("lora_A", "lora_B"))), name


def test_a_magnitude_of_zero_comes_back_after_a_merge(rng):
    model = build("llama")
    attach(model, "dora", ["q_proj"], rng=0, r=3)
    layer = model["block_0.attention.q_proj"]
    layer.lora_magnitude_vector.data = layer.lora_magnitude_vector.data * np.r_[0.0, np.ones(11)]
    before = snapshot(model)
    merge(model)
    assert not model["block_0.attention.q_proj"].weight.data[0].any()
    unmerge(model)
    assert snapshot(model) == before


# ---- what is kept, and what is made ----


@each_class
@modes
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_bytes_and_flops_are_those_that_are_counted_whatever_learns(cls, through_norm, dropout, rng):
    adapter, x = layer(cls, rng, 7, 5, through_norm=through_norm, dropout=dropout), some_x(cls, rng, 7)
    for n, needs_dx in itertools.product(range(8), (True, False)):
        for i, name in enumerate(SLOTS):
            getattr(adapter, name).trainable = bool(n >> i & 1)
        costs = Costs(adapter, 8, dropout=bool(dropout))
        adapter.costs(costs.array(*x.shape[: 2 if cls is DoRAEmbedding else 3], needs_dx=needs_dx), costs)
        held = {}

        def forward(held=held, needs_dx=needs_dx):
            held["y"] = adapter.forward(
                x if cls is DoRAEmbedding else counted(x), run=Pass(np.random.default_rng(0), needs_dx=needs_dx)
            )

        ran = executed_flops(adapter, forward)["products"]
        y, cache = held["y"]
        assert ran == sum(product.flops for product in costs.forward)
        assert nbytes(cache._replace(base=None)) == sum(entry.nbytes for entry in costs.alive())
        ran = executed_flops(adapter, partial(adapter.backward, counted(np.ones(y.shape)), cache, Gradients()))
        assert ran["products"] == sum(product.flops for product in costs.backward), (n, needs_dx)


@each_class
@modes
def test_no_array_of_the_size_of_W_is_made(cls, through_norm, rng):
    W = rng.standard_normal((2000, 1500), dtype=np.float32)
    base = Embedding(W) if cls is DoRAEmbedding else Linear(W, None)
    adapter = cls.start(base, rng=0, r=4, through_norm=through_norm)
    x = rng.integers(0, 2000, (1, 3)) if cls is DoRAEmbedding else rng.standard_normal((1, 3, 1500), dtype=np.float32)
    tracemalloc.start()
    try:
        _, _, found = run(adapter, x, np.ones((1, 3, adapter.sizes["n_out"]), np.float32))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(found) == 3
    assert peak < 0.05 * W.nbytes


# ---- the angle ----


def test_the_angle_is_that_between_the_two_gradients_and_none_where_one_is_zero(rng):
    adapter, x = layer(DoRALinear, rng), some_x(DoRALinear, rng)
    dy = np.random.default_rng(1).standard_normal((3, 2, 4))
    full = run(adapter, x, dy)[2]
    adapter.through_norm = False
    held = run(adapter, x, dy)[2]
    adapter.through_norm = True
    found = angle(adapter, x, dy)
    assert adapter.through_norm
    for name in "AB":
        a, b = full[f"lora_{name}"], held[f"lora_{name}"]
        cos = (a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b)
        assert found[name] == pytest.approx(np.degrees(np.arccos(cos)), rel=1e-9)
    new = DoRALinear.start(Linear(adapter.weight.data), rng=0, r=3)
    assert np.isnan(angle(new, x, dy)["A"])
    assert 0 < angle(new, x, dy)["B"] < 90


@pytest.mark.slow
def test_on_the_builtin_model_the_gradient_and_pefts_are_about_ten_degrees_apart():
    """reference: cos of dB at the start .979 in the mean, .904 at least; at ‖s B A‖ = ‖W‖/2 .945 and .860."""
    model, rng, seen = load_pretrained("builtin", "float64"), np.random.default_rng(0), {}
    layers = {path: m for path, m in model.named_modules() if isinstance(m, Linear) and path != "lm_head"}
    for path, m in layers.items():
        m.forward = partial(lambda forward, path, x, *a: (seen.update({path: [x]}), forward(x, *a))[1], m.forward, path)
        m.backward = partial(
            lambda backward, path, dy, *a: (seen[path].append(dy), backward(dy, *a))[1], m.backward, path
        )
    loss_and_gradients(model, random_windows(english().validation, 8, 64, 0)(0))
    assert len(seen) == len(layers) == 35
    for size, mean in ((0.0, 0.979), (0.5, 0.945)):
        found = []
        for path, (x, dy) in seen.items():
            W = layers[path].weight.data
            adapter = DoRALinear.start(Linear(W), rng=rng, r=8, alpha=16)
            B = rng.standard_normal(adapter.lora_B.data.shape)
            adapter.lora_B.data = B * (size * np.linalg.norm(W) / np.linalg.norm(2 * B @ adapter.lora_A.data))
            found.append(angle(adapter, x, dy)["B"])
        cosines = np.cos(np.radians(found))
        assert cosines.mean() == pytest.approx(mean, abs=0.01)
        assert 0.8 < cosines.min() < cosines.max() < 0.999


# ---- parts, files, refusals ----


def test_parts_of_gpt2s_fused_layer_are_one_dora_on_the_whole_here_and_in_peft(tmp_path, rng):
    model = base("gpt2")
    attach(model, "dora", {"q_proj": 3, "v_proj": 3}, rng=2, alpha=5)
    trained(model)
    parts, x = model["block_0.attention.qkv_proj"], rng.standard_normal((2, 3, 12))
    whole = parts.in_file()
    assert (type(whole), whole.r, whole.scaling) == (DoRALinear, 6, 5 / 3)
    assert (whole.lora_magnitude_vector.data[12:24] / row_norms(whole)[12:24] == 1).all()  # of k, which is not adapted
    np.testing.assert_allclose(whole.forward(x)[0], parts.forward(x)[0], rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(whole.merged()[0], parts.merged()[0], rtol=1e-12, atol=1e-14)
    peft.save_adapter(model, tmp_path / "a")
    loaded = base("gpt2")
    assert peft.load_adapter(loaded, tmp_path / "a") == ""
    assert close(logits(loaded), logits(model), 1e-12)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_dora_of_an_embedding_comes_back_and_its_config_says_use_dora_and_not_through_norm(tmp_path, family):
    model = base(family)
    attach(model, "dora", ["embed", "up_proj"], rng=2, r=3, through_norm=False)
    trained(model)
    peft.save_adapter(model, tmp_path / "a")
    says = json.loads((tmp_path / "a" / peft.CONFIG).read_text())
    assert says["use_dora"] is True
    assert not {"", "through_norm"} & says.keys()
    loaded = base(family)
    peft.load_adapter(loaded, tmp_path / "a")
    assert np.array_equal(logits(loaded), logits(model))
    assert isinstance(loaded["embed.token"], DoRAEmbedding)
    assert loaded["embed.token"].through_norm
    for name, held in peft.layers_in(tmp_path / "a", *peft.read_adapter(tmp_path / "a")[:2]).items():
        assert isinstance(held, DoRAEmbedding if name.endswith(("embed_tokens", "wte")) else DoRALinear)


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_doras_of_an_embedding_and_of_a_layer_are_exchanged_with_peft(tmp_path, family):
    hf, torch = pytest.importorskip("peft"), pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    save_pretrained(base(family), tmp_path / "m")

    def their_base():
        words = {"dtype": torch.float64, "attn_implementation": "eager"}
        return transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m", **words).eval()

    def agree(ours, theirs):  # RMS norms and rotations of their llama are in float32
        with torch.no_grad():
            out = theirs(input_ids=torch.tensor(IDS)).logits.numpy()
        return close(ours.forward(IDS)[0], out, 1e-12 if family == "gpt2" else 1e-5)

    model = base(family)
    attach(model, "dora", ["embed", "up_proj"], rng=2, r=3)
    trained(model)
    peft.save_adapter(model, tmp_path / "ours")
    assert agree(model, hf.PeftModel.from_pretrained(their_base(), tmp_path / "ours"))
    names = {"llama": ["embed_tokens", "up_proj"], "gpt2": ["wte", "c_fc"]}[family]
    config = hf.LoraConfig(r=3, lora_alpha=5, target_modules=names, use_dora=True, fan_in_fan_out=family == "gpt2")
    theirs = hf.get_peft_model(their_base(), config).double()
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter += 0.3 * torch.randn(parameter.shape, dtype=torch.float64)
    theirs.save_pretrained(tmp_path / "theirs")
    loaded = base(family)
    peft.load_adapter(loaded, tmp_path / "theirs")
    assert agree(loaded, theirs)


def test_the_rank_of_a_dora_is_measured_with_its_base_and_refused_without(tmp_path):
    model = base("llama")
    save_pretrained(model, tmp_path / "m")
    attach(model, "dora", ["up_proj"], rng=2, r=3)
    trained(model)
    peft.save_adapter(model, tmp_path / "a")
    with pytest.raises(ValueError, match=r"up_proj depends on W: give its base too"):
        adapter_changes(tmp_path / "a")
    found = adapter_changes(tmp_path / "a", tmp_path / "m").layers["model.layers.1.mlp.up_proj"]
    layer = model["block_1.mlp.up_proj"]
    assert layer.factors() is None
    np.testing.assert_allclose(found.after - found.before, layer.delta(), atol=1e-6)  # it is loaded in float32


@each_class
def test_a_row_of_zeros_is_refused_and_the_model_stays_as_it_was(cls, rng):
    model = build("llama")
    path, target = ("embed.token", "embed") if cls is DoRAEmbedding else ("block_1.attention.v_proj", "v_proj")
    W = model[path].weight.data.copy()
    (W.T if cls is DoRAEmbedding else W)[2] = 0
    model[path].weight.data = W
    before, line = snapshot(model), "column" if cls is DoRAEmbedding else "row"
    with pytest.raises(ValueError, match=f"{path}: {line} 2 of its weight is 0, and DoRA divides by its length"):
        attach(model, "dora", [target], rng=0)
    assert snapshot(model) == before


def test_a_weight_that_trains_below_its_dora_is_refused(rng):
    model = build("llama")
    attach(model, "dora", ["q_proj"], rng=0, train=["q_proj"])
    with pytest.raises(ValueError, match="the weight that DoRA adapts must stay frozen: take its layer out of `train`"):
        model.forward(some_batch(rng).ids)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"init_lora_weights": "mica"}, "init_lora_weights = 'mica' is not known to leave the base as it is"),
        ({"lora_bias": True}, "lora_bias = True is not supported, only False"),
        ({"use_dora": 1.5}, "use_dora = 1.5 is not supported"),
        ({"ensure_weight_tying": True}, "ensure_weight_tying = True: dora has no adapter that an embedding and its he"),
        ({"megatron_config": {"a": 1}}, "megatron_config = {'a': 1} is not supported, only None"),
        ({"through_norm": False, "use_magic": 1}, "use_magic = 1 is not known here"),
        ({"through_norm": 3}, "through_norm = 3 is not known here, so what it changes would be ignored"),
    ],
)
def test_what_peft_has_not_with_dora_or_is_not_exact_is_refused(tmp_path, words, message):
    model = base("llama")
    attach(model, "dora", ["embed", "q_proj"], rng=2, r=3)
    peft.save_adapter(model, tmp_path / "a")
    says = json.loads((tmp_path / "a" / peft.CONFIG).read_text())
    (tmp_path / "a" / peft.CONFIG).write_text(json.dumps(says | words))
    other = base("llama")
    before = snapshot(other)
    with pytest.raises(ValueError, match=message):
        peft.load_adapter(other, tmp_path / "a")
    assert snapshot(other) == before


@pytest.mark.parametrize("value", [0, "no", None])
def test_through_norm_is_true_or_false(value):
    with pytest.raises(ValueError, match=rf"through_norm {value!r} is neither true nor false"):
        attach(build("llama"), "dora", ["q_proj"], rng=0, through_norm=value)
