"""What must hold of every exercise: its stub, its solution, its mistakes, its Chinese."""

import ast
import doctest
import unicodedata

import examples
import numpy as np
import pytest

from minilora.practice import check, check_file, exercise
from minilora.practice.catalogue import is_twin, missing, numbers
from minilora.practice.exercise import KINDS
from minilora.practice.kills import blunt_answers, kills, left_out, recorded
from minilora.verify.language import catalogue


def parameter(number):
    marks = [pytest.mark.oracle, pytest.mark.skipif(bool(missing(number)), reason=f"needs {missing(number)}")]
    return pytest.param(number, marks=marks if is_twin(number) else [])


each_exercise = pytest.mark.parametrize("number", [parameter(number) for number in numbers()])
some_exercises = pytest.mark.parametrize("number", [parameter(number) for number in examples.some_of(numbers(), 6)])
SAID = {"words", "mistake", "rule", "Viva"}  # calls whose texts are said to the learner


def written(tmp_path, number, text):
    path = tmp_path / f"{exercise(number).name}.py"
    path.write_text(text, encoding="utf-8")
    return path


def width(line):
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in line)


@some_exercises
def test_a_stub_is_not_started_and_what_is_to_be_repaired_is_wrong(tmp_path, number):
    task = exercise(number)
    result = check_file(number, written(tmp_path, number, task.stub()))
    assert result.state == "not started"
    assert [finding.kind for finding in result.findings] == ["not written"] * len(task.parts)
    result = check_file(number, written(tmp_path, number, task.stub() + "\n"))  # it is run now, and fails by itself
    assert not result.passed
    assert "#| " in task.source or result.state == "not started"


@pytest.mark.each_value
@each_exercise
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_solution_passes_whatever_the_constants_are(tmp_path, number, seed):
    result = check_file(number, written(tmp_path, number, exercise(number).solution()), seed=seed)
    assert result.passed, result


@some_exercises
def test_a_solution_passes_in_a_notebook(number):
    assert check(number, *(part.solution for part in exercise(number).parts)).passed


@each_exercise
@pytest.mark.slow
def test_every_listed_mistake_is_seen_and_named_in_each_tensor(number):
    found = kills(exercise(number))
    assert not [kill for kill in found if not kill.seen]
    assert not [kill for kill in found if not kill.named]
    assert recorded()[number]["listed"] == len(found), "python -m minilora.practice.record counts anew"


@each_exercise
@pytest.mark.slow
def test_a_mistake_that_is_not_listed_gets_no_other_name(number):
    assert not [kill for part in exercise(number).parts for kill in left_out(part) if kill.others or not kill.seen]


@some_exercises
def test_an_answer_that_computes_nothing_fails(number):
    with np.errstate(all="ignore"):
        for part in exercise(number).parts:
            for name, answer in blunt_answers(part).items():
                assert any(finding.kind != "right" for finding in part.check(answer).findings), (part.name, name)


@each_exercise
def test_the_numbers_that_a_statement_works_out_by_hand_are_right(number):
    task = exercise(number)
    space = {}
    exec(task.solution(), space)
    tests = [t for part in task.parts for t in doctest.DocTestFinder().find(space[part.name], part.name, globs=space)]
    assert sum(len(test.examples) for test in tests)
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    assert not any(runner.run(test).failed for test in tests)


@each_exercise
def test_a_statement_is_one_page_for_80_columns_and_bears_the_title(number):
    task = exercise(number)
    for language in ("en", "zh"):
        lines = task.statement(language).splitlines()
        assert lines[0] == f"{number} · {task.said(task.title).in_language(language)}"
        assert len(lines) <= 45
        assert max(map(width, lines)) <= 80
    assert max(map(width, task.stub().splitlines())) <= 120


@each_exercise
def test_every_sentence_of_an_exercise_is_there_in_chinese(number):
    task = exercise(number)
    said = {task.title, *task.hints, *(sentence for viva in task.viva for sentence in viva)}
    for node in ast.walk(ast.parse(task.path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) in SAID:
            said |= {text.value for text in node.args if isinstance(text, ast.Constant) and isinstance(text.value, str)}
    assert not {text for text in said if text not in catalogue()}
    mistakes = [mistake for part in task.parts for mistake in part.all_mistakes().values()]
    assert not [m.name for m in mistakes if m.says.zh == m.says.en or m.asks.zh == m.asks.en]


@each_exercise
def test_what_an_exercise_says_of_itself_fits(number):
    task = exercise(number)
    assert task.kind in KINDS
    assert 1 <= task.difficulty <= 5
    assert len(task.hints) == 2
    assert len(task.viva) == 2
    assert set(task.needs) <= set(numbers()) - {number}
