"""minilora ex as a command, pytest over a folder of exercises, and check() in a notebook."""

import json
import shutil
import subprocess
import sys

import pytest

from minilora.cli import main
from minilora.practice import case, check, exercise
from minilora.practice.workspace import initialise

WRONG = exercise("04").solution().replace("    s = alpha / len(A)\n", "    s = alpha\n")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    initialise(folder / "exercises")
    (folder / "exercises" / "ex03_linear_backward.py").write_text(exercise("03").solution(), encoding="utf-8")
    (folder / "exercises" / "ex04_lora_backward.py").write_text(WRONG, encoding="utf-8")
    return folder


@pytest.fixture
def here(made, tmp_path, monkeypatch):
    shutil.copytree(made, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def test_check_says_what_is_wrong_and_its_exit_code_is_1_until_it_passes(here, capsys):
    assert main(["ex", "check", "4"]) == 1
    assert "not divided by the rank r" in capsys.readouterr().out
    assert main(["ex", "check", "03", "--lang", "zh"]) == 0
    assert "线性层的反向传播：通过" in capsys.readouterr().out
    assert main(["ex", "check"]) == 1
    shown = capsys.readouterr().out
    assert "03 A linear layer's backward: passed" in shown
    assert "01 The forward" not in shown


def test_json_says_for_each_tensor_what_a_tutor_needs(here, capsys):
    assert main(["ex", "check", "04", "--json"]) == 1
    shown = json.loads(capsys.readouterr().out)
    assert (shown["exercise"], shown["state"], shown["right"], shown["asked"]) == ("04", "wrong", 0, 3)
    findings = shown["parts"]["lora_backward"]["findings"]
    assert {finding["tensor"] for finding in findings} == {"dx", "dA", "dB"}
    assert all(finding["mistake"] == "not_divided_by_r" for finding in findings)
    assert all(set(finding["says"]) == {"en", "zh"} for finding in findings)
    assert all(0 < finding["relative_error"] < 1 for finding in findings)
    assert main(["ex", "list", "--json"]) == 0
    listed = {row["exercise"]: row for row in json.loads(capsys.readouterr().out)}
    assert listed["04"]["mistakes"] == {"not_divided_by_r": 1}


def test_a_file_handed_in_is_checked_with_the_constants_of_its_student(here, capsys):
    (here / "handed_in.py").write_text(exercise("04").solution(), encoding="utf-8")
    assert main(["ex", "check", "04", "--file", "handed_in.py", "--seed", "ab123"]) == 0
    first = case("04", 0)["x"]
    assert not (case("04", 0, seed=5)["x"] == first).all()
    assert (case("04", 6, seed=5)["x"] == first).all()


def test_hint_solution_and_reset_do_as_they_say(here, capsys):
    assert main(["ex", "hint", "04"]) == 0
    assert "hint 1 of 2" in capsys.readouterr().out
    assert main(["ex", "solution", "04"]) == 0
    assert "dh = s * dy @ B" not in capsys.readouterr().out
    assert main(["ex", "solution", "04", "--spoil"]) == 0
    assert "dh = s * dy @ B" in capsys.readouterr().out
    assert main(["ex", "reset", "04"]) == 0
    assert "your attempt is" in capsys.readouterr().out
    assert main(["ex", "reset", "04"]) == 0
    assert "your attempt" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["check", "99"], "there is no exercise '99'"),
        (["hint", "ex04_lora_bacward"], "did you mean 'ex04_lora_backward'"),
        (["check", "--file", "x.py"], "say which exercise the file is"),
        (["list", "--dir", "nowhere"], "minilora ex init nowhere"),
        (["init", "exercises/README.md"], "README.md"),
    ],
)
def test_bad_input_is_one_line_that_says_what_to_do(here, capsys, words, says):
    assert main(["ex", *words]) == 2
    shown = capsys.readouterr()
    assert says in shown.err
    assert shown.err.count("\n") == 1


@pytest.mark.slow
def test_without_a_terminal_the_loop_reads_lines_and_ends_with_its_input(here):
    command = [sys.executable, "-m", "minilora", "ex"]
    done = subprocess.run(command, input="l\n4\nh\nq\n", capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "04 · LoRA's backward" in done.stdout
    assert "hint 1 of 2" in done.stdout
    assert "\x1b[" not in done.stdout


@pytest.mark.slow
def test_pytest_over_the_folder_has_a_test_for_each_result(here):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "exercises"]
    done = subprocess.run(
        [*command, "-k", "ex01_ or ex03 or ex04"], capture_output=True, text=True, timeout=120, check=False, cwd=here
    )
    assert "4 failed, 3 passed" in done.stdout, done.stdout
    assert "FAILED exercises/ex04_lora_backward.py::lora_backward:dA" in done.stdout
    assert "not divided by the rank r" in done.stdout
    assert "lora_forward is not written yet" in done.stdout


# ---- in a notebook ----


def test_check_shows_itself_and_raises_nothing_for_a_wrong_answer():
    result = check("04", lambda *arguments: 1 / 0)
    assert result.state == "wrong"
    assert "ZeroDivisionError" in result._repr_html_()
    assert "<table" in result._repr_html_()
    assert check("04", None).state == "wrong"
    assert "<b>" not in check("04", lambda dy, x, keep, W, A, B, alpha, p: "<b>")._repr_html_()[3:].split("</b>", 1)[1]


def test_functions_are_found_by_their_names_in_any_order():
    first, second = (part.solution for part in exercise("13").parts)
    assert check("13", second, first).passed
    assert check("13", lambda *a: first(*a), lambda *a: second(*a)).state == "passed"


def test_functions_that_are_not_given_are_not_graded():
    first, second = (part.solution for part in exercise("13").parts)
    both, one = check("13", first, second), check("13", second)
    assert one.passed
    assert one.asked == len(exercise("13").parts[1].results) < both.asked
    assert check("13", None, second).state == "wrong"


def test_too_many_answers_and_unknown_exercises_are_refused():
    with pytest.raises(ValueError, match="has 1 functions"):
        check("04", 1, 2)
    with pytest.raises(ValueError, match="there is no exercise"):
        check("99")
    with pytest.raises(ValueError, match="has no case 6"):
        case("04", 6)


def test_a_wrong_norm_is_drawn_true_yours_and_the_difference():
    def layer_norm_backward(dy, x, g, eps):
        dx, dg, db = exercise("13").parts[0].solution(dy, x, g, eps)
        return 2 * dx, dg, db

    result = check("13", layer_norm_backward, exercise("13").parts[1].solution)
    (picture,) = result.pictures
    assert picture.tensor == "layer_norm_backward, dx"
    assert picture.yours == pytest.approx(2 * picture.true)
    assert "difference" in result.text()
    assert "background:rgb" in result._repr_html_()
