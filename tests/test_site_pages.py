"""docs/site/pages.py: where each page and each link stands on the web site."""

import re
from pathlib import Path

import pages
import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp("pages")
    pages.assemble(out)
    return out


def test_every_document_notebook_and_page_of_questions_is_on_the_site(site):
    documents = {path.name for path in (ROOT / "docs").glob("*.md")} - {"zh.md"}
    assert {path.name for path in (site / "guide").glob("*.md")} == documents
    notebooks = {path.name for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert {path.name for path in (site / "course").glob("*.ipynb")} == notebooks
    for language in ("en", "zh"):
        questions = {
            path.name.replace("README", "index") for path in (ROOT / f"exercises/questions/{language}").iterdir()
        }
        assert {path.name for path in (site / f"questions/{language}").iterdir()} == questions
    assert (site / "index.md").read_text(encoding="utf-8").startswith("# minilora\n")


def test_every_link_of_an_assembled_page_leads_to_a_file_of_the_site(site):
    links = 0
    for page in site.rglob("*.md"):
        text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        targets = re.findall(r"\]\((?!https?:)([^)\s#]+)", text)
        targets += [link.replace(".html", ".md") for link in re.findall(r'<a href="([^"#]+)', text)]
        for target in targets:
            assert (page.parent / target).exists(), f"{page.relative_to(site)}: {target}"
        links += len(targets)
    assert links > 500


@pytest.mark.parametrize(
    ("path", "where"),
    [
        ("README.md", "index.md"),
        ("docs/rank.md", "guide/rank.md"),
        ("docs/zh.md", "zh/index.md"),
        ("notebooks/README.md", "course/index.md"),
        ("notebooks/07_counting.ipynb", "course/07_counting.ipynb"),
        ("exercises/questions/zh/README.md", "questions/zh/index.md"),
        ("minilora/ops/lora.py", "reference/minilora.ops.lora.md"),
        ("minilora/ops", "reference/minilora.ops.md"),
        ("minilora/practice/exercises/ex04_lora_backward.py", "exercises/en/ex04_lora_backward.md"),
        ("exercises/ex04_lora_backward.py", "exercises/en/ex04_lora_backward.md"),
        ("tests/test_floors.py", "files/tests/test_floors.py"),
    ],
)
def test_a_file_of_the_repository_has_one_place_on_the_site(path, where):
    assert pages.place(path) == where


def test_links_keep_their_words_and_anchors_and_code_is_left_alone(tmp_path):
    def moved(text, path="docs/rank.md"):
        return pages.relinked(text, path, tmp_path)

    assert moved("see [the `map`](../README.md#a-map).") == "see [the `map`](../index.md#a-map)."
    assert moved("[it](#here)") == "[it](#here)"
    assert moved("[far](https://example.org/x.md#y)") == "[far](https://example.org/x.md#y)"
    code = "```text\n[a](missing.md)\n```"
    assert moved(code) == code
    assert moved("```python\n>>> 1\n```") == "```pycon\n>>> 1\n```"
    assert moved("[A11](../exercises/questions/en/articles.md#a11)") == "[A11](../questions/en/articles.md#a11)"
    exercise = "[03](../../ex03_linear_backward.py) · notebook 04"  # below a question
    page, notebook = "../../exercises/zh/ex03_linear_backward.md", "../../course/04_lora_backward.ipynb"
    assert moved(exercise, "exercises/questions/zh/b.md") == f"[03]({page}) · [notebook 04]({notebook})"
    assert moved('## <a id="b1"></a>B1 Derive', "exercises/questions/en/b.md") == "## B1 Derive"
    assert moved("![f](../notebooks/demo.png)") == "![f](../files/notebooks/demo.png)"
    assert (tmp_path / "files/notebooks/demo.png").read_bytes() == (ROOT / "notebooks/demo.png").read_bytes()


def test_a_link_to_what_is_not_there_is_refused_by_name(tmp_path):
    with pytest.raises(SystemExit, match=r"docs/rank\.md links to nothing\.md, which is not there"):
        pages.relinked("[x](nothing.md)", "docs/rank.md", tmp_path)


def test_below_an_index_stand_the_pages_that_it_links_to_in_that_order():
    text = "[Two](two.md): x, [One](one.ipynb), [far](../far.md), [a question](q.md#q1)"
    assert pages.toctree("guide/index.md", text).split("\n\n")[1].split() == [
        "Two",
        "<two>",
        "One",
        "<one>",
        "q",
        "```",
    ]
