"""Parts that a problem of verify/problems/ grades."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import numpy as np

from ...backend import Array
from ...verify.case import Case, apply
from ...verify.diagnose import diagnose
from ...verify.explanations.finding import Finding
from ...verify.language import Words, words
from ...verify.problem import Problem
from ...verify.problems import problems
from ...verify.rewritten import with_constants
from ..naming import Arguments
from .part import Checked, Mistake, Part, Picture
from .refusals import Function, Refused, Tensors, equal
from .value import difference, same


@dataclass
class Gradient(Part):
    """A backward, graded by a problem of verify/problems/: forward, textbook backward, cases, laws and mistakes."""

    problem: str = ""
    makes: Mapping[str, Callable[[Case], Any]] = field(default_factory=dict)  # arguments that the problem does not have
    called: Mapping[str, str] = field(default_factory=dict)  # {the problem's name: the exercise's}: {"W": "E"}
    without: str = ""  # constants of the problem that the exercise leaves out, as `complete` makes them: "keep p"
    picture: str = ""  # tensors to draw where they are wrong

    @cached_property
    def bank(self) -> Problem:
        """The problem, in its form without the constants of `without`; faults that then give the true gradient are left
        out."""
        problem = problems()[self.problem]
        if not self.without:
            return problem
        taken = [name for name in problem.cases(n=1)[0].constants if name not in self.without.split()]
        problem = with_constants(problem, taken, unit=False)
        (case,) = problem.cases(n=1)
        true = apply(problem.backward, case)
        faults = {
            name: fault
            for name, fault in problem.faults.items()
            if not all(same(wrong, true[tensor]) for tensor, wrong in apply(fault.wrong, case).items())
        }
        return replace(problem, faults=faults)

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
        given, true = [self.of_case(case) for case in drawn], [self.of_truth(case) for case in drawn]
        mine: list[Tensors] = []
        for arguments, tensors in zip(given, true, strict=True):
            try:
                mine.append(self.outcome(function, arguments, tensors))
            except Refused as refused:
                if refused.kind == "transposed":  # diagnose says of what
                    break
                return Checked([self.of_refused(refused, mine, given, true)])
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
        errors = (
            {name: max(difference(m[name], t[name]) for m, t in zip(mine, true, strict=True)) for name in self.tensors}
            if len(mine) == len(drawn)
            else {}
        )
        return Checked(findings, errors, list(self.pictures(findings, drawn, mine)))

    def as_gradient(self, function: Function, dy: Array, *inputs: Array, **constants: Any) -> Tensors:
        """The learner's function as diagnose calls it. Tensors that it does not return are the true ones."""
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
