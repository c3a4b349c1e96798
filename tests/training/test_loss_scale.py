"""Loss scaling: PyTorch's GradScaler, step by step, and the laws of it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora.nn import Gradients, Parameter
from minilora.nn.optim import SGD, AdamW
from minilora.quantization.arithmetic import Float16Array
from minilora.training.loss_scale import LossScale


def gradients(*arrays):
    return Gradients({Parameter(np.zeros_like(g)): g for g in arrays})


@given(st.lists(st.booleans(), max_size=60), st.integers(1, 5))
def test_it_grows_after_so_many_finite_steps_in_a_row_and_halves_after_any_other(finite, interval):
    scale, log2, row = LossScale(growth_interval=interval), 16, 0
    for good in finite:
        scale.update(good)
        row = row + 1 if good else 0
        log2 += -1 if not good else row % interval == 0
        row %= interval
        assert 2.0**log2 == scale.S


@given(st.integers(-20, 20))
def test_unscaled_gradients_are_those_of_the_loss_in_float32_whatever_the_scale(log2):
    g = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    scale = LossScale(2.0**log2)
    unscaled, finite = scale.unscaled(gradients(g * np.float32(scale.S)))
    (found,) = unscaled.values()
    assert finite
    assert type(found) is np.ndarray
    assert np.array_equal(found, g)


def test_a_gradient_that_float16_has_no_number_for_comes_back_from_its_scaled_form():
    scale, g = LossScale(), np.float32(1e-8)
    assert Float16Array.of(g) == 0
    unscaled, finite = scale.unscaled(gradients(Float16Array.of([g * np.float32(scale.S)])))
    (found,) = unscaled.values()
    assert finite
    assert type(found) is np.ndarray  # and what is computed of it is float32
    assert np.isclose(found[0], g, rtol=Float16Array.u)


@pytest.mark.parametrize("wrong", [np.inf, -np.inf, np.nan])
def test_one_number_that_is_not_finite_in_any_gradient_is_seen(wrong):
    bad = np.ones(5, np.float32)
    bad[3] = wrong
    assert LossScale().unscaled(gradients(np.ones(2, np.float32), np.ones(3, np.float32)))[1]
    assert not LossScale().unscaled(gradients(np.ones(2, np.float32), bad))[1]
    assert not LossScale().unscaled(gradients(bad, np.ones(2, np.float32)))[1]


def test_it_does_not_grow_beyond_float32_and_a_loss_that_is_never_finite_is_named():
    scale = LossScale(2.0**127, growth_interval=1)
    scale.update(True)
    assert scale.S == 2.0**127
    scale = LossScale(2.0**-149, growth_interval=1)  # float32's smallest number
    with pytest.raises(FloatingPointError, match="at any loss scale"):
        scale.update(False)


@pytest.mark.parametrize(
    "wrong",
    [
        {"init_scale": 0.0},
        {"init_scale": 1e-46},
        {"init_scale": 1e39},
        {"init_scale": float("inf")},
        {"growth_factor": 1.0},
        {"backoff_factor": 1.0},
        {"backoff_factor": 0.0},
        {"growth_interval": 0},
    ],
)
def test_a_number_out_of_range_is_refused_by_name(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        LossScale(**wrong)


# ---- PyTorch ----


@pytest.mark.oracle
@pytest.mark.parametrize(
    "settings",
    [
        {"growth_interval": 7},
        {"init_scale": 3.0, "growth_factor": 1.7, "backoff_factor": 0.3, "growth_interval": 2},
        {"init_scale": 2.0**120, "growth_factor": 2.0**9, "backoff_factor": 0.5, "growth_interval": 1},
    ],
    ids=["powers of two", "odd factors", "at the end of float32"],
)
@pytest.mark.parametrize("kind", ["SGD", "AdamW"])
def test_scale_gradients_and_weights_are_gradscalers_over_400_steps_with_random_infs(settings, kind):
    """The scale and the unscaled gradients to the bit. The weights to the optimizers' own rounding: a step is 0.01."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    scaler, scale = torch.amp.GradScaler("cpu", **settings), LossScale(**settings)
    start = rng.standard_normal(6).astype(np.float32)
    p, w = Parameter(start), torch.tensor(start, requires_grad=True)
    ours, theirs = {"SGD": (SGD, torch.optim.SGD), "AdamW": (AdamW, torch.optim.AdamW)}[kind]
    optimizer, other = ours({"w": p}, 1e-2), theirs([w], 1e-2, weight_decay=0.0)
    left_out = 0
    for _ in range(400):
        x = rng.standard_normal(6).astype(np.float32)
        if rng.random() < 0.15:
            x[rng.integers(6)] = rng.choice([np.inf, -np.inf, np.nan])
        other.zero_grad()
        scaler.scale((w * torch.tensor(x)).sum()).backward()  # dw = S x
        with np.errstate(over="ignore", invalid="ignore"):
            grads, finite = scale.unscaled(Gradients({p: np.float32(scale.S) * x}))
        scaler.unscale_(other)
        assert np.array_equal(grads[p], w.grad.numpy(), equal_nan=True)
        scaler.step(other)
        if finite:
            optimizer.step(grads)
        left_out += not finite
        scaler.update()
        scale.update(finite)
        assert scaler.get_scale() == scale.S
        assert scale.steps == scaler.state_dict()["_growth_tracker"]
        assert np.allclose(p.data, w.detach().numpy(), rtol=0, atol=1e-5)
    assert 30 < left_out < 370
