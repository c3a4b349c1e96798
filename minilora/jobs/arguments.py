"""Types of command-line arguments, for argparse: each parses a text, or raises ArgumentTypeError, one line."""

from __future__ import annotations

import json
import math
import re
from argparse import Action, ArgumentError, ArgumentTypeError
from collections.abc import Callable
from typing import Any

from ..quantization import format_names
from ..spelling import choose_from

AS_TRAINED = "as trained"  # --quantize not given: the format in which the adapter was trained


def comma_separated(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def methods(text: str) -> list[str]:
    """Names, and their options: "lora,vera:d_initial=0.5"; a comma within brackets is part of an option."""
    return [word.strip() for word in re.split(r",(?![^\[]*\])", text) if word.strip()]


def targets(text: str) -> str | list[str]:
    return text if text == "all-linear" else comma_separated(text)


def quantized(text: str) -> str | None:
    """A format of quantization/, or None for "none"."""
    if text not in (known := ["none", *format_names()]):
        raise ArgumentTypeError(f"no format is called {text!r}: {choose_from(text, known)}")
    return None if text == "none" else text


def positive_ints(text: str) -> list[int]:
    return [positive_int(word.strip()) for word in text.split(",")]


def positive_int(text: str) -> int:
    if not text.isdecimal() or len(text) > 9 or int(text) == 0:
        raise ArgumentTypeError(f"{text!r} is not a whole number above 0, of 9 digits at most")
    return int(text)


def natural_int(text: str) -> int:
    if not text.isdecimal() or len(text) > 18:
        raise ArgumentTypeError(f"{text!r} is not a whole number from 0 up, of 18 digits at most")
    return int(text)


def positive_float(text: str) -> float:
    return number(text, lambda x: x > 0, "a number above 0")


def natural_float(text: str) -> float:
    return number(text, lambda x: x >= 0, "a number from 0 up")


def steps_or_share(text: str) -> float:
    return number(text, lambda x: x >= 0 and (x < 1 or x.is_integer()), "a number of steps, or a share of them below 1")


def share(text: str) -> float:
    return number(text, lambda x: 0 < x <= 1, "a share above 0 and up to 1")


def any_float(text: str) -> float:
    return number(text, lambda x: True, "a number")


def number(text: str, is_valid: Callable[[float], bool], what: str) -> float:
    try:
        x = float(text)
    except ValueError:
        x = math.nan
    if not (math.isfinite(x) and is_valid(x)):
        raise ArgumentTypeError(f"{text!r} is not {what}")
    return x


def json_or_text(text: str) -> Any:
    """0.5, true, [1, 2] and "a" as JSON has them; also True, and [a,b] without the quotes that a shell takes away;
    anything else is a text."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    if text in ("True", "False"):
        return text == "True"
    if re.fullmatch(r"\[[\w.,\s-]+\]", text):
        return [json_or_text(word) for word in comma_separated(text[1:-1])]
    return text


class Collect(Action):
    """NAME=VALUE, each time that the option is given, as one mapping."""

    def __call__(self, parser: Any, namespace: Any, value: Any, option_string: str | None = None) -> None:
        name, equals, text = value.partition("=")
        if not (name and equals):
            raise ArgumentError(self, f"{value!r} is not NAME=VALUE")
        setattr(namespace, self.dest, {**getattr(namespace, self.dest, {}), name: json_or_text(text)})
