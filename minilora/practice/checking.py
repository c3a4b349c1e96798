"""Check one exercise: a file, a text, or functions in a notebook."""

from __future__ import annotations

import ast
import contextlib
import io
import time
import traceback
import types
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from ..display.tables import visible
from ..process import blas_threads
from ..verify.explanations.finding import Finding
from ..verify.language import Words, words
from .catalogue import exercise
from .exercise import Exercise
from .parts import Checked, Refused, in_words
from .result import Result

FRAMEWORKS = ("torch", "tensorflow", "jax", "autograd", "cupy", "keras", "mxnet", "peft", "transformers")
PRINTED = 12  # lines of what a file prints


class Broken(Exception):
    """The learner's file does not run: why, in both languages."""

    def __init__(self, kind: str, says: Words, asks: Words | None = None):
        super().__init__(says.en)
        self.finding = Finding("", kind, says, asks)

    def result(self, task: Exercise, language: str) -> Result:
        whole = {"": Checked([self.finding])}
        return Result(task.number, task.name, task.said(task.title), "broken", whole, task.asked, language=language)


def check(number: str, *answers: Any, language: str = "en", seed: int = 0) -> Result:
    """Grade the answers to an exercise in a notebook: check("04", lora_backward).

    Several functions may come in any order if they have the exercise's names; otherwise they are taken in its order.
    Those that are not given are not graded. Returns a Result, which a notebook displays; a wrong answer raises nothing.
    Raises ValueError for an unknown number, or more answers than the exercise has functions.
    """
    task = exercise(number)
    names = [part.name for part in task.parts]
    if len(answers) > len(names):
        raise ValueError(
            f"exercise {task.number} has {len(names)} functions, {', '.join(names)}: {len(answers)} were given"
        )
    given = dict(zip(names, answers, strict=False))
    called = {getattr(answer, "__name__", ""): answer for answer in answers}
    if set(called) <= set(names):
        given = called
    if given:
        task = replace(task, parts=[part for part in task.parts if part.name in given])
    return checked(task, lambda: given, language, seed)


def case(number: str, i: int, function: str = "", *, seed: int = 0) -> dict[str, Any]:
    """The arguments of case i of an exercise by name, to look at and to work with by hand: case("04", 0).

    `function` is one of those that the exercise asks for, by default the first that takes arguments. Raises
    ValueError for a case or a function that it does not have.
    """
    task = exercise(number)
    parts = {part.name: part for part in task.parts}
    if function and function not in parts:
        raise ValueError(f"exercise {task.number} has no function {function!r}: choose from {', '.join(parts)}")
    part = parts[function] if function else next((part for part in task.parts if part.arguments), task.parts[0])
    cases = part.cases(seed) + (part.cases(0) if seed else [])
    if not 0 <= i < len(cases):
        raise ValueError(f"{part.name} has no case {i}: they are 0 to {len(cases) - 1}")
    return dict(cases[i])


def check_file(number: str, path: Path, language: str = "en", seed: int = 0) -> Result:
    """Grade a learner's file."""
    task = exercise(number)
    if as_handed_out(path, task):
        return untouched(task, language)
    return checked(task, lambda: namespace_of(path, task), language, seed, as_found(path, task))


def as_found(path: Path, task: Exercise) -> set[str]:
    """Names of the functions and classes to repair that are still as they were handed out. Their mistakes are not
    named, also while others are being repaired: the learner has to find them."""
    try:
        mine = definitions(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError):
        return set()
    stub, solved, lines = definitions(task.stub()), definitions(task.source), task.source.splitlines()
    starts = [*(node.lineno for node in solved.values()), len(lines) + 1]
    found = set()
    for name, (start, end) in zip(solved, pairwise(starts), strict=True):
        to_repair = any(line.lstrip().startswith("#| ") for line in lines[start - 1 : end - 1])
        if to_repair and name in mine and ast.dump(mine[name]) == ast.dump(stub[name]):
            found.add(name)
    return found


def definitions(source: str) -> dict[str, ast.FunctionDef | ast.ClassDef]:
    nodes = ast.parse(source).body
    return {node.name: node for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}


def as_handed_out(path: Path, task: Exercise) -> bool:
    """Whether the file is as it was handed out. Then nothing in it is graded, code to repair included."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False
    return text in (task.stub("en"), task.stub("zh"))


def untouched(task: Exercise, language: str) -> Result:
    parts = {part.name: Checked([Finding(part.name, "not written", part.not_written)]) for part in task.parts}
    return Result(task.number, task.name, task.said(task.title), "not started", parts, task.asked, language=language)


@blas_threads()
def checked(
    task: Exercise,
    load: Callable[[], Mapping[str, Any]],
    language: str,
    seed: int,
    left: Collection[str] = (),
) -> Result:
    result = Result(
        task.number, task.name, task.said(task.title), "wrong", {}, task.asked, language=language, seed=seed
    )
    started, printed = time.perf_counter(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):  # nbgrader marks stderr with 0
        try:
            namespace = load()
            for part in task.parts:
                result.parts[part.name] = (
                    to_find(part.name) if part.name in left else part.check(namespace.get(part.name), seed)
                )
        except Broken as broken:
            result = broken.result(task, language)
    kinds = {finding.kind for finding in result.findings}
    if kinds == {"right"}:
        result.state = "passed"
    elif kinds == {"not written"}:
        result.state = "not started"
    result.seconds = time.perf_counter() - started
    result.printed = shortened(printed.getvalue())
    return result


def to_find(it: str) -> Checked:
    says = words("{it} is as it was handed out", it=it)
    return Checked([Finding(it, "not written", says, words("What is wrong with it?"))])


def shortened(text: str) -> str:
    """At most PRINTED lines, each only once: a check calls a function many times, and each call prints the same."""
    lines = list(dict.fromkeys(text.splitlines()))
    more = [f"... {len(lines) - PRINTED} more lines"] if len(lines) > PRINTED else []
    return visible("\n".join([line if len(line) <= 200 else f"{line[:199]}…" for line in lines[:PRINTED]] + more))


def namespace_of(path: Path, task: Exercise) -> dict[str, Any]:
    """Run the learner's file. Raises Broken where it cannot be read or run."""
    try:
        source = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        anew = words("`minilora ex reset {number}` writes it anew.", number=task.number)
        asks = anew if path.stem == task.name else None
        raise Broken("no file", words("there is no {file}", file=path.name), asks) from None
    except (OSError, UnicodeDecodeError) as error:
        raise Broken("no file", words("{file} cannot be read: {error}", file=path.name, error=str(error))) from None
    if not source.strip():
        raise Broken("empty", words("{file} is empty", file=path.name))
    try:
        tree = ast.parse(source, str(path))
        refuse_imports(tree, task)
        code = compile(tree, str(path), "exec")
    except SyntaxError as error:
        says = words("Python cannot read line {line}: {error}", line=str(error.lineno), error=error.msg)
        text = (error.text or "").strip()
        raise Broken("syntax", says, Words(text, text) if text else None) from None
    except ValueError as error:  # a null character
        raise Broken("syntax", words("{file} cannot be read: {error}", file=path.name, error=str(error))) from None
    module = types.ModuleType(path.stem)
    module.__file__ = str(path)
    try:
        exec(code, module.__dict__)
    except Refused as refused:
        raise Broken(refused.kind, refused.says) from None
    except NotImplementedError:
        raise Broken("raises", words("the file itself raises NotImplementedError, outside of a function")) from None
    except (Exception, SystemExit) as error:
        line = next(
            (f.lineno for f in reversed(traceback.extract_tb(error.__traceback__)) if f.filename == str(path)), 0
        )
        says = words("line {line} raises {error}", line=str(line), error=in_words(error))
        raise Broken("raises", says) from error
    return module.__dict__


def refuse_imports(tree: ast.Module, task: Exercise) -> None:
    """Raise Broken where the file imports what would do the exercise for the learner."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
        for name in (name.partition(".")[0] for name in names):
            if name == "minilora" and name not in task.may_import:
                raise Broken(
                    "import", words("line {line} imports minilora, which holds the answer", line=str(node.lineno))
                )
            if name in FRAMEWORKS and name not in task.may_import:
                says = words(
                    "line {line} imports {name}: this exercise is written in NumPy, with every gradient by hand",
                    line=str(node.lineno), name=name,
                )  # fmt: skip
                raise Broken("import", says)
