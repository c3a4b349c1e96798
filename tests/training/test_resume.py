"""A run that is killed, stopped or out of disk, and resumed, ends with the bytes of one that never was."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import FINETUNE, WORDS, edit_tensors, lines, make_base, make_inputs, outside, plant, refusing, tree
from small_runs import Killed, bits, interrupting, learner, quietly, tear, undisturbed, watch

from minilora.cli import main
from minilora.files import load_tensors, save_tensors
from minilora.jobs import text
from minilora.nn.optim import SGD, AdamW
from minilora.training import loop

STEPS = 8
RUN = [
    *FINETUNE, "--steps", str(STEPS), "--dropout", "0.1", "--accumulate", "2", "--lr", "0.1",
    "--evaluate-every", "3", "--patience", "9", "--checkpoint-every", "2",
]  # fmt: skip


def go_on(words: list[str] = RUN) -> int:
    """What a person does next: resume if the run had begun, else start it again."""
    return main([*words, *(["--resume"] if Path("out", "settings.json").is_file() else [])])


def life(monkeypatch: pytest.MonkeyPatch, folder: Path, at: int, rng: np.random.Generator) -> bool:
    """Go on in `folder` until event `at`, with a kill there; then `folder` is what was left. Was there a kill?"""
    left, count = folder.with_name("left"), 0

    def hook(event: str) -> None:
        nonlocal count
        count += 1
        if count == at:
            tear(folder, left, unsynced, rng)
            raise Killed

    os.chdir(folder)
    with monkeypatch.context() as patched:
        unsynced = watch(patched, hook)
        try:
            assert go_on() == 0
            return False
        except Killed:
            pass
    shutil.rmtree(folder)
    left.rename(folder)
    return True


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small base and a text in the working directory."""
    monkeypatch.chdir(make_inputs(tmp_path / "here"))
    return tmp_path / "here"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[str]]:
    """A run that nobody disturbed: what it wrote, and its events."""
    files, events = undisturbed(tmp_path_factory.mktemp("whole"), RUN)
    assert events.count("before a batch") == 2 * STEPS
    return files, events


# ---- killed ----


def some_at_once(values, few=2):
    """The first few in the quick run, the rest marked slow."""
    return [value if i < few else pytest.param(value, marks=pytest.mark.slow) for i, value in enumerate(values)]


@pytest.mark.parametrize("i", some_at_once(range(20)))
def test_killed_at_a_random_moment_and_resumed_it_ends_with_the_same_bytes(i, whole, here, monkeypatch):
    rng = np.random.default_rng([1, i])
    written, events = whole
    moments = [at for at, event in enumerate(events, 1) if event.endswith("a batch") == (i % 4 == 0)]
    assert life(monkeypatch, here, int(rng.choice(moments)), rng)  # three in four while a file is written
    assert not life(monkeypatch, here, 0, rng)
    assert tree(here) == written


@pytest.mark.parametrize("i", some_at_once(range(3), 1))
def test_killed_again_and_again_it_ends_with_the_same_bytes(i, whole, here, monkeypatch):
    rng, lives = np.random.default_rng([2, i]), 1
    while life(monkeypatch, here, int(rng.integers(1, 40)), rng):
        lives += 1
    assert lives > 2
    assert tree(here) == whole[0]


@pytest.mark.each_value
@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("at", some_at_once([4, 8, 1, 2, 3, 5, 6, 7]))
def test_after_a_full_disk_it_goes_on_to_the_same_bytes_and_leaves_no_partial_file(
    at, call, whole, here, monkeypatch, capfd
):
    def hook(event: str) -> None:
        nonlocal at
        at -= event == f"before {call}"
        if at == 0:
            at = -1
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        watch(patched, hook)
        assert main(RUN) == 2
    assert len(lines(capfd.readouterr().err)) == 1
    assert not list(here.rglob("*.partial"))
    assert go_on() == 0
    assert tree(here) == whole[0]


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_a_process_killed_at_any_moment_and_resumed_ends_with_the_same_bytes(here):
    """A run that ends before its moment is no kill, and its time the new measure: the machine's speed may change."""
    words, rng = [*RUN, "--steps", "200"], np.random.default_rng(3)
    start = time.perf_counter()
    assert process(words, "whole").wait() == 0
    seconds, written, killed = time.perf_counter() - start, tree(here / "whole"), 0
    for i in range(24):
        start = time.perf_counter()
        running = process(words, f"out{i}")
        try:
            assert running.wait(timeout=rng.uniform(0.1, 1) * seconds) == 0
            seconds = time.perf_counter() - start
        except subprocess.TimeoutExpired:
            running.kill()
            killed += running.wait() == -signal.SIGKILL
        again = ["--resume"] if (here / f"out{i}" / "settings.json").is_file() else []
        assert process([*words, *again], f"out{i}").wait() == 0
        assert tree(here / f"out{i}") == written
        if killed == 8:
            break
    assert killed == 8
    assert not list(here.rglob("*.partial"))


def process(words: list[str], out: str, stderr: int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "minilora", *words, "--out", out]
    return subprocess.Popen(command, env=outside(), stdout=subprocess.DEVNULL, stderr=stderr)


# ---- Ctrl-C ----


@pytest.mark.parametrize(
    ("moment", "done"), [(("before a batch", 1), 1), (("after a batch", 8), 4), (("evaluation", 2), 4)]
)
def test_ctrl_c_finishes_a_step_writes_a_checkpoint_and_says_so(moment, done, whole, here, monkeypatch, capfd):
    with monkeypatch.context() as patched:
        interrupting(patched, moment)
        assert main([*RUN, "--checkpoint-every", "100"]) == 130
    path = os.path.join("out", "checkpoint.safetensors")
    assert lines(capfd.readouterr().err) == [
        f"minilora: stopped after step {done}, which is kept in {path}; the same command with --resume goes on"
    ]
    assert set(tree(here / "out")) == {"settings.json", "checkpoint.safetensors"}
    assert go_on() == 0
    assert tree(here) == whole[0]


def test_a_second_ctrl_c_stops_at_once_and_loses_only_what_the_last_checkpoint_lacks(whole, here, monkeypatch, capfd):
    with monkeypatch.context() as patched:
        interrupting(patched, ("before a batch", 10), ("after a batch", 10))
        assert main(RUN) == 130
    assert len(lines(capfd.readouterr().err)) == 1
    assert go_on() == 0
    assert tree(here) == whole[0]


def test_ctrl_c_before_anything_is_written_leaves_nothing(here, monkeypatch, capfd):
    before = tree(here)
    with monkeypatch.context() as patched:
        patched.setattr(text, "split_file", lambda *_: signal.raise_signal(signal.SIGINT))
        assert main(RUN) == 130
    assert lines(capfd.readouterr().err) == ["minilora: stopped"]
    assert tree(here) == before


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="SIGINT to another process")
def test_ctrl_c_in_a_terminal_stops_a_process_cleanly(here):
    words = [*RUN, "--steps", "2000"]
    running = process(words, "out", stderr=subprocess.PIPE)
    while not (here / "out" / "checkpoint.safetensors").exists():
        time.sleep(0.01)
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=20)
    assert running.returncode == 130
    assert lines(said.decode())[0].startswith("minilora: stopped after step ")
    assert process([*words, "--resume"], "out").wait() == 0
    assert process(words, "whole").wait() == 0
    assert tree(here / "out") == tree(here / "whole")


# ---- what is not resumed ----

SETTINGS = {
    "targets": ["--targets", "q_proj,v_proj"], "rank": ["--rank", "3"], "alpha": ["--alpha", "8"],
    "dropout": ["--dropout", "0.2"], "rslora": ["--rslora"], "steps": ["--steps", "9"],
    "batch": ["--batch", "3"], "length": ["--length", "9"], "accumulate": ["--accumulate", "1"],
    "patience": ["--patience", "8"], "evaluate_every": ["--evaluate-every", "2"], "seed": ["--seed", "1"],
    "shards": ["--shards", "1"],
}  # fmt: skip


@pytest.fixture
def finished(whole: Any, here: Path) -> Path:
    plant(here, whole[0])
    return here


def assert_not_resumed(folder: Path, capfd: Any, words: list[str], *said: str) -> None:
    before = tree(folder)
    assert main([*RUN, *words, "--resume"]) == 2
    (line,) = lines(capfd.readouterr().err)
    assert all(word in line for word in said), line
    assert tree(folder) == before


def test_resuming_a_finished_run_changes_nothing(finished):
    before = tree(finished)
    assert main([*RUN, "--resume"]) == 0
    assert tree(finished) == before


def test_resuming_with_another_setting_is_refused_by_its_name(finished, capfd):
    for name, words in SETTINGS.items():
        assert_not_resumed(finished, capfd, words, f"out was run with {name} = ", "resume with the same settings")


def test_resuming_on_another_text_or_base_under_the_same_name_is_refused(finished, capfd):
    for other in (WORDS[1:], WORDS[:-1] + b"x"):  # the end of a text is held out
        (finished / "words.txt").write_bytes(other)
        assert_not_resumed(finished, capfd, [], "the data is not the one that out was run with")
    (finished / "words.txt").write_bytes(WORDS)
    shutil.rmtree(finished / "base")
    make_base(finished / "base", seed=2)
    assert_not_resumed(finished, capfd, [], "the base is not the one that out was run with")


def test_a_text_and_a_base_are_the_same_under_another_name(finished):
    shutil.copy("words.txt", "copy.txt")
    shutil.copytree("base", "twin")
    before = tree(finished)
    for words in (["--data", "copy.txt"], ["--data", os.path.join(".", "words.txt")], ["--base", "twin"]):
        assert main([*RUN, *words, "--resume"]) == 0
    assert tree(finished) == before


def test_a_run_is_not_begun_again_where_one_is_kept(finished, capfd):
    before = tree(finished)
    assert main(RUN) == 2
    assert "out already holds a run: --resume goes on with it, or choose another folder" in capfd.readouterr().err
    assert tree(finished) == before


# ---- what is found out before the work, and what may be in the way ----


def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def work(*arguments: Any) -> Any:
        raise AssertionError("the work has begun")

    monkeypatch.setattr(loop, "sharded_loss_and_gradients", work)


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run that was stopped after step 4."""
    folder = tmp_path_factory.mktemp("half")
    make_inputs(folder)
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        interrupting(patched, ("after a batch", 8))
        assert main(RUN) == 130
    return tree(folder)


@pytest.fixture
def begun(half: dict[str, Any], here: Path) -> Path:
    plant(here, half)
    return here


def test_a_file_that_appears_during_the_training_costs_nothing_and_stays(whole, here, monkeypatch):
    def hook(event: str) -> None:
        if event == "before a batch":
            Path("out", "thesis.txt").write_bytes(b"years of work")

    with monkeypatch.context() as patched:
        watch(patched, hook)
        assert main(RUN) == 0
    assert tree(here) == whole[0] | {os.path.join("out", "thesis.txt"): b"years of work"}


def test_a_file_of_something_else_does_not_keep_a_run_from_going_on(whole, begun):
    Path("out", "thesis.txt").write_bytes(b"years of work")
    assert main([*RUN, "--resume"]) == 0
    assert tree(begun) == whole[0] | {os.path.join("out", "thesis.txt"): b"years of work"}


def test_what_would_fail_at_the_end_is_found_before_a_run_goes_on(begun, monkeypatch, capfd):
    no_work(monkeypatch)
    with monkeypatch.context() as patched:
        patched.setattr(os, "mkdir", refusing)
        assert_not_resumed(begun, capfd, [], "Permission denied: ", "out")
    Path("out", "adapter_config.json").mkdir()
    name = os.path.join("out", "adapter_config.json")
    assert_not_resumed(begun, capfd, [], f"{name} is a folder, where a file must be written: move it away")


# ---- a folder with settings and no checkpoint ----


@pytest.mark.parametrize("again", [RUN, [*RUN, "--resume"]], ids=["the same command", "with --resume"])
def test_stopped_before_the_first_checkpoint_it_says_so_and_can_be_started_again(
    again, whole, here, monkeypatch, capfd
):
    with monkeypatch.context() as patched:
        interrupting(patched, ("before a batch", 1), ("after a batch", 1))
        assert main(RUN) == 130
    assert lines(capfd.readouterr().err) == ["minilora: stopped before the first checkpoint: start again"]
    assert set(tree(here / "out")) == {"settings.json"}
    assert main(again) == 0
    assert tree(here) == whole[0]


def test_what_blew_up_before_the_first_checkpoint_can_be_started_again_with_other_settings(here, capfd):
    for again in ([], ["--resume"]):
        assert main([*RUN, "--lr", "1e30", "--checkpoint-every", "100", *again]) == 2
        assert lines(capfd.readouterr().err)[-1].endswith("no step is kept: start again, in the same folder")
    assert main(RUN) == 0


# ---- another learning rate ----


def test_a_run_goes_on_at_another_rate_from_the_step_that_is_kept_and_notes_it(whole, begun, capfd):
    settings, history = (Path("out", name) for name in ("settings.json", "history.json"))
    before = json.loads(settings.read_text())
    assert main([*RUN, "--lr", "0.01", "--resume"]) == 0
    assert json.loads(settings.read_text()) == before | {"lr": 0.01, "lr_until_step_4": 0.1}
    losses, others = (json.loads(x)["loss"] for x in (history.read_text(), whole[0][os.path.join("out", history.name)]))
    assert losses[:5] == others[:5]  # the fifth is the loss of what four steps have made
    assert losses[5:] != others[5:]
    written = tree(begun)
    assert main([*RUN, "--lr", "0.01", "--resume"]) == 0
    assert tree(begun) == written
    capfd.readouterr()
    assert_not_resumed(begun, capfd, ["--lr", "0.1"], "out was run with lr = 0.01, not 0.1")  # it is finished


def test_a_run_that_stopped_early_is_finished_and_its_rate_is_not_changed(here, capfd):
    words = [*RUN, "--lr", "1e-12", "--patience", "1", "--evaluate-every", "1"]
    assert main(words) == 0
    assert json.loads(Path("out", "history.json").read_text())["stopped_early"]
    assert main(["info", "out"]) == 0
    assert re.search(rf"\d of {STEPS} steps, stopped early, seed 0", capfd.readouterr().out)
    before = tree(here)
    assert main([*words, "--lr", "0.1", "--resume"]) == 2
    assert "out was run with lr = 1e-12, not 0.1" in capfd.readouterr().err
    assert tree(here) == before


def test_a_rate_that_is_changed_twice_at_one_step_keeps_the_one_that_was_in_force(begun, monkeypatch, capfd):
    with monkeypatch.context() as patched:
        no_work(patched)
        with pytest.raises(AssertionError, match="begun"):
            main([*RUN, "--lr", "9", "--resume"])
    assert main([*RUN, "--lr", "0.01", "--resume"]) == 0
    settings = json.loads(Path("out", "settings.json").read_text())
    assert {key: value for key, value in settings.items() if key.startswith("lr")} == {
        "lr": 0.01, "lr_until_step_4": 0.1,
    }  # fmt: skip


def without_a_moment(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: x for name, x in tensors.items() if not name.startswith("optimizer.m.block_0.attention.q_proj")}


def misshapen_moments(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: x.T if name.startswith("optimizer.m") else x for name, x in tensors.items()}


def without_a_best(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: x for name, x in tensors.items() if not name.startswith("best.block_0.attention.q_proj")}


def edited(change: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        tensors, metadata = load_tensors(path)
        save_tensors(path, change(tensors), metadata)

    return damage


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "empty": lambda path: path.write_bytes(b""),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "one byte short": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "another header": lambda path: path.write_bytes(path.read_bytes()[:9] + b"X" + path.read_bytes()[10:]),
    "no settings": lambda path: save_tensors(path, load_tensors(path)[0], {"minilora": '{"t": 0, "history": {}}'}),
    "no note": lambda path: edit_tensors(path, lambda tensors: tensors),
    "a note of something else": lambda path: save_tensors(path, load_tensors(path)[0], {"minilora": "{}"}),
    "a note that is no JSON": lambda path: save_tensors(path, load_tensors(path)[0], {"minilora": "x"}),
    "a missing moment": edited(without_a_moment),
    "misshapen moments": edited(misshapen_moments),
    "a missing best": edited(without_a_best),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_refused_in_one_line_and_left_as_it_is(damage, finished, capfd):
    DAMAGES[damage](finished / "out" / "checkpoint.safetensors")
    assert_not_resumed(finished, capfd, [], os.path.join("out", "checkpoint.safetensors"))


def test_a_checkpoint_of_other_parameters_or_another_optimizer_is_refused_and_the_model_left_as_it_was(tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    quietly(learner(), checkpoint=path)
    good = path.read_bytes()

    other = learner()
    other["block_0.attention.q_proj"].lora_A.trainable = False
    momentum = learner()
    sgd = SGD(momentum.trainable_parameters(), momentum=0.9)
    for model, optimizer in ((other, None), (momentum, sgd)):
        before = bits(model)
        with pytest.raises(ValueError, match=r"checkpoint\.safetensors"):
            quietly(model, checkpoint=path, resume=True, optimizer=optimizer)
        assert bits(model) == before
    assert path.read_bytes() == good


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "seed": ({"seed": 1}, "seed = 0, not 1"),
    "more steps": ({"steps": 9}, "steps = 6, not 9"),
    "fewer steps": ({"steps": 3}, "steps = 6, not 3"),
    "accumulate": ({"accumulate": 2}, "accumulate = 1, not 2"),
    "clip": ({"clip": 2}, "clip = 1.0, not 2.0"),
    "shards": ({"shards": 2}, "shards = 1, not 2"),
    "betas": ({"optimizer": partial(AdamW, betas=(0.9, 0.99))}, r"betas = \[0.9, 0.999\], not \[0.9, 0.99\]"),
    "eps": ({"optimizer": partial(AdamW, eps=1e-6)}, "eps = 1e-08, not 1e-06"),
    "weight decay": ({"optimizer": partial(AdamW, weight_decay=0.1)}, r"weight_decay = \[0.0\], not \[0.1\]"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_checkpoint_of_another_run_is_refused_by_what_differs_and_the_model_left_as_it_was(name, tmp_path):
    (changed, says), model, path = OTHERS[name], learner(), tmp_path / "checkpoint.safetensors"
    quietly(learner(), checkpoint=path, steps=6, seed=0)
    before, good = bits(model), path.read_bytes()
    options = {"steps": 6, "seed": 0, **changed}
    if "optimizer" in options:
        options["optimizer"] = options["optimizer"](model.trainable_parameters())
    with pytest.raises(ValueError, match=f"is not a checkpoint of this run: it was started with {says}"):
        quietly(model, checkpoint=path, resume=True, **options)
    assert bits(model) == before
    assert path.read_bytes() == good


def test_a_run_may_go_on_at_another_rate(tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    quietly(learner(), checkpoint=path, lr=0.1)
    quietly(learner(), checkpoint=path, lr=0.01, resume=True)


def test_a_checkpoint_is_never_overwritten_by_a_run_that_did_not_ask_to_resume(tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    quietly(learner(), checkpoint=path)
    good = path.read_bytes()
    with pytest.raises(ValueError, match="is there already: resume, or choose another place"):
        quietly(learner(), steps=9, checkpoint=path)
    assert path.read_bytes() == good
