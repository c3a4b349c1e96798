"""Twins: what is there without PyTorch, and what their checks say of layers that are written otherwise."""

import importlib.util
import subprocess
import sys

import pytest

from minilora.cli import main
from minilora.practice import catalogue, check_file, exercise
from minilora.practice.catalogue import Missing, exercises, numbers, sheet, twins
from minilora.practice.tracks import full_path
from minilora.practice.workspace import initialise

HEAD = "import torch\nfrom torch import nn\nfrom torch.nn import functional as F\n"


@pytest.fixture
def without_torch(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "torch" else found(name, *more)
    )
    catalogue.exercise.cache_clear()
    yield
    catalogue.exercise.cache_clear()


def test_twins_come_last_and_are_on_no_path():
    assert twins() == list(numbers())[-len(twins()) :]
    assert twins() == ["01t", "02t", "06t", "10t", "22t", "23t"]
    assert not set(twins()) & set(full_path())
    assert sheet("1t").name == "ex01t_lora_layer"


def test_a_title_is_that_of_the_statement():
    for number in (number for number in numbers() if number not in twins()):
        task = exercise(number)
        for language in ("en", "zh"):
            assert sheet(number).heading(language) == task.said(task.title).in_language(language)


@pytest.mark.slow
def test_nothing_but_a_twin_imports_torch(tmp_path):
    code = f"""
import sys
from minilora.practice.catalogue import exercise, numbers, twins
from minilora.practice.screen import listed, table, table_of_twins
from minilora.practice.workspace import Workspace, initialise
from minilora.practice.tracks import full_path
from pathlib import Path
initialise(Path({str(tmp_path)!r}))
workspace = Workspace.found({str(tmp_path)!r})
table(workspace, full_path()), table_of_twins(workspace), listed(workspace, full_path()), workspace.started()
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_without_torch_a_twin_is_listed_and_refused_in_one_line(without_torch, tmp_path, monkeypatch, capsys):
    with pytest.raises(Missing, match="01t needs torch"):
        exercise("01t")
    assert not set(twins()) & set(exercises())
    monkeypatch.chdir(tmp_path)
    initialise(tmp_path / "exercises")
    assert (tmp_path / "exercises" / "ex01t_lora_layer.py").exists()
    assert main(["ex", "check", "01t"]) == 2
    assert capsys.readouterr().err == "minilora: exercise 01t needs torch, which is not installed: pip install torch\n"
    assert main(["ex", "list"]) == 0
    shown = capsys.readouterr().out
    assert "01t The layer, in PyTorch" in shown
    assert "Twins need torch" in shown
    assert main(["ex", "reset", "01t"]) == 0


# ---- with it ----


def said_of(tmp_path, number, text):
    path = tmp_path / f"{sheet(number).name}.py"
    path.write_text(HEAD + text, encoding="utf-8")
    return check_file(number, path)


LAYER = """
class LoRALinear(nn.Module):
    def __init__(self, base, r, alpha, p):
        super().__init__()
        self.base, self.s, self.p = base, alpha / r, p
        for parameter in base.parameters():
            parameter.requires_grad = False
        self.A = nn.Linear(base.in_features, r, bias=False)
        self.B = nn.Linear(r, base.out_features, bias=False)
        nn.init.zeros_(self.B.weight)

    def forward(self, x):
        kept = x
        if self.training:
            kept = x * (torch.rand_like(x) > self.p) / (1 - self.p)
        return self.base(x) + self.s * self.B(self.A(kept))
"""


@pytest.mark.oracle
def test_a_layer_may_be_written_with_nn_linear_and_a_mask_of_ones_own(tmp_path):
    pytest.importorskip("torch")
    result = said_of(tmp_path, "01t", LAYER)
    assert result.passed, result


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("right", "wrong", "names"),
    [
        ("alpha / r, p", "1, p", ["no_scale"]),
        ("alpha / r, p", "r / alpha, p", ["scale_inverted"]),
        ("alpha / r, p", "alpha / r**0.5, p", ["divided_by_root_r"]),
        ("zeros_(self.B.weight)", "zeros_(self.B.weight), nn.init.zeros_(self.A.weight)", ["both_zero"]),
        ("nn.init.zeros_(self.B.weight)", "pass", ["both_random"]),
        ("self.base(x) + self.s", "self.base(x).detach() + self.s", ["no_gradient_through_base"]),
        ("kept = x\n", "kept = x = x.detach()\n", ["no_gradient_to_x"]),
        (" + self.s * self.B(self.A(kept))", "", ["no_low_rank_path"]),
        ("parameter.requires_grad = False", "pass", ["base_not_frozen"]),
        ("in base.parameters()", "in [base.weight]", ["bias_not_frozen"]),
        ("if self.training", "if True", ["always_on_dropout"]),
        ("self.B(self.A(kept))", "self.B(F.relu(self.A(kept)))", ["relu_between"]),
        (" / (1 - self.p)", "", ["not_rescaled"]),
        ("> self.p", "> self.p + 0.1", ["another_share"]),
        ("torch.rand_like(x)", "torch.rand_like(x[:1])", ["one_mask"]),
        ("self.A(kept)", "torch.tanh(self.A(kept))", []),
    ],
)  # fmt: skip
def test_a_wrong_layer_is_named_however_it_is_written(tmp_path, right, wrong, names):
    pytest.importorskip("torch")
    assert right in LAYER
    result = said_of(tmp_path, "01t", LAYER.replace(right, wrong))
    assert not result.passed
    assert result.mistakes == names


@pytest.mark.oracle
def test_two_mistakes_at_once_are_both_named(tmp_path):
    pytest.importorskip("torch")
    result = said_of(
        tmp_path, "01t", LAYER.replace("alpha / r", "1").replace("parameter.requires_grad = False", "pass")
    )
    assert result.mistakes == ["no_scale", "base_not_frozen"]


@pytest.mark.oracle
@pytest.mark.parametrize("answer", ["0 * self.base(x)", "x", "self.base(x).tolist()", "None", "self.base(x)[..., :1]"])
def test_a_layer_that_computes_nothing_fails(tmp_path, answer):
    pytest.importorskip("torch")
    right = "self.base(x) + self.s * self.B(self.A(kept))"
    assert not said_of(tmp_path, "01t", LAYER.replace(right, answer)).passed


@pytest.mark.oracle
def test_the_line_that_raises_in_a_method_is_given(tmp_path):
    pytest.importorskip("torch")
    result = said_of(tmp_path, "01t", LAYER.replace("self.B(self.A(kept))", "self.C(kept)"))
    assert "line 19" in result.text()
