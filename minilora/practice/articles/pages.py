"""The articles on trial as a page in each language, for exercises/questions/."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from itertools import groupby

from ...verify.language import Words, words
from . import VERDICTS, headings, said_at, sections, statements
from .worked import PIPELINE, steps

INTRO = words(
    "Five Chinese articles with interview questions on LoRA, from which this project grew. They are numbered 000 to "
    "004 and not quoted: a place, such as 000#7 or 003 §4.4, says where something stands."
)
PIPELINE_INTRO = words(
    "Article 003 trains on film reviews in five steps: pretrain, decompose, fine-tune, optimise, deploy. With LoRA two "
    "of them are not there. Its code, which does not run, and those of 000 to 002 are exercise 06."
)
PARTS = ("title", "abstract", "intro")  # of an article, in a place


def pages() -> dict[str, str]:
    """{en/articles.md: text, ...}."""
    return {f"{language}/articles.md": "\n".join(page(language)) + "\n" for language in Words._fields}


def page(language: str) -> Iterator[str]:
    def said(sentence: str, **values: str) -> str:
        return words(sentence, **values).in_language(language)

    comma = said(", ")
    counts = Counter(each.verdict for each in statements().values())
    yield f"# {said('The articles on trial')}\n"
    yield INTRO.in_language(language)
    yield f"\n| {said('verdict')} | {said('statements')} |\n|---|---:|"
    for verdict in VERDICTS:
        yield f"| {said(verdict)} | {counts[verdict]} |"
    yield f"| {said('all')} | {sum(counts.values())} |"
    yield f"\n## {said('Headings')}\n"
    yield f"| {said('place')} | {said('asks')} | {said('answered by')} | {said('what it says')} |\n|---|---|---|---|"
    for heading in headings().values():
        answers = comma.join(f"[{key}]({key[0].lower()}.md#{key.lower()})" for key in heading.questions)
        answers = heading.opinion.in_language(language) if heading.opinion else answers
        asks = heading.asks.in_language(language)
        asks = said("{asks} (= {place})", asks=asks, place=heading.same_as) if heading.same_as else asks
        tried = comma.join(
            f"[{key}](#{key.lower()})" for key in (statement.key for statement in said_at(heading.place))
        )
        yield f"| {heading.place} | {asks} | {answers} | {tried} |"
    for letter, group in groupby(statements().values(), key=lambda each: each.key[0]):
        yield f"\n## {letter} {sections()[letter].in_language(language)}"
        for each in group:
            yield f'\n### <a id="{each.key.lower()}"></a>{each.key} {each.says.in_language(language)}\n'
            yield f"**{said(each.verdict)}** · {each.right.in_language(language)}\n"
            places = comma.join(re.sub("|".join(PARTS), lambda part: said(part[0]), place) for place in each.places)
            yield places + (f" · {said('decided by {check}', check=f'`{each.check}`')}" if each.check else "")
    yield f"\n## {said('Worked numbers, computed again')}\n"
    yield f"| {said('place')} | {said('step')} | {said('printed')} | {said('computed')} |\n|---|---|---|---|"
    for row in steps():
        yield f"| {row.place} | {row.step.in_language(language)} | {row.printed} | {row.right} |"
    yield f"\n## {said('A pipeline, corrected')}\n"
    yield PIPELINE_INTRO.in_language(language)
    for does, command in PIPELINE:
        yield f"\n- {does.in_language(language)}\n\n  `{command}`"
