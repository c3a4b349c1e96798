"""Explanations by values alone, for any function."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from ...backend import Array
from ..case import Tensors, relative_error
from ..language import Words, either, joined, words
from ..scale import SAME, readings
from .finding import Finding, WrongTensor, same


def rearranged(w: WrongTensor) -> Finding | None:
    """The true gradient, or a multiple of it, with axes exchanged."""
    axes = w.gradient[0].ndim
    if any(x.ndim != axes for x in w.gradient) or axes > 4:
        return None
    for order in itertools.islice(itertools.permutations(range(axes)), 1, None):
        factors = w.multiples([x.transpose(order) for x in w.gradient], w.true)
        if factors and factors[0] != "0":
            if axes == 2 or order == (*range(axes - 2), axes - 1, axes - 2):
                how = words("{it} is transposed")
            else:
                how = words("{it} has its axes in the order {order}", order=listed(np.argsort(order)))
            if factors == ["1"]:
                return w.finding("shape", "{how}", how=how.filled(it=w.tensor))
            return w.finding(
                "shape",
                "{how}, and {factor} times the true gradient",
                how=how.filled(it=w.tensor),
                factor=one_or_other(factors),
            )
    return None


def one_or_other(factors: Sequence[str]) -> Words:
    return joined(" or ", (Words(factor, factor) for factor in factors))


def listed(numbers: Sequence[int] | Array) -> str:
    return ", ".join(map(str, numbers))


def other_tensor(w: WrongTensor) -> Finding | None:
    """The gradient of another input."""
    for other in w.expected[0]:
        if other != w.tensor and same(w.gradient, [t[other] for t in w.expected]):
            return w.finding(
                "terms",
                "{it} holds the gradient {other}",
                "Which name did you write twice, or in which order do you return the gradients?",
                other=other,
            )
    return None


def shape(w: WrongTensor) -> Finding | None:
    """A wrong shape: the right values in another shape, or not yet summed."""
    gradient, true = w.gradient, w.true
    if w.same_shapes:
        return None
    a, b = next((str(x.shape), str(t.shape)) for x, t in zip(gradient, true, strict=True) if x.shape != t.shape)
    if same([x.reshape(-1) for x in gradient], [t.reshape(-1) for t in true]):
        return w.finding("shape", "{it} has the right numbers in the shape {a}, it must be {b}", a=a, b=b)
    for n in range(1, gradient[0].ndim):
        for axes in itertools.combinations(range(gradient[0].ndim), n):
            if same([x.sum(axis=axes) if x.ndim > max(axes) else x for x in gradient], true):
                return w.finding("shape", "{it} is right once it is summed over axis {axes}", axes=listed(axes))
    return w.finding(
        "shape",
        "{it} has shape {a}, it must have {b}",
        "A gradient has the shape of what it belongs to, {input}: which axes are summed over, and in which order do "
        "the factors stand?",
        a=a,
        b=b,
        input=w.tensor[1:],
    )


def scaled(w: WrongTensor) -> Finding | None:
    """The true gradient times a number that is written with the problem's constants."""
    products = w.multiples(w.gradient, w.true)
    return multiple(w, products) if products else None


def unread(w: WrongTensor) -> Finding | None:
    """The true gradient times numbers that no product of constants makes."""
    factors = [c for c in w.factors if c is not None]
    if len(factors) < len(w.cases) or max(t.size for t in w.true) == 1:  # one number is a multiple of any other
        return None
    return w.finding(
        "scale",
        "{it} is the true gradient times {numbers}, a number for each case; with fewer than three cases it cannot be "
        "said of which constants these are made"
        if len(w.cases) < 3
        else "{it} is the true gradient times {numbers}, a number for each case; no product of up to three constants "
        "explains them, or more than one does",
        "Print every factor and divisor in each case: which of them takes these values?",
        numbers=", ".join(f"{c:.4g}" for c in factors),
    )


def multiple(w: WrongTensor, products: Sequence[str]) -> Finding:
    """The true gradient times a number that is any of these products."""
    usual = {"-1": words("has the wrong sign"), "2": words("is counted twice"), "0": words("is zero")}
    what = [usual.get(c, words("is {product} times the true gradient", product=c)) for c in products]
    if len(what) == 1:
        return w.finding("scale", "{it} {what}", what=what[0])
    return w.finding("scale", "{it} {what}: the same number in these cases", what=either(what))


def added(w: WrongTensor) -> Finding | None:
    """The true gradient plus a multiple of dy or of an input, its own included: weight decay, or a path too many."""
    if not w.same_shapes:
        return None
    own = w.tensor[1:]
    for name in dict.fromkeys(["dy", own, *w.cases[0].inputs]):
        extra = [np.asarray(case.dy if name == "dy" else case.inputs[name]) for case in w.cases]
        fits = fitted(w.gradient, [w.true, extra])
        if fits is None or max(x.size for x in extra) < 4:  # of a few numbers, any two tensors make any other
            continue
        whole, parts = readings(fits[:, 0].tolist(), w.sizes), fits[:, 1]
        if not np.any(parts) or len({*np.sign(parts)}) > 1:
            continue
        steady = np.ptp(parts) < 1e-6 * np.abs(parts).max()  # the same number in every case
        decay = name == own and steady
        if whole != ["1"] and (not decay or whole in ([], ["0"])):
            continue
        sizes = [f"{abs(parts[0]):.4g}"] if steady else readings(np.abs(parts), w.sizes)
        if not sizes:
            continue
        true = words("the true gradient")
        if whole != ["1"]:
            true = words("{factor} times the true gradient", factor=one_or_other(whole))
        part = name if sizes == ["1"] else f"{', '.join(sizes)} {name}"
        says = "{it} is {true} plus {part}" if parts[0] > 0 else "{it} is {true} minus {part}"
        asks = "What was in the array before the gradient was added to it, and why {name}?"
        if name == "dy":
            asks = "Is there a path that passes dy on unchanged, and how often?"
        elif decay and sizes != ["1"]:
            return w.finding(
                "terms",
                "{sum}: weight decay inside the gradient",
                "Does the loss hold a penalty on ‖{name}‖²? If not, who applies weight decay: gradient or optimizer?",
                sum=words(says, it=w.tensor, true=true, part=part),
                name=name,
            )
        return w.finding("terms", says, asks, true=true, part=part, name=name)
    return None


def fitted(gradient: Sequence[Array], parts: Sequence[Sequence[Array]]) -> Array | None:
    """The coefficients, a row for each case, with which the parts add up to `gradient`; None unless they are unique."""
    rows = []
    for i, target in enumerate(gradient):
        if any(part[i].shape != target.shape for part in parts):
            return None
        matrix = np.stack([part[i].reshape(-1) for part in parts], axis=1)
        lengths = np.linalg.norm(matrix, axis=0)
        if not np.all(lengths) or np.linalg.matrix_rank(matrix / lengths, tol=1e-6) < len(parts):
            return None
        solution = np.linalg.lstsq(matrix / lengths, target.reshape(-1))[0]
        if relative_error(matrix / lengths @ solution, target.reshape(-1)) > SAME:
            return None
        small = np.abs(solution) < 1e-9 * np.abs(solution).max()
        rows.append(np.where(small, 0, solution) / lengths)
    return np.array(rows)


def clipped(w: WrongTensor) -> Finding | None:
    """Clipped entry by entry, or to a norm."""
    if not w.same_shapes or any(x.size == 1 for x in w.gradient):
        return None
    asks = "Is clipping a part of forward, or of the step that comes after backward?"
    off = [not relative_error(a, b) < SAME for a, b in zip(w.gradient, w.true, strict=True)]
    bounds = [float(np.abs(a).max()) for a, wrong in zip(w.gradient, off, strict=True) if wrong]
    bound = max(bounds)
    cut = np.ptp(bounds) < 1e-6 * bound and same(w.gradient, [np.clip(t, -bound, bound) for t in w.true])
    if cut and sum(int((np.abs(t) > bound).sum()) for t in w.true) > 1:
        return w.finding("scale", "{it} is clipped to ±{bound}, entry by entry", asks, bound=f"{bound:.4g}")
    factors = w.factors
    if any(c is None or c <= 0 for c in factors) or sum(off) < 2:
        return None

    def norms(tensors: Sequence[Tensors], names: Sequence[str]) -> list[float]:
        squares = [sum(float((t[name] ** 2).sum()) for name in names) for t in tensors]
        return [float(np.sqrt(s)) for s, wrong in zip(squares, off, strict=True) if wrong]

    for names in ([w.tensor], list(w.expected[0])):
        if any(g[name].shape != t[name].shape for g, t in zip(w.actual, w.expected, strict=True) for name in names):
            continue
        shortened = norms(w.actual, names)
        if not np.ptp(shortened) < 1e-5 * max(shortened):  # as PyTorch divides by the norm + 1e-6
            continue
        norm = words("the norm") if len(names) == 1 else words("the norm of all gradients together")
        shorter = all(c is not None and c < 1 + SAME for c in factors)
        if shorter and not all(off):
            says = "{it} is clipped: shortened to {norm} {value}"
        elif shorter:
            says = "{it} is shortened to {norm} {value} in every case: clipped, or normalised"
        elif all(off):
            says = "{it} is normalised: {norm} is {value} in every case"
        else:
            continue
        return w.finding("scale", says, asks, norm=norm, value=f"{shortened[0]:.4g}")
    return None
