"""Classify the rows of a file, or the lines of standard input: label, probability and text, separated by tabs.

Each line of input gives a line of output, so that `paste` can join them; an empty one gives nothing between the tabs.
(At a terminal an empty line is ignored.)
"""

import io
import json
import sys
from itertools import islice
from typing import Any

from ...jobs.settings import ENCODING, SKIP_EMPTY
from ..models import backend, held_as, shown
from ..options import ADAPTER, Add, Options, add_base_of_adapter

EXAMPLE = "minilora predict --adapter runs/reviews --data new.csv --text review"
SHARED = ("--device",)
AT_ONCE = 4096  # lines of standard input that are read before the first is answered


def arguments(add: Add) -> None:
    add("--adapter", required=True, metavar="ADAPTER", help=f"{ADAPTER}, that finetune --task classify made, or PEFT")
    add_base_of_adapter(add, otherwise="")
    add("--data", metavar="FILE", help="a .csv, .tsv, .jsonl or .json (default: lines of standard input)")
    add("--text", default="text", metavar="NAME", help="the column of the text (default text)")
    add("--label", metavar="NAME", help="a column of labels, for evaluation")
    add("--encoding", default="utf-8", metavar="NAME", help=ENCODING)
    add("--skip-empty", action="store_true", help=SKIP_EMPTY)
    add("--json", action="store_true", help="print a line of JSON for each text, with all probabilities")


def run(options: Options) -> None:
    from ...data import check_encoding
    from ...data.labels import label_ids
    from ...data.records import read_records
    from ...jobs.classification import print_scores
    from ...jobs.prediction import Classifier
    from ...training.metrics import confusion_matrix, scores

    check_encoding(options.encoding)
    columns = options.text, options.label, options.encoding, options.skip_empty
    rows = read_records(options.data, *columns) if options.data else None
    if rows is None and options.label:
        raise ValueError("--label names a column of --data: give both")
    classify = Classifier(options.adapter, options.base, backend(options), held_as(options))
    if rows is None:
        answer_lines(classify, options)
        return
    labels = label_ids(rows.labels, classify.labels, options.data) if options.label else None
    p = answer(classify, rows.texts, options.json, "classifying")
    if labels is not None:
        matrix = confusion_matrix(labels, p.argmax(axis=1), len(classify.labels))
        report = {"labels": classify.labels, "confusion": matrix.tolist(), **scores(matrix)}
        if options.json:
            print(json.dumps(report))
        else:
            print_scores(report)


def answer_lines(classify: Any, options: Options) -> None:
    """Classify standard input: at a terminal line by line."""
    from ...data import lines_of

    if isinstance(sys.stdin, io.TextIOWrapper):
        encoding = None if options.encoding == "utf-8" else options.encoding
        sys.stdin.reconfigure(encoding=encoding, errors="strict")
    terminal = sys.stdin.isatty()
    lines = (line for line in map(str.strip, lines_of(sys.stdin)) if line or not terminal)
    while texts := list(islice(lines, 1 if terminal else AT_ONCE)):
        answer(classify, texts, options.json)


def answer(classify: Any, texts: list[str], as_json: bool, description: str | None = None) -> Any:
    """Print a line for each text. Returns (N, labels) probabilities of those that are not empty."""
    given = list(filter(None, texts))
    p: Any = classify(given, description) if given else []
    rows = iter(p)
    for line in texts:
        row = next(rows) if line else None
        label = None if row is None else classify.labels[row.argmax()]
        if as_json:
            found = None if row is None else dict(zip(classify.labels, row.tolist(), strict=True))
            print(json.dumps({"text": line, "label": label, "probabilities": found}))
        else:
            cells = label or "", "" if row is None else f"{row.max():.4f}", line
            print(*(shown(" ".join(cell.split())) for cell in cells), sep="\t", flush=True)
    return p
