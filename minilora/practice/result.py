"""What a check of one exercise found out: text, JSON, or a table in a notebook."""

from __future__ import annotations

import html
import re
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ..verify.explanations.finding import Finding
from ..verify.language import Words, words
from .drawing import drawn, painted
from .parts import Checked, Picture

STATES = ("passed", "wrong", "not started", "broken")


class Line(NamedTuple):
    """What is said about some tensors of one function."""

    part: str
    kind: str
    says: str
    asks: str

    @property
    def right(self) -> bool:
        return self.kind == "right"

    @property
    def mark(self) -> str:
        """✓, ✗, or · for a broken law, which adds to the ✗ of the same tensor."""
        return {"right": "✓", "law": "·"}.get(self.kind, "✗")


@dataclass(repr=False)
class Result:
    """State: passed, wrong, not started (nothing is written yet), or broken (the file itself does not run).

    Print it, or take text("zh"); in a notebook it shows itself.
    """

    number: str
    name: str
    title: Words
    state: str
    parts: dict[str, Checked]  # by the name of the function; "" for the whole file
    asked: int  # how many results the exercise asks for
    printed: str = ""  # what the learner's file printed
    seconds: float = 0.0
    language: str = "en"
    seed: int = 0  # of the constants

    @property
    def passed(self) -> bool:
        return self.state == "passed"

    @property
    def findings(self) -> list[Finding]:
        return [finding for checked in self.parts.values() for finding in checked.findings]

    @property
    def right(self) -> int:
        """How many results are right."""
        return sum(self.verdicts().values())

    @property
    def points(self) -> int:
        """One for each right result, but one less than all unless the exercise is passed: with a broken rule every
        result can be right."""
        return self.right if self.passed else max(min(self.right, self.asked - 1), 0)

    def verdicts(self) -> dict[tuple[str, str], bool]:
        """Whether each result of each function is right."""
        found: dict[tuple[str, str], bool] = {}
        for part, checked in self.parts.items():
            for finding in checked.findings:
                key = part, finding.tensor
                found[key] = finding.kind == "right" and found.get(key, True)
        return found

    @property
    def mistakes(self) -> list[str]:
        """The names of the mistakes that were found."""
        return list(dict.fromkeys(finding.name for finding in self.findings if finding.name))

    def lines(self, language: str = "") -> list[Line]:
        """The findings, a Line each; the same finding about several results of a function is one Line."""
        language = language or self.language
        comma, colon = words(", ").in_language(language), words(": ").in_language(language)
        found, plain = [], words("{it} is right")
        for part, checked in self.parts.items():
            said: dict[tuple[str, str, str], list[str]] = {}
            for f in sorted(checked.findings, key=lambda f: f.kind == "law"):  # a law says less than the rest
                says = "{it}" if f.says == plain.filled(it=f.tensor) else f.says.in_language(language)
                says = re.sub(rf"(?<!\w){re.escape(f.tensor)}(?!\w)", "{it}", says) if f.tensor else says
                asks = f.asks.in_language(language) if f.asks else ""
                said.setdefault((f.kind, says, asks), []).append(f.tensor)
            for (kind, says, asks), names in said.items():
                it = comma.join(dict.fromkeys(names))
                if len(set(names)) > 1 and says.startswith("{it} ") and language == "en":
                    says = f"{it}: each {says.removeprefix('{it} ')}"  # dx, dg: each lacks ...
                about = "" if it in says or "{it}" in says or not it else f"{it}{colon}"
                found.append(Line(part, kind, about + says.replace("{it}", it), asks))
        return found

    def headline(self, language: str = "") -> str:
        language = language or self.language
        counts = {"right": str(self.right), "n": str(self.asked)}
        state = {
            "passed": words("passed"),
            "wrong": words("{right} of {n} right", **counts),
            "not started": words("not started"),
            "broken": words("the file does not run"),
        }[self.state]
        colon = words(": ").in_language(language)
        return f"{self.number} {self.title.in_language(language)}{colon}{state.in_language(language)}"

    def text(self, language: str = "") -> str:
        language = language or self.language
        lines, part = [self.headline(language)], ""
        for line in self.lines(language):
            if len(self.parts) > 1 and line.part != part:
                part = line.part
                lines.append(f"  {part}")
            lines.append(f"  {line.mark} {line.says}")
            lines += [f"      {line.asks}"] if line.asks else []
        for picture in self.pictures:
            lines += ["", *drawn(picture, language)]
        if note := self.note(language):
            lines += ["", note]
        if self.printed:
            lines += ["", words("Your file printed:").in_language(language), self.printed.rstrip()]
        return "\n".join(lines)

    def note(self, language: str) -> str:
        """How to look at the case that the first unknown finding mentions; "" if there is none."""
        for part, checked in self.parts.items():
            for finding in checked.findings:
                if finding.asks and (found := re.search(r"case (\d+)", finding.asks.en)):
                    function = f', "{part}"' if len(self.parts) > 1 else ""
                    seed = f", seed={self.seed}" if self.seed else ""
                    call = f'case("{self.number}", {found[1]}{function}{seed})'
                    says = words("To look at that case: from minilora.practice import case; {call}", call=call)
                    return says.in_language(language)
        return ""

    @property
    def pictures(self) -> list[Picture]:
        return [picture for checked in self.parts.values() for picture in checked.pictures]

    def __str__(self) -> str:
        return self.text()

    __repr__ = __str__

    def as_json(self) -> dict[str, Any]:
        """For other programs: the state, and for each tensor its relative error, what is wrong, and a question."""
        return {
            "exercise": self.number,
            "name": self.name,
            "title": self.title._asdict(),
            "state": self.state,
            "right": self.right,
            "asked": self.asked,
            "mistakes": self.mistakes,
            "parts": {name: part_as_json(checked) for name, checked in self.parts.items()},
            "printed": self.printed,
            "seconds": round(self.seconds, 3),
            "seed": self.seed,
        }

    @classmethod
    def of_json(cls, given: dict[str, Any], language: str = "en") -> Result:
        """What as_json() wrote."""
        parts = {name: part_of_json(part) for name, part in given["parts"].items()}
        title = Words(**given["title"])
        of = given["exercise"], given["name"], title, given["state"], parts, given["asked"]
        return cls(*of, given["printed"], given["seconds"], language, given["seed"])

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{line.mark}</td><td>{html.escape(line.part if len(self.parts) > 1 else '')}</td>"
            f"<td style='text-align:left'>{html.escape(line.says)}"
            + (f"<br><i>{html.escape(line.asks)}</i>" if line.asks else "")
            + "</td></tr>"
            for line in self.lines()
        )
        pictures = "".join(painted(picture, self.language) for picture in self.pictures)
        printed = f"<pre>{html.escape(self.printed)}</pre>" if self.printed else ""
        return f"<b>{html.escape(self.headline())}</b><table>{rows}</table>{pictures}{printed}"


def part_as_json(checked: Checked) -> dict[str, Any]:
    errors = {name: error if np.isfinite(error) else None for name, error in checked.errors.items()}
    return {
        "findings": [
            {
                "tensor": f.tensor,
                "kind": f.kind,
                "mistake": f.name or None,
                "relative_error": errors.get(f.tensor),
                "says": f.says._asdict(),
                "asks": f.asks._asdict() if f.asks else None,
            }
            for f in checked.findings
        ],
        "pictures": [
            {"tensor": p.tensor, "true": p.true.tolist(), "yours": p.yours.tolist()} for p in checked.pictures
        ],
    }


def part_of_json(given: dict[str, Any]) -> Checked:
    def finding(row: dict[str, Any]) -> Finding:
        asks = Words(**row["asks"]) if row["asks"] else None
        return Finding(row["tensor"], row["kind"], Words(**row["says"]), asks, row["mistake"] or "")

    rows = given["findings"]
    errors = {row["tensor"]: row["relative_error"] for row in rows if row["relative_error"] is not None}
    pictures = [Picture(p["tensor"], np.array(p["true"]), np.array(p["yours"])) for p in given["pictures"]]
    return Checked([finding(row) for row in rows], errors, pictures)
