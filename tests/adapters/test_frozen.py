"""Adapters between frozen factors: LoRA-FA and its optimizer, LoRA-XS, SVF, and the truncation of W."""

import copy
import json
import math
from typing import Any

import numpy as np
import pytest
from adapters import snapshot
from models import build, close, gradients, some_batch
from peft_models import base, logits, trained

from minilora import Config, Pass, accounting, fit, gpt2
from minilora.accounting import executed_flops, ledger
from minilora.accounting.live import counted
from minilora.adapters import lora_xs, peft, svf, variant_names
from minilora.adapters.attach import attach
from minilora.adapters.base import Adapter
from minilora.adapters.lora import LoRALinear
from minilora.adapters.lora_fa import LoRAFALinear, precondition
from minilora.adapters.lora_xs import LoRAXSLinear
from minilora.adapters.merge import merge
from minilora.adapters.peft import config
from minilora.adapters.registry import variants
from minilora.adapters.spectrum import singular_values, svd
from minilora.adapters.svf import SVFLinear, truncated
from minilora.backend import to_numpy
from minilora.data import Batch
from minilora.models.names import hf_name
from minilora.nn import Gradients, Linear
from minilora.nn.optim import SGD, AdamW

FROZEN = ("lora-fa", "lora-xs", "svf")
CLASSES = (LoRAFALinear, LoRAXSLinear, SVFLinear)
OBLONG = pytest.mark.parametrize(("n_in", "n_out"), [(7, 4), (4, 7)], ids=["wide", "tall"])
each_class = pytest.mark.parametrize("cls", CLASSES)


def linear(rng: np.random.Generator, n_in: int = 6, n_out: int = 5, bias: bool = True) -> Linear:
    return Linear(rng.standard_normal((n_out, n_in)), rng.standard_normal(n_out) if bias else None)


def adapter(cls: Any, rng: np.random.Generator, *sizes: int, bias: bool = True, **options: Any) -> Any:
    """An adapter whose learned slots are off their start; the frozen ones stay what they are of W."""
    made = cls.start(linear(rng, *sizes, bias=bias), rng=0, **{**cls.examples[""], **options})
    for parameter in made.trainable_parameters().values():
        parameter.data = parameter.data + 0.3 * rng.standard_normal(parameter.data.shape)
    return made


def dense(layer: Any, rng: np.random.Generator) -> tuple[np.ndarray, Gradients]:
    """G = dyᵀ x of a random step, and the layer's gradients of it."""
    x, grads = rng.standard_normal((9, layer.weight.data.shape[1])), Gradients()
    y, cache = layer.forward(x)
    dy = rng.standard_normal(y.shape)
    layer.backward(dy, cache, grads)
    return dy.T @ x, grads


# ---- what the three have in common ----


def test_the_names_read_from_the_files_are_those_of_the_registry():
    assert variant_names() == list(variants())


@pytest.mark.parametrize("variant", FROZEN)
@pytest.mark.parametrize(("family", "targets"), [("llama", "all-linear"), ("gpt2", ["q_proj", "v_proj", "down_proj"])])
def test_a_step_keeps_and_multiplies_what_is_predicted_with_dropout_too(variant, family, targets, rng):
    model, options = build(family), {"r": 3} | ({} if variant == "svf" else {"dropout": 0.3})
    attach(model, variant, targets, rng=0, **options)
    ids, run, held = rng.integers(0, 13, (3, 5)), Pass(np.random.default_rng(1)), {}
    forward = executed_flops(model, lambda: held.update(y=model.forward(ids, run=run)))
    y, cache = held["y"]
    kept = ledger(model, 3, 5, "float64", dropout=True, loss=False)
    assert accounting.nbytes(cache) == sum(entry.nbytes for entry in kept)
    assert not {"x", "x, dropped"} & {entry.what for entry in kept}
    dy = counted(rng.standard_normal(y.shape))
    backward = executed_flops(model, lambda: model.backward(dy, cache, Gradients()))
    assert [forward, backward] == [{"products": p.products, "sums": p.sums} for p in accounting.flops(model, 3, 5)]


@each_class
@OBLONG
def test_the_frozen_factors_are_copies_that_hold_no_larger_array(cls, n_in, n_out, rng):
    made = cls.start(linear(rng, n_in, n_out), rng=0, r=2)
    for parameter in made.own_parameters().values():
        assert accounting.nbytes(parameter.data) == parameter.data.nbytes


@pytest.mark.parametrize("variant", FROZEN)
def test_an_embedding_is_refused_by_name_and_the_model_stays_as_it_was(variant):
    model = build("llama")
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"embed\.token: this adapter is for a Linear, and this is of type Embedding"):
        attach(model, variant, ["q_proj", "embed"], rng=0)
    assert snapshot(model) == before


@pytest.mark.parametrize(
    ("variant", "options", "message"),
    [
        ("lora-xs", {"r": 13}, "block_0.attention.q_proj: r 13 is above 12, the smaller side of its weight"),
        ("lora-xs", {"targets": {"k_proj": 5}}, "block_0.attention.k_proj: r 5 is above 4, the smaller side"),
        ("lora-xs", {"r": 0}, "r 0 is not a whole number from 1 to"),
        ("lora-xs", {"init": "uniform"}, "lora-xs has no option 'init': choose from alpha, dropout, r, rslora"),
        ("svf", {"r": 13}, "block_0.attention.q_proj: r 13 is above 12, the smaller side of its weight"),
        ("svf", {"r": -1}, "r -1 is not a whole number from 0 to"),
        ("svf", {"alpha": 2}, "svf has no option 'alpha': choose from r"),
        ("lora-fa", {"init": "zero"}, "lora-fa has no init 'zero': choose from uniform, eva, gaussian"),
    ],
)
def test_what_cannot_be_attached_is_refused_by_name_and_the_model_stays_as_it_was(variant, options, message):
    model = build("llama")
    before = snapshot(model)
    with pytest.raises(ValueError, match=message):
        attach(model, variant, **{"rng": 0, **options})
    assert snapshot(model) == before


@pytest.mark.each_value
@pytest.mark.oracle
@each_class
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@OBLONG
def test_outputs_and_gradients_are_those_of_autograd_over_the_merged_weight(cls, bias, n_in, n_out, rng):
    torch = pytest.importorskip("torch")
    made, x = adapter(cls, rng, n_in, n_out, bias=bias), rng.standard_normal((3, 2, n_in))
    y, cache = made.forward(x)
    dy, grads = rng.standard_normal(y.shape), Gradients()
    dx = made.backward(dy, cache, grads)
    leaves = {name: torch.tensor(p.data, requires_grad=p.trainable) for name, p in made.own_parameters().items()}
    t = {name.rpartition("_")[2]: leaf for name, leaf in leaves.items()}
    W, b, there = torch.tensor(made.weight.data), made.base.bias, torch.tensor(x, requires_grad=True)
    if cls is SVFLinear:
        rest = W - t["U"] @ torch.diag(t["S"]) @ t["V"].T
        merged = rest + t["U"] @ torch.diag(t["S"] * t["z"]) @ t["V"].T
    else:
        merged = W + made.scaling * t["B"] @ (t["R"] @ t["A"] if cls is LoRAXSLinear else t["A"])
    out = torch.nn.functional.linear(there, merged, None if b is None else torch.tensor(b.data))
    out.backward(torch.tensor(dy))
    np.testing.assert_allclose(y, out.detach().numpy(), rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(dx, there.grad.numpy(), rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(made.merged()[0], merged.detach().numpy(), rtol=1e-12, atol=1e-13)
    learned = {name for name, leaf in leaves.items() if leaf.grad is not None}
    assert learned == {name for name, p in made.own_parameters().items() if p in grads}
    for name in learned:
        theirs = leaves[name].grad.numpy()
        np.testing.assert_allclose(grads[getattr(made, name)], theirs, rtol=1e-12, atol=1e-13)


@pytest.mark.oracle
@pytest.mark.parametrize("cls", [LoRAFALinear, LoRAXSLinear])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("conv", [False, True], ids=["Linear", "Conv1D"])
def test_outputs_gradients_and_merged_weights_are_those_of_pefts_layer(cls, conv, bias, rng):
    """Of LoRA with A frozen; of TinyLoRA, R = Σ vᵢ Pᵢ, with the r² matrices P that are 1 in one place."""
    torch, hf = pytest.importorskip("torch"), pytest.importorskip("peft")
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D
    fa = cls is LoRAFALinear
    made, x = adapter(cls, rng, bias=bias or conv, **({} if fa else {"alpha": 3})), rng.standard_normal((3, 2, 6))
    inner = conv1d(5, 6) if conv else torch.nn.Linear(6, 5, bias)
    options = {"target_modules": ["0"], "fan_in_fan_out": conv}
    words = hf.LoraConfig(r=3, lora_alpha=5, **options) if fa else hf.TinyLoraConfig(r=3, u=9, **options)
    theirs = hf.get_peft_model(torch.nn.Sequential(inner), words).double()
    wrapped = theirs.base_model.model[0]
    given = {name.rpartition("_")[2]: torch.tensor(p.data) for name, p in made.own_parameters().items()}
    with torch.no_grad():
        wrapped.base_layer.weight.copy_(torch.tensor(made.weight.data.T if conv else made.weight.data))
        if made.base.bias is not None:
            wrapped.base_layer.bias.copy_(torch.tensor(made.base.bias.data))
        if fa:
            wrapped.lora_A["default"].weight.copy_(given["A"]).requires_grad_(False)
            learned = wrapped.lora_B["default"].weight
            learned.copy_(given["B"])
        else:
            wrapped.tinylora_A["default"], wrapped.tinylora_B["default"] = given["A"], given["B"]
            wrapped.tinylora_P["default"] = torch.eye(9, dtype=torch.float64).reshape(9, 3, 3)
            (learned,) = (p for p in theirs.parameters() if p.requires_grad)
            learned.copy_(given["R"].reshape(9))
    there = torch.tensor(x, requires_grad=True)
    out, (y, cache) = theirs(there), made.forward(x)
    dy, grads = rng.standard_normal(y.shape), Gradients()
    dx = made.backward(dy, cache, grads)
    out.backward(torch.tensor(dy))
    np.testing.assert_allclose(y, out.detach().numpy(), rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(dx, there.grad.numpy(), rtol=1e-12, atol=1e-13)
    (ours,) = grads.values()
    np.testing.assert_allclose(ours, learned.grad.numpy().reshape(ours.shape), rtol=1e-12, atol=1e-13)
    theirs.merge_adapter()
    W = made.merged()[0]
    np.testing.assert_allclose(W.T if conv else W, wrapped.base_layer.weight.detach().numpy(), rtol=1e-12)


# ---- LoRA-FA ----


def test_its_file_is_that_of_the_lora_with_the_same_A_and_B_and_is_read_as_one_whose_A_learns(tmp_path):
    model, lora = base("llama"), base("llama")
    paths = attach(model, "lora-fa", rng=2, r=3, alpha=5)
    attach(lora, "lora", rng=2, r=3, alpha=5)
    trained(model)
    for path in paths:
        lora[path].lora_B.data = model[path].lora_B.data
    peft.save_adapter(model, tmp_path / "fa")
    peft.save_adapter(lora, tmp_path / "lora")
    for name in (peft.CONFIG, peft.WEIGHTS):
        assert (tmp_path / "fa" / name).read_bytes() == (tmp_path / "lora" / name).read_bytes()
    loaded = base("llama")
    peft.load_adapter(loaded, tmp_path / "fa")
    assert {type(loaded[path]) for path in paths} == {LoRALinear}
    assert all(loaded[path].lora_A.trainable for path in paths)
    assert np.array_equal(logits(loaded), logits(model))


def test_of_variants_whose_files_say_the_same_the_first_in_the_alphabet_is_read(monkeypatch):
    backwards = dict(reversed(variants().items()))
    assert list(backwards).index("lora-fa") < list(backwards).index("lora")
    monkeypatch.setattr(config, "variants", lambda: backwards)
    assert peft.classes_of({"peft_type": "LORA"}) == [c for c in variants()["lora"] if True in c.keys.inits]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_training_moves_B_alone_and_adapters_on_parts_are_written_as_one(family, tmp_path, rng):
    model = base(family)
    paths = attach(model, "lora-fa", ["q_proj", "v_proj"], rng=2, r=3, alpha=5)
    A = [model[path].lora_A.data.tobytes() for path in paths]
    SGD(model.trainable_parameters()).step(gradients(model, some_batch(rng)))
    assert [model[path].lora_A.data.tobytes() for path in paths] == A
    assert all(model[path].lora_B.data.any() for path in paths)
    peft.save_adapter(model, tmp_path / "a")
    loaded = base(family)
    peft.load_adapter(loaded, tmp_path / "a")
    assert close(logits(loaded), logits(model), 1e-12)


def change(made: Any, optimizer: Any, grads: Gradients) -> np.ndarray:
    before = made.delta()
    optimizer.step(grads)
    return made.delta() - before


@OBLONG
def test_a_preconditioned_step_is_that_of_full_fine_tuning_on_the_rows_of_A_whatever_s_and_the_size_of_A(
    n_in, n_out, rng
):
    steps = []
    for alpha, size in ((5, 1), (0.2, 1), (5, 1e3)):
        made = adapter(LoRAFALinear, np.random.default_rng(3), n_in, n_out, r=3, alpha=alpha)
        made.lora_A.data = size * made.lora_A.data
        G, grads = dense(made, np.random.default_rng(4))
        steps.append(change(made, SGD(made.trainable_parameters(), 0.1, precondition=precondition(made)), grads))
    _, _, Vt = np.linalg.svd(made.lora_A.data, full_matrices=False)
    for step in steps:
        np.testing.assert_allclose(step, -0.1 * G @ Vt.T @ Vt, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-7), (np.float32, 1e-5)])
def test_a_rank_above_the_inputs_leaves_the_whole_step(dtype, tolerance, rng):
    """A Aᵀ has no inverse then: but for 1e-8, which float32 does not see."""
    made = LoRAFALinear(linear(rng, 4, 7), r=6, alpha=5, rng=0)
    made.astype(dtype)
    G, grads = dense(made, rng)
    optimizer = SGD(made.trainable_parameters(), 0.1, precondition=precondition(made))
    step = change(made, optimizer, Gradients({p: g.astype(dtype) for p, g in grads.items()}))
    assert step.dtype == dtype
    assert close(step, -0.1 * G, tolerance)


def test_only_the_B_beside_a_frozen_A_is_preconditioned_and_nothing_is_written_to(rng):
    model, batch = build("gpt2"), some_batch(rng)
    attach(model, "lora-fa", ["q_proj", "down_proj"], rng=0, r=3, train="norm")
    grads = gradients(model, batch)
    before = {p: g.copy() for p, g in grads.items()}
    made = precondition(model)(grads)
    assert list(made) == list(grads)
    assert all(np.array_equal(grads[p], before[p]) for p in grads)
    changed = {name for name, p in model.named_parameters().items() if p in grads and made[p] is not grads[p]}
    assert changed == {name for name in model.named_parameters() if name.endswith("lora_B")}
    lora = build("gpt2")
    attach(lora, "lora", ["down_proj"], rng=0)
    with pytest.raises(ValueError, match="no LoRA of this model has a frozen A to precondition by"):
        precondition(lora)
    lora["block_1.mlp.down_proj"].lora_A.trainable = False
    assert precondition(lora)(gradients(lora, batch))


@pytest.mark.oracle
@pytest.mark.parametrize("decay", [0.0, 0.2])
def test_its_steps_are_those_of_pefts_optimizer_but_for_where_eps_and_decay_stand(decay, rng):
    """PEFT: √v + ε, and the decay after the step. Ours: √v̂ + ε/√(1-β₂ᵗ) is the same, and with η' = η(1 - ηλ) and
    λ' = λ/(1 - ηλ) so is the decay before it."""
    torch, hf = pytest.importorskip("torch"), pytest.importorskip("peft")
    optimizers = pytest.importorskip("peft.optimizers")
    layers = [adapter(LoRAFALinear, rng, 6, 5), adapter(LoRAFALinear, rng, 5, 4, alpha=2)]
    words = {"r": 3, "lora_alpha": 5, "alpha_pattern": {"1": 2}, "target_modules": ["0", "1"]}
    inner = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Linear(5, 4))
    theirs = hf.get_peft_model(inner, hf.LoraConfig(**words)).double()
    wrapped = [theirs.base_model.model[i] for i in range(2)]
    B = [there.lora_B["default"].weight for there in wrapped]
    with torch.no_grad():
        for i, made in enumerate(layers):
            wrapped[i].lora_A["default"].weight.copy_(torch.tensor(made.lora_A.data))
            B[i].copy_(torch.tensor(made.lora_B.data))
            assert wrapped[i].scaling["default"] == made.scaling
    eta = 0.03
    other = optimizers.create_lorafa_optimizer(theirs, r=3, lora_alpha=5, lr=eta, weight_decay=decay)
    assert [name for name, p in theirs.named_parameters() if p.requires_grad and "lora_A" in name] == []

    class Both(Linear):
        def __init__(self) -> None:
            self.one, self.two = layers

    less = 1 - eta * decay
    parameters = {f"{i}": made.lora_B for i, made in enumerate(layers)}
    ours = AdamW(parameters, eta * less, weight_decay=decay / less, precondition=precondition(Both()))
    for t in range(1, 31):
        grads = Gradients({made.lora_B: rng.standard_normal(made.lora_B.data.shape) for made in layers})
        for i, made in enumerate(layers):
            B[i].grad = torch.tensor(grads[made.lora_B])
        ours.eps = 1e-6 / math.sqrt(1 - 0.999**t)
        ours.step(grads)
        other.step()
        for i, made in enumerate(layers):
            np.testing.assert_allclose(made.lora_B.data, B[i].detach().numpy(), rtol=1e-12, atol=1e-12)


def test_in_float32_a_preconditioned_gradient_is_that_of_float64_to_its_last_digits(rng):
    """PEFT 0.21.2 rounds this product to bfloat16 there, by 4e-3."""
    made = adapter(LoRAFALinear, rng, 64, 48, r=8, alpha=16)
    made.astype(np.float32)
    _, grads = dense(made, rng)
    (g32,) = precondition(made)(Gradients({p: g.astype(np.float32) for p, g in grads.items()})).values()
    made.astype(np.float64)
    (g64,) = precondition(made)(Gradients({p: g.astype(np.float32) for p, g in grads.items()})).values()
    assert g32.dtype == np.float32
    assert close(g32, g64, 2e-6)


def test_a_preconditioned_gradient_is_the_same_on_each_array_library(xp, rng):
    made = adapter(LoRAFALinear, rng)
    _, grads = dense(made, rng)
    (here,) = precondition(made)(grads).values()
    made.to(xp)
    (there,) = precondition(made)(Gradients({p: xp.asarray(g) for p, g in grads.items()})).values()
    assert isinstance(there, xp.ndarray)
    np.testing.assert_allclose(to_numpy(there), here, rtol=1e-12)


def run(model: Any, optimizer: Any, **options: Any) -> None:
    rng = np.random.default_rng(5)
    batches = [Batch(ids := rng.integers(0, 13, (2, 5)), ids) for _ in range(6)]
    fit(model, lambda i: batches[i % 6], optimizer=optimizer, description=None, **options)


def test_a_preconditioned_run_resumes_to_the_same_bytes_and_only_with_the_same_precondition(tmp_path):
    def new(preconditioned: bool = True) -> tuple[Any, AdamW]:
        model = build("llama", dtype="float32")
        attach(model, "lora-fa", rng=0, r=3)
        return model, AdamW(
            model.trainable_parameters(), 0.01, precondition=precondition(model) if preconditioned else None
        )

    whole, halves, plain = new(), new(), new(False)
    assert whole[1].settings()["precondition"] == "lora_fa"
    assert plain[1].settings()["precondition"] is None
    run(*whole, steps=6)
    file = tmp_path / "checkpoint.safetensors"

    class Stopped(Exception):
        pass

    def stop(step: int, grads: Gradients) -> None:
        if step == 3:
            raise Stopped

    with pytest.raises(Stopped):
        run(*halves, steps=6, checkpoint=file, checkpoint_every=3, after_step=stop)
    with pytest.raises(ValueError, match="it was started with precondition = 'lora_fa', not None"):
        run(*plain, steps=6, checkpoint=file, resume=True)
    again = new()
    run(*again, steps=6, checkpoint=file, resume=True)
    assert {n: x.tobytes() for n, x in again[0].state_dict().items()} == {
        n: x.tobytes() for n, x in whole[0].state_dict().items()
    }
    run(*plain, steps=6)
    assert not close(plain[0]["block_0.attention.q_proj"].delta(), whole[0]["block_0.attention.q_proj"].delta(), 0.1)


# ---- LoRA-XS ----


@OBLONG
def test_A_and_B_are_of_the_first_singular_values_and_B_A_is_the_best_approximation_of_W(n_in, n_out, rng):
    W = linear(rng, n_in, n_out)
    made = LoRAXSLinear.start(W, rng=0, r=3, alpha=5)
    A, B = made.lora_A.data, made.lora_B.data
    np.testing.assert_allclose(A @ A.T, np.eye(3), atol=1e-14)
    np.testing.assert_allclose(B.T @ B, np.diag(singular_values(W.weight.data)[:3] ** 2), atol=1e-12)
    np.testing.assert_allclose(B @ A, truncated(W.weight.data, 3)[0], atol=1e-13)
    assert not made.lora_R.data.any()


@OBLONG
def test_a_step_from_R_0_moves_W_by_G_between_its_singular_vectors(n_in, n_out, rng):
    """ΔW = -η s² B Bᵀ G Aᵀ A: the outputs count by Σ²."""
    made = LoRAXSLinear.start(linear(rng, n_in, n_out), rng=0, r=3, alpha=5)
    G, grads = dense(made, rng)
    U, S, Vt = svd(made.weight.data)
    expected = -0.1 * made.scaling**2 * (U[:, :3] * S[:3] ** 2) @ U[:, :3].T @ G @ Vt[:3].T @ Vt[:3]
    np.testing.assert_allclose(change(made, SGD(made.trainable_parameters(), 0.1), grads), expected, rtol=1e-10)


def other_svd(W: np.ndarray) -> Any:
    """The same decomposition with other signs, as another machine may find it."""
    U, S, Vt = svd(W)
    signs = np.where(np.arange(len(S)) % 2, 1, -1)
    return type(svd(W))(U * signs, S, signs[:, None] * Vt)


@pytest.mark.parametrize(("variant", "home"), [("lora-xs", lora_xs), ("svf", svf)])
def test_a_file_gives_the_same_logits_where_the_svd_has_other_signs(variant, home, tmp_path, monkeypatch):
    model = base("llama")
    attach(model, variant, ["q_proj", "down_proj"], rng=0, r=3)
    peft.save_adapter(trained(model), tmp_path / "a")
    monkeypatch.setattr(home, "svd", other_svd)
    fresh, loaded = base("llama"), base("llama")
    (path, *_) = attach(fresh, variant, ["q_proj", "down_proj"], rng=0, r=3)
    peft.load_adapter(loaded, tmp_path / "a")
    slot = type(loaded[path]).slots[0].name
    assert not close(getattr(fresh[path], slot).data, getattr(loaded[path], slot).data, 0.5)
    assert np.array_equal(logits(loaded), logits(model))


def test_lora_xs_on_parts_of_a_fused_layer_is_one_on_the_whole_of_the_sum_of_their_ranks(tmp_path, rng):
    model = base("gpt2")
    attach(model, "lora-xs", {"q_proj": 3, "v_proj": 3}, rng=0, alpha=5)
    parts, x = trained(model)["block_0.attention.qkv_proj"], rng.standard_normal((2, 3, 12))
    whole = parts.in_file()
    assert (whole.r, whole.lora_R.data.shape) == (6, (6, 6))
    np.testing.assert_allclose(whole.forward(x)[0], parts.forward(x)[0], atol=1e-13)
    peft.save_adapter(model, tmp_path / "a")
    loaded = base("gpt2")
    peft.load_adapter(loaded, tmp_path / "a")
    assert close(logits(loaded), logits(model), 1e-12)
    model = base("gpt2")
    attach(model, "lora-xs", ["q_proj", "v_proj"], rng=0, r=7)
    with pytest.raises(ValueError, match="r 14 is above 12, the smaller side of its weight"):
        peft.save_adapter(model, tmp_path / "b")


# ---- SVF ----


@OBLONG
def test_all_values_are_the_default_and_the_merged_W_has_the_values_S_z_on_the_same_vectors(n_in, n_out, rng):
    made = adapter(SVFLinear, rng, n_in, n_out, r=0)
    made.svf_z.data = 0.5 + rng.random(4)
    z, U, S, V = made.tensors
    assert z.shape == (4,)
    np.testing.assert_allclose(made.merged()[0], U @ np.diag(S * z) @ V.T, atol=1e-13)
    np.testing.assert_allclose(singular_values(made.merged()[0]), np.sort(S * z)[::-1], rtol=1e-12)


@OBLONG
def test_with_fewer_values_the_others_stay_and_nothing_is_lost(n_in, n_out, rng):
    made = SVFLinear.start(linear(rng, n_in, n_out), rng=0, r=2)
    S = singular_values(made.weight.data)
    assert made.merged()[0].tobytes() == made.weight.data.tobytes()
    made.svf_z.data = np.array([3.0, 2.0])
    expected = np.sort(np.r_[S[:2] * [3, 2], S[2:]])[::-1]
    np.testing.assert_allclose(singular_values(made.merged()[0]), expected, rtol=1e-12)


def test_a_step_on_z_is_that_on_the_singular_values_themselves_times_S_squared(rng):
    """S ∘ z moves by S² ∘ what a step of SGD on it would move it by."""
    made = SVFLinear.start(linear(rng), rng=0)
    G, grads = dense(made, rng)
    _, U, S, V = made.tensors
    step = change(made, SGD(made.trainable_parameters(), 0.1), grads)
    np.testing.assert_allclose(step, U @ np.diag(-0.1 * S**2 * np.diag(U.T @ G @ V)) @ V.T, atol=1e-13)


def test_all_values_are_read_from_a_file_with_and_without_its_base_and_with_equal_values(tmp_path):
    model = base("llama")
    layer = model["block_0.attention.q_proj"]
    layer.weight.data = np.eye(12)  # any orthogonal U = V is right, and z fits one
    attach(model, "svf", ["q_proj", "down_proj"], rng=0)
    trained(model)
    peft.save_adapter(model, tmp_path / "a")
    loaded = base("llama")
    loaded["block_0.attention.q_proj"].weight.data = np.eye(12)
    assert peft.load_adapter(loaded, tmp_path / "a") == ""
    assert np.array_equal(logits(loaded), logits(model))
    says, tensors, _ = peft.read_adapter(tmp_path / "a")
    assert (says["r"], says["peft_type"]) == (0, "SVF")
    deltas = {hf_name(model, path): m.delta() for path, m in model.named_modules() if isinstance(m, Adapter)}
    layers = peft.layers_in(tmp_path / "a", says, tensors)
    assert layers.keys() == deltas.keys()
    assert all(np.array_equal(layers[name].delta(), delta) for name, delta in deltas.items())
    (tmp_path / "a" / peft.CONFIG).write_text(json.dumps(says | {"r": 3}))
    with pytest.raises(ValueError, match="has shape"):
        peft.load_adapter(base("llama"), tmp_path / "a")


def test_svf_on_parts_of_a_fused_layer_runs_and_merges_and_is_not_written_as_the_whole_has_another_svd(tmp_path, rng):
    model = gpt2(Config(31, 2, 12, 3, max_length=16, dtype="float64"), rng)
    attach(model, "svf", ["q_proj", "v_proj"], rng=0)
    before = trained(model).forward(np.arange(7)[None])[0]
    with pytest.raises(ValueError, match="svf on parts of a fused layer cannot be written as an adapter on the whole"):
        peft.save_adapter(model, tmp_path / "a")
    merge(model)
    assert close(model.forward(np.arange(7)[None])[0], before, 1e-12)


# ---- truncation ----


@OBLONG
def test_truncation_loses_the_root_of_the_squares_left_out_and_no_matrix_of_that_rank_is_nearer(n_in, n_out, rng):
    W = rng.standard_normal((n_out, n_in))
    S = singular_values(W)
    for k in range(5):
        W_k, lost = truncated(W, k)
        assert np.linalg.matrix_rank(W_k) == k
        assert lost == pytest.approx(np.linalg.norm(W - W_k), abs=1e-12)
        assert lost == pytest.approx(math.sqrt((S[k:] ** 2).sum()), abs=1e-12)
        for _ in range(20):
            other = W_k + 0.1 * rng.standard_normal((n_out, n_in))
            assert np.linalg.norm(W - truncated(other, k)[0]) >= lost - 1e-12


def test_truncation_changes_what_a_layer_computes_where_svf_changes_nothing(rng):
    layer, x = linear(rng), rng.standard_normal((9, 6))
    y, W = layer.forward(x)[0], layer.weight.data
    svf_layer = SVFLinear.start(copy.deepcopy(layer), rng=0, r=2)
    W_2, lost = truncated(W.astype(np.float32), 2)
    assert W_2.dtype == np.float32
    assert np.array_equal(svf_layer.forward(x)[0], y)
    off = np.linalg.norm(Linear(W_2, layer.bias).forward(x)[0] - y)
    assert 0 < off <= lost * np.linalg.norm(x, 2) * (1 + 1e-6)


@pytest.mark.parametrize("k", [-1, 5])
def test_truncation_refuses_a_k_that_the_weight_has_no_values_for(k, rng):
    with pytest.raises(ValueError, match=f"k = {k} is not from 0 to 4, the singular values that W has"):
        truncated(rng.standard_normal((4, 7)), k)
