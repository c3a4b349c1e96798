"""Naming what is wrong with a hand-written gradient, tensor by tensor.

A learner's gradient is run on several cases in which every constant differs. Each tensor that comes out wrong is
compared, in this order, with

    1. its transpose, then the shape, and what summing would make of it
    2. the named faults of the problem's bank, and the gradient of another input
    3. the true gradient times a product of powers of the problem's constants: alpha/r, 1/batch, -1, 2, ...
    4. the true gradient plus or minus dy, or its own terms with some missing, doubled or wrongly scaled
    5. automatic mutants of the textbook gradient's source, and the first or last sample alone
    6. laws that the true gradient obeys
    7. otherwise the fault is unknown, and what can be said of it are facts

A name is given only when it explains the tensor to 1e-7 on every case, and when no other does so as simply; nothing
is guessed. The method is that of error models for programs (Singh, Gulwani, Solar-Lezama, 2013), which is easier
here: the answer is a tensor.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..backend import Array
from ..process import blas_threads
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
from .mutants import mutants_of
from .problem import Case, Law, Problem, Tensors, Words, apply, relative_error
from .scale import SAME, product, proportion


@dataclass(frozen=True)
class Finding:
    """What was found out about one tensor. `kind`: right, shape, fault, scale, terms, mutant, law, or unknown."""

    tensor: str
    kind: str
    says: Words
    asks: Words | None = None
    name: str = ""  # of the fault

    def text(self, language: str = "en") -> str:
        words = [self.says.in_language(language)]
        if self.asks:
            words.append(self.asks.in_language(language))
        return "\n    ".join(words)


@dataclass(repr=False)
class Diagnosis:
    """The findings about every tensor. Print it, or take text("zh")."""

    findings: list[Finding] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return all(finding.kind == "right" for finding in self.findings)

    def text(self, language: str = "en") -> str:
        """A line or two for each finding; tensors with the same finding share it. Raises ValueError for a language that
        is neither "en" nor "zh"."""
        tensors: dict[str, list[str]] = {}
        for finding in self.findings:
            tensors.setdefault(finding.text(language), []).append(finding.tensor)
        return "\n".join(
            words if words.startswith(f"{names[0]} ") and len(names) == 1 else f"{', '.join(names)}: {words}"
            for words, names in tensors.items()
        )

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
    laws: Mapping[Words, Law] | None = None,
) -> Diagnosis:
    """Say what is wrong with `grad(dy, *inputs, **constants)`, which returns one gradient per input.

    `problem` is one of the library's (a Problem, or its name), whose own cases are used, or any function f: then its
    numeric gradient on `cases` is the truth, there is no bank, and `laws` may say what must hold of the gradients.
    minilora.verify.problems.signatures() lists the library's problems with their arguments and shapes.
    Raises ValueError for a name that is not there, an f without cases, a grad that raises, a constant
    of another kind than the problem's, and whatever check_gradient refuses in a case.
    """
    if isinstance(problem, str):
        from .problems import problems

        if problem not in problems():
            raise ValueError(f"no problem is called {problem!r}: {', '.join(problems())}")
        problem = problems()[problem]
    own = [as_case(case) for case in ([cases] if isinstance(cases, Case) else as_list(cases or []))]
    if not isinstance(problem, Problem):
        if not own:
            raise ValueError("a function of your own needs cases=[Case(dy, inputs, constants, sizes), ...]")
        name, numeric = getattr(problem, "__name__", "f"), numeric_gradient(problem, list(own[0].inputs))
        problem = Problem(name, problem, numeric, lambda _, i: own[i], laws=laws or {})
    elif own:
        refuse_constants(own, problem)
    drawn = [checked(case, problem, list(own[0].inputs)) for case in own] or problem.cases()
    truth = [apply(problem.backward, case) for case in drawn]
    given = [graded(grad, problem, case) for case in drawn]
    return Diagnosis([found for tensor in truth[0] for found in explain(tensor, given, truth, problem, drawn)])


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
    (y,) = twice("f", lambda *a: [as_output(problem.forward(*a, **case.constants))], list(case.inputs.values()))
    return case._replace(dy=as_upstream(case.dy, y))


def refuse_constants(cases: list[Case], problem: Problem) -> None:
    """Raise ValueError for an array of another kind than the problem's: booleans for a mask of 0 and -1e9."""
    for name, usual in problem.cases()[0].constants.items():
        for case in cases:
            kind, wanted = np.asarray(case.constants.get(name, usual)).dtype, np.asarray(usual).dtype
            if np.ndim(usual) and kind.kind != wanted.kind:
                raise ValueError(f"{name} is {kind}, and must be {wanted}: {problem.signature()}")


def graded(grad: Callable[..., Any], problem: Problem, case: Case) -> Tensors:
    """A learner's gradients in one case. Raises ValueError where they cannot be asked for, or are not replayable."""
    refuse_call(problem.name, "grad", grad, ["dy", *case.inputs], case.constants)

    def run(dy: Array, *arrays: Array) -> list[Array]:
        try:
            result = grad(dy, *arrays, **case.constants)
        except Exception as error:  # whatever a person's function does
            given = ", ".join(f"{name} {x.shape}" for name, x in zip(["dy", *case.inputs], [dy, *arrays], strict=True))
            raise ValueError(
                f"grad raises {type(error).__name__}: {error}; {problem.name} calls it with {given}"
            ) from error
        return as_gradients(result, list(case.inputs))

    gradients = twice("grad", run, [np.asarray(case.dy), *case.inputs.values()])
    return {f"d{name}": g for name, g in zip(case.inputs, gradients, strict=True)}


def explain(
    tensor: str, given: list[Tensors], truth: list[Tensors], problem: Problem, cases: list[Case]
) -> list[Finding]:
    """The findings about one tensor: the first that explain it."""
    mine, true = [g[tensor] for g in given], [t[tensor] for t in truth]
    if all(map(agree, mine, true, cases)):
        return [Finding(tensor, "right", Words(f"{tensor} is right", f"{tensor} 正确"))]
    if not all(np.all(np.isfinite(x)) for x in mine):
        return [Finding(tensor, "unknown", Words(f"{tensor} is not finite", f"{tensor} 含有 NaN 或无穷大"))]
    if not any(np.any(t) for t in true):
        size = max(float(np.linalg.norm(x)) for x in mine)
        says = Words(f"{tensor} must be zero, and its norm is {size:.1e}", f"{tensor} 应为零，而它的范数是 {size:.1e}")
        return [Finding(tensor, "unknown", says)]
    steps: list[Callable[[], Finding | None]] = [
        lambda: transposed(tensor, mine, true, cases),
        lambda: fault(tensor, mine, problem, cases),
        lambda: other_tensor(tensor, mine, truth),
        lambda: shape(tensor, mine, true),
        lambda: scale(tensor, mine, true, cases),
        lambda: plus_or_minus_dy(tensor, mine, true, cases),
        lambda: combination(tensor, mine, true, problem, cases),
        lambda: mutant(tensor, mine, problem, cases),
        lambda: last_sample(tensor, mine, problem, cases),
    ]
    found = next(filter(None, (step() for step in steps)), None)
    return [found] if found else [*broken_laws(tensor, given, truth, problem, cases), facts(tensor, mine, true, cases)]


def agree(mine: Array, true: Array, case: Case) -> bool:
    """Are they the same in this case? Where the true gradient is zero, what rounding leaves of it is zero too."""
    if mine.shape == true.shape and not np.any(true):
        return bool(np.linalg.norm(mine) <= 1e-10 * np.abs(case.dy).sum())
    return relative_error(mine, true) < SAME


def same(a: Sequence[Array], b: Sequence[Array]) -> bool:
    return all(relative_error(x, y) < SAME for x, y in zip(a, b, strict=True))


# ---- 1. shape ----


def other_tensor(tensor: str, mine: list[Array], truth: list[Tensors]) -> Finding | None:
    """The gradient of another input in its place."""
    for other in truth[0]:
        if other != tensor and same(mine, [t[other] for t in truth]):
            return Finding(
                tensor, "terms", Words(f"{tensor} holds the gradient {other}", f"{tensor} 的位置上放的是 {other}")
            )
    return None


def transposed(tensor: str, mine: list[Array], true: list[Array], cases: list[Case]) -> Finding | None:
    """The right numbers, or a multiple of them, with the last two axes exchanged."""
    if mine[0].ndim < 2:
        return None
    turned = [x.swapaxes(-1, -2) for x in mine]
    factors = [c for a, b in zip(turned, true, strict=True) if (c := proportion(a, b)) is not None]
    words = product(factors, [case.sizes for case in cases]) if len(factors) == len(true) else ""
    if words in ("", "0"):
        return None
    en, zh = (f"{tensor} is transposed", f"{tensor} 被转置了")
    if words != "1":
        en, zh = f"{en}, and {words} times the true gradient", f"{zh}，并且是正确梯度的 {words} 倍"
    return Finding(tensor, "shape", Words(en, zh))


def shape(tensor: str, mine: list[Array], true: list[Array]) -> Finding | None:
    """A wrong shape: the right numbers in another one, or not yet summed."""
    if all(x.shape == t.shape for x, t in zip(mine, true, strict=True)):
        return None
    if same([x.reshape(-1) for x in mine], [t.reshape(-1) for t in true]):
        return Finding(
            tensor,
            "shape",
            Words(
                f"{tensor} has the right numbers in the shape {mine[0].shape}, it must be {true[0].shape}",
                f"{tensor} 的数值正确，但形状是 {mine[0].shape}，应为 {true[0].shape}",
            ),
        )
    for axes in itertools.chain.from_iterable(
        itertools.combinations(range(mine[0].ndim), n) for n in range(1, mine[0].ndim)
    ):
        if mine[0].ndim - len(axes) == true[0].ndim and same([x.sum(axis=axes) for x in mine], true):
            where = ", ".join(map(str, axes))
            return Finding(
                tensor,
                "shape",
                Words(
                    f"{tensor} is right once it is summed over axis {where}", f"{tensor} 再对第 {where} 轴求和就正确了"
                ),
            )
    shapes = f"{mine[0].shape}", f"{true[0].shape}"
    return Finding(
        tensor,
        "shape",
        Words(
            f"{tensor} has shape {shapes[0]}, it must have {shapes[1]}",
            f"{tensor} 的形状是 {shapes[0]}，应为 {shapes[1]}",
        ),
    )


# ---- 2. the bank ----


def fault(tensor: str, mine: list[Array], problem: Problem, cases: list[Case]) -> Finding | None:
    """The named fault that gives just this tensor on every case."""
    for candidate in problem.faults.values():
        wrong = apply(candidate.wrong, cases[0])
        if tensor in wrong and same([wrong[tensor]], mine[:1]):
            rest = [apply(candidate.wrong, case)[tensor] for case in cases[1:]]
            if same(rest, mine[1:]):
                return Finding(tensor, "fault", candidate.says.about(tensor), candidate.asks, candidate.name)
    return None


# ---- 3. scale ----


def scale(tensor: str, mine: list[Array], true: list[Array], cases: list[Case]) -> Finding | None:
    """The true gradient times a number, which is written with the problem's constants if it can be."""
    factors = [proportion(a, b) for a, b in zip(mine, true, strict=True)]
    if any(c is None for c in factors):
        return None
    words = product([c for c in factors if c is not None], [case.sizes for case in cases])
    if words == "-1":
        return Finding(tensor, "scale", Words(f"{tensor} has the wrong sign", f"{tensor} 的符号反了"))
    if words == "2":
        return Finding(tensor, "scale", Words(f"{tensor} is counted twice", f"{tensor} 被算了两次"))
    if words == "0":
        return Finding(tensor, "scale", Words(f"{tensor} is zero", f"{tensor} 为零"))
    if words:
        return Finding(
            tensor, "scale", Words(f"{tensor} is {words} times the true gradient", f"{tensor} 是正确梯度的 {words} 倍")
        )
    numbers = ", ".join(f"{c:.4g}" for c in factors)
    en, zh = f"{tensor} is the true gradient times {numbers}", f"{tensor} 是正确梯度的 {numbers} 倍"
    if len(cases) < 3:
        en += ": to say of which constants that is made takes three cases or more"
        zh += "：要说出它由哪些常数构成，至少需要三个案例"
    else:
        en += " in the cases, which no product of up to three constants explains, or more than one does"
        zh += "（逐个案例），没有哪三个以内常数的乘积能解释它，或者不止一个"
    return Finding(tensor, "scale", Words(en, zh))


# ---- 4. terms ----


def combination(
    tensor: str, mine: list[Array], true: list[Array], problem: Problem, cases: list[Case]
) -> Finding | None:
    """The true gradient's terms, with other coefficients than 1."""
    if problem.terms is None:
        return None
    terms = [apply(problem.terms, case).get(tensor, {}) for case in cases]
    if len(terms[0]) < 2:
        return None
    coefficients = []
    for given, parts in zip(mine, terms, strict=True):
        matrix = np.stack([np.broadcast_to(part, given.shape).reshape(-1) for part in parts.values()], axis=1)
        solution = np.linalg.lstsq(matrix, given.reshape(-1))[0]
        if (
            relative_error(matrix @ solution, given.reshape(-1)) > SAME
            or np.linalg.matrix_rank(matrix) < matrix.shape[1]
        ):
            return None
        coefficients.append(np.where(np.abs(solution) < 1e-9, 0, solution))
    says = []
    for name, column in zip(terms[0], np.array(coefficients).T, strict=True):
        words = product(column, [case.sizes for case in cases])
        if not words:
            return None
        if words != "1":
            says.append(coefficient_words(name, words))
    return Finding(
        tensor,
        "terms",
        Words(f"in {tensor}, " + " and ".join(s.en for s in says), f"{tensor} 中，" + "，".join(s.zh for s in says)),
    )


def coefficient_words(term: Words, words: str) -> Words:
    if words == "0":
        return Words(f"{term.en} is missing", f"缺少{term.zh}")
    if words == "2":
        return Words(f"{term.en} is counted twice", f"{term.zh}被算了两次")
    if words == "-1":
        return Words(f"{term.en} has the wrong sign", f"{term.zh}的符号反了")
    return Words(f"{term.en} is {words} times what it must be", f"{term.zh}是应有的 {words} 倍")


def plus_or_minus_dy(tensor: str, mine: list[Array], true: list[Array], cases: list[Case]) -> Finding | None:
    """The true gradient and once dy, as when a path that passes dy on unchanged is left out or counted again."""
    if not all(np.shape(case.dy) == x.shape == t.shape for case, x, t in zip(cases, mine, true, strict=True)):
        return None
    for sign, en, zh in ((1, "minus", "减去"), (-1, "plus", "加上")):
        if same([x + sign * case.dy for x, case in zip(mine, cases, strict=True)], true):
            return Finding(
                tensor,
                "terms",
                Words(f"{tensor} is the true gradient {en} dy", f"{tensor} 等于正确梯度{zh} dy"),
                Words(
                    "Is there a path that passes dy on unchanged, and how often?",
                    "有没有一条原样传递 dy 的路径？有几条？",
                ),
            )
    return None


# ---- 5. mutants of the textbook ----


def mutant(tensor: str, mine: list[Array], problem: Problem, cases: list[Case]) -> Finding | None:
    """An edit of the textbook gradient that gives just this tensor on every case."""
    for says, function in mutants_of(problem.backward):
        try:
            with np.errstate(all="ignore"):
                if same([apply(function, cases[0])[tensor]], mine[:1]) and same(
                    [apply(function, case)[tensor] for case in cases[1:]], mine[1:]
                ):
                    return Finding(
                        tensor,
                        "mutant",
                        Words(f"{tensor} comes out as if {says.en}", f"{tensor} 的结果相当于{says.zh}"),
                    )
        except Exception:  # an edit need not make sense
            continue
    return None


def last_sample(tensor: str, mine: list[Array], problem: Problem, cases: list[Case]) -> Finding | None:
    """A sum over the samples of which the last, or the first, alone is left: the gradient is linear in dy."""
    for index, en, zh in ((-1, "last", "最后一个"), (0, "first", "第一个")):
        alone = []
        for case in cases:
            if np.ndim(case.dy) < 2 or np.shape(case.dy)[0] < 2:
                return None
            dy = np.zeros_like(case.dy)
            dy[index] = case.dy[index]
            try:
                alone.append(apply(problem.backward, case._replace(dy=dy))[tensor])
            except ValueError:  # a gradient that is measured may not be measurable from one sample
                return None
        if same(mine, alone):
            return Finding(
                tensor,
                "terms",
                Words(
                    f"{tensor} holds the {en} sample alone: the samples must add up",
                    f"{tensor} 只包含{zh}样本：各样本应当累加",
                ),
            )
    return None


# ---- 6 and 7. laws and facts ----


def broken_laws(
    tensor: str, given: list[Tensors], truth: list[Tensors], problem: Problem, cases: list[Case]
) -> list[Finding]:
    """The laws that this tensor breaks when every other tensor is right."""
    broken = []
    for words, law in problem.laws.items():
        mixed = [{**t, tensor: g[tensor]} for g, t in zip(given, truth, strict=True)]
        try:
            violated = max(law(tensors, case) for tensors, case in zip(mixed, cases, strict=True)) > 1e-6
        except (ValueError, FloatingPointError):
            continue
        if violated:
            broken.append(
                Finding(
                    tensor, "law", Words(f"{tensor} breaks a law: {words.en}", f"{tensor} 违反了一条规律：{words.zh}")
                )
            )
    return broken


def facts(tensor: str, mine: list[Array], true: list[Array], cases: list[Case]) -> Finding:
    """What can be said of a tensor whose fault is unknown, from the first case in which it is wrong."""
    wrong_in = [i for i, case in enumerate(cases) if not agree(mine[i], true[i], case)]
    a, b, case = mine[wrong_in[0]], true[wrong_in[0]], cases[wrong_in[0]]
    en, zh = [], []
    if len(wrong_in) < len(cases):
        listed = ", ".join(str(i + 1) for i in wrong_in)
        en.append(f"{tensor} is right except in case{'s' * (len(wrong_in) > 1)} {listed} of {len(cases)}")
        zh.append(f"{tensor} 只在第 {listed} 个案例（共 {len(cases)} 个）中出错")
    if np.any(b):
        cosine = float((a * b).sum() / (np.linalg.norm(a) * np.linalg.norm(b) or 1))
        more = np.abs(b) > SAME * np.abs(b).max()  # than rounding
        ratio = a[more] / b[more]
        en.append(f"{tensor} has a cosine of {cosine:.3f} with the true gradient")
        en.append(f"ratios from {ratio.min():.3g} to {ratio.max():.3g}")
        zh.append(f"{tensor} 与正确梯度的余弦为 {cosine:.3f}")
        zh.append(f"比值从 {ratio.min():.3g} 到 {ratio.max():.3g}")
    else:
        en.append(f"{tensor} must be zero there, and its norm is {np.linalg.norm(a):.1e}")
        zh.append(f"{tensor} 在那里应为零，而它的范数是 {np.linalg.norm(a):.1e}")
    off = np.abs(a - b) > SAME * np.abs(b).max()
    for axis in range(a.ndim):
        wrong = np.flatnonzero(off.any(axis=tuple(i for i in range(a.ndim) if i != axis)))
        if 0 < len(wrong) < a.shape[axis]:
            listed = ", ".join(map(str, wrong[:8])) + (", ..." if len(wrong) > 8 else "")
            en.append(f"wrong only at {listed} along axis {axis}")
            zh.append(f"只在第 {axis} 轴的 {listed} 处出错")
            if "ids" in case.constants and axis == 0:
                ids, counts = np.unique(case.constants["ids"], return_counts=True)
                if set(wrong) <= set(ids[counts > 1]):
                    en.append("these are repeated ids")
                    zh.append("这些正是重复出现的 id")
    return Finding(tensor, "unknown", Words("unknown: " + "; ".join(en), "未知：" + "；".join(zh)))


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
