"""docs/site/exercises.py: each exercise has a page in both languages, and no page says more than `minilora ex` does
before an attempt."""

import posixpath
import re
import runpy
import sys
from pathlib import Path

import pytest

from minilora.practice import exercise
from minilora.practice.catalogue import is_twin, missing, numbers, sheet
from minilora.practice.tracks import full_path
from minilora.verify.language import Words

ROOT = Path(__file__).parents[2]
CHINESE = re.compile("[一-鿿]")
CODE = re.compile(r"```.*?```", re.DOTALL)
LINK = re.compile(r"\]\(([^)\s#]+)#?([^)\s]*)\)")
ELSEWHERE = (  # (where pages of the site stand, the files that they are made of)
    (r"course/(.*)", r"notebooks/\1"),
    (r"questions/(.*)", r"exercises/questions/\1"),
    (r"reference/minilora\.ops\.(\w+)\.md", r"minilora/ops/\1.py"),
)


def parameter(number):
    marks = [pytest.mark.oracle, pytest.mark.skipif(bool(missing(number)), reason=f"needs {missing(number)}")]
    return pytest.param(number, marks=marks if is_twin(number) else [])


EACH = pytest.mark.parametrize("number", [parameter(number) for number in numbers()])


@pytest.fixture(scope="module")
def site():
    return runpy.run_path(str(ROOT / "docs/site/exercises.py"))


@pytest.fixture(scope="module")
def pages(site):
    return site["pages"]()


def both(pages, number):
    """The pages of an exercise, without what Markdown needs: as they are read."""
    found = [pages[f"exercises/{language}/{sheet(number).name}.md"] for language in Words._fields]
    return [text.replace("\\", "") for text in found]


def test_every_exercise_has_a_page_in_both_languages_and_there_is_no_other_page(pages):
    names = ["index", *(sheet(number).name for number in numbers())]
    assert set(pages) == {f"exercises/{language}/{name}.md" for language in ("en", "zh") for name in names}


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_index_lists_every_exercise_once_in_the_order_of_the_loop(pages, language):
    names = [sheet(number).name for number in (*full_path(), *filter(is_twin, numbers()))]
    table, _, menu = pages[f"exercises/{language}/index.md"].partition("```{toctree}")
    assert re.findall(r"^\| \[.*\]\((ex\w+)\.md\)", table, re.MULTILINE) == names
    assert re.findall(r"^ex\w+$", menu, re.MULTILINE) == names


@EACH
def test_no_page_holds_a_line_of_the_solution(pages, number):
    task = exercise(number)
    given = task.stub() + task.stub("zh")
    lines = {line.strip() for line in task.solution().splitlines() if len(line.strip()) > 8}
    lines = {line for line in lines if line not in given}
    assert lines
    for text in both(pages, number):
        assert not [line for line in lines if line in text]


@EACH
def test_no_page_names_a_mistake_or_answers_what_is_asked_when_it_is_passed(pages, number):
    task = exercise(number)
    mistakes = [mistake for part in task.parts for mistake in part.all_mistakes().values()]
    said = {text for mistake in mistakes for text in (*mistake.says, *mistake.asks)}
    said |= {text for viva in task.viva for sentence in viva for text in task.said(sentence)}
    assert len(said) > 4
    for text in both(pages, number):
        flat = text.replace("\n", " ")
        assert not [each for each in said if max(re.split(r"\{\w+\}", each), key=len) in flat]


@EACH
def test_a_page_shows_the_file_that_is_handed_out_the_hints_and_the_call_that_checks(pages, number):
    task = exercise(number)
    for language, text in zip(Words._fields, both(pages, number), strict=True):
        assert text.startswith(f"# {number} · {task.heading(language)}\n")
        stub, code = task.stub(language), re.search(r"```python\n(.*?)\n```", text, re.DOTALL)[1]
        assert stub.endswith(f'"""\n\n{code}\n') or stub.endswith(f'"""\n\n\n{code}\n')
        shown = re.sub(r"\[([^]]*)\]\(ex\w+\.md\)", r"\1", text)
        assert all(task.said(hint).in_language(language) in shown for hint in task.hints)
        called = re.search(rf'^check\("{number}", (.*?)(, language="zh")?\)$', text, re.MULTILINE)
        assert called[1].split(", ") == [part.name for part in task.parts]
        assert bool(called[2]) == (language == "zh")


def test_a_twin_is_described_where_torch_is_not_installed(site, monkeypatch):
    exercise.cache_clear()
    monkeypatch.setitem(sys.modules, "torch", None)
    twins = [number for number in numbers() if is_twin(number)]
    assert all(missing(number) for number in twins)
    assert all(site["described"](number).hints for number in twins)


@pytest.mark.parametrize("number", [parameter(number) for number in numbers() if is_twin(number)])
def test_what_is_read_from_the_file_of_a_twin_is_what_it_says_when_imported(site, number):
    read, imported = site["described"](number), exercise(number)
    for name in ("number", "title", "kind", "minutes", "difficulty", "hints", "needs", "asks", "derivation"):
        assert getattr(read, name) == getattr(imported, name)


def test_every_link_leads_to_a_page_and_every_anchor_to_a_question(pages):
    links = 0
    for page, text in pages.items():
        for target, anchor in LINK.findall(CODE.sub("", text)):
            where = posixpath.normpath(posixpath.join(posixpath.dirname(page), target))
            links += 1
            if where in pages:
                continue
            [source] = [re.sub(there, here, where) for there, here in ELSEWHERE if re.fullmatch(there, where)]
            assert (ROOT / source).exists(), f"{page}: {target}"
            assert not anchor or f'<a id="{anchor}"></a>' in (ROOT / source).read_text(encoding="utf-8")
    assert links > 400


def test_the_words_around_a_chinese_statement_are_chinese(pages):
    for page, text in pages.items():
        heads = re.findall(r"^(?:#+ |- |<details><summary>)(.+)$", CODE.sub("", text), re.MULTILINE)
        heads = [head for head in heads if head != "Notebook"]
        assert len(heads) > 1
        if "/zh/" in page:
            assert all(CHINESE.search(head) for head in heads), page
        else:
            assert not CHINESE.search(text), page
