"""What a check of one exercise found out: text, JSON, or a table in a notebook."""

from __future__ import annotations

import html
import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..verify.explanations.finding import Finding
from ..verify.language import Words, words
from .parts import Picture

SHADES = " .:-=+*#%@"


@dataclass(repr=False)
class Result:
    """State: passed, wrong, not started (nothing is written yet), or broken (the file itself does not run).

    Print it, or take text("zh"); in a notebook it shows itself.
    """

    number: str
    name: str
    title: Words
    state: str
    findings: list[Finding] = field(default_factory=list)
    errors: dict[str, float] = field(default_factory=dict)
    pictures: list[Picture] = field(default_factory=list)
    printed: str = ""  # what the learner's file printed
    seconds: float = 0.0
    language: str = "en"

    @property
    def passed(self) -> bool:
        return self.state == "passed"

    @property
    def tensors(self) -> int:
        """How many results were asked for, as far as they were looked at."""
        return len({finding.tensor for finding in self.findings if finding.kind != "rule"})

    @property
    def right(self) -> int:
        wrong = {finding.tensor for finding in self.findings if finding.kind != "right"}
        return len({finding.tensor for finding in self.findings} - wrong)

    @property
    def mistakes(self) -> list[str]:
        """The names of the mistakes that were found."""
        return list(dict.fromkeys(finding.name for finding in self.findings if finding.name))

    def lines(self, language: str = "") -> list[tuple[bool, str, str]]:
        """(right, what it says, what it asks) of each finding; a mistake in several tensors is said once."""
        language = language or self.language
        said: dict[tuple[bool, str, str], list[str]] = {}
        for f in self.findings:
            says = f.says.in_language(language)
            says = re.sub(rf"(?<!\w){re.escape(f.tensor)}(?!\w)", "{it}", says) if f.tensor else says
            said.setdefault((f.kind == "right", says, f.asks.in_language(language) if f.asks else ""), []).append(
                f.tensor
            )
        comma, colon = words(", ").in_language(language), words(": ").in_language(language)
        found = []
        for (ok, says, asks), names in said.items():
            it = comma.join(dict.fromkeys(names))
            about = "" if "{it}" in says or not it else f"{it}{colon}"
            found.append((ok, about + says.replace("{it}", it), asks))
        return found

    def headline(self, language: str = "") -> str:
        language = language or self.language
        counts = {"right": str(self.right), "n": str(self.tensors)}
        state = {
            "passed": words("passed"),
            "wrong": words("{right} of {n} right", **counts),
            "not started": words("not started"),
            "broken": words("the file does not run"),
        }[self.state]
        return f"{self.number} {self.title.in_language(language)}: {state.in_language(language)}"

    def text(self, language: str = "") -> str:
        lines = [self.headline(language)]
        for ok, says, asks in self.lines(language):
            lines.append(f"  {'✓' if ok else '✗'} {says}")
            lines += [f"      {asks}"] if asks else []
        for picture in self.pictures:
            lines += ["", *drawn(picture, language or self.language)]
        if self.printed:
            lines += ["", words("Your file printed:").in_language(language or self.language), self.printed.rstrip()]
        return "\n".join(lines)

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
            "tensors": self.tensors,
            "mistakes": self.mistakes,
            "findings": [
                {
                    "tensor": f.tensor,
                    "kind": f.kind,
                    "mistake": f.name or None,
                    "relative_error": self.errors[f.tensor] if np.isfinite(self.errors.get(f.tensor, np.inf)) else None,
                    "says": f.says._asdict(),
                    "asks": f.asks._asdict() if f.asks else None,
                }
                for f in self.findings
            ],
            "pictures": [
                {"tensor": p.tensor, "true": p.true.tolist(), "yours": p.yours.tolist()} for p in self.pictures
            ],
            "printed": self.printed,
            "seconds": round(self.seconds, 3),
        }

    @classmethod
    def of_json(cls, given: dict[str, Any], language: str = "en") -> Result:
        """What as_json() wrote."""
        rows = given["findings"]
        return cls(
            given["exercise"],
            given["name"],
            Words(**given["title"]),
            given["state"],
            [
                Finding(
                    row["tensor"],
                    row["kind"],
                    Words(**row["says"]),
                    Words(**row["asks"]) if row["asks"] else None,
                    row["mistake"] or "",
                )
                for row in rows
            ],
            {row["tensor"]: row["relative_error"] for row in rows if row["relative_error"] is not None},
            [Picture(p["tensor"], np.array(p["true"]), np.array(p["yours"])) for p in given["pictures"]],
            given["printed"],
            given["seconds"],
            language,
        )

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{'✓' if ok else '✗'}</td><td style='text-align:left'>{html.escape(says)}"
            + (f"<br><i>{html.escape(asks)}</i>" if asks else "")
            + "</td></tr>"
            for ok, says, asks in self.lines()
        )
        pictures = "".join(f"<pre>{html.escape(chr(10).join(drawn(p, self.language)))}</pre>" for p in self.pictures)
        printed = f"<pre>{html.escape(self.printed)}</pre>" if self.printed else ""
        return f"<b>{html.escape(self.headline())}</b><table>{rows}</table>{pictures}{printed}"


def drawn(picture: Picture, language: str = "en") -> list[str]:
    """The true matrix, yours and the difference side by side, ten shades from 0 to the largest entry."""
    each = [picture.true, picture.yours, picture.yours - picture.true]
    largest = max(float(np.abs(a).max()) for a in each[:2]) or 1.0
    head = [words(name).in_language(language) for name in ("true", "yours", "difference")]
    width = max(2 * each[0].shape[1], 12)
    lines = [f"  {picture.tensor}", "  " + "".join(f"{name:<{width + 2}}" for name in head).rstrip()]
    for row in zip(*each, strict=True):
        cells = ("".join(SHADES[min(int(9.99 * abs(v) / largest), 9)] * 2 for v in values) for values in row)
        lines.append("  " + "".join(f"{cell:<{width + 2}}" for cell in cells).rstrip())
    return lines
