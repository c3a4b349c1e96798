"""Classifying texts: the files of a run, its predictions, and what is refused."""

import csv
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from commands import assert_refused, code_of, edit_json, lines, make_base, promised, tree

from minilora.adapters import peft
from minilora.cli import main
from minilora.files import load_tensors, save_tensors, to_json
from minilora.jobs import classification, crossvalidation, finetuning
from minilora.jobs.classification_figure import classification_figure
from minilora.jobs.prediction import Classifier
from minilora.jobs.settings import ClassifierSettings
from minilora.models.labels import default_label_maps, labels_of
from minilora.models.pretrained import load_pretrained
from minilora.models.saving import save_pretrained
from minilora.nn.optim import Optimizer, penalty
from minilora.verify import check_gradient

RUN = ["--epochs", "6", "--batch", "4", "--length", "16", "--rank", "2", "--evaluate-every", "20", "--seed", "3"]
FINETUNE = ["finetune", "--task", "classify", "--base", "base", "--data", "rows.csv", "--out", "out", *RUN]
PREDICT = ["predict", "--adapter", "adapter"]


def rows(n: int = 40) -> list[tuple[str, str]]:
    """Short words that say their label by a letter."""
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcd"), 3 + i % 9)) for i in range(n)]
    return [(word + "xy"[i % 2], ("yes", "no")[i % 2]) for i, word in enumerate(words)]


def write(path: Path, table: list[tuple[str, str]], header: tuple[str, ...] = ("text", "label")) -> Path:
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *table])
    return path


@pytest.fixture(autouse=True, scope="module")
def _a_quick_figure():
    """Drawing takes longer than a small run, and is tested by itself."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(classification, "classification_figure", lambda losses, report: to_json(report))
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    make_base(folder / "base")
    write(folder / "rows.csv", rows())
    words = [*FINETUNE, "--lr", "0.05"]
    for name in ("base", "rows.csv"):
        words[words.index(name)] = str(folder / name)
    words[words.index("out")] = str(folder / "adapter")
    assert main(words) == 0
    return folder


# ---- a run ----


def test_what_is_made_is_what_help_promised(here):
    assert {path.name for path in (here / "adapter").iterdir()} == promised("finetune") - {
        "samples.json",
        "forgetting.png",
    }


def test_scores_are_those_of_the_rows_held_out(here):
    report = json.loads((here / "adapter" / "scores.json").read_text())
    matrix = np.array(report["confusion"])
    assert matrix.sum(axis=1).tolist() == report["support"] == [2, 2]  # a tenth of each label
    assert report["accuracy"] == matrix.trace() / 4
    assert report["texts"] == {"train": 36, "held_out": 4, "truncated": 0}
    assert report["steps"] == 6 * 9 == json.loads((here / "adapter" / "settings.json").read_text())["steps"]


def test_what_it_learned_it_says_of_new_texts(here, capfd, monkeypatch):
    turned = [word[:-1][::-1] + word[-1] for word, _ in rows()]
    write(here / "new.csv", [(word, label) for word, (_, label) in zip(turned, rows(), strict=True)])
    assert main([*PREDICT, "--data", "new.csv", "--label", "label", "--json"]) == 0
    *found, scores = map(json.loads, capfd.readouterr().out.splitlines())
    assert [row["text"] for row in found] == turned
    assert all(sum(row["probabilities"].values()) == pytest.approx(1) for row in found)
    assert all(row["label"] == max(row["probabilities"], key=row["probabilities"].get) for row in found)
    right = np.mean([row["label"] == label for row, (_, label) in zip(found, rows(), strict=True)])
    assert right > 0.8  # the letter decides, and it has learned which
    assert scores["accuracy"] == right


def test_each_line_of_standard_input_is_answered_in_its_place_an_empty_one_with_nothing(here, capfd, monkeypatch):
    lines_in = "\nabcx\n \t\n  dddddddddd y\nby\n\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(lines_in))
    assert main(PREDICT) == 0
    answers = [line.split("\t") for line in capfd.readouterr().out.splitlines()]
    assert [text for _, _, text in answers] == ["", "abcx", "", "dddddddddd y", "by", ""]
    p = iter(Classifier("adapter")(["abcx", "dddddddddd y", "by"]))
    for label, share, text in answers:
        row = next(p) if text else None
        assert label == ("" if row is None else ("no", "yes")[row.argmax()])
        assert share == ("" if row is None else f"{row.max():.4f}")
    monkeypatch.setattr("sys.stdin", io.StringIO(lines_in))
    assert main([*PREDICT, "--json"]) == 0
    found = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [(row["text"], row["label"]) for row in found] == [(text, label or None) for label, _, text in answers]


@pytest.mark.parametrize(("lines_in", "lines_out"), [("", []), ("\n\n", ["\t\t"] * 2), ("abx", ["yes"])])
def test_as_many_lines_come_out_as_went_in_whatever_is_in_them(lines_in, lines_out, here, capfd, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(lines_in))
    assert main(PREDICT) == 0
    found = capfd.readouterr().out.splitlines()
    assert len(found) == len(lines_out)
    assert all(line.startswith(start) for line, start in zip(found, lines_out, strict=True))


@pytest.mark.parametrize("folder", ["./nowhere", "."])
def test_predict_says_that_a_folder_is_no_adapter_before_it_asks_for_a_base(folder, here, capfd):
    assert main(["predict", "--adapter", folder]) == 2
    assert "it is not an adapter folder" in capfd.readouterr().err


def test_a_text_has_the_same_probabilities_alone_and_among_longer_ones(here):
    classify = Classifier("adapter")
    texts = ["abx", "dcbadcbadcbay", "a"]
    together = classify(texts)
    assert all(np.allclose(classify([text]), row, atol=1e-6) for text, row in zip(texts, together, strict=True))


def test_the_same_seed_gives_the_same_bytes_and_another_gives_others(here, capfd):
    for seed, out in (("3", "again"), ("4", "other")):
        words = [*FINETUNE, "--lr", "0.05"]
        words[words.index("out")], words[words.index("3")] = out, seed
        assert main(words) == 0
    first, again, other = (tree(here / name) for name in ("adapter", "again", "other"))
    same = [name for name in first if name != "settings.json"]  # which says where the base lay
    assert all(first[name] == again[name] for name in same)
    assert first["adapter_model.safetensors"] != other["adapter_model.safetensors"]


def test_stopped_and_resumed_it_ends_with_the_same_bytes(here, capfd, monkeypatch):
    words = [*FINETUNE, "--lr", "0.05", "--checkpoint-every", "5", "--epochs", "2"]
    words[words.index("out")] = "whole"
    assert main(words) == 0
    step, steps = Optimizer.step, []

    def stopping(self, *given, **options):
        steps.append(1)
        if len(steps) == 8:
            raise KeyboardInterrupt
        step(self, *given, **options)

    words[words.index("whole")] = "out"
    with monkeypatch.context() as patched:
        patched.setattr(Optimizer, "step", stopping)
        assert main(words) == 130
    assert not (here / "out" / "scores.json").exists()
    assert main([*words, "--resume"]) == 0
    assert tree(here / "out") == tree(here / "whole")


def test_held_out_rows_can_be_a_file_and_all_others_are_learned_from(here, capfd):
    write(here / "test.csv", rows()[:6])
    assert main([*FINETUNE, "--held-out", "test.csv"]) == 0
    report = json.loads((here / "out" / "scores.json").read_text())
    assert report["texts"] == {"train": 40, "held_out": 6, "truncated": 0}


def test_texts_that_are_cut_are_counted(here, capfd):
    assert main([*FINETUNE, "--length", "8"]) == 0
    longer = sum(len(text) > 8 for text, _ in rows())
    assert 0 < longer < 40
    assert f"{longer} truncated" in capfd.readouterr().out


@pytest.mark.oracle
def test_peft_gives_the_probabilities_that_predict_gives(here):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    PeftModel = pytest.importorskip("peft").PeftModel
    base = transformers.AutoModelForSequenceClassification.from_pretrained("base", num_labels=2, pad_token_id=0)
    model = PeftModel.from_pretrained(base, "adapter").eval()
    texts = ["abcx", "ddy", "bcbcbcx"]
    for text, row in zip(texts, Classifier("adapter")(texts), strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([list(text.encode())])).logits
        assert torch.softmax(logits, -1)[0].tolist() == pytest.approx(row.tolist(), abs=1e-5)


def predicted(capfd, monkeypatch, base: str) -> tuple[set[str], list[str]]:
    """The labels that predict prints, and what it says beside."""
    monkeypatch.setattr("sys.stdin", io.StringIO("abcx\nabcy\n"))
    assert main([*PREDICT, "--base", base]) == 0
    said = capfd.readouterr()
    return {line.split("\t")[0] for line in said.out.splitlines()}, lines(said.err)


def without_names(adapter: Path) -> None:
    path = adapter / "adapter_model.safetensors"
    tensors, metadata = load_tensors(path)
    save_tensors(path, tensors, {"base_sha256": metadata["base_sha256"]})


def test_the_two_files_of_an_adapter_hold_the_names_of_its_labels(here, capfd, monkeypatch):
    (here / "adapter" / "settings.json").unlink()
    assert_refused(here, capfd, PREDICT, "does not say what its base is: give --base")
    assert predicted(capfd, monkeypatch, "base") == ({"yes", "no"}, [])
    assert main(["info", "adapter"]) == 0
    assert re.search(r"labels +2 \(no, yes\)", capfd.readouterr().out)


@pytest.mark.filterwarnings("default")  # the command shows them
def test_names_that_an_adapter_lacks_are_those_of_its_run_or_its_base_or_said_not_to_be_known(here, capfd, monkeypatch):
    save_pretrained(classification.classifier("base", ["bad", "fine"]), here / "named")
    save_pretrained(load_pretrained("named"), here / "unnamed")
    edit_json(here / "unnamed" / "config.json", **default_label_maps(2))
    settings = (here / "adapter" / "settings.json").read_text()
    (here / "adapter" / "settings.json").unlink()
    assert predicted(capfd, monkeypatch, "named") == ({"yes", "no"}, [])  # the adapter's own come first
    without_names(here / "adapter")
    assert predicted(capfd, monkeypatch, "named") == ({"bad", "fine"}, [])
    for base in ("base", "unnamed"):
        found, said = predicted(capfd, monkeypatch, base)
        assert found == {"0", "1"}
        assert said == ["minilora: note: label names are not known: adapter has only their numbers"]
    (here / "adapter" / "settings.json").write_text(settings)
    assert predicted(capfd, monkeypatch, "named") == ({"yes", "no"}, [])


def test_labels_that_are_numbers_come_back_from_the_adapter_alone_and_from_what_is_merged(here, capfd, monkeypatch):
    write(here / "rows.csv", [(4 * "abcdefghijkl"[i % 12], str(i % 12)) for i in range(48)])
    words = ["--out", "out", "--lr", "0.05", "--batch", "12", "--epochs", "30", "--rank", "8"]
    assert main([*FINETUNE, *words]) == 0
    (here / "alone").mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(here / "out" / name, here / "alone" / name)
    capfd.readouterr()
    assert main(["predict", "--adapter", "alone", "--base", "base", "--data", "rows.csv"]) == 0
    found = [line.split("\t")[0] for line in capfd.readouterr().out.splitlines()]
    assert found == [str(i % 12) for i in range(48)]
    assert main(["merge", "--base", "base", "--adapter", "alone", "--out", "merged"]) == 0
    config = json.loads((here / "merged" / "config.json").read_text())
    assert config["id2label"] == {str(i): str(i) for i in range(12)}
    assert config["architectures"] == ["LlamaForSequenceClassification"]


def test_labels_that_are_called_as_those_without_names_keep_their_names(here, capfd, monkeypatch):
    write(here / "rows.csv", [(text, {"yes": "LABEL_1", "no": "LABEL_0"}[label]) for text, label in rows()])
    assert main([*FINETUNE, "--out", "other"]) == 0
    (here / "other" / "settings.json").unlink()
    shutil.rmtree(here / "adapter")
    (here / "other").rename(here / "adapter")
    capfd.readouterr()
    found, said = predicted(capfd, monkeypatch, "base")
    assert (found <= {"LABEL_0", "LABEL_1"}, said) == (True, [])


def test_each_of_several_adapters_brings_the_names_of_its_labels(here):
    model = classification.classifier("base", ["bad", "fine"])
    adapters = peft.Adapters(model)
    adapters.load("one", "adapter")
    without_names(here / "adapter")
    adapters.load("two", "adapter")
    known, base = ["no", "yes"], ["bad", "fine"]
    for name, names in (("one", known), ("two", base), ("one", known), (None, base)):
        adapters.activate(name)
        assert labels_of(model) == names


@pytest.mark.filterwarnings("default")  # the command shows them
@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_an_encoder_learns_its_classifier_whole_and_predict_takes_what_was_made(family, here, capfd, monkeypatch):
    from minilora.models.config import Config
    from minilora.models.families import FAMILIES

    config = Config(vocab_size=256, n_layers=1, d_model=16, n_heads=2, max_length=32, head="none", activation="gelu",
                    offset=2 * (family == "roberta"))  # fmt: skip
    save_pretrained(FAMILIES[family].build(config, np.random.default_rng(0)), here / "encoder")
    assert main([*FINETUNE, "--base", "encoder"]) == 0  # seed 3
    said = capfd.readouterr().err
    assert ("pooler" in said) == (family == "bert")  # which stays as it was drawn: PEFT saves none
    trained = {name.removeprefix("base_model.model.") for name in peft.read_adapter(here / "out")[1]}
    heads = {"bert": {"classifier"}, "roberta": {"classifier.dense", "classifier.out_proj"}}[family]
    assert {f"{head}.{kind}" for head in heads for kind in ("weight", "bias")} <= trained
    monkeypatch.setattr("sys.stdin", io.StringIO("abcx\n"))
    assert main(["predict", "--adapter", "out"]) == 0
    assert capfd.readouterr().out.split("\t")[0] in ("yes", "no")


def test_labels_may_be_any_text_and_as_many_as_there_are(here, capfd, monkeypatch):
    monkeypatch.setattr(classification, "classification_figure", classification_figure)
    signs = ["$", "$$", "_x_", "\\frac", *(f"a label of many letters, {i}" for i in range(12))]
    write(here / "rows.csv", [(f"{text}{i}", sign) for i, sign in enumerate(signs) for text in ("ab", "cd", "ef")])
    assert main([*FINETUNE, "--epochs", "1"]) == 0
    shown = capfd.readouterr().out
    assert all(sign in shown for sign in signs)
    assert (here / "out" / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_is_not_resumed_with_rows_that_were_held_out_to_learn_from(here, capfd):
    table = rows()
    write(here / "rows.csv", table[:30])
    write(here / "held.csv", table[30:])
    assert main([*FINETUNE, "--held-out", "held.csv"]) == 0
    write(here / "rows.csv", table[2:32])
    write(here / "held.csv", [*table[32:], *table[:2]])
    capfd.readouterr()
    assert_refused(
        here, capfd, [*FINETUNE, "--held-out", "held.csv", "--resume"], "the data is not the one that out was"
    )


def test_recomputing_changes_no_byte_and_may_be_asked_for_on_resume(here, capfd):
    for out, words in (("plain", []), ("again", ["--recompute"])):
        assert main([*FINETUNE, "--out", out, "--lr", "0.05", *words]) == 0
    assert tree(here / "plain") == tree(here / "again")
    assert main([*FINETUNE, "--out", "plain", "--lr", "0.05", "--recompute", "--resume"]) == 0


# ---- penalties ----


@pytest.mark.parametrize(("l1", "l2"), [(0.3, 0.0), (0.0, 0.7), (0.3, 0.7)])
def test_the_gradient_of_a_penalty_is_that_of_its_value(l1, l2):
    from minilora.nn import Parameter

    def value(A, B):
        return penalty([Parameter(A), Parameter(B)], l1, l2)()[0]

    def gradient(dy, A, B):
        parameters = [Parameter(A), Parameter(B)]
        grads = penalty(parameters, l1, l2)()[1]
        return tuple(dy * grads[p] for p in parameters)

    rng = np.random.default_rng(0)
    inputs = {"A": rng.choice([-1, 1], (2, 3)) * rng.uniform(0.5, 2, (2, 3)), "B": rng.uniform(0.5, 2, (4, 2))}
    assert check_gradient(value, gradient, inputs).ok
    assert not check_gradient(value, lambda dy, A, B: (2 * gradient(dy, A, B)[0], gradient(dy, A, B)[1]), inputs).ok


def test_a_penalty_makes_A_and_B_small_and_touches_no_classifier(here, capfd):
    norms = {}
    for name, words in (("none", []), ("l1", ["--l1", "0.1"]), ("l2", ["--l2", "1"])):
        run = [*FINETUNE, "--lr", "0.05", *words]
        run[run.index("out")] = name
        assert main(run) == 0
        tensors = peft.read_adapter(here / name)[1]
        norms[name] = sum(float(abs(x).sum()) for key, x in tensors.items() if "lora_" in key)
    assert norms["l1"] < norms["none"] / 2
    assert norms["l2"] < norms["none"] / 2


def test_a_penalty_is_on_the_trained_parameters_of_adapters_and_not_on_the_classifier(here):
    model = classification.classifier("base", ["a", "b"])
    finetuning.attach(model, ClassifierSettings(rank=2))
    trained = model.trainable_parameters()
    adapters = {parameter for path, parameter in trained.items() if not path.startswith("classifier")}
    assert 0 < len(adapters) < len(trained)
    assert set(classification.penalised(model)) == adapters


# ---- two settings ----


def test_cross_validation_trains_both_settings_on_the_same_folds(here, monkeypatch):
    seen = []
    monkeypatch.setattr(
        crossvalidation,
        "fit_classifier",
        lambda model, train, held, how, **_: seen.append((how.rank, train.targets.tolist())),
    )
    report = crossvalidation.cross_validate("base", "rows.csv", {"rank": 1}, folds=4, rank=2, length=16)
    assert [rank for rank, _ in seen] == [2, 1] * 4
    assert all(seen[2 * i][1] == seen[2 * i + 1][1] for i in range(4))
    assert report["texts"] == {"train": 30, "test": 10}
    assert report["mean"] == pytest.approx(np.mean([a - b for a, b in report["folds"]]))


@pytest.mark.slow
def test_cross_validation_finds_a_setting_that_cannot_learn(here, capfd):
    words = ["compare", "--base", "base", "--data", "rows.csv", "--folds", "3", "--epochs", "6", "--batch", "4",
             "--length", "16", "--lr", "0.05", "--seed", "3", "--json"]  # fmt: skip
    assert main([*words, "--against", "--lr 1e-9"]) == 0
    report = json.loads(capfd.readouterr().out)
    assert report["against"] == {"lr": 1e-9}
    assert report["mean"] > 0.2
    assert report["p"] < 0.05
    words.remove("--json")
    assert main([*words, "--against", "--lr 1e-9"]) == 0
    assert re.search(r"95% interval .*\nt = .*, p = .*, corrected for training sets", capfd.readouterr().out)


# ---- bad input ----

TABLES = {
    "a column that is not there": (rows(), ("words", "label"), "rows.csv has no 'text': there are 'words', 'label'"),
    "a missing label": ([*rows(), ("abcx", "")], ("text", "label"), "'label' is empty in 1 row, on line 42: fill"),
    "an empty text": ([("", "yes"), *rows()], ("text", "label"), "'text' is empty in 1 row, on line 2"),
    "one label": ([(text, "yes") for text, _ in rows()], ("text", "label"), "the only label is 'yes': .*two or more"),
    "a label with one row": ([*rows(), ("abcx", "odd")], ("text", "label"), "the label 'odd' has one row alone"),
}


@pytest.mark.parametrize("kind", TABLES)
def test_a_table_that_cannot_be_learned_is_refused_in_one_line(kind, here, capfd):
    table, header, says = TABLES[kind]
    write(here / "rows.csv", table, header)
    assert_refused(here, capfd, FINETUNE, says)


WORDS = {
    "a label that training never saw": (
        ["--held-out", "odd.csv"],
        "odd.csv has the label 'odd', which training never saw",
    ),
    "more tokens than positions": (["--length", "4096"], "length = 4096 is more than the model's 32 positions"),
    "a text's option": (["--steps", "3"], "--task classify does not read --steps: leave it out"),
    "no such file": (["--data", "none.csv"], "No such file or directory: none.csv"),
    "no such base": (["--base", "nowhere"], "no folder or file 'nowhere'"),
    "a penalty below 0": (["--l2", "-1"], "--l2: '-1' is not a number from 0 up"),
    "a folder that is taken": (["--out", "adapter"], "already holds a run: --resume goes on with it"),
}


@pytest.mark.parametrize("kind", WORDS)
def test_words_that_make_no_sense_are_refused_in_one_line(kind, here, capfd):
    write(here / "odd.csv", [("abcx", "odd")])
    words, says = WORDS[kind]
    assert_refused(here, capfd, [*FINETUNE, *words], says)


def test_a_base_with_another_classifier_is_refused(here, capfd):
    save_pretrained(classification.classifier("base", ["a", "b", "c"]), here / "three")
    assert_refused(here, capfd, [*FINETUNE, "--base", "three"], r"classifier.weight has shape \(3, 16\).*\(2, 16\)")


def test_an_adapter_that_does_not_classify_is_refused(here, capfd):
    (here / "words.txt").write_text("def f(x):\n    return x\n" * 99)
    run = ["--steps", "1", "--batch", "2", "--length", "8", "--rank", "1"]
    assert main(["finetune", "--base", "base", "--data", "words.txt", "--out", "lm", *run]) == 0
    capfd.readouterr()
    assert_refused(here, capfd, ["predict", "--adapter", "lm"], "lm is not a classifier of texts: make one with")


@pytest.mark.parametrize(("words", "says"), [
    (["--label", "label"], "--label names a column of --data: give both"),
    (["--data", "rows.csv", "--text", "words"], "has no 'words': there are 'text', 'label'"),
    (["--data", "odd.csv", "--label", "label"], "odd.csv has the label 'odd', which training never saw: no, yes"),
    (["--adapter", "nowhere"], "nowhere"),
])  # fmt: skip
def test_what_cannot_be_predicted_is_refused(words, says, here, capfd):
    write(here / "odd.csv", [("abcx", "odd")])
    before = tree(here)
    assert code_of([*PREDICT, *words]) == 2
    shown = lines(capfd.readouterr().err)
    assert len(shown) == 1
    assert re.search(says, shown[0])
    assert tree(here) == before


@pytest.mark.parametrize(("words", "says"), [
    (["--against", "--rank 8"], "the two settings are the same"),
    (["--against", "--speed 3"], "argument --against: no option is called --speed: choose from --rank"),
    (["--against", "--rank 2", "--folds", "1"], "1 folds: at least 2"),
    (["--against", "--rank 2", "--folds", "30"], "the label 'no' has 20 rows, fewer than the 30 folds"),
    (["--against", "--targets nothing"], "no layer is called 'nothing'"),
    (["--against", "--length 99"], "length = 99 is more than the model's 32 positions"),
])  # fmt: skip
def test_settings_that_cannot_be_compared_are_refused_before_any_training(words, says, here, capfd, monkeypatch):
    monkeypatch.setattr(finetuning, "fit", None)
    assert_refused(here, capfd, ["compare", "--base", "base", "--data", "rows.csv", "--length", "16", *words], says)


def test_the_steps_are_those_in_which_each_row_is_seen_as_often_as_there_are_epochs():
    settings = ClassifierSettings(epochs=2, batch=4, accumulate=3)
    assert settings.steps_for(33) == 6  # 9 batches an epoch, three to a step
