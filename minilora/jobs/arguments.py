"""What is typed on a command line, as values. Each raises argparse.ArgumentTypeError, one line, for what is not one."""

from __future__ import annotations

import math
from argparse import ArgumentTypeError


def words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def targets(text: str) -> str | list[str]:
    return text if text == "all-linear" else words(text)


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


def finite(text: str) -> float:
    """NaN for what is no finite number, which then fails every comparison."""
    try:
        number = float(text)
    except ValueError:
        return math.nan
    return number if math.isfinite(number) else math.nan


def positive_float(text: str) -> float:
    if not finite(text) > 0:
        raise ArgumentTypeError(f"{text!r} is not a number above 0")
    return float(text)


def natural_float(text: str) -> float:
    if not finite(text) >= 0:
        raise ArgumentTypeError(f"{text!r} is not a number from 0 up")
    return float(text)


def share(text: str) -> float:
    if positive_float(text) > 1:
        raise ArgumentTypeError(f"{text!r} is not a share above 0 and up to 1")
    return float(text)
