"""The report of lost digits: what it says of the ops, and that it sees an algorithm that loses them."""

import json
import math

import numpy as np
import pytest

from minilora import ops
from minilora.cli import main
from minilora.verify.op import Op, drawn, one
from minilora.verify.op_cases import OPS
from minilora.verify.stability import FORMATS, REGIMES, Loss, losses, stability, worst


@pytest.fixture(scope="module")
def found():
    return stability()


def measured(op, inputs, rng, **constants):
    """{tensor: its loss in float32} of an op on these inputs."""
    shape = np.shape(op.forward(*inputs.values(), **constants)[0])
    with np.errstate(all="ignore"):
        return {loss.tensor: loss for loss in losses("", op, drawn(rng, shape, inputs, **constants), rng)
                if loss.format == "float32"}  # fmt: skip


@pytest.mark.slow
def test_no_op_loses_digits_in_float32_on_inputs_of_ordinary_size(found):
    assert {loss.name for loss in found} == OPS.keys() | REGIMES.keys()
    assert not [loss for loss in found if loss.name in OPS and loss.format == "float32" and loss.verdict != "ok"]


def test_each_regime_is_of_an_op_and_changes_its_inputs(rng):
    for regime in REGIMES.values():
        inputs = OPS[regime.op].draw(lambda low=1, high=4: low, rng).inputs
        changed = regime.change(**inputs)
        assert changed.keys() == inputs.keys()
        assert any(not np.array_equal(changed[name], x) for name, x in inputs.items())


def test_the_condition_number_of_a_difference_is_the_size_of_its_terms_over_its_own(rng):
    """f(a) = a₁ - a₂ has κ = (|a₁| + |a₂|)/|a₁ - a₂| in the worst direction."""
    difference = Op(lambda size, rng: None, lambda a: (a[:1] - a[1:], None), lambda dy, c, a: (np.r_[dy, -dy],))
    loss = measured(difference, {"a": np.array([1.0, 1.001])}, rng)["y"]
    assert loss.kappa == pytest.approx(2001, rel=1e-3)


def test_a_mean_that_is_subtracted_as_squares_loses_digits_that_our_layer_norm_keeps(rng):
    def naive(x, g, b, eps):
        mu = x.mean(axis=-1, keepdims=True)
        sigma = np.sqrt((x * x).mean(axis=-1, keepdims=True) - mu * mu + eps)
        return (x - mu) / sigma * g + b, ops.layer_norm_forward(x, g, b, eps)[1]

    right = OPS["layer norm"]
    inputs = {"x": 300 + rng.standard_normal((4, 12)), "g": rng.standard_normal(12), "b": rng.standard_normal(12)}
    worse, ours = (measured(op, inputs, rng, eps=1e-5)["y"] for op in (right._replace(forward=naive), right))
    assert ours.verdict == "ok"
    assert worse.verdict != "ok"


def test_a_softmax_that_is_not_shifted_is_not_finite_and_ours_is(rng):
    def naive(logits, targets, count):
        L, cache = ops.cross_entropy_forward(logits, targets, count)
        E = np.exp(logits).reshape(-1, logits.shape[-1])
        return L, cache._replace(P=E / E.sum(axis=-1, keepdims=True))

    inputs, targets = {"logits": 200 + rng.standard_normal((2, 3, 5))}, rng.integers(0, 5, (2, 3))
    for forward, verdict in ((naive, "not finite"), (ops.cross_entropy_forward, "ok")):
        op = Op(OPS["cross-entropy"].draw, forward, one("cross_entropy_backward"))
        assert measured(op, inputs, rng, targets=targets, count=None)["dlogits"].verdict == verdict


@pytest.mark.slow
def test_what_16_bits_cannot_hold_is_said(found):
    def verdict(name, form):
        return worst(found)[name][form].verdict

    # a row without a key: -1e9 is -∞ in float16; 300² x 12 is above 65,504; 1e-4 · 1e-4 is below its smallest number
    assert verdict("attention, causal, padded left", "float16") == "not finite"
    assert verdict("attention, causal, padded left", "bfloat16") == "ok"
    assert "underflows" in verdict("rms norm, numbers near 300", "float16")
    assert "underflows" in verdict("low rank, A and B near 1e-4", "float16")
    assert verdict("low rank, A and B near 1e-4", "bfloat16") == "ok"


@pytest.mark.parametrize(
    ("kappa", "error", "zeros", "verdict"),
    [(1.0, 15.0, 0, "ok"), (50.0, 700.0, 0, "ok"), (1.0, 100.0, 0, "loses 2.0 digits"), (0.1, 10.0, 0, "ok"),
     (10.0, 1e4, 0, "loses 3.0 digits"), (1.0, 0.0, 0.5, "underflows in 50%"), (1.0, math.inf, 0, "not finite")],
)  # fmt: skip
def test_a_loss_beyond_what_the_inputs_lose_has_a_verdict(kappa, error, zeros, verdict):
    assert Loss("", "y", "float32", kappa, error, zeros).verdict == verdict


def test_the_command_prints_a_row_for_each_op_and_all_tensors_as_json(capsys):
    assert main(["verify", "--stability", "--only", "rms"]) == 0
    assert "rms norm, numbers near 300" in capsys.readouterr().out
    assert main(["verify", "--stability", "--only", "rms norm, numbers near 300", "--json"]) == 0
    entries = json.loads(capsys.readouterr().out)
    assert {(entry["tensor"], entry["format"]) for entry in entries} == {
        (tensor, form) for tensor in ("y", "dx", "dg") for form in FORMATS
    }


def test_an_unknown_name_is_refused_with_a_similar_one():
    with pytest.raises(ValueError, match="layer norm"):
        stability("layer nrom")


def test_what_is_lost_is_printed_with_its_tensor_and_format(capsys):
    assert main(["verify", "--stability", "--only", "rms norm, numbers near 300"]) == 0
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "in float16" in said
    assert "underflows" in said
