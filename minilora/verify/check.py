"""Checking a hand-written gradient against numbers it had no part in.

For y = f(x) and a random upstream gradient dy, the scalar is L(x) = Σ dy ∘ y, and a gradient g of L is right when,
for random directions u,

    central difference      (8 [L(x + εu) - L(x - εu)] - [L(x + 2εu) - L(x - 2εu)]) / 12ε  =  g·u  + O(ε⁴) + rounding/ε
    complex step            Im L(x + ihu) / h  =  g·u  + O(h²): h = 1e-30 rounds nothing away
    PyTorch                 autograd's gradient  =  g

(Squire, Trapp, 1998, for the second, which needs an f that is analytic and takes complex arrays.) For a small tensor
the directions are its entries, each by itself. dy is random because upstream gradients of all ones make the gradients
of softmax and of the norms vanish, right or wrong. As u is standard normal, g·u has the deviation ‖g‖: errors are
given relative to ‖g‖, or for an entry to the root mean square of g.

A check can be worthless: at B = 0 the gradient of A is zero whatever is written, and at alpha = r a forgotten
alpha/r is not seen. What makes it so is refused with a ValueError that says why.
"""

from __future__ import annotations

import html
import math
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from ..backend import Array
from ..modules import Gradients, Module, Parameter

EPSILON = 1e-4  # of the central difference: rounding, 1e-16/ε, and truncation, ε⁴, stay near 1e-12
TOLERANCE = {"central": 1e-7, "complex": 1e-11, "torch": 1e-11}
SMALL = 24  # a tensor of at most so many numbers is checked entry by entry


@dataclass
class Row:
    """One tensor: the worst relative error by each method, None where the method was not used."""

    tensor: str
    shape: tuple[int, ...]
    errors: dict[str, float | None]
    where: tuple[int, ...] | None = None  # the entry with the largest error, if entries were looked at
    note: str = ""
    rounding: float = 0.0  # of the scalar L, relative as the errors are; a difference quotient divides it by its step

    def limit(self, method: str) -> float:
        """The largest error that rounding and truncation explain."""
        return TOLERANCE[method] + self.rounding / (EPSILON if method == "central" else 1)

    @property
    def ok(self) -> bool:
        return not self.note.startswith("wrong") and all(
            e is None or e <= self.limit(method) for method, e in self.errors.items()
        )

    def cells(self) -> list[str]:
        errors = ["-" if (e := self.errors.get(method)) is None else f"{e:.1e}" for method in TOLERANCE]
        where = "-" if self.where is None or self.ok else str(list(self.where))
        verdict = "; ".join(filter(None, ["ok" if self.ok else "WRONG", self.note]))
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

    def f(*arrays: Array, **named: Any) -> Array:
        return forward(*arrays, **named)[0]

    def grad(dy: Array, *arrays: Array, **named: Any) -> list[Array]:
        _, cache = forward(*arrays, **named)
        return [*as_list(backward(dy, cache)), *(as_list(gradients(dy, cache)) if gradients else [])]

    return check_gradient(f, grad, inputs, constants=constants, **words)


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

    Raises ValueError where the check would be worthless: inputs that are not float64; a constant dy for an f that is
    no scalar; B = 0, or alpha = r (by those names); an f or a grad that writes to its inputs or gives another answer
    the second time; a kink (ReLU, max) within reach of a step; a gradient that is zero by every method and not named
    in `zero`; another number of gradients than inputs.
    """
    rng = rng or np.random.default_rng(0)
    if not isinstance(inputs, Mapping):
        raise ValueError("inputs are named: {'x': array, ...}")
    inputs, named = {name: np.asarray(x) for name, x in inputs.items()}, dict(constants or {})
    refuse_blind_spots(inputs, named)
    if not set(zero) <= set(inputs):
        raise ValueError(f"zero={list(zero)} names what is no input; the inputs are {', '.join(inputs)}")
    arrays = list(inputs.values())
    y = twice("f", lambda *a: [as_output(f(*a, **named))], arrays)[0]
    if dy is None:
        dy = rng.standard_normal(y.shape)
    elif np.shape(dy) != y.shape:
        raise ValueError(f"dy has shape {np.shape(dy)}, and y = f(...) has {y.shape}")
    elif y.size > 1 and np.ptp(dy) == 0:
        raise ValueError(
            "dy is the same number everywhere: the gradients of softmax and of norms vanish under it; draw it"
        )
    gradients = twice("grad", lambda d, *a: as_gradients(grad(d, *a, **named), list(inputs)), [np.asarray(dy), *arrays])

    def at(i: int, x: Array) -> Array:
        others = [a.astype(x.dtype) for a in arrays]
        return (dy * f(*others[:i], x, *others[i + 1 :], **named)).sum()

    size = float(np.abs(dy * y).sum())
    expected = torch_gradients(partial(torch, **named), dy, arrays) if torch else [None] * len(arrays)
    why_not = why_not_complex(lambda: f(*(a.astype(complex) for a in arrays), **named))
    return Report(
        [
            check_tensor(name, partial(at, i), x, g, rng, directions, name in zero, e, why_not, size)
            for i, (name, x, g, e) in enumerate(zip(inputs, arrays, gradients, expected, strict=True))
        ]
    )


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
    Raises ValueError where the gradients are not exactly those of the trainable parameters.
    """
    parameters = model.trainable_parameters()
    if set(grads) != set(parameters.values()):
        raise ValueError("the gradients are not those of the trainable parameters")
    before = {parameter: parameter.data for parameter in model.named_parameters().values()}

    def at(parameter: Parameter, x: Array) -> Array:
        for other, data in before.items():
            other.data = data.astype(x.dtype)
        parameter.data = x
        return loss()

    why_not, size = None if complex_step else "", abs(float(loss()))
    rows = []
    try:
        for name, parameter in parameters.items():
            L, x, g = partial(at, parameter), before[parameter], grads[parameter]
            rows.append(check_tensor(name, L, x, g, rng, directions, name in zero, None, why_not, size, small=0))
    finally:
        for parameter, data in before.items():
            parameter.data = data
    return Report(rows)


def check_tensor(
    name: str,
    L: Callable[[Array], Array],
    x: np.ndarray,
    g: np.ndarray,
    rng: np.random.Generator,
    directions: int,
    zero: bool,
    torch: np.ndarray | None,
    why_not: str | None,
    size: float,
    small: int = SMALL,
) -> Row:
    """One tensor: L(x) is the scalar, a sum of terms that together have this size; g is the gradient under test,
    `why_not` why no complex step is taken, None if one is."""
    if g.shape != x.shape:
        return Row(name, x.shape, {}, None, f"wrong shape {g.shape}")
    entries = x.size <= small
    us = np.eye(x.size).reshape(-1, *x.shape) if entries else rng.standard_normal((directions, *x.shape))
    slopes = central_differences(name, L, x, us, size)
    norm = math.sqrt(float((g * g).sum()))
    scale = norm / math.sqrt(x.size) if entries else norm
    if zero and norm > 1e-12 * math.sqrt(g.size):
        return Row(name, x.shape, {}, None, f"wrong: not zero, its norm is {norm:.1e}")
    if zero:
        scale = 1.0
    elif norm <= 1e-13 * size and np.abs(slopes).max() <= 1e-9 * max(size, 1e-300):
        raise ValueError(
            f"the gradient of {name} is zero by every method, so any would pass: if it must be, say zero=[{name!r}]"
        )
    elif norm == 0:
        return Row(name, x.shape, {}, None, "wrong: zero everywhere")
    along = np.array([float((g * u).sum()) for u in us])
    errors = np.abs(slopes - along) / scale
    where = tuple(int(i) for i in np.unravel_index(errors.argmax(), x.shape)) if entries else None
    note, rounding = "zero, as it must be" if zero else "", 100 * sys.float_info.epsilon * size / scale
    row = Row(name, x.shape, {"central": float(errors.max())}, where, note, rounding)
    if why_not is None:
        steps = np.array([float((L(x + 1e-30j * u) / 1e-30).imag) for u in us])
        if np.abs(steps - slopes).max() > 1e-6 * scale:
            row.note = "no complex step: f is not analytic"
        else:
            row.errors["complex"] = float(np.abs(steps - along).max()) / scale
    elif why_not:
        row.note = f"no complex step: {why_not}"
    if torch is not None:
        off = np.abs(g - torch)
        row.errors["torch"] = float(off.max()) / (1.0 if zero else norm / math.sqrt(g.size))
        row.where = tuple(int(i) for i in np.unravel_index(off.argmax(), x.shape))
    return row


def central_differences(
    name: str, L: Callable[[Array], Array], x: np.ndarray, us: np.ndarray, size: float
) -> np.ndarray:
    """dL/dt along x + t u for each u. Raises ValueError for a kink between the points that are looked at.

    The second difference L(t) - 2 L(0) + L(-t) of a smooth L shrinks with t²: it is 4 times as large at 2t as at t.
    Across a kink it shrinks with t, and the ratio is from 2 to infinity; should it be 4, it is not so again at 4t.
    """
    here = float(L(x))

    def at(u: np.ndarray, t: float) -> tuple[float, float]:
        forward, back = float(L(x + t * u)), float(L(x - t * u))
        return forward - back, forward - 2 * here + back

    near, far = (np.array([at(u, t) for u in us]) for t in (EPSILON, 2 * EPSILON))
    slopes = (8 * near[:, 0] - far[:, 0]) / (12 * EPSILON)
    step = EPSILON * math.sqrt(float((slopes**2).mean()))

    def kinked(bend: float, wider: float) -> bool:
        return abs(wider - 4 * bend) > 0.2 * abs(wider) + 1e-6 * step + 1e-13 * size

    for u, (_, bend), (_, wider) in zip(us, near, far, strict=True):
        if kinked(bend, wider) or (abs(wider) > 1e-2 * step and kinked(wider, at(u, 4 * EPSILON)[1])):
            raise ValueError(
                f"f has a kink (ReLU, max, |x|) within reach of a step in {name}: move the inputs a little"
            )
    return slopes


def refuse_blind_spots(inputs: Mapping[str, np.ndarray], constants: Mapping[str, Any]) -> None:
    """Raise ValueError for inputs under which a wrong gradient cannot be told from a right one."""
    for name, x in inputs.items():
        if x.dtype != np.float64:
            raise ValueError(
                f"{name} is {x.dtype}: gradients are checked in float64, where a difference has digits left"
            )
    everything = {**inputs, **constants}
    B = everything.get("B", everything.get("lora_B"))
    if B is not None and not np.any(B):
        raise ValueError("B = 0: the gradient of A is then zero, right or wrong; check with a trained B")
    if "alpha" in everything and everything["alpha"] == everything.get("r"):
        raise ValueError(
            "alpha = r: the scale alpha/r is then 1, and one that is forgotten is not seen; choose them apart"
        )


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
        return None if np.iscomplexobj(run()) else "f drops the imaginary part"
    except Exception as error:  # whatever a person's function does
        return f"f raises {type(error).__name__} on complex arrays"


def as_output(y: Any) -> np.ndarray:
    """What f returned. Raises ValueError unless it is one array of finite float64."""
    if isinstance(y, tuple | list):
        raise ValueError("f must return one array or number; a forward that returns (y, cache) goes to check_backward")
    y = np.asarray(y)
    if y.dtype != np.float64:
        raise ValueError(f"f returns {y.dtype}, and must compute in float64")
    if not np.all(np.isfinite(y)):
        raise ValueError("f is not finite at these inputs: choose others")
    return y


def as_gradients(result: Any, inputs: Sequence[str]) -> list[np.ndarray]:
    """What grad returned, in the order of the inputs: an array, a sequence, or a dict by name ("x" or "dx")."""
    wanted = ", ".join(f"d{name}" for name in inputs)
    if result is None:
        raise ValueError(f"grad returned None: it must return {wanted}")
    if isinstance(result, Mapping):
        found = {name: result.get(f"d{name}", result.get(name)) for name in inputs}
        if len(result) != len(inputs) or any(g is None for g in found.values()):
            raise ValueError(f"the gradients are called {', '.join(map(str, result))}; they must be {wanted}")
        return [np.asarray(g) for g in found.values()]
    values = [result] if isinstance(result, np.ndarray | float | int) else list(result)
    if len(values) != len(inputs):
        raise ValueError(f"{len(values)} gradients were returned; {len(inputs)} are needed: {wanted}")
    return [np.asarray(g) for g in values]


def as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, tuple | list) else [value]


def torch_gradients(f: Callable[..., Any], dy: np.ndarray, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    import torch

    inputs = [torch.tensor(x, requires_grad=True) for x in arrays]
    return [g.numpy() for g in torch.autograd.grad((torch.tensor(dy) * f(*inputs)).sum(), inputs)]
