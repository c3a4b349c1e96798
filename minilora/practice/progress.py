"""What a learner has done: one JSON file in the folder of exercises."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..files import write_whole
from .questions.boxes import Card
from .result import Result

FILE = "progress.json"


@dataclass
class Record:
    """What was done in one exercise. Minutes count while it is open in the loop."""

    state: str = "not started"  # not started, wrong, broken, passed; once passed it stays so
    attempts: int = 0  # checks of a file that had changed, up to the first that passed
    minutes: float = 0.0
    hints: int = 0  # how many were shown
    seen: str = ""  # a digest of the file that was checked last
    first: list[int] = field(default_factory=list)  # results right at the first attempt, and how many there were
    mistakes: dict[str, int] = field(default_factory=dict)  # {name: how often it was made}


@dataclass
class Progress:
    """The settings of a learner's folder, and what was done in every exercise and question."""

    path: Path
    language: str = "en"
    seed: int = 0  # gives each student other constants and data
    start: str = ""  # the number of the first exercise
    track: str = "full"  # one of tracks.TRACKS
    records: dict[str, Record] = field(default_factory=dict)
    cards: dict[str, Card] = field(default_factory=dict)  # of the questions that were asked

    @classmethod
    def of(cls, folder: Path) -> Progress:
        """Read the folder's progress.json; new Progress if there is none. Raises ValueError if it cannot be read."""
        path = folder / FILE
        if not path.exists():
            return cls(path)
        try:
            given: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            records = {number: Record(**record) for number, record in given.pop("exercises").items()}
            cards = {key: Card(**card) for key, card in given.pop("questions", {}).items()}
            return cls(path, records=records, cards=cards, **given)
        except (ValueError, TypeError, KeyError, AttributeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} cannot be read ({error}): mend it, or move it away to begin anew") from None

    def save(self) -> None:
        """Write the file whole, or leave the old one."""
        write_whole(self.path, self.content())

    def content(self) -> bytes:
        shown = {
            **{"language": self.language, "seed": self.seed, "start": self.start, "track": self.track},
            "exercises": {number: asdict(record) for number, record in sorted(self.records.items())},
            "questions": {key: asdict(card) for key, card in sorted(self.cards.items())},
        }
        return (json.dumps(shown, indent=1, ensure_ascii=False) + "\n").encode()

    def refresh(self) -> None:
        """Read again what another process may have written."""
        if self.path.exists():
            written = Progress.of(self.path.parent)
            self.records, self.cards = written.records, written.cards

    def spend(self, number: str, minutes: float) -> None:
        """Add these minutes to an exercise, unless it is passed."""
        if not self.passed(number):
            record = self.record(number)
            record.minutes = round(record.minutes + minutes, 2)

    def record(self, number: str) -> Record:
        return self.records.setdefault(number, Record())

    def passed(self, number: str) -> bool:
        return number in self.records and self.records[number].state == "passed"

    def failed_before(self, number: str) -> bool:
        """Whether a wrong attempt was made, after which common mistakes may be shown."""
        return self.passed(number) or bool(self.record(number).attempts)

    def add(self, result: Result, content: str) -> None:
        """Record a check of a file. It counts only until the exercise is passed, and if the content is new."""
        record, digest = self.record(result.number), hashlib.sha256(content.encode()).hexdigest()[:16]
        if record.state == "passed" or record.seen == digest:
            return
        record.seen = digest
        record.state = result.state
        if result.state in ("wrong", "passed"):
            record.attempts += 1
            record.first = record.first or [result.right, result.asked]
            record.mistakes = dict(Counter(record.mistakes) + Counter(result.mistakes))
