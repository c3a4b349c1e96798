"""exercises/ is what `minilora ex init` writes, and its table of mistakes is what the checks say today."""

from pathlib import Path

from minilora.practice.catalogue import numbers
from minilora.practice.kills import recorded
from minilora.practice.workspace import contents, initialise

FOLDER = Path(__file__).parents[2] / "exercises"


def test_the_folder_in_the_repository_is_what_init_writes(tmp_path):
    initialise(tmp_path)
    files = (path for path in tmp_path.rglob("*") if path.is_file() and path.name != "progress.json")
    written = {path.relative_to(tmp_path).as_posix(): path.read_bytes() for path in files}
    ours = {name: (FOLDER / name).read_bytes() for name in written}
    assert {"README.md", "TUTOR.md", "conftest.py", "questions/zh/a.md"} < set(written)  # also from a wheel
    assert ours == written, "python -m minilora.practice.record writes it anew"


def test_both_languages_have_the_same_files():
    assert set(contents("en")) == set(contents("zh"))


def test_the_table_of_mistakes_has_every_exercise_and_nothing_gets_through():
    rows = recorded()
    assert list(rows) == list(numbers())
    assert all(row["listed"] == row["seen"] == row["named"] for row in rows.values())
