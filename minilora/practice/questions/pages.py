"""The questions as pages, one a topic and language, for exercises/questions/."""

from __future__ import annotations

from collections.abc import Iterator

from ...verify.language import Words, words
from ..catalogue import sheet
from .catalogue import Question, questions, tables, topics

INTRO = words(
    "For each question: an answer as one would give it in two minutes, the answer that is usually given and is wrong, "
    "and what decides: a function in `minilora/practice/questions/checks/` or a source. `minilora ex ask` asks them, "
    "and computes what decides."
)


def pages() -> dict[str, str]:
    """{en/a.md: text, ...}."""
    found = {}
    for language in Words._fields:
        found[f"{language}/README.md"] = "\n".join(overview(language)) + "\n"
        for letter in tables():
            found[f"{language}/{letter.lower()}.md"] = "\n".join(page(letter, language)) + "\n"
    return found


def overview(language: str) -> Iterator[str]:
    """All questions, each with a link to its answer."""
    yield f"# {words('Questions').in_language(language)}"
    yield ""
    yield INTRO.in_language(language)
    yield ""
    yield words("✗: many sources answer it wrongly; `minilora ex ask --flash` asks these.").in_language(language)
    for letter, title in topics().items():
        yield f"\n## {letter} {title.in_language(language)}\n"
        for each in of_topic(letter):
            mark = " ✗" if each.often_wrong else ""
            yield f"- [{each.key}]({letter.lower()}.md#{each.key.lower()}) {each.question.in_language(language)}{mark}"
    trial = words("The articles on trial").in_language(language)
    yield f"\n## [{trial}](articles.md)"


def page(letter: str, language: str) -> Iterator[str]:
    """A topic."""
    yield f"# {letter} {topics()[letter].in_language(language)}"
    for each in of_topic(letter):
        yield f'\n## <a id="{each.key.lower()}"></a>{each.key} {each.question.in_language(language)}\n'
        yield each.answer.in_language(language)
        yield ""
        yield words("**Usually wrong:** {wrong}", wrong=each.wrong).in_language(language)
        yield ""
        yield " · ".join(part.in_language(language) for part in facts(each))


def facts(question: Question) -> Iterator[Words]:
    """What is asked, what decides, and where to go on."""
    yield words("{kind}, level {level}", kind=words(question.kind), level=str(question.level))
    if question.check:
        yield words("decided by {check}", check=f"`{question.check}`")
    if question.source:
        yield Words(question.source, question.source)
    if question.exercise:
        name = words("exercise {number}", number=question.exercise)
        yield Words(*(f"[{each}](../../{sheet(question.exercise).name}.py)" for each in name))
    if question.notebook:
        yield words("notebook {number}", number=question.notebook)


def of_topic(letter: str) -> list[Question]:
    return [each for each in questions().values() if each.topic == letter]
