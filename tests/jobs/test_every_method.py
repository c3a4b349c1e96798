"""What each command does with a run of each method. No method is named: a new variant is tested by being there."""

import functools
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import examples
import numpy as np
import pytest
from commands import WORDS, assert_refused, lines, make_base, plant, tree
from small_runs import interrupting

from minilora.adapters import DEFAULT
from minilora.adapters.attach import attach
from minilora.adapters.initialisations import inits
from minilora.adapters.peft.config import classes_of
from minilora.adapters.peft.format import is_whole_in_file
from minilora.adapters.registry import variants
from minilora.cli import main
from minilora.jobs import classification
from minilora.jobs.bases import load_adapted
from minilora.jobs.finetuning import FIRST, options_of
from minilora.jobs.prediction import Classifier
from minilora.jobs.settings import OF_METHOD
from minilora.models.config import Config
from minilora.models.families.gpt2 import gpt2
from minilora.models.pretrained import load_pretrained
from minilora.models.saving import save_pretrained
from minilora.nn import Embedding, Linear

each_method = pytest.mark.parametrize("method", variants())
some_methods = pytest.mark.parametrize("method", examples.some_of(variants(), 3))
ROWS = [("abcd"[i % 3 :] * (1 + i % 3) + "xy"[i % 2], ("yes", "no")[i % 2]) for i in range(40)]
RUN = ["--data", "words.txt", "--out", "out", "--batch", "2", "--length", "8", "--lr", "0.05"]
STEPS = ["--steps", "4", "--evaluate-every", "2", "--checkpoint-every", "2"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two bases, one without a bias and one with fused layers and biases, a text, and rows to classify."""
    folder = tmp_path_factory.mktemp("made")
    make_base(folder / "llama")
    config = Config(vocab_size=256, n_layers=1, d_model=16, n_heads=2, d_ff=24, max_length=32)
    save_pretrained(gpt2(config, np.random.default_rng(1)), folder / "gpt2")
    (folder / "words.txt").write_bytes(WORDS)
    (folder / "rows.csv").write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in ROWS))
    return folder


def chosen(method: str) -> dict[str, Any]:
    """{option: value} of the variant's first example."""
    return dict(variants()[method][0].examples[""])


@functools.cache
def words_for(method: str) -> list[str]:
    """The words that choose the method, on a base that has what it adapts."""
    try:
        attach(load_pretrained("llama"), method, None, rng=0, **chosen(method))
        base = "llama"
    except ValueError:
        base = "gpt2"
    words, flags = ["--method", method, "--base", base], {name: field for field, name in OF_METHOD.items()}
    for name, value in chosen(method).items():
        text = json.dumps(value)
        words += [f"--{flags[name]}", text.strip('"')] if name in flags else ["--option", f"{name}={text}"]
    return words


RUNS: dict[str, tuple[dict[str, bytes | None], str]] = {}


@pytest.fixture
def tuned(here: Path, capfd: pytest.CaptureFixture[str]) -> Callable[[str], str]:
    """What the command of a method prints; its files are in out/. They are made once for the tests of a process."""

    def run(method: str) -> str:
        if method not in RUNS:
            assert main(finetune(method)) == 0
            RUNS[method] = tree(here / "out"), capfd.readouterr().out
        else:
            (here / "out").mkdir()
            plant(here / "out", RUNS[method][0])
        return RUNS[method][1]

    return run


def finetune(method: str, *more: str) -> list[str]:
    return ["finetune", *words_for(method), *RUN, *STEPS, *more]


def with_a_rank() -> list[str]:
    """Methods that have one, and adapt the base without biases: first the default."""
    found = [name for name in variants() if "r" in options_of(name) and base_of(name) == "llama"]
    return sorted(found, key=lambda name: name != DEFAULT)


def base_of(method: str) -> str:
    words = words_for(method)
    return words[words.index("--base") + 1]


@each_method
def test_info_says_the_variant_of_the_file_and_generate_gives_what_the_merged_model_does(method, here, tuned, capfd):
    printed = tuned(method)
    assert re.search(r"generate --prompt 'The ' --adapter out\n$", printed)
    trained = re.search(r"([\d,]+) parameters trained for 4 steps", printed)
    settings = json.loads(Path("out", "settings.json").read_text())
    assert settings["method"] == method
    for field, name in OF_METHOD.items():
        assert (settings[field] is None) == (name not in options_of(method) or field == "init")
    config = json.loads(Path("out", "adapter_config.json").read_text())
    assert main(["info", "out"]) == 0
    said = capfd.readouterr().out
    assert re.search(rf"^adapter +{variants()[method][0].peft_type}\b", said, re.MULTILINE)
    assert re.search(r"^run +4 of 4 steps", said, re.MULTILINE)
    assert re.search(rf"^method +{method}$", said, re.MULTILINE) is not None
    assert trained is not None
    assert re.search(rf"^trained +{trained[1]} parameters$", said, re.MULTILINE)  # not what the file holds
    assert classes_of(config)[0].peft_type == variants()[method][0].peft_type
    generate = ["--prompt", "def ", "--tokens", "12", "--temperature", "1"]
    assert main(["generate", "--adapter", "out", *generate]) == 0
    adapted = capfd.readouterr().out
    if not variants()[method][0].mergeable:
        assert_refused(here, capfd, ["merge", "--adapter", "out", "--out", "merged"], "it cannot be merged")
        return
    assert main(["merge", "--adapter", "out", "--out", "merged"]) == 0
    capfd.readouterr()
    assert main(["generate", "--base", "merged", *generate]) == 0
    assert capfd.readouterr().out == adapted
    ids = np.frombuffer(WORDS[:24], np.uint8)[None].astype(np.int64)
    models = load_adapted(base_of(method), Path("out"))[0], load_pretrained("merged"), load_pretrained(base_of(method))
    adapted, merged, base = (model.forward(ids)[0] for model in models)
    np.testing.assert_allclose(merged, adapted, atol=1e-4 * abs(adapted).max())
    assert abs(adapted - base).max() > 1e-3 * abs(base).max()


@pytest.mark.parametrize("init", examples.some_of(inits(), 5))
def test_a_run_begins_as_its_init_says_and_ends_with_an_adapter_for_the_untouched_base(init, here, monkeypatch, capfd):
    words = ["finetune", "--base", "llama", "--init", init, "--rank", "2", *RUN, *STEPS]
    assert main(words) == 0
    whole = tree(here / "out")
    assert json.loads(whole["settings.json"] or b"")["init"] == init
    assert main(["rank", "out", "--base", "llama"]) == 0
    shutil.rmtree("out")
    with monkeypatch.context() as patched:
        interrupting(patched, ("before a batch", FIRST + 3))  # after those that the init may look at
        assert main(words) == 130
    assert main([*words, "--resume"]) == 0
    assert tree(here / "out") == whole


@some_methods
def test_a_run_that_is_stopped_and_resumed_ends_with_the_same_bytes(method, here, tuned, monkeypatch, capfd):
    tuned(method)
    whole = tree(here / "out")
    shutil.rmtree("out")
    with monkeypatch.context() as patched:
        interrupting(patched, ("before a batch", 3))
        assert main(finetune(method)) == 130
    assert "--resume goes on" in capfd.readouterr().err
    assert tree(here / "out") != whole
    assert main(finetune(method, "--resume")) == 0
    assert tree(here / "out") == whole


@some_methods
def test_rank_decomposes_what_the_adapter_adds_to_each_matrix(method, here, tuned, capfd):
    tuned(method)
    model, _ = load_adapted(base_of(method), Path("out"))
    adapters = [m for _, m in model.named_modules() if m.is_adapter and isinstance(m.base, Linear | Embedding)]
    norms = sorted(float(np.linalg.norm(adapter.delta().astype(float))) for adapter in adapters)
    capfd.readouterr()
    code = main(["rank", "out", "--base", base_of(method), "--json"])
    out, err = capfd.readouterr()
    if not any(norms):
        assert code == 2
        assert "changes no matrix" in err
        return
    found = sorted(row["norm"] for row in json.loads(out)["layers"])
    np.testing.assert_allclose(found, [norm for norm in norms if norm], rtol=1e-4)
    alone = all(is_whole_in_file(type(a)) and a.factors() is not None for a in adapters)
    if alone:
        assert main(["rank", "out", "--json"]) == 0
        assert sorted(row["norm"] for row in json.loads(capfd.readouterr().out)["layers"]) == pytest.approx(found)
    else:
        assert_refused(here, capfd, ["rank", "out"], "give its base too")
    assert main(["rank", "out", "--base", base_of(method), "--rank", "1", "--out", "small"]) == 0
    assert main(["generate", "--base", base_of(method), "--adapter", "small", "--prompt", "x", "--tokens", "2"]) == 0


@some_methods
def test_a_classifier_predicts_what_the_merged_one_does(method, here, monkeypatch, capfd):
    monkeypatch.setattr(classification, "classification_figure", lambda losses, report: b"")
    task = ["--task", "classify", "--data", "rows.csv", "--epochs", "1", "--length", "16", "--out", "out"]
    words = ["finetune", *words_for(method), *task, "--batch", "4", "--lr", "0.05"]
    if "modules_to_save" in variants()[method][0].keys.lacks:
        assert_refused(here, capfd, words, "saves no whole layer")
        return
    assert main(words) == 0
    assert re.search(r"predict --adapter out\n$", capfd.readouterr().out)
    assert main(["predict", "--adapter", "out", "--data", "rows.csv", "--json"]) == 0
    found = [json.loads(line)["probabilities"] for line in capfd.readouterr().out.splitlines()]
    if not variants()[method][0].mergeable:
        assert_refused(here, capfd, ["merge", "--adapter", "out", "--out", "merged"], "it cannot be merged")
        return
    assert main(["merge", "--adapter", "out", "--out", "merged"]) == 0
    classify, texts = Classifier("out"), [text for text, _ in ROWS]
    expected = classify(texts)
    classify.model = load_pretrained("merged")
    np.testing.assert_allclose(classify(texts), expected, atol=1e-4)
    np.testing.assert_allclose([[row["no"], row["yes"]] for row in found], expected, atol=1e-6)
    assert main(["predict", "--adapter", "out", "--data", "rows.csv", "--label", "label"]) == 0
    assert "accuracy" in capfd.readouterr().out


@each_method
def test_an_option_that_the_method_lacks_is_refused_by_name_and_nothing_is_made(method, here, capfd):
    given = {"rank": "3", "alpha": "3", "rslora": None, "dropout": "0.1", "init": "gaussian"}
    base = ["finetune", "--method", method, "--base", base_of(method), *RUN]
    for field, value in given.items():
        if OF_METHOD[field] not in options_of(method):
            words = [f"--{field}", *([value] if value else [])]
            assert_refused(here, capfd, [*base, *words], f"{method} has no {field}: leave it out")
    assert_refused(here, capfd, [*base, "--option", "colour=3"], f"{method} has no option 'colour': choose from|none")


@each_method
def test_a_method_without_a_rank_adapts_its_own_targets_and_others_every_linear_layer(method, here, tuned):
    tuned(method)
    settings = json.loads(Path("out", "settings.json").read_text())
    model, _ = load_adapted(base_of(method), Path("out"))
    adapted = {path for path, m in model.named_modules() if m.is_adapter}
    linear = {path for path, m in model.named_modules() if isinstance(m, Linear) and "block_" in path}
    if "r" in options_of(method):
        assert (settings["targets"], adapted) == ("all-linear", linear)
    else:
        assert settings["targets"] is None
        own = load_pretrained(base_of(method))
        assert len(adapted) <= len(attach(own, method, rng=0, **chosen(method)))


def test_a_run_of_before_there_were_methods_resumes_and_one_of_another_method_does_not(here, monkeypatch, capfd):
    words = ["finetune", "--base", "llama", *RUN, *STEPS]
    assert main(words) == 0
    whole = tree(here / "out")
    shutil.rmtree("out")
    with monkeypatch.context() as patched:
        interrupting(patched, ("before a batch", 3))
        assert main(words) == 130
    file = Path("out", "settings.json")
    old = {k: x for k, x in json.loads(file.read_text()).items() if k not in ("method", "init", "option")}
    file.write_text(json.dumps(old))
    capfd.readouterr()
    other = with_a_rank()[1]
    said = f"was run with method = '{DEFAULT}', not '{other}'"
    assert_refused(here, capfd, [*words, "--method", other, "--rank", "2", "--resume"], said)
    assert main([*words, "--resume"]) == 0
    assert {name: x for name, x in tree(here / "out").items() if name != "settings.json"} == {
        name: x for name, x in whole.items() if name != "settings.json"
    }


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("0.5", 0.5), ("3", 3), ("true", True), ("[1, 2]", [1, 2]), ("uniform", "uniform"), ('"3"', "3"), ("", "")),
        *(("False", False), ("[down_proj,k_proj]", ["down_proj", "k_proj"]), ("[a", "[a"), ("[]", [])),
    ],
)
def test_the_value_of_an_option_is_read_as_json_or_else_is_a_text(text, value, here, monkeypatch):
    seen: list[Any] = []
    monkeypatch.setattr("minilora.jobs.finetuning.finetune", lambda **given: seen.append(given["option"]) or 1 / 0)
    assert main(["finetune", "--data", "x", "--out", "y", "--option", f"a={text}", "--option", "b=1"]) == 2
    assert seen == [{"a": value, "b": 1}]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--option", "r=3"], "option 'r' is set by 'rank': give that instead"),
        (["--option", "=3"], "'=3' is not NAME=VALUE"),
        (["--option", "a"], "'a' is not NAME=VALUE"),
        (["--method", "none"], "no variant is called 'none'"),
        (["--init", "none"], "lora has no init 'none'"),
    ],
)
def test_options_that_cannot_be_read_are_refused(words, says, here, capfd):
    assert_refused(here, capfd, ["finetune", "--base", "llama", *RUN, *words], says)


def test_a_sweep_of_methods_has_a_cell_for_each_method_and_rank_and_one_for_a_method_without(here, monkeypatch, capfd):
    monkeypatch.setattr("minilora.jobs.sweep.sweep_figure", lambda report, title: title.encode())
    ranked = with_a_rank()[:2]
    without = [name for name in variants() if not options_of(name) and base_of(name) == "llama"][:1]
    words = ["sweep", "--base", "llama", *RUN, "--steps", "2", "--ranks", "1,3", "--seeds", "2", "--jobs", "1"]
    assert main([*words, "--methods", ",".join([*ranked, *without])]) == 0
    report = json.loads(Path("out", "sweep.json").read_text())
    expected = [(name, r) for name in ranked for r in (1, 3)] + [(name, None) for name in without]
    assert sorted((row["method"], row.get("rank")) for row in report["ranks"]) == sorted(expected, key=str)
    assert [row["trainable"] for row in report["ranks"]] == sorted(row["trainable"] for row in report["ranks"])
    names = {f"{row['method']}, r = {row['rank']}" if "rank" in row else row["method"] for row in report["ranks"]}
    assert {report["best"], *report["pareto"]} <= names
    assert "rank" not in report["settings"]
    for row in report["ranks"]:
        folder = Path("out", row["method"] + (f"-rank-{row['rank']}" if "rank" in row else ""))
        settings = json.loads((folder / "seed-1" / "settings.json").read_text())
        assert (settings["method"], settings["rank"], settings["seed"]) == (row["method"], row.get("rank"), 1)
    capfd.readouterr()
    assert main(["info", "out"]) == 0
    assert re.search(f"sweep +{', '.join([*ranked, *without])} at ranks 1, 3, 2 seeds", capfd.readouterr().out)


def test_methods_are_given_once_and_a_method_without_a_rank_is_not_swept_alone(here, capfd):
    words = ["sweep", "--base", "gpt2", *RUN, "--ranks", "1", "--jobs", "1"]
    without = next(name for name in variants() if "r" not in options_of(name))
    assert_refused(here, capfd, [*words, "--method", without], f"{without} has no rank to sweep")
    said = "give each of the methods once, and not together with one method"
    assert_refused(here, capfd, [*words, "--methods", f"{DEFAULT},{DEFAULT}"], said)
    assert_refused(here, capfd, [*words, "--methods", DEFAULT, "--method", DEFAULT], said)


def test_compare_tries_another_method_with_the_options_that_it_has(here, capfd):
    without = next(name for name in variants() if not options_of(name))
    words = ["compare", "--base", "gpt2", "--data", "rows.csv", "--folds", "2", "--epochs", "1", "--length", "8"]
    assert main([*words, "--rank", "2", "--alpha", "3", "--against", f"--method {without}", "--json"]) == 0
    out, err = capfd.readouterr()
    assert json.loads(out)["against"] == {"method": without}
    assert all("rank" not in line for line in lines(err))
    assert_refused(here, capfd, [*words, "--against", f"--method {without} --rank 3"], f"{without} has no rank")
