"""Merging into fewer bits: what is said before, what is refused, what is written, and how far a forecast is right."""

import re

import numpy as np
import pytest
from adapters import adapted, snapshot
from commands import RUN, assert_refused, code_of, lines, make_base, make_inputs
from models import build
from real import real

import minilora
from minilora.adapters.attach import attach
from minilora.adapters.kept import kept_by_merge, share_kept
from minilora.adapters.merge import merge, to_merge
from minilora.adapters.registry import variants
from minilora.cli import main
from minilora.data import Batch
from minilora.jobs.merging import MEASURES, show_kept, size_curves
from minilora.jobs.merging_figure import merging_figure
from minilora.models.quantized import convert, quantize
from minilora.models.saving import save_pretrained
from minilora.quantization import Quantized, dense, formats
from minilora.quantization.forecast import foretell, measure

IDS = np.random.default_rng(0).integers(0, 13, (2, 5))


# ---- the library ----


@pytest.mark.parametrize("variant", [name for name, (cls, *_) in variants().items() if cls.mergeable])
def test_of_every_variant_it_is_known_what_a_merge_keeps_and_the_model_stays_as_it_was(variant):
    model, rng = build("bert", dtype="float32"), np.random.default_rng(0)
    attach(model, variant, rng=0, **variants()[variant][0].examples[""])
    for adapter in to_merge(model).values():
        for parameter in adapter.own_parameters().values():
            change = 0.3 * rng.standard_normal(parameter.data.shape)
            parameter.data = (parameter.data + change).astype(parameter.data.dtype)
    before = snapshot(model)
    found = kept_by_merge(model, "bfloat16", Batch(IDS, IDS))
    assert snapshot(model) == before
    matrices = {path for path, a in to_merge(model).items() if a.dense().ndim == 2 and a.delta().any()}
    assert found.keys() == matrices
    for path, layer in found.items():
        assert layer.foretold.delta == pytest.approx(np.sum(to_merge(model)[path].delta().astype(float) ** 2), rel=1e-4)
        assert 0.9 < layer.measured.share < 1.1


@pytest.mark.parametrize("format", formats())
def test_what_is_measured_is_what_merge_and_quantize_leave(format):
    model = adapted(dtype="float32")
    before = {path: (adapter.dense(), adapter.delta()) for path, adapter in to_merge(model).items()}
    found = kept_by_merge(model, format, Batch(IDS, IDS))
    merge(model)
    x = {path: model[path] for path in found}
    convert(model, format)
    kept, sizes = (sum(getattr(layer.measured, name) for layer in found.values()) for name in ("along", "delta"))
    assert share_kept(found) == pytest.approx(kept / sizes)
    for path, layer in found.items():
        W, delta = before[path]
        kept = x[path].weight.data.dense() - W
        assert layer.measured.relative_error == pytest.approx(
            np.linalg.norm(kept - delta) / np.linalg.norm(delta), rel=1e-4
        )
        cos = np.vdot(kept, delta) / np.linalg.norm(kept) / np.linalg.norm(delta)
        assert layer.measured.cos == pytest.approx(cos, rel=1e-4)


@pytest.mark.parametrize("format", formats())
def test_a_base_in_a_format_is_merged_from_its_decoded_matrices(format):
    model = build("llama", dtype="float32")
    quantize(model, format)
    held = {path: dense(p.data) for path, p in model.named_parameters().items()}
    minilora.attach_lora(model, "all-linear", r=2, rng=0)
    for path, adapter in to_merge(model).items():
        adapter.lora_B.data = np.full_like(adapter.lora_B.data, 0.3)
        held[f"{path}.weight"] = held[f"{path}.weight"] + adapter.delta()
    assert all(layer.on_the_grid for layer in kept_by_merge(model, format).values())
    merge(model)
    convert(model, "float32")
    assert not any(isinstance(p.data, Quantized) for p in model.parameters())
    for path, parameter in model.named_parameters().items():
        assert np.allclose(parameter.data, held[path], rtol=1e-6, atol=1e-7), path


def test_a_model_in_one_format_is_held_in_another():
    model = build("llama", dtype="float32")
    quantize(model, "int8")
    W = dense(model["block_0.attention.q_proj"].weight.data)
    convert(model, "nf4")
    Q = model["block_0.attention.q_proj"].weight.data
    assert Q.name == "nf4"
    assert np.array_equal(Q.dense(), formats()["nf4"].of(W).dense())
    convert(model, "float32")
    assert np.array_equal(model["block_0.attention.q_proj"].weight.data, Q.dense())


def test_an_adapter_that_changes_no_matrix_loses_nothing(capsys):
    model = build("llama", dtype="float32")
    minilora.attach_lora(model, "all-linear", r=2, rng=0)  # B = 0
    found = kept_by_merge(model, "nf4", Batch(IDS, IDS))
    assert (found, share_kept(found)) == ({}, 1)
    show_kept(found, "nf4")
    assert "no matrix" in capsys.readouterr().out


def test_the_layers_of_a_real_model_are_foretold_within_5_percent():
    real("minilm")
    with pytest.warns(UserWarning, match="another head"):
        model, rng = minilora.load_pretrained("minilm"), np.random.default_rng(0)
    for path in ("block_0.mlp.down_proj", "block_3.attention.q_proj"):  # the first has a row of 40 times the others
        W = model[path].weight.data[:192]
        delta = rng.standard_normal((len(W), 8)) @ rng.standard_normal((8, W.shape[1]))
        delta = (delta * 0.03 * np.linalg.norm(W) / np.linalg.norm(delta)).astype(np.float32)
        for name, cls in formats().items():
            for base in (W, cls.of(W).dense()):
                foretold, measured = foretell(base, delta, cls), measure(base, delta, cls)
                assert foretold.relative_error == pytest.approx(measured.relative_error, rel=0.05), (path, name)


def test_the_error_of_the_outputs_of_a_trained_adapter_is_foretold():
    model = minilora.load_pretrained("builtin")
    minilora.attach_lora(model, ["q_proj", "v_proj", "down_proj"], r=4, alpha=4, rng=0)
    batches = minilora.data.random_windows(b"for i in range(10): print(i)\n" * 99, batch=4, length=32, seed=0)
    minilora.fit(model, batches, steps=12, lr=1e-2, description=None)
    for format in ("nf4", "int8", "bfloat16"):
        found = kept_by_merge(model, format, batches(99))
        ratios = [layer.y.foretold / layer.y.measured for layer in found.values()]
        assert np.median(ratios) == pytest.approx(1, rel=0.05), format
        assert min(ratios) > 0.7
        assert max(ratios) < 1.4


@pytest.mark.slow
def test_the_curves_of_the_figure_lie_within_5_percent_of_their_dots_and_are_drawn():
    rng = np.random.default_rng(0)
    W = rng.standard_normal((128, 256)).astype(np.float32)
    rows = size_curves(W, rng.standard_normal((128, 4)) @ rng.standard_normal((4, 256)))
    assert len(rows) == 4 * 2 * 5
    for row in rows:
        assert row["foretold"]["error"] == pytest.approx(row["measured"]["error"], rel=0.05)
    assert merging_figure(rows).startswith(b"\x89PNG")


# ---- the command ----


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A base whose blocks lie on NF4's grid though its file is in float32, and a small and a large change of it."""
    folder = tmp_path_factory.mktemp("merging")
    make_inputs(folder)
    make_base(folder / "whole", d_model=64, d_ff=64)
    model = minilora.load_pretrained(folder / "whole", quantize="nf4")
    convert(model, "float32")
    save_pretrained(model, folder / "held")
    for name, alpha in (("small", 0.2), ("large", 200.0)):
        model = minilora.load_pretrained(folder / "held")
        minilora.attach_lora(model, "all-linear", r=2, alpha=alpha, rng=0)
        for adapter in to_merge(model).values():
            B = 0.02 * np.random.default_rng(0).standard_normal(adapter.lora_B.data.shape)
            adapter.lora_B.data = B.astype(np.float32)
        minilora.save_adapter(model, folder / name)
    return folder


@pytest.fixture
def here(made, tmp_path, monkeypatch):
    folder = tmp_path / "here"
    folder.mkdir()
    for name in ("held", "whole", "words.txt", "small", "large"):
        (folder / name).symlink_to(made / name)
    monkeypatch.chdir(folder)
    return folder


def words(adapter, dtype, *more):
    return ["merge", "--base", "held", "--adapter", adapter, "--out", "out", "--dtype", dtype, *more]


def test_a_merge_that_keeps_less_than_half_says_so_and_is_not_done(here, capfd):
    assert code_of(words("small", "nf4")) == 2
    out, err = capfd.readouterr()
    assert not (here / "out").exists()
    assert all(name in out for name in MEASURES)
    assert "foretold" in out
    assert "measured" in out
    assert len(lines(err)) == 1
    advice = "keep the adapter as a separate file, or take --dtype bfloat16"
    assert re.search(rf"keeps [0-9]% of ΔW, less than half: {advice}", err)
    assert "--anyway" in err


def test_with_anyway_it_is_done_and_the_file_holds_the_rounded_sum(here, capfd):
    assert main(words("small", "nf4", "--anyway")) == 0
    assert "written to out" in capfd.readouterr().out
    model = minilora.load_pretrained("held")
    minilora.load_adapter(model, "small")
    layer = to_merge(model)["block_0.attention.q_proj"]
    expected = formats()["nf4"].of(layer.dense() + layer.delta()).dense()
    found = dense(minilora.load_pretrained("out")["block_0.attention.q_proj"].weight.data)
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("dtype", ["float32", *formats()])
def test_a_large_change_is_merged_into_every_dtype_and_loads(here, capfd, dtype):
    assert main(words("large", dtype)) == 0
    out = capfd.readouterr().out
    assert ("foretold" in out) is (dtype != "float32")
    model, merged = minilora.load_pretrained("held"), minilora.load_pretrained("out")
    minilora.load_adapter(model, "large")
    merge(model)
    convert(model, dtype)
    for path, parameter in model.named_parameters().items():
        assert np.array_equal(dense(merged.named_parameters()[path].data), dense(parameter.data)), path


def test_a_dtype_that_does_not_exist_or_a_folder_that_is_taken_costs_nothing(here, capfd):
    assert_refused(here, capfd, words("large", "nf5"), "did you mean .?nf4")
    (here / "out").mkdir()
    (here / "out" / "notes").write_text("mine")
    assert_refused(here, capfd, words("small", "nf4", "--anyway"), "already holds notes")


def test_a_run_on_a_base_in_a_format_is_merged_from_the_decoded_base(here, capfd):
    options = ["--targets", "q_proj,down_proj", "--quantize", "nf4", "--lr", "0.05"]
    assert main(["finetune", "--base", "whole", "--data", "words.txt", "--out", "run", *RUN, *options]) == 0
    assert main(["merge", "--base", "whole", "--adapter", "run", "--out", "out"]) == 0
    model, merged = minilora.load_pretrained("whole", quantize="nf4"), minilora.load_pretrained("out")
    minilora.load_adapter(model, "run")
    for path, adapter in to_merge(model).items():
        assert np.allclose(merged[path].weight.data, adapter.dense() + adapter.delta(), atol=1e-7)
    untouched = "block_0.attention.k_proj"
    assert np.array_equal(merged[untouched].weight.data, model[untouched].dense())
    capfd.readouterr()
    assert main(["merge", "--base", "whole", "--adapter", "run", "--out", "four", "--dtype", "nf4", "--anyway"]) == 0
    assert "not in nf4 yet" not in capfd.readouterr().out
    assert main(["merge", "--base", "whole", "--adapter", "run", "--out", "of_whole", "--quantize", "none",
                 "--dtype", "nf4", "--anyway"]) == 0  # fmt: skip
    assert "not in nf4 yet" in capfd.readouterr().out
