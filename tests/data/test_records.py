"""Rows of labelled files, their splits, batches of similar length, and the scores of a confusion matrix."""

import csv
import json
import math
from itertools import pairwise

import examples
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minilora.data import Batch, in_order, shuffled
from minilora.data.labels import label_ids, label_names
from minilora.data.records import columns_of, read_records
from minilora.data.splits import stratified_folds, stratified_split
from minilora.training.metrics import confusion_matrix, paired_test, scores

WORDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1).filter(str.strip)
LABELS = st.lists(st.integers(0, 3), min_size=2, max_size=60).map(np.array)


def write(path, rows, columns=("text", "label")):
    if path.suffix == ".jsonl":
        lines = [json.dumps(dict(zip(columns, row, strict=True))) for row in rows]
        path.write_text("\n".join(lines), encoding="utf-8")
        return path
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writerows([columns, *rows])
    return path


# ---- reading ----


@pytest.mark.parametrize("name", ["rows.csv", "rows.tsv", "rows.jsonl", "ROWS.CSV"])
@given(rows=st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=8))
@settings(max_examples=examples.count(40))
def test_what_was_written_is_read_again_whatever_letters_it_has(name, rows, tmp_path_factory):
    path = write(tmp_path_factory.mktemp("rows") / name, rows, ("review", "verdict"))
    records = read_records(path, "review", "verdict")
    assert list(records.texts) == [words for words, _ in rows]
    assert list(records.labels) == [label.strip() for _, label in rows]


@pytest.mark.parametrize("name", ["folder", "folder.csv", "folder.jsonl"])
def test_a_folder_instead_of_a_file_is_refused_with_the_files_in_it(name, tmp_path):
    (tmp_path / name).mkdir()
    (tmp_path / name / "train.csv").touch()
    with pytest.raises(OSError, match=rf"{name}, and a file is meant: it holds train\.csv"):
        read_records(tmp_path / name)


def test_labels_of_json_may_be_numbers_and_nan_is_an_empty_one(tmp_path):
    path = write(tmp_path / "rows.jsonl", [("good", 1), ("bad", 0.5), ("fair", True)])
    assert read_records(path).labels == ["1", "0.5", "True"]
    with pytest.raises(ValueError, match="'label' is empty in 1 row, on line 1"):
        read_records(write(tmp_path / "rows.jsonl", [("good", math.nan)]))


@pytest.mark.parametrize(("name", "mark"), [("a.csv", ";"), ("a.csv", "\t"), ("a.csv", "|"), ("a.tsv", ",")])
def test_a_table_with_another_separator_is_read_if_that_gives_the_columns(name, mark, tmp_path):
    path = tmp_path / name
    path.write_text(f'stars{mark}text{mark}label\n5{mark}"so, so{mark} good"{mark}yes\n1{mark}bad\n')
    with pytest.raises(ValueError, match="line 3: 2 fields, and the header has 3"):
        read_records(path)
    path.write_text(path.read_text().replace("1" + mark, f"1{mark}not{mark}"))
    assert read_records(path) == ([f"so, so{mark} good", "not"], ["yes", "bad"])


def test_empty_rows_are_left_out_when_asked_for_and_counted(tmp_path):
    path = write(tmp_path / "rows.csv", [("good", "yes"), ("", "no"), ("bad", " "), ("", "")])
    with pytest.warns(UserWarning, match="rows with an empty cell are left out, 3 in all"):
        assert read_records(path, skip_empty=True) == (["good"], ["yes"])
    with pytest.raises(ValueError, match="holds no rows but empty ones"):
        read_records(write(tmp_path / "rows.csv", [("", "")]), skip_empty=True)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32", "cp1252", "utf-16-be", "gb18030"])
@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl"])
def test_a_byte_order_mark_or_encoding_says_how_a_file_is_read(name, encoding, tmp_path):
    path = write(tmp_path / name, [("né\r\n, à", "oui"), ("bad", "non")])
    path.write_bytes(path.read_bytes().decode().encode(encoding))
    marked = encoding in ("utf-8-sig", "utf-16", "utf-32")
    assert read_records(path, encoding="utf-8" if marked else encoding) == (["né\r\n, à", "bad"], ["oui", "non"])


def test_texts_can_be_read_without_labels(tmp_path):
    path = write(tmp_path / "rows.csv", [("good", ""), ("bad", "")])
    assert read_records(path, label=None) == (["good", "bad"], [])


BAD = [
    ("rows.csv", b"", "holds no rows"),
    ("rows.csv", b"text,label\n", "holds no rows"),
    ("rows.csv", b"text,stars\ngood,5\n", "rows.csv has no 'label': there are 'text', 'stars'$"),
    ("rows.csv", b"Text;Label\ngood;yes\n", "has no 'text': there are 'Text;Label'"),
    ("rows.csv", b"text,labels\ngood,yes\n", "did you mean 'labels'?"),
    (
        "rows.csv",
        b"text,label\ngood,yes\nbad,\n",
        "'label' is empty in 1 row, on line 3: fill them in, or .*--skip-empty",
    ),
    ("rows.csv", b"text,label\n  ,yes\n", "'text' is empty in 1 row, on line 2"),
    (
        "rows.csv",
        b"text,label\n" + b",yes\nx,\n" * 7,
        "'text' is empty in 7 rows, on lines 2, 4, 6, 8, 10, ...; 'label' is",
    ),
    ("rows.csv", b"c" * 999 + b",b\n1,2\n", "has no 'text': there are 'c{199}\\.\\.\\.$"),
    ("rows.csv", b"text,label\ngood,yes,very\n", "line 2: 3 fields, and the header has 2"),
    ("rows.csv", b'text,label\n"good,yes\n', "line 2 is malformed"),
    ("rows.csv", b"text,text\na,b\n", "two columns called 'text'"),
    (
        "rows.csv",
        "text,label\ngood,yes\ncaf\xe9,no\n".encode("latin-1"),
        "line 3 is not UTF-8: say its encoding, as --encoding cp1252, gb18030, shift-jis, or save it as UTF-8",
    ),
    (
        "rows.csv",
        "text,label\ngood,yes\n".encode("utf-16-le"),
        "not UTF-8 text: it holds bytes of 0, as UTF-16 does .--encoding utf-16-le",
    ),
    ("rows.jsonl", b'{"text": "a", "label": "b"}\n{"text"', "line 2 is not JSON"),
    ("rows.jsonl", b'["a", "b"]', "line 1 is not a JSON object, .*: each line is one"),
    (
        "rows.jsonl",
        b'[\n{"text": "a"}\n]',
        "line 1 is not JSON: Expecting value \\(column 3\\); each line is one object",
    ),
    ("rows.jsonl", b'{"text": ["a"], "label": "b"}', r"line 1: 'text' is \['a'\], which is not a text"),
    ("rows.jsonl", b'{"text": "\\ud83d", "label": "b"}', "line 1: 'text' holds a lone surrogate"),
    ("rows.jsonl", b'{"text": "a", "label": null}', "'label' is empty in 1 row, on line 1"),
    (
        "rows.jsonl",
        b'{"Text": "a", "label": "b"}',
        "line 1 has no 'text': did you mean 'Text'\\? there are 'Text', 'label'",
    ),
    ("rows.xlsx", b"PK", "the name of a data file ends in .csv, .tsv"),
    ("rotten_tomatos", b"", "did you mean 'rotten_tomatoes'"),
]


@pytest.mark.parametrize(("name", "content", "says"), BAD)
def test_a_file_that_cannot_be_used_is_refused_with_the_line_and_what_to_do(name, content, says, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=says):
        read_records(tmp_path / name)


@pytest.mark.parametrize(
    "content",
    [
        "text;label;;\ngood;yes;;\nbad;no;;\n",  # as Excel saves a sheet with columns that were cleared
        ",text,label,note,note\n0,good,yes,,\n1,bad,no,,\n",
        "\ntext,label\ngood,yes\n\nbad,no\n  \n,,,\n\n",
    ],
)
def test_columns_that_are_not_asked_for_and_empty_lines_hinder_no_one(content, tmp_path):
    (tmp_path / "rows.csv").write_text(content)
    assert read_records(tmp_path / "rows.csv") == (["good", "bad"], ["yes", "no"])


@pytest.mark.parametrize("labels", [["1", "1.0"], ["pos", "Pos"], ["True", "true"], ["01", "1"]])
def test_labels_that_may_be_one_are_warned_of(labels):
    with pytest.warns(UserWarning, match="are learned as two labels"):
        assert label_names([*labels, "other"])


def test_a_classifier_needs_two_labels_and_no_label_that_training_never_saw():
    with pytest.raises(ValueError, match="the only label is 'good'"):
        label_names(["good", "good"])
    names = label_names(["bad", "good", "bad"])
    assert label_ids(["good", "bad"], names, "test.csv").tolist() == [1, 0]
    with pytest.raises(ValueError, match=r"test\.csv has the label 'fair', which training never saw: bad, good"):
        label_ids(["good", "fair"], names, "test.csv")
    with pytest.raises(ValueError, match=r"never saw: bad, good; did you mean 'good'\?"):
        label_ids(["Good"], names, "test.csv")


@pytest.mark.parametrize(
    "ordered",
    [
        [str(i) for i in range(12)],
        ["-1", "-0.5", "0", "1e1", "10.5", "2e2"],
        ["1", "10", "2", "two"],
        ["1", "10", "2", "nan"],
        ["-inf", "1", "10", "2"],
    ],
)
def test_labels_that_are_all_numbers_are_in_their_order_and_others_in_that_of_their_letters(ordered, rng):
    assert label_names(rng.permutation(ordered).tolist() * 2) == ordered


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("text,label\ngood,yes\nbad,no\n", ["text", "label"]),
        ('Review;Stars\n"so; so";3\nbad;1\n', ["Review", "Stars"]),
        ('{"prompt": "a", "answer": "b"}\n', ["prompt", "answer"]),
        ("Once upon a time, there was\na king, who had\nthree sons, and\n", []),
        ("one line, alone\n", []),
        ("", []),
        ("{\n", []),
    ],
)
def test_a_table_is_known_by_its_columns_and_prose_has_none(text, columns):
    assert columns_of(text) == columns


# ---- splits ----


@given(LABELS, st.floats(0.01, 0.99), st.integers(0, 9))
def test_a_split_keeps_every_row_once_and_every_label_on_both_sides(labels, share, seed):
    counts = np.bincount(labels)
    if 1 in counts:
        with pytest.raises(ValueError, match="one row alone"):
            stratified_split(labels, share, seed)
        return
    train, held_out = stratified_split(labels, share, seed)
    assert sorted([*train, *held_out]) == list(range(len(labels)))
    assert set(labels[train]) == set(labels[held_out]) == set(labels)
    assert all(abs(n - share * counts[label]) <= 1 for label, n in enumerate(np.bincount(labels[held_out])) if n)


@given(LABELS, st.integers(2, 5), st.integers(0, 9))
def test_folds_test_every_row_once_and_differ_by_at_most_one_row_of_each_label(labels, folds, seed):
    if any(0 < n < folds for n in np.bincount(labels)):
        with pytest.raises(ValueError, match="fewer than the"):
            stratified_folds(labels, folds, seed)
        return
    split = stratified_folds(labels, folds, seed)
    assert sorted(np.concatenate([test for _, test in split])) == list(range(len(labels)))
    assert all(not set(train) & set(test) and len(train) + len(test) == len(labels) for train, test in split)
    for label in set(labels):
        sizes = [int((labels[test] == label).sum()) for _, test in split]
        assert max(sizes) - min(sizes) <= 1
    assert np.ptp([len(test) for _, test in split]) <= 1


# ---- batches of similar length ----


def some_texts(lengths):
    T = max(lengths)
    padding = np.arange(T) < np.array(lengths)[:, None]
    return Batch(np.where(padding, np.arange(len(lengths))[:, None] + 1, 0), np.arange(len(lengths)), padding)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=50), st.integers(1, 8), st.integers(0, 9))
def test_each_text_is_seen_once_before_any_is_seen_again_and_whole(lengths, batch, seed):
    texts, per_epoch = some_texts(lengths), -(-len(lengths) // batch)
    at = shuffled(texts, batch, seed)
    for epoch in range(2):
        found = [at(epoch * per_epoch + i) for i in range(per_epoch)]
        assert sorted(np.concatenate([b.targets for b in found])) == list(range(len(lengths)))
        for b in found:
            assert b.padding.sum(axis=1).tolist() == [lengths[i] for i in b.targets]
            assert b.ids.shape[1] == max(lengths[i] for i in b.targets)
            assert (b.ids[:, 0] == b.targets + 1).all()


@given(st.integers(0, 30), st.integers(0, 9))
def test_a_batch_depends_on_seed_and_step_alone(step, seed):
    texts = some_texts([1 + i % 7 for i in range(23)])
    first, again = shuffled(texts, 4, seed), shuffled(texts, 4, seed)
    for i in range(step):
        first(i)
    assert all(np.array_equal(a, b) for a, b in zip(first(step)[:3], again(step)[:3], strict=True))


def test_batches_hold_texts_of_similar_length_and_little_padding():
    lengths = np.random.default_rng(0).integers(1, 100, 512).tolist()
    texts = some_texts(lengths)
    at = shuffled(texts, 8, 0)
    cells = sum(at(i).ids.size for i in range(64))
    assert sum(lengths) / cells > 0.85  # in chance order it is 0.56
    groups = in_order(texts, 8)
    assert sorted(np.concatenate(groups)) == list(range(512))
    assert all(max(np.array(lengths)[a]) <= min(np.array(lengths)[b]) for a, b in pairwise(groups))


# ---- scores ----


@pytest.mark.oracle
@settings(deadline=None)  # the first imports scikit-learn
@given(st.integers(2, 5), st.data())
def test_scores_are_those_of_scikit_learn(n, data):
    metrics = pytest.importorskip("sklearn.metrics")
    pairs = data.draw(st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)), min_size=1, max_size=40))
    labels, predicted = np.array(pairs).T
    matrix = confusion_matrix(labels, predicted, n)
    assert (matrix == metrics.confusion_matrix(labels, predicted, labels=range(n))).all()
    found = scores(matrix)
    theirs = metrics.precision_recall_fscore_support(labels, predicted, labels=range(n), zero_division=0)
    for name, values in zip(("precision", "recall", "f1", "support"), theirs, strict=True):
        assert found[name] == pytest.approx(values.tolist())
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(labels, predicted))
    assert found["macro_f1"] == pytest.approx(theirs[2].mean())


@pytest.mark.slow
@given(st.lists(st.floats(-1, 1).map(lambda x: round(x, 3)), min_size=2, max_size=20))
def test_without_overlap_the_test_is_the_plain_t_test(differences):
    stats = pytest.importorskip("scipy.stats")
    found = paired_test(differences, train=1, test=0)
    if np.ptp(differences) == 0:
        assert found["t"] == (0 if differences[0] == 0 else math.copysign(math.inf, differences[0]))
        return
    plain = stats.ttest_1samp(differences, 0)
    interval = plain.confidence_interval(0.95)
    assert (found["t"], found["p"]) == pytest.approx((plain.statistic, plain.pvalue), rel=1e-6, abs=1e-9)
    assert (found["low"], found["high"]) == pytest.approx((interval.low, interval.high), rel=1e-6, abs=1e-9)


@pytest.mark.slow
def test_with_overlap_the_corrected_test_keeps_near_its_level_and_the_plain_one_does_not():
    """y = x₁ + x₂ + noise; one model knows x₁, the other x₂, so that neither is better. With p < 0.05 one in twenty
    data sets should say otherwise."""
    rng, false = np.random.default_rng(0), {"plain": 0, "corrected": 0}
    for _ in range(300):
        x = rng.standard_normal((2, 60))
        y = x.sum(axis=0) + rng.standard_normal(60)
        differences = []
        for _ in range(15):  # random splits of the same 60 rows
            train, test = np.split(rng.permutation(60), [48])
            slopes = (x[:, train] @ y[train]) / (x[:, train] ** 2).sum(axis=1)
            errors = ((slopes[:, None] * x[:, test] - y[test]) ** 2).mean(axis=1)
            differences.append(errors[0] - errors[1])
        false["plain"] += paired_test(differences, 1, 0)["p"] < 0.05
        false["corrected"] += paired_test(differences, 48, 12)["p"] < 0.05
    assert false["plain"] > 300 * 0.25
    assert false["corrected"] < 300 * 0.12
