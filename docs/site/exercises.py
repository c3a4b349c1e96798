"""A page for each exercise and language, and an index of them: what `minilora ex` shows before an attempt."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

from minilora.practice.catalogue import TWIN, exercise, is_twin, numbers, sheet, twins
from minilora.practice.exercise import Exercise, Sheet
from minilora.practice.export import notebook
from minilora.practice.questions import questions
from minilora.practice.screen import HEADS, facts
from minilora.practice.tracks import COURSE, full_path
from minilora.verify.language import Words, words

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = {path.stem: path.read_text(encoding="utf-8") for path in sorted(ROOT.glob("notebooks/[0-9]*.py"))}
CODE_OR_EXERCISE = re.compile(rf"```.*?```|`[^`]+`|(?:{'|'.join(words('exercise'))})\s(\d\d)", re.DOTALL)


def pages() -> dict[str, str]:
    """{exercises/en/ex04_lora_backward.md: text, ...}."""
    found = {}
    tasks = [described(number) for number in (*full_path(), *twins())]
    for language in Words._fields:
        found[f"exercises/{language}/index.md"] = "\n".join(index(tasks, language)) + "\n"
        for task in tasks:
            found[f"exercises/{language}/{task.name}.md"] = "\n".join(page(task, language)) + "\n"
    return found


def described(number: str) -> Exercise:
    """The exercise. A twin is read and not imported, because the site is built without torch: of its parts only the
    names are known."""
    if not is_twin(number):
        return exercise(number)
    task = sheet(number)
    body = ast.parse(task.path.read_text(encoding="utf-8")).body
    [call] = [node.value for node in body if ast.unparse(node).startswith("EXERCISE = ")]
    said = {each.arg: ast.literal_eval(each.value) for each in call.keywords if each.arg not in ("parts", "viva")}
    asked = [node for node in ast.parse(task.source).body if "### BEGIN" in ast.get_source_segment(task.source, node)]
    parts = [SimpleNamespace(name=node.name) for node in asked]
    return Exercise(number=task.number, path=task.path, parts=parts, viva=(), **said)


def index(tasks: list[Exercise], language: str) -> Iterator[str]:
    """All exercises, in order, and how to begin."""

    def said(sentence: str) -> str:
        return words(sentence).in_language(language)

    yield f"# {said('All exercises')}\n"
    yield said("In the order of `minilora ex`: each after what it needs. It checks your file and names your mistake.")
    yield f"\n```sh\npip install '.[exercises]'\nminilora ex init mine --lang {language}\nminilora ex --dir mine\n```"
    head = f"| {said(HEADS[0])} | {' · '.join(map(said, HEADS[1:4]))} | {said('Notebook')} |\n|---|---|---|"
    yield f"\n{head}"
    for task in tasks:
        if task.number == twins()[0]:
            yield f"\n## {said('In PyTorch')}\n\n{head}"
        taught = ", ".join(f"[{name[:2]}](../../course/{name}.ipynb)" for name in notebooks(task.number))
        yield f"| {titled(task, language)} | {facts(task, language)} | {taught} |"
    names = "\n".join(task.name for task in tasks)
    yield f"\n```{{toctree}}\n:hidden:\n\n{names}\n```"


def page(task: Exercise, language: str) -> Iterator[str]:
    """The statement, the file as it is handed out, how it is checked, two hints, and what belongs to it."""

    def said(sentence: str, **values: str) -> str:
        return words(sentence, **values).in_language(language)

    title, _, statement = notebook.statement(task, language).partition("\n\n")
    yield f"{title}\n\n{facts(task, language)}\n\n{linked(statement)}"
    yield f"\n## {said('What you are given')}\n"
    file = f"exercises/{task.name}.py"
    yield said("`minilora ex init` writes `{file}`, which begins with the text above.", file=file)
    yield f"\n```python\n{notebook.code(task.stub(language))}\n```"
    yield f"\n## {said('Check it')}\n\n```sh\nminilora ex check {task.number}\n```\n"
    yield said("In a notebook:")
    call = notebook.check(task, notebook.Setting(language))
    yield f"\n```python\nfrom minilora.practice import check\n\n{call}\n```"
    yield f"\n## {said('Hints')}\n"
    for n, hint in enumerate(task.hints, 1):
        yield f"<details><summary>{said('Hint {n} of {all}', n=str(n), all=str(len(task.hints)))}</summary>\n"
        yield f"{linked(notebook.escaped(task.said(hint).in_language(language)))}\n\n</details>\n"
    yield f"## {said('See also')}\n"
    for head, links in related(task, language).items():
        if links:
            yield f"- {said(head)}"
            yield from (f"  - {link}" for link in links)


def related(task: Exercise, language: str) -> dict[str, list[str]]:
    """{what they are: links}."""
    twin = [task.number + TWIN] if task.number + TWIN in numbers() else []
    answered = [each for each in questions().values() if each.key in task.asks or each.exercise == task.number]
    return {
        "Do before": [titled(sheet(number), language) for number in task.needs],
        "In PyTorch": [titled(sheet(number), language) for number in twin],
        "Notebook": [f"{name[:2]} [](../../course/{name}.ipynb)" for name in notebooks(task.number)],
        "Interview questions": [
            f"[{each.key}](../../questions/{language}/{each.topic.lower()}.md#{each.key.lower()}) "
            f"{each.question.in_language(language)}"
            for each in answered
        ],
        "Derivation, for when it is passed": [
            f"[`ops/{name}.py`](../../reference/minilora.ops.{name}.md)" for name in [task.derivation] if name
        ],
    }


def titled(task: Sheet, language: str) -> str:
    """A link to an exercise."""
    return f"[{task.number} {task.heading(language)}]({task.name}.md)"


def notebooks(number: str) -> list[str]:
    """The notebooks that check an exercise, or else those of its day in the course."""
    number = number.removesuffix(TWIN)
    days = [day for day in COURSE if number in (*day.in_class, *day.homework)]
    found = [name for name, text in NOTEBOOKS.items() if f'check("{number}"' in text]
    return found or [name for name in NOTEBOOKS for day in days if name[:2] in day.notebooks]


def linked(text: str) -> str:
    """Markdown in which each mention of an exercise, as "exercise 03", is a link to its page."""

    def link(found: re.Match[str]) -> str:
        return f"[{found[0]}]({sheet(found[1]).name}.md)" if found[1] else found[0]

    return CODE_OR_EXERCISE.sub(link, text)
