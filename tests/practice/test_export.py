"""minilora ex export: what a class gets holds no solution, and nbgrader and otter give the points that they should."""

import csv
import importlib.util
import json
import os
import re
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import examples
import pytest

from minilora.cli import main
from minilora.practice import check, exercise, exercises
from minilora.practice.catalogue import missing, numbers
from minilora.practice.export import nbgrader, notebook, otter, pack, slides

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
RIGHT = notebook.code(exercise("04").solution())
WRONG = RIGHT.replace("dh @ A * keep", "dh @ A")
NOISY = WRONG.replace("    s = ", "    import warnings\n    warnings.warn('shown on stderr')\n    s = ")
ANSWERS = {"right": (RIGHT, 3), "wrong": (WRONG, 2), "noisy": (NOISY, 2), "untouched": ("", 0)}


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def cells(data):
    """{id: source} of a notebook."""
    return {cell["id"]: "".join(cell["source"]) for cell in json.loads(data)["cells"]}


def released(data):
    """The texts of a notebook as nbgrader releases them."""
    texts = cells(data)
    assert sum("BEGIN SOLUTION" in text for text in texts.values()) == 1
    return "\n".join(re.sub(r"### BEGIN SOLUTION\n.*?### END SOLUTION", "", t, flags=re.DOTALL) for t in texts.values())


def solution_lines(task):
    lines = {line.strip() for line in task.solution().splitlines() if len(line.strip()) > 12}
    return {line for line in lines if line not in task.stub()}


# ---- what is written ----


@pytest.mark.parametrize("number", examples.some_of(number for number in numbers() if not missing(number)))
def test_nothing_that_a_student_gets_holds_a_line_of_the_solution(number):
    task = exercise(number)
    assert solution_lines(task)
    setting = notebook.Setting()
    (source,) = nbgrader.source([task], setting).values()
    student = notebook.notebook(otter.cells([task], setting))
    for text in (released(source), *otter.files([task], setting).values(), *cells(student).values()):
        assert not [line for line in solution_lines(task) if line in text]
    assert solution_lines(task) <= {line.strip() for line in cells(source)[f"ex{number}-solution"].splitlines()}


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_notebook_is_valid_and_holds_the_whole_statement_and_the_stub(language):
    setting = notebook.Setting(language, seed=7)
    for task in exercises().values():
        (source,) = nbgrader.source([task], setting).values()
        texts = cells(source)
        shown = texts[f"ex{task.number}-statement"].replace("```text", "")
        assert re.sub(r"\W+", "", shown) == re.sub(r"\W+", "", task.statement(language))
        assert texts[f"ex{task.number}-solution"].startswith(notebook.code(task.stub(language)))
        assert f'check("{task.number}", ' in texts[f"ex{task.number}-check"]
        assert "seed=7)" in texts[f"ex{task.number}-check"]
        assert ('language="zh"' in texts[f"ex{task.number}-check"]) == (language == "zh")
        if importlib.util.find_spec("nbformat"):
            import nbformat

            nbformat.validate(nbformat.reads(source.decode(), as_version=4))


def test_code_to_repair_is_released_as_it_is_and_its_repair_is_not(tmp_path):
    path = tmp_path / "ex04_lora_backward.py"
    text = exercise("04").source.replace(
        "### END SOLUTION\n", "### END SOLUTION\n    #| dx = dy @ W\n    #| return dx\n"
    )
    path.write_text(text, encoding="utf-8")
    (source,) = nbgrader.source([replace(exercise("04"), path=path)], notebook.Setting()).values()
    assert "    dx = dy @ W\n    return dx\n" in released(source)
    assert "raise NotImplementedError" not in released(source)


def test_the_check_cell_ends_in_a_plain_float(capsys):
    pytest.importorskip("IPython")
    (source,) = nbgrader.source([exercise("04")], notebook.Setting()).values()
    for answer, points in ((RIGHT, 3), (WRONG, 2)):
        space = {}
        exec(answer, space)
        *lines, last = cells(source)["ex04-check"].splitlines()
        exec("\n".join(lines), space)
        value = eval(last, space)
        assert type(value) is float
        assert value == points
    metadata = json.loads(source)["cells"][2]["metadata"]["nbgrader"]
    assert (metadata["points"], metadata["grade"]) == (3, True)


def test_full_points_need_the_rules_too():
    def product_formed(x, W, b, A, B, alpha):
        return x @ (W + alpha / max(len(A), 1) * B @ A).T + b

    assert check("01", exercise("01").parts[0].solution).points == 1
    broken = check("01", product_formed)
    assert not broken.passed
    assert broken.points == 0


def test_what_a_function_prints_to_stderr_stays_in_the_result(capfd):
    def lora_backward(*arguments):
        print("to stderr", file=sys.stderr)
        return exercise("04").parts[0].solution(*arguments)

    result = check("04", lambda dy, x, keep, W, A, B, alpha, p: lora_backward(dy, x, keep, W, A, B, alpha, p))
    assert result.passed
    assert "to stderr" in result.printed
    assert capfd.readouterr() == ("", "")


def test_the_same_exercises_make_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        assert main(["ex", "export", "--nbgrader", str(tmp_path / name / "course"), "--exercises", "01,4"]) == 0
        assert main(["ex", "export", "--otter", str(tmp_path / name / "lora.zip"), "--exercises", "04"]) == 0
    first = content(tmp_path / "a")
    assert first == content(tmp_path / "b")
    assert Path("course/source/exercises/04.ipynb") in first
    with zipfile.ZipFile(tmp_path / "a" / "lora.zip") as archive:
        assert archive.getinfo("setup.sh").external_attr >> 16 == 0o755
        assert "tests/04.py" in archive.namelist()


class Case:
    """What otter's test_case makes of a function."""

    def __init__(self, name):
        self.name = name

    def __call__(self, function):
        self.function = function
        return self


def test_otter_gives_a_point_a_result_and_the_diagnosis_once(monkeypatch):
    module = type(sys)("otter.test_files")
    module.test_case = Case
    monkeypatch.setitem(sys.modules, "otter", type(sys)("otter"))
    monkeypatch.setitem(sys.modules, "otter.test_files", module)
    text = otter.test(exercise("04"), notebook.Setting())
    for student in ("right", "wrong", "untouched"):
        answer, points = ANSWERS[student]
        given, file = {}, {}
        exec(answer, given)
        exec(text, file)
        failed = []
        for case in [value for value in file.values() if isinstance(value, Case)]:
            try:
                case.function(given)
            except file["Wrong"] as wrong:
                failed.append(str(wrong))
        assert 3 - len(failed) == points
        assert [len(said) > 10 for said in failed] == [True, False, False][: len(failed)]


def test_an_endless_loop_ends_under_otter(monkeypatch):
    module = type(sys)("otter.test_files")
    module.test_case = Case
    monkeypatch.setitem(sys.modules, "otter.test_files", module)
    file = {}
    exec(otter.test(exercise("04"), notebook.Setting()).replace("SECONDS = 60", "SECONDS = 0.2"), file)

    def lora_backward(dy, x, keep, W, A, B, alpha, p):
        while True:
            pass

    with pytest.raises(file["Wrong"], match="no answer within"):
        file["case_1"].function({"lora_backward": lora_backward})


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--nbgrader", "full"], "full already holds mine.txt: choose another folder"),
        (["--pack", "lora-week", "full"], "full already holds mine.txt"),
        (["--otter", "full/mine.txt"], "does not end in .zip"),
        (["--otter", "full.zip"], "full.zip is there already"),
        (["--nbgrader", "new", "--exercises", "01,99"], "there is no exercise '99'"),
        (["--nbgrader", "new", "--otter", "new.zip"], "give one of --nbgrader, --otter and --pack: 2 were given"),
        ([], "give one of --nbgrader, --otter and --pack: 0 were given"),
        (["--nbgrader", "new", "--assignment", "../a"], "--assignment '../a' names a folder"),
        (["--pack", "lora", "new"], "there is no pack 'lora': choose from lora-week"),
        (["--pack", "lora-week", "new", "--exercises", "01"], "--exercises does not go with --pack"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(words, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    (tmp_path / "full.zip").touch()
    assert main(["ex", "export", *words]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert set(content(tmp_path)) == {Path("full/mine.txt"), Path("full.zip")}


# ---- the week ----


@pytest.fixture(scope="module", autouse=True)
def in_the_clone():
    """Of an installed package too: the notebooks are beside the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pack, "CLONE", ROOT)
        yield


@pytest.fixture(scope="module")
def week(tmp_path_factory):
    pytest.importorskip("nbconvert", reason="slides need the extra [notebooks]")
    folder = tmp_path_factory.mktemp("pack") / "week"
    assert main(["ex", "export", "--pack", "lora-week", str(folder)]) == 0
    return folder


def test_the_week_names_what_it_lacks_and_has_the_rest(week):
    readme = (week / "README.md").read_text(encoding="utf-8")
    plan = pack.PACKS["lora-week"]
    for number in plan.notebooks:
        made = list((week / "slides").glob(f"{number}_*.html"))
        assert bool(made) != (f"notebook {number}" in readme.partition("Not in this version")[2])
    for folder, wanted in (("lab", plan.lab), ("problem-set", plan.problems)):
        have = [number for number in wanted if number in numbers()]
        assert [path.name[2:4] for path in sorted((week / folder).glob("ex*.py"))] == have
        assert [path.stem for path in sorted((week / "nbgrader" / "source" / folder).iterdir())] == have
        assert all(f"exercise {number}" in readme for number in set(wanted) - set(have))
    for link in re.findall(r"\]\(([^)]+)\)", readme):
        assert (week / link).exists()


def test_the_rubric_and_the_oral_questions_cover_every_exercise(week):
    rubric, viva = ((week / name).read_text(encoding="utf-8") for name in ("rubric.md", "viva.md"))
    plan = pack.PACKS["lora-week"]
    tasks = [exercise(number) for number in plan.lab + plan.problems if number in numbers()]
    assert f"{sum(task.asked for task in tasks)} in all" in rubric
    for task in tasks:
        assert f"## {task.number} {task.title}: {task.asked} point" in rubric
        assert len(task.viva) == 2
        for sentence in (sentence for question in task.viva for sentence in question):
            assert sentence in viva
            assert task.said(sentence).zh in viva


def test_a_student_finds_no_solution_in_the_week(week):
    plan = pack.PACKS["lora-week"]
    for number in plan.lab + plan.problems:
        if number in numbers():
            lines = solution_lines(exercise(number))
            for folder in ("lab", "problem-set"):
                for path in (week / folder).iterdir():
                    assert not [line for line in lines if line in path.read_text(encoding="utf-8")], path


def test_a_folder_with_some_exercises_is_a_folder_of_exercises(week, capsys):
    assert main(["ex", "check", "--dir", str(week / "lab")]) == 0
    assert main(["ex", "list", "--dir", str(week / "lab"), "--json"]) == 0
    have = {number for number in pack.PACKS["lora-week"].lab if number in numbers()}
    assert {row["exercise"] for row in json.loads(capsys.readouterr().out)} == have


def test_a_week_in_chinese_with_constants_of_its_own_says_so_everywhere(tmp_path):
    pytest.importorskip("nbconvert", reason="slides need the extra [notebooks]")
    assert main(["ex", "export", "--pack", "lora-week", str(tmp_path / "week"), "--lang", "zh", "--seed", "7"]) == 0
    progress = json.loads((tmp_path / "week" / "lab" / "progress.json").read_text(encoding="utf-8"))
    assert (progress["language"], progress["seed"]) == ("zh", 7)
    made = cells((tmp_path / "week" / "nbgrader" / "source" / "lab" / "04.ipynb").read_bytes())
    assert 'check("04", lora_backward, language="zh", seed=7)' in made["ex04-check"]


def test_without_the_notebooks_the_pack_says_where_they_are(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pack, "CLONE", tmp_path)
    assert main(["ex", "export", "--pack", "lora-week", str(tmp_path / "week")]) == 2
    assert "clone the repository" in capsys.readouterr().err
    assert not (tmp_path / "week").exists()


def test_without_nbconvert_the_pack_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "nbconvert", None)
    assert main(["ex", "export", "--pack", "lora-week", str(tmp_path / "week")]) == 2
    assert "pip install '.[notebooks]'" in capsys.readouterr().err
    assert not (tmp_path / "week").exists()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem[:2])
def test_slides_fetch_nothing_and_hold_every_cell(path):
    pytest.importorskip("nbconvert", reason="slides need the extra [notebooks]")
    page = slides.slides(path).decode()
    assert slides.slides(path).decode() == page
    book = json.loads(path.read_text(encoding="utf-8"))
    assert page.count("<section") >= len(book["cells"])
    figures = sum("image/png" in output.get("data", {}) for cell in book["cells"] for output in cell.get("outputs", []))
    assert page.count("<img") >= figures
    assert not re.findall(r"<(?:script|link|img|iframe|source)[^>]+(?:src|href)=\"(?!data:)", page)
    assert not re.findall(r"@import|url\(", page)
    formulas = re.findall(r"<math.*?</math>", page, re.DOTALL)
    notes = [cell["metadata"]["notes"] for cell in book["cells"] if "notes" in cell["metadata"]]
    assert page.count("<aside>") == len(notes) > 0
    texts = "".join("".join(cell["source"]) for cell in book["cells"] if cell["cell_type"] == "markdown")
    texts += "".join(notes)
    assert len(formulas) == len(re.findall(r"\$\$.+?\$\$|\$.+?\$", texts, re.DOTALL))
    assert not [formula for formula in formulas if "\\" in formula or "&<" in formula]  # what MathML does not know


# ---- nbgrader and otter themselves ----


def run(command, folder):
    """A tool of this environment, with a home of its own."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # nbgrader calls alembic
    environment = os.environ | {"HOME": str(folder), "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore", "PATH": path}
    command = [sys.executable, "-m", *command]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def handed_in(data, answer, cell):
    """The notebook with an answer in it, as it was saved."""
    book = json.loads(data)
    if answer:
        next(each for each in book["cells"] if each["id"] == cell)["source"] = answer
    return json.dumps(book)


@pytest.mark.slow
def test_nbgrader_gives_the_points_and_shows_the_diagnosis(tmp_path):
    pytest.importorskip("nbgrader", reason="needs the extra [grading]")
    course = tmp_path / "course"
    assert main(["ex", "export", "--nbgrader", str(course), "--exercises", "04"]) == 0
    run(["nbgrader", "generate_assignment", "exercises"], course)
    release = (course / "release" / "exercises" / "04.ipynb").read_text(encoding="utf-8")
    assert cells(release)["ex04-solution"].strip() == notebook.code(exercise("04").stub())
    for student, (answer, _) in ANSWERS.items():
        path = course / "submitted" / student / "exercises" / "04.ipynb"
        path.parent.mkdir(parents=True)
        path.write_text(handed_in(release, answer, "ex04-solution"), encoding="utf-8")
    run(["nbgrader", "autograde", "exercises"], course)
    run(["nbgrader", "generate_feedback", "exercises"], course)
    run(["nbgrader", "export"], course)
    with (course / "grades.csv").open(encoding="utf-8") as file:
        grades = {row["student_id"]: (float(row["score"]), float(row["max_score"])) for row in csv.DictReader(file)}
    assert grades == {student: (points, 3) for student, (_, points) in ANSWERS.items()}
    feedback = (course / "feedback" / "wrong" / "exercises" / "04.html").read_text(encoding="utf-8")
    assert "lacks the dropout mask" in feedback


@pytest.mark.slow
@pytest.mark.parametrize("student", ["right", "wrong", "untouched"])
def test_otter_gives_the_points_of_two_exercises_that_share_a_name(tmp_path, student):
    pytest.importorskip("otter", reason="needs the extra [grading]")
    assert main(["ex", "export", "--otter", str(tmp_path / "lora.zip"), "--exercises", "04,01"]) == 0
    book = (tmp_path / "lora.ipynb").read_text(encoding="utf-8")
    answer, points = ANSWERS[student]
    book = handed_in(book, answer, "ex04-answer")
    later = notebook.code(exercise("01").solution()) + "\n\n\ndef lora_backward(*arguments):\n    return None\n"
    book = handed_in(book, later, "ex01-answer")
    (tmp_path / "handed_in.ipynb").write_text(book, encoding="utf-8")
    run(["otter", "run", "handed_in.ipynb", "-a", "lora.zip", "-o", ".", "--no-logo"], tmp_path)
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["tests"]
    scores = {test["name"]: test["score"] for test in results if "score" in test}
    assert scores == {"04": pytest.approx(points), "01": pytest.approx(1)}
    assert ("lacks the dropout mask" in str(results)) == (student == "wrong")
    assert not [line for line in solution_lines(exercise("04")) if student == "untouched" and line in str(results)]
