"""The recorded grids of the notebooks: complete, in the order of their runs, continued where they stopped."""

import json
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parent.parent / "notebooks"
GRIDS = sorted(path.stem for path in (FOLDER / "grids").glob("*.py"))

TOY = """from pathlib import Path

RUNS = [{"rank": rank, "seed": seed} for rank in (1, 2) for seed in range(3)]
RUNS += [{"rank": 1, "seed": 0, "scale": 2}]


def run(rank, seed, scale=1):
    with Path("calls").open("a") as calls:
        calls.write(f"{rank} {seed}\\n")
    return {"loss": scale / rank + seed / 100}
"""


@pytest.fixture
def here(monkeypatch):
    """What a notebook imports: notebooks/ is its folder."""
    monkeypatch.syspath_prepend(FOLDER)
    return import_module("record")


@pytest.fixture
def toy(tmp_path):
    """A copy of record.py with one grid, which writes down each of its runs."""
    shutil.copy(FOLDER / "record.py", tmp_path)
    (tmp_path / "grids").mkdir()
    (tmp_path / "grids" / "toy.py").write_text(TOY, encoding="utf-8")

    def run(*arguments):
        command = [sys.executable, "record.py", "--jobs", "1", *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)

    return tmp_path, run


@pytest.mark.parametrize("grid", GRIDS)
def test_a_record_has_every_run_of_its_grid_in_order_and_its_versions(grid, here):
    content = json.loads((FOLDER / "grids" / f"{grid}.json").read_text(encoding="utf-8"))
    wanted = import_module(f"grids.{grid}").RUNS
    assert content["command"] == f"python notebooks/record.py {grid}"
    assert {"python", "numpy", "minilora"} <= set(content)
    assert tuple(content["python"].split(".")[:2]) == here.RECORDED_WITH
    assert len(content["runs"]) == len(wanted)
    for arguments, run in zip(wanted, content["runs"], strict=True):
        assert arguments.items() <= run.items()


@pytest.mark.slow
def test_a_record_goes_on_where_it_stopped_to_the_same_bytes(toy):
    folder, run = toy
    record = folder / "grids" / "toy.json"
    assert run("toy").returncode == 0
    whole = record.read_bytes()
    content = json.loads(whole)
    ranks_and_seeds = [(1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2), (1, 0)]
    assert [(row["rank"], row["seed"]) for row in content["runs"]] == ranks_and_seeds
    del content["runs"][0], content["runs"][3]
    record.write_text(json.dumps(content), encoding="utf-8")
    (folder / "calls").unlink()
    assert run().returncode == 0
    assert record.read_bytes() == whole
    assert (folder / "calls").read_text().split("\n")[:-1] == ["1 0", "2 1"]


@pytest.mark.slow
def test_again_runs_everything_and_an_unknown_grid_is_refused_with_the_names_there_are(toy):
    folder, run = toy
    assert run("toy").returncode == run("--again", "toy").returncode == 0
    assert len((folder / "calls").read_text().split()) == 2 * 2 * 7
    refused = run("ty")
    assert refused.returncode == 2
    assert "toy" in refused.stderr.splitlines()[-1]


def test_pick_takes_all_seeds_of_the_arguments_and_refuses_arguments_that_were_not_run(here):
    runs = [{"rank": r, "seed": s, "loss": r + s / 10} for r in (1, 2) for s in range(3)]
    assert here.pick(runs, "loss", rank=2).tolist() == [2.0, 2.1, 2.2]
    with pytest.raises(ValueError, match=r"no run of this grid has .*'rank': 3"):
        here.pick(runs, "loss", rank=3)


def test_a_value_is_within_the_spread_up_to_half_of_its_width(here, monkeypatch):
    monkeypatch.setattr("platform.python_version_tuple", lambda: ("3", "11", "7"))
    seeds = np.array([2.0, 2.2, 2.1])
    assert [here.within_spread(value, seeds) for value in (1.89, 1.91, 2.1, 2.29, 2.31)] == [
        False,
        True,
        True,
        True,
        False,
    ]


def test_with_another_python_nothing_is_compared_and_that_is_said(here, monkeypatch, capsys):
    monkeypatch.setattr("platform.python_version_tuple", lambda: ("3", "14", "0"))
    assert here.within_spread(99.0, np.array([2.0, 2.1]))
    assert "not compared: recorded with the library of Python 3.11" in capsys.readouterr().out
