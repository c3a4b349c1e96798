"""finetune --from, --add-tokens, --watch, and the options of the schedule."""

import json
import math
import re
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from commands import RUN, WORDS, assert_refused, make_base, tree

from minilora import attach, load_pretrained
from minilora.adapters import peft
from minilora.cli import main
from minilora.files import load_tensors
from minilora.jobs.bases import load_adapted
from minilora.jobs.finetuning import finetune, schedule_for
from minilora.jobs.settings import SCHEDULES, ClassifierSettings, LanguageModelSettings
from minilora.jobs.watching import read_watched
from minilora.models.tokenizer import ByteTokenizer
from minilora.models.tokenizer_files import read_tokenizer
from minilora.nn import optim
from minilora.training import evaluate

TOKENS = ["<fn>", "x):", "→"]
notes = pytest.mark.filterwarnings("default")  # lines on stderr


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A base, texts, tokens, and a run on each kind of adapter."""
    folder = tmp_path_factory.mktemp("made")
    make_base(folder / "base")
    (folder / "words.txt").write_bytes(WORDS)
    (folder / "other.txt").write_bytes(b"The quick brown fox jumps over the lazy dog, again and again. " * 12)
    (folder / "tokens.txt").write_text("".join(f"{token}\n" for token in TOKENS), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["finetune", "--base", "base", *DATA, "--out", "first", "--targets", "q_proj,v_proj"]) == 0
        assert main(["finetune", "--base", "base", *DATA, "--out", "tokens", "--add-tokens", "tokens.txt"]) == 0
    return folder


DATA = ["--data", "words.txt", *RUN, "--lr", "0.05"]
ON = ["--data", "words.txt", *(RUN[:6]), *RUN[8:], "--lr", "0.05", "--out", "out"]


@pytest.fixture
def here(made, tmp_path, monkeypatch):
    shutil.copytree(made, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


# ---- --from ----


def test_a_run_begins_where_the_adapter_it_goes_on_from_ended_with_its_options_and_leaves_it_as_it_was(here, capfd):
    before = tree(here / "first")
    assert main(["finetune", "--from", "first", *ON]) == 0
    assert tree(here / "first") == before
    first, on = (json.loads((here / name / "history.json").read_text()) for name in ("first", "out"))
    assert on["evaluations"][0][1] == pytest.approx(first["evaluations"][-1][1], rel=1e-6)
    settings, of_first = (json.loads((here / name / "settings.json").read_text()) for name in ("out", "first"))
    assert {key: settings[key] for key in ("rank", "alpha", "method", "base", "base_sha256")} == {
        key: of_first[key] for key in ("rank", "alpha", "method", "base", "base_sha256")
    }
    assert settings["from"] == "first"
    configs = [json.loads((here / name / peft.CONFIG).read_text()) for name in ("first", "out")]
    assert configs[0] == configs[1]
    assert tree(here / "out")[peft.WEIGHTS] != before[peft.WEIGHTS]


@pytest.mark.parametrize("words", [["--rank", "2"], ["--targets", "v_proj,q_proj"], ["--base", "base"]])
def test_an_option_that_says_the_same_is_no_contradiction(words, here, capfd):
    assert main(["finetune", "--from", "first", *ON, *words]) == 0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--rank", "4"], "rank = 4 contradicts first, where it is 2: leave it out"),
        (["--alpha", "3"], r"alpha = 3\.0 contradicts first, where it is 16\.0"),
        (["--rslora"], "rslora = True contradicts"),
        (["--dropout", "0.1"], r"dropout = 0\.1 contradicts"),
        (["--init", "pissa"], "init = 'pissa' contradicts first, where it is None"),
        (["--method", "vera"], "method = 'vera' contradicts first, where it is 'lora'"),
        (["--option", "d_initial=1"], "d_initial = 1 contradicts first"),
        (["--targets", "all-linear"], r"targets = 'all-linear' contradicts first, which adapts q_proj, v_proj"),
        (["--add-tokens", "tokens.txt"], "tokens are added to a new adapter, and first has its vocabulary"),
        (["--base", "other"], "first was made for another base"),
        (["--from", "base"], "base holds no adapter_config.json"),
        (["--out", "first"], "first already holds a run"),
    ],
)
def test_what_contradicts_the_adapter_is_refused_by_name_and_nothing_is_made(words, says, here, capfd):
    make_base(here / "other", seed=2)
    before = tree(here)
    assert main(["finetune", "--from", "first", *ON, *words]) == 2
    assert re.search(says, capfd.readouterr().err)
    assert tree(here) == before


@notes
def test_a_run_that_goes_on_is_resumed_to_the_same_bytes_and_not_from_another_start(here, capfd, monkeypatch):
    words = ["finetune", "--from", "first", *ON, "--steps", "4", "--checkpoint-every", "2", "--weight-decay", "0.1"]
    words += ["--schedule", "linear", "--warmup", "0.5", "--clip", "0.01", "--watch", "other.txt"]
    assert main(words) == 0
    whole = tree(here / "out")
    shutil.rmtree(here / "out")
    from minilora.training import run as running

    saved = running.save_checkpoint

    def stop(path, *rest):
        saved(path, *rest)
        raise KeyboardInterrupt("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(running, "save_checkpoint", stop)
        assert main(words) == 130
    for wrong, says in (
        (["--from", "tokens"], "the from is not the one|the base is not|targets|with"),
        (["--watch", "words.txt"], "the watch is not the one"),
        (["--warmup", "2"], r"warmup = 0\.5, not 2\.0"),
        (["--clip", "1"], r"clip = 0\.01, not 1\.0"),
        (["--schedule", "cosine"], "schedule = 'linear', not 'cosine'"),
        (["--weight-decay", "0"], r"weight_decay = 0\.1, not 0\.0"),
    ):
        assert main([*words, *wrong, "--resume"]) == 2
        assert re.search(says, capfd.readouterr().err)
    without = words[: words.index("--watch")]
    assert main([*without, "--resume"]) == 2
    assert main([*words, "--resume"]) == 0
    assert tree(here / "out") == whole


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", ["dora", "vera", "ia3", "lora-xs", "adalora", "token-rows", "loha"])
def test_every_kind_of_adapter_that_has_a_file_goes_on(method, here):
    model = load_pretrained("base")
    own = {"vera": {"r": 4}, "token-rows": {"token_indices": [100, 101]}, "ia3": {}}.get(method, {"r": 2})
    attach(model, method, rng=0, **own)
    try:
        peft.save_adapter(model, "start")
    except ValueError:
        pytest.skip("PEFT has no file for it")
    finetune("base", "words.txt", "out", start="start", steps=1, batch=2, length=8)
    before, after = (load_tensors(Path(name, peft.WEIGHTS))[0] for name in ("start", "out"))
    assert before.keys() == after.keys()
    assert json.loads(Path("start", peft.CONFIG).read_text()) == json.loads(Path("out", peft.CONFIG).read_text())


def test_without_a_base_it_is_the_builtin_model_or_what_the_adapter_names(here, capfd):
    words = ["--data", "words.txt", "--steps", "1", "--batch", "2", "--length", "8"]
    for more, base in (([], "builtin"), (["--from", "first"], "base")):
        assert main(["finetune", *words, *more, "--out", f"on {base}"]) == 0
        assert json.loads(Path(f"on {base}", "settings.json").read_text())["base"] == base


@notes
def test_what_a_file_cannot_say_is_told(here, capfd):
    assert main(["finetune", "--base", "base", *DATA, "--out", "pissa", "--init", "pissa"]) == 0
    capfd.readouterr()
    assert main(["finetune", "--from", "pissa", *ON]) == 0
    says = "pissa was trained with init 'pissa'; its file holds a lora of rank 4, and continues as that"
    assert says in capfd.readouterr().err


# ---- --add-tokens ----


@notes
def test_added_tokens_are_saved_with_the_adapter_and_what_generates_and_merges_uses_them(here, capfd):
    tokenizer = read_tokenizer("tokens")
    assert tokenizer.encode("a<fn>→", special=False).tolist() == [97, 256, 258]
    tensors, _ = load_tensors(Path("tokens", peft.WEIGHTS))
    T = tensors["base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"]
    W = load_pretrained("base")["embed.token"].weight.data
    assert T.shape == (3, 16)
    assert not np.allclose(T, W.mean(0))  # they learned
    table = tensors["base_model.model.model.embed_tokens.token_adapter.base_layer.weight"]
    np.testing.assert_allclose(table, np.vstack([W, np.tile(W.mean(0), (3, 1))]), rtol=1e-4)
    generate = ["--prompt", "def <fn>", "--tokens", "12"]
    capfd.readouterr()
    assert main(["generate", "--adapter", "tokens", *generate]) == 0
    assert "3 tokens were added" in capfd.readouterr().err
    assert main(["merge", "--adapter", "tokens", "--out", "merged"]) == 0
    assert main(["generate", "--base", "merged", *generate]) == 0
    ids, (adapted, _) = tokenizer.encode("def <fn>(→x):")[None], load_adapted("base", Path("tokens"))
    assert read_tokenizer("merged").encode("def <fn>(→x):").tolist() == ids[0].tolist()
    np.testing.assert_allclose(load_pretrained("merged").forward(ids)[0], adapted.forward(ids)[0], rtol=1e-4, atol=1e-5)


@notes
def test_a_run_goes_on_from_an_adapter_with_tokens(here, capfd):
    assert main(["finetune", "--from", "tokens", *ON]) == 0
    assert all((here / "out" / name).read_bytes() == (here / "tokens" / name).read_bytes() for name in
               ("tokenizer.json", "tokenizer_config.json"))  # fmt: skip
    histories = [json.loads((here / name / "history.json").read_text()) for name in ("tokens", "out")]
    assert histories[1]["evaluations"][0][1] == pytest.approx(histories[0]["evaluations"][-1][1], rel=1e-6)


@notes
def test_token_rows_alone_learn_the_new_tokens_and_nothing_else(here, capfd):
    words = ["finetune", "--base", "base", "--method", "token-rows", "--add-tokens", "tokens.txt"]
    assert main([*words, "--data", "words.txt", "--steps", "2", "--batch", "2", "--length", "8", "--out", "rows"]) == 0
    config = json.loads(Path("rows", peft.CONFIG).read_text())
    assert (config["peft_type"], config["token_indices"]) == ("TRAINABLE_TOKENS", [256, 257, 258])
    assert main(["generate", "--adapter", "rows", "--prompt", "a", "--tokens", "2"]) == 0


def test_tokens_that_cannot_be_added_are_refused_before_anything_is_made(here, capfd):
    Path("bad.txt").write_text("<a>\ne\n")
    assert main(["finetune", "--base", "base", "--add-tokens", "bad.txt", *DATA, "--out", "out"]) == 2
    assert "'e' is a token already" in capfd.readouterr().err
    words = ["finetune", "--base", "base", "--method", "vera", "--add-tokens", "tokens.txt"]
    assert main([*words, "--data", "words.txt", "--batch", "2", "--length", "8", "--out", "out"]) == 2
    assert "2 variants, token-rows, vera" in capfd.readouterr().err
    assert not Path("out").exists()


# ---- --watch ----


def test_watching_reports_the_loss_of_another_text_and_changes_no_byte_of_the_adapter(here, capfd):
    assert main(["finetune", "--base", "base", *DATA, "--out", "out", "--targets", "q_proj,v_proj", "--watch",
                 "other.txt"]) == 0  # fmt: skip
    assert (here / "out" / peft.WEIGHTS).read_bytes() == (here / "first" / peft.WEIGHTS).read_bytes()
    history = json.loads(Path("out", "history.json").read_text())
    watched = read_watched("other.txt", ByteTokenizer(), 2, 8)
    assert history["watched"][0][1] == pytest.approx(evaluate(load_pretrained("base"), watched.batches()), rel=1e-6)
    assert [step for step, _ in history["watched"]] == [step for step, _ in history["evaluations"]] == [0, 2, 3]
    shown = capfd.readouterr().out
    for _, nats in history["watched"]:
        assert f"; {nats * watched.tokens_per_byte / math.log(2):.3f} bits per byte of other.txt" in shown
    assert Path("out", "forgetting.png").read_bytes().startswith(b"\x89PNG")
    assert not Path("first", "forgetting.png").exists()


def test_a_text_that_cannot_be_watched_is_refused(here, capfd):
    words = ["finetune", "--base", "base", *DATA, "--out", "out", "--watch", "nowhere.txt"]
    assert_refused(here, capfd, words, "nowhere.txt")


# ---- the schedule ----


def test_the_names_of_schedules_are_those_of_the_optimizers_room():
    assert set(SCHEDULES) == optim.SCHEDULES.keys()


@pytest.mark.parametrize("steps", [1, 5, 20, 60, 100, 140, 999])
def test_without_options_a_run_has_the_schedule_that_it_always_had(steps):
    language, classes = LanguageModelSettings(), ClassifierSettings()
    for settings, schedule in (
        (language, optim.cosine_schedule(steps, min(10, steps // 10))),
        (classes, optim.linear_schedule(steps, steps // 20)),
    ):
        found = schedule_for(settings, steps)
        assert [found(t) for t in range(steps)] == [schedule(t) for t in range(steps)]


@pytest.mark.oracle
@pytest.mark.parametrize("name", SCHEDULES)
def test_after_the_warm_up_a_schedule_is_that_of_transformers_by_its_name(name):
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    steps, warmup = 20, 4
    theirs_name = "constant_with_warmup" if name == "constant" else name
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = transformers.get_scheduler(theirs_name, optimizer, warmup, steps)
    ours = schedule_for(LanguageModelSettings(schedule=name, warmup=warmup), steps)
    for t in range(steps):
        if t >= warmup:
            assert ours(t) == pytest.approx(theirs.get_last_lr()[0], abs=1e-12)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs.step()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--schedule", "cosin"], "did you mean 'cosine'"),
        (["--warmup", "1.5"], "'1.5' is not a number of steps, or a share of them below 1"),
        (["--warmup", "9"], "warmup = 9 is more than the 3 steps of the run"),
        (["--clip", "0"], "'0' is not a number above 0"),
        (["--weight-decay", "-1"], "'-1' is not a number from 0 up"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused_in_one_line(words, says, here, capfd):
    assert_refused(here, capfd, ["finetune", "--base", "base", *DATA, "--out", "out", *words], re.escape(says))
