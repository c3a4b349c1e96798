"""What every kind of part shares: its mistakes and rules, and the order of checks."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from ...backend import Array
from ...verify.explanations.finding import Finding
from ...verify.language import Words, words
from ..naming import Arguments, described
from .refusals import Function, Refused, Tensors, at_line, equal, in_words, refuse


class Mistake(NamedTuple):
    """A wrong function that people write, called as the right one is."""

    name: str
    wrong: Function
    says: Words
    asks: Words


class Rule(NamedTuple):
    """What values alone do not show: `broken(function)` is True if the function breaks the rule."""

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
    compared_as: Callable[[Tensors], Tensors] = lambda tensors: tensors  # what is compared: B A if A, B are not unique
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
    def results(self) -> list[str]:
        """The names of what is compared."""
        return self.tensors

    @property
    def arguments(self) -> list[str]:
        return list(inspect.signature(self.solution).parameters)

    def mistake(self, says: str, asks: str) -> Callable[[Function], Function]:
        """List the decorated function as a mistake: `says` what is wrong with {it}, `asks` a question to ask back."""

        def add(wrong: Function) -> Function:
            self.mistakes[wrong.__name__] = Mistake(wrong.__name__, wrong, words(says), words(asks))
            return wrong

        return add

    def rule(self, says: str, asks: str, broken: Callable[[Function], bool]) -> Callable[[Function], Function]:
        """List the decorated function as one that breaks a rule although its values are right."""

        def add(wrong: Function) -> Function:
            mistake = Mistake(wrong.__name__, wrong, words(says), words(asks))
            self.rules[wrong.__name__] = Rule(mistake, broken)
            return wrong

        return add

    def all_mistakes(self) -> dict[str, Mistake]:
        """{name: mistake}: every one that the part lists."""
        return self.mistakes | {name: rule.mistake for name, rule in self.rules.items()}

    def check(self, function: Any, seed: int = 0) -> Checked:
        """Grade the learner's function."""
        if problem := self.cannot_be_called(function):
            return Checked([problem])
        with np.errstate(all="ignore"):
            checked = self.compared(function, seed)
            if all(finding.kind == "right" for finding in checked.findings):
                for rule in self.rules.values():
                    if broken := self.broken(rule, function):
                        return checked._replace(findings=[*checked.findings, broken])
        return checked

    def broken(self, rule: Rule, function: Function) -> Finding | None:
        """What the rule says of the function, or that it raises when the rule calls it; None if the rule is kept."""
        try:
            if not rule.broken(function):
                return None
        except Refused as refused:
            return Finding(self.name, refused.kind, refused.says, refused.asks)
        except (Exception, SystemExit) as error:
            raised = in_words(error)
            says = words("{it} raises {error} on other arguments than those of the cases", it=self.name, error=raised)
            return Finding(self.name, "raises", says, at_line(error, function))
        return Finding(self.name, "rule", rule.mistake.says.filled(it=self.name), rule.mistake.asks, rule.mistake.name)

    def cannot_be_called(self, function: Any) -> Finding | None:
        if not callable(function):
            says = (
                words("{it} is not there", it=self.name)
                if function is None
                else words("{it} is not a function", it=self.name)
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

    def of_refused(
        self, refused: Refused, before: list[Tensors], cases: list[Arguments], true: list[Tensors]
    ) -> Finding:
        """The listed mistake that fails in the same way in the same case, after the same values, if there is one."""
        if refused.kind == "not written":
            return Finding(self.name, refused.kind, refused.says)
        alike = []
        for mistake in self.all_mistakes().values():
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
        """Whether two results agree."""
        return equal(a, b)

    def compared(self, function: Function, seed: int) -> Checked:
        raise NotImplementedError

    def cases(self, seed: int) -> list[Arguments]:
        raise NotImplementedError

    def truths(self, cases: Sequence[Arguments]) -> list[Tensors]:
        raise NotImplementedError

    def run(self, function: Function, arguments: Arguments) -> Tensors:
        """What the function returns for these arguments, by name. Raises Refused if it raises or returns nothing."""
        try:
            result = self.call(function, arguments)
        except NotImplementedError:
            raise Refused("not written", self.not_written) from None
        except Refused:
            raise
        except (Exception, SystemExit) as error:
            given = described(arguments)
            says = words("{it} raises {error}, called with {given}", it=self.name, error=in_words(error), given=given)
            raise Refused("raises", says, at_line(error, function), detail=type(error).__name__) from error
        return self.of_call(result, arguments)

    def call(self, function: Function, arguments: Arguments) -> Any:
        """Call the function. Exceptions count as the learner's."""
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
                lacking = [name for name in names if name not in result] or ["–"]
                more = [str(name) for name in result if name not in names] or ["–"]
                says = words(
                    "{it} returns a dict that lacks {lacking} and has too much {more}",
                    it=self.name,
                    lacking=", ".join(lacking),
                    more=", ".join(more),
                )
                raise Refused("shape", says, detail=f"{lacking} {more}")
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
        """The function's results as they are compared. Raises Refused if they cannot be: a wrong shape, ..."""
        given = copy.deepcopy(arguments)
        first = self.run(function, given)
        with suppress(TypeError, MemoryError):  # of a generator, or of zeros broadcast: refused below
            first = copy.deepcopy(first)
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


@dataclass
class Graded(Part):
    """A part that the exercise's `grade(function, seed)` grades; it returns Checked."""

    grade: Callable[[Function, int], Checked] = lambda function, seed: Checked([])

    def compared(self, function: Function, seed: int) -> Checked:
        try:
            return self.grade(function, seed)
        except Refused as refused:
            return Checked([Finding(self.name, refused.kind, refused.says, refused.asks)])


def right(it: str) -> Finding:
    return Finding(it, "right", words("{it} is right", it=it))
