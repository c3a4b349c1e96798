"""docs/capabilities.md: its thirty rows, whose commands the parser takes as they stand, and whose scripts are there."""

import re
import shlex
from pathlib import Path

import pytest

from minilora.accounting import NAMED
from minilora.cli import parser

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "capabilities.md").read_text(encoding="utf-8")
ROWS = [line for line in PAGE.splitlines() if re.match(r"\| \d", line)]
COMMANDS = [words for row in ROWS for words in re.findall(r"`(minilora \S+ [^`]+|python [^`]+)`", row)]


def test_the_page_has_thirty_rows_each_with_something_to_see():
    assert [int(row.split("|")[1]) for row in ROWS] == list(range(1, 31))
    for row in ROWS:
        seen = row.split(" | ")[-1]
        assert "](" in seen or "`" in seen


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_page_is_one_that_runs(command):
    program, *words = shlex.split(command)
    if program == "python":
        assert (ROOT / words[0]).is_file()
        return
    options = parser().parse_args(words)
    assert words[0] != "count" or options.model in NAMED


def test_what_one_command_of_the_page_reads_an_earlier_one_has_written():
    written: set[str] = set()
    for command in COMMANDS:
        folders = re.findall(r"(--out )?(runs/\w+)", command)
        assert {folder for out, folder in folders if not out} <= written, command
        written |= {folder for out, folder in folders if out}
