"""docs/contributing.md: each worked example, put from the page into a copy of the package, is found there and works."""

import doctest
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import minilora

PACKAGE = Path(minilora.__file__).parent
ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "contributing.md").read_text(encoding="utf-8")
FILES = re.findall(r"`(minilora/\S+\.\w+)`:\n\n```\w+\n(.*?\n)```$", PAGE, re.DOTALL | re.MULTILINE)
BLOCKS = re.findall(r"^```console\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r"^\$ minilora (.+)\n((?:(?!\$ ).*\n)*)", re.MULTILINE)  # and what it prints


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of the package with every file of the page in it, or at the end of a file that is there already."""
    folder = tmp_path_factory.mktemp("contribution")
    shutil.copytree(PACKAGE, folder / "minilora")
    for name, text in FILES:
        with (folder / name).open("a", encoding="utf-8") as file:
            file.write(text)
    shutil.copy(ROOT / "README.md", folder)
    return folder


@pytest.fixture
def run(copy):
    """Python in the copy, which must not fail: what it printed."""

    def run(*arguments, typed=""):
        environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONUTF8": "1", "COLUMNS": "120"}
        done = subprocess.run(
            [sys.executable, *arguments], cwd=copy, env=environment, input=typed, capture_output=True, encoding="utf-8"
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_the_page_holds_the_files_that_it_speaks_of_and_only_one_of_them_is_there_already():
    names = [name for name, _ in FILES]
    assert len(names) == len(set(names))
    assert [name for name in names if (ROOT / name).exists()] == ["minilora/ops/__init__.py"]


@pytest.mark.slow
@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: COMMAND.search(block)[1])
def test_the_commands_of_the_page_print_what_it_shows(run, block):
    for command, shown in COMMAND.findall(block):
        printed = run("-m", "minilora", *shlex.split(command), typed="x\ny\n")
        flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
        assert doctest.OutputChecker().check_output(shown, printed, flags), printed


def test_a_wrong_gradient_of_the_op_fails_and_names_it(run):
    assert run("-c", """
from minilora.verify.mutation import in_place_of
from minilora.verify.suite import verify, wrong

with in_place_of("softplus_backward", lambda dy, x_minus_y: dy * (1 + 1e-6)):
    print(wrong(verify("softplus")))
""") == "['op softplus']\n"  # fmt: skip


def test_the_variant_attaches_learns_is_counted_merges_and_comes_back_from_its_file(run):
    run("-c", """
import numpy as np
import minilora
from minilora.accounting import count

text = b"for i in range(10): print(i)\\n" * 99
ids = np.frombuffer(text, np.uint8)[None, :50].astype(int)
model = minilora.load_pretrained("builtin")
before = model.forward(ids)[0]
paths = minilora.attach(model, "scalar-gain", rng=0)
assert np.array_equal(model.forward(ids)[0], before), "it starts as the base"
assert minilora.count_parameters(model)["trainable"] == len(paths) == count("builtin", "scalar-gain").trainable > 0
history = minilora.fit(
    model, minilora.data.random_windows(text, batch=4, length=32, seed=0), steps=10, lr=3e-2, description=None
)
assert history.loss[-1] < history.loss[0]
y = model.forward(ids)[0]
minilora.save_adapter(model, "adapter")
again = minilora.load_pretrained("builtin")
minilora.load_adapter(again, "adapter")
assert np.array_equal(again.forward(ids)[0], y)
minilora.merge(model)
np.testing.assert_allclose(model.forward(ids)[0], y, rtol=0, atol=1e-4 * abs(y).max())
""")  # fmt: skip


FAMILY = """
import numpy as np
import minilora
from minilora.accounting import count
from minilora.models.families import FAMILIES

config = minilora.Config(13, 2, 12, 6, n_kv_heads=2, d_ff=10, max_length=9, tied=False)
model, ids = FAMILIES["seed_oss"].build(config, np.random.default_rng(0)), np.arange(6)[None]
for parameter in model.named_parameters().values():
    parameter.data = parameter.data + np.float32(0.1)
y = model.forward(ids)[0]
"""


def test_the_family_is_built_saved_loaded_and_counted(run):
    run("-c", FAMILY + """
minilora.save_pretrained(model, "seed")
again = minilora.load_pretrained("seed")
assert again.family == "seed_oss"
assert np.array_equal(again.forward(ids)[0], y)
assert count("seed", "full").total == minilora.count_parameters(model)["total"]
assert "block_0.attention.k_proj.bias" in model.named_parameters()
""")  # fmt: skip


@pytest.mark.oracle
@pytest.mark.slow
def test_the_family_computes_what_transformers_does(run):
    pytest.importorskip("transformers")
    run("-c", FAMILY + """
import torch, transformers

minilora.save_pretrained(model, "theirs")
other = transformers.AutoModelForCausalLM.from_pretrained("theirs").eval()
assert type(other).__name__ == "SeedOssForCausalLM"
with torch.no_grad():
    theirs = other(torch.tensor(ids)).logits.numpy()
np.testing.assert_allclose(y, theirs, rtol=0, atol=1e-5 * abs(theirs).max())
""")  # fmt: skip


def test_the_exercise_is_listed_passes_its_solution_and_names_each_mistake_in_both_languages(run):
    run("-c", """
from minilora.practice import check, exercise
from minilora.practice.catalogue import numbers

assert list(numbers())[list(numbers()).index("30") + 1] == "31"
(part,) = exercise("31").parts
assert check("31", part.solution).passed
assert len(part.mistakes) == 3
for name, mistake in part.mistakes.items():
    (wrong,) = (finding for finding in check("31", mistake.wrong).findings if finding.kind != "right")
    assert wrong.name == name and wrong.says.zh != wrong.says.en and wrong.asks.zh != wrong.asks.en, wrong
assert exercise("31").heading("zh") == exercise("31").said(exercise("31").title).zh == "每层一个数"
""")  # fmt: skip


def test_the_check_decides_the_question_and_another_result_is_refused(run):
    asked = run("-c", """
import numpy as np
from minilora.cli import main
from minilora.practice.questions import run_check

main(["ex", "ask", "--topic", "K", "--lang", "zh"])
np.linalg.svd = lambda W, compute_uv: np.r_[np.ones(8), np.zeros(56)]  # of a W of rank 8
try:
    run_check("no_low_rank_update_doubles_a_layer")
except AssertionError:
    print("refused")
""", typed="x\n")  # fmt: skip
    assert "低秩做不到的事" in asked
    assert "0.78 of ‖W‖ is left" in asked
    assert asked.endswith("refused\n")
