"""benchmarks/: bases in fewer bits beside float32's, and what is said of them."""

import json
from typing import Any

import pytest

from benchmarks import bench, ours, perplexity, show
from benchmarks.cases import BASES, BITSANDBYTES, Case, cases, pairs
from minilora.quantization import Quantized

CASE = Case("minilm", 1, 8, "qlora", bases="float32,nf4")


def test_each_base_is_set_beside_the_same_of_peft_and_beside_both_in_float32():
    found = pairs(Case("smollm2", 1, 128, "qlora", bases=",".join(BASES)))
    assert {mine.library for mine, _ in found} == {"minilora"}
    assert {(mine.base, other.base) for mine, other in found if other.library != "minilora"} == (
        {(base, base) for base in BASES} | {(base, "float32") for base in BASES}
    )
    assert {mine.base for mine, other in found if other.library == "minilora"} == set(BASES[1:])
    assert {other.base for _, other in found if other.library == "bitsandbytes"} == set(BITSANDBYTES)


def test_bases_are_those_of_real_models_and_of_qlora_alone():
    def found(measure: str, size: str, device: str = "cpu") -> list[Case]:
        return cases([size], [measure], [1], [8], ["q_proj,v_proj"], device, ["nf4"])

    assert [case.bases for case in found("qlora", "minilm")] == ["nf4"]
    assert [case.bases for case in found("lora", "minilm")] == [""]
    assert found("qlora", "tiny") == found("qlora", "minilm", "cuda") == []
    with pytest.raises(ValueError, match="a base in 'nf5' is not compared: did you mean 'nf4'"):
        cases(["minilm"], ["qlora"], [1], [8], ["q_proj,v_proj"], "cpu", ["nf5"])


def test_what_is_measured_of_a_base_in_fewer_bits_is_a_quantised_model(tmp_path, monkeypatch):
    monkeypatch.setattr(ours, "step", lambda model, *_: model)
    model: Any = ours.gpt2(ours.Config(vocab_size=32, n_layers=1, d_model=16, n_heads=2, max_length=8), None)
    for parameter in model.named_parameters().values():
        parameter.data = parameter.data + 0.5
    ours.save_pretrained(model, tmp_path / "base")
    ours.save_tensors(
        tmp_path / ours.BATCH, {"ids": ours.np.zeros((1, 8), int), "targets": ours.np.zeros((1, 8), int)}, {}
    )
    case = Case("minilm", 1, 8, "qlora", targets="all-linear", bases="nf4")
    held = ours.job(case, case.targets, False, tmp_path, "nf4")
    assert all(
        isinstance(p.data, Quantized) for p in held["block_0.mlp"].base_parameters().values() if p.data.ndim == 2
    )
    assert held["block_0.mlp.up_proj"].is_adapter
    plain = ours.job(case, case.targets, False, tmp_path, "float32")
    assert not any(isinstance(p.data, Quantized) for p in plain.parameters())


def test_memory_is_said_beside_what_the_libraries_take(capsys):
    def side(library: str, base: str, wall: float, peak: int) -> dict[str, Any]:
        rounds = [{"n": 1, "wall": wall, "cpu": wall}]
        about = {"numpy": "2", "threads": "1 × 1"}
        made = {"name": f"{library} {base}", "library": library, "about": about, "rounds": rounds, "wall": wall}
        return made | {"peak": peak * 2**20, "before": 40 * 2**20, "results": [1.0], "waits": None}

    sides = [side("minilora", "float32", 1, 740), side("minilora", "nf4", 1.2, 320)]
    sides += [side("peft", "float32", 0.5, 1040), side("bitsandbytes", "nf4", 2, 1540)]
    result = {"case": CASE.__dict__, "contestants": sides, "ratios": []}
    machine = {"processor": "one", "cores": 2, "system": "x", "python": "3"}
    empty: dict[str, Any] = {"missing": [], "threads": [], "imports": [], "ops": []}
    show({"machine": machine, "device": "cpu", "cases": [result], **empty})
    said = capsys.readouterr().out
    row = next(line for line in said.splitlines() if "│ nf4" in line)
    assert [cell.strip() for cell in row.strip("│").split("│")] == [
        "nf4", "1,200 ms", "1.20", "280 MiB", "0.40", "2,000 ms", "1,500 MiB", "2.40", "0.28",
    ]  # fmt: skip
    assert "minilora's 40 MiB" in said


def test_perplexity_is_set_beside_that_of_float32_seed_by_seed():
    before = {"float32": [1.0, 2.0], "nf4": [1.1, 2.1]}
    result = {"before": before, "after": {"float32": [0.5, 1.5]}}
    full, nf4 = perplexity.rows(result)
    assert full == ("float32", "5.05 ± 3.30", "", "3.07 ± 2.00", "")
    assert nf4[2] == "+10.52 ± 0.00 %"
    assert nf4[3:] == ("", "")


def test_the_perplexity_of_a_base_is_measured_before_and_after_lora(capsys):
    words = "--bases float32,bfloat16 --seeds 1 --windows 2 --steps 2 --batch 1 --json"
    assert perplexity.main(words.split()) == 0
    (found,) = json.loads(capsys.readouterr().out)["models"]
    assert found["before"]["bfloat16"][0] == pytest.approx(found["before"]["float32"][0], abs=0.01)
    assert found["after"]["float32"][0] != found["before"]["float32"][0]
    assert perplexity.main(["--models", "gpt2"]) == 2
    assert "the perplexity of 'gpt2' is not measured" in capsys.readouterr().err


def test_a_measure_that_no_size_has_is_refused_and_not_an_empty_report():
    with pytest.raises(ValueError, match=r"qlora on cpu measures nothing of tiny, gpt2: .* for them alone"):
        bench(["tiny", "gpt2"], ["qlora"])
    with pytest.raises(ValueError, match="forward on cpu measures nothing of minilm: "):
        bench(["minilm"], ["forward"])
