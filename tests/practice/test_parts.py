"""Parts of exercises: values that are infinite, factors that are not unique, arguments that are lists."""

import numpy as np
import pytest

from minilora.practice.parts import Value, same


def total(spectra):
    return sum(float(sigma.sum()) for sigma in spectra)


def draw(rng, i):
    return {"spectra": [rng.random(2), np.zeros(3) if i == 0 else rng.random(3)]}


def halves(a):
    return a, a.T


def test_infinite_entries_must_be_equal_and_the_others_near():
    true = np.array([1.0, np.inf, -np.inf])
    assert same(true * (1 + 1e-9), true)
    assert not same(np.array([1.0, np.inf, np.inf]), true)
    assert not same(np.array([1.1, np.inf, -np.inf]), true)
    assert not same(np.array([np.nan, np.inf, -np.inf]), true)


@pytest.mark.parametrize(
    ("wrong", "kind"),
    [
        (lambda spectra: total(spectra), "right"),
        (lambda spectra: 2 * total(spectra), "scale"),
        (lambda spectra: total(spectra) + 1, "unknown"),
    ],
)
def test_an_argument_may_be_a_list_of_arrays_of_different_lengths(wrong, kind):
    findings = Value(total, "sum", truth=total, draw=draw).check(wrong).findings
    assert [finding.kind for finding in findings] == [kind]
    assert kind != "unknown" or "spectra = [(2,), (3,)]" in findings[0].asks.en


def test_what_is_not_zero_where_it_must_be_is_no_multiple():
    def first_zero(spectra):
        return 0.0 if not spectra[1].any() else total(spectra)

    findings = Value(total, "sum", truth=first_zero, draw=draw).check(total).findings
    assert [finding.kind for finding in findings] == ["unknown"]


@pytest.mark.parametrize(("function", "kind"), [(lambda a: (-a, -a.T), "right"), (lambda a: (a, -a.T), "scale")])
def test_only_the_product_of_factors_is_compared_where_they_are_not_unique(function, kind):
    part = Value(
        halves,
        "B A",
        truth=halves,
        draw=lambda rng, i: {"a": rng.random((3 + i, 2))},
        compared_as=lambda tensors: {"B A": tensors["B"] @ tensors["A"]},
    )
    assert [(finding.tensor, finding.kind) for finding in part.check(function).findings] == [("B A", kind)]
