"""The questions as a file that Anki imports: question, answer, tags."""

from __future__ import annotations

import html
from collections.abc import Iterable

from ...verify.language import words
from .catalogue import Question


def deck(questions: Iterable[Question], language: str) -> bytes:
    """Text with tabs; its first lines tell Anki how to read it."""
    lines = ["#separator:tab", "#html:true", "#guid column:1", "#tags column:4"]
    for each in questions:
        wrong = words("Usually wrong: {wrong}", wrong=each.wrong)
        sides = [each.question, each.answer, wrong]
        front, back, warning = (html.escape(side.in_language(language)).replace("\n", "<br>") for side in sides)
        tags = f"minilora::{each.topic} level::{each.level}" + (" often-wrong" if each.often_wrong else "")
        lines.append("\t".join((f"minilora-{each.key}-{language}", front, f"{back}<br><br><i>{warning}</i>", tags)))
    return ("\n".join(lines) + "\n").encode()
