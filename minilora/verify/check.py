"""Check a hand-written gradient against slopes that are measured from the forward alone.

For y = f(x) and a random upstream gradient dy, the scalar is L(x) = Σ dy ∘ y, and a gradient g of L is right when, for
random directions u, g·u is the slope of L along u: by central differences, by the complex step (see differences.py),
and, where f is given for PyTorch too, by autograd. For a small tensor the directions are its entries, each by itself.
dy is random because upstream gradients of all ones make the gradients of softmax and of the norms vanish, right or
wrong. As u is standard normal, g·u has the standard deviation ‖g‖: errors are given relative to ‖g‖. That of an entry
is relative to the entry itself, or to a thousandth of the root mean square of g if it is smaller than that.

The tolerance of each method holds an estimate of its own error:

    central difference D    its uncertainty; D is left out where that is above 1e-4 of g, as when f adds a 1e12
    complex step            rounding: 100 η (size of L / size of x + size of g · size of x), at most 1e-6 of g, where
                            η = 2e-16. The step is left out where it contradicts D; else D's error is at least twice
                            their distance
    PyTorch                 the same rounding

A larger difference is measured again at a few points near x: there a mistake stays the same, and rounding does not. A
gradient that is exactly the same at all of them (1 - p is 0 for p near 1) has an uncertainty of 100 η Σ|dy|.

A mistake of 1e-3 that would still not show makes the verdict "cannot tell"; entries below a thousandth of the root mean
square are only counted. A check can be worthless as a whole: at B = 0 the gradient of A is zero whatever is written, at
alpha = r a forgotten alpha/r is not seen, in a batch of one a mean is a sum, and where rounding drowns D, without a
complex step, nothing is seen. Such a check is refused with a ValueError that says why.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from ..backend import Array, Rng, generator
from ..nn import Gradients, Module, Parameter
from ..process import blas_threads
from .check_tensor import How, Point, check_tensor
from .differences import nearby
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
from .report import Report


def check_backward(
    forward: Callable[..., tuple[Array, Any]],
    backward: Callable[[Array, Any], Any],
    inputs: Mapping[str, np.ndarray],
    *,
    gradients: Callable[[Array, Any], Any] | None = None,
    constants: Mapping[str, Any] | None = None,
    **options: Any,
) -> Report:
    """Check `y, cache = forward(*inputs, **constants)` with `backward(dy, cache)` and `gradients(dy, cache)`.

    Together the last two return one gradient per input, in order: backward the first, gradients the rest. The other
    `options` and the errors are those of check_gradient.
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

    return check_gradient(f, grad, inputs, constants=constants, **options)


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
    Raises ValueError where the gradients are not exactly those of the trainable parameters, and where check_gradient
    does.
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
