"""What diagnose found out, and how it prints."""

from __future__ import annotations

from dataclasses import dataclass, field

from .case import Case
from .explanations.finding import Finding
from .language import Words, words


@dataclass(repr=False)
class Diagnosis:
    """The findings about every tensor, and the cases on which they were made. Print it, or take text("zh")."""

    findings: list[Finding] = field(default_factory=list)
    cases: list[Case] = field(default_factory=list)
    without: tuple[str, ...] = ()  # the constants of the problem that the gradient does not take
    rows: bool = False  # every gradient would be right if batch and tokens were one axis of rows

    @property
    def ok(self) -> bool:
        return all(finding.kind == "right" for finding in self.findings)

    def text(self, language: str = "en") -> str:
        """A line or two for each finding; tensors with the same finding share it. Raises ValueError for a language that
        is neither "en" nor "zh"."""

        def line(sentence: Words) -> str:
            return sentence.in_language(language)

        tensors: dict[str, list[str]] = {}
        for finding in self.findings:
            tensors.setdefault(finding.text(language), []).append(finding.tensor)
        comma, colon = line(words(", ")), line(words(": "))
        lines = [line(words("(compared without {names})", names=comma.join(self.without)))] if self.without else []
        for text, names in tensors.items():
            alone = text.startswith(f"{names[0]} ") and len(names) == 1
            lines.append(text if alone else f"{comma.join(names)}{colon}{text}")
        if self.rows:
            lines.append(line(words("With one axis of rows instead of batch and tokens, every gradient is right.")))
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.text()

    __repr__ = __str__

    def names(self) -> list[str]:
        return [finding.name for finding in self.findings if finding.name]
