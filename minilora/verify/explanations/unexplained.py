"""A wrong tensor without an explanation: the laws it breaks, facts about it, and what to try next."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from ..case import Case, Tensors, apply
from ..changes import with_changes
from ..language import Words, joined, words
from ..problem import Law
from ..problems import problems
from ..scale import SAME
from .finding import Finding, WrongTensor, agree
from .of_values import listed

Run = Callable[[Case], Tensors]  # the gradients under test, in a case


def not_finite(w: WrongTensor) -> Finding:
    case = next(i for i, x in enumerate(w.gradient) if not np.all(np.isfinite(x)))
    where = [int(i) for i in np.argwhere(~np.isfinite(w.gradient[case]))[0]]
    return w.finding(
        "unknown",
        "{it} is not finite",
        "Look at {entry} in diagnosis.cases[{case}]: is there a division by 0, a logarithm of 0, or an exponential of "
        "a large number?",
        entry=f"{w.tensor}{where}",
        case=str(case),
    )


def must_be_zero(w: WrongTensor) -> Finding:
    return w.finding(
        "unknown",
        "{it} must be zero, and its norm is {norm}",
        "Change {input} a little: does any output change?",
        norm=f"{max(float(np.linalg.norm(x)) for x in w.gradient):.1e}",
        input=w.tensor[1:],
    )


def unknown(w: WrongTensor, run: Run) -> list[Finding]:
    """The laws it breaks, facts, and what to look at next."""
    with np.errstate(all="ignore"):
        return [*broken_laws(w), Finding(w.tensor, "unknown", facts(w), next_step(w, run))]


def broken_laws(w: WrongTensor) -> list[Finding]:
    """The laws that this tensor breaks, both with the true gradients of the other inputs and with those under test."""
    mixed = [{**t, w.tensor: g[w.tensor]} for g, t in zip(w.actual, w.expected, strict=True)]

    def violation(law: Law, of: Sequence[Tensors]) -> float:
        return max(law(tensors, case) for tensors, case in zip(of, w.cases, strict=True))

    broken = []
    for name, law in w.problem.laws.items():
        try:
            violated = min(violation(law, mixed), violation(law, w.actual)) > 1e-6
        except (ValueError, ArithmeticError):  # it divides by the norm of a tensor that is 0
            continue
        if violated:
            broken.append(w.finding("law", "{it} breaks a law: {law}", law=words(name)))
    return broken


def facts(w: WrongTensor) -> Words:
    """Facts about the tensor in the first case in which it is wrong."""
    wrong_in, it = wrong_cases(w), w.tensor
    a, b, case = w.gradient[wrong_in[0]], w.true[wrong_in[0]], w.cases[wrong_in[0]]
    found = []
    if len(wrong_in) < len(w.cases):
        one = len(wrong_in) == 1
        says = words(
            "{it} is right except in case {cases} of {n}" if one else "{it} is right except in cases {cases} of {n}"
        )
        found.append(says.filled(it=it, cases=listed([i + 1 for i in wrong_in]), n=str(len(w.cases))))
    if np.any(b):
        cosine = float((a * b).sum() / (np.linalg.norm(a) * np.linalg.norm(b) or 1))
        more = np.abs(b) > SAME * np.abs(b).max()  # than rounding
        ratio = a[more] / b[more] + 0.0  # not -0
        found += [
            words("{it} has a cosine of {cosine} with the true gradient", it=it, cosine=f"{cosine:.3f}"),
            words("ratios from {low} to {high}", low=f"{ratio.min():.3g}", high=f"{ratio.max():.3g}"),
        ]
    else:
        norm = f"{np.linalg.norm(a):.1e}"
        found.append(words("{it} must be zero there, and its norm is {norm}", it=it, norm=norm))
    off = np.abs(a - b) > SAME * np.abs(b).max()
    for axis in range(a.ndim):
        wrong = np.flatnonzero(off.any(axis=tuple(i for i in range(a.ndim) if i != axis)))
        if 0 < len(wrong) < a.shape[axis]:
            where = listed(wrong[:8]) + (", ..." if len(wrong) > 8 else "")
            found.append(words("wrong only at {where} along axis {axis}", where=where, axis=str(axis)))
            if "ids" in case.constants and axis == 0:
                ids, counts = np.unique(case.constants["ids"], return_counts=True)
                if set(wrong) <= set(ids[counts > 1]):
                    found.append(words("these are repeated ids"))
    return words("unknown: {facts}", facts=joined("; ", found))


def wrong_cases(w: WrongTensor) -> list[int]:
    return [i for i, case in enumerate(w.cases) if not agree(w.gradient[i], w.true[i], case)]


def smallest(w: WrongTensor) -> int:
    """The index of the smallest case in which the tensor is wrong."""
    return min(wrong_cases(w), key=lambda i: sum(x.size for x in w.cases[i].inputs.values()))


def next_step(w: WrongTensor, run: Run) -> Words:
    """What to try: a part of the op switched off, then one entry of dy in the smallest case."""
    steps = [*not_linear_in_dy(w, run), *switched_off(w, run), one_entry(w, run)]
    together = list(zip(w.actual, w.expected, w.cases, strict=True))
    right = [name for name in w.expected[0] if all(agree(g[name], t[name], case) for g, t, case in together)]
    if right:
        one = len(right) == 1
        says = words(
            "{right} is right, and so is what {it} shares with it."
            if one
            else "{right} are right, and so is what {it} shares with them."
        )
        steps.append(says.filled(right=joined(" and ", (Words(name, name) for name in right)), it=w.tensor))
    steps += in_the_library(w)
    return words("What next? {steps}", steps=joined(" ", steps))


def not_linear_in_dy(w: WrongTensor, run: Run) -> Iterator[Words]:
    """Every gradient is linear in dy, and this one may not be."""
    case = w.cases[smallest(w)]
    gradient = w.gradient[smallest(w)]
    if np.ndim(case.dy) == 0 and case.dy == 1:  # the gradient may not take it
        return
    try:
        zero = run(case._replace(dy=0 * case.dy))[w.tensor]
        double = run(case._replace(dy=2 * case.dy))[w.tensor]
    except ValueError:
        return
    if zero.shape != gradient.shape or double.shape != gradient.shape:
        return
    if np.linalg.norm(zero) > SAME * np.linalg.norm(gradient):
        yield words(
            "Set dy = 0: the loss does not depend on y then, so that {it} must be 0, and it is not.", it=w.tensor
        )
    elif np.linalg.norm(double - 2 * gradient) > SAME * np.linalg.norm(double):
        yield words(
            "Double dy: every gradient is linear in dy, so that {it} must double, and it does not.", it=w.tensor
        )


def switched_off(w: WrongTensor, run: Run) -> Iterator[Words]:
    """The part of the op without which the tensor is right, if it can be switched off (Problem.simpler)."""
    case = w.cases[smallest(w)]
    for name, changes in w.problem.simpler.items():
        simpler = with_changes(case, changes)
        try:
            gradient, true = run(simpler)[w.tensor], apply(w.problem.backward, simpler)[w.tensor]
        except ValueError:
            continue
        if agree(gradient, true, simpler):
            yield words("{it} is right {so}: the mistake lies in what that switches off.", it=w.tensor, so=words(name))
            return


def one_entry(w: WrongTensor, run: Run) -> Words:
    """One entry to work out by hand, its value and the true one, where dy is 0 except for one 1."""
    chosen = smallest(w)
    case = w.cases[chosen]
    shapes = ", ".join(f"{name} {x.shape}" for name, x in case.inputs.items())
    where = f"diagnosis.cases[{chosen}]"
    slow = w.problem.faults == {}  # the true gradient is then measured
    for at in itertools.islice(np.ndindex(np.shape(case.dy)), 3 if slow else 12):
        dy = np.zeros_like(case.dy)
        dy[at] = 1
        single = case._replace(dy=dy)
        try:
            gradient, true = run(single)[w.tensor], apply(w.problem.backward, single)[w.tensor]
        except ValueError:
            continue
        if gradient.shape == true.shape and not agree(gradient, true, single):
            i = tuple(int(n) for n in np.unravel_index(np.abs(gradient - true).argmax(), true.shape))
            with_dy = (
                words(", with dy = 0 except for a 1 at {place}", place=str(list(at))) if at else words(" with dy = 1")
            )
            return words(
                "Take the smallest case, {where} ({shapes}){with_dy}: {entry} must be {true}, and is {yours}; work "
                "that entry out by hand.",
                where=where,
                shapes=shapes,
                with_dy=with_dy,
                entry=f"{w.tensor}{list(i)}" if i else w.tensor,
                true=f"{true[i]:.4g}",
                yours=f"{gradient[i]:.4g}",
            )
    return words(
        "In the smallest case, {where} ({shapes}), {it} is right if only one entry of dy is not 0: look at how the "
        "contributions of several entries are put together.",
        where=where,
        shapes=shapes,
        it=w.tensor,
    )


def in_the_library(w: WrongTensor) -> list[Words]:
    """A hint to the problems of the library that take the same arguments as the function f."""
    if w.problem.faults:
        return []
    names = set(w.cases[0].inputs) | set(w.cases[0].constants)
    firsts = {name: p.cases(n=1)[0] for name, p in problems().items()}
    alike = [
        name
        for name, case in firsts.items()
        if set(case.inputs) == set(w.cases[0].inputs) and names <= {*case.inputs, *case.constants, "s"}
    ]
    calls = ", ".join(f'diagnose(grad, "{name}")' for name in alike)
    return [words("If this is your function, {calls} names the usual mistakes in it.", calls=calls)] if alike else []
