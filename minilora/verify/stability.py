"""Where an op loses digits: its outputs and gradients in float32, bfloat16 and float16, compared with float64.

Numbers of a format with unit roundoff u are rounded, fl(x) = x (1 + δ) with |δ| ≤ u, and so is the result of every
operation (quantization/arithmetic.py). Of an op f and its algorithm f̂,

    κ       = max ‖f(x (1 + δ)) - f(x)‖ / (u ‖f(x)‖)        the condition number: what rounding x alone does to f(x),
              over |δ_i| = u                                in units of u
    error   = ‖f̂(fl(x)) - f(fl(x))‖ / (u ‖f(fl(x))‖)        what computing in the format adds, in units of u

f(x) is one of y, dx, dW, ..., as a function of the inputs and dy. An error near κ, or near 1, is as small as numbers of
this format allow. A larger one is the algorithm's: it loses log₁₀(error / max(κ, 1)) digits that the inputs have. κ is
the largest of a few random δ, so a lower bound.

Source: Higham (2002), "Accuracy and Stability of Numerical Algorithms", sections 1.4 to 1.6.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from ..backend import Array
from ..display.tables import numbers_right, wide_console
from ..process import blas_threads
from ..quantization.arithmetic import HALF
from ..spelling import choose_from
from .case import Case, apply
from .op import Op, Rng
from .op_cases import OPS

FORMATS = {"float32": 2.0**-24, **{name: cls.u for name, cls in HALF.items()}}  # {format: u}
SIZE = 8  # of every axis
PROBES = 12  # random δ for κ
STEP = 1e-7  # |δ_i| in float64, where it is far above rounding and far below curvature
LOSES = 16.0  # error / max(κ, 1) from which an algorithm is said to lose digits: sums of SIZE terms stay below it


class Regime(NamedTuple):
    """Inputs on which an op loses digits, or did before it was corrected."""

    op: str
    change: Callable[..., dict[str, Array]]  # **inputs -> the inputs of the regime


def scaled(**factors: float) -> Callable[..., dict[str, Array]]:
    """A change that multiplies the inputs named by these factors."""
    return lambda **inputs: inputs | {name: factor * inputs[name] for name, factor in factors.items()}


def shifted(**shifts: float) -> Callable[..., dict[str, Array]]:
    """A change that adds these numbers to the inputs named."""
    return lambda **inputs: inputs | {name: shift + inputs[name] for name, shift in shifts.items()}


REGIMES: dict[str, Regime] = {
    "layer norm, mean 100 times the deviation": Regime("layer norm", shifted(x=100.0)),
    "layer norm, a deviation of 1e-3": Regime("layer norm", scaled(x=1e-3)),
    "rms norm, numbers near 300": Regime("rms norm", scaled(x=300.0)),
    "rms norm, numbers near 1e-4": Regime("rms norm", scaled(x=1e-4)),
    "cross-entropy, logits up to 50": Regime("cross-entropy", scaled(logits=20.0)),
    "cross-entropy, logits near 1000": Regime("cross-entropy", shifted(logits=1000.0)),
    "attention, scores up to 30": Regime("attention", scaled(q=4.0, k=4.0)),
    "gelu, far below 0": Regime("gelu", shifted(x=-8.0)),
    "swiglu, far below 0": Regime("swiglu", shifted(gate=-15.0)),
    "low rank, A and B near 1e-4": Regime("low rank", scaled(A=1e-4, B=1e-4)),
    "low rank, B near 1e-6": Regime("low rank", scaled(B=1e-6)),
}


class Loss(NamedTuple):
    """What one tensor of an op loses in one format."""

    name: str  # of the op, or of the regime
    tensor: str
    format: str
    kappa: float
    error: float  # in units of u; inf where the result is not finite
    zeros: float  # share of the entries that are 0 and not in float64

    @property
    def digits(self) -> float:
        """Decimal digits that the algorithm loses beyond what its inputs lose."""
        return max(0.0, math.log10(self.error / max(self.kappa, 1.0))) if self.error else 0.0

    @property
    def verdict(self) -> str:
        if not math.isfinite(self.error):
            return "not finite"
        if self.zeros > 0.01:
            return f"underflows in {self.zeros:.0%}"
        return f"loses {self.digits:.1f} digits" if self.error > LOSES * max(self.kappa, 1.0) else "ok"


@blas_threads()
def stability(only: str = "", seed: int = 0) -> list[Loss]:
    """The losses of every op and regime whose name contains `only`, tensor by tensor and format by format.

    Raises ValueError if there is none, ImportError if an op needs a package that is not installed (SciPy).
    """
    regimes = {**{name: Regime(name, scaled()) for name in OPS}, **REGIMES}
    wanted = only.casefold().replace("_", " ")
    chosen = {name: regime for name, regime in regimes.items() if wanted in name.casefold()}
    if not chosen:
        raise ValueError(f"no op has {only!r} in its name: {choose_from(wanted, regimes)}")
    found: list[Loss] = []
    for name, (op, change) in chosen.items():
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])  # the same numbers whatever else is chosen
        case = OPS[op].draw(lambda low=1, high=4: max(low, SIZE), rng)
        case = case._replace(inputs=change(**case.inputs))
        with np.errstate(all="ignore"):
            found += losses(name, OPS[op], case, rng)
    return found


def losses(name: str, op: Op, case: Case, rng: Rng) -> Iterator[Loss]:
    exact = results(op, case)
    kappas = dict.fromkeys(exact, 0.0)
    for _ in range(PROBES):
        moved = results(op, cast(case, lambda x: x * (1 + STEP * rng.choice([-1.0, 1.0], x.shape))))
        kappas |= {tensor: max(kappas[tensor], off(moved[tensor], y) / STEP) for tensor, y in exact.items()}
    for form, u in FORMATS.items():
        stored = cast(case, HALF[form].of if form in HALF else lambda x: x.astype(np.float32))
        right = results(op, cast(stored, lambda x: np.asarray(x, np.float64)))
        for tensor, y in results(op, stored).items():
            true = right[tensor]
            zeros = np.mean((y == 0) & (np.abs(true) > 0)) if true.size else 0.0
            yield Loss(name, tensor, form, kappas[tensor], off(y, true) / u, float(zeros))


def results(op: Op, case: Case) -> dict[str, Array]:
    """y and the gradients of the inputs, by name."""
    y, _ = op.forward(*case.inputs.values(), **case.constants)
    gradients = apply(op.grad, case)
    return {"y": y, **{f"d{name}": g for name, g in zip(case.inputs, gradients, strict=True)}}


def cast(case: Case, change: Callable[[Array], Array]) -> Case:
    """The case with its dy, its inputs and its constants of floats changed."""

    def constant(value: Any) -> Any:
        return change(value) if isinstance(value, np.ndarray) and value.dtype.kind == "f" else value

    constants = {name: constant(value) for name, value in case.constants.items()}
    return Case(change(case.dy), {name: change(x) for name, x in case.inputs.items()}, constants, case.sizes)


def off(y: Array, true: Array) -> float:
    """‖y - true‖ / ‖true‖; infinite if y is not finite."""
    y = np.asarray(y, np.float64)
    if not np.isfinite(y).all():
        return math.inf
    size = float(np.linalg.norm(true))
    return float(np.linalg.norm(y - true)) / size if size else float(np.linalg.norm(y) > 0)


def worst(found: list[Loss]) -> dict[str, dict[str, Loss]]:
    """{op: {format: the loss of its tensor that loses most}}."""
    rows: dict[str, dict[str, Loss]] = {}
    for loss in found:
        row = rows.setdefault(loss.name, {})
        row[loss.format] = max(row.get(loss.format, loss), loss, key=lambda each: (each.verdict != "ok", each.error))
    return rows


def show_stability(found: list[Loss]) -> None:
    """A row for each op: in each format the error of its worst tensor, κ of that in float32, and what is lost."""
    table = numbers_right(
        "What rounding the inputs does (κ), and what the arithmetic adds, in units of u; of the tensor that loses most",
        "op", "κ", *FORMATS, "", words=(0, -1),
    )  # fmt: skip
    for name, row in worst(found).items():
        lost = "; ".join(
            f"{loss.tensor} in {form} {loss.verdict}" for form, loss in row.items() if loss.verdict != "ok"
        )
        table.add_row(name, f"{row['float32'].kappa:.1f}", *(f"{loss.error:.2g}" for loss in row.values()), lost)
    wide_console().print(table)
