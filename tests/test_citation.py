"""CITATION.cff: it says what the package says of itself, and cites what the code derives from."""

import re
from pathlib import Path

import pytest

import minilora

yaml = pytest.importorskip("yaml")
ROOT = Path(__file__).parent.parent
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
SOURCES = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "minilora").rglob("*.py"))


def test_it_has_the_version_licence_and_authors_of_the_package():
    assert str(CITATION["cff-version"]) == "1.2.0"
    assert CITATION["type"] == "software"
    assert CITATION["message"]
    assert CITATION["abstract"]
    assert CITATION["keywords"]
    assert str(CITATION["version"]) == minilora.__version__
    licence = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert licence.startswith(f"{CITATION['license']} License")
    assert [author["name"].lower() in licence.lower() for author in CITATION["authors"]] == [True]


@pytest.mark.parametrize("paper", CITATION["references"], ids=lambda paper: paper["title"])
def test_a_paper_is_named_with_its_year_in_the_code_and_can_be_found(paper):
    assert re.search(rf"{paper['authors'][0]['family-names']}\b[^()]{{0,40}}\W{paper['year']}\b", SOURCES)
    assert all({"given-names", "family-names"} == author.keys() for author in paper["authors"])
    number = paper.get("doi") or paper["identifiers"][0]["value"].removeprefix("arXiv:")
    assert re.fullmatch(r"10\.\d{4,}/\S+|\d{4}\.\d{5}", number)
    assert "doi" in paper or paper["url"] == f"https://arxiv.org/abs/{number}"
