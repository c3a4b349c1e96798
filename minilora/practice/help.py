"""What a learner may ask for: the next hint, and the solution once the exercise is passed."""

from __future__ import annotations

import ast
import difflib
from importlib import import_module

from ..verify.language import Words, joined, words
from .exercise import Exercise
from .parts import Part
from .workspace import Workspace


def next_hint(workspace: Workspace, task: Exercise) -> Words:
    """The next in turn: the first hint, the second, and after a wrong attempt the mistakes that people make."""
    progress = workspace.progress
    record = progress.record(task.number)
    hints = [
        words("hint {n} of {all}: {hint}", n=str(n), all=str(len(task.hints)), hint=task.said(hint))
        for n, hint in enumerate(task.hints, 1)
    ]
    if progress.failed_before(task.number):
        hints.append(common_mistakes(task))
    shown = hints[record.hints % len(hints)]
    record.hints += 1
    progress.save()
    return shown


def common_mistakes(task: Exercise) -> Words:
    """All mistakes that the exercise lists; it does not say which of them the learner has made."""
    found = [words("Mistakes that people make here:")]
    for part in task.parts:
        it = any_result(part)
        found += [mistake.says.filled(it=it) for mistake in part.all_mistakes().values()]
    return Words("\n  - ".join(line.en for line in found), "\n  - ".join(line.zh for line in found))


def any_result(part: Part) -> Words:
    """What to call a result of a function: "dx" if that is its only one, else "a result of lora_backward"."""
    one = part.results[0] if len(part.results) == 1 else ""
    return Words(one, one) if one else words("a result of {function}", function=part.name)


def solution(workspace: Workspace, task: Exercise, language: str, spoil: bool = False) -> str:
    """The solution, answers to the questions, the derivation, and the difference of the learner's file; after passing,
    or with `spoil`."""
    if not spoil and not workspace.progress.passed(task.number):
        says = "The solution is shown when the exercise is passed, or by `minilora ex solution {number} --spoil`."
        return words(says, number=task.number).in_language(language)
    solved, mine = body(task.solution(language)), body(workspace.text(task))
    found = [Words(solved, solved)]
    for viva in task.viva:
        found.append(words("{question}\n    {answer}", question=task.said(viva.question), answer=task.said(viva.good)))
    if text := derivation(task):
        found.append(words("The derivation (minilora/ops/{name}.py):\n\n{text}", name=task.derivation, text=text))
    changes = difflib.unified_diff(mine.splitlines(), solved.splitlines(), "yours", "solution", n=1, lineterm="")
    if mine and (listed := "\n".join(changes)):
        found.append(words("From yours to the solution:\n\n{changes}", changes=listed))
    return joined("\n\n", found).in_language(language)


def body(source: str) -> str:
    """A file of the learner without its statement."""
    try:
        first = ast.parse(source).body[0]
    except (SyntaxError, ValueError, IndexError):
        return source.strip()
    is_text = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    return "\n".join(source.splitlines()[first.end_lineno if is_text else 0 :]).strip()


def derivation(task: Exercise) -> str:
    """The docstring of the op that derives the gradient; "" if there is none."""
    return (import_module(f"minilora.ops.{task.derivation}").__doc__ or "").strip() if task.derivation else ""
