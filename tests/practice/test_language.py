"""Everything that the loop says is there in Chinese, and nothing in the catalogue is said no more."""

import ast
import json
from pathlib import Path

from minilora import practice
from minilora.practice.articles import VERDICTS
from minilora.practice.exercise import KINDS
from minilora.practice.questions import catalogue as questions
from minilora.practice.result import STATES
from minilora.practice.screen import HEADS
from minilora.practice.session import KEYS
from minilora.verify.language import catalogue

PRACTICE = Path(practice.__file__).parent
PAGES = Path(__file__).parents[2] / "docs/site/exercises.py"
OWN = json.loads((PRACTICE / "zh.json").read_text(encoding="utf-8"))


def test_the_catalogue_has_the_sentences_of_the_code_and_no_other():
    written, said = set(), set()
    files = [path for path in PRACTICE.rglob("*.py") if path.parent.name != "exercises"]
    for path in (*files, PAGES):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                written.add(node.value)
            if isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) in (
                "words",
                "said",
            ):
                first = [c.value for c in ast.walk(node.args[0]) if isinstance(c, ast.Constant)]
                said |= {text for text in first if isinstance(text, str)}
    said |= {*KINDS, *questions.KINDS, *VERDICTS, *STATES, *HEADS, KEYS}
    assert said <= set(catalogue())
    assert set(OWN) <= written | set(KINDS)


def test_no_chinese_stands_in_the_code():
    texts = [path.read_text(encoding="utf-8") for path in (*PRACTICE.rglob("*.py"), PAGES)]
    assert not [text[:80] for text in texts if any("一" <= letter <= "鿿" for letter in text)]
