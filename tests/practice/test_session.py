"""The loop: what each key does, what a save does, what is kept; the sprint."""

import json
import os
import pty
import queue
import re
import select
import subprocess
import sys
import time

import pytest

from minilora.display.tables import wide_console
from minilora.practice import exercise
from minilora.practice.help import next_hint, solution
from minilora.practice.progress import Progress
from minilora.practice.session import Session
from minilora.practice.sprint import Sprint, prepare
from minilora.practice.terminal import Event
from minilora.practice.tracks import COURSE, FULL, SPRINT, full_path
from minilora.practice.worker import Worker
from minilora.practice.workspace import Workspace, initialise, seed_of

WRONG = exercise("04").solution().replace("    s = alpha / len(A)\n", "    s = alpha\n")


@pytest.fixture(scope="module")
def worker():
    with Worker(limit=20) as worker:
        yield worker


@pytest.fixture
def workspace(tmp_path):
    initialise(tmp_path / "exercises")
    return Workspace.found(str(tmp_path / "exercises"))


class Script:
    """Events from a list."""

    single = True

    def __init__(self, *events):
        self.queue = queue.SimpleQueue()
        for event in events:
            self.queue.put(event if isinstance(event, Event) else Event("key", event))
        self.queue.put(Event("end"))

    def next(self, timeout=None):
        return self.queue.get()


def run(session, *events, capsys):
    session.run(Script(*events))
    return capsys.readouterr().out


def write(workspace, number, text):
    workspace.path(exercise(number)).write_text(text, encoding="utf-8")


def test_the_loop_opens_at_the_first_exercise_that_is_not_passed(workspace, worker, capsys):
    session = Session(workspace, worker, wide_console())
    assert session.current.number == full_path()[0]
    workspace.progress.record(full_path()[0]).state = "passed"
    assert Session(workspace, worker, wide_console()).current.number == full_path()[1]


def test_a_save_checks_the_file_and_counts_an_attempt_if_it_changed(workspace, worker, capsys):
    session = Session(workspace, worker, wide_console(), ["04"])
    saved = Event("saved", "ex04_lora_backward.py")
    assert "not written yet" in run(session, capsys=capsys)
    write(workspace, "04", WRONG)
    out = run(session, saved, saved, Event("saved", "ex03_linear_backward.py"), capsys=capsys)
    assert "the scale is α, not divided by the rank r, in dx, dA, dB" in out
    assert "Which two numbers make up the scale in forward?" in out
    record = Progress.of(workspace.folder).records["04"]
    assert (record.state, record.attempts, record.first) == ("wrong", 1, [0, 3])
    assert record.mistakes == {"not_divided_by_r": 1}
    write(workspace, "04", exercise("04").solution())
    assert "Passed. Say it aloud" in run(session, saved, capsys=capsys)
    assert Progress.of(workspace.folder).passed("04")


def test_keys_give_hints_the_list_another_exercise_and_the_stub(workspace, worker, capsys, monkeypatch):
    session = Session(workspace, worker, wide_console(), ["03", "04"])
    out = run(session, "h", "h", "l", "q", "l", "4", "\n", "s", capsys=capsys)
    assert "hint 1 of 2" in out
    assert "hint 2 of 2" in out
    assert "Type the number" in out
    assert session.current.number == "04"
    assert "--spoil" in out
    run(session, "n", capsys=capsys)
    assert session.current.number == "03"
    write(workspace, "03", "mine")
    assert "attempts" in run(session, "x", capsys=capsys)
    assert workspace.path(exercise("03")).read_text(encoding="utf-8") == exercise("03").stub()
    (kept,) = (workspace.folder / "attempts").iterdir()
    assert kept.read_text(encoding="utf-8") == "mine"
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.delenv("EDITOR", raising=False)
    assert "Set EDITOR" in run(session, "e", capsys=capsys)


def test_common_mistakes_are_a_hint_only_after_the_first_wrong_attempt(workspace, worker):
    task = exercise("04")
    before = [next_hint(workspace, task).en for _ in range(3)]
    assert not any("Mistakes that people make" in hint for hint in before)
    write(workspace, "04", WRONG)
    workspace.progress.add(worker.check("04", workspace.path(task)), workspace.text(task))
    after = [next_hint(workspace, task).en for _ in range(3)]
    assert sum("Mistakes that people make" in hint for hint in after) == 1


def test_a_solution_comes_after_passing_with_its_derivation_and_the_difference(workspace):
    task = exercise("04")
    assert "--spoil" in solution(workspace, task, "en")
    spoilt = solution(workspace, task, "en", spoil=True)
    workspace.progress.record("04").state = "passed"
    for text in (spoilt, solution(workspace, task, "en")):
        assert "dh = s * dy @ B" in text
        assert "minilora/ops/lora.py" in text
        assert "-    raise NotImplementedError" in text
        assert task.viva[1].good in text


def test_in_chinese_everything_is_said_in_chinese(tmp_path, worker, capsys):
    initialise(tmp_path, "zh")
    workspace = Workspace.found(str(tmp_path))
    assert "返回 dx、dA 和 dB" in workspace.path(exercise("04")).read_text(encoding="utf-8")
    out = run(Session(workspace, worker, wide_console(), ["04"]), "h", "l", "b", capsys=capsys)
    shown = re.sub(r"\S*\.py|LoRA|lora_backward|EDITOR|min|W|A|B", "", out)
    assert "还没有写" in out
    assert not re.search(r"\b(hint|list|next|the|is|passed|write)\b", shown)


def test_writing_the_folder_twice_changes_nothing_in_it(tmp_path):
    first, _ = initialise(tmp_path)
    (tmp_path / "ex04_lora_backward.py").write_text("mine")
    second, left = initialise(tmp_path, "zh")
    assert not second
    assert {path.name for path in left} == {path.name for path in first} - {"progress.json"}
    assert (tmp_path / "ex04_lora_backward.py").read_text() == "mine"


def test_a_folder_without_exercises_is_refused_with_what_to_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="minilora ex init exercises"):
        Workspace.found()


def test_a_progress_that_cannot_be_read_is_refused_and_kept(workspace):
    workspace.progress.path.write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match="cannot be read"):
        Workspace.found(str(workspace.folder))
    assert workspace.progress.path.read_text(encoding="utf-8") == "{"


def test_once_passed_stays_passed(workspace, worker):
    task = exercise("04")
    for text in (exercise("04").solution(), WRONG):
        write(workspace, "04", text)
        workspace.progress.add(worker.check("04", workspace.path(task)), workspace.text(task))
    assert workspace.progress.passed("04")
    assert workspace.progress.record("04").attempts == 1


def test_each_name_has_a_seed_of_its_own():
    assert seed_of("17") == 17
    assert len({seed_of(name) for name in ("ada", "bob", "ab123", "ba123")}) == 4


def test_every_exercise_is_on_the_full_path_after_what_it_needs():
    order = full_path()
    assert len(set(FULL)) == len(FULL) == 30
    assert set(order) <= set(FULL)
    for number in order:
        assert {need for need in exercise(number).needs if need in order} <= set(order[: order.index(number)])
    assert full_path("01")[0] == "01"
    taught = [number for day in COURSE for number in (*day.in_class, *day.homework)]
    assert len(taught) == len(set(taught))
    assert set(taught) <= set(FULL)


# ---- the sprint ----


def test_a_sprint_draws_new_constants_and_ends_with_a_card(workspace, worker, capsys):
    own, other = prepare(workspace, "en"), prepare(workspace, "en")
    assert own.folder != other.folder
    assert own.progress.seed != other.progress.seed
    sprint = Sprint(own, worker, wide_console(), 90, workspace.progress)
    assert sprint.order == [number for number in SPRINT if number in full_path()]
    write(own, "04", WRONG)
    sprint.go_to("04")
    out = run(sprint, "s", capsys=capsys)
    assert "no solutions in a sprint" in out
    assert "minutes left, of them 25 planned" in out
    sprint.finish()
    card = (own.folder / "card.md").read_text(encoding="utf-8")
    assert "04 LoRA's backward: wrong, 0 of 3 right at the first try" in card
    assert "the scale is α, not divided by the rank r" in card
    revise, do_next = card.split("Questions to revise:")[1].split("Exercises to do next:")
    assert len(re.findall("^- ", revise, re.MULTILINE)) == min(3, len(sprint.order))
    assert len(re.findall("^- ", do_next, re.MULTILINE)) == 2


def test_a_sprint_ends_when_its_time_is_over_or_all_is_passed(workspace, worker, capsys):
    over = Sprint(prepare(workspace, "en"), worker, wide_console(), 0, workspace.progress)
    over.run(Script("h", "h"))
    assert "hint 1" not in capsys.readouterr().out
    done = Sprint(prepare(workspace, "en"), worker, wide_console(), 90, workspace.progress)
    for number in done.order:
        done.progress.record(number).state = "passed"
    done.progress.save()
    done.run(Script("h"))
    assert "hint 1" not in capsys.readouterr().out


def test_ten_quick_questions_end_a_sprint_and_those_not_known_are_on_the_card(workspace, worker, capsys):
    sprint = Sprint(prepare(workspace, "en"), worker, wide_console(), 0, workspace.progress)
    sprint.flash(Script("x", "y", *("x", "n") * 8, "x", "y"))
    asked = list(sprint.graded)
    assert len(asked) == 10
    assert all(question.often_wrong for question in asked)
    assert list(sprint.graded.values()) == [True, *[False] * 8, True]
    card = "\n".join(sprint.card())
    assert "flash round: 2 of 10 known" in card
    revise = card.split("Questions to revise:")[1].split("Exercises to do next:")[0]
    assert [question.key for question in asked[1:9]] == re.findall(r"^- ([A-J]\d+) ", revise, re.MULTILINE)
    capsys.readouterr()
    left = Sprint(prepare(workspace, "en"), worker, wide_console(), 90, workspace.progress)
    left.flash(Script("x", "y"))  # whoever quits before the time is over is not asked
    assert not left.graded
    assert not capsys.readouterr().out


# ---- for real, in a terminal ----


@pytest.mark.skipif(sys.platform == "win32", reason="pty")
def test_in_a_terminal_a_save_is_seen_and_a_key_needs_no_enter(workspace):
    parent, child = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80", "LINES": "40"}
    command = [sys.executable, "-m", "minilora", "ex", "--dir", str(workspace.folder)]
    with subprocess.Popen(command, stdin=child, stdout=child, stderr=child, env=environment) as process:
        os.close(child)
        seen = ""

        def until(text, seconds=30):
            nonlocal seen
            end = time.monotonic() + seconds
            while text not in seen:
                if time.monotonic() > end:
                    process.kill()
                    pytest.fail(seen)
                if select.select([parent], [], [], 0.2)[0]:
                    seen += os.read(parent, 65536).decode(errors="replace")

        until("it [n]")
        os.write(parent, b"n")
        until("linear_backward is not written yet")
        until("quit")
        write(workspace, "03", exercise("03").solution().replace("dy.sum(axis=(0, 1))", "dy.mean(axis=(0, 1))"))
        until("✗")
        write(workspace, "03", exercise("03").solution())
        until("Passed")
        os.write(parent, b"q")
        assert process.wait(timeout=20) == 0
    os.close(parent)
    saved = json.loads((workspace.folder / "progress.json").read_text(encoding="utf-8"))
    assert saved["exercises"]["03"]["state"] == "passed"


def test_a_track_is_kept_and_orders_the_exercises(workspace, worker, capsys):
    assert workspace.order() == full_path()
    workspace.progress.track = "course"
    workspace.progress.save()
    again = Workspace.found(str(workspace.folder))
    assert again.order()[:4] == ["01", "02", "03", "05"]
    assert set(again.order()) < set(full_path())
