"""Naming what is wrong with a hand-written gradient, tensor by tensor.

A learner's gradient is run on several cases in which every constant differs. Each tensor that comes out wrong is
compared, in this order, with

    1. the named faults of the problem's bank
    2. the true gradient transposed, in another shape, or times a product of powers of the problem's constants: alpha/r,
       1/batch, -1, 2, ...; plus dy or an input (weight decay); the gradient of another input; one sample alone
    3. the true gradient clipped; its own terms with some missing, doubled or wrongly scaled; automatic mutants of the
       textbook gradient's source
    4. two faults of the bank at once, or one of them times a product of constants

A name is given only when it explains the tensor to 1e-7 on every case. If several explanations of one kind do, all are
given. Where none does, the fault is unknown: then follow the laws that the gradient breaks, facts, and a next step. The
method is that of error models for programs (Singh, Gulwani, Solar-Lezama, 2013), which is easier here: the answer is a
tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..backend import Array
from ..process import blas_threads
from ..spelling import did_you_mean
from .case import Case, Tensors, apply
from .check import (
    NOTHING,
    as_constants,
    as_gradients,
    as_inputs,
    as_list,
    as_output,
    as_upstream,
    central_differences,
    complex_steps,
    refuse_blind_spots,
    refuse_call,
    rms,
    twice,
    why_not_complex,
)
from .explanations import explain
from .explanations.finding import Finding, Wrong, agree
from .explanations.sizes import sizes_of
from .explanations.unexplained import must_be_zero, not_finite, unknown
from .forms import Form, forms_of
from .language import Words, words
from .problem import Law, Problem
from .problems import problems
from .scale import SAME


@dataclass(repr=False)
class Diagnosis:
    """The findings about every tensor, and the cases on which they were made. Print it, or take text("zh").

    `without` names the constants of the problem that the gradient does not take; `rows` says that all would be right
    with one axis of rows in the place of batch and tokens.
    """

    findings: list[Finding] = field(default_factory=list)
    cases: list[Case] = field(default_factory=list)
    without: tuple[str, ...] = ()
    rows: bool = False

    @property
    def ok(self) -> bool:
        return all(finding.kind == "right" for finding in self.findings)

    def text(self, language: str = "en") -> str:
        """A line or two for each finding; tensors with the same finding share it. Raises ValueError for a language that
        is neither "en" nor "zh"."""

        def line(sentence: Words) -> str:
            return sentence.in_language(language)

        tensors: dict[str, list[str]] = {}
        for finding in self.findings:
            tensors.setdefault(finding.text(language), []).append(finding.tensor)
        comma, colon = line(words(", ")), line(words(": "))
        lines = [line(words("(compared without {names})", names=comma.join(self.without)))] if self.without else []
        for text, names in tensors.items():
            alone = text.startswith(f"{names[0]} ") and len(names) == 1
            lines.append(text if alone else f"{comma.join(names)}{colon}{text}")
        if self.rows:
            lines.append(
                line(words("With one axis of rows in the place of batch and tokens, every gradient is right."))
            )
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.text()

    __repr__ = __str__

    def names(self) -> list[str]:
        return [finding.name for finding in self.findings if finding.name]


@blas_threads()
def diagnose(
    grad: Callable[..., Any],
    problem: Problem | str | Callable[..., Array],
    cases: Sequence[Case] | Case | None = None,
    *,
    laws: Mapping[str, Law] | None = None,
) -> Diagnosis:
    """Say what is wrong with `grad(dy, *inputs, **constants)`, which returns one gradient per input.

    `problem` is one of the library's (a Problem, or its name), or any function f. A problem has cases of its own;
    `cases` are looked at beside them. Its gradient may take the arguments by the names that the problem gives them, in
    any order, and where signatures() says so without some of them. For an f, its numeric gradient on `cases` is the
    truth, there is no bank, and `laws` may say what must hold of the gradients.
    minilora.verify.problems.signatures() lists the library's problems with their formulas, arguments and shapes.
    Raises ValueError for a name that is not there, an f without cases, a grad that raises, a constant
    of another kind than the problem's, and whatever check_gradient refuses in a case.
    """
    own = [as_case(case) for case in ([cases] if isinstance(cases, Case) else as_list(cases or []))]
    if not callable(grad):
        raise ValueError(f"diagnose(grad, problem): grad is not a function, but {type(grad).__name__}")
    if isinstance(problem, str):
        problem = problem_called(problem)
    if isinstance(problem, Problem):
        forms: Iterable[Form] = forms_of(problem, grad, own)
    else:
        if not callable(problem):
            raise ValueError(f"a problem is a name, a Problem or a function f, and not {type(problem).__name__}")
        if not own:
            raise ValueError("a function of your own needs cases=[Case(dy, inputs, constants, sizes), ...]")
        name, numeric = getattr(problem, "__name__", "f"), numeric_gradient(problem, list(own[0].inputs))
        name = "f" if name == "<lambda>" else name
        forms = [Form(Problem(name, problem, numeric, lambda _, i: own[i], laws=laws or {}))]
    raised = []
    forms = iter(forms)
    for form in forms:
        try:
            found = diagnosed(grad, form, own, in_bank=isinstance(problem, Problem))
        except Raises as error:
            raised.append(error)
            continue
        found.rows = not found.ok and any(right(grad, other) for other in forms)
        return found
    raise raised[0]


def right(grad: Callable[..., Any], form: Form) -> bool:
    """Is the gradient right in this form, in every case of the problem?"""
    for case in form.problem.cases():
        try:
            given, truth = graded(grad, form, case), apply(form.problem.backward, case)
        except ValueError:
            return False
        if not all(agree(given[name], truth[name], case) for name in truth):
            return False
    return True


class Raises(ValueError):
    """A learner's function raises."""


def problem_called(name: str) -> Problem:
    """The library's problem of this name or alias, in any spelling: "LayerNorm"."""

    def plain(word: str) -> str:
        return "".join(letter for letter in word.casefold() if letter.isalnum())

    names = {word: found for found in problems().values() for word in (found.name, *found.aliases)}
    for word, found in names.items():
        if plain(word) == plain(name):
            return found
    raise ValueError(f"no problem is called {name!r}: {did_you_mean(name, names)}there are {', '.join(problems())}")


def diagnosed(grad: Callable[..., Any], form: Form, own: list[Case], in_bank: bool) -> Diagnosis:
    """Over the cases that were brought along and, for a problem of the library, its own, where `grad` takes them."""
    problem = form.problem
    if in_bank:
        refuse_constants(own, problem)
    cases = [checked(case, problem, list(own[0].inputs)) for case in own]
    given = [graded(grad, form, case) for case in cases]
    exact = in_bank
    if in_bank:
        try:
            usual = problem.cases()
            given += [graded(grad, form, case) for case in usual]
            cases += usual
        except ValueError:
            if not own:
                raise
            exact = False
    truth = [apply(problem.backward, case) for case in cases]
    findings: list[Finding] = []
    sizes, known = sizes_of(cases), dict[tuple[str, int], Tensors]()
    for tensor in truth[0]:
        w = Wrong(tensor, given, truth, problem, cases, sizes, exact, known)
        findings += findings_of(w, lambda case: graded(grad, form, case))
    usual_case = problem.original.cases(n=1)[0] if problem.original else cases[0]
    return Diagnosis(findings, cases, tuple(left_out(usual_case, cases[0])))


def left_out(usual: Case, case: Case) -> list[str]:
    """The constants that the gradient does not take."""
    made = {"alpha", "r"} if "s" in case.constants else set()
    return [name for name in usual.constants if name not in case.constants.keys() | made]


def as_case(case: Any) -> Case:
    """A case with its inputs as arrays. Raises ValueError for what is no case."""
    if not isinstance(case, tuple) or len(case) != len(Case._fields):
        raise ValueError(f"a case is Case(dy, inputs, constants, sizes), and not {type(case).__name__}")
    dy, inputs, constants, sizes = case
    if not isinstance(sizes, Mapping) or not all(
        isinstance(value, int | float | np.number) and value > 0 for value in sizes.values()
    ):
        raise ValueError(f"the sizes of a case are positive and named, as {{'batch': 4, ...}}, and not {sizes}")
    return Case(dy, as_inputs(inputs), as_constants(constants), dict(sizes))


def checked(case: Case, problem: Problem, names: list[str]) -> Case:
    """The case, with dy an array. Raises ValueError where a wrong gradient could not be told from a right one."""
    if list(case.inputs) != names:
        raise ValueError(f"one case has the inputs {', '.join(names)}, another {', '.join(case.inputs)}")
    refuse_blind_spots(case.inputs, case.constants)
    refuse_call("a case", problem.name, problem.forward, names, case.constants)
    (y,) = twice("f", lambda *a: [as_output(problem.forward(*a, **case.constants))], case.inputs)
    return case._replace(dy=as_upstream(case.dy, y))


def refuse_constants(cases: list[Case], problem: Problem) -> None:
    """Raise ValueError for an array of another kind than the problem's: booleans for a mask of 0 and -1e9."""
    for name, usual in problem.cases(n=1)[0].constants.items():
        for case in cases:
            kind, wanted = np.asarray(case.constants.get(name, usual)).dtype, np.asarray(usual).dtype
            if np.ndim(usual) and kind.kind != wanted.kind:
                raise ValueError(f"{name} is {kind}, and must be {wanted}: {problem.signature()}")


def graded(grad: Callable[..., Any], form: Form, case: Case) -> Tensors:
    """A learner's gradients in one case. Raises ValueError where they cannot be asked for, or are not replayable."""
    name = form.problem.name
    if form.parameters is None:
        refuse_call("diagnose", "grad", grad, ["dy", *case.inputs], case.constants)

    def run(dy: Array, *arrays: Array) -> list[Array]:
        try:
            result = form.call(grad, case, dy, arrays)
        except Exception as error:  # whatever a person's function does
            given = ", ".join(f"{key} {x.shape}" for key, x in zip(["dy", *case.inputs], [dy, *arrays], strict=True))
            of = f", for {form.problem.formula}" if form.problem.formula else ""
            raise Raises(f"grad raises {type(error).__name__}: {error}; {name} calls it with {given}{of}") from error
        return as_gradients(result, list(case.inputs))

    gradients = twice("grad", run, {"dy": np.asarray(case.dy), **case.inputs})
    return {f"d{key}": g for key, g in zip(case.inputs, gradients, strict=True)}


def findings_of(w: Wrong, run: Callable[[Case], Tensors]) -> list[Finding]:
    if all(map(agree, w.mine, w.true, w.cases)):
        return [w.finding("right", "{it} is right")]
    if not all(np.all(np.isfinite(x)) for x in w.mine):
        return [not_finite(w)]
    if not any(np.any(t) for t in w.true):
        return [must_be_zero(w)]
    return explain(w) or unknown(w, run)


# ---- a person's own function ----


def numeric_gradient(f: Callable[..., Array], names: Sequence[str]) -> Callable[..., Tensors]:
    """backward(dy, *inputs, **constants) of any f, every entry by a complex step, or else by central differences."""

    def backward(dy: Array, *arrays: Array, **constants: Any) -> Tensors:
        size = float(np.abs(dy * f(*arrays, **constants)).sum())
        analytic = why_not_complex(lambda: f(*(a.astype(complex) for a in arrays), **constants)) is None
        tensors = {}
        for i, (name, x) in enumerate(zip(names, arrays, strict=True)):

            def L(x: Array, i: int = i) -> Array:
                others = [a.astype(x.dtype) for a in arrays]
                return (dy * f(*others[:i], x, *others[i + 1 :], **constants)).sum()

            us = np.eye(x.size).reshape(-1, *x.shape)
            central = central_differences(name, L, x, us, size)
            steps = complex_steps(L, x, us, central) if analytic else None
            g, zero = (central.values, central.worst) if steps is None else (steps, NOTHING * size / max(1.0, rms(x)))
            seen = rms(g) > zero
            if zero > 1e-8 * np.abs(dy).sum() if not seen else steps is None and zero > 10 * SAME * rms(g):
                raise ValueError(
                    f"the gradient of {name} can be measured to {zero:.0e} only, where it is of size {rms(g):.0e}; "
                    "make f accept complex arrays, take constants out of it, or choose other inputs"
                )
            tensors[f"d{name}"] = (g if seen else 0 * g).reshape(x.shape)
        return tensors

    return backward
