"""What holds for every variant of the registry, none of them named; then what VeRA and (IA)³ add."""

import copy
import math
import sys

import numpy as np
import pytest
from adapters import Counted, snapshot
from models import build, close, fresh, gradients, loss, some_batch

from minilora import adapters
from minilora.adapters import DEFAULT
from minilora.adapters.attach import adaptable, adapter_for, attach, attach_lora, attach_without_weights
from minilora.adapters.base import Adapter
from minilora.adapters.ia3 import IA3FeedForward, IA3Linear
from minilora.adapters.merge import merge, unmerge
from minilora.adapters.registry import variants
from minilora.adapters.statements import shape
from minilora.adapters.vera import VeRALinear
from minilora.backend import to_numpy
from minilora.nn import Convolution, Embedding, Gradients, LayerNorm, Linear, Parameter, Pass
from minilora.quantization import Quantized
from minilora.verify import check_model

CLASSES = [cls for classes in variants().values() for cls in classes]
each_variant = pytest.mark.parametrize("variant", variants())


def small(variant):
    return variants()[variant][0].examples[""]


def in_families(*places, merges=False):
    """Each variant in each family, with its targets there if it has any: llama has no biases. `merges`: that can."""
    placed = [place if isinstance(place, tuple) else (place, "all-linear") for place in places]
    some = [v for v in variants() if variants()[v][0].mergeable or not merges]
    found = [(v, *p) for v in some for p in placed if adaptable(fresh(p[0]), v, p[1] or "all-linear", **small(v))]
    return pytest.mark.parametrize(("variant", "family", "targets"), found)


each_class = pytest.mark.parametrize("cls", CLASSES)


def moved(model, rng):
    """The model with every slot off its start, the frozen ones too."""
    for module in [module for _, module in model.named_modules() if isinstance(module, Adapter)]:
        for parameter in module.own_parameters().values():
            change = 0.3 * rng.standard_normal(parameter.data.shape)
            parameter.data = parameter.data + change.astype(parameter.data.dtype)
    return model


def attached(variant, rng, family="llama", targets="all-linear", dtype="float64", **options):
    model = build(family, dtype=dtype)
    attach(model, variant, targets, rng=0, **{**small(variant), **options})
    return moved(model, rng)


def layer(cls, rng, n_in=5, n_out=4, bias=True, **options):
    """An adapter off its start."""
    base = Embedding(rng.standard_normal((n_in, n_out)))
    if cls.base_type is Linear:
        base = Linear(rng.standard_normal((n_out, n_in)), rng.standard_normal(n_out) if bias else None)
    if cls.base_type is LayerNorm:
        base = LayerNorm(rng.standard_normal(n_in), rng.standard_normal(n_in), eps=0.1)
    if issubclass(cls.base_type, Convolution):
        kernel = (3, 2)[: cls.base_type.axes]
        base = cls.base_type(rng.standard_normal((n_out, n_in, *kernel)), rng.standard_normal(n_out))
    return moved(cls.start(base, rng=0, **{**cls.examples[""], **options}), rng)


def given(cls, rng, n_in=5):
    """What such a layer reads: ids, or what it computes 6 rows of."""
    if cls.base_type is Embedding:
        return rng.integers(0, 5, (3, 2))
    if issubclass(cls.base_type, Convolution):
        return rng.standard_normal((2, n_in, *(5, 2)[: cls.base_type.axes]))
    return rng.standard_normal((3, 2, n_in))


# ---- the protocol ----


def test_a_variant_is_one_file_and_the_default_is_one_of_them():
    for name, classes in variants().items():
        file = f"minilora.adapters.{name.replace('-', '_')}"
        # LoRA has classes of its own for convolutions, and for starts that change more than A and B
        others = {f"{file}_{what}" for what in ("conv", "loftq", "mica", "residual")} if name == "lora" else set()
        assert {cls.__module__ for cls in classes} == {file} | others
        assert {cls.variant for cls in classes} == {name}
    assert DEFAULT in variants()


def test_a_variant_is_one_file_also_where_it_only_names_a_subclass_of_another(tmp_path, monkeypatch):
    (tmp_path / "other.py").write_text(
        "from .vera import VeRALinear\n\n\nclass Other(VeRALinear):\n    variant = 'other'\n"
    )
    monkeypatch.setattr(adapters, "__path__", [*adapters.__path__, str(tmp_path)])
    found = variants.__wrapped__()
    del sys.modules["minilora.adapters.other"]
    assert [cls.__name__ for cls in found["other"]] == ["Other"]
    assert found["vera"] == [VeRALinear]


def value(formula, adapter, drops=0):
    return eval(formula, {}, {**adapter.settings, **adapter.sizes, "drops": drops})


@each_class
def test_what_a_class_states_fits_its_slots(cls, rng):
    adapter = layer(cls, rng)
    assert adapter.own_parameters() == {slot.name: getattr(adapter, slot.name) for slot in cls.slots}
    for slot in cls.slots:
        assert getattr(adapter, slot.name).data.shape == shape(slot.shape, adapter.sizes)
        assert math.prod(shape(slot.file_shape or slot.shape, adapter.sizes)) == getattr(adapter, slot.name).data.size
    trained = {slot.name for slot in cls.slots if slot.trained}
    assert {name for name, p in adapter.own_parameters().items() if p.trainable} == trained
    products = cls.products
    assert {name for kept in cls.kept for name in kept.slots} <= trained
    assert {name for names in (*products.gradients, *products.gradients_once) for name in names} <= trained
    for formula in [*(kept.width for kept in cls.kept), *products.gradients.values(), products.forward]:
        assert value(formula, adapter) >= 0
    assert adapter.settings == {**cls.defaults(), **{k: v for k, v in cls.examples[""].items() if k in cls.defaults()}}


@each_class
def test_of_gives_an_adapter_that_computes_the_same_from_its_tensors_and_settings(cls, rng):
    adapter = layer(cls, rng)
    tensors = {name: p.data for name, p in adapter.own_parameters().items()}
    x = given(cls, rng)
    again = cls.of(adapter.base, tensors, **adapter.settings)
    assert again.forward(x)[0].tobytes() == adapter.forward(x)[0].tobytes()


@each_class
def test_factors_are_those_of_delta_and_delta_is_merged_W_less_W(cls, rng):
    adapter = layer(cls, rng)
    W, b = adapter.merged()
    np.testing.assert_allclose(adapter.delta(), W - adapter.dense(), rtol=1e-10, atol=1e-12)
    if (factors := adapter.factors()) is not None:
        A, B, s = factors
        np.testing.assert_allclose((s * B @ A).reshape(W.shape), adapter.delta(), rtol=1e-10, atol=1e-12)
    assert (b is None) == (getattr(adapter.base, "bias", None) is None)


@pytest.mark.each_value
@each_class
@pytest.mark.parametrize("dx", [True, False], ids=["dx is read", "nobody reads dx"])
def test_a_frozen_slot_keeps_nothing_and_gets_nothing_whoever_else_learns(cls, dx, rng):
    adapter = layer(cls, rng)
    x = given(cls, rng)
    trained = [slot.name for slot in cls.slots if slot.trained]
    full: dict[str, np.ndarray] = {}
    for learns in [trained, *([name] for name in trained), []]:
        for name in trained:
            getattr(adapter, name).trainable = name in learns
        y, cache = adapter.forward(x, run=Pass(needs_dx=dx))
        dy, grads = np.random.default_rng(1).standard_normal(y.shape), Gradients()
        returned = adapter.backward(dy, cache, grads)
        assert set(grads) == {getattr(adapter, name) for name in learns}
        for name in learns:
            full.setdefault(name, grads[getattr(adapter, name)])
            np.testing.assert_allclose(grads[getattr(adapter, name)], full[name], rtol=1e-12)
        held = [part for part in cache if isinstance(part, np.ndarray)]
        assert len(held) == len({kept.what for kept in cls.kept if not kept.slots or set(kept.slots) & set(learns)})
        assert (returned is None) == (not dx or cls.base_type is Embedding)


def flops_alone(module, x):
    found, Counted.flops = {}, 0
    y, cache = module.forward(x)
    found["forward"], Counted.flops = Counted.flops, 0
    module.backward(y, cache, Gradients())
    return found | {"backward": Counted.flops}


@pytest.mark.each_value
@each_class
@pytest.mark.parametrize("dx", [True, False], ids=["dx is read", "nobody reads dx"])
def test_the_products_that_a_class_states_are_those_that_run(cls, dx, rng):
    adapter, N = layer(cls, rng, 50, 40), 6
    for parameter in adapter.named_parameters().values():
        if not isinstance(parameter.data, Quantized):  # which is decoded for the product with an x that counts
            parameter.data = parameter.data.view(Counted)
    x = given(cls, rng, 50)
    x = x if cls.base_type is Embedding else x.view(Counted)
    base = dict.fromkeys(("forward", "backward"), 0 if cls.base_type is Embedding else 2 * N * adapter.dense().size)
    if cls.base_type is LayerNorm:  # its sums are products too
        base = flops_alone(adapter.base, x)
    products = cls.products

    Counted.flops = 0
    y, cache = adapter.forward(x, run=Pass(needs_dx=dx))
    assert Counted.flops == base["forward"] + N * value(products.forward, adapter) + value(products.once, adapter)
    Counted.flops = 0
    adapter.backward(rng.standard_normal(y.shape).view(Counted), cache, Gradients())
    each_row = [products.backward if dx else products.without_dx, *products.gradients.values()]
    once = sum(value(formula, adapter) for formula in (products.backward_once, *products.gradients_once.values()))
    assert Counted.flops == base["backward"] * dx + N * sum(value(formula, adapter) for formula in each_row) + once


@each_class
def test_a_float32_layer_stays_float32(cls, rng):
    adapter = layer(cls, rng)
    adapter.astype(np.float32)
    x = given(cls, rng)
    x = x if cls.base_type is Embedding else x.astype(np.float32)
    y, cache = adapter.forward(x)
    grads = Gradients()
    dx = adapter.backward(y, cache, grads)
    arrays = [y, dx, *grads.values(), *adapter.merged(), adapter.delta()]
    assert {array.dtype for array in arrays if array is not None} == {np.dtype(np.float32)}


@pytest.mark.each_value
@each_class
def test_a_class_computes_the_same_on_each_array_library(cls, xp, rng):
    adapter, grads = layer(cls, rng), Gradients()
    x = given(cls, rng)
    y, cache = adapter.forward(x)
    adapter.backward(y, cache, grads)
    adapter.to(xp)
    there, moved = Gradients(), xp.asarray(x)
    y_there, cache = adapter.forward(moved)
    adapter.backward(y_there, cache, there)
    assert isinstance(y_there, xp.ndarray)
    for ours, other in [(y, y_there), *((grads[p], there[p]) for p in grads)]:
        np.testing.assert_allclose(to_numpy(other), to_numpy(ours), rtol=1e-10, atol=1e-12)
    base = copy.copy(adapter.base)
    base.weight = Parameter(adapter.dense())
    new = cls.start(base, rng=0, **cls.examples[""])
    assert {type(p.data) for p in new.own_parameters().values()} == {xp.ndarray}


# ---- in a model ----


@pytest.mark.each_value
@in_families(("llama", None), ("gpt2", None))
def test_a_new_adapter_changes_no_bit_of_the_logits_and_only_its_trained_slots_learn(variant, family, targets, rng):
    model, batch = build(family), some_batch(rng)
    before = model.forward(batch.ids, batch.inputs)[0]
    paths = attach(model, variant, targets, rng=0, **small(variant))
    assert model.forward(batch.ids, batch.inputs)[0].tobytes() == before.tobytes()
    slots = {getattr(model[path], slot.name) for path in paths for slot in type(model[path]).slots if slot.trained}
    assert set(model.trainable_parameters().values()) == slots
    assert set(gradients(model, batch)) == slots


@pytest.mark.each_value
@in_families("llama", ("gpt2", None), ("bert", ["down_proj"]))
def test_every_gradient_in_a_model_is_right(variant, family, targets, rng):
    model, batch = attached(variant, rng, family, targets), some_batch(rng, "left")
    batch.ids[:, 4] = small(variant).get("invocation_tokens", batch.ids[:1, 4])[0]  # or it would act nowhere
    check_model(model, lambda: loss(model, batch), gradients(model, batch), rng=rng).raise_if_wrong()


@pytest.mark.each_value
@in_families("llama", ("gpt2", None), merges=True)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 1e-5)])
def test_merge_computes_the_same_and_unmerge_gives_back_every_bit(variant, family, targets, dtype, tolerance, rng):
    model, batch = attached(variant, rng, family, targets, dtype), some_batch(rng)
    before, logits = snapshot(model), model.forward(batch.ids, batch.inputs)[0]
    assert merge(model)
    assert not any(isinstance(module, Adapter) for _, module in model.named_modules())
    assert close(model.forward(batch.ids, batch.inputs)[0], logits, tolerance)
    unmerge(model)
    assert snapshot(model) == before
    assert model.forward(batch.ids, batch.inputs)[0].tobytes() == logits.tobytes()


@pytest.mark.each_value
@in_families("llama", "bert")
def test_an_adapter_without_weights_has_the_shapes_of_one_with(variant, family, targets):
    shapes = []
    for attach_it in (lambda *a, **o: attach(*a, rng=0, **o), attach_without_weights):
        model = build(family)
        paths = attach_it(model, variant, targets, train="norm", **small(variant))
        shapes.append((paths, {n: (p.data.shape, p.trainable) for n, p in model.named_parameters().items()}))
    assert shapes[0] == shapes[1]


def test_attach_lora_is_attach_with_its_defaults_written_out():
    one, other = build("llama"), build("llama")
    assert attach_lora(one, r=3, alpha=5, rng=7) == attach(other, "lora", r=3, alpha=5, rng=7)
    states = [{n: x.tobytes() for n, x in model.state_dict().items()} for model in (one, other)]
    assert states[0] == states[1]


@pytest.mark.parametrize(
    ("variant", "options", "message"),
    [
        ("vara", {}, "no variant is called 'vara': did you mean 'vera'"),
        ("vera", {"rank": 3}, "vera has no option 'rank': choose from d_initial"),
        ("vera", {"r": 0}, "block_0.attention.q_proj: r 0 is not a whole number from 1 to"),
        ("vera", {"dropout": 1}, "dropout 1 is not a probability below 1"),
        ("vera", {"seed": 0.5}, "seed 0.5 is not a whole number"),
        ("vera", {"d_initial": math.nan}, "d_initial nan is not a number"),
        ("vera", {"targets": {"q_proj": 3}}, "vera has no rank for each layer"),
        ("vera", {"targets": ["embed"]}, "embed.token: this adapter is for a Linear, and this is of type Embedding"),
        ("vera", {"save_projection": "no"}, "save_projection 'no' is neither true nor false"),
        ("lora", {"rslora": "no"}, "block_0.attention.q_proj: rslora 'no' is neither true nor false"),
        ("lora", {"targets": ["q_proj", 3]}, "no layer is called 3: choose from embed, q_proj"),
        ("ia3", {"r": 3}, "ia3 has no option 'r': choose from feedforward_modules"),
        ("ia3", {"feedforward_modules": ["up_proj"]}, "feedforward_modules: 'up_proj' is not a target"),
        ("ia3", {"rng": None}, "rng None is neither a seed nor a generator"),
    ],
)
def test_an_attach_that_fails_says_why_and_leaves_the_model_as_it_was(variant, options, message):
    model = build("llama")
    before = snapshot(model)
    with pytest.raises(ValueError, match=message):
        attach(model, variant, **{"rng": 0, **options})
    assert snapshot(model) == before


# ---- VeRA ----


def test_all_layers_share_one_pair_as_large_as_the_largest_needs_and_take_its_first_columns_and_rows(rng):
    model = attached("vera", rng, r=3)
    layers = [module for _, module in model.named_modules() if isinstance(module, VeRALinear)]
    assert {(a.vera_A, a.vera_B) for a in layers} == {(layers[0].vera_A, layers[0].vera_B)}
    rows, columns = map(max, zip(*(a.weight.data.shape for a in layers), strict=True))
    assert (layers[0].vera_A.data.shape, layers[0].vera_B.data.shape) == ((3, columns), (rows, 3))
    assert len({a.weight.data.shape for a in layers}) > 1
    for a in layers:
        n_out, n_in = a.weight.data.shape
        A, B = a.vera_A.data[:, :n_in], a.vera_B.data[:n_out]
        delta = np.diag(a.vera_lambda_b.data) @ B @ np.diag(a.vera_lambda_d.data) @ A
        np.testing.assert_allclose(a.delta(), delta, rtol=1e-12)


def test_a_second_attach_of_what_shares_its_slots_is_refused(rng):
    model = attached("vera", rng, targets=["q_proj"])
    before = snapshot(model)
    with pytest.raises(ValueError, match="vera is attached to all its layers at once, as they share vera_A and vera_B"):
        attach(model, "vera", "v_proj", rng=0, r=3)
    assert snapshot(model) == before
    assert attach(model, "ia3", "v_proj", rng=0)  # another variant is another matter


@pytest.mark.oracle
@pytest.mark.parametrize("seed", [0, 1, 123456789, 2**32 + 5, -1])
def test_A_and_B_are_bit_for_bit_those_that_torch_draws_from_the_seed(seed):
    torch, model = pytest.importorskip("torch"), pytest.importorskip("peft.tuners.vera.model")
    generator = torch.Generator().manual_seed(seed)
    A, B = (model._kaiming_init(shape, generator).numpy() for shape in ((7, 33), (50, 7)))
    bases = [Linear(np.zeros((50, 4), np.float32)), Linear(np.zeros((3, 33), np.float32))]
    ours = VeRALinear.draw_shared(bases, r=7, seed=seed)
    assert ours["vera_A"].data.tobytes() == A.tobytes()
    assert ours["vera_B"].data.tobytes() == B.tobytes()
    assert not any(parameter.trainable for parameter in ours.values())


def test_dropout_acts_on_the_path_alone_and_only_with_a_generator(rng):
    adapter, x = layer(VeRALinear, rng, dropout=0.4), rng.standard_normal((3, 2, 5))
    y, cache = adapter.forward(x, run=Pass(rng=np.random.default_rng(8)))
    np.testing.assert_allclose(np.unique(cache.keep), [0, 1 / 0.6])
    np.testing.assert_allclose(y - adapter.base.forward(x)[0], (x * cache.keep) @ adapter.delta().T, rtol=1e-10)
    assert adapter.forward(x)[1].keep is None


@pytest.mark.each_value
@pytest.mark.oracle
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("conv", [False, True], ids=["Linear", "Conv1D"])
@pytest.mark.parametrize("cls", [VeRALinear, IA3Linear, IA3FeedForward])
def test_outputs_and_gradients_are_those_of_peft(cls, conv, bias, rng):
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D
    adapter, x = layer(cls, rng, bias=bias or conv), rng.standard_normal((3, 2, 5))
    n_out, n_in = adapter.weight.data.shape
    inner = conv1d(n_out, n_in) if conv else torch.nn.Linear(n_in, n_out, bias)
    W = adapter.weight.data.T if conv else adapter.weight.data
    options = {"target_modules": ["0"], "fan_in_fan_out": conv}
    if cls is VeRALinear:
        config = peft.VeraConfig(r=3, **options)
    else:
        config = peft.IA3Config(feedforward_modules=["0"] if cls is IA3FeedForward else [], **options)
    theirs = peft.get_peft_model(torch.nn.Sequential(inner), config).double()
    wrapped = theirs.base_model.model[0]
    with torch.no_grad():
        wrapped.base_layer.weight.copy_(torch.tensor(W))
        if wrapped.base_layer.bias is not None:
            wrapped.base_layer.bias.copy_(torch.tensor(adapter.base.bias.data))
        held = {slot.name: getattr(wrapped, slot.name)["default"] for slot in cls.slots}
        for slot in cls.slots:
            parameter = getattr(adapter, slot.name)
            assert tuple(held[slot.name].shape) == shape(slot.file_shape or slot.shape, adapter.sizes)
            held[slot.name].copy_(torch.tensor(parameter.data).reshape(held[slot.name].shape))
    assert {name: bool(p.requires_grad) for name, p in held.items()} == {s.name: s.trained for s in cls.slots}
    there = torch.tensor(x, requires_grad=True)
    y, cache = adapter.forward(x)
    out = theirs(there)
    np.testing.assert_allclose(y, out.detach().numpy(), rtol=1e-12, atol=1e-13)
    dy, grads = rng.standard_normal(y.shape), Gradients()
    dx = adapter.backward(dy, cache, grads)
    out.backward(torch.tensor(dy))
    np.testing.assert_allclose(dx, there.grad.numpy(), rtol=1e-12, atol=1e-13)
    for name, parameter in adapter.own_parameters().items():
        if parameter.trainable:
            theirs_now = held[name].grad.numpy().reshape(parameter.data.shape)
            np.testing.assert_allclose(grads[parameter], theirs_now, rtol=1e-12, atol=1e-13, err_msg=name)
    theirs.merge_adapter()
    merged_W, merged_b = adapter.merged()
    np.testing.assert_allclose(merged_W.T if conv else merged_W, wrapped.base_layer.weight.detach().numpy(), rtol=1e-12)
    if merged_b is not None:
        np.testing.assert_allclose(merged_b, wrapped.base_layer.bias.detach().numpy(), rtol=1e-12)


# ---- (IA)³ ----


def test_the_layers_that_feedforward_modules_names_are_rescaled_on_their_in_side_and_no_others():
    model = build("llama")
    paths = attach(model, "ia3", rng=0)
    sides = {path: type(model[path]) for path in paths}
    assert {path.rpartition(".")[2]: cls for path, cls in sides.items()} == {
        "k_proj": IA3Linear, "v_proj": IA3Linear, "down_proj": IA3FeedForward,
    }  # fmt: skip
    model = build("llama")
    attach(model, "ia3", ["k_proj", "down_proj"], rng=0, feedforward_modules="k_proj")
    assert type(model["block_0.attention.k_proj"]) is IA3FeedForward
    assert type(model["block_0.mlp.down_proj"]) is IA3Linear
    one = "block_1.mlp.down_proj"
    assert adapter_for(Linear(np.ones((2, 2))), "ia3", one, feedforward_modules=[one]) is IA3FeedForward


@pytest.mark.parametrize("cls", [IA3Linear, IA3FeedForward])
def test_a_bias_is_rescaled_on_the_out_side_alone(cls, rng):
    adapter, zero = layer(cls, rng), np.zeros((1, 5))
    b, vector = adapter.base.bias.data, adapter.ia3_l.data
    np.testing.assert_allclose(adapter.forward(zero)[0][0], vector * b if cls is IA3Linear else b, rtol=1e-12)


def test_a_bias_that_learns_below_the_vector_gets_its_gradient_through_it(rng):
    adapter, x = layer(IA3Linear, rng), rng.standard_normal((6, 5))
    adapter.base.bias.trainable = True
    y, cache = adapter.forward(x)
    dy, grads = rng.standard_normal(y.shape), Gradients()
    adapter.backward(dy, cache, grads)
    np.testing.assert_allclose(grads[adapter.base.bias], adapter.ia3_l.data * dy.sum(axis=0), rtol=1e-12)


def test_parts_of_a_fused_layer_join_to_one_vector_with_ones_for_the_rest(rng):
    model = attached("ia3", rng, "gpt2", ["k_proj", "v_proj"])
    parts, x = model["block_0.attention.qkv_proj"], rng.standard_normal((2, 3, 12))
    whole = parts.in_file()
    assert np.array_equal(whole.ia3_l.data[:12], np.ones(12))
    np.testing.assert_allclose(whole.forward(x)[0], parts.forward(x)[0], rtol=1e-12)
    with pytest.raises(ValueError, match="vera on parts of a fused layer cannot be written as an adapter on the whole"):
        attached("vera", rng, "gpt2", ["q_proj"])["block_0.attention.qkv_proj"].in_file()
