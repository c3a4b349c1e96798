"""What a learner does in a browser works there: under the double of Pyodide in tools/in_a_browser.py."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import in_a_browser
import lite
import pytest

import minilora
from minilora.accounting.named import NAMED, without_weights
from minilora.practice import exercise
from minilora.practice.catalogue import sheet, twins

ROOT = Path(__file__).parent.parent
TRAIN = """
from hashlib import sha256
import minilora

def trained(**options):
    model = minilora.load_pretrained("builtin")
    minilora.attach_lora(model, ["q_proj", "v_proj"], r=2, alpha=4, rng=0)
    batches = minilora.data.random_windows(b"for i in range(10): print(i)\\n" * 99, batch=4, length=16, seed=0)
    held_out = lambda: [batches(100), batches(101)]
    history = minilora.fit(model, batches, 4, lr=1e-2, held_out=held_out, **options)
    weights = b"".join(p.data.tobytes() for p in model.trainable_parameters().values())
    return model, history, sha256(weights).hexdigest()
"""


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., str]:
    """Run a script under the double, in tmp_path: what it prints. It may warn of nothing."""

    def run(script: str, folder: Path = tmp_path) -> str:
        path = tmp_path / "script.py"
        path.write_text(script, encoding="utf-8")
        warnings = "-Werror", "-Wignore:FigureCanvasAgg is non-interactive"  # plt.show()
        command = [sys.executable, *warnings, in_a_browser.__file__, path]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)]), "MPLBACKEND": "Agg"}
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, encoding="utf-8", timeout=600
        )
        assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
        return done.stdout

    return run


def test_the_double_is_what_it_says():
    done = subprocess.run([sys.executable, in_a_browser.__file__], capture_output=True, text=True, timeout=60)
    assert json.loads(done.stdout) == in_a_browser.FACTS


@pytest.mark.slow
def test_every_module_of_the_package_is_imported_but_the_twins_in_pytorch(run):
    script = """
import importlib, pkgutil, minilora
for module in pkgutil.walk_packages(minilora.__path__, "minilora."):
    try:
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    except ImportError as error:
        print(error.name, module.name)
"""
    in_pytorch = [f"practice.exercises.{sheet(number).name}" for number in twins()]
    in_pytorch += ["practice.torch_functions", "practice.torch_layers"]
    assert run(script).splitlines() == [f"torch minilora.{name}" for name in in_pytorch]


def test_fine_tuning_gives_the_same_bytes_as_on_two_threads_and_the_adapter_is_saved_and_loaded(run):
    namespace: dict = {}
    exec(TRAIN, namespace)
    _, history, weights = namespace["trained"](shards=2, description=None)
    script = """
import sys
model, history, weights = trained(shards=2)  # with its progress bar, which asks for a thread
minilora.save_adapter(model, "adapter")
again = minilora.load_pretrained("builtin")
minilora.load_adapter(again, "adapter")
texts = [minilora.generate(model, "for i in", tokens=4) for model in (model, again)]
assert texts[0] == texts[1], texts
from minilora.process import peak_memory, folder_lock
with folder_lock("runs") as killed:
    assert not killed
print(weights, history.loss, history.evaluations)
"""
    assert run(TRAIN + script).strip() == f"{weights} {history.loss} {history.evaluations}"


@pytest.mark.slow
def test_a_bar_that_is_shown_asks_for_no_thread(run):
    script = """
import io, sys
class Terminal(io.StringIO):
    def isatty(self):
        return True
sys.stderr, shown = Terminal(), sys.stderr
trained()
sys.stderr, shown = shown, sys.stderr
assert "training" in shown.getvalue(), shown.getvalue()
"""
    run(TRAIN + script)


@pytest.mark.parametrize("page", ["README.md", "docs/gradients.md"])
@pytest.mark.slow
def test_the_lines_of_a_page_give_what_it_shows(run, page):
    script = f"""
import doctest
done = doctest.testfile({str(ROOT / page)!r}, module_relative=False, encoding="utf-8")
assert done.attempted and not done.failed
"""
    run(script)


@pytest.mark.slow
def test_ops_are_verified(run):
    script = """
from minilora.cli import main
for name in ("lora", "cross"):
    assert main(["verify", "--only", name, "--json"]) == 0
"""
    run(script)


@pytest.mark.slow
@pytest.mark.parametrize("numbers", [["01", "02", "03", "04"], ["05"]], ids=str)
def test_an_answer_passes_and_every_mistake_is_named(run, numbers):
    script = f"""
from minilora.practice import check, exercise
from minilora.practice.kills import kills
for task in map(exercise, {numbers}):
    assert check(task.number, *(part.solution for part in task.parts)).passed
    for kill in kills(task):
        assert kill.seen and kill.named, kill
        print(kill.mistake)
"""
    listed = {name for number in numbers for part in exercise(number).parts for name in part.all_mistakes()}
    assert set(run(script).split()) == listed


@pytest.mark.slow
def test_the_bytes_that_a_batch_keeps_are_those_that_are_predicted(run):
    script = """
import numpy as np, minilora
from minilora.accounting import ledger, nbytes
config = minilora.Config(19, n_layers=1, d_model=8, n_heads=2, d_ff=12, max_length=9)
for build in (minilora.gpt2, minilora.bert):  # positions are np.arange, or np.cumsum of the padding
    model = build(config, np.random.default_rng(0))
    _, cache = model.forward(np.zeros((2, 5), np.int64))
    assert nbytes(cache) == sum(kept.nbytes for kept in ledger(model, 2, 5, "float32", loss=False))
"""
    run(script)


def test_a_model_without_weights_has_no_array_of_2_gib_which_numpy_refuses_with_32_bits():
    for name in NAMED:
        _, model = without_weights(name)
        assert max(p.data.nbytes for p in model.named_parameters().values()) < 2**31


@pytest.mark.slow
def test_every_exercise_can_be_solved_but_the_twins_in_pytorch(run):
    script = """
from minilora.practice import check, exercise
from minilora.practice.catalogue import is_twin, numbers
for number in numbers():
    if not is_twin(number):
        result = check(number, *(part.solution for part in exercise(number).parts))
        assert result.passed, result.text()
        print(number)
"""
    assert len(run(script).split()) == 30


@pytest.mark.slow
def test_a_file_is_checked_in_this_process_and_the_command_says_that_nothing_ends_it(run, tmp_path):
    for number, answer in (("03", exercise("03").solution()), ("04", exercise("04").stub() + "\n")):
        (tmp_path / f"{exercise(number).name}.py").write_text(answer, encoding="utf-8")
    script = f"""
import contextlib, io, warnings
from minilora.cli import main
warnings.simplefilter("default")  # the command shows them as notes

def said(*words):
    with contextlib.redirect_stderr(io.StringIO()) as errors, contextlib.redirect_stdout(io.StringIO()) as out:
        code = main(["ex", *words])
    return code, out.getvalue().splitlines()[0] if out.getvalue() else "", errors.getvalue()

from minilora.practice.worker import UNLIMITED
note = f"minilora: note: {{UNLIMITED}}\\n"
for words, right in ((("03",), 0), (("04",), 1)):
    file = {{"03": {exercise("03").name!r}, "04": {exercise("04").name!r}}}[words[0]]
    code, headline, errors = said("check", *words, "--file", file + ".py")
    assert (code, errors) == (right, note), (code, errors)
    assert headline.startswith(words[0]), headline
assert said("init", "mine")[0] == 0
code, _, errors = said("--dir", "mine")
assert code == 2 and errors.startswith(note) and "minilora ex check N" in errors, errors
"""
    run(script)


def script_of(page: str, cells: list[dict[str, Any]]) -> str:
    """The code of a notebook. In the place of what the learner writes stands the solution, and a check must pass."""
    found = []
    for cell in cells:
        source = "".join(cell["source"])
        number = cell["metadata"].get("exercise") or (cell["id"] == "answer" and page.partition("/ex")[2][:2])
        if cell["cell_type"] == "code":
            found.append(exercise(number).solution() if number else source)
    return re.sub(r"^(check\(.*\))$", r"assert \1.passed", "\n\n".join(found), flags=re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in lite.notebooks() if "/zh/" not in page])  # the code is the same
def test_what_the_site_says_a_browser_runs_does_run(run, page, tmp_path):
    minilora.files.write_files(tmp_path / "site", lite.files())
    script = script_of(page, lite.notebooks()[page])
    assert "assert " in script or page.startswith("guide/")
    run(script, (tmp_path / "site" / page).parent)
