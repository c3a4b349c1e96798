"""The statistics of its data that a job shows before the training, and its warnings."""

import csv
import io
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from minilora.cli import main
from minilora.cli.commands import predict
from minilora.data import Batch
from minilora.jobs import classification, crossvalidation, data, prediction, sweep, text
from minilora.jobs.finetuning import finetune
from minilora.models.config import Config
from minilora.models.families.bert import bert
from minilora.models.pretrained import load_tokenizer
from minilora.models.saving import save_pretrained
from minilora.models.subword_tokenizer import SubwordTokenizer
from minilora.models.tokenizer import ByteTokenizer

tokenizers = pytest.importorskip("tokenizers")
pytestmark = pytest.mark.filterwarnings("ignore:base holds no pooler")

TUNE = ["--epochs", "1", "--rank", "2", "--length", "8", "--out", "out"]
CHINESE = [("好看的电影", "pos"), ("不好看", "neg")]
ENGLISH = [("good a", "pos"), ("bad b", "neg")]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A small BERT that reads English letters, in the working directory."""
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocab = {token: i for i, token in enumerate([*names, *"abcdefghijklmnopqrstuvwxyz"])}
    vocab |= {f"##{letter}": len(vocab) + i for i, letter in enumerate("abcdefghijklmnopqrstuvwxyz")}
    made = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocab, unk_token="[UNK]"))
    made.normalizer = tokenizers.normalizers.BertNormalizer()
    made.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    made.add_special_tokens(names)
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    config = Config(vocab_size=len(vocab), n_layers=1, d_model=8, n_heads=2, d_ff=8, max_length=32)
    named = {f"{name.strip('[]').lower()}_token": name for name in names}
    base = tmp_path / "base"
    save_pretrained(bert(config, np.random.default_rng(0)), base, SubwordTokenizer(made, named))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(name, rows):
    with open(name, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    return ["--base", "base", "--data", name]


def many(rows, n=10):
    return [(f"{text} {'abcdefghijklmnopqrstuvwxyz'[i]}", label) for i in range(n) for text, label in rows]


# ---- the numbers ----


def test_the_numbers_of_rows_are_those_before_they_are_cut_and_without_special_tokens(here):
    tokenizer = load_tokenizer("base")
    found = tokenizer.batch(["abc", "好 a", "", "a b c d e f"], 6)
    numbers = data.numbers_of_rows(Batch(found.ids, np.zeros(4), found.padding), found.lengths, tokenizer, 6)
    assert numbers == {
        "rows": 4, "tokens": 5 + 4 + 2 + 8, "median": 4.5, "longest": 8, "truncated": 0.25, "unknown": 1 / 9,
        "empty": 1,
    }  # fmt: skip
    assert data.numbers_of_tokens(b"bytes", ByteTokenizer()) == {"tokens": 5, "unknown": 0.0}
    assert data.numbers_of_tokens(tokenizer.encode("a 好", special=False), tokenizer) == {"tokens": 2, "unknown": 0.5}


@pytest.mark.parametrize(("share", "warned"), [(0.05, False), (0.051, True)])
def test_above_one_unknown_token_in_twenty_a_person_is_warned(share, warned):
    parts = {"a": {"unknown": 0.0}, "b": {"unknown": share}}
    if warned:
        with pytest.warns(UserWarning, match=r"5\.1% of the tokens are unknown .* take a base whose tokenizer knows"):
            data.warn_of_unreadable(parts)
    else:
        data.warn_of_unreadable(parts)


def test_texts_without_a_token_are_warned_of():
    with pytest.warns(UserWarning, match="of 3 texts the tokenizer makes no token"):
        data.warn_of_unreadable({"a": {"unknown": 0.0, "empty": 2}, "b": {"unknown": 0.0, "empty": 1}})


def test_the_table_has_a_column_for_what_is_known_and_the_commonest_labels(capfd):
    parts = {
        "to learn from": {"rows": 1200, "truncated": 0.5, "unknown": 0.125},
        "held out": {"rows": 3, "truncated": 0.0},
    }
    parts["held out"]["unknown"] = 0.0
    labels = {f"label {i}": 1 + 99 * (i == 3) for i in range(11)}
    data.print_data({"length": 64, "parts": parts, "labels": labels, "shared": 2})
    said = capfd.readouterr().out
    assert [word in said for word in ("1,200", "cut at 64", "50.0%", "12.5%", "tokens", "median")] == [True] * 4 + [
        False
    ] * 2
    assert "labels: label 3 100 (90.9%), " in said
    assert "and 3 rarer labels\nheld-out rows that are among those to learn from too: 2" in said


# ---- the jobs ----


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(("rows", "warned"), [(ENGLISH, False), (CHINESE, True)])
def test_finetune_shows_the_table_before_it_learns_and_warns_of_what_it_cannot_read(
    rows, warned, here, capfd, monkeypatch
):
    words = ["finetune", "--task", "classify", *write("rows.csv", many(rows)), *TUNE]

    def stopped(*_, **__):
        raise ValueError("learning begins")

    with monkeypatch.context() as patched:
        patched.setattr(classification, "fit_classifier", stopped)
        assert main(words) == 2
    out, err = capfd.readouterr()
    assert "unknown" in out
    assert "labels: pos 9 (50.0%), neg 9 (50.0%)" in out
    assert ("of the tokens are unknown" in err) == warned
    assert main([*words, "--resume"]) == 0
    assert json.loads(Path("out", "scores.json").read_text())["data"]["parts"]["held out"]["rows"] == 2


@pytest.mark.filterwarnings("default")
def test_predict_warns_of_what_it_cannot_read_on_stderr_alone(here, capfd, monkeypatch):
    assert main(["finetune", "--task", "classify", *write("rows.csv", many(ENGLISH)), *TUNE]) == 0
    capfd.readouterr()
    for line, warned in (("good", False), ("好看的电影", True)):
        monkeypatch.setattr("sys.stdin", io.StringIO(f"{line}\n"))
        assert main(["predict", "--adapter", "out"]) == 0
        out, err = capfd.readouterr()
        assert out.count("\n") == 1
        assert out.endswith(f"\t{line}\n")
        assert ("of the tokens are unknown" in err) == warned
    monkeypatch.setattr("sys.stdin", io.StringIO("good\n" + "a " * 9))
    assert main(["predict", "--adapter", "out"]) == 0
    assert "50.0% of 2 texts are longer than 8 tokens, and cut there" in capfd.readouterr().err
    write("new.csv", [*ENGLISH, ("", "")])
    assert main(["predict", "--adapter", "out", "--data", "new.csv", "--label", "label", "--skip-empty"]) == 0
    out, err = capfd.readouterr()
    assert "accuracy of always predicting 'neg': 0.5000" in out
    assert "left out, 1 in all" in err


def test_a_token_that_the_model_has_no_row_for_is_refused(here):
    Path("base", "added_tokens.json").write_text('{"<new>": 56}')
    write("rows.csv", [*many(ENGLISH), ("a <new>", "pos")])
    with pytest.raises(ValueError, match="the tokenizer has 57 ids, the model's embedding 56 rows"):
        finetune("base", "rows.csv", "out", task="classify", epochs=1, length=8)
    assert not Path("out").exists()


def test_a_classifier_that_is_no_better_than_the_commonest_label_says_so(capfd):
    for accuracy, says in ((0.75, True), (0.8, False)):
        report = {"labels": ["a", "b"], "accuracy": accuracy, "majority": 0.75, "macro_f1": 0.5, "support": [6, 2]}
        report |= {key: [1.0, 1.0] for key in ("precision", "recall", "f1")} | {"confusion": [[6, 0], [2, 0]]}
        classification.print_scores(report)
        out = capfd.readouterr().out
        assert "accuracy of always predicting 'a': 0.7500" in out
        assert ("the classifier is no better than always predicting 'a'" in out) == says


@pytest.mark.parametrize("given", [True, False])
def test_held_out_rows_that_are_learned_from_too_are_counted(given, here):
    rows = many(ENGLISH) if given else many(ENGLISH) + many(ENGLISH)
    write("rows.csv", rows)
    write("test.csv", [*rows[:3], ("other", "pos")])
    seen = []
    how = {"epochs": 1, "rank": 2, "length": 8, "show_data": seen.append}
    how |= {"task": "classify", "held_out": "test.csv" if given else None}
    report = finetune("base", "rows.csv", "out", **how)
    assert seen == [report["data"]]
    assert report["data"]["shared"] == 3 if given else report["data"]["shared"] > 0


@pytest.mark.filterwarnings("default")
def test_compare_shows_the_data_on_stderr_and_the_majority_beside_the_accuracies(here, capfd):
    pytest.importorskip("scipy")
    rows = [*many(ENGLISH, 4), *(("good x", "pos"),) * 6]
    options = shlex.split("--folds 2 --epochs 1 --length 8 --against '--rank 1'")
    words = ["compare", *write("rows.csv", rows), *options]
    assert main([*words, "--json"]) == 0
    out, err = capfd.readouterr()
    assert json.loads(out)["majority"] == pytest.approx(10 / 14)
    assert "labels: pos 10 (71.4%), neg 4 (28.6%)\nrows that repeat the text of another: 5" in err
    crossvalidation.print_comparison(json.loads(out))
    assert "always giving the commonest label of a fold: 0.7143\nneither setting is better" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        (
            "notes.txt",
            "Review,Stars\n" + "so it was,3\n" * 99,
            "of the columns 'Review', 'Stars': was --task classify meant",
        ),
        ("notes.csv", "words and words\n" * 99, "looks like a table: was --task classify meant"),
        ("notes.txt", '{"prompt": "a", "answer": "b"}\n' * 99, "of the columns .*: was --task instruct meant"),
        ("notes.txt", "words, and more\nwords\n" * 99, None),
    ],
)
def test_a_text_that_looks_like_a_table_is_learned_and_asked_about(name, content, says, tmp_path, recwarn):
    (tmp_path / name).write_text(content)
    text.read_text(str(tmp_path / name), ByteTokenizer(), 2, 8, 0)
    assert [str(note.message) for note in recwarn] == [] if says is None else True
    if says:
        assert re.search(says, str(recwarn[0].message))


def test_a_file_in_another_encoding_is_read_by_every_job(here, capfd):
    words = write("rows.csv", many([("gut à", "pos"), ("böse", "neg")]))
    Path("rows.csv").write_bytes(Path("rows.csv").read_bytes().decode().encode("cp1252"))
    for command in (
        ["finetune", "--task", "classify", *TUNE],
        ["compare", *shlex.split("--folds 2 --epochs 1 --length 8 --against '--rank 1'")],
    ):
        assert main([*command, *words]) == 2
        assert "not UTF-8: say its encoding" in capfd.readouterr().err
        assert main([*command, *words, "--encoding", "cp1252"]) == 0
    capfd.readouterr()
    assert main(["predict", "--adapter", "out", "--data", "rows.csv", "--encoding", "cp1252"]) == 0
    assert "gut à a\n" in capfd.readouterr().out
    assert main(["predict", "--adapter", "out", "--data", "rows.csv", "--encoding", "cp1225"]) == 2
    assert "the encoding 'cp1225' is not known: did you mean 'cp125" in capfd.readouterr().err


def test_many_lines_of_standard_input_are_answered_a_few_at_a_time(here, capfd, monkeypatch):
    assert main(["finetune", "--task", "classify", *write("rows.csv", many(ENGLISH)), *TUNE]) == 0
    sizes = []
    call = prediction.Classifier.__call__
    spy = lambda self, texts, *more: sizes.append(len(texts)) or call(self, texts, *more)  # noqa: E731
    monkeypatch.setattr(prediction.Classifier, "__call__", spy)
    monkeypatch.setattr(predict, "AT_ONCE", 4)
    monkeypatch.setattr("sys.stdin", io.StringIO("good\n\n" * 10))
    capfd.readouterr()
    assert main(["predict", "--adapter", "out"]) == 0
    assert sizes == [2] * 5  # of each four lines two are empty
    assert capfd.readouterr().out.count("\n") == 20


def test_a_sweep_shows_the_table_once_before_its_cells(tmp_path, monkeypatch):
    pytest.importorskip("joblib")
    (tmp_path / "words.txt").write_text("words and words\n" * 99)
    monkeypatch.setattr(sweep, "run_all", lambda *_: seen.append("cells") or (_ for _ in ()).throw(KeyboardInterrupt))
    seen: list = []
    with pytest.raises(KeyboardInterrupt):
        sweep.sweep(
            "builtin", str(tmp_path / "words.txt"), tmp_path / "out", [1, 2], batch=2, length=8, show_data=seen.append
        )
    numbers, cells = seen
    assert cells == "cells"
    assert {part["unknown"] for part in numbers["parts"].values()} == {0.0}
