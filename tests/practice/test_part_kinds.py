"""Parts of exercises: infinite values, factors that are not unique, lists, arguments that change, names."""

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


def step(p, g):
    p -= g


def multiples(x):
    return 2 * x, 3 * x


def draw_step(rng, i):
    return {"p": rng.standard_normal(3), "g": rng.standard_normal(3)}


def draw_x(rng, i):
    return {"x": rng.standard_normal(3)}


def kinds(checked):
    return [(finding.tensor, finding.kind, finding.name) for finding in checked.findings]


def test_a_function_that_changes_an_argument_is_graded_by_what_that_is_afterwards():
    part = Value(step, changes="p", truth=step, draw=draw_step)

    @part.mistake("{it} goes up", "Which way?")
    def upwards(p, g):
        p += g

    def both(p, g):
        p -= g
        g[:] = 0

    assert kinds(part.check(step)) == [("p", "right", "")]
    assert kinds(part.check(upwards)) == [("p", "fault", "upwards")]
    assert kinds(part.check(lambda p, g: p - g)) == [("step", "unchanged", "")]
    assert kinds(part.check(both)) == [("step", "changed", "")]


def test_a_mistake_that_explains_every_result_is_named_before_one_that_explains_some():
    part = Value(multiples, "a b", truth=multiples, draw=draw_x, common=False)

    @part.mistake("{it} is of the first kind", "Which?")
    def first(x):
        return 5 * x, 7 * x

    @part.mistake("{it} is of the second kind", "Which?")
    def second(x):
        return 5 * x, 11 * x

    assert kinds(part.check(first)) == [("a", "fault", "first"), ("b", "fault", "first")]
    assert [name for *_, name in kinds(part.check(lambda x: (5 * x, 13 * x)))] == ["first", "second", ""]


def test_what_is_counted_is_what_is_compared():
    part = Value(
        multiples, "a b", truth=multiples, draw=draw_x, compared_as=lambda t: {"a b": np.multiply(t["a"], t["b"])}
    )
    assert part.results == ["a b"]
    assert kinds(part.check(lambda x: (3 * x, 2 * x))) == [("a b", "right", "")]
