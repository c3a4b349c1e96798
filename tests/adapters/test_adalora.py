"""AdaLoRA: the layer and its penalty, which triplets are cut and when, files, and PEFT's own over a whole training."""

import json
from typing import Any

import numpy as np
import pytest
from models import build, close
from peft_models import IDS, PADDING, V, base, logits, trained
from small_runs import Killed, bits, quietly, some

import minilora
from minilora import ops
from minilora.adapters import peft, spectrum
from minilora.adapters.adalora import AdaLoRALinear, Allocator
from minilora.adapters.attach import attach, fit_options
from minilora.backend import to_numpy
from minilora.cli import main
from minilora.data import Batch
from minilora.files import load_tensors
from minilora.jobs.finetuning import fit_adapter
from minilora.jobs.settings import Settings
from minilora.models.transformer import Transformer
from minilora.nn import Gradients, Linear, Sequential
from minilora.nn.optim import penalty
from minilora.training import fit
from minilora.verify.laws import held_by

S = 5 / (3 + 1e-5)


def layer(rng: np.random.Generator, n_in: int = 5, n_out: int = 4, bias: bool = True, **options: Any) -> AdaLoRALinear:
    """An adapter off its start."""
    plain = Linear(rng.standard_normal((n_out, n_in)), rng.standard_normal(n_out) if bias else None)
    adapter = AdaLoRALinear.start(plain, rng=0, **{"r": 3, "alpha": 5.0, **options})
    for p in adapter.own_parameters().values():
        p.data = p.data + rng.standard_normal(p.data.shape)
    return adapter


def layers(model: Any) -> dict[str, AdaLoRALinear]:
    return {path: m for path, m in model.named_modules() if isinstance(m, AdaLoRALinear)}


def two_layers(r: int = 4, **options: Any) -> Sequential:
    """W₁ (8, 9) and W₂ (9, 8), with adapters."""
    rng = np.random.default_rng(1)
    model = Sequential({"one": Linear(rng.standard_normal((8, 9))), "two": Linear(rng.standard_normal((9, 8)))})
    attach(model, "adalora", ["one", "two"], rng=2, r=r, **options)
    return model


def steps_of(model: Sequential, allocator: Allocator, steps: int, seed: int = 3) -> list[dict[str, np.ndarray]]:
    """What each of so many steps has left, with random weights and gradients in all that learns."""
    rng, found = np.random.default_rng(seed), []
    for t in range(steps):
        grads = Gradients()
        for p in model.trainable_parameters().values():
            p.data = rng.standard_normal(p.data.shape)
            grads.add(p, rng.standard_normal(p.data.shape))
        allocator(t, grads)
        found.append({path: a.left for path, a in layers(model).items()})
    return found


# ---- the layer ----


def test_e_k_de_k_is_the_share_of_row_A_k_and_of_column_B_k(rng):
    assert held_by(AdaLoRALinear, AdaLoRALinear.laws["eₖ deₖ = ⟨Aₖ, dAₖ⟩ = ⟨Bₖ, dBₖ⟩"], rng) < 1e-13


def test_dA_and_dB_are_zero_at_e_zero_and_de_is_not(rng):
    adapter = AdaLoRALinear.start(Linear(rng.standard_normal((4, 5))), rng=0, r=3)
    y, cache = adapter.forward(rng.standard_normal((6, 5)))
    grads = Gradients()
    adapter.backward(rng.standard_normal(y.shape), cache, grads)
    assert not grads[adapter.lora_A].any()
    assert not grads[adapter.lora_B].any()
    assert grads[adapter.lora_E].all()


def test_it_starts_as_peft_does(rng):
    adapter = AdaLoRALinear.start(Linear(np.zeros((300, 200))), rng=0)
    assert adapter.settings == {
        "r": 12, "alpha": 8.0, "dropout": 0.0, "target_r": 8, "tinit": 0, "tfinal": 0, "deltaT": 1, "beta1": 0.85,
        "beta2": 0.85, "orth_reg_weight": 0.5, "total_step": 1, "mask": (),
    }  # fmt: skip
    A, B, e = adapter.tensors
    assert (A.shape, B.shape, e.shape, e.any()) == ((12, 200), (300, 12), (12,), False)
    for x in (A, B):
        assert abs(x.mean()) < 1e-3
        assert x.std() == pytest.approx(0.02, rel=0.05)


def test_the_scale_is_that_of_the_start_whatever_is_cut(rng):
    assert layer(rng).scaling == S
    assert layer(rng, mask=(False, True, False)).scaling == S
    assert layer(rng, mask=(False, True, False)).sizes == {"n_in": 5, "n_out": 4, "r": 1}


@pytest.mark.oracle
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("conv", [False, True], ids=["Linear", "Conv1D"])
def test_outputs_gradients_and_merged_weights_are_those_of_peft(conv, bias, rng):
    torch, hf = pytest.importorskip("torch"), pytest.importorskip("peft")
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D
    adapter, x = layer(rng, bias=bias or conv), rng.standard_normal((3, 2, 5))
    inner = conv1d(4, 5) if conv else torch.nn.Linear(5, 4, bias)
    config = hf.AdaLoraConfig(init_r=3, lora_alpha=5, total_step=9, target_modules=["0"], fan_in_fan_out=conv)
    theirs = hf.get_peft_model(torch.nn.Sequential(inner), config).double()
    wrapped = theirs.base_model.model[0]
    held = {name: getattr(wrapped, name)["default"] for name in adapter.own_parameters()}
    with torch.no_grad():
        W = adapter.weight.data
        wrapped.base_layer.weight.copy_(torch.tensor(W.T if conv else W))
        if adapter.base.bias is not None:
            wrapped.base_layer.bias.copy_(torch.tensor(adapter.base.bias.data))
        for name, p in adapter.own_parameters().items():
            held[name].copy_(torch.tensor(p.data).reshape(held[name].shape))
    y, cache = adapter.forward(x)
    there = torch.tensor(x, requires_grad=True)
    out = theirs(there)
    dy, grads = rng.standard_normal(y.shape), Gradients()
    dx = adapter.backward(dy, cache, grads)
    out.backward(torch.tensor(dy))
    pairs = [(y, out.detach()), (dx, there.grad)]
    pairs += [(grads[p], held[name].grad.reshape(p.data.shape)) for name, p in adapter.own_parameters().items()]
    theirs.merge_adapter()
    merged = wrapped.base_layer.weight.detach()
    for ours, other in [*pairs, (adapter.merged()[0], merged.T if conv else merged)]:
        np.testing.assert_allclose(ours, other.numpy(), rtol=1e-12, atol=1e-13)


def test_of_a_layer_with_no_triplet_left_the_output_is_the_bases_and_dW_is_of_rank_0(rng):
    adapter = layer(rng, mask=(False, False, False))
    x = rng.standard_normal((6, 5))
    y, cache = adapter.forward(x)
    grads = Gradients()
    dx = adapter.backward(y, cache, grads)
    plain, cb = adapter.base.forward(x)
    assert np.array_equal(y, plain)
    assert np.array_equal(dx, adapter.base.backward(plain, cb, Gradients()))
    assert [g.shape for g in grads.values()] == [(0, 5), (4, 0), (0,)]
    assert not adapter.delta().any()
    assert spectrum.rank_for(spectrum.adapter_singular_values(adapter), 1.0) == 0


# ---- the penalty ----


@pytest.mark.oracle
@pytest.mark.parametrize("squared", [False, True])
def test_the_penalty_and_its_gradients_are_those_of_autograd(squared, rng):
    torch, model = pytest.importorskip("torch"), two_layers(orth_reg_weight=0.3)
    for p in model.trainable_parameters().values():
        p.data = rng.standard_normal(p.data.shape)
    value, grads = Allocator(model, 9, squared=squared).penalty()
    total, held = 0, {}
    for a in layers(model).values():
        A, B = (held.setdefault(p, torch.tensor(p.data, requires_grad=True)) for p in (a.lora_A, a.lora_B))
        for gram in (A @ A.T, B.T @ B):
            norm = torch.norm(gram - torch.eye(4, dtype=gram.dtype), p="fro")
            total = total + (0.3 * norm**2 if squared else 0.3 / 4 * norm)
    total.backward()
    assert value == pytest.approx(total.item(), rel=1e-13)
    assert set(grads) == set(held)
    for p, x in held.items():
        np.testing.assert_allclose(grads[p], x.grad.numpy(), rtol=1e-12, atol=1e-13)


@pytest.mark.oracle
def test_at_orthonormal_rows_the_penalty_has_a_kink_where_its_gradient_is_0_as_in_torch():
    torch, A = pytest.importorskip("torch"), np.eye(3, 5)
    R, E = ops.orthogonality_forward(A)
    there = torch.tensor(A, requires_grad=True)
    torch.norm(there @ there.T - torch.eye(3), p="fro").backward()
    assert R == 0
    assert np.array_equal(ops.orthogonality_gradients(1.3, E, A), there.grad.numpy())
    assert not there.grad.any()


def test_a_frozen_factor_counts_in_the_penalty_and_gets_no_gradient(rng):
    model = two_layers()
    whole, grads = Allocator(model, 9).penalty()
    model["one"].lora_A.trainable = False
    value, fewer = Allocator(model, 9).penalty()
    assert value == whole
    assert set(grads) - set(fewer) == {model["one"].lora_A}


# ---- which triplets are cut, and when ----

SCHEDULES = {  # steps, tinit, tfinal, deltaT, r, target_r
    "a cut every second step": (30, 3, 5, 2, 6, 2),
    "a cut at every step and none held": (12, 0, 0, 1, 5, 2),
    "a last cut between two": (20, 2, 7, 4, 4, 1),
    "few steps": (4, 1, 1, 1, 4, 3),
    "to nothing but one": (25, 0, 10, 3, 6, 1),
    "cuts that are never due": (9, 5, 2, 50, 4, 2),
}


@pytest.mark.oracle
@pytest.mark.parametrize("integers", [False, True], ids=["numbers", "ties"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_triplets_that_are_left_are_those_of_peft_after_every_step(schedule, integers, rng):
    """With small whole numbers many scores are equal; all means are over powers of two, so equal in both libraries."""
    torch, hf = pytest.importorskip("torch"), pytest.importorskip("peft")
    T, tinit, tfinal, deltaT, r, target_r = SCHEDULES[schedule]
    shapes = {"one": (8, 16), "two": (16, 8)}
    model = Sequential({name: Linear(np.zeros(shape)) for name, shape in shapes.items()})
    words = {"tinit": tinit, "tfinal": tfinal, "deltaT": deltaT, "target_r": target_r}
    attach(model, "adalora", list(shapes), rng=0, r=r, total_step=T, **words)
    allocator = Allocator(model, T)
    module = torch.nn.ModuleDict({name: torch.nn.Linear(n_in, n_out) for name, (n_out, n_in) in shapes.items()})
    config = hf.AdaLoraConfig(init_r=r, total_step=T, target_modules=list(shapes), **words)
    theirs = hf.get_peft_model(module, config).double()
    held = {n: p for n, p in theirs.named_parameters() if p.requires_grad}
    assert len(held) == len(model.trainable_parameters())
    cuts = 0
    for t in range(T + 1):
        grads = Gradients()
        for name, p in model.trainable_parameters().items():
            there = held[f"base_model.model.{name}.default"]
            w, dw = (
                rng.integers(-2, 3, p.data.shape) * 1.0 if integers else rng.standard_normal(p.data.shape) for _ in "wd"
            )
            p.data = w
            grads.add(p, dw)
            with torch.no_grad():
                there.copy_(torch.tensor(w).reshape(there.shape))
            there.grad = torch.tensor(dw).reshape(there.shape)
        allocator(t, grads)
        before = config.rank_pattern
        theirs.base_model.update_and_allocate(t)
        for path, adapter in layers(model).items():
            e = held[f"base_model.model.{path}.lora_E.default"].detach().numpy()[:, 0]
            assert np.array_equal(adapter.lora_E.data, e), t
            if config.rank_pattern:
                assert adapter.left.tolist() == config.rank_pattern[f"{path}.lora_E.default"], t
        cuts += config.rank_pattern is not before
    assert cuts > 0
    if not integers and (tfinal or deltaT == 1):
        assert sum(int(a.left.sum()) for a in layers(model).values()) == 2 * target_r


def test_the_budget_is_the_papers_cubic():
    allocator = Allocator(two_layers(6, target_r=2, tinit=3, tfinal=5), 30)
    assert (allocator.b_0, allocator.b_T) == (12, 4)
    assert [allocator.budget(t) for t in (3, 4, 14, 24, 25)] == [12, 10, 5, 4, 4]


def test_what_is_cut_may_come_back_before_the_last_cut_and_not_after():
    model = two_layers(8, target_r=1, tinit=1, tfinal=4, deltaT=3)
    left = steps_of(model, Allocator(model, 16), 16)
    patterns = [tuple(np.concatenate(list(step.values()))) for step in left]
    assert [sum(pattern) for pattern in patterns] == [16] * 3 + [9] * 3 + [4] * 3 + [2] * 7
    assert any(new and not old for new, old in zip(patterns[6], patterns[3], strict=True))
    assert set(patterns[12:]) == {patterns[12]}
    assert all(np.array_equal(a.lora_E.data != 0, a.left) for a in layers(model).values())


def test_where_r_is_target_r_or_below_nothing_is_cut():
    for target in (4, 6):
        model = two_layers(4, target_r=target, tfinal=2)
        left = steps_of(model, Allocator(model, 9), 9)
        assert all(mask.all() for step in left for mask in step.values())
        assert all(a.lora_E.data.all() and a.in_file() is a for a in layers(model).values())


@pytest.mark.oracle
def test_where_r_is_target_r_peft_fails():
    torch, hf = pytest.importorskip("torch"), pytest.importorskip("peft")
    config = hf.AdaLoraConfig(init_r=4, target_r=4, total_step=9, target_modules=["0"])
    theirs = hf.get_peft_model(torch.nn.Sequential(torch.nn.Linear(5, 4)), config)
    theirs(torch.ones(1, 5)).sum().backward()
    theirs.base_model.update_and_allocate(0)
    with pytest.raises(RuntimeError, match="kthvalue"):
        theirs.base_model.update_and_allocate(1)


def test_the_importance_is_of_the_weights_after_the_step_and_the_gradients_of_before():
    model, rng = two_layers(), np.random.default_rng(0)
    allocator, p = Allocator(model, 9), model["one"].lora_E
    mean = deviation = 0
    for t in range(3):
        p.data, g = rng.standard_normal(4), rng.standard_normal(4)
        allocator(t, Gradients({p: g}))
        mean = 0.85 * mean + 0.15 * abs(p.data * g)
        deviation = 0.85 * deviation + 0.15 * abs(abs(p.data * g) - mean)
        np.testing.assert_allclose(allocator.scores()["one"], mean * deviation, rtol=1e-13)
        assert not allocator.scores()["two"].any()
        if t:
            break


def test_penalty_and_cuts_run_on_each_array_library_and_keep_float32(xp):
    found = []
    for library in (np, xp):
        model = two_layers(target_r=2, tfinal=2)
        model.astype(np.float32)
        model.to(library)
        allocator, rng = Allocator(model, 6), np.random.default_rng(0)
        for p in model.trainable_parameters().values():
            p.data = library.asarray(rng.standard_normal(p.data.shape, dtype=np.float32))
        for t in range(6):
            value, grads = allocator.penalty()
            for a in layers(model).values():
                grads.add(a.lora_E, library.asarray(rng.standard_normal(4, dtype=np.float32)))
            allocator(t, grads)
        arrays = [*(p.data for p in model.parameters()), *grads.values(), *allocator.mean.values()]
        assert {type(x) for x in arrays} == {library.ndarray}
        assert {x.dtype for x in arrays} == {np.dtype(np.float32)}
        found.append((float(to_numpy(value)), [a.left.tolist() for a in layers(model).values()]))
    assert found[0][1] == found[1][1]
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)


# ---- training ----


def classifier(**options: Any) -> Transformer:
    """A small BERT with AdaLoRA on all attention, and a classifier that is trained whole."""
    model = base("bert", "classify")
    attach(model, "adalora", ["q_proj", "v_proj", "up_proj"], rng=0, train=["classifier"], r=4, alpha=5.0, **options)
    return model


def texts(i: int) -> Batch:
    rng = np.random.default_rng([7, i])
    return Batch(rng.integers(2, V, IDS.shape), rng.integers(0, 3, len(IDS)), PADDING)


def their_classifier(model: Transformer, folder: Any, **words: Any) -> Any:
    """PEFT's AdaLoRA on the same base in float64, at the same start."""
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    hf = pytest.importorskip("peft")
    minilora.save_pretrained(base("bert", "classify"), folder / "base")
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder / "base", dtype=torch.float64, attn_implementation="eager", num_labels=3
    )
    config = hf.AdaLoraConfig(
        init_r=4, lora_alpha=5.0, target_modules=["query", "value", "intermediate.dense"], **words
    )
    theirs = hf.get_peft_model(theirs, config).double().eval()  # without dropout
    with torch.no_grad():
        for ours, other in pairs(model, theirs):
            other.copy_(torch.tensor(ours.data).reshape(other.shape))
    for name, p in theirs.named_parameters():
        if ".ranknum." in name:
            p.requires_grad = False
    return theirs


OF_BERT = {"attention.q_proj": "attention.self.query", "attention.v_proj": "attention.self.value",
           "mlp.up_proj": "intermediate.dense"}  # fmt: skip


def in_bert(path: str) -> str:
    block, _, name = path.partition(".")
    return f"bert.encoder.layer.{block.removeprefix('block_')}.{OF_BERT[name]}"


def pairs(model: Transformer, theirs: Any) -> list[tuple[Any, Any]]:
    """(our Parameter, theirs) of all adapters."""
    held = dict(theirs.named_parameters())
    return [
        (p, held[f"base_model.model.{in_bert(path)}.{name}.default"])
        for path, a in layers(model).items()
        for name, p in a.own_parameters().items()
    ]


@pytest.mark.oracle
def test_a_training_has_the_losses_cuts_and_parameters_of_peft_step_by_step(tmp_path):
    torch = pytest.importorskip("torch")
    T, words = 20, {"target_r": 2, "tinit": 3, "tfinal": 6, "deltaT": 4, "orth_reg_weight": 0.3, "total_step": 20}
    model = classifier(**words)
    theirs = their_classifier(model, tmp_path, task_type="SEQ_CLS", **words)
    allocator, cuts = Allocator(model, T), []

    def after_step(t: int, grads: Gradients) -> None:
        allocator(t, grads)
        cuts.append({in_bert(path): a.left.tolist() for path, a in layers(model).items()})

    history = fit(
        model, texts, T, lr=3e-2, clip=0.5, penalty=allocator.penalty, after_step=after_step, description=None
    )
    optimizer = torch.optim.AdamW([p for p in theirs.parameters() if p.requires_grad], lr=3e-2, weight_decay=0.0)
    losses, patterns = [], []
    for t in range(T):
        batch = texts(t)
        ids = torch.tensor(np.where(PADDING, batch.ids, 0))
        out = theirs(input_ids=ids, attention_mask=torch.tensor(PADDING).long(), labels=torch.tensor(batch.targets))
        out.loss.backward()
        torch.nn.utils.clip_grad_norm_([p for p in theirs.parameters() if p.requires_grad], 0.5)
        optimizer.step()
        theirs.base_model.update_and_allocate(t)
        optimizer.zero_grad()
        losses.append(out.loss.item())
        pattern = theirs.peft_config["default"].rank_pattern or {}
        patterns.append({name.removesuffix(".lora_E.default"): mask for name, mask in pattern.items()})
    np.testing.assert_allclose(history.loss, losses, rtol=1e-9)
    assert [pattern or cuts[0] for pattern in patterns] == cuts
    changes = [t for t in range(1, T) if cuts[t] != cuts[t - 1]]
    assert changes == [4, 8, 12, 14]
    assert sum(sum(mask) for mask in cuts[-1].values()) == 2 * 6
    assert len({sum(mask) for mask in cuts[-1].values()}) > 1  # more in one layer than in another
    for ours, other in pairs(model, theirs):
        np.testing.assert_allclose(ours.data.reshape(other.shape), other.detach().numpy(), rtol=1e-6, atol=1e-9)


@pytest.mark.oracle
def test_the_penalty_is_a_part_of_the_loss_and_without_a_task_type_peft_leaves_it_out(tmp_path):
    torch, model = pytest.importorskip("torch"), classifier()
    batch = texts(0)
    history = fit(model, texts, 1, lr=1e-9, **fit_options(model, 1), description=None)
    plain = fit(classifier(), texts, 1, lr=1e-9, description=None)
    value, _ = Allocator(classifier(), 1).penalty()
    assert history.loss[0] - plain.loss[0] == pytest.approx(value, rel=1e-12)
    found = {}
    for task in ("SEQ_CLS", None):
        theirs = their_classifier(classifier(), tmp_path / str(task), task_type=task, total_step=9)
        ids = torch.tensor(np.where(PADDING, batch.ids, 0))
        with torch.no_grad():
            found[task] = theirs(
                input_ids=ids, attention_mask=torch.tensor(PADDING).long(), labels=torch.tensor(batch.targets)
            ).loss.item()
    assert found["SEQ_CLS"] == pytest.approx(history.loss[0], rel=1e-12)
    assert found[None] == pytest.approx(plain.loss[0], rel=1e-12)  # and says nothing


@pytest.mark.oracle
def test_beside_a_base_in_bfloat16_peft_trains_the_rank_that_no_file_holds_and_here_s_is_a_constant(tmp_path, rng):
    torch, hf = pytest.importorskip("torch"), pytest.importorskip("peft")
    config = hf.AdaLoraConfig(init_r=3, lora_alpha=5, total_step=9, target_modules=["0"])
    theirs = hf.get_peft_model(torch.nn.Sequential(torch.nn.Linear(5, 4)).bfloat16(), config)
    assert any("ranknum" in name for name, p in theirs.named_parameters() if p.requires_grad)
    theirs.save_pretrained(tmp_path)
    assert not any("ranknum" in name for name in load_tensors(tmp_path / peft.WEIGHTS)[0])
    adapter = layer(rng)
    assert set(adapter.trainable_parameters()) == {"lora_A", "lora_B", "lora_E"}
    assert adapter.scaling == S


def test_a_run_that_is_killed_and_resumed_ends_with_the_bytes_of_one_that_never_was(tmp_path):
    def run(path: Any, at: int, resume: bool = False) -> dict[str, bytes]:
        def batches(i: int) -> Batch:
            if i == at:
                raise Killed
            return some(i)

        model = build("llama", dtype="float32")
        attach(model, "adalora", "all-linear", rng=0, r=3, target_r=1, tinit=2, tfinal=4, deltaT=3, total_step=14)
        options = fit_options(model, 14)
        quietly(model, batches, 14, lr=1e-2, checkpoint=path, checkpoint_every=1, resume=resume, **options)
        peft.save_adapter(model, path.with_suffix(""))
        names = peft.CONFIG, peft.WEIGHTS
        return bits(model) | {name: (path.with_suffix("") / name).read_bytes() for name in names}

    whole = run(tmp_path / "whole.safetensors", -1)
    assert any(not mask for pattern in json.loads(whole[peft.CONFIG])["rank_pattern"].values() for mask in pattern)
    for at in (2, 5, 8, 12):  # before a cut, between two, and after the last
        path = tmp_path / f"{at}.safetensors"
        with pytest.raises(Killed):
            run(path, at)
        assert run(path, -1, resume=True) == whole
        assert path.read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


def test_a_checkpoint_is_of_a_run_with_the_same_state_after_a_step_and_without_one_holds_none(tmp_path):
    model = two_layers_of_llama()
    quietly(model, steps=4, checkpoint=tmp_path / "with", **fit_options(model, 4))
    quietly(two_layers_of_llama(), steps=4, checkpoint=tmp_path / "without")
    assert any(name.startswith("after_step.left.") for name in load_tensors(tmp_path / "with")[0])
    assert not any(name.startswith("after_step") for name in load_tensors(tmp_path / "without")[0])
    for name, with_state in (("with", False), ("without", True)):
        model = two_layers_of_llama()
        before, options = bits(model), fit_options(model, 4) if with_state else {}
        with pytest.raises(ValueError, match="is not a checkpoint of this run: the names of the tensors do not fit"):
            quietly(model, steps=4, checkpoint=tmp_path / name, resume=True, **options)
        assert bits(model) == before


def two_layers_of_llama() -> Transformer:
    model = build("llama", dtype="float32")
    attach(model, "adalora", ["q_proj"], rng=0, r=3, target_r=1)
    return model


def test_what_trains_any_adapter_trains_this_one_with_its_penalty_and_cuts():
    model, settings = classifier(target_r=1), Settings(lr=1e-2, schedule="constant", warmup=0)
    fit_adapter(model, texts, 12, settings, description=None)
    assert {a.total_step for a in layers(model).values()} == {12}
    assert sum(int((a.lora_E.data != 0).sum()) for a in layers(model).values()) == 6


def test_only_who_needs_a_penalty_gets_one_and_another_is_added(rng):
    lora = build("llama")
    attach(lora, "lora", rng=0, r=2)
    assert fit_options(lora, 9) == {}
    assert fit_options(lora, 9, penalty([])).keys() == {"penalty"}
    model = two_layers()
    l2 = penalty(list(model.trainable_parameters().values()), l2=0.1)
    (R, dR), (S, dS) = l2(), fit_options(model, 9)["penalty"]()
    value, grads = fit_options(model, 9, l2)["penalty"]()
    assert value == R + S
    for p in grads:
        np.testing.assert_allclose(grads[p], dR[p] + dS.get(p, 0.0))


# ---- files ----


def cut_model(family: str, **options: Any) -> Transformer:
    """Trained, and cut to other ranks in other layers: to none at all in one of them."""
    model = base(family, "classify" if family == "bert" else "lm")
    attach(model, "adalora", ["qkv_proj", "up_proj"] if family == "gpt2" else ["k_proj", "v_proj", "up_proj"], rng=2,
           r=3, alpha=5.0, total_step=9, **options)  # fmt: skip
    trained(model)
    rng = np.random.default_rng(5)
    for i, adapter in enumerate(layers(model).values()):
        adapter.left = rng.random(3) < 0.5 if i else np.zeros(3, dtype=bool)
    Allocator(model, 9).zero()
    return model


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_the_triplets_that_are_left_come_back_to_the_bit_with_the_same_scale(family, tmp_path):
    model = cut_model(family)
    peft.save_adapter(model, tmp_path / "a")
    loaded = base(family, model.config.head)
    peft.load_adapter(loaded, tmp_path / "a")
    assert close(logits(loaded), logits(model), 1e-14)
    for path, adapter in layers(model).items():
        again = layers(loaded)[path]
        assert again.mask == (() if adapter.left.all() else tuple(adapter.left.tolist()))
        assert len(again.lora_E.data) == adapter.left.sum()
        assert again.scaling == adapter.scaling
    peft.save_adapter(loaded, tmp_path / "b")
    for name in (peft.CONFIG, peft.WEIGHTS):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_peft_reads_what_is_left_with_the_same_logits_and_writes_the_same(family, tmp_path):
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    hf, model = pytest.importorskip("peft"), cut_model(family)
    minilora.save_pretrained(base(family, model.config.head), tmp_path / "base")
    auto = transformers.AutoModelForCausalLM
    words: dict[str, Any] = {}
    if family == "bert":
        auto, words = transformers.AutoModelForSequenceClassification, {"num_labels": 3}
    theirs = auto.from_pretrained(tmp_path / "base", dtype=torch.float64, attn_implementation="eager", **words)
    peft.save_adapter(model, tmp_path / "a")
    theirs = hf.PeftModel.from_pretrained(theirs, tmp_path / "a").double().eval()
    ids = torch.tensor(np.where(PADDING, IDS, 0))
    with torch.no_grad():
        out = theirs(input_ids=ids, attention_mask=torch.tensor(PADDING).long()).logits.numpy()
    where = PADDING if out.ndim == 3 else slice(None)
    assert close(logits(model)[where], out[where], 1e-12)
    theirs.save_pretrained(tmp_path / "back")
    ours, back = load_tensors(tmp_path / "a" / peft.WEIGHTS)[0], load_tensors(tmp_path / "back" / peft.WEIGHTS)[0]
    assert ours.keys() == back.keys()
    assert all(np.array_equal(ours[name], back[name]) for name in ours)
    patterns = [json.loads((tmp_path / x / peft.CONFIG).read_text())["rank_pattern"] for x in ("a", "back")]
    assert patterns[0] == patterns[1]


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")
def test_what_peft_wrote_after_its_cuts_loads_with_the_same_logits(tmp_path):
    torch, words = pytest.importorskip("torch"), {"target_r": 2, "tfinal": 3, "total_step": 9}
    theirs = their_classifier(classifier(), tmp_path, task_type="SEQ_CLS", **words)
    generator = torch.Generator().manual_seed(0)
    for t in range(9):
        for name, p in theirs.named_parameters():
            if "lora_" in name:
                p.data = torch.randn(p.shape, generator=generator, dtype=p.dtype)
                p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)
        theirs.base_model.update_and_allocate(t)
    theirs.save_pretrained(tmp_path / "theirs")
    model = base("bert", "classify")
    peft.load_adapter(model, tmp_path / "theirs")
    with torch.no_grad():
        ids = torch.tensor(np.where(PADDING, IDS, 0))
        out = theirs(input_ids=ids, attention_mask=torch.tensor(PADDING).long()).logits.numpy()
    assert close(logits(model), out, 1e-12)
    assert sum(len(a.lora_E.data) for a in layers(model).values()) == 2 * 6
    assert {a.scaling for a in layers(model).values()} == {5 / (4 + 1e-5)}


def test_a_triplet_that_came_back_is_written_so_that_a_file_has_the_logits_of_its_model(tmp_path):
    """PEFT cuts the file by its last mask all the same, and the reload is another model."""
    model = cut_model("llama")
    adapter = model["block_1.attention.k_proj"]
    adapter.left = np.array([True, False, False])
    adapter.lora_E.data = np.array([0.5, 0.0, 0.25])
    peft.save_adapter(model, tmp_path / "a")
    loaded = base("llama")
    peft.load_adapter(loaded, tmp_path / "a")
    assert loaded["block_1.attention.k_proj"].mask == (True, False, True)
    assert close(logits(loaded), logits(model), 1e-14)


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore:.*rank_pattern keys did not match")  # PEFT's warning, of its own file
def test_peft_writes_a_file_without_what_came_back_which_is_another_model(tmp_path):
    torch, hf = pytest.importorskip("torch"), pytest.importorskip("peft")
    config = hf.AdaLoraConfig(init_r=4, target_r=1, deltaT=2, total_step=9, target_modules=["0"])
    plain, x = torch.nn.Sequential(torch.nn.Linear(5, 4)), torch.ones(1, 5)
    theirs = hf.get_peft_model(plain, config)
    for t in range(4):  # a cut after step 2, a step, and no cut
        for p in theirs.parameters():
            if p.requires_grad:
                p.data = torch.randn(p.shape, generator=torch.Generator().manual_seed(t))
                p.grad = torch.ones_like(p)
        theirs.base_model.update_and_allocate(t)
    y = theirs(x).detach()
    theirs.save_pretrained(tmp_path)
    again = hf.PeftModel.from_pretrained(torch.nn.Sequential(plain[0].base_layer), tmp_path)
    assert not torch.allclose(again(x), y, rtol=1e-2)


def test_what_was_loaded_can_be_cut_again_and_its_mask_is_of_the_triplets_of_the_start(rng):
    adapter = layer(rng, mask=(True, False, True))
    adapter.left = np.array([False, True])
    adapter.lora_E.data = adapter.lora_E.data * adapter.left
    short = adapter.in_file()
    assert short.mask == (False, False, True)
    assert short.scaling == adapter.scaling
    np.testing.assert_allclose(short.delta(), adapter.delta(), rtol=1e-13)
    assert adapter.mask == (True, False, True)  # and is as it was
    assert short.in_file() is short


def test_writing_changes_nothing_of_what_learns(tmp_path):
    model = cut_model("bert", train=["bias"])
    learns = set(model.trainable_parameters())
    assert any(name.endswith("bias") for name in learns)
    peft.save_adapter(model, tmp_path / "a")
    assert set(model.trainable_parameters()) == learns


def test_parts_of_a_fused_layer_are_written_as_one_with_the_triplets_of_all(tmp_path):
    model = base("gpt2")
    attach(model, "adalora", ["q_proj", "v_proj"], rng=2, r=3, alpha=5.0, total_step=9)
    trained(model)
    parts, x = model["block_0.attention.qkv_proj"], np.random.default_rng(0).standard_normal((5, 12))
    v = layers(model)["block_0.attention.qkv_proj.v_proj"]
    v.left = np.array([True, False, True])
    v.lora_E.data = v.lora_E.data * v.left
    whole = parts.in_file()
    assert (whole.r, whole.mask) == (6, (True, True, True, True, False, True))
    assert whole.scaling == pytest.approx(v.scaling, rel=1e-15)
    np.testing.assert_allclose(whole.forward(x)[0], parts.forward(x)[0], atol=1e-13)
    peft.save_adapter(model, tmp_path / "a")
    loaded = base("gpt2")
    peft.load_adapter(loaded, tmp_path / "a")
    assert close(logits(loaded), logits(model), 1e-12)
    other = base("gpt2")
    attach(other, "adalora", ["q_proj"], rng=2, r=3)
    attach(other, "adalora", ["v_proj"], rng=2, r=2)
    with pytest.raises(ValueError, match="the parts of a fused layer differ in their options"):
        other["block_0.attention.qkv_proj"].in_file()


def test_info_says_the_ranks_that_are_left_and_those_of_a_rank_pattern(tmp_path, capsys):
    peft.save_adapter(cut_model("llama"), tmp_path / "a")
    masks = json.loads((tmp_path / "a" / peft.CONFIG).read_text())["rank_pattern"]
    ranks = dict(part.split() for part in peft.describe_adapter(tmp_path / "a")["ranks"].split(", "))
    assert len(masks) < len(ranks) == 6
    assert ranks == dict.fromkeys(ranks, "3") | {n.removesuffix(".lora_E"): str(sum(m)) for n, m in masks.items()}
    assert main(["info", str(tmp_path / "a")]) == 0
    assert "model.layers.0.self_attn.k_proj 0" in " ".join(capsys.readouterr().out.split())
    whole = base("llama")
    attach(whole, "adalora", rng=0, r=3)
    peft.save_adapter(whole, tmp_path / "b")
    assert "ranks" not in peft.describe_adapter(tmp_path / "b")


K = "model.layers.0.self_attn.k_proj.lora_E"
DAMAGES: dict[str, tuple[dict[str, Any], str]] = {
    "no mapping": ({"rank_pattern": [True]}, "rank_pattern maps names of tensors to lists, and is"),
    "a number for a mask": ({"rank_pattern": {K: 3}}, "rank_pattern: mask 3 is not a list of true and false"),
    "numbers in a mask": ({"rank_pattern": {K: [1, 0, 1]}}, "is not a list of true and false"),
    "no mask": ({"rank_pattern": {K: None}}, "mask None is not a list of true and false"),
    "a short mask": ({"rank_pattern": {K: [True]}}, "mask has 1 entries, and must have one for each of r = 3"),
    "another layer": ({"rank_pattern": {K.replace("0", "9"): [True] * 3}}, "rank_pattern: nothing in this llama"),
    "another tensor": ({"rank_pattern": {K.replace("_E", "_A"): [True] * 3}}, "rank_pattern: nothing in this llama"),
    "a mask of another number": ({"rank_pattern": {K: [True, False, False]}}, "has shape"),
    "no steps": ({"total_step": 0}, "total_step: total_step 0 is not a whole number from 1"),
    "no step to cut in": ({"tinit": 9}, "tinit 9 and tfinal 0 leave no step to cut in"),
    "beta": ({"beta1": 1.0}, "beta1 1.0 is not between 0 and 1"),
    "alpha": ({"lora_alpha": 0}, "alpha 0 is not above 0: PEFT would take r in its place"),
    "a penalty below 0": ({"orth_reg_weight": -1}, "orth_reg_weight -1 is below 0"),
    "dora": ({"use_dora": True}, "use_dora = True is not supported"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_config_that_is_damaged_is_refused_by_its_key_and_the_model_stays_as_it_was(name, tmp_path):
    change, says = DAMAGES[name]
    model = base("llama")
    attach(model, "adalora", ["k_proj"], rng=0, r=3, total_step=9)
    peft.save_adapter(trained(model), tmp_path / "a")
    file = tmp_path / "a" / peft.CONFIG
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    plain = base("llama")
    before = bits(plain)
    with pytest.raises(ValueError, match=says):
        peft.load_adapter(plain, tmp_path / "a")
    assert bits(plain) == before
    assert not layers(plain)


# ---- what is refused ----


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_r": 0}, "target_r 0 is not a whole number from 1"),
        (
            {"tinit": 5, "tfinal": 2, "total_step": 7},
            "tinit 5 and tfinal 2 leave no step to cut in: total_step 7 must be above their sum",
        ),
        ({"alpha": -1.0}, "alpha -1.0 is not above 0"),
        ({"beta2": 0.0}, "beta2 0.0 is not between 0 and 1"),
        ({"orth_reg_weight": -0.5}, "orth_reg_weight -0.5 is below 0"),
        ({"mask": (True, False)}, "mask has 2 entries, and must have one for each of r = 12"),
        ({"mask": 3}, "mask 3 is not a list of true and false"),
        ({"targets": ["embed"]}, "this adapter is for a Linear, and this is of type Embedding"),
        ({"targets": {"q_proj": 3}}, "adalora has no rank for each layer"),
    ],
)
def test_an_attach_that_fails_says_why_and_leaves_the_model_as_it_was(options, message):
    model = build("llama")
    before = bits(model)
    with pytest.raises(ValueError, match=message):
        attach(model, "adalora", **{"rng": 0, **options})
    assert bits(model) == before


def test_an_allocator_says_what_it_cannot_schedule():
    lora = build("llama")
    attach(lora, "lora", rng=0, r=2)
    with pytest.raises(ValueError, match="the model has no AdaLoRA: attach"):
        Allocator(lora, 9)
    with pytest.raises(ValueError, match="tinit 3 and tfinal 4 leave no step to cut in: total_step 7 must be"):
        Allocator(two_layers(tinit=3, tfinal=4, total_step=9), 7)
    model = build("llama")
    attach(model, "adalora", ["q_proj"], rng=0, r=3)
    attach(model, "adalora", ["v_proj"], rng=0, r=3, target_r=4)
    with pytest.raises(ValueError, match="the adapters differ in one of target_r, tinit, "):
        Allocator(model, 9)
