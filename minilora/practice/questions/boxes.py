"""Spaced repetition in three Leitner boxes: a question that was known comes again in three days, then in ten; one that
was not, tomorrow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta

from .catalogue import Question

DAYS = (1, 3, 10)  # of each box


@dataclass
class Card:
    """Where a question is: in which box, and when it is asked again."""

    box: int
    due: str  # as 2026-11-30


def graded(card: Card | None, known: bool, today: date) -> Card:
    """The card after an answer: a box further if it was known, else in the first."""
    box = min(card.box + 1 if card else 1, len(DAYS) - 1) if known else 0
    return Card(box, (today + timedelta(days=DAYS[box])).isoformat())


def order(questions: Sequence[Question], cards: Mapping[str, Card], today: date) -> list[Question]:
    """What to ask now: first what is due, longest ago first, then what was never asked."""
    due = [each for each in questions if each.key in cards and cards[each.key].due <= today.isoformat()]
    new = [each for each in questions if each.key not in cards]
    return sorted(due, key=lambda each: cards[each.key].due) + new
