"""The main job: what it reports, what it draws, and what holds in a real run."""

import json
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import SMALL, WORDS, outside, promised, tree
from reports import demo_report as made_up
from reports import in_color

from minilora.adapters.lora import LoRALinear
from minilora.adapters.peft import load_adapter
from minilora.cli import main
from minilora.data import Split, excerpts
from minilora.jobs import demo, pretraining
from minilora.jobs.demo_figure import report_figure
from minilora.jobs.pretraining import bits_per_byte
from minilora.models.config import Config
from minilora.models.families.llama import llama
from minilora.models.pretrained import load_pretrained
from minilora.models.transformer import Transformer

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.mark.slow
def test_the_figure_of_a_report_is_a_png_with_three_colours_on_it():
    png = report_figure(made_up())
    assert png.startswith(PNG)
    width, height = struct.unpack(">II", png[16:24])
    assert width > 1200
    assert height > 400
    assert in_color(png, ["#8a8a8a", "#1f5fa8", "#d9621d"]) == [True] * 3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, "On test text, LoRA closed 80% of full fine-tuning's gain with 8.0% of the parameters"),
        ({}, "shrank 12-fold"),
        ({}, "are bit for bit those of the file"),
        ({"frozen_unchanged": False}, "HAVE CHANGED"),
        ({"unmerge": {"bit_exact": False}}, "DID NOT restore the base"),
    ],
)
def test_the_words_follow_the_report(change, said, capsys):
    demo.print_report(made_up() | change, "somewhere")
    assert said in " ".join(capsys.readouterr().out.split())


def test_each_rate_is_the_best_of_its_grid_and_inside_it():
    grid = json.loads(demo.GRID.read_text())
    for name, tried in grid["bits_per_byte"].items():
        rates = sorted(map(float, tried))
        assert rates == demo.RATES[name]
        assert grid["best"][name] == float(min(tried, key=tried.get))
        assert rates[0] < grid["best"][name] < rates[-1]


# ---- all of it, on a model that is small ----


def small(source: Any = "builtin") -> Transformer:
    return llama(Config(**SMALL | {"d_model": 32, "d_ff": 64}), np.random.default_rng(1))


@pytest.fixture
def _small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(demo, "report_figure", lambda report: PNG)  # which is tested by itself
    split = Split(WORDS, WORDS[:400], WORDS[:600])
    monkeypatch.setattr(demo, "python_source", lambda: split)
    monkeypatch.setattr(pretraining, "english", lambda: split)
    for name, value in {"load_pretrained": small, "STEPS": 8, "BATCH": 4, "LENGTH": 16}.items():
        monkeypatch.setattr(demo, name, value)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("_small")
def test_a_small_demo_writes_what_help_promises_and_the_same_adapter_again_over_its_own_output(capsys):
    assert main(["demo", "--out", "out"]) == 0
    first = tree(Path("out"))
    assert set(first) == promised("demo")
    report = json.loads(first["report.json"])
    assert_sound(report)
    assert f"{report['lora']['trainable']:,}" in capsys.readouterr().out
    assert main(["demo", "--out", "out"]) == 0
    again = tree(Path("out"))
    assert set(again) == set(first)
    assert again["adapter_model.safetensors"] == first["adapter_model.safetensors"]
    model = small()
    load_adapter(model, "out")
    held_out = excerpts(demo.python_source().test, demo.EXCERPT)
    assert bits_per_byte(model, held_out, 1, "") == report["target"]["bits_per_byte"]["lora"]


@pytest.mark.usefixtures("_small")
def test_a_demo_never_replaces_an_adapter_that_is_not_its_own(capfd):
    Path("out").mkdir()
    for name in demo.FILES[2:]:
        Path("out", name).write_text("weeks of training")
    before = tree(Path("out"))
    assert main(["demo", "--out", "out"]) == 2
    assert "out already holds adapter_config.json: choose another folder" in capfd.readouterr().err
    assert tree(Path("out")) == before


@pytest.mark.usefixtures("_small")
def test_a_demo_that_is_stopped_says_nothing_that_it_cannot_do(monkeypatch, capfd):
    def windows(*arguments):
        def at(step):
            if step == 2:
                signal.raise_signal(signal.SIGINT)
            return random_windows(*arguments)(step)

        return at

    random_windows = demo.random_windows
    monkeypatch.setattr(demo, "random_windows", windows)
    for words in (["demo"], ["demo", "--grid"]):
        assert main([*words, "--out", "out"]) == 130
        assert capfd.readouterr().err.rpartition("\r")[2] == "minilora: stopped after step 3\n"
    assert not Path("out").exists()


@pytest.mark.usefixtures("_small")
def test_a_search_writes_the_rate_that_was_best_for_each_method(monkeypatch):
    monkeypatch.setattr(demo, "RATES", {"full": [1e-3, 1e-2], "lora": [1e-9, 1e-2]})
    assert main(["demo", "--grid", "--out", "out"]) == 0
    assert set(tree(Path("out"))) == {"grid.json"}
    grid = json.loads(Path("out", "grid.json").read_text())
    for name, tried in grid["bits_per_byte"].items():
        assert grid["best"][name] == float(min(tried, key=tried.get))
    assert grid["best"]["lora"] == 1e-2


def assert_sound(report: dict[str, Any]) -> None:
    """What holds whatever the model and however long it learned."""
    lora, full, target = report["lora"], report["full"], report["target"]["bits_per_byte"]
    assert lora["trainable"] == lora["by_formula"] < full["trainable"] == report["base"]["params"]
    assert lora["share_of_gain"] == pytest.approx((target["base"] - target["lora"]) / (target["base"] - target["full"]))
    assert (lora["rank"], len(lora["targets"])) == (demo.RANK, 7)
    assert lora["memory"]["optimizer"] == 2 * lora["memory"]["gradients"] == 8 * lora["trainable"]
    assert full["memory"]["optimizer"] == 2 * full["memory"]["gradients"] == 8 * full["trainable"]
    assert len(lora["curve"]["train"]) == len(full["curve"]["train"]) == report["steps"]
    assert report["frozen_unchanged"] is True
    assert report["unmerge"]["bit_exact"] is True
    assert report["merge"]["max_abs_diff"] < 1e-5 * report["merge"]["max_abs_logit"]
    assert report["gradcheck"]["ok"] is True
    assert report["gradcheck"]["worst_relative_error"] < 1e-7
    assert report["rank"]["lora"]["effective_rank"] <= demo.RANK < len(report["rank"]["lora"]["mean_spectrum"]) + 1
    assert report["seconds"] > 0


# ---- the real one ----


@pytest.mark.slow
def test_the_demo_shows_in_a_minute_what_lora_can_do(tmp_path):
    command = [sys.executable, "-m", "minilora", "demo", "--out", str(tmp_path / "out")]
    start, used = time.perf_counter(), children_seconds()
    done = subprocess.run(command, capture_output=True, env=outside())
    seconds, used = time.perf_counter() - start, children_seconds() - used
    assert done.returncode == 0, done.stderr.decode()
    first = tree(tmp_path / "out")
    report = json.loads(first["report.json"])
    assert_sound(report)
    assert report["seconds"] < seconds
    assert used < 90  # CPU seconds, of which a busy machine needs more for the same work
    english, target, lora = report["base"]["english"], report["target"]["bits_per_byte"], report["lora"]
    assert report["base"]["bits_per_byte"] == english["model"] < min(english["zlib"], english["bigram"])
    assert lora["share_of_gain"] >= 0.85
    assert lora["trainable"] <= 0.1 * report["base"]["params"]
    assert target["full"] < target["base"]
    assert first["report.png"].startswith(PNG)
    assert len(first["report.png"]) > 20_000

    model = load_pretrained()
    held_out = excerpts(demo.python_source().test, demo.EXCERPT)
    assert bits_per_byte(model, held_out, 1, "") == pytest.approx(target["base"], rel=1e-6)
    assert load_adapter(model, tmp_path / "out") == ""
    assert sum(isinstance(module, LoRALinear) for _, module in model.named_modules()) == 7 * model.config.n_layers
    assert bits_per_byte(model, held_out, 1, "") == pytest.approx(target["lora"], rel=1e-6)


def children_seconds() -> float:
    """CPU time of the processes that this one has started and that have ended."""
    times = os.times()
    return times.children_user + times.children_system
