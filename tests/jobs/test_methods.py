"""Methods side by side: which cells there are, how rates are searched, what is reported, and what is refused."""

import json
import math
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import assert_refused, lines, promised, tree
from hypothesis import given
from hypothesis import strategies as st
from reports import in_color
from small_runs import small_comparison

from minilora.accounting import count_parameters
from minilora.adapters import DEFAULT
from minilora.adapters.registry import variants
from minilora.cli import main
from minilora.data import excerpts, random_windows
from minilora.display import plots
from minilora.jobs import methods, methods_cells
from minilora.jobs.finetuning import options_of
from minilora.jobs.methods import MOST, next_rates
from minilora.jobs.methods_cells import FULL, RANK, Cell
from minilora.jobs.methods_figure import methods_figure
from minilora.jobs.methods_report import headlines, print_methods, verdict
from minilora.jobs.pretraining import bits_per_byte
from minilora.nn.optim import AdamW, cosine_schedule
from minilora.training import fit

RANKED = [name for name in variants() if "r" in options_of(name)]
COMPARE = ["compare", "--methods", f"{DEFAULT},{FULL}", "--seeds", "2", "--jobs", "1", "--out", "out"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small model, text and task in the place of the built-in ones, and no recorded rates."""
    small_comparison(monkeypatch)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


# ---- learning rates ----


@given(st.lists(st.floats(0.1, 3), min_size=2 * MOST + 1, max_size=2 * MOST + 1), st.integers(-MOST, MOST), st.data())
def test_a_search_ends_at_the_best_of_a_valley_with_worse_rates_a_factor_of_2_away_on_both_sides(steps, valley, data):
    diverges = data.draw(st.integers(valley + 1, MOST + 1))
    climb = np.cumsum(steps)
    losses = {k: float(climb[abs(k - valley)]) if k < diverges else math.inf for k in range(-MOST, MOST + 1)}
    tried: dict[int, float] = {}
    while todo := next_rates(tried):
        assert not tried.keys() & set(todo)
        tried |= {k: losses[k] for k in todo}
    assert min(tried, key=lambda k: tried[k]) == valley
    assert {k for k in (valley - 1, valley + 1) if abs(k) <= MOST} <= tried.keys()
    assert len(tried) <= 6 + abs(valley) // 2


def test_the_recorded_rates_are_the_best_of_their_grids_and_inside_them():
    held = json.loads(Path(methods.RATES).read_text())
    assert {key: held["task"][key] for key in ("steps", "batch", "length")} == {
        "steps": methods.STEPS, "batch": methods.BATCH, "length": methods.LENGTH,
    }  # fmt: skip
    assert Cell(DEFAULT, {}, RANK, "").name in held["rates"]
    for name, cell in held["rates"].items():
        tried = {float(lr): math.inf if loss is None else loss for lr, loss in cell["bits_per_byte"].items()}
        best = min(tried, key=lambda lr: tried[lr])
        assert best == pytest.approx(cell["best"]), name
        assert min(tried) < best < max(tried), name
    known = methods.recorded(held["task"] | {"python": "another"})
    assert {name: methods.in_rates(rates) for name, rates in known.items()} == {
        name: cell["bits_per_byte"] for name, cell in held["rates"].items()
    }
    assert methods.recorded(held["task"] | {"steps": 1}) == {}


# ---- cells ----


@pytest.mark.parametrize("method", RANKED)
def test_a_method_runs_at_the_rank_of_the_reference_and_at_the_rank_nearest_to_its_parameters(method, here):
    try:
        methods_cells.adapted(Cell(method, {}, RANK, ""))
    except ValueError as error:  # such as one that needs a bias
        with pytest.raises(ValueError, match=re.escape(str(error))):
            methods_cells.cells_of([method])
        return
    size = count_parameters(methods_cells.adapted(Cell(DEFAULT, {}, RANK, "")))["trainable"]
    cells, left_out = methods_cells.cells_of([method])
    assert not left_out
    own = [cell for cell in cells if cell.method == method]
    assert own[0].r == RANK
    assert "equal rank" in own[0].why
    counts = {}
    for r in range(1, 33):
        try:
            counts[r] = methods_cells.count(Cell(method, {}, r, ""))
        except ValueError:
            continue
    nearest = min(counts.values(), key=lambda n: abs(n - size))
    assert methods_cells.count(own[-1]) == nearest
    assert ("as many parameters as it can have" in own[-1].why) == (abs(nearest - size) > size / 10)
    for cell in own:
        trained = count_parameters(methods_cells.adapted(cell))["trainable"]
        assert trained == methods_cells.count(cell) or "target_r" in options_of(method)


def test_all_are_the_variants_and_full_fine_tuning_and_what_cannot_be_attached_is_left_out_with_the_reason(here):
    cells, left_out = methods_cells.cells_of(["all"])
    assert {cell.method for cell in cells} | left_out.keys() == {*variants(), FULL}
    assert cells[0] == Cell(DEFAULT, {}, RANK, "equal rank, equal parameters")
    assert len({cell.name for cell in cells}) == len(cells)
    assert all(len(reason) > 20 for reason in left_out.values())


def test_an_option_of_a_method_goes_with_its_name(here):
    cells, _ = methods_cells.cells_of([DEFAULT, f"{DEFAULT}:r=3:alpha=5:rslora=true"])
    assert [cell.name for cell in cells] == [
        f"{DEFAULT} r={RANK}", f"{DEFAULT} r=3 alpha=5 rslora=true",
    ]  # fmt: skip
    settings = cells[1].settings(seed=4)
    assert (settings.rank, settings.alpha, settings.rslora, settings.seed) == (3, 5, True, 4)
    assert cells[0].settings().alpha == 2 * RANK


# ---- a comparison ----


def test_what_is_compared_is_the_loss_on_test_text_after_a_training_at_the_best_rate(here, capsys):
    assert main(COMPARE) == 0
    files = tree(here / "out")
    assert {name for name in files if "/" not in name} == promised("compare") | {"runs"}
    report, found = json.loads(files["methods.json"]), json.loads(files["rates.json"])
    shown = " ".join(capsys.readouterr().out.split())
    assert [row["mean"] for row in report["rows"]] == sorted(row["mean"] for row in report["rows"])
    rows = {row["method"]: row for row in report["rows"]}
    assert rows.keys() == {DEFAULT, FULL}
    assert f"{rows[FULL]['trainable']:,}" in shown
    source = methods.python_source()
    for method, row in rows.items():
        tried = {float(lr): loss for lr, loss in row["rates"].items() if loss is not None}
        assert row["rate"] == pytest.approx(min(tried, key=lambda lr: tried[lr]))
        assert found["rates"][row["name"]] == {"best": row["rate"], "bits_per_byte": row["rates"]}
        for seed, loss in enumerate(row["bits_per_byte"]):
            model = methods_cells.adapted(Cell(method, {}, RANK if method == DEFAULT else None, ""), seed)
            fit(model, random_windows(source.train, 2, 16, seed), 3, optimizer=AdamW(model.trainable_parameters(),
                row["rate"]), schedule=cosine_schedule(3, 0), seed=seed, description=None)  # fmt: skip
            assert bits_per_byte(model, excerpts(source.test, methods.EXCERPT), 1, "") == loss
        assert row["mean"] == pytest.approx(np.mean(row["bits_per_byte"]))
        assert row["standard_deviation"] == pytest.approx(np.std(row["bits_per_byte"], ddof=1))
        assert row["memory"]["cache"] > 0
    each = np.subtract(rows[FULL]["bits_per_byte"], rows[DEFAULT]["bits_per_byte"])
    difference, error = rows[FULL]["difference"], each.std(ddof=1) / math.sqrt(2)
    assert difference["mean"] == pytest.approx(each.mean())
    assert difference["high"] - difference["mean"] == pytest.approx(12.7062 * error, rel=1e-4)  # t, 1 degree of freedom
    assert rows[DEFAULT]["difference"] is None
    assert report["seconds"] == pytest.approx(
        sum(json.loads(x)["seconds"] for name, x in files.items() if name.startswith("runs/") and "-" in name)
    )


def without_times(files: dict[str, bytes | None]) -> Any:
    """What is the same each time."""
    report = json.loads(files["methods.json"] or b"")
    for row in report["rows"]:
        del row["step_time"]
    del report["seconds"]
    return report, files["rates.json"], sorted(files)


def test_a_comparison_that_is_stopped_and_resumed_ends_with_the_same_numbers_and_trains_nothing_twice(
    here, monkeypatch, capfd
):
    assert main(COMPARE) == 0
    whole = tree(here / "out")
    shutil.rmtree("out")
    trained: list[Any] = []
    original = methods.fit_adapter

    def stopping(*arguments: Any, **options: Any) -> Any:
        trained.append(arguments)
        if len(trained) == 5:
            raise KeyboardInterrupt
        return original(*arguments, **options)

    monkeypatch.setattr(methods, "fit_adapter", stopping)
    assert main(COMPARE) == 130
    assert lines(capfd.readouterr().err)[-1].endswith(
        "stopped; what is done is kept in out; the same command with --resume goes on"
    )
    assert_refused(here, capfd, COMPARE, "out already holds a comparison: --resume goes on with it, or choose another")
    assert main(["info", "out"]) == 0
    assert capfd.readouterr().out == (
        "comparison   stopped, 4 runs done: minilora compare --methods ... --resume goes on\n"
    )
    assert main([*COMPARE, "--resume"]) == 0
    capfd.readouterr()
    assert main(["info", "out"]) == 0
    assert lines(capfd.readouterr().out)[-1].startswith("found        ")
    assert without_times(tree(here / "out")) == without_times(whole)
    runs = [name for name in whole if name.startswith("runs/") and "task" not in name]
    assert len(trained) == len(runs) + 1
    assert main([*COMPARE, "--resume"]) == 0
    assert len(trained) == len(runs) + 1


def test_recorded_rates_are_taken_unless_a_search_is_asked_for(here, monkeypatch):
    assert main(COMPARE) == 0
    shutil.move("out/rates.json", "held.json")
    monkeypatch.setattr(methods, "RATES", Path("held.json"))
    assert main([*COMPARE, "--out", "again"]) == 0
    assert not list(Path("again", "runs").glob("*validation*"))
    assert Path("again", "rates.json").read_bytes() == Path("held.json").read_bytes()
    assert main([*COMPARE, "--out", "anew", "--search"]) == 0
    assert list(Path("anew", "runs").glob("*validation*"))


def test_a_rate_that_diverges_is_the_worst_and_a_method_with_a_seed_that_diverged_has_no_mean(here, monkeypatch):
    monkeypatch.setattr(methods, "fit_adapter", lambda *_, **__: (_ for _ in ()).throw(FloatingPointError("nan: x")))
    Path("out", "runs").mkdir(parents=True)
    cell = Cell(DEFAULT, {}, RANK, "")
    assert methods.run(Path("out"), cell, 3, 0, "test") == math.inf
    (file,) = Path("out", "runs").iterdir()
    assert json.loads(file.read_text())["failed"] == "nan"
    assert methods.run(Path("out"), cell, 3, 0, "test") == math.inf  # from the file
    rows = methods.rows_of([cell], {cell.name: 3}, {cell.name: {3: math.inf}}, [[2.0, math.inf]])
    assert (rows[0]["mean"], rows[0]["bits_per_byte"], rows[0]["rates"]) == (None, [2.0, None], {"0.128": None})
    assert verdict(rows[0]) == "diverged"


# ---- what is said and drawn ----


def report_of(*rows: tuple[str, float | None, tuple[float, float, float] | None]) -> dict[str, Any]:
    """A report with these (name, mean, difference)."""
    made = [
        {
            "name": name, "method": name, "r": None, "why": "as it is", "trainable": 1000 * i, "rate": 0.016,
            "mean": mean, "standard_deviation": mean and 0.01, "at_the_edge": i == 2, "step_time": float(i),
            "memory": {"cache": 2**20 * (5 - i)},
            "difference": d and dict(zip(("mean", "low", "high"), d, strict=True)),
        }
        for i, (name, mean, d) in enumerate(rows, 1)
    ]  # fmt: skip
    return {
        "rows": made, "seeds": 3, "task": {"steps": 80}, "left_out": {"odd": "it has no bias"}, "seconds": 120.0,
    }  # fmt: skip


BETTER = ("b", 2.3, (-0.1, -0.15, -0.05))
SAME = ("c", 2.39, (-0.01, -0.05, 0.03))
WORSE = ("d", 2.6, (0.2, 0.1, 0.3))


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (
            [BETTER, SAME, ("a", 2.4, None)],
            "b is 0.100 bits per byte better than a, beyond the spread; 0 others are worse",
        ),
        ([SAME, ("a", 2.4, None), WORSE], "No other is better than a beyond the spread; 1 other is worse."),
        ([SAME, ("a", 2.4, None)], "c 1,000 2.3900 0.0100 -0.0100 -0.0500 to +0.0300 within the spread"),
        ([SAME, ("a", 2.4, None)], "a 2,000 2.4000 0.0100 the reference 0.016 (edge)"),
        ([SAME, ("a", 2.4, None)], "No other keeps less than a. No other takes longer than a."),
        ([SAME, ("a", 2.4, None), ("e", None, None)], "diverged"),
        ([SAME, ("a", 2.4, None)], "Left out: odd: it has no bias"),
        ([("a", 2.4, None), WORSE], "d keeps the least, 75% of a's. d takes the longest, 2.0 times a's."),
        ([SAME, ("a", 2.4, None)], "2 minutes of training"),
    ],
)
def test_the_words_follow_the_numbers(rows, said, capsys):
    print_methods(report_of(*rows), "somewhere")
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert said in shown, shown


@pytest.mark.slow
def test_the_figure_is_a_png_with_the_reference_in_its_own_colour():
    report = report_of(BETTER, SAME, ("a", 2.4, None), WORSE, ("e", None, None))
    png = methods_figure(report, headlines(report))
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    assert in_color(png, [plots.LORA, plots.FULL]) == [True, True]


# ---- bad input ----

BAD = {
    "neither": (["--methods"], "expected one argument"),
    "no such method": (["--methods", "loar"], f"no variant is called 'loar': did you mean '{DEFAULT}'"),
    "no such option": (["--methods", f"{DEFAULT}:colour=3"], f"{DEFAULT} has no option 'colour'"),
    "one seed": (["--seeds", "1"], "1 seeds, 2 jobs: give at least two seeds"),
    "another job's option": (["--lr", "0.1"], "--methods, on the built-in model, does not read --lr: leave it out"),
    "another base": (["--base", "other"], "does not read --base"),
    "nothing to resume": (["--resume"], "out holds no comparison to resume: start it without --resume"),
    "out is taken": (["--out", "taken"], "taken already holds x: choose another folder"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_in_one_line_before_anything_is_made(name, here, capfd):
    words, says = BAD[name]
    Path("taken").mkdir()
    Path("taken", "x").write_text("")
    assert_refused(here, capfd, ["compare", "--methods", DEFAULT, "--out", "out", *words], says)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "give --data and --against, two settings of a classifier, or --methods"),
        (["--data", "x"], "give --data and --against"),
        (["--data", "x", "--against", "--rank 2", "--seeds", "2"], "--seeds goes with --methods: leave it out"),
    ],
)
def test_a_cross_validation_takes_data_and_a_second_setting(words, says, here, capfd):
    assert_refused(here, capfd, ["compare", *words], says)


def test_runs_of_another_task_are_not_mixed(here, monkeypatch, capfd):
    assert main(COMPARE) == 0
    capfd.readouterr()
    monkeypatch.setattr(methods, "STEPS", 4)
    assert_refused(here, capfd, [*COMPARE, "--resume"], "out holds runs of another task, .*'steps': 3.*choose another")


def test_a_missing_joblib_is_one_line_that_says_what_to_install(here, capfd, monkeypatch):
    monkeypatch.setitem(sys.modules, "joblib", None)
    assert_refused(
        here, capfd, COMPARE, r"a comparison of methods needs joblib: pip install '\.\[sweep\]' in the clone$"
    )
