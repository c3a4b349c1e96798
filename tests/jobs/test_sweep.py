"""A sweep: its cells, which are runs of finetune, its report, and a sweep that is killed and resumed."""

import itertools
import json
import math
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import examples
import fakecupy
import joblib
import numpy as np
import pytest
from commands import WORDS, assert_refused, lines, make_base, make_inputs, outside, plant, promised, subparsers, tree
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from reports import in_color, rows_of
from reports import sweep_report as made_up
from small_runs import Killed, interrupting, tear, undisturbed, watch

from minilora.cli import main
from minilora.display import plots
from minilora.files import load_tensors
from minilora.jobs import finetuning, language_model, sweep
from minilora.jobs.settings import ClassifierSettings, LanguageModelSettings
from minilora.jobs.sweep_figure import rank_losses, sweep_figure
from minilora.jobs.sweep_report import print_sweep

CELL = [
    "--base", "base", "--data", "words.txt", "--steps", "2", "--batch", "8", "--length", "16", "--lr", "0.05",
    "--evaluate-every", "1", "--checkpoint-every", "1", "--dropout", "0.1",
]  # fmt: skip
SWEEP = ["sweep", *CELL, "--ranks", "1,2,3", "--seeds", "2", "--jobs", "1", "--out", "out"]
SWEEP_JSON, SWEEP_PNG = (os.path.join("out", name) for name in ("sweep.json", "sweep.png"))


@pytest.fixture(autouse=True, scope="module")
def _a_quick_figure() -> Iterator[None]:
    """Drawing takes longer than a small sweep, and is tested by itself."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sweep, "sweep_figure", lambda report, title: title.encode())
        yield


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small base and a text in the working directory."""
    monkeypatch.chdir(make_inputs(tmp_path / "here"))
    return tmp_path / "here"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[str]]:
    """A sweep that nobody disturbed: what it wrote, and its events."""
    return undisturbed(tmp_path_factory.mktemp("whole"), SWEEP)


@pytest.fixture
def finished(whole: Any, here: Path) -> Path:
    """The same in the working directory, to damage at will."""
    plant(here, whole[0])
    return here


# ---- what a sweep makes ----


def test_a_cell_is_a_run_of_finetune_on_one_thread(whole, here):
    words = ["finetune", *CELL, "--rank", "2", "--seed", "1", "--shards", "1", "--out", "alone"]
    assert main(words) == 0
    for name, content in tree(here / "alone").items():
        assert whole[0][os.path.join("out", "rank-2", "seed-1", name)] == content


CLASSIFYING = {"text", "label", "skip_empty", "held_out", "epochs", "l1", "l2"}
NEW = {"start", "add_tokens", "watch"}  # of one run alone, --from among them


def test_finetune_and_sweep_take_the_same_options_with_the_same_defaults():
    finetune, grid = (
        {action.dest: action for action in subparsers()[command]._actions} for command in ("finetune", "sweep")
    )
    assert finetune.keys() - grid.keys() == {"task", "rank", "seed", *NEW, *CLASSIFYING}
    assert grid.keys() - finetune.keys() == {"ranks", "methods", "seeds", "jobs", "cluster"}
    both = finetune.keys() & grid.keys()
    of_from = {"base"}  # None there, which is what the adapter of --from names, or builtin: test_going_on.py
    assert {name for name in both if finetune[name].default != grid[name].default} == {"shards"} | of_from
    for name in ("jobs", "cluster", "shards", "threads"):
        assert grid[name].default == sweep.sweep.__kwdefaults__[name]


@pytest.mark.parametrize("task", [ClassifierSettings, LanguageModelSettings])
def test_every_option_of_a_run_is_declared_once_and_its_help_says_its_default(task):
    offered = {action.dest: action for action in subparsers()["finetune"]._actions}
    for option in fields(task):
        assert option.name in offered
        said = re.search(r"\(default (\S+)\)", offered[option.name].help)
        to_classify = re.search(r"; to classify (\S+)", offered[option.name].help)
        if task is ClassifierSettings and to_classify:
            assert option.default == float(to_classify[1])
        elif said:
            assert str(option.default) == said[1] or option.default == float(said[1])


def test_the_report_says_what_the_cells_hold(finished):
    out = finished / "out"
    assert {path.name for path in out.iterdir() if path.is_file()} == promised("sweep")
    report = json.loads((out / "sweep.json").read_text())
    assert [row["rank"] for row in report["ranks"]] == report["settings"]["ranks"] == [1, 2, 3]
    for row in report["ranks"]:
        losses = []
        for i, seed in enumerate(row["seeds"]):
            cell = out / f"rank-{row['rank']}" / f"seed-{i}"
            history = json.loads((cell / "history.json").read_text())
            evaluations = {step: nats / math.log(2) for step, nats in history["evaluations"]}
            assert evaluations.pop(0) == report["base_bits_per_byte"]
            assert len(evaluations) == 2
            assert seed == {
                "bits_per_byte": min(evaluations.values()),
                "at_step": min(evaluations, key=lambda step: evaluations[step]),
                "steps": len(history["loss"]),
            }
            losses.append(seed["bits_per_byte"])
            tensors, _ = load_tensors(cell / "adapter_model.safetensors")
            assert row["trainable"] == sum(x.size for x in tensors.values())
            cell_settings = json.loads((cell / "settings.json").read_text())
            assert (cell_settings.pop("rank"), cell_settings.pop("seed")) == (row["rank"], i)
            assert report["settings"] == cell_settings | {"ranks": [1, 2, 3], "seeds": 2}
        assert row["mean"] == pytest.approx(np.mean(losses), rel=1e-12)
        assert row["standard_error"] == pytest.approx(np.std(losses, ddof=1) / math.sqrt(2), rel=1e-12)
    assert report | sweep.choose(report["ranks"]) == report


def test_the_order_of_ranks_the_number_of_jobs_and_threads_instead_of_processes_change_no_byte(whole, here, capfd):
    with joblib.parallel_config(backend="threading"):
        assert main([*SWEEP, "--ranks", "3,1,2", "--jobs", "3"]) == 0
    assert tree(here) == whole[0]
    assert lines(capfd.readouterr().err) == []


@pytest.mark.slow
def test_processes_change_no_byte_and_a_file_gets_no_bars(here, monkeypatch):
    monkeypatch.setattr(language_model, "SAMPLE", 48)  # as theirs
    assert main(SWEEP) == 0
    expected = tree(here)
    shutil.rmtree(here / "out")
    command = [sys.executable, "-m", "minilora", *SWEEP, "--jobs", "2"]
    done = subprocess.run(command, capture_output=True, env=outside())
    assert (done.returncode, done.stderr) == (0, b"")
    made = tree(here)
    assert made.pop(SWEEP_PNG).startswith(b"\x89PNG\r\n\x1a\n")
    assert made == {name: content for name, content in expected.items() if name != SWEEP_PNG}


def test_a_device_gives_the_same_files(whole, here, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", fakecupy)
    assert main([*SWEEP, "--ranks", "2", "--seeds", "1", "--device", "cuda"]) == 0
    for name, content in tree(here / "out" / "rank-2").items():
        assert whole[0][os.path.join("out", "rank-2", name)] == content


# ---- killed, stopped, resumed, extended ----


def go_on(words: list[str] = SWEEP) -> list[str]:
    """What a person types next: the same with --resume if a cell had begun."""
    return [*words, *(["--resume"] if list(Path().glob("out/rank-*/seed-*/settings.json")) else [])]


@pytest.mark.parametrize("i", [0, 1, *(pytest.param(i, marks=pytest.mark.slow) for i in range(2, 12))])
def test_killed_at_any_moment_and_resumed_it_ends_with_the_same_bytes(i, whole, here, monkeypatch):
    rng, count, left = np.random.default_rng([4, i]), itertools.count(1), here.with_name("left")
    written, events = whole
    at = int(rng.integers(1, len(events) + 1))

    def hook(event: str) -> None:
        if next(count) == at:
            tear(here, left, unsynced, rng)
            raise Killed

    with monkeypatch.context() as patched:
        unsynced = watch(patched, hook)
        with pytest.raises(Killed):
            main(SWEEP)
    shutil.rmtree(here)
    left.rename(here)
    os.chdir(here)
    assert main(go_on()) == 0
    assert tree(here) == written


def test_ctrl_c_keeps_what_is_done_and_says_how_to_go_on(whole, here, monkeypatch, capfd):
    with monkeypatch.context() as patched:
        interrupting(patched, ("before a batch", 4))
        assert main(SWEEP) == 130
    assert lines(capfd.readouterr().err) == [
        "minilora: stopped; what is done is kept in out; the same command with --resume goes on"
    ]
    assert sorted(path.name for path in (here / "out").glob("*/*")) == ["seed-0", "seed-1"]
    assert main(go_on()) == 0
    assert tree(here) == whole[0]


def test_ctrl_c_before_any_cell_has_begun_leaves_nothing(here, monkeypatch, capfd):
    before = tree(here)
    monkeypatch.setattr(finetuning, "base_hash", lambda *_: signal.raise_signal(signal.SIGINT))
    assert main(SWEEP) == 130
    assert lines(capfd.readouterr().err) == ["minilora: stopped"]
    assert tree(here) == before


def test_ranks_and_seeds_can_be_added_to_a_sweep(whole, here):
    assert main([*SWEEP, "--ranks", "2", "--seeds", "1"]) == 0
    assert main([*SWEEP, "--resume"]) == 0
    assert tree(here) == whole[0]


def test_resuming_a_finished_sweep_changes_nothing(whole, finished):
    assert main([*SWEEP, "--resume"]) == 0
    assert tree(finished) == whole[0]


LONG = [*SWEEP, "--jobs", "2", "--steps", "800", "--evaluate-every", "800", "--checkpoint-every", "20"]


def process(words: list[str]) -> subprocess.Popen[str]:
    command, pipe = [sys.executable, "-m", "minilora", *words], subprocess.PIPE
    return subprocess.Popen(command, env=outside(), stdout=pipe, stderr=pipe, text=True, start_new_session=True)


def complete(words: list[str]) -> None:
    running = process(words)
    _, err = running.communicate()
    assert (running.returncode, err) == (0, "")


def wait_for(path: Path) -> None:
    while not path.exists():
        time.sleep(0.01)


def kill_all(running: subprocess.Popen[str]) -> None:
    os.killpg(running.pid, signal.SIGKILL)


def kill_parent(running: subprocess.Popen[str]) -> None:
    running.kill()


def ctrl_c(running: subprocess.Popen[str]) -> None:
    os.killpg(running.pid, signal.SIGINT)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_processes_killed_or_stopped_at_any_moment_and_resumed_end_with_the_same_bytes(here):
    rng = np.random.default_rng(5)
    complete(LONG)
    written = tree(here / "out")
    for how, code in ((kill_all, -signal.SIGKILL), (kill_parent, -signal.SIGKILL), (ctrl_c, 130)):
        shutil.rmtree(here / "out")
        running = process(LONG)
        cell = here / "out" / f"rank-{rng.integers(1, 3)}" / f"seed-{rng.integers(2)}"  # rank 3 is still to come
        wait_for(cell / "checkpoint.safetensors")
        time.sleep(rng.uniform(0, 0.5))
        how(running)
        out, err = running.communicate(timeout=20)  # reads to the end of the pipe: the workers are gone, too
        assert running.returncode == code
        assert "Bits per byte" not in out  # the table of the data is there, and no result
        if how is ctrl_c:
            assert lines(err) == [
                "minilora: stopped; what is done is kept in out; the same command with --resume goes on"
            ]
        assert not (here / "out" / "sweep.json").exists()
        complete(go_on(LONG))
        assert tree(here / "out") == written


def test_cells_without_a_checkpoint_can_be_begun_with_other_settings(whole, here):
    assert main([*SWEEP, "--lr", "1e30", "--steps", "6", "--evaluate-every", "9", "--checkpoint-every", "9"]) == 2
    assert not list((here / "out").rglob("checkpoint.safetensors"))
    assert main([*SWEEP, "--resume"]) == 0
    assert tree(here) == whole[0]


# ---- cells that fail ----


def test_a_cell_that_fails_is_reported_its_rank_not_compared_and_the_others_go_on(whole, here, monkeypatch, capfd):
    calls, attach = itertools.count(-2), finetuning.attach_variant  # the first three are the checks of the ranks

    def poisoned(model: Any, *arguments: Any, **options: Any) -> list[str]:
        paths = attach(model, *arguments, **options)
        if next(calls) == 4:  # of the cells rank 1, 1, 2, 2, 3, 3
            model[paths[2]].lora_A.data = model[paths[2]].lora_A.data * np.float32(np.nan)
        return paths

    with monkeypatch.context() as patched:
        patched.setattr(finetuning, "attach_variant", poisoned)
        assert main(SWEEP) == 0
    failed = "the loss of step 1 is nan, first in block_0.attention.v_proj"
    said = " ".join(capfd.readouterr().out.split())
    assert f"rank 2, seed 1, failed: {failed}. A rank with a failed seed is not compared." in said
    report, before = json.loads((here / SWEEP_JSON).read_text()), json.loads(whole[0][SWEEP_JSON])
    lucky = before["ranks"][1]["seeds"][0]
    assert report["ranks"][1] == before["ranks"][1] | {
        "seeds": [lucky, {"failed": failed}], "mean": None, "standard_deviation": None, "standard_error": None,
    }  # fmt: skip
    assert report["ranks"][::2] == before["ranks"][::2]
    assert report["base_bits_per_byte"] == before["base_bits_per_byte"]
    assert {report["best"], report["chosen"], *report["pareto"]} <= {1, 3}
    assert main([*SWEEP, "--resume"]) == 0  # the failed cell is tried again
    assert tree(here) == whole[0]


@pytest.mark.parametrize(
    ("steps", "failed"),
    [("6", r"the loss of step \d is nan, first in \S+"), ("1", "the validation loss of step 1 is nan")],
)
def test_when_no_rank_finishes_it_is_one_line_and_a_report_of_the_failures(steps, failed, here, capfd):
    assert main([*SWEEP, "--lr", "1e30", "--steps", steps, "--evaluate-every", "9"]) == 2
    out, err = capfd.readouterr()
    assert [
        line for line in out.splitlines() if "to learn from" in line or line[:1] not in "┏┃┡│└"
    ] == out.splitlines()[3:4]
    (line,) = lines(err)
    assert re.fullmatch(
        f"minilora: no rank finished with every seed; rank 1, seed 0, failed: {failed}: lower the learning rate", line
    )
    report = json.loads((here / "out" / "sweep.json").read_text())
    assert all(re.fullmatch(failed, seed["failed"]) for row in report["ranks"] for seed in row["seeds"])
    assert (report["best"], report["chosen"], report["pareto"]) == (None, None, [])
    assert not (here / "out" / "sweep.png").exists()


# ---- bad input ----

BAD = {
    "a rank that is no number": (["--ranks", "1,x"], "ranks: 'x' is not a whole number above 0"),
    "half a rank": (["--ranks", "1,2.5"], "ranks: '2.5' is not a whole number above 0"),
    "rank 0": (["--ranks", "0,1"], "ranks: '0' is not a whole number above 0"),
    "no rank": (["--ranks", ""], "ranks: '' is not a whole number above 0"),
    "a rank twice": (["--ranks", "1,2,1"], r"ranks \[1, 1, 2\], .* give each rank once"),
    "no seed": (["--seeds", "0"], "seeds: '0' is not a whole number above 0"),
    "no job": (["--jobs", "0"], "jobs: '0' is not a whole number above 0"),
    "a text too short": (["--batch", "999"], "tokens are less than one batch of 999 windows of 16"),
    "no text": (["--data", "nowhere.txt"], "No such file or directory: nowhere.txt"),
    "no base": (["--base", "nowhere"], "no folder or file 'nowhere'"),
    "no such target": (["--targets", "q_prox"], "no layer is called 'q_prox'"),
    "windows too long": (["--length", "33"], "windows of 33 tokens are longer than the model's 32 positions"),
    "out is taken": (["--out", "base"], r"base already holds config\.json: choose another folder"),
    "out is a file": (["--out", "words.txt"], r"words\.txt is a file: choose another folder"),
    "out is below a file": (["--out", "words.txt/out"], r"words\.txt"),
    "nothing to resume": (["--resume"], "out holds no cell of this sweep to resume: start it without --resume"),
    "no GPU": (["--device", "cuda"], "CuPy"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_in_one_line_before_anything_is_made(name, here, capfd, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    words, says = BAD[name]
    assert_refused(here, capfd, [*SWEEP, *words], says)


def test_a_missing_joblib_is_one_line_that_says_what_to_install(here, capfd, monkeypatch):
    monkeypatch.setitem(sys.modules, "joblib", None)
    assert_refused(here, capfd, SWEEP, r"a sweep needs joblib: pip install '\.\[sweep\]' in the clone$")


@pytest.mark.parametrize("numbers", [{"ranks": []}, {"seeds": 0}, {"jobs": 0}, {"threads": 0}])
def test_from_python_too_there_is_at_least_one_rank_seed_job_and_thread(numbers, here):
    with pytest.raises(ValueError, match="at least one of each"):
        sweep.sweep("base", "words.txt", "out", **{"ranks": [1], "seeds": 1, **numbers})


OTHER: dict[str, tuple[list[str], str]] = {
    "lr": (["--lr", "0.1"], r"seed-\d was run with lr = 0.05, not 0.1: resume with the same settings"),
    "shards": (["--shards", "2"], "was run with shards = 1, not 2"),
    "steps, and a rank before the others": (["--steps", "3", "--ranks", "1,2,3,4"], "was run with steps = 2, not 3"),
    "text": ([], r"the data is not the one that out.rank-\d.seed-\d was run with"),
    "base": ([], r"the base is not the one that out.rank-\d.seed-\d was run with"),
}


@pytest.mark.parametrize("name", OTHER)
def test_resuming_with_other_settings_is_refused_before_any_cell_starts(name, finished, capfd):
    words, says = OTHER[name]
    shutil.rmtree(finished / "out" / "rank-1")  # a cell that could start
    if name == "text":
        (finished / "words.txt").write_bytes(WORDS[1:])
    if name == "base":
        shutil.rmtree(finished / "base")
        make_base(finished / "base", seed=2)
    assert_refused(finished, capfd, [*SWEEP, *words, "--resume"], says)


def test_a_sweep_that_did_not_ask_to_resume_leaves_another_as_it_was(finished, capfd):
    assert_refused(finished, capfd, SWEEP, "out already holds a sweep: --resume goes on with it, or choose")


# ---- the choice ----

losses = st.floats(0.5, 8)


@settings(max_examples=examples.count(30), deadline=None)
@given(st.lists(st.dictionaries(st.integers(0, 99), losses, min_size=2), min_size=1, max_size=6))
def test_a_rank_has_the_mean_and_spread_of_the_lowest_losses_after_training_began(curves):
    curves = [curve | {0: 0.1} for curve in curves]  # the base is better than all of them: it does not count
    row = sweep.summary(curves)
    best = [min(loss for step, loss in curve.items() if step) for curve in curves]
    assert [seed["bits_per_byte"] for seed in row["seeds"]] == best
    assert all(curve[seed["at_step"]] == loss for curve, seed, loss in zip(curves, row["seeds"], best, strict=True))
    assert [seed["steps"] for seed in row["seeds"]] == list(map(max, curves))
    assert row["mean"] == pytest.approx(np.mean(best))
    if len(best) == 1:
        assert row["standard_deviation"] is row["standard_error"] is None
    else:
        assert row["standard_deviation"] == pytest.approx(np.std(best, ddof=1), abs=1e-12)
        assert row["standard_error"] == pytest.approx(statistics.stdev(best) / len(best) ** 0.5, abs=1e-12)


@settings(max_examples=examples.count(60), deadline=None)
@given(st.lists(st.none() | st.sampled_from([2.0, 2.1, 2.3, 2.35, 3.0]), min_size=1, max_size=7), st.data())
def test_the_choice_is_within_one_standard_error_of_the_best_and_no_smaller_rank_matches_one_of_the_pareto_set(
    means, data
):
    errors = data.draw(st.lists(st.sampled_from([0.0, 0.15, 0.4]), min_size=len(means), max_size=len(means)))
    found = sweep.choose(rows_of(means, errors))
    known = {2**i: mean for i, mean in enumerate(means) if mean is not None}
    if not known:
        assert found == {"best": None, "chosen": None, "pareto": []}
        return
    bound = min(known.values()) + errors[found["best"].bit_length() - 1]
    assert known[found["best"]] == min(known.values())
    assert min(rank for rank, mean in known.items() if mean <= bound) == found["chosen"]
    assert set(known) - set(found["pareto"]) == {
        rank for rank, mean in known.items() if any(other < rank and known[other] <= mean for other in known)
    }
    assert {found["best"], found["chosen"]} <= set(found["pareto"])


@pytest.mark.parametrize(
    ("means", "error", "seeds", "said"),
    [
        ([2.5, 2.2, 2.1, 2.15], 0.2, 2, "Rank 2 is the smallest within one standard error of the best, rank 4."),
        ([2.5, 2.2, 2.1, 2.15], 0.2, 2, "That error is 0.2000 bits per byte, of 2 seeds; .* Breiman et al"),
        ([2.5, 2.2, 2.1, 2.15], 0.05, 2, "Rank 4 did best, and no smaller one is within one standard error of it."),
        ([2.1, 2.2], 0.05, 2, "Rank 1 did best, and is the smallest that was tried."),
        ([2.5, 2.1], 0.05, 2, "The best is the largest that was tried: a larger one may do better."),
        ([2.5, 2.1, None], 0.05, 2, "rank 4, seed 1, failed: x. A rank with a failed seed is not compared."),
        ([3.5, 3.1], 0.05, 2, "But no rank does better than the base"),
        ([2.5, 2.1], None, 1, "Rank 2 did best, with one seed and so without a spread. Nothing says"),
    ],
)
def test_the_words_follow_the_numbers(means, error, seeds, said, capsys):
    report = made_up(means, error, seeds)
    print_sweep(report, "somewhere")
    shown = " ".join(capsys.readouterr().out.split())
    assert re.search(said, shown), shown
    assert ("standard error of" in shown) == (seeds > 1 and report["best"] != 1)


# ---- what `minilora info` says of it ----


def test_info_says_of_a_sweep_what_was_tried_and_found_and_of_one_that_was_stopped_how_far_it_is(here, capfd):
    words = ["--base", "base", "--data", "words.txt", "--out", "out", "--ranks", "1,2", "--seeds", "1", "--jobs", "1"]
    assert main(["sweep", *words, "--steps", "2", "--batch", "2", "--length", "8"]) == 0
    capfd.readouterr()
    assert main(["info", "out"]) == 0
    said = capfd.readouterr().out
    assert re.search("sweep +ranks 1, 2, 1 seed of each\n", said)
    assert re.search(r"found +Rank \d did best", said)
    assert re.search(r"on +words\.txt, 2 steps in a run", said)
    (here / "out" / "sweep.json").unlink()
    (here / "out" / "rank-2" / "seed-0" / "checkpoint.safetensors").unlink()
    assert main(["info", "out"]) == 0
    assert re.search("sweep +stopped, 1 of 2 cells that were begun are done", capfd.readouterr().out)
    (here / "out" / "sweep.json").write_text('{"ranks": 3}')
    assert main(["info", "out"]) == 2
    assert "sweep.json is not of a sweep" in capfd.readouterr().err


# ---- the figure ----


@pytest.mark.slow
@pytest.mark.parametrize(("error", "seeds"), [(None, 1), (0.07, 2)])
def test_the_figure_is_a_png_with_all_that_it_shows(error, seeds):
    colors = [plots.BASE, plots.FULL, plots.LORA]  # the base, the frontier, the means
    band = "#f9e7de"  # LORA, faint on white: within one standard error of the best
    png = sweep_figure(made_up([2.5, 2.2, 2.25], error, seeds), "a title")
    assert in_color(png, [*colors, band]) == [True] * 3 + [seeds > 1]


def test_a_bar_is_one_standard_error_up_and_down_and_the_frontier_goes_through_the_pareto_set():
    rows = rows_of([2.5, 2.6, 2.2], [0.07, 0.03, 0.01])
    ax = Figure().subplots()
    rank_losses(ax, rows, [1, 4])
    (bars,) = ax.containers
    assert "± one standard error" in bars.get_label()
    ends = [segment[:, 1] for segment in bars.lines[2][0].get_segments()]
    np.testing.assert_allclose(ends, [[2.43, 2.57], [2.57, 2.63], [2.19, 2.21]])
    np.testing.assert_allclose(ax.lines[0].get_xydata(), [[100, 2.5], [400, 2.2]])
    assert ax.lines[0].get_drawstyle() == "steps-post"
    assert ax.get_xscale() == "log"


def test_one_seed_has_no_bar():
    ax = Figure().subplots()
    rank_losses(ax, made_up([2.5, 2.2], None, 1)["ranks"], [1, 2])
    (points,) = ax.containers
    assert not points.has_yerr
    assert points.get_label() == "one seed"
