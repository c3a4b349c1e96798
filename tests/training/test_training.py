"""The training loop: gradients of shards, evaluation, fit, and losses that are not finite."""

import json
import signal
import tracemalloc
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import examples
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import ONE_TEXT, build, each_family
from small_runs import bits, learner, quietly, some

from minilora.data import Batch, all_windows, bigram_bits_per_byte, excerpts, zlib_bits_per_byte
from minilora.data import bits as bits_per_token
from minilora.data import english as english_text
from minilora.jobs.pretraining import RECIPE, SHAPE, recipe_optimizer
from minilora.models.families.llama import llama
from minilora.models.pretrained import load_pretrained
from minilora.models.sources import BUILTIN
from minilora.models.transformer import Transformer
from minilora.nn import Gradients, Inputs, Linear, Parameter, Sequential, Tanh
from minilora.nn.optim import SGD, clip_by_global_norm
from minilora.ops import IGNORE, cross_entropy_backward, cross_entropy_forward
from minilora.training import evaluate, fit, loss_and_gradients, sharded_loss_and_gradients
from minilora.training.gradient_sum import GradientSum
from minilora.training.gradients import split_batch

few = settings(max_examples=examples.count(25), deadline=None, derandomize=True)


def together(batches: list[Batch]) -> Batch:
    return Batch(*(None if parts[0] is None else np.concatenate(parts) for parts in zip(*batches, strict=True)))


def sharded(model: Transformer, batches: list[Batch], shards: int, seed: int = 0) -> tuple[Any, Gradients]:
    with ThreadPoolExecutor(shards) as pool:
        return sharded_loss_and_gradients(pool, shards, model, batches, [seed])


def assert_close(one: tuple[Any, Gradients], other: tuple[Any, Gradients], tolerance: float) -> None:
    assert float(one[0]) == pytest.approx(float(other[0]), rel=tolerance, abs=tolerance)
    assert one[1].keys() == other[1].keys()
    for parameter, g in other[1].items():
        assert np.abs(one[1][parameter] - g).max() <= tolerance * (1 + np.abs(g).max())


def assert_same(one: tuple[Any, Gradients], other: tuple[Any, Gradients]) -> None:
    assert one[0] == other[0]
    assert one[1].keys() == other[1].keys()
    assert all(np.array_equal(one[1][parameter], g) for parameter, g in other[1].items())


# ---- a batch, whole and in parts ----


@few
@given(
    family=st.sampled_from(ONE_TEXT),
    shards=st.integers(1, 3),
    rows=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    T=st.integers(1, 6),
    padded=st.booleans(),
    seed=st.integers(0, 99),
)
def test_shards_and_accumulated_batches_sum_to_the_whole_batch(family, shards, rows, T, padded, seed):
    model = build(family)
    batches = [some(seed + i, B, T, padded) for i, B in enumerate(rows)]
    assert_close(sharded(model, batches, shards), loss_and_gradients(model, together(batches)), 1e-12)


@each_family
def test_in_float32_they_sum_to_it_within_rounding(family):
    model, batches = build(family, dtype="float32"), [some(i, padded=True) for i in range(2)]
    assert_close(sharded(model, batches, 3), loss_and_gradients(model, together(batches)), 1e-5)


@few
@given(B=st.integers(1, 6), shards=st.integers(1, 8), padded=st.booleans())
def test_the_shards_of_a_batch_hold_every_row_once_with_its_labels_padding_and_segments(B, shards, padded):
    batch = some(0, B, padded=padded)
    parts = split_batch(batch, shards)
    assert len(parts) == min(shards, B)
    for whole, again in zip(batch, together(parts), strict=True):
        assert np.array_equal(whole, again) if whole is not None else again is None


@pytest.mark.parametrize("shards", [1, 2, 3])
def test_a_number_of_shards_and_a_seed_fix_every_bit_with_dropout_too(shards):
    model, batches = learner(dropout=0.5), [some(0), some(1)]
    first = sharded(model, batches, shards, seed=7)
    assert_same(first, sharded(model, batches, shards, seed=7))
    assert first[0] != sharded(model, batches, shards, seed=8)[0]


class Backwards(Executor):
    """Runs the last call first, as if its thread were the fastest."""

    def map(self, function, *arguments):
        return reversed([function(*call) for call in reversed(list(zip(*arguments, strict=True)))])


@pytest.mark.parametrize("family", ["gpt2", "llama", "t5", "modernbert"])
def test_which_shard_is_faster_changes_no_bit_of_the_sum_and_no_gradient_of_another_parameter(family):
    model = build(family, dtype="float32")
    batches = [some(i, B=2, padded=True) for i in range(3)]
    if family == "t5":
        batches = [batch._replace(source=batch.ids, source_padding=batch.padding, padding=None) for batch in batches]
    first = sharded(model, batches, 2, seed=7)
    assert_same(first, sharded_loss_and_gradients(Backwards(), 2, model, batches, [7]))
    assert list(first[1]) == list(sharded_loss_and_gradients(Backwards(), 2, model, batches, [7])[1])
    own = [loss_and_gradients(model, part, count=30)[1] for batch in batches for part in split_batch(batch, 2)]
    for parameter, total in first[1].items():  # a sum that was formed in place has its own array
        assert not any(np.shares_memory(total, other) for p, other in first[1].items() if p is not parameter)
        alone = sum(grads[parameter].astype("float64") for grads in own[1:]) + own[0][parameter]
        scale = 30 / sum(int((batch.targets != IGNORE).sum()) for batch in batches)
        np.testing.assert_allclose(total, scale * alone, rtol=1e-4, atol=1e-5 * np.abs(alone).max())


def test_a_part_without_a_gradient_of_a_parameter_holds_up_no_other():
    a, b = Parameter(np.zeros(2)), Parameter(np.zeros(2))
    total = GradientSum(3)
    total.parts[2].add(a, np.array([1.0, 2.0]))
    total.parts[1].add(b, np.array([3.0, 4.0]))
    total.parts[1].add(a, np.array([5.0, 6.0]))
    total.parts[0].add(b, np.array([7.0, 8.0]))
    grads = total.total()
    assert list(grads) == [b, a]
    np.testing.assert_array_equal(grads[a], [6, 8])
    np.testing.assert_array_equal(grads[b], [10, 12])


def test_a_sum_takes_no_array_besides_those_of_its_parts():
    a, total = Parameter(np.zeros(10_000)), GradientSum(3)
    added = [np.full(10_000, value) for value in (1.0, 2.0, 3.0)]
    tracemalloc.start()
    try:
        for part, gradient in zip(total.parts, added, strict=True):
            part.add(a, gradient)
        (found,) = total.total().values()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(found, np.full(10_000, 6.0))
    assert peak < found.nbytes / 10


def test_adding_two_gradients_changes_neither():
    a, b = Parameter(np.zeros(2)), Parameter(np.zeros(2))
    one, other = Gradients({a: np.array([1.0, 2.0])}), Gradients({b: np.array([5.0, 6.0]), a: np.array([3.0, 4.0])})
    both = one + other
    assert list(both) == [a, b]
    np.testing.assert_array_equal([both[a], both[b]], [[4, 6], [5, 6]])
    np.testing.assert_array_equal([one[a], other[a]], [[1, 2], [3, 4]])
    assert list(one) == [a]


def test_the_gradients_of_many_parts_are_never_all_in_memory():
    rng, x = np.random.default_rng(0), np.ones((8, 300), np.float32)
    model = Sequential({str(i): Linear(rng.standard_normal((300, 300), np.float32) / 99) for i in range(10)})
    one = 10 * 300 * 300 * 4
    batch = Batch(x, np.zeros(8, int))
    with ThreadPoolExecutor(1) as pool:
        tracemalloc.start()
        try:
            sharded_loss_and_gradients(pool, 1, model, [batch] * 6, [0])
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert one < peak < 1.5 * one


def test_each_shard_draws_a_mask_of_its_own():
    model, row = learner(dropout=0.5), some(0, B=1)
    both = sharded(model, [together([row, row])], 2, seed=7)
    assert both[0] != pytest.approx(float(sharded(model, [row], 1, seed=7)[0]), rel=1e-4)


def test_threads_that_share_a_model_get_what_each_would_get_alone():
    model, batches = learner(dropout=0.2), [some(i) for i in range(12)]

    def one(i: int) -> tuple[Any, Gradients]:
        return loss_and_gradients(model, batches[i], np.random.default_rng(i))

    alone = [one(i) for i in range(12)]
    with ThreadPoolExecutor(4) as pool:
        for result, expected in zip(pool.map(one, range(12)), alone, strict=True):
            assert_same(result, expected)


@few
@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.booleans(), st.integers(0, 99))
def test_an_evaluation_is_the_mean_over_all_labels_however_they_are_batched(rows, padded, seed):
    model = build("llama")
    batches = [some(seed + i, B, padded=padded) for i, B in enumerate(rows)]
    whole = together(batches)
    logits, _ = model.forward(whole.ids, Inputs(whole.padding, whole.segments))
    P = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    by_hand = [-np.log(P[index][t]) for index, t in np.ndenumerate(whole.targets) if t != IGNORE]
    if by_hand:
        assert evaluate(model, batches) == pytest.approx(np.mean(by_hand), rel=1e-12)
    else:
        with pytest.raises(ValueError, match="no position has a label"):
            evaluate(model, batches)


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert"])
def test_logits_are_made_where_there_is_a_label_and_the_gradients_are_those_of_all(family, monkeypatch):
    model, batch = build(family), some(3, padded=True)
    targets = np.where(np.arange(6) % 3, IGNORE, batch.targets)
    logits, cache = model.forward(batch.ids, Inputs(batch.padding, batch.segments))
    loss, ce_cache = cross_entropy_forward(logits, targets)
    grads, shapes = Gradients(), []
    model.backward(cross_entropy_backward(1.0, ce_cache), cache, grads)
    head, forward = model["lm_head"], model["lm_head"].forward
    monkeypatch.setattr(head, "forward", lambda x, *how: shapes.append(x.shape) or forward(x, *how))
    assert_close(loss_and_gradients(model, batch._replace(targets=targets)), (loss, grads), 1e-13)
    assert shapes == [((targets != IGNORE).sum(), model.config.d_model)]


def test_a_sequential_of_own_layers_learns_from_inputs_that_are_not_ids(rng):
    x = rng.standard_normal((64, 3, 5))
    targets = np.where(rng.random((64, 3)) < 0.2, IGNORE, x.argmax(axis=-1))  # some without a label, as of a text
    model = Sequential({"up": Linear(np.eye(5)), "tanh": Tanh(), "down": Linear(np.zeros((5, 5)))})
    history = fit(model, lambda step: Batch(x, targets), 100, lr=0.1, description=None, shards=2)
    assert history.loss[0] == pytest.approx(np.log(5))
    assert evaluate(model, [Batch(x, targets)]) < 0.5


def test_an_evaluation_has_no_dropout():
    assert evaluate(learner(dropout=0.9), [some(0)]) == evaluate(learner(), [some(0)])


WRONG_LABELS = [
    (np.full((4, 6), 13), "label 13 is outside the head's outputs 0..12"),
    (np.full((4, 6), -1), "label -1 is outside the head's outputs 0..12"),
    (np.zeros((1, 1), int), r"logits \(4, 6, 13\) need targets \(4, 6\), not \(1, 1\)"),
    (np.zeros((6, 4), int), r"not \(6, 4\)"),
    (np.zeros((4, 6)), "integers, not float64"),
]


@pytest.mark.parametrize(("targets", "message"), WRONG_LABELS)
@pytest.mark.parametrize("compute", [loss_and_gradients, lambda model, batch: evaluate(model, [batch])])
def test_labels_that_do_not_fit_are_refused_in_training_and_in_evaluation(compute, targets, message):
    with pytest.raises(ValueError, match=message):
        compute(build("llama"), some(0)._replace(targets=targets))


# ---- fit ----


def test_after_step_is_called_once_a_step_with_the_clipped_gradients_and_may_change_the_parameters():
    model, seen = learner(), []

    def after_step(step: int, grads: Gradients) -> None:
        norm = np.sqrt(sum(float((g.astype(float) ** 2).sum()) for g in grads.values()))
        seen.append((step, norm))
        for parameter in model.trainable_parameters().values():
            parameter.data = np.zeros_like(parameter.data)

    quietly(model, steps=3, clip=1e-3, after_step=after_step)
    assert [step for step, _ in seen] == [0, 1, 2]
    assert seen[0][1] == pytest.approx(1e-3, rel=1e-4)
    assert all(not parameter.data.any() for parameter in model.trainable_parameters().values())


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others():
    def run(seed: int) -> tuple[Any, dict[str, bytes]]:
        model = learner(dropout=0.3)
        history = quietly(model, seed=seed, shards=2, held_out=lambda: [some(99)], evaluate_every=2)
        return history, bits(model)

    assert run(0) == run(0)
    assert run(0)[1] != run(1)[1]


@pytest.mark.parametrize("steps", [1, 10, 13])
def test_the_history_has_one_loss_for_each_step_and_evaluations_where_asked(steps):
    model = learner()
    history = quietly(model, steps=steps, held_out=lambda: [some(99)], evaluate_every=3)
    assert len(history.loss) == steps
    assert [step for step, _ in history.evaluations] == [*range(0, steps, 3), steps]
    assert history.loss[0] == float(loss_and_gradients(learner(), some(0))[0])
    assert not history.stopped_early


def test_shards_and_accumulation_change_nothing_but_rounding():
    whole = quietly(learner("float64"), lambda i: together([some(2 * i), some(2 * i + 1)]))
    sharded = quietly(learner("float64"), accumulate=2, shards=3)
    np.testing.assert_allclose(sharded.loss, whole.loss, rtol=1e-9)


def test_only_what_is_trainable_changes_and_what_is_frozen_keeps_every_bit():
    model = learner()
    before, trainable = bits(model), model.trainable_parameters().keys()
    quietly(model)
    assert {path for path, data in bits(model).items() if data != before[path]} == set(trainable)


def test_the_loss_falls_when_one_batch_is_memorised():
    history = quietly(learner(), lambda step: some(0), steps=60, lr=3e-2)
    assert history.loss[-1] < 0.2 * history.loss[0]


def test_an_optimizer_may_be_given_and_its_rate_holds():
    model, reference = learner("float64"), learner("float64")
    quietly(model, steps=1, lr=1e9, optimizer=SGD(model.trainable_parameters(), lr=0.1), clip=0.5)
    _, grads = loss_and_gradients(reference, some(0))
    clipped, _ = clip_by_global_norm(grads, 0.5)
    for path, parameter in reference.trainable_parameters().items():
        expected = parameter.data - 0.1 * clipped[parameter]
        np.testing.assert_allclose(model.trainable_parameters()[path].data, expected, rtol=1e-12, atol=1e-15)


def test_a_schedule_multiplies_the_rate_of_each_step():
    once, masked = learner(), learner()
    quietly(once, steps=1)
    quietly(masked, steps=4, schedule=lambda step: float(step == 0))
    assert bits(masked) == bits(once)


def test_early_stopping_stops_after_patience_and_puts_the_best_parameters_back():
    def held_out() -> list[Batch]:
        return [some(1)]

    model = learner()
    history = quietly(model, lambda step: some(0), 200, lr=3e-2, held_out=held_out, evaluate_every=2, patience=3)
    losses = [loss for _, loss in history.evaluations]
    assert history.stopped_early
    assert len(history.loss) == 2 * (len(losses) - 1) < 200
    assert len(losses) - 1 - int(np.argmin(losses)) == 3
    assert evaluate(model, held_out()) == min(losses) < losses[-1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": -1}, "steps = -1 is not a whole number from 0 up"),
        ({"steps": 1.5}, "steps = 1.5 is not a whole number"),
        ({"accumulate": 0}, "accumulate = 0 is not a whole number from 1 up"),
        ({"shards": 0}, "shards = 0 is not a whole number from 1 up"),
        ({"checkpoint_every": 0}, "checkpoint_every = 0 is not a whole number from 1 up"),
        ({"evaluate_every": -1}, "evaluate_every = -1 is not a whole number from 0 up"),
        ({"patience": -1}, "patience = -1 is not a whole number from 0 up"),
        ({"patience": 2}, "patience = 2 needs evaluations: give held_out"),
        ({"clip": 0.0}, "clip = 0.0 is not above 0"),
        ({"clip": float("nan")}, "clip = nan is not above 0"),
        ({"lr": -1e-3}, "lr = -0.001 is not above 0"),
    ],
)
def test_a_number_that_makes_no_sense_is_refused_before_a_step(options, message):
    model = learner()
    before = bits(model)
    with pytest.raises(ValueError, match=message):
        quietly(model, **options)
    assert bits(model) == before


def test_a_checkpoint_without_a_folder_is_refused_before_a_step(tmp_path):
    model = learner()
    before = bits(model)
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere for the checkpoint: make it first"):
        quietly(model, checkpoint=tmp_path / "nowhere" / "c.safetensors")
    assert bits(model) == before


def test_no_step_leaves_the_model_as_it_was_and_resuming_from_nothing_starts_from_the_beginning(tmp_path):
    model, other = learner(), learner()
    before = bits(model)
    assert quietly(model, steps=0).loss == []
    assert bits(model) == before
    history = quietly(model, checkpoint=tmp_path / "c.safetensors", resume=True)
    assert history == quietly(other)
    assert bits(model) == bits(other)


def test_a_first_ctrl_c_finishes_the_step_and_gives_the_handler_back():
    model, seen, before = learner(), [], signal.getsignal(signal.SIGINT)

    def batches(step: int) -> Batch:
        seen.append(step)
        if step == 2:
            signal.raise_signal(signal.SIGINT)
        return some(step)

    with pytest.raises(KeyboardInterrupt):
        quietly(model, batches, steps=50)
    assert seen == [0, 1, 2]
    assert signal.getsignal(signal.SIGINT) is before
    finished = learner()
    quietly(finished, steps=3)
    assert bits(model) == bits(finished)


# ---- on a device ----


def test_on_a_device_the_losses_are_those_on_the_host(xp):
    model = learner()
    model.to(xp)
    history = quietly(model, shards=2, accumulate=2)
    np.testing.assert_allclose(history.loss, quietly(learner(), shards=2, accumulate=2).loss, rtol=1e-5)


# ---- what is not finite ----

PLACES = ["embed.token", "block_0.attention.k_proj", "block_0.norm_2", "block_1.mlp.up_proj", "block_1.mlp.down_proj"]


@pytest.mark.parametrize(("adapt", "steps"), [(False, 1), (True, 10)])
@pytest.mark.parametrize("place", PLACES)
def test_a_loss_that_is_not_finite_names_the_first_module_that_made_it_so(place, adapt, steps):
    model = learner() if adapt else build("llama", dtype="float32", tied=False)
    weight = model.named_parameters()[f"{place}.weight"]
    weight.data = np.full_like(weight.data, np.inf)
    with pytest.raises(FloatingPointError, match=rf"the loss of step 1 is (nan|inf), first in {place}: lower the"):
        quietly(model, steps=steps)


def stopped(model: Transformer, after: int, steps: int, checkpoint: Path) -> None:
    """A run of `steps` that ended after some of them, with a checkpoint."""

    def batches(i: int) -> Batch:
        if i == after:
            raise RuntimeError("no more")
        return some(i)

    with pytest.raises(RuntimeError, match="no more"):
        quietly(model, batches, steps, checkpoint=checkpoint, checkpoint_every=after)


def test_a_loss_that_is_not_finite_leaves_the_last_good_checkpoint(tmp_path):
    path, model = tmp_path / "checkpoint.safetensors", learner()
    stopped(model, after=4, steps=8, checkpoint=path)
    good = path.read_bytes()
    weight = model["block_1.mlp.gate_proj"].base.weight
    weight.data = np.full_like(weight.data, np.inf)
    message = r"the loss of step 5 .* block_1\.mlp\.gate_proj: .*checkpoint\.safetensors holds the last good state"
    with pytest.raises(FloatingPointError, match=message):
        quietly(model, steps=8, checkpoint=path, checkpoint_every=1, resume=True)
    assert path.read_bytes() == good
    assert list(tmp_path.iterdir()) == [path]


def test_a_diverging_learning_rate_is_reported_within_ten_steps_and_nothing_is_saved(tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    with pytest.raises(FloatingPointError, match=r"the loss of step [2-9] is nan, first in .*lower the learning rate$"):
        quietly(learner(), steps=50, lr=1e30, checkpoint=path, checkpoint_every=50)
    assert not path.exists()


def test_parameters_that_are_not_finite_never_reach_a_checkpoint(tmp_path):
    path, model = tmp_path / "checkpoint.safetensors", learner()
    stopped(model, after=2, steps=3, checkpoint=path)
    good = path.read_bytes()
    with pytest.raises(FloatingPointError, match="is not finite after step 3: lower the learning rate"):
        quietly(model, steps=3, checkpoint=path, resume=True, schedule=lambda step: float("inf"))
    assert path.read_bytes() == good


# ---- the built-in base ----


@pytest.mark.slow
def test_the_first_steps_of_the_recipe_give_the_losses_that_the_built_in_base_records():
    windows = np.load(Path(__file__).parents[1] / "data" / "first_batches.npy").astype(np.int64)
    model = llama(SHAPE, np.random.default_rng(RECIPE["seed"]))
    optimizer, schedule = recipe_optimizer(model, RECIPE)
    history = quietly(
        model, lambda step: Batch(windows[step, :, :-1], windows[step, :, 1:]), len(windows), optimizer=optimizer,
        schedule=schedule, seed=RECIPE["seed"], shards=RECIPE["shards"],
    )  # fmt: skip
    note = json.loads((BUILTIN / "pretraining.json").read_text())
    assert note["recipe"] == RECIPE
    assert len(note["loss"]) == RECIPE["steps"]
    np.testing.assert_allclose(history.loss, note["loss"][: len(windows)], rtol=1e-3)


def test_the_built_in_base_knows_held_out_english_better_than_zlib_and_pair_counts():
    recorded = json.loads((BUILTIN / "pretraining.json").read_text())["bits_per_byte"]
    assert recorded["model"] < min(recorded["zlib"], recorded["bigram"])
    english = english_text()
    sample = excerpts(english.test, 4096)
    measured = bits_per_token(evaluate(load_pretrained(), all_windows(sample, 16, SHAPE.max_length)))
    rivals = [bits_of(sample, english.train) for bits_of in (zlib_bits_per_byte, bigram_bits_per_byte)]
    assert measured < min(rivals)
