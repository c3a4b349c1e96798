import doctest
import re
import shlex
from pathlib import Path

from minilora.accounting import METHODS, NAMED
from minilora.cli import main
from minilora.verify.problems import problems

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_lines_of_the_readme_print_the_numbers_it_gives(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    test = doctest.DocTestParser().get_doctest(README, {}, "README.md", None, 0)
    assert len(test.examples) >= 10
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    said: list[str] = []
    runner.run(test, out=said.append)
    assert runner.failures == 0, "".join(said)
    assert (tmp_path / "runs" / "loops" / "adapter_model.safetensors").is_file()


def test_the_commands_of_the_readme_print_what_it_shows(capsys):
    shown = re.findall(r"^```\n\$ minilora (.+)\n((?:.+\n)+)```$", README, re.MULTILINE)
    assert shown
    for words, expected in shown:
        assert main(shlex.split(words)) == 0
        assert [line.rstrip() for line in capsys.readouterr().out.splitlines()] == expected.splitlines()


def test_the_first_screen_is_the_two_commands():
    first_screen = README.splitlines()[:20]
    assert any(line.endswith(".venv/bin/minilora demo") for line in first_screen)
    assert any(line.endswith('".[test]" && .venv/bin/pytest') for line in first_screen)


def test_what_the_readme_points_to_is_there():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target


def test_the_readme_counts_what_there_is():
    faults = sum(len(problem.faults) for problem in problems().values())
    assert f"It knows {faults} mistakes in {len(problems())} problems" in README
    assert f"knows {len(NAMED)} models by name" in README
    assert f"and {len(METHODS)} methods" in README
    theorems = re.findall(
        r"^def test_", (ROOT / "tests" / "test_theorems.py").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert f"{len(theorems)} statements" in README
