"""Check a hand-written gradient against slopes that are measured from the forward alone.

For y = f(x) and a random upstream gradient dy, the scalar is L(x) = Σ dy ∘ y, and a gradient g of L is right when, for
random directions u, g·u is the slope of L along u: by central differences, by the complex step (see differences.py),
and, where f is given for PyTorch too, by autograd. For a small tensor the directions are its entries, each by itself.
dy is random because upstream gradients of all ones make the gradients of softmax and of the norms vanish, right or
wrong. As u is standard normal, g·u has the standard deviation ‖g‖: errors are given relative to ‖g‖. That of an entry
is relative to the entry itself, or to a thousandth of the root mean square of g if it is smaller than that.

The tolerance of each method holds an estimate of its own error:

    central difference D    its uncertainty; it is left out where that is above 1e-4 of g, as beside a constant of 1e12
    complex step            rounding: 100 η (size of L / size of x + size of g · size of x), at most 1e-6 of g. It is
                            left out where it contradicts D; elsewhere twice its distance from D is an error of D
    PyTorch                 the same rounding

A larger difference is measured again at a few points near x: there a mistake stays the same, and rounding does not. A
gradient that is exactly the same number at all of them, as 1 - p is 0 beside a confident p, is known to 100 η Σ|dy|.

A mistake of 1e-3 that would still not show makes the verdict "cannot tell"; entries below a thousandth of the root mean
square are only counted. A check can be worthless as a whole: at B = 0 the gradient of A is zero whatever is written, at
alpha = r a forgotten alpha/r is not seen, in a batch of one a mean is a sum, and where rounding drowns D, without a
complex step, nothing is seen. Such a check is refused with a ValueError that says why.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from ..backend import Array, Rng, generator
from ..nn import Gradients, Module, Parameter
from ..process import blas_threads
from .differences import (
    HIDES,
    NEAR,
    ROUNDING,
    SHORTER,
    TOLERANCE,
    central_differences,
    complex_steps,
    difference,
    imaginary,
    nearby,
    rms,
    scatter,
)
from .refusals import (
    Failed,
    as_constants,
    as_gradients,
    as_inputs,
    as_list,
    as_output,
    as_upstream,
    called,
    refuse_array,
    refuse_batch_of_one,
    refuse_blind_spots,
    refuse_call,
    refuse_names,
    twice,
    why_not_complex,
)
from .report import Report, Row

EXACT = 1e-6  # of a gradient: the most that rounding explains in the complex step and PyTorch, unless it is measured
MOST = {"central": 1e-3, "complex": 1e-6}  # of a gradient: the most that rounding measured near x explains
FAR = (0.003, 0.01, 0.03, 0.1)  # how far from x the complex step is compared again, relative to x
NOTHING = 1e-14  # of the size of L / x: what rounding leaves of a gradient that is zero
FAINT = 1e-3  # of the rms of a gradient: errors of smaller entries are relative to this
SMALL = 24  # a tensor of at most so many numbers is checked entry by entry


def check_backward(
    forward: Callable[..., tuple[Array, Any]],
    backward: Callable[[Array, Any], Any],
    inputs: Mapping[str, np.ndarray],
    *,
    gradients: Callable[[Array, Any], Any] | None = None,
    constants: Mapping[str, Any] | None = None,
    **words: Any,
) -> Report:
    """Check `y, cache = forward(*inputs, **constants)` with `backward(dy, cache)` and `gradients(dy, cache)`.

    Together the last two return one gradient per input, in order: backward the first, gradients the rest. Other
    `words` and what is raised: as check_gradient.
    """
    refuse_call("the check", "forward", forward, list(as_inputs(inputs)), as_constants(constants))
    for what, function in (("backward", backward), ("gradients", gradients)):
        if function is not None:
            refuse_call("the check", what, function, ["dy", "cache"], {})

    def run(arrays: Sequence[Array], named: Mapping[str, Any]) -> tuple[Array, Any]:
        result = called("forward", forward, dict(zip(inputs, arrays, strict=True)), named)
        if not isinstance(result, tuple) or len(result) != 2:
            raise Failed("forward must return (y, cache); a function that returns y alone goes to check_gradient")
        return result

    def f(*arrays: Array, **named: Any) -> Array:
        return run(arrays, named)[0]

    def grad(dy: Array, *arrays: Array, **named: Any) -> list[Array]:
        given = {"dy": dy, "cache": run(arrays, named)[1]}
        found = as_list(called("backward", backward, given, {}))
        return [*found, *as_list(called("gradients", gradients, given, {}))] if gradients else found

    return check_gradient(f, grad, inputs, constants=constants, **words)


@blas_threads()
def check_gradient(
    f: Callable[..., Array],
    grad: Callable[..., Sequence[Array]],
    inputs: Mapping[str, np.ndarray],
    *,
    constants: Mapping[str, Any] | None = None,
    zero: Collection[str] = (),
    torch: Callable[..., Any] | None = None,
    dy: Array | None = None,
    rng: Rng = 0,
    directions: int = 3,
    one_row: bool = False,
) -> Report:
    """Check `grad(dy, *inputs, **constants)`, one gradient per input, against `f(*inputs, **constants)`.

    `constants` are what has no gradient: ids, masks, alpha, r. `torch` is f again over PyTorch tensors. The inputs
    named in `zero` must have a gradient of zero, and others must not. `dy` and `rng` have good defaults. `one_row` lets
    a batch of one pass.

    Raises ValueError where the check would be worthless: inputs or a dy that are not float64; a constant dy for an f
    that is not a scalar; B = 0, alpha = r or a scale of 1 (by those names, or PEFT's); a batch of one that hides a mean
    over the rows; an f or a grad that raises, writes to its inputs or returns something else when called again; a kink
    (ReLU, max) or the edge of f's domain at the inputs; an f so much larger than its gradient that rounding hides a
    mistake; a gradient that is zero by every method and not named in `zero`; another number of gradients than inputs.
    """
    rng = generator(rng)
    inputs, named = as_inputs(inputs), as_constants(constants)
    refuse_blind_spots(inputs, named)
    if directions < 1:
        raise ValueError(f"directions={directions}: a large tensor needs one direction at least")
    refuse_names(zero, inputs)
    refuse_call("the check", "f", f, list(inputs), named)
    refuse_call("the check", "grad", grad, ["dy", *inputs], named)
    arrays = list(inputs.values())
    y = twice("f", lambda *_: [as_output(called("f", f, inputs, named))], inputs)[0]
    if not one_row:
        refuse_batch_of_one(f, inputs, named, y)
    dy = as_upstream(rng.standard_normal(y.shape) if dy is None else dy, y)
    given = {"dy": dy, **inputs}
    gradients = twice("grad", lambda *_: as_gradients(called("grad", grad, given, named), list(inputs)), given)

    def at(i: int, arrays: Sequence[np.ndarray], x: Array) -> Array:
        others = [a.astype(x.dtype) for a in arrays]
        return (dy * f(*others[:i], x, *others[i + 1 :], **named)).sum()

    def near(i: int, shifts: Iterable[Any]) -> Iterator[Point]:
        last_bits = np.random.default_rng(0)
        for x in nearby(arrays[i], shifts):
            moved = [a * (1 + 1e-9 * last_bits.uniform(-1, 1, a.shape)) for a in arrays]
            moved[i] = x
            try:
                with np.errstate(all="ignore"):
                    g = as_gradients(grad(dy, *moved, **named), list(inputs))[i]
            except (ArithmeticError, ValueError):  # outside of its domain
                g = np.full_like(x, np.nan)
            yield Point(partial(at, i, moved), x, g)

    expected = torch_gradients(torch, dy, inputs, named) if torch else [None] * len(arrays)
    why_not = why_not_complex(lambda: f(*(a + 1e-30j for a in arrays), **named))
    how = How(rng, directions, why_not, float(np.abs(dy * y).sum()), float(np.abs(dy).sum()))
    return Report(
        [
            check_tensor(name, Point(partial(at, i, arrays), x, g), how, name in zero, e, partial(near, i))
            for i, (name, x, g, e) in enumerate(zip(inputs, arrays, gradients, expected, strict=True))
        ]
    )


@blas_threads()
def check_model(
    model: Module,
    loss: Callable[[], Array],
    grads: Gradients,
    *,
    rng: np.random.Generator,
    zero: Collection[str] = (),
    directions: int = 2,
    complex_step: bool = True,
) -> Report:
    """Check `grads`, as backward left it, against `loss()`, which runs the model's forward to a scalar.

    One row per trainable parameter of `model`, which must be in float64; those named in `zero` must have none.
    Raises ValueError where the gradients are not exactly those of the trainable parameters, and as check_gradient.
    """
    parameters = model.trainable_parameters()
    if set(grads) != set(parameters.values()):
        raise ValueError("the gradients are not those of the trainable parameters")
    refuse_names(zero, model.named_parameters())
    for name, parameter in parameters.items():
        refuse_array(name, parameter.data)
    before = {parameter: parameter.data for parameter in model.named_parameters().values()}

    def at(parameter: Parameter, x: Array) -> Array:
        for other, data in before.items():
            other.data = data.astype(x.dtype)
        parameter.data = x
        return loss()

    value = np.asarray(loss())
    if value.shape:
        raise ValueError(f"loss() has shape {value.shape}: it must be one number")
    how = How(rng, directions, None if complex_step else "", abs(float(value)), 1.0, small=0)
    rows = []
    try:
        for name, parameter in parameters.items():
            here = Point(partial(at, parameter), before[parameter], grads[parameter])
            rows.append(check_tensor(name, here, how, name in zero))
    finally:
        for parameter, data in before.items():
            parameter.data = data
    return Report(rows)


class How(NamedTuple):
    """The settings of one check, and the size of its scalar L, a sum of terms dy ∘ y."""

    rng: np.random.Generator
    directions: int
    why_not: str | None  # why no complex step is taken; None if one is
    size: float  # Σ |dy ∘ y|
    unit: float  # Σ |dy|: the size of a gradient where y changes as much as x
    small: int = SMALL


class Point(NamedTuple):
    """One tensor: L, which keeps all others as they are, its value x, and the gradient g under test."""

    L: Callable[[Array], Array]
    x: np.ndarray
    g: np.ndarray


class Method(NamedTuple):
    values: np.ndarray  # the slope of L along each direction
    uncertainty: np.ndarray
    shifts: list[Any]  # how far from x it is compared again
    again: Callable[[Point, float], np.ndarray]  # the slopes at another point, with the step times a number


def check_tensor(
    name: str,
    here: Point,
    how: How,
    zero: bool,
    torch: np.ndarray | None = None,
    near: Callable[[Iterable[Any]], Iterable[Point]] = lambda shifts: (),
) -> Row:
    """One row: is the gradient `here` that of L? `torch` is PyTorch's; `near(shifts)` are points that far off."""
    L, x, g = here
    row = Row(name, x.shape, {})
    if g.shape != x.shape:
        row.note = f"wrong shape {g.shape}: it must be that of {name}, {x.shape}"
        return row
    if not np.all(np.isfinite(g)):
        row.note = "wrong: not a finite number"
        return row
    entries = x.size <= how.small
    us = np.eye(x.size).reshape(-1, *x.shape) if entries else how.rng.standard_normal((how.directions, *x.shape))
    central = central_differences(name, L, x, us, how.size, how.unit)
    steps = complex_steps(L, x, us, central) if how.why_not is None else None
    why_not = "f is not analytic" if how.why_not is None and steps is None else how.why_not
    true = central.values if steps is None else steps
    width = max(1.0, rms(x))
    terms = how.size / width  # of a gradient: the size that they may have before they cancel
    nothing = NOTHING * terms
    hidden = central.worst if steps is None else nothing

    # Is there a gradient at all, and can it be seen?
    norm, slope = rms(g) * math.sqrt(g.size), float(np.abs(true).max())
    vanishes = norm <= max(nothing, central.worst) and slope <= hidden
    if hidden > HIDES * how.unit if vanishes else central.blind and steps is None and torch is None and not zero:
        raise ValueError(
            f"rounding hides the gradient of {name}: f is of size {how.size:.0e} here, and its slope {slope:.0e} "
            f"± {hidden:.0e}; take the constant out of f, or make it accept complex arrays"
        )
    if zero and not vanishes:
        row.note = f"wrong: named in zero, but its norm is {norm:.1e}, and f has a slope of {slope:.1e}"
        return row
    if vanishes and not zero:
        raise ValueError(
            f"the gradient of {name} is zero by every method, so any would pass: if it must be, say zero=[{name!r}]; "
            "if not, choose other inputs (a saturated sigmoid or softmax has none)"
        )
    if norm == 0 and not zero and slope > ROUNDING * how.unit:
        row.note = "wrong: zero everywhere"
        return row

    # What each method's error is relative to, and how far the method itself may be off
    scale = rms(g if norm else true) * (1 if entries else math.sqrt(g.size))
    if zero:
        row.note, scale = "zero, as it must be", terms or 1.0
    elif why_not:
        row.remark(f"no complex step: {why_not}")
    along = slopes(g, us)
    scales = np.maximum(np.abs(true), FAINT * scale) if entries and not zero else np.full(len(us), scale)
    exact = np.full(len(us), min(ROUNDING * (terms + scale * width), EXACT * scale))
    methods: dict[str, Method] = {}
    if central.blind and not zero:
        row.remark("no central difference: rounding hides it")
    else:
        t, unsure = central.t, central.uncertainty if entries else np.full(len(us), central.worst)
        unsure = np.maximum(unsure, 2 * np.abs(central.values - true))  # its error, where the complex step is believed
        methods["central"] = Method(
            central.values, unsure, [NEAR * t] * len(SHORTER), lambda p, shorter: difference(p.L, p.x, us, shorter * t)
        )
    if steps is not None:
        shifts = [NEAR * central.t + far * np.abs(x) for far in FAR]
        methods["complex"] = Method(steps, exact, shifts, lambda p, _: imaginary(p.L, p.x, us))

    # The errors
    seen = np.full(len(us), math.inf)  # the least mistake that is
    for kind, method in methods.items():
        off, unsure = np.abs(method.values - along), method.uncertainty
        beyond, most = float((off - TOLERANCE[kind] * scales - unsure).max()), MOST[kind] * max(how.unit, scale)
        if 0 < beyond <= most:
            unsure = unsure + np.minimum(rounding_between(method, here, near(method.shifts), us, how.unit), most)
        seen = np.minimum(seen, row.add(kind, off, scales, unsure))
    off = np.abs(true - along)
    if torch is not None:
        each = scales if entries else np.full(g.size, scale if zero else rms(g))
        off = np.abs(g - torch).reshape(-1)
        found = row.add("torch", off, each, np.full(g.size, exact[0] * each.max() / scale))
        seen = np.minimum(seen, found) if entries else seen
    if entries or torch is not None:
        worst = (off / scales).argmax() if entries else off.argmax()
        row.where = tuple(int(i) for i in np.unravel_index(worst, x.shape))
    # The entries in which even a mistake of 1e-3 would not be seen
    if entries and not zero:
        size, least = np.maximum(np.abs(true), np.abs(along)), FAINT * scale
        agree = (np.abs(true - along) <= HIDES * size) & (steps is not None)
        hidden = (seen > HIDES * size) & (size >= least) & ~agree
        small = (seen > HIDES * np.abs(true)) & (np.abs(true) < least) & (size > 0) & ~hidden
        row.hide(int(hidden.sum()), int(small.sum()), x.size)
    elif methods and how.small and not zero:
        faint = (g != 0) & np.all([HIDES * np.abs(u * g) <= least for u, least in zip(us, seen, strict=True)], axis=0)
        blind = bool(np.any(seen > HIDES * scale))
        row.hide(x.size * blind, int(faint.sum()) * (not blind), x.size)
    return row


def slopes(g: np.ndarray, us: np.ndarray) -> np.ndarray:
    return us.reshape(len(us), -1) @ g.reshape(-1)


def rounding_between(
    method: Method, here: Point, near: Iterable[Point], us: np.ndarray, unit: float
) -> np.ndarray | float:
    """How far rounding may put a method and g·u apart: what changes from point to point. 0 where there is no other."""
    points = [here, *near]
    if len(points) == 1:
        return 0.0
    with np.errstate(all="ignore"):
        found = np.array([method.again(point, shorter) for point, shorter in zip(points, (1, *SHORTER), strict=True)])
        mine = np.array([slopes(point.g, us) for point in points])
        off, size = found - mine, np.maximum(np.abs(found), np.abs(mine))
        changes = np.fmin(scatter(off), size[0] * scatter(off / size))  # a factor that is missing stays one
    stuck = np.ptp([point.g.reshape(-1) for point in points], axis=0) == 0
    stuck = (np.ptp(found, axis=0) == 0) | np.any(us.reshape(len(us), -1) * stuck, axis=1)
    return changes + ROUNDING * unit * stuck


def torch_gradients(
    f: Callable[..., Any], dy: np.ndarray, inputs: Mapping[str, np.ndarray], constants: Mapping[str, Any]
) -> list[np.ndarray]:
    import torch

    tensors = {name: torch.tensor(x, requires_grad=True) for name, x in inputs.items()}
    y = called("torch", f, tensors, constants)
    if tuple(y.shape) != dy.shape:
        raise ValueError(f"torch returns shape {tuple(y.shape)}, and f {dy.shape}")
    gradients = torch.autograd.grad((torch.tensor(dy) * y).sum(), list(tensors.values()), materialize_grads=True)
    return [g.numpy() for g in gradients]
