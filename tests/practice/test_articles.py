"""The five articles on trial: every heading and every statement has its answer, in both languages."""

import math
import re
import shlex
from collections import Counter

import pytest

from minilora.cli import main
from minilora.practice.articles import VERDICTS, headings, sections, statements
from minilora.practice.articles.pages import pages
from minilora.practice.articles.worked import PIPELINE, steps
from minilora.practice.questions import checks, questions

CHINESE = re.compile("[一-鿿]")
PLACE = re.compile(r"00[0134]#\d+|002 Q\d|00[0-4] (§\d+(\.\d+)*|title|intro|abstract)|001|002|003")


def test_all_headings_are_there_each_once():
    articles = Counter(place[:3] for place in headings())
    assert articles == {"000": 30, "001": 30, "002": 5, "003": 8, "004": 30}


def test_a_heading_is_answered_by_questions_of_ours_or_is_an_opinion():
    for heading in headings().values():
        assert CHINESE.search(heading.asks.zh)
        assert bool(heading.questions) != bool(heading.opinion)
        assert set(heading.questions) <= set(questions())
        places = list(headings())
        assert not heading.same_as or places.index(heading.same_as) < places.index(heading.place)


def test_all_statements_are_there_with_their_verdicts():
    assert len(statements()) == 161
    assert {each.verdict for each in statements().values()} <= set(VERDICTS)
    letters = [each.key[0] for each in statements().values()]
    assert list(dict.fromkeys(letters)) == list(sections())
    for letter, n in Counter(letters).items():
        assert [key for key in statements() if key[0] == letter] == [f"{letter}{i}" for i in range(1, n + 1)]


def test_a_statement_is_whole_in_both_languages_and_its_check_is_there():
    for statement in statements().values():
        assert statement.places
        assert all(PLACE.fullmatch(place) for place in statement.places)
        assert not statement.check or statement.check in checks()
        for says in (statement.says, statement.right):
            assert CHINESE.search(says.zh)
            assert says.en
            assert not CHINESE.search(says.en)
            assert "\n" not in says.en + says.zh


def test_the_page_counts_each_verdict_and_every_link_of_it_leads_somewhere():
    page = pages()["en/articles.md"]
    counts = Counter(each.verdict for each in statements().values())
    for verdict in VERDICTS:
        assert f"| {verdict} | {counts[verdict]} |" in page
    assert "| all | 161 |" in page
    for file, anchor in re.findall(r"\]\((\w*\.?m?d?)#(\w+)\)", page):
        assert anchor.upper() in (questions() if file else statements())


def test_the_worked_numbers_are_those_that_follow():
    found = {step.step.en: step.right for step in steps()}
    assert found["softmax of (2, 1)"] == f"[{1 / (1 + math.exp(-1)):.4f}, {1 / (1 + math.e):.4f}]"
    assert found["loss of a constant guess, two classes"] == f"{math.log(2):.4f}"
    assert found["the rank from which factors are no smaller"] == "75"
    assert found["output softmax(Q Kᵀ) V"] == "[0.5777, 0.6667, 0.5777]"


@pytest.mark.parametrize("command", [command for _, command in PIPELINE])
def test_the_commands_of_the_pipeline_are_commands(command):
    words = shlex.split(command.partition("| ")[2] or command)[1:]
    with pytest.raises(SystemExit) as ended:
        main([*words, "--help"])
    assert ended.value.code == 0
