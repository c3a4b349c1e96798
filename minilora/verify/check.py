"""Checking a hand-written gradient against numbers it had no part in.

For y = f(x) and a random upstream gradient dy, the scalar is L(x) = Σ dy ∘ y, and a gradient g of L is right when,
for random directions u,

    central difference      D = (8 δ(t) - δ(2t)) / 12t  =  g·u  + O(t⁴) + rounding/t        δ(t) = L(x + tu) - L(x - tu)
    complex step            Im L(x + ihu) / h           =  g·u  + O(h²): h = 1e-30 rounds nothing away
    PyTorch                 autograd's gradient         =  g

(Squire, Trapp, 1998, for the second, which needs an f that is analytic and takes complex arrays.) For a small tensor
the directions are its entries, each by itself. dy is random because upstream gradients of all ones make the gradients
of softmax and of the norms vanish, right or wrong. As u is standard normal, g·u has the deviation ‖g‖: errors are
given relative to ‖g‖. That of an entry is relative to the entry itself, or to a thousandth of the root mean square of
g if it is smaller than that.

The step t. How far D may be off is measured at the same four points, with β(t) = L(x + tu) - 2 L(x) + L(x - tu):

    jump        (4 β(t) - β(2t)) / 2t       the slope to the right of x less that to its left, extrapolated to t = 0
    bend        (δ(2t) - 2 δ(t)) / 12t      the error of the plain δ(t) / 2t, which D takes away
    rounding    100 η (size of L + |D| · size of x) / t         η = 2e-16

    uncertainty = |jump| + 4 |bend| + rounding                  of each entry, or the largest over random directions

Where L is smooth the jump is O(t³), the bend O(t²), and D better than both. Where the second derivative jumps, as in
squared ReLU, Huber and ELU, D is off by O(t): for L = as + c max(s - s₀, 0)² along u, by c (4t² - 12 s₀t + 7 s₀²) / 12t
if 0 ≤ s₀ ≤ t. The jump misses that at s₀ = 0, but 2 bend = c (4t² - 2 s₀²) / 12t is never less. At a kink the jump is
the same at every t, and under rounding it grows with 1/t. So t is divided by 4 until D is sure to 1e-7, or as long as
rounding allows; if that was no use, it is multiplied by 4, and the bend is D(t) - D(t/4) where that is less: O(t⁴)
where L is smooth, and three quarters of the error where f'' jumps. (After Ridders, 1982, who extrapolates over many.)
The uncertainty that is left is part of the tolerance. The complex step is believed unless it is further from D than
that. Where D is less sure than 1e-4, as beside a constant of 1e12, it says nothing: the complex step decides alone.
An entry that could be left out without being noticed is counted in the row. For the other two methods rounding leaves
100 η (size of L / size of x + size of g · size of x): what cancels in g, and what x itself has lost.

A check can be worthless: at B = 0 the gradient of A is zero whatever is written, at alpha = r a forgotten alpha/r is
not seen, and where rounding drowns D, without a complex step, nothing is. What makes it so is refused with a
ValueError that says why.
"""

from __future__ import annotations

import html
import inspect
import math
import sys
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from ..backend import Array
from ..modules import Gradients, Module, Parameter
from ..process import blas_threads

STEP = 2e-5  # the first t, for inputs of size 1: the bend is then near 1e-10, and rounding mostly below 1e-7
ROUNDING = 100 * sys.float_info.epsilon  # of a scalar L, relative to the size of its terms, with room to spare
TOLERANCE = {"central": 1e-7, "complex": 1e-11, "torch": 1e-11}
HIDES = 1e-4  # a central difference that is less sure than this, relatively, is no check
EXACT = 1e-6  # what rounding may be held responsible for in the other two
NOTHING = 1e-14  # of the size of L / x: what rounding leaves of a gradient that is zero
FAINT = 1e-3  # of the rms of a gradient: errors of smaller entries are relative to this
SMALL = 24  # a tensor of at most so many numbers is checked entry by entry


@dataclass
class Row:
    """One tensor: the worst relative error by each method, None where the method was not used."""

    tensor: str
    shape: tuple[int, ...]
    errors: dict[str, float | None]
    where: tuple[int, ...] | None = None  # the entry with the largest error, if entries were looked at
    note: str = ""
    uncertainty: dict[str, float] = field(default_factory=dict)  # of each method's number, relative as the errors are

    def limit(self, method: str) -> float:
        """The largest error that rounding and truncation explain."""
        return TOLERANCE[method] + self.uncertainty.get(method, 0.0)

    def add(self, method: str, off: np.ndarray, scales: np.ndarray, uncertainty: np.ndarray) -> np.ndarray:
        """Keep the number that is worst for its limit, of those that are `off`; return the limits, absolute."""
        limits = TOLERANCE[method] * scales + uncertainty
        worst = int((off / limits).argmax())
        self.errors[method] = float(off[worst] / scales[worst])
        self.uncertainty[method] = float(uncertainty[worst] / scales[worst])
        return limits

    @property
    def ok(self) -> bool:
        return not self.note.startswith("wrong") and all(
            e is None or e <= self.limit(method) for method, e in self.errors.items()
        )

    def cells(self) -> list[str]:
        errors = ["-" if (e := self.errors.get(method)) is None else f"{e:.1e}" for method in TOLERANCE]
        where = "-" if self.where is None or self.ok else str(list(self.where))
        verdict = "; ".join(filter(None, ["ok" if self.ok else "WRONG", self.note.removeprefix("wrong: ")]))
        return [self.tensor, str(self.shape), *errors, where, verdict]


HEAD = ["tensor", "shape", *TOLERANCE, "worst at", "verdict"]


@dataclass(repr=False)
class Report:
    """A table of rows: print it, or call raise_if_wrong() in a test."""

    rows: list[Row] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return bool(self.rows) and all(row.ok for row in self.rows)

    def worst(self, method: str = "central") -> float:
        return max(e for row in self.rows if (e := row.errors.get(method)) is not None)

    def __str__(self) -> str:
        table = [HEAD, *(row.cells() for row in self.rows)]
        widths = [max(len(cells[i]) for cells in table) for i in range(len(HEAD))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) for cells in table]
        return "\n".join(line.rstrip() for line in [lines[0], "-" * len(lines[0]), *lines[1:]])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """The same table in a notebook."""
        head = "".join(f"<th>{name}</th>" for name in HEAD)
        rows = ("".join(f"<td>{html.escape(cell)}</td>" for cell in row.cells()) for row in self.rows)
        return f"<table><tr>{head}</tr>{''.join(f'<tr>{cells}</tr>' for cells in rows)}</table>"

    def raise_if_wrong(self) -> None:
        """Raise AssertionError with the table unless every row is ok."""
        if not self.ok:
            raise AssertionError(f"a gradient is wrong\n{self}")


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

    def run(*arrays: Array, **named: Any) -> tuple[Array, Any]:
        result = forward(*arrays, **named)
        if not isinstance(result, tuple) or len(result) != 2:
            raise ValueError("forward must return (y, cache); a function that returns y alone goes to check_gradient")
        return result

    def f(*arrays: Array, **named: Any) -> Array:
        return run(*arrays, **named)[0]

    def grad(dy: Array, *arrays: Array, **named: Any) -> list[Array]:
        _, cache = run(*arrays, **named)
        return [*as_list(backward(dy, cache)), *(as_list(gradients(dy, cache)) if gradients else [])]

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
    rng: np.random.Generator | None = None,
    directions: int = 3,
) -> Report:
    """Check `grad(dy, *inputs, **constants)`, one gradient per input, against `f(*inputs, **constants)`.

    `constants` are what has no gradient: ids, masks, alpha, r. `torch` is f again over PyTorch tensors. The inputs
    named in `zero` must have a gradient of zero, and others must not. `dy` and `rng` have good defaults.

    Raises ValueError where the check would be worthless: inputs or a dy that are not float64; a constant dy for an f
    that is no scalar; B = 0, or alpha = r (by those names); an f or a grad that writes to its inputs or gives another
    answer the second time; a kink (ReLU, max) or the edge of f's domain at the inputs; an f so much larger than its
    gradient that rounding hides a mistake; a gradient that is zero by every method and not named in `zero`; another
    number of gradients than inputs.
    """
    rng = np.random.default_rng(0 if rng is None else rng)
    inputs, named = as_inputs(inputs), as_constants(constants)
    refuse_blind_spots(inputs, named)
    if directions < 1:
        raise ValueError(f"directions={directions}: a large tensor needs one direction at least")
    refuse_names(zero, inputs)
    refuse_call("the check", "f", f, list(inputs), named)
    refuse_call("the check", "grad", grad, ["dy", *inputs], named)
    arrays = list(inputs.values())
    y = twice("f", lambda *a: [as_output(f(*a, **named))], arrays)[0]
    dy = as_upstream(rng.standard_normal(y.shape) if dy is None else dy, y)
    gradients = twice("grad", lambda d, *a: as_gradients(grad(d, *a, **named), list(inputs)), [dy, *arrays])

    def at(i: int, x: Array) -> Array:
        others = [a.astype(x.dtype) for a in arrays]
        return (dy * f(*others[:i], x, *others[i + 1 :], **named)).sum()

    expected = torch_gradients(partial(torch, **named), dy, arrays) if torch else [None] * len(arrays)
    why_not = why_not_complex(lambda: f(*(a.astype(complex) for a in arrays), **named))
    how = How(rng, directions, why_not, float(np.abs(dy * y).sum()), float(np.abs(dy).sum()))
    return Report(
        [
            check_tensor(name, partial(at, i), x, g, how, name in zero, e)
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
            L, x, g = partial(at, parameter), before[parameter], grads[parameter]
            rows.append(check_tensor(name, L, x, g, how, name in zero))
    finally:
        for parameter, data in before.items():
            parameter.data = data
    return Report(rows)


class How(NamedTuple):
    """How the tensors of one check are looked at, and what is known of L, a sum of terms dy ∘ y."""

    rng: np.random.Generator
    directions: int
    why_not: str | None  # no complex step is taken; None if one is
    size: float  # Σ |dy ∘ y|
    unit: float  # Σ |dy|: the size of a gradient where y changes as much as x
    small: int = SMALL


def check_tensor(
    name: str, L: Callable[[Array], Array], x: np.ndarray, g: np.ndarray, how: How, zero: bool, torch: Any = None
) -> Row:
    """One tensor: L(x) is the scalar, g the gradient under test, `torch` that of PyTorch."""
    row, size = Row(name, x.shape, {}), how.size
    if g.shape != x.shape:
        row.note = f"wrong shape {g.shape}"
        return row
    if not np.all(np.isfinite(g)):
        row.note = "wrong: not a finite number"
        return row
    entries = x.size <= how.small
    us = np.eye(x.size).reshape(-1, *x.shape) if entries else how.rng.standard_normal((how.directions, *x.shape))
    along = np.array([float((g * u).sum()) for u in us])
    central = central_differences(name, L, x, us, size)
    steps = complex_steps(L, x, us, central) if how.why_not is None else None
    why_not = "f is not analytic" if how.why_not is None and steps is None else how.why_not
    width = max(1.0, rms(x))
    terms = size / width  # of a gradient: the size that they may have before they cancel
    nothing = NOTHING * terms
    true, hidden = (central.values, central.worst) if steps is None else (steps, nothing)
    row.note = f"no complex step: {why_not}" if why_not else ""

    norm, slope = rms(g) * math.sqrt(g.size), float(np.abs(true).max())
    vanishes = norm <= max(nothing, central.worst) and slope <= hidden
    if hidden > HIDES * how.unit if vanishes else central.blind and steps is None and torch is None and not zero:
        raise ValueError(
            f"rounding hides the gradient of {name}: f is of size {size:.0e} here, and its slope {slope:.0e} "
            f"± {hidden:.0e}; take the constant out of f, or make it accept complex arrays"
        )
    if zero and not vanishes:
        row.note = f"wrong: named in zero, but its norm is {norm:.1e}, and f has a slope of {slope:.1e}"
        return row
    if vanishes and not zero:
        raise ValueError(
            f"the gradient of {name} is zero by every method, so any would pass: if it must be, say zero=[{name!r}]"
        )
    if norm == 0 and not zero:
        row.note = "wrong: zero everywhere"
        return row

    scale = rms(g) if entries else norm
    if zero:
        row.note, scale = "zero, as it must be", terms or 1.0
    exact = np.full(
        len(us), min(ROUNDING * (terms + scale * width), EXACT * scale)
    )  # what rounding leaves of the other two methods
    scales = np.maximum(np.abs(true), FAINT * scale) if entries and not zero else np.full(len(us), scale)
    seen = np.full(len(us), np.inf)  # the least mistake that is
    if central.blind and not zero:
        row.note = "; ".join(filter(None, [row.note, "no central difference: rounding hides it"]))
    else:
        uncertainty = central.uncertainty if entries else np.full(len(us), central.worst)
        seen = row.add("central", np.abs(central.values - along), scales, uncertainty)
    off = np.abs(true - along)
    if steps is not None:
        seen = np.minimum(seen, row.add("complex", off, scales, exact))
    if torch is not None:
        off = np.abs(g - torch).reshape(-1)
        each = scales if entries else np.full(g.size, scale if zero else rms(g))
        found = row.add("torch", off, each, np.full(g.size, exact[0] * each.max() / scale))
        seen = np.minimum(seen, found) if entries else seen
    if entries or torch is not None:
        worst = (off / scales).argmax() if entries else off.argmax()
        row.where = tuple(int(i) for i in np.unravel_index(worst, x.shape))
    if entries and not zero:
        faint = int(((along != 0) & (np.abs(true) <= seen)).sum())
        if faint:
            row.note = "; ".join(filter(None, [row.note, f"{faint} of {x.size} entries too small to be seen"]))
    rounding = ROUNDING * terms / scale
    if any(row.limit(method) < (row.errors.get(method) or 0) <= rounding for method in ("complex", "torch")):
        raise ValueError(
            f"rounding may be all that is wrong with the gradient of {name}, and may hide a mistake: it is of size "
            f"{scale:.0e}, and f of size {size:.0e}; take the constant out of f, or choose other inputs"
        )
    return row


class Slopes(NamedTuple):
    values: np.ndarray  # D, one for each direction
    uncertainty: np.ndarray  # how far each of them may be off
    rounding: float  # the part of it that is due to rounding
    t: float

    @property
    def worst(self) -> float:
        return float(self.uncertainty.max())

    @property
    def unexplained(self) -> float:
        """What is not due to rounding."""
        return self.worst - self.rounding

    @property
    def relative(self) -> float:
        size = rms(self.values)
        return self.worst / size if size > 0 else math.inf

    @property
    def sure(self) -> bool:
        return self.relative <= TOLERANCE["central"]

    @property
    def blind(self) -> bool:
        return self.relative > HIDES

    def contradicts(self, other: Slopes) -> bool:
        return bool(np.abs(self.values - other.values).max() > self.worst + other.worst)

    def jumps(self) -> bool:
        """Is there more than rounding explains, and enough to make it no check?"""
        return self.unexplained > 10 * self.rounding and self.unexplained > HIDES * rms(self.values)


def central_differences(name: str, L: Callable[[Array], Array], x: np.ndarray, us: np.ndarray, size: float) -> Slopes:
    """dL/ds along x + s u for each u, by the step with the least uncertainty.

    Raises ValueError for a kink, or where L is not finite on both sides of x.
    """
    here, width = float(L(x)), max(1.0, rms(x))

    def at(s: float, u: np.ndarray) -> float:
        try:
            return float(L(x + s * u))
        except (ArithmeticError, ValueError):  # outside of its domain, as math.log says it
            return math.nan

    def measured(t: float, quarter: Slopes | None = None) -> Slopes:
        with np.errstate(all="ignore"):
            back2, back, forward, forward2 = points = np.array([[at(s * t, u) for u in us] for s in (-2, -1, 1, 2)])
            near, far = forward - back, forward2 - back2
            D, bend = (8 * near - far) / (12 * t), (far - 2 * near) / (12 * t)
            jump = (4 * (forward + back - 2 * here) - (forward2 + back2 - 2 * here)) / (2 * t)
            rounding = ROUNDING * (max(size, np.abs(points).max()) + rms(D) * rms(x)) / t
            odd = np.abs(bend) if quarter is None else np.minimum(np.abs(bend), np.abs(D - quarter.values))
            unsure = np.abs(jump) + 4 * odd + rounding
        return Slopes(D, np.where(np.isfinite(unsure), unsure, math.inf), float(rounding), t)

    tried = [measured(STEP * width)]
    first = best = tried[0]
    t = first.t / 4
    while not best.sure and t > 1e-12 * first.t and ROUNDING * size / t < best.worst:
        tried.append(measured(t))
        if tried[-1].relative < best.relative or tried[-1].contradicts(best):
            best = tried[-1]
        t /= 4
    while not best.sure and first.t <= best.t < width:
        found = measured(4 * best.t, best)
        if found.relative >= best.relative or found.worst >= best.worst:
            break
        best = found
    if math.isinf(best.worst):
        raise ValueError(f"f is not finite on both sides of these inputs, in {name}: move them into its domain")
    if best.blind and any(
        a.jumps() and b.jumps() and 0.5 < b.unexplained / a.unexplained < 2 for a, b in pairwise(tried)
    ):
        raise ValueError(f"f has a kink (ReLU, max, |x|) at these inputs, in {name}: move them a little")
    return best


def complex_steps(L: Callable[[Array], Array], x: np.ndarray, us: np.ndarray, central: Slopes) -> np.ndarray | None:
    """dL/ds along x + s u for each u; None where f is not analytic, as it contradicts the central difference."""
    with np.errstate(all="ignore"):
        steps = np.array([float((L(x + 1e-30j * u) / 1e-30).imag) for u in us])
    off = np.abs(steps - central.values)
    believed = central.blind or np.all(off <= central.uncertainty + TOLERANCE["central"] * rms(steps))
    return steps if believed else None


def rms(a: np.ndarray) -> float:
    """The root mean square; what is small does not vanish when it is squared."""
    peak = float(np.abs(a).max())
    return peak * math.sqrt(float(((a / peak) ** 2).mean())) if peak else 0.0


def as_inputs(inputs: Any) -> dict[str, np.ndarray]:
    if not isinstance(inputs, Mapping) or not inputs:
        raise ValueError("inputs are named: {'x': array, ...}")
    return {name: as_array(name, x) for name, x in inputs.items()}


def as_constants(constants: Any) -> dict[str, Any]:
    if not isinstance(constants, Mapping | None):
        raise ValueError("constants are named: {'alpha': 16, ...}")
    return dict(constants or {})


def as_array(name: str, x: Any) -> np.ndarray:
    try:
        return np.asarray(x)
    except ValueError:
        raise ValueError(f"{name} is no array: its rows are not equally long") from None


def refuse_array(name: str, x: np.ndarray) -> None:
    """Raise ValueError unless x holds finite float64 numbers."""
    if x.dtype != np.float64:
        raise ValueError(
            f"{name} is {x.dtype}: gradients are checked in float64, where a difference has digits left; "
            f"pass {name}.astype(np.float64)"
        )
    if x.size == 0:
        raise ValueError(f"{name} is empty, of shape {x.shape}: there is nothing to check")
    if not np.all(np.isfinite(x)):
        raise ValueError(f"{name} holds NaN or infinity: choose finite numbers")


def refuse_blind_spots(inputs: Mapping[str, np.ndarray], constants: Mapping[str, Any]) -> None:
    """Raise ValueError for inputs under which a wrong gradient cannot be told from a right one."""
    for name, x in inputs.items():
        refuse_array(name, x)
    everything = {**inputs, **constants}
    B = everything.get("B", everything.get("lora_B"))
    if B is not None and not np.any(B):
        raise ValueError("B = 0: the gradient of A is then zero, right or wrong; check with a trained B")
    if "alpha" in everything and np.array_equal(everything["alpha"], everything.get("r", np.nan)):
        raise ValueError(
            "alpha = r: the scale alpha/r is then 1, and one that is forgotten is not seen; choose them apart"
        )


def refuse_call(caller: str, what: str, function: Any, arguments: Sequence[str], constants: Mapping[str, Any]) -> None:
    """Raise ValueError unless function(*arguments, **constants) can be called."""
    words = ", ".join([*arguments, *(f"{constant}=..." for constant in constants)])
    if not callable(function):
        raise ValueError(f"{caller} calls {what}({words}), but {what} is no function: {type(function).__name__}")
    try:
        signature = inspect.signature(function)
    except ValueError:  # some functions of C do not tell theirs
        return
    try:
        signature.bind(*arguments, **constants)
    except TypeError as error:
        raise ValueError(f"{caller} calls {what}({words}): {error}") from None


def refuse_names(zero: Collection[str], inputs: Collection[str]) -> None:
    if not set(zero) <= set(inputs):
        raise ValueError(f"zero={list(zero)} names what is no input; the inputs are {', '.join(inputs)}")


def twice(what: str, run: Callable[..., list[np.ndarray]], arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """run(*arrays). Raises ValueError when it writes to an array, or says something else the second time."""
    before = [a.copy() for a in arrays]
    first = [y.copy() for y in run(*arrays)]
    second = run(*arrays)
    for i, (a, b) in enumerate(zip(arrays, before, strict=True)):
        if not np.array_equal(a, b):
            raise ValueError(f"{what} has written to its argument {i}: work on a copy")
    if len(first) != len(second) or any(
        not np.array_equal(a, b, equal_nan=True) for a, b in zip(first, second, strict=True)
    ):
        raise ValueError(f"{what} gives another answer the second time: pass masks in, and draw nothing inside")
    return first


def why_not_complex(run: Callable[[], Array]) -> str | None:
    """None if `run`, over complex arrays, returns a complex one; otherwise why the complex step cannot be used."""
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("error", np.exceptions.ComplexWarning)
            return None if np.iscomplexobj(run()) else "f drops the imaginary part"
    except np.exceptions.ComplexWarning:
        return "f drops the imaginary part"
    except Exception as error:  # whatever a person's function does
        return f"f raises {type(error).__name__} on complex arrays"


def as_output(y: Any) -> np.ndarray:
    """What f returned. Raises ValueError unless it is one array of finite float64."""
    if y is None:
        raise ValueError("f returned None: it must return one array or number")
    if isinstance(y, tuple | list):
        raise ValueError("f must return one array or number; a forward that returns (y, cache) goes to check_backward")
    y = np.asarray(y)
    if y.dtype != np.float64:
        raise ValueError(f"f returns {y.dtype}, and must compute in float64")
    if y.size == 0:
        raise ValueError(f"f returns an empty array, of shape {y.shape}: there is nothing to check")
    if not np.all(np.isfinite(y)):
        raise ValueError("f is not finite at these inputs: choose others")
    return y


def as_upstream(dy: Any, y: np.ndarray) -> np.ndarray:
    """dy as an array. Raises ValueError unless it can tell a right gradient of y from a wrong one."""
    dy = np.asarray(float(dy) if isinstance(dy, int) else dy)
    if dy.shape != y.shape:
        raise ValueError(f"dy has shape {dy.shape}, and y = f(...) has {y.shape}")
    refuse_array("dy", dy)
    if y.size > 1 and np.ptp(dy) == 0:
        raise ValueError(
            "dy is the same number everywhere: the gradients of softmax and of norms vanish under it; draw it"
        )
    return dy


def as_gradients(result: Any, inputs: Sequence[str]) -> list[np.ndarray]:
    """What grad returned, in the order of the inputs: an array, a sequence, or a dict by name ("x" or "dx")."""
    wanted = ", ".join(f"d{name}" for name in inputs)
    if result is None:
        raise ValueError(f"grad returned None: it must return {wanted}")
    if isinstance(result, Mapping):
        found = {name: result.get(f"d{name}", result.get(name)) for name in inputs}
        if set(result) - {f"d{name}" for name in inputs} - set(inputs) or len(result) != len(inputs):
            raise ValueError(f"the gradients are called {', '.join(map(str, result))}; they must be {wanted}")
        values = list(found.values())
    else:
        values = list(result) if isinstance(result, Sequence | Iterator) else [result]
    if len(values) != len(inputs):
        raise ValueError(f"{len(values)} gradients were returned; {len(inputs)} are needed: {wanted}")
    return [as_gradient(f"d{name}", g) for name, g in zip(inputs, values, strict=True)]


def as_gradient(name: str, g: Any) -> np.ndarray:
    if g is None:
        raise ValueError(f"grad returned None for {name}: it must return an array for every input")
    g = as_array(name, g)
    if g.dtype != np.float64 and g.dtype.kind not in "iu":
        raise ValueError(f"{name} is {g.dtype}: grad must compute in float64, as f does")
    return g.astype(np.float64)


def as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, tuple | list) else [value]


def torch_gradients(f: Callable[..., Any], dy: np.ndarray, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    import torch

    inputs = [torch.tensor(x, requires_grad=True) for x in arrays]
    return [
        g.numpy() for g in torch.autograd.grad((torch.tensor(dy) * f(*inputs)).sum(), inputs, materialize_grads=True)
    ]
