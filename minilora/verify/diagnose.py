"""Name what is wrong with a hand-written gradient, tensor by tensor.

The gradient is run on several cases in which every constant differs. Each tensor that comes out wrong is compared, in
this order, with

    1. the named faults of the problem
    2. the true gradient transposed, in another shape, or times a product of powers of the problem's constants: alpha/r,
       1/batch, -1, 2, ...; plus dy or an input (weight decay); the gradient of another input; one sample alone
    3. the true gradient clipped; its own terms with some missing, doubled or wrongly scaled; automatic mutants of the
       textbook gradient's source
    4. two named faults at once, or one of them times a product of constants

A name is given only when it explains the tensor to 1e-7 in every case. If several explanations of one kind do, all are
given. If none does, the finding is "unknown", with the laws that the gradient breaks, facts, and a next step.

Source of the method: Singh, Gulwani, Solar-Lezama (2013), "Automated feedback generation for introductory programming
assignments": error models for programs. Here the answer is a tensor, which is easier to compare.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ..backend import Array
from ..process import blas_threads
from ..spelling import did_you_mean
from .case import Case, Tensors, apply
from .diagnosis import Diagnosis
from .explanations import explain
from .explanations.finding import Finding, WrongTensor, agree
from .explanations.sizes import sizes_of
from .explanations.unexplained import must_be_zero, not_finite, unknown
from .forms import Form, forms_of
from .numeric_gradient import numeric_gradient
from .problem import Law, Problem
from .problems import problems
from .refusals import (
    as_constants,
    as_gradients,
    as_inputs,
    as_list,
    as_output,
    as_upstream,
    refuse_blind_spots,
    refuse_call,
    twice,
)


@blas_threads()
def diagnose(
    grad: Callable[..., Any],
    problem: Problem | str | Callable[..., Array],
    cases: Sequence[Case] | Case | None = None,
    *,
    laws: Mapping[str, Law] | None = None,
) -> Diagnosis:
    """Find out what is wrong with `grad(dy, *inputs, **constants)`, which returns one gradient per input.

    `problem` is one of the library's (a Problem, or its name), or any function f. A problem has cases of its own, to
    which `cases` are added. Its gradient may take the arguments by the names that the problem gives them, in any order,
    and without some of them where signatures() says so. For an f, the expected gradient is measured on `cases`, there
    are no named faults, and `laws` may add properties that the gradients must have.
    minilora.verify.problems.signatures() lists the library's problems with their formulas, arguments and shapes.

    Raises ValueError for an unknown name, an f without cases, a grad that raises, a constant of another dtype than the
    problem's, and for each case that check_gradient would refuse.
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
        forms = [Form(Problem(name, problem, numeric, lambda _, case: case, shapes=own, laws=laws or {}))]
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
            given, expected = graded(grad, form, case), apply(form.problem.backward, case)
        except ValueError:
            return False
        if not all(agree(given[name], expected[name], case) for name in expected):
            return False
    return True


class Raises(ValueError):
    """The gradient under test raises."""


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
    """The Diagnosis over the caller's own cases and, for a problem of the library, over the problem's cases too, if
    `grad` accepts them."""
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
    expected = [apply(problem.backward, case) for case in cases]
    findings: list[Finding] = []
    sizes, known = sizes_of(cases), dict[tuple[str, int], Tensors]()
    for tensor in expected[0]:
        w = WrongTensor(tensor, given, expected, problem, cases, sizes, exact, known)
        findings += findings_of(w, lambda case: graded(grad, form, case))
    usual_case = problem.original.cases(n=1)[0] if problem.original else cases[0]
    return Diagnosis(findings, cases, tuple(left_out(usual_case, cases[0])))


def left_out(usual: Case, case: Case) -> list[str]:
    """The constants that the gradient does not take."""
    made = {"alpha", "r"} if "s" in case.constants else set()
    return [name for name in usual.constants if name not in case.constants.keys() | made]


def as_case(case: Any) -> Case:
    """The case with its inputs as arrays. Raises ValueError if it is not a Case."""
    if not isinstance(case, tuple) or len(case) != len(Case._fields):
        raise ValueError(f"a case is Case(dy, inputs, constants, sizes), and not {type(case).__name__}")
    dy, inputs, constants, sizes = case
    if not isinstance(sizes, Mapping) or not all(
        isinstance(value, int | float | np.number) and value > 0 for value in sizes.values()
    ):
        raise ValueError(f"the sizes of a case are positive and named, as {{'batch': 4, ...}}, and not {sizes}")
    return Case(dy, as_inputs(inputs), as_constants(constants), dict(sizes))


def checked(case: Case, problem: Problem, names: list[str]) -> Case:
    """The case, with dy as an array. Raises ValueError where a wrong gradient would look right."""
    if list(case.inputs) != names:
        raise ValueError(f"one case has the inputs {', '.join(names)}, another {', '.join(case.inputs)}")
    refuse_blind_spots(case.inputs, case.constants)
    refuse_call("a case", problem.name, problem.forward, names, case.constants)
    (y,) = twice("f", lambda *a: [as_output(problem.forward(*a, **case.constants))], case.inputs)
    return case._replace(dy=as_upstream(case.dy, y))


def refuse_constants(cases: list[Case], problem: Problem) -> None:
    """Raise ValueError for an array of another kind of dtype than the problem's: booleans for a mask of 0 and -1e9."""
    for name, usual in problem.cases(n=1)[0].constants.items():
        for case in cases:
            kind, wanted = np.asarray(case.constants.get(name, usual)).dtype, np.asarray(usual).dtype
            if np.ndim(usual) and kind.kind != wanted.kind:
                raise ValueError(f"{name} is {kind}, and must be {wanted}: {problem.signature()}")


def graded(grad: Callable[..., Any], form: Form, case: Case) -> Tensors:
    """The gradients under test in one case. Raises ValueError where grad cannot be called, or gives other results the
    second time."""
    name = form.problem.name
    if form.parameters is None:
        refuse_call("diagnose", "grad", grad, ["dy", *case.inputs], case.constants)

    def run(dy: Array, *arrays: Array) -> list[Array]:
        try:
            result = form.call(grad, case, dy, arrays)
        except Exception as error:  # it may raise anything
            given = ", ".join(f"{key} {x.shape}" for key, x in zip(["dy", *case.inputs], [dy, *arrays], strict=True))
            of = f", for {form.problem.formula}" if form.problem.formula else ""
            raise Raises(f"grad raises {type(error).__name__}: {error}; {name} calls it with {given}{of}") from error
        return as_gradients(result, list(case.inputs))

    gradients = twice("grad", run, {"dy": np.asarray(case.dy), **case.inputs})
    return {f"d{key}": g for key, g in zip(case.inputs, gradients, strict=True)}


def findings_of(w: WrongTensor, run: Callable[[Case], Tensors]) -> list[Finding]:
    if all(map(agree, w.gradient, w.true, w.cases)):
        return [w.finding("right", "{it} is right")]
    if not all(np.all(np.isfinite(x)) for x in w.gradient):
        return [not_finite(w)]
    if not any(np.any(t) for t in w.true):
        return [must_be_zero(w)]
    return explain(w) or unknown(w, run)
