"""Distillation: laws of the divergence, of the loss in training, and of a run with a teacher."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from real import real

import minilora
from minilora import ops
from minilora.data import Batch
from minilora.jobs.finetuning import finetune
from minilora.training import distillation, loss_and_gradients
from minilora.training.gradients import split_batch

BOTH = pytest.mark.parametrize("reverse", [False, True])


def functions(reverse):
    return (ops.reverse_kl_forward, ops.reverse_kl_backward) if reverse else (ops.kl_forward, ops.kl_backward)


def logits(seed, n=2, shape=(3, 4, 5)):
    rng = np.random.default_rng(seed)
    return [2 * rng.standard_normal(shape) for _ in range(n)]


@BOTH
@given(st.integers(0, 99), st.floats(0.2, 20))
def test_the_divergence_is_0_with_gradient_0_at_the_teacher_and_above_0_elsewhere(reverse, seed, T):
    (z, t), everywhere = logits(seed), np.ones((3, 4), bool)
    forward, backward = functions(reverse)
    L, cache = forward(t, t, T, everywhere)
    assert abs(L) < 1e-13
    assert np.abs(backward(1.0, cache)).max() < 1e-14
    assert forward(z, t, T, everywhere)[0] > 1e-6


@BOTH
def test_at_a_high_temperature_both_gradients_are_the_difference_of_the_centred_logits(reverse):
    """Hinton et al. (2015), equation 4."""
    (z, t), T = logits(1), 1e5
    forward, backward = functions(reverse)
    dz = backward(1.0, forward(z, t, T, np.ones((3, 4), bool))[1])
    centred = [x - x.mean(axis=-1, keepdims=True) for x in (z, t)]
    np.testing.assert_allclose(dz, (centred[0] - centred[1]) / (12 * 5), rtol=0, atol=5e-6)


def test_with_a_one_hot_teacher_at_temperature_1_it_is_the_cross_entropy():
    (z,), rng = logits(2, 1), np.random.default_rng(3)
    targets = rng.integers(0, 5, (3, 4))
    targets[0, :2] = ops.IGNORE
    t = 1e3 * (np.maximum(targets, 0)[..., None] == np.arange(5))
    L, cache = ops.kl_forward(z, t, 1.0, targets != ops.IGNORE)
    expected, ce_cache = ops.cross_entropy_forward(z, targets)
    np.testing.assert_allclose(L, expected, rtol=1e-12)
    np.testing.assert_allclose(
        ops.kl_backward(0.7, cache), ops.cross_entropy_backward(0.7, ce_cache), rtol=0, atol=1e-15
    )


@BOTH
def test_logits_without_a_label_change_nothing_and_get_no_gradient(reverse):
    (z, t), labelled = logits(4), np.random.default_rng(5).random((3, 4)) < 0.5
    forward, backward = functions(reverse)
    other = np.where(labelled[..., None], z, 1e3)
    (L, cache), (same, _) = forward(z, t, 2.0, labelled), forward(other, t, 2.0, labelled)
    assert same == L
    assert not backward(1.0, cache)[~labelled].any()
    nothing, cache = forward(z, t, 2.0, np.zeros((3, 4), bool))
    assert nothing == 0
    assert not backward(1.0, cache).any()


@pytest.mark.parametrize(("t", "labelled"), [((3, 4, 6), (3, 4)), ((3, 4, 5), (3, 5)), ((12, 5), (3, 4))])
def test_a_teacher_of_other_outputs_is_refused_by_shape(t, labelled):
    with pytest.raises(ValueError, match="need a teacher's of that shape"):
        ops.kl_forward(np.ones((3, 4, 5)), np.ones(t), 1.0, np.ones(labelled, bool))


# ---- in training ----


def model(seed):
    config = minilora.Config(11, n_layers=2, d_model=8, n_heads=2, max_length=8, dtype="float64")
    return minilora.gpt2(config, rng=seed)


@pytest.fixture
def pair():
    student, teacher, rng = model(1), model(2), np.random.default_rng(0)
    minilora.attach_lora(student, ["qkv_proj", "up_proj", "down_proj"], r=2, alpha=3, rng=4)
    for path, parameter in student.trainable_parameters().items():
        parameter.data = parameter.data + 0.3 * rng.standard_normal(parameter.data.shape) * path.endswith("B")
    ids = rng.integers(0, 11, (4, 6))
    targets = np.where(rng.random((4, 6)) < 0.7, rng.integers(0, 11, (4, 6)), ops.IGNORE)
    return student, teacher, Batch(ids, targets)


@BOTH
def test_the_gradient_of_an_adapter_is_the_slope_of_the_loss(pair, reverse):
    student, teacher, batch = pair
    loss, (parameter, *_) = distillation(teacher, 1.7, reverse), student.trainable_parameters().values()
    _, grads = loss_and_gradients(student, batch, loss=loss)
    start, direction, h = parameter.data, np.random.default_rng(6).standard_normal(parameter.data.shape), 1e-5
    ends = []
    for sign in (1, -1):
        parameter.data = start + sign * h * direction
        ends.append(loss_and_gradients(student, batch, loss=loss)[0])
    slope = (ends[0] - ends[1]) / (2 * h)
    np.testing.assert_allclose((grads[parameter] * direction).sum(), slope, rtol=1e-5)


@BOTH
def test_parts_of_a_batch_add_up_to_the_whole(pair, reverse):
    student, teacher, batch = pair
    loss, n = distillation(teacher, 2.5, reverse), int((batch.targets != ops.IGNORE).sum())
    whole, grads = loss_and_gradients(student, batch, loss=loss)
    parts = [loss_and_gradients(student, part, count=n, loss=loss) for part in split_batch(batch, 3)]
    np.testing.assert_allclose(sum(part for part, _ in parts), whole, rtol=1e-12)
    for parameter, gradient in grads.items():
        np.testing.assert_allclose(sum(g[parameter] for _, g in parts), gradient, rtol=0, atol=1e-14)


def test_training_brings_the_student_to_the_teacher_and_leaves_the_teacher_alone(pair):
    student, teacher, batch = pair
    before = {path: data.copy() for path, data in teacher.state_dict().items()}
    loss = distillation(teacher)
    history = minilora.fit(student, lambda i: batch, 100, lr=3e-2, loss=loss, description=None)
    assert history.loss[-1] < 0.5 * history.loss[0]
    assert minilora.evaluate(student, [batch], loss=loss) < history.loss[0]
    assert all(np.array_equal(before[path], data) for path, data in teacher.state_dict().items())


@pytest.mark.parametrize("temperature", [0.0, -1.0, np.inf, np.nan, 1e-30, 1e30])
def test_a_temperature_at_which_nothing_could_be_learned_is_refused(temperature):
    with pytest.raises(ValueError, match=r"temperature = .* is not a number from 0\.001 to 1000"):
        distillation(model(0), temperature)


# ---- a run ----

SMALL = {"steps": 3, "batch": 2, "length": 16, "rank": 2, "seed": 1, "targets": ["q_proj"], "show_data": None}


@pytest.fixture(scope="module")
def teacher_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distil")
    (folder / "text.txt").write_text("".join(f"line {i} of {i * i}\n" for i in range(400)))
    finetune("builtin", str(folder / "text.txt"), folder / "teacher", **SMALL)
    return folder


@pytest.mark.slow
def test_a_run_with_a_teacher_says_it_and_ends_elsewhere_than_one_without(teacher_run):
    text, names = str(teacher_run / "text.txt"), ("plain", "forward", "reverse")
    given = {}, {"teacher": str(teacher_run / "teacher")}, {"teacher": str(teacher_run / "teacher"), "reverse_kl": True}
    for name, more in zip(names, given, strict=True):
        finetune("builtin", text, teacher_run / name, **SMALL, **more)
    adapters = {name: (teacher_run / name / "adapter_model.safetensors").read_bytes() for name in names}
    assert len(set(adapters.values())) == 3
    settings = {name: json.loads((teacher_run / name / "settings.json").read_text()) for name in names}
    assert settings["forward"]["teacher_sha256"] == settings["reverse"]["teacher_sha256"]
    assert "teacher_sha256" not in settings["plain"]


@pytest.mark.slow
def test_a_resumed_run_wants_the_same_teacher(teacher_run):
    text, how = str(teacher_run / "text.txt"), {**SMALL, "teacher": str(teacher_run / "teacher")}
    finetune("builtin", text, teacher_run / "resumed", **how)
    finetune("builtin", text, teacher_run / "resumed", resume=True, **how)
    with pytest.raises(ValueError, match="teacher"):
        finetune("builtin", text, teacher_run / "resumed", resume=True, **how | {"teacher": "builtin"})


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"temperature": 2.0}, "temperature needs a teacher: give --teacher"),
        ({"reverse_kl": True}, "reverse_kl needs a teacher: give --teacher"),
        ({"teacher": "minilm"}, "another tokenizer"),
        ({"teacher": "no/such/folder"}, "no/such/folder"),
    ],
)
def test_what_cannot_teach_is_refused_before_a_folder_is_made(teacher_run, option, message):
    if option.get("teacher") == "minilm":
        real("minilm")
    with pytest.raises((ValueError, OSError), match=message):
        finetune("builtin", str(teacher_run / "text.txt"), teacher_run / "none", **SMALL, **option)
    assert not (teacher_run / "none").exists()
