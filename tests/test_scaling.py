"""python -m benchmarks scaling: exponents of power laws, the laws of what is counted, what follows, and the page."""

import io
import json
import math
import re
import sys
from contextlib import redirect_stdout
from dataclasses import asdict, replace
from pathlib import Path

import examples
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reports import in_color

from benchmarks import scaling, scaling_report
from benchmarks.__main__ import main
from benchmarks.scaling import AXES, BASE, HELD_OUT, Point, counts, exponents, fit_seconds, predict, slope
from benchmarks.scaling_figure import scaling_figure
from minilora.display.plots import FULL, LORA
from minilora.files import write_whole
from minilora.process import blas_threads

ROOT = Path(__file__).parent.parent
STORED = ROOT / "benchmarks" / "results" / "scaling.json"
PAGE = ROOT / "docs" / "scaling.md"
BLOCK = re.compile(r"^(```\n\$ python -m benchmarks scaling\n).*?^```$", re.MULTILINE | re.DOTALL)
FLOP, BYTE, ARRAY = 2e-11, 4e-10, 3e-5  # seconds


def measured(point, noise=(1.0, 1.0, 1.0)):
    """A point of a machine on which the time is a sum of three terms, on two cores half of it."""
    each = counts(point)
    seconds = predict(each, np.array([FLOP, BYTE, ARRAY])) / point.cores
    about = {"numpy": "2", "blas": "x 1"}
    rounds = [seconds * factor for factor in noise]
    return {
        "point": asdict(point),
        "rounds": rounds,
        "seconds": seconds,
        "peak": 2 * each["flops"],
        "about": about,
    } | each


@pytest.fixture(scope="module")
def made():
    """A report of that machine."""
    points = {axis: [replace(BASE, **{axis: x, "cores": n}) for n in (1, 2) for x in AXES[axis][1:]] for axis in AXES}
    axes = {axis: [measured(point, (0.9, 1.0, 1.2)) for point in these] for axis, these in points.items()}
    machine = {"processor": "made", "cores": 2, "system": "Linux", "python": "3", "memory": 16 * 2**30}
    held_out = [measured(point) for point in (BASE, replace(BASE, cores=2), *HELD_OUT)]
    return {"machine": machine, "base": asdict(BASE), "axes": axes, "held_out": held_out}


# ---- exponents ----


@given(st.floats(-3, 3), st.floats(1e-6, 1e6), st.lists(st.integers(1, 4096), min_size=2, max_size=8, unique=True))
def test_the_slope_of_a_power_law_is_its_exponent(p, c, x):
    assert slope(x, [c * at**p for at in x]) == pytest.approx(p, abs=1e-6)


def test_the_exponent_of_time_lies_within_those_of_its_rounds():
    points = [measured(replace(BASE, width=w), (1.0, w**0.1, w**-0.1)) for w in AXES["width"]]
    found = exponents("width", points)
    assert found["rounds"] == pytest.approx((found["time"] - 0.1, found["time"] + 0.1))
    assert found["memory"] == pytest.approx(found["flops"])  # its peak is so made


def counted_exponents(axis, values=None):
    return exponents(axis, [measured(replace(BASE, **{axis: x})) for x in values or AXES[axis]])


def test_flops_are_proportional_to_the_batch_and_in_the_blocks_to_the_depth():
    assert counted_exponents("batch")["flops"] == pytest.approx(1, abs=1e-12)
    flops = [counts(replace(BASE, depth=n))["flops"] for n in (2, 3, 4, 5)]
    assert len(set(np.diff(flops))) == 1


def test_the_exponents_of_width_and_tokens_lie_between_the_linear_and_the_quadratic_term_and_rise_towards_2():
    for axis in ("width", "tokens"):
        found = counted_exponents(axis)
        assert 1 < found["flops"] < found["last flops"] < 2
    assert counted_exponents("width", (2048, 4096))["flops"] > 1.97


def test_the_rank_is_a_small_part_of_flops_and_bytes():
    found = counted_exponents("rank")
    assert 0 < found["flops"] < 0.1
    assert 0 < found["bytes"] < 0.1


def test_bytes_grow_linearly_in_depth_and_batch_beside_what_does_not():
    for axis in ("depth", "batch"):
        nbytes = [sum(counts(replace(BASE, **{axis: n}))["bytes"].values()) for n in (2, 3, 4, 5)]
        assert len(set(np.diff(nbytes))) == 1


# ---- what follows ----


def test_the_fit_finds_what_the_times_are_made_of_and_predicts_models_it_does_not_know(made):
    fit = fit_seconds(scaling.all_points(made, 1))
    assert fit == pytest.approx([FLOP, BYTE, ARRAY], rel=1e-6)
    assert len(scaling.models_of(made, 1)) == 2
    for each in scaling.models_of(made, 1):
        assert predict(each, fit) == pytest.approx(each["seconds"])
    assert fit_seconds(scaling.all_points(made, 2)) == pytest.approx([FLOP / 2, BYTE / 2, ARRAY / 2], rel=1e-6)


def test_a_load_that_meets_one_axis_alone_changes_no_fit(made):
    """The same times, three times as long while the tokens were measured."""
    axes = {
        axis: [
            each | {"rounds": [3 * x for x in each["rounds"]], "seconds": 3 * each["seconds"]}
            if axis == "tokens"
            else each
            for each in points
        ]
        for axis, points in made["axes"].items()
    }
    loaded = fit_seconds(scaling.all_points(made | {"axes": axes}, 1))
    assert loaded == pytest.approx(fit_seconds(scaling.all_points(made, 1)))


def test_no_term_of_the_fit_is_below_0():
    points = [measured(replace(BASE, depth=n)) | {"seconds": 1 / n} for n in (1, 2, 4, 8)]
    assert (fit_seconds(points) >= 0).all()


def test_two_cores_are_compared_with_one_round_by_round(made):
    pairs = list(scaling.pairs_of(made["axes"]["width"]))
    assert len(pairs) == len(AXES["width"]) - 1
    for one, other in pairs:
        assert scaling.faster(one, other) == pytest.approx([2.0] * 3)


def test_the_tables_have_every_axis_every_model_and_what_fits_in_the_memory(made, capsys):
    scaling_report.show(made, ["gpt2", "llama-3.1-8b", "llama-2-70b"])
    said = capsys.readouterr().out
    assert all(f"│ {axis} " in said for axis in AXES)
    assert all(len(line) <= 120 for line in said.splitlines() if line[:1] in "│┃")
    cells = {line.split("│")[1].strip(): line for line in said.splitlines() if line.startswith("│")}
    assert re.search(r"in float32 │ +yes", cells["gpt2"])
    assert re.search(r"in nf4-dq │ +no", cells["llama-3.1-8b"])
    assert re.search(r"64\.92 GiB │ +no │ +no", cells["llama-2-70b"])
    assert "GFLOP/s" in said
    assert "0% off in the median and 0% at most" in said


def test_a_step_of_more_flops_takes_longer_than_on_the_gpu_at_its_peak(made, capsys):
    scaling_report.show(made, ["gpt2"])
    said = capsys.readouterr().out
    found = counts(Point(model="gpt2", batch=2, tokens=512))
    there = found["flops"] / scaling_report.GPU_PEAK
    here = predict(found, np.array([FLOP, BYTE, ARRAY]) / 2)
    assert re.search(rf"│ +{scaling_report.duration(1000 * there)} │ +{here / there:,.0f} │", said)


@pytest.mark.parametrize(
    ("seconds", "words"), [(3.04, "3.0 s"), (60, "1.0 min"), (5400, "1.5 h"), (864000, "10.0 days")]
)
def test_a_duration_is_in_the_unit_that_a_person_uses(seconds, words):
    assert scaling_report.duration(seconds) == words


@pytest.mark.slow
@pytest.mark.parametrize("axes", [AXES, ["rank"]], ids=["all", "one"])
def test_the_figure_shows_dots_and_lines(axes, made):
    assert all(in_color(scaling_figure(made | {"axes": {axis: made["axes"][axis] for axis in axes}}), [LORA, FULL]))


# ---- measuring ----


def test_the_job_of_a_point_is_the_step_that_is_counted():
    """Every array of the ledger is allocated at the peak, and on shards the loss is the same."""
    small = Point(width=64, depth=2, tokens=32, batch=2)
    losses = []
    for cores in (1, 2):
        job = scaling.job_of(replace(small, cores=cores))
        with blas_threads(1):
            job.run()
        losses.append(job.wait())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0] == pytest.approx(math.log(scaling.VOCAB), rel=0.1)


@pytest.mark.slow
def test_the_command_measures_prints_draws_and_reads_again(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(scaling, "BASE", Point(width=64, depth=1, tokens=8, batch=2))
    monkeypatch.setattr(scaling, "AXES", {"batch": (1, 2)})
    monkeypatch.setattr(scaling, "HELD_OUT", (Point(model="builtin", batch=1, tokens=8),))
    assert main(["scaling", "--cores", "1", "--rounds", "2", "--seconds", "0.01", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    one, two = report["axes"]["batch"]
    assert one["peak"] > sum(one["bytes"].values())  # all that is counted is there, and what backward makes
    assert two["flops"] == 2 * one["flops"]
    assert len(one["rounds"]) == 2
    stored, plot = tmp_path / "a.json", tmp_path / "a.png"
    stored.write_text(json.dumps(report), encoding="utf-8")
    assert main(["scaling", "--read", str(stored), "--models", "gpt2", "--plot", str(plot)]) == 0
    assert "│ batch 2" in capsys.readouterr().out
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--axes", "wdth"], "no axis is called 'wdth': did you mean 'width'?"),
        (["--models", "llama"], "no model is called 'llama'"),
        (["--models", "vit-base"], "no model is called 'vit-base'"),
        (["--plot", "a.jpg"], "not the name of a .png"),
        (
            ["--read", str(ROOT / "benchmarks" / "results" / "bench.json")],
            "does not hold what python -m benchmarks scaling",
        ),
        (["--axes", ","], "no axis is named: choose from width"),
        (["--cores", "1,8"], "8 cores cannot share 4 sequences"),
        (["--read", "x.json", "--rounds", "3"], "--read measures nothing: leave out --rounds"),
    ],
)
def test_a_word_that_cannot_be_is_said_in_a_line_before_anything_is_measured(words, message, monkeypatch, capsys):
    monkeypatch.setattr(scaling, "measure", None)
    assert main(["scaling", *words]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rounds", "3", "scaling", "--read", "x.json"], "--read measures nothing: leave out --rounds"),
        (["--cores", "1,8", "scaling"], "8 cores cannot share 4 sequences"),
        (["--sizes", "tiny", "scaling"], "scaling varies one model along its axes: leave out --sizes"),
        (["--malloc", "kept", "--long", "scaling"], "leave out --malloc, --long"),
    ],
)
def test_an_option_before_the_word_scaling_counts_or_is_refused(words, message, monkeypatch, capsys):
    monkeypatch.setattr(scaling, "measure", None)
    assert main(words) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("damage", examples.some_of([
    lambda report: report["axes"].clear(), lambda report: report["axes"].update(rank=[]),
    lambda report: report.pop("held_out"), lambda report: report["held_out"][0].pop("rounds"),
    lambda report: report["axes"]["width"][0].pop("point"), lambda report: report.update(base={}),
    lambda report: report["axes"]["width"][0].update(rounds=[]), lambda report: report.update(axes=[1]),
]))  # fmt: skip
def test_a_report_that_is_damaged_is_refused_in_a_line(made, damage, tmp_path, capsys):
    report = json.loads(json.dumps(made))
    damage(report)
    stored = tmp_path / "a.json"
    stored.write_text(json.dumps(report), encoding="utf-8")
    assert main(["scaling", "--read", str(stored)]) == 2
    said = capsys.readouterr()
    assert "does not hold what python -m benchmarks scaling --json prints" in said.err
    assert said.out == ""


# ---- the page ----


def printed(run) -> str:
    """The page with the tables that the stored run prints; `run` gives what a function prints."""
    tables = run(lambda: main(["scaling", "--read", str(STORED)]))
    lines = "".join(f"{line.rstrip()}\n" for line in tables.splitlines())
    return BLOCK.sub(lambda found: f"{found[1]}{lines}```", PAGE.read_text(encoding="utf-8"))


@pytest.mark.slow
def test_the_tables_of_the_page_are_what_the_stored_run_prints(capsys):
    page = printed(lambda show: (show(), capsys.readouterr().out)[1])
    assert "p where time or memory grows" in page
    assert page == PAGE.read_text(encoding="utf-8"), "python tests/test_scaling.py --record writes them"


def test_what_the_page_says_of_the_stored_run_holds():
    report = json.loads(STORED.read_text(encoding="utf-8"))
    one = {axis: scaling.on_cores(points, 1) for axis, points in report["axes"].items()}
    p = {axis: exponents(axis, points) for axis, points in one.items()}
    speed = [each["flops"] / each["seconds"] for each in one["width"]]
    assert speed[-1] > speed[0]  # the column GFLOP/s rises with the width
    assert p["width"]["time"] < p["width"]["flops"]
    assert abs(p["rank"]["flops"]) < 0.1
    above = {axis: [each["peak"] - sum(each["bytes"].values()) for each in points] for axis, points in one.items()}
    assert all(x > 0 for each in above.values() for x in each)
    assert max(above["depth"]) < 1.05 * min(above["depth"])  # of one block, however many there are
    assert above["batch"][-1] > 10 * above["batch"][0]
    ratios = [each["peak"] / sum(each["bytes"].values()) for each in one["depth"]]
    assert ratios == sorted(ratios, reverse=True)


@pytest.mark.oracle
def test_the_lines_of_the_page_go_on_in_peft_where_minilora_stopped(tmp_path, monkeypatch):
    pytest.importorskip("peft")
    monkeypatch.chdir(tmp_path)
    here, there = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    ours: dict = {}
    exec(here, ours)
    ids = [ours["batches"](step) for step in range(20, 23)]
    theirs: dict = {"batches": [(batch.ids, batch.targets) for batch in ids]}
    exec(there, theirs)
    never_stopped: dict = {}
    exec(here.replace("steps=20", "steps=23").replace("runs/", "runs/whole/"), never_stopped)
    expected = never_stopped["history"].loss
    assert expected[:20] == ours["history"].loss
    assert theirs["losses"] == pytest.approx(expected[20:], rel=1e-4)


def recorded(show) -> str:
    with redirect_stdout(io.StringIO()) as out:
        show()
    return out.getvalue()


if __name__ == "__main__" and sys.argv[1:] == ["--record"]:
    write_whole(PAGE, printed(recorded).encode())
