"""Optimizers, schedules and clipping, against PyTorch and their own laws."""

import math
import sys
from typing import Any

import examples
import fakecupy
import numpy as np
import pytest
from adapters import adapted, lora_names
from hypothesis import given, settings
from hypothesis import strategies as st

from minilora.backend import get_array_module, to_numpy
from minilora.nn import Gradients, Parameter, optim
from minilora.nn.optim import SGD, AdamW, Optimizer, ParamGroup, clip_by_global_norm, cosine_schedule, linear_schedule

few = settings(max_examples=examples.count(30), deadline=None, derandomize=True)
SHAPES = {"a": (3, 2), "b": (4,), "c": (2, 1, 5)}
OPTIMIZERS: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "sgd": (SGD, {"lr": 0.03}),
    "sgd with decay": (SGD, {"lr": 0.03, "weight_decay": 0.2}),
    "momentum": (SGD, {"lr": 0.03, "momentum": 0.8}),
    "momentum with decay": (SGD, {"lr": 0.03, "momentum": 0.8, "weight_decay": 0.2}),
    "adamw": (AdamW, {"lr": 0.02, "weight_decay": 0.0}),
    "adamw with everything": (AdamW, {"lr": 0.02, "betas": (0.7, 0.95), "eps": 1e-3, "weight_decay": 0.3}),
}
each_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)
each_schedule = pytest.mark.parametrize("schedule", [linear_schedule, cosine_schedule])
on_a_gpu = pytest.mark.parametrize("xp", ["fakecupy", pytest.param("cupy", marks=pytest.mark.gpu)], indirect=True)


def some_parameters(dtype: Any = np.float64) -> dict[str, Parameter]:
    rng = np.random.default_rng(1)
    return {name: Parameter(rng.standard_normal(shape).astype(dtype)) for name, shape in SHAPES.items()}


def some_gradients(parameters: dict[str, Parameter], rng: np.random.Generator) -> Gradients:
    return Gradients(
        {
            p: get_array_module(p.data).asarray(rng.standard_normal(p.data.shape), dtype=p.data.dtype)
            for p in parameters.values()
        }
    )


def make(name: str, parameters: Any) -> Optimizer:
    cls, options = OPTIMIZERS[name]
    return cls(parameters, **options)


def bits(parameters: dict[str, Parameter]) -> dict[str, bytes]:
    return {name: to_numpy(parameter.data).tobytes() for name, parameter in parameters.items()}


# ---- steps ----


def follow(ours: Optimizer, other: Any, parameters: dict[str, Parameter], tensors: dict[str, Any]) -> None:
    """A hundred steps of both with the same random gradients, on a schedule; then their numbers agree."""
    torch, rng, schedule = pytest.importorskip("torch"), np.random.default_rng(6), cosine_schedule(100, warmup=10)
    rates = [group["lr"] for group in other.param_groups]
    for step in range(100):
        grads = some_gradients(parameters, rng)
        for name, parameter in parameters.items():
            tensors[name].grad = torch.tensor(grads[parameter])
        for group, lr in zip(other.param_groups, rates, strict=True):
            group["lr"] = schedule(step) * lr
        ours.step(grads, schedule(step))
        other.step()
    for name, parameter in parameters.items():
        np.testing.assert_allclose(parameter.data, tensors[name].detach().numpy(), rtol=1e-12, atol=1e-12)


@pytest.mark.oracle
@each_optimizer
def test_a_hundred_steps_are_those_of_pytorch(name):
    torch = pytest.importorskip("torch")
    parameters, (cls, options) = some_parameters(), OPTIMIZERS[name]
    tensors = {n: torch.tensor(p.data, requires_grad=True) for n, p in parameters.items()}
    other = getattr(torch.optim, cls.__name__)(tensors.values(), **options)
    follow(make(name, parameters), other, parameters, tensors)


@pytest.mark.oracle
@pytest.mark.parametrize("cls", [SGD, AdamW])
def test_a_hundred_steps_of_two_groups_with_rates_of_their_own_are_those_of_pytorch(cls):
    torch = pytest.importorskip("torch")
    parameters = some_parameters()
    tensors = {n: torch.tensor(p.data, requires_grad=True) for n, p in parameters.items()}
    groups = ["ab", {"lr": 0.03, "weight_decay": 0.1}], ["c", {"lr": 0.005, "weight_decay": 0.4}]
    ours = cls([ParamGroup({n: parameters[n] for n in names}, **rates) for names, rates in groups])
    other = getattr(torch.optim, cls.__name__)([{"params": [tensors[n] for n in ns], **rates} for ns, rates in groups])
    follow(ours, other, parameters, tensors)


@pytest.mark.parametrize(
    ("name", "steps"),  # in units of the rate: on a constant gradient momentum adds up, and Adam sees its sign alone
    [("sgd", lambda g: 3 * g), ("momentum", lambda g: (3 + 2 * 0.8 + 0.8**2) * g), ("adamw", lambda g: 3 * np.sign(g))],
)
def test_three_steps_on_a_constant_gradient(name, steps, rng):
    parameters = some_parameters()
    optimizer, grads = make(name, parameters), some_gradients(parameters, rng)
    for _ in range(3):
        optimizer.step(grads)
    for n, start in some_parameters().items():
        moved = (start.data - parameters[n].data) / optimizer.groups[0].lr
        np.testing.assert_allclose(moved, steps(grads[parameters[n]]), rtol=1e-6)


@each_optimizer
def test_a_step_writes_into_no_array_and_leaves_what_has_no_gradient(name, rng):
    parameters = some_parameters()
    optimizer = make(name, parameters)
    optimizer.step(some_gradients(parameters, rng))
    grads = some_gradients(parameters, rng)
    del grads[parameters["b"]]
    before = {n: p.data for n, p in parameters.items()}
    state = dict(optimizer.state)
    for array in [*before.values(), *grads.values(), *state.values()]:
        array.setflags(write=False)
    optimizer.step(grads)
    assert [n for n, p in parameters.items() if p.data is not before[n]] == ["a", "c"]
    assert {key for key in state if optimizer.state[key] is state[key]} == {key for key in state if key.endswith(".b")}


@each_optimizer
def test_float32_stays_float32_in_the_parameters_and_in_the_state(name, rng):
    parameters = some_parameters(np.float32)
    optimizer = make(name, parameters)
    for factor in (1.0, cosine_schedule(10)(3)):
        optimizer.step(clip_by_global_norm(some_gradients(parameters, rng), 0.5)[0], factor)
    arrays = [*(p.data for p in parameters.values()), *optimizer.state.values()]
    assert {array.dtype for array in arrays} == {np.dtype(np.float32)}


@pytest.mark.parametrize("cls", [SGD, AdamW])
def test_a_rate_or_a_limit_from_numpy_makes_no_float64_of_float32(cls, rng):
    parameters = some_parameters(np.float32)
    rate, limit = np.geomspace(1e-3, 1, 2)  # as a sweep has them
    grads = clip_by_global_norm(some_gradients(parameters, rng), limit)[0]
    cls(parameters, lr=rate).step(grads)
    assert {array.dtype for array in [*grads.values(), *(p.data for p in parameters.values())]} == {
        np.dtype(np.float32)
    }


@each_optimizer
@on_a_gpu
def test_on_a_gpu_steps_give_the_same_numbers_and_nothing_waits_for_the_host(name, xp):
    here, there = some_parameters(np.float32), some_parameters(np.float32)
    for parameter in there.values():
        parameter.data = xp.asarray(parameter.data)
    for parameters in (here, there):
        optimizer, rng, syncs = make(name, parameters), np.random.default_rng(4), fakecupy.syncs
        for _ in range(3):
            optimizer.step(clip_by_global_norm(some_gradients(parameters, rng), 0.9)[0], 0.7)
        assert fakecupy.syncs == syncs
    for n in SHAPES:
        tolerance = 1e-5 if xp.__name__ == "cupy" else 0
        assert get_array_module(there[n].data) is xp
        np.testing.assert_allclose(to_numpy(there[n].data), here[n].data, rtol=tolerance)


@pytest.mark.each_value
@each_optimizer
@pytest.mark.parametrize("most", [0, 7, 10])  # the parameters have 4, 6 and 10 numbers
def test_in_buckets_or_one_by_one_the_numbers_are_the_same_to_the_bit(name, most, monkeypatch, rng):
    ends = []
    for size in (most, optim.BUCKET_SIZE):
        monkeypatch.setattr(optim, "BUCKET_SIZE", size)
        parameters, rng = some_parameters(np.float32), np.random.default_rng(3)
        parameters["d"] = Parameter(rng.standard_normal(3))  # of another dtype
        optimizer = make(name, parameters)
        for _ in range(3):
            optimizer.step(some_gradients(parameters, rng))
        ends.append((bits(parameters), {key: array.tobytes() for key, array in optimizer.state.items()}))
    assert ends[0] == ends[1]


@pytest.mark.each_value
@each_optimizer
@pytest.mark.parametrize("most", [1, 3, 4, 9])
def test_in_pieces_the_numbers_are_the_same_to_the_bit(name, most, monkeypatch):
    ends = []
    for size in (most, optim.PIECE):
        monkeypatch.setattr(optim, "PIECE", size)
        parameters, rng = some_parameters(np.float32), np.random.default_rng(3)
        optimizer = make(name, parameters)
        for _ in range(3):
            optimizer.step(some_gradients(parameters, rng))
        ends.append((bits(parameters), {key: array.tobytes() for key, array in optimizer.state.items()}))
    assert ends[0] == ends[1]


@pytest.mark.parametrize("limit", [1e9, 0.5])
def test_gradients_that_are_short_enough_are_not_copied(limit):
    parameters = some_parameters(np.float32)
    grads = some_gradients(parameters, np.random.default_rng(3))
    clipped, norm = clip_by_global_norm(grads, limit)
    assert (norm < limit) == (clipped is grads)


@each_optimizer
def test_a_step_and_its_clipping_take_as_many_calls_for_a_hundred_small_parameters_as_for_two(name, monkeypatch):
    calls, call = [], fakecupy._Function.__call__
    monkeypatch.setattr(fakecupy._Function, "__call__", lambda f, *a, **k: calls.append(f._path) or call(f, *a, **k))
    monkeypatch.setitem(sys.modules, "cupy", fakecupy)
    counts = []
    for n in (2, 100):
        parameters = {str(i): Parameter(fakecupy.ones((i % 3 + 1, 2))) for i in range(n)}
        optimizer, grads = make(name, parameters), Gradients({p: p.data for p in parameters.values()})
        calls.clear()
        optimizer.step(clip_by_global_norm(grads, 0.5)[0], 0.7, fakecupy.asarray(True))
        counts.append(len([path for path in calls if path != "ndarray.reshape"]))  # a view
    assert counts[0] == counts[1] > 0


@each_optimizer
def test_a_large_parameter_is_not_copied_to_be_stepped(name, monkeypatch):
    parameters = some_parameters()
    optimizer, seen = make(name, parameters), []
    monkeypatch.setattr(optim, "BUCKET_SIZE", 9)
    monkeypatch.setattr(optimizer, "update", lambda g, *old, **_: seen.extend([g, *old]) or old)
    grads = some_gradients(parameters, np.random.default_rng(0))
    large = [grads[parameters["c"]], parameters["c"].data, *(optimizer.state[f"{s}.c"] for s in optimizer.slots)]
    optimizer.step(grads)
    for array in large:
        assert any(np.shares_memory(array, other) for other in seen)


@each_optimizer
def test_a_step_of_what_is_not_finite_changes_nothing_on_a_device_either(name, xp, rng):
    parameters = some_parameters(np.float32)
    for parameter in parameters.values():
        parameter.data = xp.asarray(parameter.data)
    optimizer = make(name, parameters)
    optimizer.step(some_gradients(parameters, rng), finite=xp.isfinite(xp.ones(())))
    before, state = bits(parameters), {key: to_numpy(array).tobytes() for key, array in optimizer.state.items()}
    grads = some_gradients(parameters, rng)
    grads[parameters["a"]] = grads[parameters["a"]] * xp.nan
    optimizer.step(grads, finite=xp.isfinite(grads[parameters["a"]].sum()))
    assert bits(parameters) == before != bits(some_parameters(np.float32))
    assert {key: to_numpy(array).tobytes() for key, array in optimizer.state.items()} == state


# ---- state ----


def test_state_exists_for_the_given_parameters_alone():
    model = adapted("llama", ["q_proj", "v_proj"])
    optimizer = AdamW(model.trainable_parameters())
    assert set(optimizer.state) == {f"{slot}.{name}" for slot in "mv" for name in lora_names(model)}
    for name, parameter in model.trainable_parameters().items():
        assert optimizer.state[f"m.{name}"].shape == parameter.data.shape
    assert not any(array.any() for array in optimizer.state.values())
    assert SGD(model.trainable_parameters()).state == {}


@each_optimizer
def test_after_loading_its_state_training_continues_bit_for_bit(name, rng):
    parameters = some_parameters()
    steps = [some_gradients(parameters, rng) for _ in range(8)]
    optimizer = make(name, parameters)
    for grads in steps[:4]:
        optimizer.step(grads)
    middle, state, t = {n: p.data for n, p in parameters.items()}, dict(optimizer.state), optimizer.t
    for grads in steps[4:]:
        optimizer.step(grads)
    end = bits(parameters)

    def resumed(load: bool) -> dict[str, bytes]:
        again = make(name, parameters)
        for n, data in middle.items():
            parameters[n].data = data
        if load:
            again.load_state(state, t)
        for grads in steps[4:]:
            again.step(grads)
        return bits(parameters)

    assert resumed(load=True) == end
    assert (resumed(load=False) == end) == (state == {})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("m.a"), "missing: m.a"),
        (lambda state: state.update({"m.d": np.ones(2)}), "unexpected: m.d"),
        (lambda state: state.update({"m.a": np.ones((1, 2))}), "m.a"),
        (lambda state: state.update({"v.b": np.ones(5)}), "v.b"),
    ],
    ids=["missing", "unexpected", "of another shape that broadcasts", "of another shape"],
)
def test_a_state_that_does_not_fit_is_refused_by_name_and_changes_nothing(change, message):
    optimizer = AdamW(some_parameters())
    before = dict(optimizer.state)
    state = {name: array + 1 for name, array in before.items()}
    change(state)
    with pytest.raises(ValueError, match=message):
        optimizer.load_state(state, 3)
    assert optimizer.t == 0
    assert all(array is before[name] for name, array in optimizer.state.items())


@pytest.mark.parametrize("nothing", [{}, [], [ParamGroup({}, 0.1)]])
@pytest.mark.parametrize("cls", [SGD, AdamW])
def test_an_optimizer_with_nothing_to_train_is_refused(cls, nothing):
    with pytest.raises(ValueError, match="nothing to train"):
        cls(nothing)


# ---- schedules ----


@each_schedule
@few
@given(steps=st.integers(1, 50), share=st.floats(0, 0.9))
def test_a_schedule_rises_to_one_over_the_warm_up_and_falls_to_zero_at_the_end(schedule, steps, share):
    warmup = int(share * steps)
    factors = [schedule(steps, warmup)(step) for step in range(steps + 3)]
    assert factors[0] > 0
    assert factors[warmup] == 1
    assert (np.diff(factors[: warmup + 1]) > 0).all()
    assert (np.diff(factors[warmup : steps + 1]) < 0).all()
    assert factors[steps:] == pytest.approx([0, 0, 0], abs=1e-15)


def test_half_way_down_both_schedules_are_at_a_half_and_the_cosine_is_flat_at_its_ends():
    linear, cosine = linear_schedule(110, 10), cosine_schedule(110, 10)
    assert linear(60) == cosine(60) == pytest.approx(0.5)
    assert linear(20) == pytest.approx(0.9)
    assert cosine(20) == pytest.approx(0.5 * (1 + math.cos(0.1 * math.pi)))


# ---- clipping ----


def global_norm(grads: Gradients) -> float:
    return math.sqrt(sum(float((g * g).sum()) for g in grads.values()))


@few
@given(seed=st.integers(0, 2**32 - 1), scale=st.sampled_from([1e-3, 1.0, 30.0]), limit=st.floats(0.1, 20))
def test_a_clipped_gradient_is_within_the_limit_in_the_same_direction_or_untouched(seed, scale, limit):
    parameters = some_parameters()
    grads = some_gradients(parameters, np.random.default_rng(seed))
    grads = Gradients({parameter: scale * g for parameter, g in grads.items()})
    before = {parameter: g.copy() for parameter, g in grads.items()}
    (clipped, returned), norm = clip_by_global_norm(grads, limit), global_norm(grads)
    assert float(returned) == pytest.approx(norm)
    factor = min(1.0, limit / (norm + 1e-6))
    assert global_norm(clipped) <= limit
    assert global_norm(clipped) == pytest.approx(min(norm, limit), rel=1e-5, abs=1e-5)
    for parameter, g in before.items():
        assert np.array_equal(grads[parameter], g)
        np.testing.assert_allclose(clipped[parameter], factor * g, rtol=1e-12 if factor < 1 else 0)


@pytest.mark.oracle
@pytest.mark.parametrize("limit", [0.3, 2.0, 100.0])
def test_clipping_is_that_of_pytorch(limit, rng):
    torch = pytest.importorskip("torch")
    parameters = some_parameters()
    grads = some_gradients(parameters, rng)
    tensors = [torch.tensor(p.data, requires_grad=True) for p in parameters.values()]
    for tensor, g in zip(tensors, grads.values(), strict=True):
        tensor.grad = torch.tensor(g)
    torch.nn.utils.clip_grad_norm_(tensors, limit)
    for tensor, g in zip(tensors, clip_by_global_norm(grads, limit)[0].values(), strict=True):
        np.testing.assert_allclose(g, tensor.grad.numpy(), rtol=1e-12)


def test_clipping_nothing_gives_nothing():
    assert clip_by_global_norm(Gradients(), 1.0)[0] == {}
