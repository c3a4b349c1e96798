"""Whatever a learner's file does, the loop gets an answer in words, and the next check works."""

import ast
import os
import subprocess
import sys
import time

import pytest

from minilora.practice import check, check_file, exercise
from minilora.practice.worker import Worker

RIGHT = exercise("04").solution()
FIRST = "    s = alpha / len(A)\n"
LAST = "return dx, dA, dB"
FILES = {  # what it does: the file, the state, and a part of what is said
    "half_written": ("def lora_backward(dy,", "broken", "Python cannot read line 1"),
    "empty": ("", "broken", "is empty"),
    "null_character": ("\0", "broken", "cannot"),
    "imports_torch": (f"import torch\n{RIGHT}", "broken", "line 1 imports torch"),
    "imports_minilora": (f"from minilora import ops\n{RIGHT}", "broken", "line 1 imports minilora"),
    "raises_at_import": (f"1 / 0\n{RIGHT}", "broken", "line 1 raises ZeroDivisionError"),
    "missing": (RIGHT.replace("def lora_backward", "def backward"), "wrong", "lora_backward is not there"),
    "a_number": ("lora_backward = 3", "wrong", "is not a function"),
    "not_written": (exercise("04").stub(), "not started", "is not written yet"),
    "other_arguments": (RIGHT.replace("alpha, p)", "alpha)"), "wrong", "must take dy, x, keep, W, A, B, alpha, p"),
    "raises": (RIGHT.replace(LAST, "return dz"), "wrong", "raises NameError"),
    "stops_python": (RIGHT.replace(LAST, "raise SystemExit"), "wrong", "raises SystemExit"),
    "asks": (RIGHT.replace(FIRST, "    input()\n"), "wrong", "raises EOFError"),
    "returns_nothing": (RIGHT.replace(LAST, "pass"), "wrong", "returns nothing"),
    "two_results": (RIGHT.replace(LAST, "return dx, dA"), "wrong", "returns 2 results, and must return 3"),
    "words": (RIGHT.replace(LAST, "return dx, dA, object()"), "wrong", "dB is object"),
    "other_shape": (RIGHT.replace(LAST, "return dx, dA[0], dB"), "wrong", "dA has shape"),
    "transposed": (RIGHT.replace(LAST, "return dx, dA.T, dB"), "wrong", "dA is transposed"),
    "not_finite": (RIGHT.replace(LAST, "return dx, dA * np.nan, dB"), "wrong", "dA is not finite"),
    "float32": (RIGHT.replace(LAST, "return dx, dA, dB.astype('f4')"), "wrong", "dB is float32"),
    "changes_an_argument": (RIGHT.replace(FIRST, FIRST + "    x *= 2\n"), "wrong", "changes its argument x"),
    "draws": (RIGHT.replace(LAST, "return dx * np.random.rand(), dA, dB"), "wrong", "something else when it is called"),
    "forks": (RIGHT.replace(FIRST, FIRST + "    import os; os.fork()\n"), "wrong", "starts another process"),
    "runs_a_program": (f"import os; os.system('true')\n{RIGHT}", "broken", "starts another process"),
    "dies": (RIGHT.replace(FIRST, "    import os; os._exit(3)\n"), "broken", "exit code 3"),
    "crashes": (RIGHT.replace(FIRST, "    import os; os.abort()\n"), "broken", "SIGABRT"),
    "recurses": (
        RIGHT.replace(LAST, "return lora_backward(dy, x, keep, W, A, B, alpha, p)"),
        "wrong",
        "RecursionError",
    ),
}


@pytest.fixture(scope="module")
def worker():
    with Worker(limit=20) as worker:
        yield worker


@pytest.fixture
def learners(tmp_path):
    def write(text):
        path = tmp_path / "ex04_lora_backward.py"
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.mark.parametrize("name", FILES)
@pytest.mark.skipif(sys.platform == "win32", reason="signals and fork")
def test_each_way_to_fail_has_its_own_words_and_the_next_check_passes(worker, learners, name):
    text, state, says = FILES[name]
    result = worker.check("04", learners(text))
    assert result.state == state
    assert says in result.text()
    assert worker.check("04", learners(RIGHT)).passed


@pytest.mark.slow
def test_a_loop_without_an_end_is_stopped_and_its_line_is_named(learners):
    with Worker(limit=2) as worker:
        path = learners(RIGHT.replace(FIRST, "    while True:\n        pass\n"))
        line = path.read_text(encoding="utf-8").splitlines().index("    while True:") + 1
        started = time.monotonic()
        result = worker.check("04", path)
        assert time.monotonic() - started < 6
        assert result.state == "broken"
        assert "no answer within 2 seconds" in result.text()
        assert f"line {line}." in result.text() or f"line {line + 1}." in result.text()


def test_what_a_file_prints_is_shown_once_and_hides_no_answer(worker, learners):
    result = worker.check("04", learners(RIGHT.replace(FIRST, FIRST + "    print('s is', s)\n" * 3)))
    assert result.passed
    assert result.printed.count("s is 3.5\n") == 1


def test_prints_by_the_thousand_are_cut(worker, learners):
    result = worker.check("04", learners("for i in range(10**5): print(i)\n" + RIGHT))
    assert result.passed
    assert "99988 more lines" in result.printed


def test_a_missing_file_is_said_with_how_to_write_it_anew(worker, tmp_path):
    result = worker.check("04", tmp_path / "ex04_lora_backward.py")
    assert result.state == "broken"
    assert "ex reset 04" in result.text()
    assert "重新生成" in result.text("zh")


def test_a_warm_check_of_a_right_and_of_a_wrong_answer_answers_within_two_seconds(worker, learners):
    worker.check("04", learners(RIGHT))
    for text in (RIGHT, RIGHT.replace(FIRST, "    s = alpha\n"), RIGHT.replace(LAST, "return dx + 0.1 * x**2, dA, dB")):
        started = time.monotonic()
        worker.check("04", learners(text))
        assert time.monotonic() - started < 2


def test_json_keeps_everything_that_a_result_says(worker, learners):
    path = learners(RIGHT.replace(FIRST, "    s = alpha\n"))
    for language in ("en", "zh"):
        assert worker.check("04", path, language).text() == check_file("04", path, language).text()


def test_a_worker_leaves_no_process_and_no_file_behind(learners):
    with Worker() as worker:
        worker.check("04", learners(RIGHT))
        child, stacks = worker.child, worker.stacks
    assert child.poll() is not None
    assert not os.path.exists(stacks)


def test_an_exercise_may_take_more_time_than_others(tmp_path):
    path = tmp_path / "ex30_capstone.py"
    path.write_text(exercise("30").stub(), encoding="utf-8")
    with Worker(limit=0.01) as worker:
        assert worker.check("30", path).state == "not started"
        assert worker.limit < exercise("30").limit


def test_what_is_wrong_with_a_part_to_repair_is_not_told_before_it_is_touched(tmp_path):
    task, path = exercise("06"), tmp_path / "ex06_adapters.py"
    stub, solution = (ast.parse(text) for text in (task.stub(), task.solution()))
    repaired = {node.name: node for node in solution.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    stub.body = [repaired["five"] if getattr(node, "name", "") == "five" else node for node in stub.body]
    path.write_text(ast.unparse(stub), encoding="utf-8")
    result = check_file("06", path)
    assert result.state == "wrong"
    assert [part for part, checked in result.parts.items() if checked.findings[0].kind == "right"] == ["five"]
    assert not result.mistakes
    path.write_text(
        ast.unparse(stub).replace("class BothZero", "class BothZero:\n    pass\nclass Other"), encoding="utf-8"
    )
    assert check_file("06", path).parts["BothZero"].findings[0].kind != "not written"


def test_an_answer_that_raises_only_where_a_rule_tries_it_is_wrong_and_ends_nothing():
    right = exercise("01").parts[0].solution

    def lora_forward(x, W, b, A, B, alpha):
        if len(W) > 1000:
            raise MemoryError("too large")
        return right(x, W, b, A, B, alpha)

    result = check("01", lora_forward)
    assert result.state == "wrong"
    assert "MemoryError: too large on other arguments" in result.text()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no parent to watch")
def test_a_loop_without_an_end_ends_with_its_parent(learners):
    path = learners(RIGHT.replace(FIRST, "    while True:\n        pass\n"))
    code = f"""if True:
        import pathlib, threading
        from minilora.practice.worker import Worker
        worker = Worker(limit=60)
        child = worker.started()
        print(child.pid, flush=True)
        worker.check("04", pathlib.Path({str(path)!r}))
    """
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        child = int(parent.stdout.readline())
        parent.kill()
    deadline = time.monotonic() + 10
    while os.path.exists(f"/proc/{child}") and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not os.path.exists(f"/proc/{child}")
