"""A part of an exercise: one function that the learner writes, and what its results are compared with.

    Gradient    a problem of verify/problems/ judges it, and diagnose names the mistakes
    Value       a function of the library or of the exercise gives the true values; the exercise lists the mistakes
    ValueAndGradients   a Value with a dict of gradients after it
    Predicted   a Value without arguments: what it must be is never told
    Judged      a function of the exercise judges it by itself

All are checked in one order. It must exist and take the arguments; then, on every case, it must not raise, return the
right number of results in the right shapes, leave its arguments as they are (but for what it is meant to change),
return finite numbers of float64, and the same when called again. Only then are numbers compared, and only then rules
tried.
"""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from ..backend import Array
from ..verify.case import Case, apply, relative_error
from ..verify.diagnose import diagnose
from ..verify.explanations.finding import Finding
from ..verify.language import Words, words
from ..verify.problem import Problem
from ..verify.problems import problems
from ..verify.scale import SAME
from .naming import Arguments, described, named, shape

Function: TypeAlias = Callable[..., Any]
Tensors: TypeAlias = dict[str, Any]  # what a function returns, by name
CASES = 6


class Mistake(NamedTuple):
    """A wrong function that people write, called as the right one is."""

    name: str
    wrong: Function
    says: Words
    asks: Words


class Rule(NamedTuple):
    """What numbers alone do not show: `broken(function)` is true where a right function would not be."""

    mistake: Mistake
    broken: Callable[[Function], bool]


class Picture(NamedTuple):
    """A wrong matrix beside the true one."""

    tensor: str
    true: Array
    yours: Array


class Checked(NamedTuple):
    """What was found out about one function."""

    findings: list[Finding]
    errors: Mapping[str, float] = MappingProxyType({})  # relative, of each tensor that could be compared
    pictures: Sequence[Picture] = ()


@dataclass
class Part:
    """One function of an exercise. The first argument is its solution."""

    solution: Function
    returns: str = ""  # names of what it returns, with spaces between
    changes: str = ""  # or of the arguments that it changes instead, which are its results after the call
    compared_as: Callable[[Tensors], Tensors] = lambda tensors: tensors  # a product, where its factors are not unique
    mistakes: dict[str, Mistake] = field(default_factory=dict, init=False)
    rules: dict[str, Rule] = field(default_factory=dict, init=False)

    @property
    def name(self) -> str:
        return self.solution.__name__

    @property
    def not_written(self) -> Words:
        return words("{it} is not written yet", it=self.name)

    @property
    def tensors(self) -> list[str]:
        return (self.changes or self.returns).split()

    @property
    def judged(self) -> list[str]:
        """The names of what is compared."""
        return self.tensors

    @property
    def arguments(self) -> list[str]:
        return list(inspect.signature(self.solution).parameters)

    def mistake(self, says: str, asks: str) -> Callable[[Function], Function]:
        """The decorated function is a mistake: what it says of {it}, and a question to ask back."""

        def add(wrong: Function) -> Function:
            self.mistakes[wrong.__name__] = Mistake(wrong.__name__, wrong, words(says), words(asks))
            return wrong

        return add

    def rule(self, says: str, asks: str, broken: Callable[[Function], bool]) -> Callable[[Function], Function]:
        """The decorated function breaks a rule that its numbers do not show."""

        def add(wrong: Function) -> Function:
            mistake = Mistake(wrong.__name__, wrong, words(says), words(asks))
            self.rules[wrong.__name__] = Rule(mistake, broken)
            return wrong

        return add

    def all_mistakes(self) -> dict[str, Mistake]:
        """{name: mistake}: every one that the part lists."""
        return self.mistakes | {name: rule.mistake for name, rule in self.rules.items()}

    def check(self, function: Any, seed: int = 0) -> Checked:
        """Judge the learner's function."""
        if problem := self.cannot_be_called(function):
            return Checked([problem])
        with np.errstate(all="ignore"):
            checked = self.compared(function, seed)
            if all(finding.kind == "right" for finding in checked.findings):
                for rule in self.rules.values():
                    if rule.broken(function):
                        it = self.name
                        broken = Finding(
                            it, "rule", rule.mistake.says.filled(it=it), rule.mistake.asks, rule.mistake.name
                        )
                        return checked._replace(findings=[*checked.findings, broken])
        return checked

    def cannot_be_called(self, function: Any) -> Finding | None:
        if not callable(function):
            says = (
                words("{it} is not there", it=self.name)
                if function is None
                else words("{it} is no function", it=self.name)
            )
            return Finding(self.name, "missing", says, words("Is it called {it} in your file?", it=self.name))
        try:
            inspect.signature(function).bind(*self.arguments)
        except TypeError:
            says = words("{it} must take {arguments}, in this order", it=self.name, arguments=", ".join(self.arguments))
            return Finding(self.name, "signature", says)
        except ValueError:  # some functions written in C have no signature
            pass
        return None

    def compared(self, function: Function, seed: int) -> Checked:
        raise NotImplementedError

    def cases(self, seed: int) -> list[Arguments]:
        raise NotImplementedError

    def truths(self, cases: Sequence[Arguments]) -> list[Tensors]:
        raise NotImplementedError

    def run(self, function: Function, arguments: Arguments) -> Tensors:
        """What the function returns for these arguments, by name. Raises Refused where that is of no use."""
        try:
            result = self.call(function, arguments)
        except NotImplementedError:
            raise Refused("not written", self.not_written) from None
        except Refused:
            raise
        except (Exception, SystemExit) as error:
            message = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            line, given = line_of(error, function), described(arguments)
            says = words("{it} raises {error}, called with {given}", it=self.name, error=message, given=given)
            asks = words("It happens in line {line}.", line=str(line)) if line else None
            raise Refused("raises", says, asks, detail=type(error).__name__) from error
        return self.of_call(result, arguments)

    def call(self, function: Function, arguments: Arguments) -> Any:
        """What is judged of a call. Exceptions that it raises are the learner's."""
        return function(*arguments.values())

    def of_call(self, result: Any, arguments: Arguments) -> Tensors:
        """What a call has returned or changed, by name."""
        return {name: arguments[name] for name in self.tensors} if self.changes else self.by_name(result)

    def by_name(self, result: Any) -> Tensors:
        names = self.tensors
        if result is None:
            raise Refused("shape", words("{it} returns nothing: is there a return at its end?", it=self.name))
        if isinstance(result, Mapping):
            if set(result) != set(names):
                says = words(
                    "{it} returns {found}, and must return {wanted}",
                    it=self.name,
                    found=", ".join(map(str, result)),
                    wanted=", ".join(names),
                )
                raise Refused("shape", says)
            return {name: result[name] for name in names}
        values = [result] if len(names) == 1 else list(result) if isinstance(result, tuple | list) else [result]
        if len(names) > 1 and len(values) != len(names):
            says = words(
                "{it} returns {found} results, and must return {n}: {wanted}",
                it=self.name,
                found=str(len(values)),
                n=str(len(names)),
                wanted=", ".join(names),
            )
            raise Refused("shape", says)
        return dict(zip(names, values, strict=True))

    def outcome(self, function: Function, arguments: Arguments, true: Tensors) -> Tensors:
        """What is compared of the function's results. Raises Refused for what is wrong before that: a shape, ..."""
        given = copy.deepcopy(arguments)
        first = copy.deepcopy(self.run(function, given))
        changed = [name for name, before in arguments.items() if not equal(before, given[name])]
        if self.changes and not changed:
            says = words("{it} changes nothing: what it computes must go into its arguments", it=self.name)
            raise Refused("unchanged", says)
        first = self.compared_as(first)
        right = self.compared_as(true)
        for name in right:
            refuse(name, first[name], right, arguments)
        for name in changed:
            if name not in self.changes.split():
                says = words("{it} changes its argument {name}: let it work on a copy", it=self.name, name=name)
                raise Refused("changed", says, detail=name)
        second = self.compared_as(self.run(function, copy.deepcopy(arguments)))
        if not all(equal(first[name], second[name]) for name in first):
            says = words(
                "{it} returns something else when it is called again: it must draw nothing by itself",
                it=self.name,
            )
            raise Refused("random", says)
        return first


class Refused(Exception):
    """What is wrong before any number is compared."""

    def __init__(self, kind: str, says: Words, asks: Words | None = None, detail: str = ""):
        super().__init__(says.en)
        self.kind, self.says, self.asks, self.detail = kind, says, asks, detail

    def same(self, other: Refused) -> bool:
        return (self.kind, self.detail) == (other.kind, other.detail)


def refuse(name: str, mine: Any, right: Tensors, arguments: Arguments) -> None:
    """Raise Refused for another shape or type than the right value's, or for what is not finite."""
    try:
        array, wanted = np.asarray(mine), np.asarray(right[name])
    except ValueError:
        raise Refused("shape", words("{it} is no array: its rows differ in length", it=name)) from None
    if array.dtype.kind not in "biufcUS" or (array.dtype.kind in "US") != (wanted.dtype.kind in "US"):
        raise Refused(
            "type",
            words(
                "{it} is {found}, and must be {wanted}",
                it=name,
                found=type(mine).__name__,
                wanted="str" if wanted.dtype.kind == "U" else f"{wanted.dtype} {shape(wanted)}",
            ),
            detail=name,
        )
    if array.shape != wanted.shape:
        says = words(
            "{it} has shape {found}, and must have {wanted}, for {given}",
            it=name,
            found=shape(array),
            wanted=shape(wanted),
            given=described(arguments),
        )
        if array.ndim > 1 and array.T.shape == wanted.shape:
            which = words("Its transpose would have that shape: which axis of your result is which?")
            raise Refused("transposed", says, which, detail=f"{name} {array.shape}")
        alike = [other for other, value in right.items() if np.shape(value) == array.shape]
        order = words("That is the shape of {other}: in which order are the results returned?", other=(*alike, "")[0])
        asks = order if alike else None
        raise Refused("shape", says, asks, detail=f"{name} {array.shape} {wanted.shape}")
    if array.dtype.kind == "f" and array.dtype != np.float64 and wanted.dtype == np.float64:
        raise Refused(
            "type",
            words("{it} is {found}: compute in float64, as the arguments are", it=name, found=str(array.dtype)),
            detail=name,
        )
    if wanted.dtype.kind in "fiu" and np.all(np.isfinite(wanted)) and not np.all(np.isfinite(array)):
        where = [int(i) for i in np.argwhere(~np.isfinite(array))[0]]
        says = words(
            "{it} is not finite, first at {place}, for {given}", it=name, place=str(where), given=described(arguments)
        )
        asks = words("Is there a division by 0, a logarithm of 0, or an exponential of a large number?")
        raise Refused("not finite", says, asks, detail=name)


def equal(a: Any, b: Any) -> bool:
    """Whether two values are the same, bit for bit."""
    if isinstance(a, Mapping):
        return isinstance(b, Mapping) and list(a) == list(b) and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, tuple | list):
        return isinstance(b, tuple | list) and len(a) == len(b) and all(map(equal, a, b))
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return np.shape(a) == np.shape(b) and np.array_equal(a, b, equal_nan=np.asarray(a).dtype.kind == "f")
    return isinstance(a, np.random.Generator) or bool(a == b)


def line_of(error: BaseException, function: Function) -> int:
    """The line of the learner's file in which the error was raised; 0 if there is none."""
    methods = vars(function).values() if isinstance(function, type) else [function]
    code = next((method.__code__ for method in methods if hasattr(method, "__code__")), None)
    file = code.co_filename if code else ""
    found, trace = 0, error.__traceback__
    while trace:
        found = trace.tb_lineno if trace.tb_frame.f_code.co_filename == file else found
        trace = trace.tb_next
    return found


@dataclass
class Value(Part):
    """A function whose values are compared. `draw(rng, i)` gives the arguments of case i, `truth` their values."""

    truth: Function = lambda *arguments: None
    draw: Callable[[np.random.Generator, int], Arguments] = lambda rng, i: {}
    compare: bool = True  # False: only shapes; rules judge the rest
    tolerance: float = SAME
    common: bool = True  # look for a factor, another argument, ... where no listed mistake fits

    @cached_property
    def judged(self) -> list[str]:
        if self.compared_as is type(self).compared_as:  # the default
            return self.tensors
        return list(self.compared_as(self.truths(self.cases()[:1])[0]))

    def cases(self, seed: int = 0) -> list[Arguments]:
        return [self.draw(np.random.default_rng([seed, i, 2]), i) for i in range(CASES)]

    def truths(self, cases: Sequence[Arguments]) -> list[Tensors]:
        given = copy.deepcopy(cases)
        return [self.of_call(self.truth(*case.values()), case) for case in given]

    def compared(self, function: Function, seed: int) -> Checked:
        cases = self.cases(seed)
        true = self.truths(cases)
        mine: list[Tensors] = []
        for case, tensors in zip(cases, true, strict=True):
            try:
                mine.append(self.outcome(function, case, tensors))
            except Refused as refused:
                return Checked([self.of_refused(refused, mine, cases, true)])
        if not self.compare:
            return Checked([Finding(name, "right", words("{it} is right", it=name)) for name in self.tensors])
        return self.of_values(mine, cases, true)

    def of_refused(
        self, refused: Refused, before: list[Tensors], cases: list[Arguments], true: list[Tensors]
    ) -> Finding:
        """The listed mistake that fails in the same way in the same case, after the same values, if there is one."""
        if refused.kind == "not written":
            return Finding(self.name, refused.kind, refused.says)
        alike = []
        for mistake in self.mistakes.values():
            try:
                for i, case in enumerate(cases[: len(before) + 1]):
                    values = self.outcome(mistake.wrong, case, true[i])
                    if i == len(before) or not all(self.same(values[n], before[i][n]) for n in values):
                        break
            except Refused as other:
                if i == len(before) and refused.same(other):
                    alike.append(mistake)
        if len(alike) == 1:
            return Finding(self.name, "fault", alike[0].says.filled(it=self.name), alike[0].asks, alike[0].name)
        return Finding(self.name, refused.kind, refused.says, refused.asks)

    def same(self, a: Any, b: Any) -> bool:
        return same(a, b, self.tolerance)

    def of_values(self, mine: list[Tensors], cases: list[Arguments], true: list[Tensors]) -> Checked:
        findings: list[Finding] = []
        errors: dict[str, float] = {}
        wrong_of: dict[str, list[Tensors]] = {}
        right = [self.compared_as(tensors) for tensors in true]
        for name in right[0]:
            a, t = [m[name] for m in mine], [m[name] for m in right]
            errors[name] = max(difference(x, y) for x, y in zip(a, t, strict=True))
            if all(map(self.same, a, t)):
                findings.append(Finding(name, "right", words("{it} is right", it=name)))
                continue
            if not wrong_of:
                wrong_of = {key: self.all_of(mistake, cases, true) for key, mistake in self.mistakes.items()}
            alike = [
                key for key, values in wrong_of.items() if values and self.agree(values, mine, self.together(name))
            ]
            alone = [key for key in alike if self.agree(wrong_of[key], mine, [*right[0]])]  # explains the rest too
            findings += self.explained(name, a, t, cases, [self.mistakes[key] for key in alone or alike])
        return Checked(findings, errors)

    def explained(
        self, name: str, mine: list[Any], true: list[Any], cases: list[Arguments], listed: list[Mistake]
    ) -> list[Finding]:
        """What is wrong with one value. `listed` are the mistakes that give the same."""
        return named(name, mine, true, cases, listed, self.same, self.common)

    def together(self, tensor: str) -> list[str]:
        """The tensors that a mistake must explain for it to be named in this one."""
        return [tensor]

    def agree(self, some: list[Tensors], others: list[Tensors], names: list[str]) -> bool:
        """Whether these tensors are the same in every case."""
        return all(self.same(a[name], b[name]) for a, b in zip(some, others, strict=True) for name in names)

    def all_of(self, mistake: Mistake, cases: list[Arguments], true: list[Tensors]) -> list[Tensors]:
        """What a mistake returns in every case; [] where it fails before that."""
        try:
            return [self.outcome(mistake.wrong, case, tensors) for case, tensors in zip(cases, true, strict=True)]
        except Refused:
            return []


@dataclass
class ValueAndGradients(Value):
    """A function that returns one value, then a dict of gradients: dx, {"dA": ..., "dB": ...}."""

    def by_name(self, result: Any) -> Tensors:
        first = self.tensors[0]
        if not isinstance(result, Mapping):
            if not (isinstance(result, tuple | list) and len(result) == 2 and isinstance(result[1], Mapping)):
                raise Refused("shape", words("{it} must return {first} and a dict", it=self.name, first=first))
            result = {first: result[0], **result[1]}
        more = [name for name in map(str, result) if name not in self.tensors]
        if more and set(self.tensors) <= set(result):
            says = words("{it} returns {more}, which nobody asked for", it=self.name, more=", ".join(more))
            raise Refused("frozen", says, words("Which of the weights are trained?"))
        return super().by_name(result)


@dataclass
class Predicted(Value):
    """A function without arguments that returns what the learner expects to be measured."""

    def cases(self, seed: int = 0) -> list[Arguments]:
        return [{}]

    def explained(
        self, name: str, mine: list[Any], true: list[Any], cases: list[Arguments], listed: list[Mistake]
    ) -> list[Finding]:
        if listed:
            return named(name, mine, true, cases, listed, self.same, self.common)
        says = words("{it} is not what is measured, and not by a mistake that is known here", it=name)
        return [Finding(name, "unknown", says, words("Which experiment of a few lines would measure {it}?", it=name))]


def same(a: Any, b: Any, tolerance: float = SAME) -> bool:
    """Whether two values agree: whole numbers and words exactly, others relative to their norm."""
    x, y = np.asarray(a), np.asarray(b)
    if x.shape != y.shape:
        return False
    if x.dtype.kind not in "fiub" or y.dtype.kind not in "fc":
        return bool(np.array_equal(x, y))
    finite = np.isfinite(y)
    if not finite.all():
        return bool(np.array_equal(x[~finite], y[~finite], equal_nan=True)) and same(x[finite], y[finite], tolerance)
    return relative_error(x, y) < tolerance if np.any(y) else float(np.linalg.norm(x)) <= 1e-10


def difference(a: Any, b: Any) -> float:
    """The relative error of numbers; for words 0 or infinity."""
    x, y = np.asarray(a), np.asarray(b)
    if x.dtype.kind in "fiub" and y.dtype.kind in "fiub":
        return relative_error(x.astype(float), y.astype(float)) if np.all(np.isfinite(y)) or not same(a, b) else 0.0
    return 0.0 if same(a, b) else np.inf


@dataclass
class Gradient(Part):
    """A backward, judged by a problem of verify/problems/: forward, textbook backward, cases, laws and mistakes."""

    problem: str = ""
    makes: Mapping[str, Callable[[Case], Any]] = field(default_factory=dict)  # arguments that the problem does not have
    called: Mapping[str, str] = field(default_factory=dict)  # what the exercise calls others: {"W": "E"}
    picture: str = ""  # tensors to draw where they are wrong

    @property
    def bank(self) -> Problem:
        return problems()[self.problem]

    def of_case(self, case: Case) -> Arguments:
        known = {"dy": case.dy, "dL": case.dy, **self.renamed({**case.inputs, **case.constants})}
        known |= {name: make(case) for name, make in self.makes.items()}
        return {name: known[name] for name in self.arguments}

    def in_its_words(self, text: str) -> str:
        """A sentence or a name of the problem, with the names that the exercise has."""
        for theirs, ours in self.called.items():
            text = re.sub(rf"(?<![A-Za-z])(d?){theirs}(?![A-Za-z])", rf"\g<1>{ours}", text)
        return text

    def renamed(self, values: Mapping[str, Any]) -> dict[str, Any]:
        return {self.in_its_words(name): value for name, value in values.items()}

    def reworded(self, said: Words) -> Words:
        case = re.compile(r"diagnosis\.cases\[(\d+)\]")  # which the learner does not have
        en, zh = words("case {i}", i=r"\1")
        return Words(case.sub(en, self.in_its_words(said.en)), case.sub(zh, self.in_its_words(said.zh)))

    def cases(self, seed: int = 0) -> list[Arguments]:
        return [self.of_case(case) for case in self.bank.cases(seed)]

    def truths(self, cases: Sequence[Arguments]) -> list[Tensors]:
        return [self.of_truth(self.case_of(arguments)) for arguments in cases]

    def case_of(self, arguments: Arguments) -> Case:
        """The case of the bank from which these arguments were made."""
        return next(case for case in self.bank.cases() if equal(arguments, self.of_case(case)))

    def of_truth(self, case: Case) -> Tensors:
        true = self.renamed(apply(self.bank.backward, case))
        return {name: true[name] for name in self.tensors}

    def compared(self, function: Function, seed: int) -> Checked:
        drawn = self.bank.cases(seed)
        mine: list[Tensors] = []
        for case in drawn:
            try:
                mine.append(self.outcome(function, self.of_case(case), self.of_truth(case)))
            except Refused as refused:
                if refused.kind == "transposed":  # diagnose says of what
                    break
                return Checked([Finding(self.name, refused.kind, refused.says, refused.asks)])
        findings = diagnose(partial(self.as_gradient, function), self.bank, drawn if seed else None).findings
        findings = [
            replace(
                finding,
                tensor=self.in_its_words(finding.tensor),
                says=self.reworded(finding.says),
                asks=self.reworded(finding.asks) if finding.asks else None,
            )
            for finding in findings
        ]
        findings = [finding for finding in findings if finding.tensor in self.tensors]
        findings.sort(key=lambda finding: self.tensors.index(finding.tensor))
        true = [self.of_truth(case) for case in drawn]
        errors = (
            {name: max(difference(m[name], t[name]) for m, t in zip(mine, true, strict=True)) for name in self.tensors}
            if len(mine) == len(drawn)
            else {}
        )
        return Checked(findings, errors, list(self.pictures(findings, drawn, mine)))

    def as_gradient(self, function: Function, dy: Array, *inputs: Array, **constants: Any) -> Tensors:
        """The learner's function as diagnose calls it. What it does not return is right."""
        bank = self.bank
        case = Case(dy, dict(zip(bank.cases(n=1)[0].inputs, inputs, strict=True)), constants)
        mine = self.by_name(function(*self.of_case(case).values()))
        return {name: mine.get(self.in_its_words(name), true) for name, true in apply(bank.backward, case).items()}

    def pictures(self, findings: list[Finding], drawn: list[Case], mine: list[Tensors]) -> Iterator[Picture]:
        if len(mine) < len(drawn):
            return
        wrong = {finding.tensor for finding in findings if finding.kind != "right"} & set(self.picture.split())
        for name in sorted(wrong, key=self.tensors.index):
            each = [(self.of_truth(case)[name], values[name]) for case, values in zip(drawn, mine, strict=True)]
            shown = [matrices(*pair) for pair in each if not same(*pair)]
            yield Picture(
                f"{self.name}, {name}", *max(shown, key=lambda pair: pair[0].size)
            )  # the one that fills the picture best

    def all_mistakes(self) -> dict[str, Mistake]:
        """The faults of the problem, as functions that the learner could have written, and the exercise's own."""
        first = self.bank.cases(n=1)[0]
        faults = [f for f in self.bank.faults.values() if {*self.renamed(apply(f.wrong, first))} & {*self.tensors}]
        found = {
            f.name: Mistake(f.name, partial(self.as_learners, f.wrong), self.reworded(f.says), self.reworded(f.asks))
            for f in faults
        }
        return found | super().all_mistakes()

    def as_learners(self, backward: Function, *arguments: Any) -> Tensors:
        """A gradient of the bank, called with the arguments of the exercise on one of the bank's cases."""
        case = self.case_of(dict(zip(self.arguments, arguments, strict=True)))
        tensors = self.renamed({**apply(self.bank.backward, case), **apply(backward, case)})
        return {name: tensors[name] for name in self.tensors}


def matrices(true: Array, yours: Array, size: int = 8) -> list[Array]:
    """The first rows and columns of both, tokens by width, of the sample and the head where they differ most."""
    true, yours = np.atleast_2d(true, yours)
    at = np.unravel_index(int(np.abs(yours - true).argmax()), true.shape)
    where: tuple[Any, ...] = {3: (at[0],), 4: (at[0], slice(None), at[-2])}.get(true.ndim, ())
    return [a[where][:size, :size] for a in (true, yours)]


@dataclass
class Judged(Part):
    """A part that `judge(function, seed)` judges by itself. It returns Checked."""

    judge: Callable[[Function, int], Checked] = lambda function, seed: Checked([])

    def compared(self, function: Function, seed: int) -> Checked:
        try:
            return self.judge(function, seed)
        except Refused as refused:
            return Checked([Finding(self.name, refused.kind, refused.says, refused.asks)])


def right(it: str) -> Finding:
    return Finding(it, "right", words("{it} is right", it=it))
