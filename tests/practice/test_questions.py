"""Each question is whole in both languages, each check decides, and what was known comes again in time."""

import io
import json
import re
from datetime import date, timedelta
from pathlib import Path

import examples
import pytest

from minilora.cli import main
from minilora.practice.articles import statements
from minilora.practice.catalogue import numbers, sheet
from minilora.practice.questions import checks, questions, run_check, topics
from minilora.practice.questions.anki import deck
from minilora.practice.questions.boxes import DAYS, graded, order
from minilora.practice.questions.catalogue import KINDS, chosen
from minilora.practice.workspace import initialise

ROOT = Path(__file__).parents[2]
CHINESE = re.compile("[一-鿿]")


def test_a_question_is_whole_in_both_languages():
    for question in questions().values():
        assert question.kind in KINDS
        assert question.level in (1, 2, 3, 4)
        assert question.topic in topics()
        for says in (question.question, question.answer, question.wrong):
            assert CHINESE.search(says.zh)
            assert says.en
            assert not CHINESE.search(says.en)


def test_a_question_is_decided_by_a_check_or_rests_on_a_source_with_a_year():
    for question in questions().values():
        assert question.check in checks() if question.check else re.search(r"\b(19|20)\d\d\b", question.source)


def test_what_a_question_leads_to_is_there():
    for question in questions().values():
        assert not question.exercise or question.exercise in numbers()
        assert not question.notebook or list(ROOT.glob(f"notebooks/{question.notebook}_*.ipynb"))


def test_no_line_of_chinese_is_broken_by_a_space():
    for question in questions().values():
        for says in (question.question, question.answer, question.wrong):
            assert not re.search(r"[\u3000-\u9fff\uff00-\uffef] ?\n(?=[\u4e00-\u9fff])", says.zh.replace("\n\n", "¶"))


@pytest.mark.parametrize("name", examples.some_of(checks(), 6))
def test_a_check_holds_and_says_its_numbers(name):
    said = run_check(name)
    assert re.search(r"\d|[✓✗]", said)
    assert "\n" not in said


def test_every_check_decides_a_question_or_a_statement_of_the_articles():
    decided = {each.check for each in (*questions().values(), *statements().values())}
    assert decided - {""} == set(checks())


def test_a_question_that_was_known_moves_a_box_on_and_another_comes_again_tomorrow():
    today = date(2026, 11, 30)
    card, boxes = None, []
    for known in (True, True, True, False, True):
        card = graded(card, known, today)
        boxes.append(card.box)
        assert card.due == (today + timedelta(days=DAYS[card.box])).isoformat()
    assert boxes == [1, 2, 2, 0, 1]


def test_what_is_due_longest_comes_first_and_what_is_not_due_does_not_come():
    first, second, third, *others = questions().values()
    monday = date(2026, 11, 30)
    cards = {first.key: graded(None, False, monday), second.key: graded(None, False, monday - timedelta(days=5))}
    cards[third.key] = graded(None, True, monday)
    tuesday = monday + timedelta(days=1)
    assert order(list(questions().values()), cards, tuesday) == [second, first, *others]


def test_a_topic_that_does_not_exist_is_refused_with_those_there_are():
    assert {question.topic for question in chosen("b")} == {"B"}
    with pytest.raises(ValueError, match="there is no topic 'Gradient': choose from A "):
        chosen("Gradient")


@pytest.mark.parametrize("language", ["en", "zh"])
def test_anki_gets_four_fields_a_question_and_never_the_same_id(language):
    lines = deck(questions().values(), language).decode().splitlines()
    rows = [line.split("\t") for line in lines if not line.startswith("#")]
    assert {len(row) for row in rows} == {4}
    assert len({row[0] for row in rows}) == len(questions())


@pytest.fixture
def ask(tmp_path, monkeypatch, capsys):
    """`minilora ex ask` with these lines typed; what it printed."""
    monkeypatch.chdir(tmp_path)

    def run(typed, *arguments):
        monkeypatch.setattr("sys.stdin", io.StringIO(typed))
        assert main(["ex", "ask", *arguments]) == 0
        return capsys.readouterr().out

    return run


def test_asking_keeps_what_was_known_beside_the_exercises(ask, tmp_path):
    initialise(tmp_path / "work")
    assert "1 of 2 known" in ask("x\ny\nx\nn\nq\n", "--dir", "work", "--topic", "B")
    kept = json.loads((tmp_path / "work" / "progress.json").read_text())["questions"]
    assert [card["box"] for card in kept.values()] == [1, 0]
    again = ask("q\n", "--dir", "work", "--topic", "B")
    assert not any(f"{key} ·" in again for key in kept)


def test_the_answer_comes_after_a_key_and_the_end_of_the_input_ends_the_round(ask):
    first = next(iter(questions().values()))
    shown = ask("")
    assert "is not kept here" in shown
    assert first.question.en.split()[0] in shown
    assert "Usually wrong" not in shown
    shown = ask("x\n", "--lang", "zh")
    assert "常见错误" in shown
    assert "答对" in shown  # asked for, and no sum of none
    assert "共 0 题" not in shown


def test_anki_is_written_and_nothing_is_asked(ask, tmp_path):
    assert "questions in deck.txt" in ask("", "--anki", "deck.txt", "--flash")
    rows = (tmp_path / "deck.txt").read_text(encoding="utf-8").splitlines()
    assert all(line.startswith("#") or line.endswith("often-wrong") for line in rows)


def test_all_115_questions_are_there_and_28_of_them_are_often_answered_wrongly():
    numbers = {"A": 10, "B": 9, "C": 13, "D": 11, "E": 10, "F": 10, "G": 11, "H": 18, "I": 13, "J": 10}
    assert list(questions()) == [f"{letter}{i}" for letter, n in numbers.items() for i in range(1, n + 1)]
    assert len(chosen(flash=True)) == 28


def test_a_level_that_a_topic_does_not_have_is_said_and_so_is_a_level_that_there_is_not(ask, capsys):
    with pytest.raises(ValueError, match="there is no such question: B has none of level 4"):
        chosen("b", 4)
    with pytest.raises(SystemExit) as ended:
        main(["ex", "ask", "--level", "9"])
    assert ended.value.code == 2
    assert "choose from 1, 2, 3, 4" in capsys.readouterr().err


def test_a_damaged_progress_is_refused_and_not_taken_for_none(ask, tmp_path, capsys):
    initialise(tmp_path / "exercises")
    (tmp_path / "exercises" / "progress.json").write_text("{bad", encoding="utf-8")
    assert main(["ex", "ask"]) == 2
    assert "cannot be read" in capsys.readouterr().err


def test_a_folder_of_some_exercises_links_to_no_page_that_is_not_there(tmp_path):
    initialise(tmp_path / "some", tasks=[sheet("04")])
    assert "questions/" not in (tmp_path / "some" / "README.md").read_text(encoding="utf-8")
