"""`minilora verify`: what it covers, what it says, and that it fails when something is wrong."""

import inspect
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

import examples
import numpy as np
import pytest

from minilora import ops
from minilora.adapters import ia3, lora, lora_residual
from minilora.adapters.lora_conv import LoRAConvolution
from minilora.adapters.merge import Merged, MergedConvolution
from minilora.adapters.parallel import Parallel
from minilora.cli import main
from minilora.nn import Convolution, Module, Sequential
from minilora.verify.check import Report
from minilora.verify.laws import LAWS
from minilora.verify.mutation import callers, functions, in_place_of
from minilora.verify.op_cases import OPS
from minilora.verify.suite import CHECKS, METHODS, show_verification, verify, wrong

Broken = Callable[[Callable[..., Any]], Callable[..., Any]]


def changed(change: Callable[[Any], Any]) -> Broken:
    """A function made wrong in every array it returns; a cache stays as it was."""

    def broken(original: Callable[..., Any]) -> Callable[..., Any]:
        def wrong(*arguments: Any) -> Any:
            result = original(*arguments)
            if isinstance(result, tuple):
                return tuple(change(part) if isinstance(part, np.ndarray) else part for part in result)
            return change(result)

        return wrong

    return broken


def scaled(factor: float) -> Broken:
    return changed(lambda result: result if result is None else factor * result)  # no mask has no numbers


def plus(number: float) -> Broken:
    return changed(lambda result: result + number)


def break_op(monkeypatch: pytest.MonkeyPatch, name: str, broken: Broken = scaled(1 + 1e-6)) -> None:
    monkeypatch.setattr(ops, name, broken(getattr(ops, name)))


def subclasses(cls: type) -> Iterator[type]:
    for sub in cls.__subclasses__():
        parts = ("minilora.nn.", "minilora.models.", "minilora.adapters.")
        if sub.__module__.startswith(parts) and sub.__module__ in sys.modules:  # not what a test has made
            yield sub
        yield from subclasses(sub)


# ---- what holds ----


def assert_right(result: dict[str, Any], kind: str = "") -> None:
    """All that is called so is right by both methods."""
    names = [name for name in CHECKS if name.startswith(kind)]
    assert wrong(result) == []
    assert {entry["name"] for entry in result["checks"]} == set(names)
    pairs = {(e["name"], e["tensor"]) for e in result["checks"]}
    assert {(e["name"], e["tensor"], e["method"]) for e in result["checks"]} == {
        (*p, m) for p in pairs for m in METHODS
    }


@pytest.mark.parametrize("law", LAWS)
def test_every_law_holds(law):
    result = verify(law)
    assert [entry["law"] for entry in result["laws"]] == [law]
    assert result["laws"][0]["ok"]
    assert 0 <= result["laws"][0]["value"] <= LAWS[law][1]


def test_every_layer_is_right_by_both_methods():
    assert_right(verify("module "), "module ")


@pytest.mark.slow  # ops, adapters and whole models are checked in files of their own, too
def test_everything_holds_in_less_than_a_minute_and_every_module_of_the_library_is_run_backward(monkeypatch, capsys):
    bases = {Sequential, Parallel, Convolution, LoRAConvolution, Merged, MergedConvolution}  # that others stand on
    everything = {cls for cls in subclasses(Module) if cls.backward is not Module.backward} - bases
    ran: set[type] = set()
    for cls in everything:

        def counted(self: Module, *arguments: Any, original: Any = cls.backward) -> Any:
            ran.add(type(self))
            return original(self, *arguments)

        monkeypatch.setattr(cls, "backward", counted)
    assert main(["verify", "--json"]) == 0
    assert ran == everything
    result = json.loads(capsys.readouterr().out)
    assert result["seconds"] < 60
    assert_right(result)
    assert [entry["law"] for entry in result["laws"]] == list(LAWS)
    errors = [entry["worst_relative_error"] for entry in result["checks"] if entry["method"] == "complex"]
    assert 0 < max(errors) < 1e-11  # as the README says


# ---- what is covered ----


def test_every_backward_and_every_gradients_function_is_called_and_a_wrong_one_fails_its_op():
    assert set(functions()) == {n for n in dir(ops) if n.endswith(("_backward", "_gradients"))}
    for name in examples.some_of(functions()):
        called = callers(name, seed=0)
        assert called, name
        with in_place_of(name, scaled(1 + 1e-6)(getattr(ops, name))):
            assert not all(report.ok for report in CHECKS[f"op {called[0]}"](np.random.default_rng(0))), name


def test_the_files_of_the_ops_have_no_backward_that_the_package_does_not_show():
    files = [file for _, file in inspect.getmembers(ops, inspect.ismodule) if file.__name__.startswith(ops.__name__)]
    written = {n for file in files for n in vars(file) if n.endswith(("_backward", "_gradients"))}
    assert written == set(functions())


@pytest.mark.parametrize("kind", ["op", "module", "adapter", pytest.param("family", marks=pytest.mark.slow)])
def test_every_check_has_several_shapes_and_one_of_them_is_a_batch_of_one(kind, monkeypatch):
    name = next(name for name in CHECKS if name.startswith(kind))
    reports = list(CHECKS[name](np.random.default_rng(0)))
    assert len(reports) >= 3
    assert all(isinstance(report, Report) and report.ok for report in reports)
    if kind == "op":
        assert 1 in {report.rows[0].shape[0] for report in reports}
        assert all(len({report.rows[i].shape for report in reports}) >= 3 for i in range(len(reports[0].rows)))


# ---- what is said ----


def test_the_result_is_json_with_checks_laws_and_seconds():
    result = verify("layer norm")
    assert set(result) == {"checks", "laws", "seconds"}
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    for entry in result["checks"]:
        assert list(entry) == ["name", "tensor", "method", "worst_relative_error", "ok"]
    for entry in result["laws"]:
        assert list(entry) == ["law", "value", "ok"]
    assert [(e["tensor"], e["method"]) for e in result["checks"]] == [(t, m) for t in "xgb" for m in METHODS]
    assert [e["law"] for e in result["laws"]] == ["rows of layer norm's dx sum to 0"]
    assert result["seconds"] > 0


def test_only_selects_by_a_part_of_the_name_in_upper_case_or_lower_and_changes_no_number():
    some, one = verify("SWIGLU"), verify("op swiglu")
    assert {e["name"] for e in some["checks"]} == {"op swiglu"}
    assert some["checks"] == one["checks"]
    value = verify("rows of")["laws"][0]
    assert value == verify(value["law"])["laws"][0]


def test_a_name_that_nothing_has_is_refused_with_the_names_there_are(capsys):
    with pytest.raises(
        ValueError,
        match=r"no check and no law has 'lineer' in its name: did you mean 'op linear'\? choose from op attention; op",
    ):
        verify("lineer")
    assert main(["verify", "--only", "lineer"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_tables_show_every_tensor_every_law_and_the_count(capsys):
    result = verify("norm")
    show_verification(result)
    shown = capsys.readouterr().out
    for entry in result["checks"]:
        assert any(entry["name"] in line and entry["tensor"] in line for line in shown.splitlines())
    for entry in result["laws"]:
        assert entry["law"] in shown
    assert f"all is right: {len(result['checks']) // 2} tensors and 1 laws" in shown


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--sample", "3"], "say --mutants too"),
        (["--stability", "--mutants"], "say one of them"),
        (
            ["--mutants", "--only", "forward"],
            "no function has 'forward' in its name: did you mean 'lora_backward'? choose from adalora_backward",
        ),
    ],
)
def test_words_that_do_not_go_together_are_refused_in_one_line(words, says, capsys):
    assert main(["verify", *words]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


# ---- what is wrong is found ----


@pytest.mark.parametrize("words", [[], ["--json"]])
def test_a_broken_op_makes_the_command_fail_with_its_name(words, capsys, monkeypatch):
    assert main(["verify", "--only", "op dropout", *words]) == 0
    assert "WRONG" not in capsys.readouterr().out
    break_op(monkeypatch, "dropout_backward")
    assert main(["verify", "--only", "op dropout", *words]) == 1
    shown = capsys.readouterr().out
    if words:
        assert [(e["name"], e["ok"]) for e in json.loads(shown)["checks"]] == [("op dropout", False)] * 2
    else:
        assert "WRONG: op dropout (1 tensors" in shown


def test_a_broken_op_fails_every_module_that_is_built_on_it_and_no_other(monkeypatch):
    break_op(monkeypatch, "rms_norm_backward")
    assert wrong(verify("norm")) == [
        "op rms norm", "module RMSNorm", "module ZeroCentredRMSNorm", "module Attention, norms on q and k",
        "module PreNormBlock of llama", "module SandwichNormBlock of gemma3_text",
    ]  # fmt: skip


def test_only_the_tensor_that_is_wrong_is_called_wrong(monkeypatch):
    break_op(monkeypatch, "lora_A_gradients")
    entries = verify("low rank")["checks"]
    assert {e["tensor"] for e in entries if not e["ok"]} == {"A"}
    entries = verify("adapter LoRALinear of rank 1")["checks"]
    assert {e["tensor"] for e in entries if not e["ok"]} == {"lora_A"}


def test_a_check_that_lacks_a_package_is_no_wrong_gradient_but_a_line_that_names_the_package(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "scipy.special", None)  # makes the import fail
    assert main(["verify", "--only", "op gelu"]) == 2
    out, err = capsys.readouterr()
    assert "WRONG" not in out
    assert "needs SciPy in float64: pip install scipy" in err
    assert main(["verify", "--only", "op linear"]) == 0


def raises(original: Callable[..., Any]) -> Callable[..., Any]:
    def broken(*arguments: Any) -> Any:
        raise IndexError("no such row")

    return broken


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (raises, "IndexError: no such row"),
        (scaled(float("nan")), "not a finite number"),
        (lambda original: lambda *a: original(*a)[..., :1], "wrong shape"),
        (scaled(0), "wrong: zero everywhere"),
    ],
    ids=["raises", "is not a number", "has another shape", "is zero"],
)
def test_a_gradient_without_a_number_is_wrong_and_says_why(broken, says, monkeypatch, capsys):
    break_op(monkeypatch, "rms_norm_backward", broken)
    result = verify("rms norm")
    failed = [entry for entry in result["checks"] if not entry["ok"]]
    assert failed
    assert all(entry["worst_relative_error"] is None and says in entry["note"] for entry in failed)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    show_verification(result)
    assert "WRONG: op rms norm" in capsys.readouterr().out


BROKEN: dict[str, tuple[Any, str, Broken]] = {
    "l ∘ dl = Σ dy ∘ y": (ops, "ia3_gradients", scaled(1 + 1e-9)),
    "l ∘ dl = Σ dx ∘ x": (ops, "ia3_gradients", scaled(1 + 1e-9)),
    "Bᵀ dB = dA Aᵀ": (ops, "lora_A_gradients", scaled(1 + 1e-9)),
    "Bᵀ dB = dA₂ A₂ᵀ": (ops, "lora_convolution_A_gradients", scaled(1 + 1e-9)),
    "dA₂ = s Bᵀ G": (ops, "lora_convolution_A_gradients", scaled(1 + 1e-9)),
    "dA = 0 at B = 0": (ops, "lora_A_gradients", plus(1e-9)),
    "⟨B₁, dB₁⟩ = ⟨A₁, dA₁⟩ = ⟨B₂, dB₂⟩ = ⟨A₂, dA₂⟩": (ops, "loha_A_gradients", plus(1e-9)),
    "⟨w₁, dw₁⟩ = ⟨w₂, dw₂⟩": (ops, "lokr_w1_gradients", plus(1e-9)),
    "eₖ deₖ = ⟨Aₖ, dAₖ⟩ = ⟨Bₖ, dBₖ⟩": (ops, "adalora_gradients", plus(1e-9)),
    "dA = dB = 0 at e = 0": (ops, "lora_A_gradients", plus(1e-9)),
    "⟨b, db⟩ = ⟨d, dd⟩": (ops, "vera_gradients", plus(1e-9)),
    "m ∘ dm = Σ dy ∘ (y - b)": (ops, "dora_m_gradients", scaled(1 + 1e-9)),
    "⟨B, dB⟩ = -⟨W, dV⟩ in every row": (ops, "dora_B_gradients", scaled(1 + 1e-9)),
    "the merged W and b of an adapter give its outputs": (ia3.IA3Linear, "merged", scaled(1 + 1e-9)),
    "a new adapter gives the outputs of its base": (ops, "ia3_forward", plus(1e-13)),
    "the first step of SGD is ΔW = -η s² G AᵀA": (ops, "lora_B_gradients", scaled(1 + 1e-9)),
    "with A frozen, a step of SGD moves ΔW by -η s² G AᵀA": (ops, "lora_B_gradients", scaled(1 + 1e-9)),
    "a preconditioned step of SGD moves ΔW by -η G Aᵀ(A Aᵀ)⁻¹A": (ops, "lora_B_gradients", scaled(1 + 1e-9)),
    "LoRA beside W₀ - s B₀ A₀": (ops, "lora_forward", scaled(1 + 1e-9)),
    "a residual LoRA is a LoRA of rank 2r": (lora_residual.ResidualLoRALinear, "factors", scaled(1 + 1e-9)),
    "dA = s Bᵀ G": (ops, "lora_A_gradients", scaled(1 + 1e-9)),
    "dc = s db": (ops, "lora_bias_gradients", scaled(1 + 1e-9)),
    "db = Σ dy": (ops, "bias_gradients", scaled(1 + 1e-9)),
    "dT is the rows of dW": (ops, "token_rows_gradients", scaled(1 + 1e-9)),
    "dR = s Bᵀ G Aᵀ": (ops, "lora_xs_gradients", scaled(1 + 1e-9)),
    "dz = S diag(Uᵀ G V)": (ops, "svf_gradients", scaled(1 + 1e-9)),
    "rows of dS sum to 0": (ops, "attention_backward", plus(1e-9)),
    "attention in blocks is attention": (ops, "blockwise_attention_backward", plus(1e-9)),
    "rows of layer norm's dx sum to 0": (ops, "layer_norm_backward", plus(1e-9)),
    "rows of dlogits sum to 0": (ops, "cross_entropy_backward", plus(1e-9)),
    "a rotation keeps lengths": (ops, "rope_backward", scaled(1 + 1e-9)),
    "a merged model gives the adapted one's logits": (lora.LoRALinear, "delta", scaled(1 + 1e-9)),
    "the logits of step 0 are the base's": (ops, "lora_forward", plus(1e-13)),
    "padding changes no real token": (ops, "attention_mask", scaled(1e-10)),
}


@pytest.mark.parametrize("law", LAWS)
def test_every_law_can_be_broken(law, monkeypatch):
    owner, name, broken = BROKEN[law]
    original = getattr(owner, name)
    monkeypatch.setattr(owner, name, broken(original))
    entry = verify(law)["laws"][0]
    assert not entry["ok"]
    assert entry["value"] > LAWS[law][1]
    monkeypatch.setattr(owner, name, scaled(np.nan)(original))
    assert verify(law)["laws"][0] == {"law": law, "value": None, "ok": False, "note": "not a finite number"}


# ---- what is right is never called wrong ----


def correct_cases(n: int):
    """Right gradients of every op in turn, at sizes and numbers drawn at random: masks, padding, repeated ids."""
    for i in range(n):
        rng = np.random.default_rng([17, i])
        name = list(OPS)[i % len(OPS)]
        yield name, OPS[name].draw(lambda low=1, high=4, rng=rng: int(rng.integers(low, high + 1)), rng), rng


@pytest.mark.slow
def test_ten_right_gradients_of_every_op_are_never_called_wrong():
    refused, n = 0, 10 * len(OPS)
    for name, case, rng in correct_cases(n):
        try:
            assert OPS[name].check(case, rng).ok, name
        except ValueError as error:
            if "zero by every method" not in str(error):
                raise
            refused += 1  # one key, or one channel: the gradient is zero, and the check says so
    assert refused < n // 20


@pytest.mark.slow
def test_the_structural_zero_of_a_key_bias_is_never_called_wrong_where_it_is_named():
    for seed in range(4):
        assert all(report.ok for report in CHECKS["family bert"](np.random.default_rng(seed)))
