"""In which order to do the exercises: the full path, the two-week course, the 90-minute sprint."""

from __future__ import annotations

from typing import NamedTuple

from .catalogue import is_twin, numbers

FULL = [  # by need
    *("03", "01", "02", "04", "05", "09", "10", "06", "07", "08", "11", "12", "13", "14", "15", "16", "17", "21"),
    *("18", "29", "19", "20", "25", "22", "23", "27", "28", "24", "26", "30"),
]


class Day(NamedTuple):
    """A session of the course of about 90 minutes: notebooks, exercises in class, and homework."""

    notebooks: tuple[str, ...]
    in_class: tuple[str, ...]
    homework: tuple[str, ...]


COURSE = (
    Day(("00",), ("01", "02"), ()),
    Day(("01",), ("03",), ("05",)),
    Day(("04",), ("04",), ("09",)),
    Day(("05",), ("20",), ()),
    Day(("07",), ("07",), ("08",)),
    Day(("02",), ("12",), ()),
    Day(("03",), ("11",), ("29",)),
    Day(("06",), ("19",), ("10",)),
    Day(("08", "12"), ("28",), ("06",)),
    Day(("09", "13"), ("22",), ("30",)),
)
WEEK = (COURSE[0], COURSE[2], COURSE[7], COURSE[8])  # LoRA as a week of somebody else's course

TRACKS = ("full", "course")
SPRINT = {"01": 8, "02": 7, "04": 25, "10": 10, "07": 12, "06": 10, "23": 13}  # minutes of each
ONE_IS_ENOUGH = ("06",)  # in the sprint, one right result of these will do


def full_path(start: str = "") -> list[str]:
    """All exercises except the twins, each after those that it needs. `start` comes first if it is one of the first
    three: 01 for a learner who knows backpropagation, else 03."""
    order = [number for number in FULL if number in numbers()]
    order += [number for number in numbers() if number not in order and not is_twin(number)]
    if start in order[:3]:
        order.remove(start)
        order.insert(0, start)
    return order


def course() -> list[str]:
    """The exercises of the two-week course, day by day: in class, then at home."""
    return [number for day in COURSE for number in (*day.in_class, *day.homework) if number in numbers()]


def timetable() -> str:
    """The two-week course in Markdown. A star is a day of the week of LoRA."""
    lines = ["| day | notebooks | in class | at home |", "|---|---|---|---|"]
    for n, day in enumerate(COURSE, 1):
        cells = (", ".join(cell) or "–" for cell in day)
        lines.append(f"| {n}{'*' if day in WEEK else ''} | {' | '.join(cells)} |")
    return "\n".join(lines)
