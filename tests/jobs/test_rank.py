"""What `minilora rank` measures, writes and refuses."""

import json
import math
import re

import numpy as np
import pytest
from commands import assert_refused, edit_json, edit_tensors
from models import FAMILY_HEADS, beside
from reports import SHAPE, adapted, base_model

import minilora
from minilora.adapters import peft, spectrum
from minilora.adapters.base import Adapter
from minilora.cli import main
from minilora.files import load_tensors, save_tensors, to_json
from minilora.jobs import extraction, rank_figures
from minilora.jobs.rank import study
from minilora.jobs.rank_figures import blocks_and_kinds
from minilora.models import saving
from minilora.models.families import FAMILIES
from minilora.models.names import hf_name, hub_name

IDS = np.random.default_rng(9).integers(0, SHAPE["vocab_size"], (2, 9))


def merged(model):
    minilora.merge(model)
    return model


def fully_tuned():
    """Every weight changed, norms and embedding too; the change of a matrix falls off quickly in its directions."""
    model, rng = base_model(), np.random.default_rng(4)
    for parameter in model.named_parameters().values():
        shape = parameter.data.shape
        change = rng.standard_normal(shape)
        if len(shape) == 2:
            U, sigma, Vt = np.linalg.svd(change, full_matrices=False)
            change = U @ np.diag(sigma * rng.uniform(0.5, 0.9) ** np.arange(len(sigma))) @ Vt
        parameter.data = (parameter.data + 0.1 * change).astype("f4")
    return model


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rank") / "made"
    minilora.save_pretrained(base_model(), folder / "base")
    minilora.save_pretrained(fully_tuned(), folder / "full")
    minilora.save_pretrained(merged(adapted()), folder / "merged")
    peft.save_adapter(adapted(), folder / "adapter")
    peft.save_adapter(adapted(seed=5, r=4, alpha=3), folder / "other")
    make_useless(folder)
    return folder


def make_useless(here):
    """Folders that `minilora rank` cannot do anything with, each in its own way."""
    for variant, options in (("vera", {"r": 2}), ("ia3", {})):
        model = base_model()
        minilora.attach(model, variant, rng=0, **options)
        peft.save_adapter(model, here / variant)
    for folder in ("strange", "norms", "shards", "lost"):
        (here / folder).mkdir()
    save_tensors(here / "strange" / "model.safetensors", {"x.weight": np.eye(3, 4)}, {})
    tensors, _ = load_tensors(here / "base" / "model.safetensors")
    norm = {"model.norm.weight": 2 * tensors["model.norm.weight"]}
    save_tensors(here / "norms" / "model.safetensors", tensors | norm, {})
    (here / "shards" / "model.safetensors.index.json").write_text("{}")
    (here / "lost" / "model.safetensors.index.json").write_text('{"weight_map": {"x": "part.safetensors"}}')
    idle, wide = base_model(), minilora.llama(minilora.Config(**SHAPE | {"d_ff": 32}), np.random.default_rng(0))
    minilora.attach_lora(idle, rng=np.random.default_rng(0))
    peft.save_adapter(idle, here / "idle")
    minilora.attach_lora(wide, ["up_proj"], 2, rng=np.random.default_rng(0))
    wide["block_0.mlp.up_proj"].lora_B.data += 1
    peft.save_adapter(wide, here / "wide")


def weights(folder):
    return {name: x.astype(float) for name, x in load_tensors(folder / "model.safetensors")[0].items()}


def names(rows):
    return [row["name"] for row in rows]


# ---- what is measured ----


def test_two_checkpoints_are_measured_as_numpy_measures_their_difference(made):
    result = study(str(made / "base"), str(made / "full"))
    old, new = weights(made / "base"), weights(made / "full")
    matrices = [name for name, x in old.items() if x.ndim == 2]
    assert sorted(names(result["layers"])) == sorted(name.removesuffix(".weight") for name in matrices)
    assert set(result["summary"]["other_tensors"]) == set(old) - set(matrices)
    for row in result["layers"]:
        W, W_1 = old[f"{row['name']}.weight"], new[f"{row['name']}.weight"]
        U, sigma, Vt = np.linalg.svd(W_1 - W, full_matrices=False)
        r = row["rank_90"]
        assert np.sum(sigma[:r] ** 2) >= 0.9 * np.sum(sigma**2) > np.sum(sigma[: r - 1] ** 2)
        assert row["rank_99"] == spectrum.rank_for(sigma, 0.99) > r
        assert row["numerical_rank"] == np.linalg.matrix_rank((W_1 - W).astype("f4"))
        inside, size = np.linalg.norm(U[:, :r].T @ W @ Vt[:r].T), np.linalg.norm(W)
        own = np.linalg.svd(W, compute_uv=False)
        expected = {
            "shape": W.shape,
            "norm": np.linalg.norm(W_1 - W),
            "relative_norm": np.linalg.norm(W_1 - W) / size,
            "stable_rank": np.sum(sigma**2) / sigma[0] ** 2,
            "effective_rank": spectrum.effective_rank(sigma),
            "amplification": np.linalg.norm(sigma[:r]) / inside,
        }
        for key, value in expected.items():
            assert row[key] == pytest.approx(value), key
        table_7 = {"update": inside, "weight": np.linalg.norm(own[:r]), "random": size * r / math.sqrt(W.size)}
        assert row["projected_norm"] == pytest.approx(table_7)
        spectra = {"update": sigma, "before": own, "after": np.linalg.svd(W_1, compute_uv=False)}
        for key, values in spectra.items():
            np.testing.assert_allclose(row["singular_values"][key], values, atol=1e-12 * values[0])


def test_an_adapter_beside_its_base_measures_as_base_and_merged_model_do(made):
    one = study(str(made / "adapter"), base=str(made / "base"))
    two = study(str(made / "base"), str(made / "merged"))
    assert names(one["layers"]) == names(two["layers"])
    assert two["summary"]["unchanged"] == ["model.embed_tokens"]
    for a, b in zip(one["layers"], two["layers"], strict=True):
        assert a["numerical_rank"] == b["numerical_rank"] == 3  # although merging has rounded W + ΔW to float32
        assert a["intruders"] == b["intruders"]
        assert a["projected_norm"] == pytest.approx(b["projected_norm"], rel=1e-4)
        for key in ("norm", "relative_norm", "stable_rank", "amplification"):
            assert a[key] == pytest.approx(b[key], rel=1e-4), key
    old, new = weights(made / "base"), weights(made / "merged")
    for row in one["layers"]:
        U, _, Vt = np.linalg.svd(old[f"{row['name']}.weight"], full_matrices=False)
        X, _, Yt = np.linalg.svd(new[f"{row['name']}.weight"], full_matrices=False)
        for side, cosines in (("left", U.T @ X), ("right", Vt @ Yt.T)):
            assert row["intruders"][side] == [j for j in range(min(10, len(Vt))) if np.abs(cosines[:, j]).max() < 0.5]
    assert any(side for row in one["layers"] for side in row["intruders"].values())


UNEVEN = {"targets": {"q_proj": 2, "block_1.mlp.up_proj": 4}}


@pytest.mark.parametrize("words", [{"rslora": True}, UNEVEN])
def test_an_adapter_alone_has_the_singular_values_of_its_layers(tmp_path, words):
    model = adapted(**words)
    peft.save_adapter(model, tmp_path / "a")
    found = {row["name"]: row for row in study(str(tmp_path / "a"))["layers"]}
    layers = {hf_name(model, path): layer for path, layer in peft.adapters_of(model).items()}
    assert found.keys() == layers.keys()
    for name, layer in layers.items():
        sigma = np.linalg.svd(layer.delta().astype(float), compute_uv=False)
        np.testing.assert_allclose(found[name]["singular_values"]["update"], sigma[: layer.r], rtol=1e-5)
        assert "amplification" not in found[name]


def test_the_summary_is_the_mean_over_the_layers(made):
    result = study(str(made / "base"), str(made / "full"))
    rows, total = result["layers"], result["summary"]
    for key in ("stable_rank", "effective_rank"):
        assert total[key] == pytest.approx(np.mean([row[key] for row in rows]))
    for side in ("left", "right"):
        assert total["intruders"][side] == pytest.approx(np.mean([len(row["intruders"][side]) for row in rows]))
    for share, rank in ((0.9, total["rank_90"]), (0.99, total["rank_99"])):
        sigmas = [np.array(row["singular_values"]["update"]) for row in rows]
        kept = [np.mean([np.sum(s[:r] ** 2) / np.sum(s**2) for s in sigmas]) for r in (rank - 1, rank)]
        assert kept[0] < share <= kept[1]


def test_any_family_will_do_and_shards_are_read_as_one(tmp_path, rng):
    shapes = {"h.0.attn.c_attn.weight": (6, 18), "h.10.mlp.c_fc.weight": (6, 24), "h.9.mlp.c_fc.weight": (6, 24)}
    shapes |= {"ln_f.bias": (6,), "wpe": (9, 6), "conv.weight": (2, 3, 4)}
    old = {name: rng.standard_normal(shape).astype("f4") for name, shape in shapes.items()}
    new = {name: (x + 0.1 * rng.standard_normal(x.shape)).astype("f4") for name, x in old.items()}
    new["wpe"], old["ids"], new["ids"] = old["wpe"], np.arange(6).reshape(2, 3), 1 + np.arange(6).reshape(2, 3)
    new["score.weight"] = new["h.9.mlp.c_fc.weight"]
    new["ln_f.bias"] = new["ln_f.bias"][:4]
    for folder in ("one", "two", "shards"):
        (tmp_path / folder).mkdir()
    save_tensors(tmp_path / "one" / "model.safetensors", old, {})
    save_tensors(tmp_path / "two" / "model.safetensors", new, {})
    files = {name: f"part-{i % 2}.safetensors" for i, name in enumerate(new)}
    for file in set(files.values()):
        save_tensors(tmp_path / "shards" / file, {n: x for n, x in new.items() if files[n] == file}, {})
    (tmp_path / "shards" / "model.safetensors.index.json").write_bytes(to_json({"weight_map": files}))
    result = study(str(tmp_path / "one"), str(tmp_path / "two"))
    assert names(result["layers"]) == ["h.0.attn.c_attn", "h.9.mlp.c_fc", "h.10.mlp.c_fc"]
    assert result["summary"]["unchanged"] == ["wpe"]
    others = result["summary"]["other_tensors"]
    assert others.keys() == {"conv.weight", "ids", "ln_f.bias", "score.weight"}
    assert (others["ids"], others["ln_f.bias"]) == ("changed", "(6,) became (4,)")
    assert others["score.weight"].endswith("two")
    sharded = study(str(tmp_path / "one"), str(tmp_path / "shards"))
    assert sharded["layers"] == result["layers"]


@pytest.mark.parametrize(
    "words", [{"rank": -1}, {"rank": 0}, {"energy": -1.0}, {"energy": 0.0}, {"energy": math.nan}], ids=str
)
def test_a_rank_or_a_share_that_there_cannot_be_is_a_line(here, words):
    with pytest.raises(ValueError, match=r"(rank|energy) = \S+ is not a (whole number|share above 0)"):
        study("adapter", out="out", **words)
    assert not (here / "out").exists()


def test_in_a_narrow_terminal_the_names_of_layers_are_broken_at_their_dots(made, narrow):
    _, said = narrow(["rank", str(made / "adapter"), "--base", str(made / "base")])
    for line in said.splitlines():
        assert not re.search(r"self_attn\.[kqvo]|mlp\.(down|gate)_", line)
    assert re.search(r"^ model\.layers\.1\.self_attn\. .*%.*\n q_proj 16x16 +$", said, re.MULTILINE)


def test_one_layer_is_not_called_layers(tmp_path, capfd):
    peft.save_adapter(adapted(targets=["block_0.attention.q_proj"]), tmp_path / "a")
    assert main(["rank", str(tmp_path / "a"), "--rank", "1", "--out", str(tmp_path / "out")]) == 0
    said = capfd.readouterr().out
    assert "in the mean over 1 layer;" in said
    assert "The adapter has 1 layer of rank 1," in said


def test_a_weight_that_is_there_under_two_names_is_refused_as_by_who_loads_it(here):
    tensors, _ = load_tensors(here / "full" / "model.safetensors")
    twice = {"norm.weight": 2 * tensors["model.norm.weight"]}  # as a model without a head has it
    save_tensors(here / "full" / "model.safetensors", tensors | twice, {})
    for read in (lambda: study("base", "full"), lambda: minilora.load_pretrained("full")):
        with pytest.raises(ValueError, match=r"model\.norm\.weight is there twice, under two names"):
            read()


def test_the_directions_of_two_adapters_are_compared_layer_by_layer(made):
    found = study(str(made / "adapter"), compare=str(made / "other"))["summary"]["similarity"]
    one, two = adapted(), adapted(seed=5, r=4, alpha=3)
    grids = {"right": [], "left": []}
    for path, layer in peft.adapters_of(one).items():
        U, _, Vt = np.linalg.svd(layer.delta().astype(float), full_matrices=False)
        X, _, Yt = np.linalg.svd(two[path].delta().astype(float), full_matrices=False)
        grids["right"].append(spectrum.subspace_similarity(Vt[:3].T, Yt[:4].T))
        grids["left"].append(spectrum.subspace_similarity(U[:, :3], X[:, :4]))
        assert 1 / layer.delta().shape[1] >= found["random_right"][0][0] / 2
    assert found["layers"] == len(grids["left"])
    for side, expected in grids.items():
        np.testing.assert_allclose(found[side], np.mean(expected, axis=0), atol=1e-5)
    widths = [layer.delta().shape for layer in peft.adapters_of(one).values()]
    assert found["random_right"][2][3] == pytest.approx(np.mean([4 / n_in for _, n_in in widths]))
    assert found["random_left"][2][1] == pytest.approx(np.mean([3 / n_out for n_out, _ in widths]))
    same = study(str(made / "adapter"), compare=str(made / "adapter"))["summary"]["similarity"]
    np.testing.assert_allclose(np.diag(same["right"]), 1)


def test_full_fine_tuning_can_be_compared_with_an_adapter(made):
    found = study(str(made / "base"), str(made / "merged"), compare=str(made / "adapter"))["summary"]["similarity"]
    np.testing.assert_allclose([found["right"][2][2], found["left"][2][2]], 1, atol=1e-6)
    assert np.shape(found["left"]) == (3, 3)  # beyond, the directions of what was merged are rounding


# ---- an adapter of a chosen rank ----


def updates(model):
    """{Hugging Face's name: ΔW} of an adapted model, in float64."""
    return {
        hf_name(model, path): layer.scaling * layer.lora_B.data.astype(float) @ layer.lora_A.data
        for path, layer in peft.adapters_of(model).items()
    }


def loaded(folder):
    model = base_model()
    assert peft.load_adapter(model, folder) == ""
    return model


@pytest.mark.parametrize("words", [{"rank": 3}, {"energy": 0.8}])
def test_an_adapter_from_two_checkpoints_is_as_near_as_its_ranks_allow(made, tmp_path, words):
    result = study(str(made / "base"), str(made / "full"), out=str(tmp_path / "out"), **words)
    old, new, held = weights(made / "base"), weights(made / "full"), updates(loaded(tmp_path / "out"))
    reported = {layer["name"]: layer for layer in result["adapter"]["layers"]}
    assert held.keys() == reported.keys() == {n.removesuffix(".weight") for n in old if "proj" in n}
    errors, sizes = [], []
    for name, B_A in held.items():
        W = new[f"{name}.weight"] - old[f"{name}.weight"]
        sigma, r = np.linalg.svd(W, compute_uv=False), reported[name]["rank"]
        assert r == (words.get("rank") or spectrum.rank_for(sigma, words["energy"]))
        assert np.linalg.matrix_rank(B_A, rtol=1e-5) == r
        errors.append(np.linalg.norm(W - B_A))
        sizes.append(np.linalg.norm(W))
        least = math.sqrt(np.sum(sigma[r:] ** 2))
        assert (reported[name]["error"], reported[name]["bound"]) == pytest.approx((errors[-1], least), rel=1e-5)
        assert errors[-1] == pytest.approx(least, rel=1e-5)
    if "energy" in words:
        assert len({layer["rank"] for layer in reported.values()}) > 1
    assert result["adapter"]["relative_error"] == pytest.approx(np.linalg.norm(errors) / np.linalg.norm(sizes))
    assert result["adapter"]["parameters"] == sum(
        x.size for x in load_tensors(tmp_path / "out" / peft.WEIGHTS)[0].values()
    )


def test_what_an_adapter_cannot_hold_is_named(made, tmp_path):
    result = study(str(made / "base"), str(made / "full"), rank=1, out=str(tmp_path / "out"))
    assert set(result["adapter"]["not_held"]) == {
        "model.embed_tokens",
        "model.norm.weight",
        *(f"model.layers.{i}.{norm}_layernorm.weight" for i in (0, 1) for norm in ("input", "post_attention")),
    }
    result = study(str(made / "base"), str(made / "merged"), rank=1, out=str(tmp_path / "again"))
    assert result["adapter"]["not_held"] == {}


def test_the_adapter_that_was_merged_comes_back(made, tmp_path):
    result = study(str(made / "base"), str(made / "merged"), rank=3, out=str(tmp_path / "out"))
    assert result["adapter"]["relative_error"] < 1e-5
    expected = adapted().forward(IDS)[0]
    assert np.abs(loaded(tmp_path / "out").forward(IDS)[0] - expected).max() < 1e-4 * np.abs(expected).max()


def test_only_layers_that_changed_get_an_adapter(made, tmp_path):
    minilora.save_pretrained(merged(adapted(targets=["v_proj", "block_1.mlp.up_proj"])), tmp_path / "tuned")
    study(str(made / "base"), str(tmp_path / "tuned"), energy=0.99, out=str(tmp_path / "out"))
    assert updates(loaded(tmp_path / "out")).keys() == {
        "model.layers.0.self_attn.v_proj",
        "model.layers.1.self_attn.v_proj",
        "model.layers.1.mlp.up_proj",
    }


def test_an_untied_head_is_a_layer_like_others(tmp_path):
    base = base_model(tied=False)
    minilora.save_pretrained(base, tmp_path / "base")
    head = base["lm_head"].weight
    head.data = head.data + np.float32(0.1) * np.random.default_rng(2).standard_normal(head.data.shape, dtype="f4")
    minilora.save_pretrained(base, tmp_path / "tuned")
    study(str(tmp_path / "base"), str(tmp_path / "tuned"), rank=16, out=str(tmp_path / "out"))
    again = minilora.load_pretrained(tmp_path / "base")
    peft.load_adapter(again, tmp_path / "out")
    expected = base.forward(IDS)[0]
    assert np.abs(again.forward(IDS)[0] - expected).max() < 1e-4 * np.abs(expected).max()


SHRINKS = {"alpha/r": {}, "rsLoRA": {"rslora": True}, "a rank for each": UNEVEN}


@pytest.mark.parametrize("case", SHRINKS)
def test_a_trained_adapter_shrinks_to_the_best_of_a_lower_rank(tmp_path, case):
    model = adapted(**SHRINKS[case])
    peft.save_adapter(model, tmp_path / "a")
    result = study(str(tmp_path / "a"), rank=2, out=str(tmp_path / "out"))
    before, after = updates(model), updates(loaded(tmp_path / "out"))
    assert before.keys() == after.keys() == {layer["name"] for layer in result["adapter"]["layers"]}
    for layer in result["adapter"]["layers"]:
        W, B_A = before[layer["name"]], after[layer["name"]]
        least = math.sqrt(np.sum(np.linalg.svd(W, compute_uv=False)[2:] ** 2))
        rounding = 1e-6 * np.linalg.norm(W)
        assert np.linalg.matrix_rank(B_A, rtol=1e-5) == layer["rank"] == 2
        assert np.linalg.norm(W - B_A) == pytest.approx(least, abs=rounding)
        assert (layer["error"], layer["bound"]) == pytest.approx((least, least), abs=rounding)


def test_a_share_of_the_energy_gives_each_layer_its_own_rank_and_all_of_it_changes_nothing(made, tmp_path):
    study(str(made / "adapter"), energy=1.0, out=str(tmp_path / "all"))
    expected = adapted().forward(IDS)[0]
    assert np.abs(loaded(tmp_path / "all").forward(IDS)[0] - expected).max() < 1e-4 * np.abs(expected).max()
    result = study(str(made / "adapter"), energy=0.7, out=str(tmp_path / "most"))
    ranks = {layer["name"]: layer["rank"] for layer in result["adapter"]["layers"]}
    assert len(set(ranks.values())) > 1
    model = loaded(tmp_path / "most")
    assert ranks == {hf_name(model, path): layer.r for path, layer in peft.adapters_of(model).items()}
    for name, W in updates(adapted()).items():
        assert ranks[name] == spectrum.rank_for(np.linalg.svd(W, compute_uv=False), 0.7)


def test_a_layer_that_was_never_trained_is_left_out_of_the_smaller_adapter(tmp_path):
    model = adapted(targets=["q_proj", "v_proj"])
    idle = model["block_1.attention.v_proj"].lora_B
    idle.data = np.zeros_like(idle.data)
    peft.save_adapter(model, tmp_path / "a")
    result = study(str(tmp_path / "a"), rank=1, out=str(tmp_path / "out"))
    assert result["summary"]["unchanged"] == ["model.layers.1.self_attn.v_proj"]
    left = updates(model).keys() - {"model.layers.1.self_attn.v_proj"}
    assert updates(loaded(tmp_path / "out")).keys() == left
    assert json.loads((tmp_path / "out" / peft.CONFIG).read_text())["target_modules"] == sorted(left)


def test_a_layer_whose_factors_are_not_zero_but_their_product_is_has_not_changed(tmp_path):
    model = adapted(targets=["q_proj", "up_proj"])
    zero, whole = model["block_0.attention.q_proj"], model["block_1.mlp.up_proj"]
    A, B = zero.lora_A.data, zero.lora_B.data
    zero.lora_A.data = np.stack([A[0], A[0], -2 * A[0]])
    zero.lora_B.data = np.stack([B[:, 0], B[:, 0], B[:, 0]], axis=1)
    peft.save_adapter(model, tmp_path / "a")
    found = study(str(tmp_path / "a"), rank=1, out=str(tmp_path / "small"))
    assert found["summary"]["unchanged"] == ["model.layers.0.self_attn.q_proj"]
    assert found["summary"]["layers"] == 3
    small = base_model()
    peft.load_adapter(small, tmp_path / "small")
    sigma = np.linalg.svd(small["block_1.mlp.up_proj"].delta(), compute_uv=False)
    np.testing.assert_allclose(sigma[0], np.linalg.svd(whole.delta(), compute_uv=False)[0], rtol=1e-5)


@pytest.mark.parametrize("words", [{"targets": ["embed", "q_proj"]}, {"targets": ["lm_head", "q_proj"]}])
def test_adapters_of_embeddings_and_heads_are_measured_as_they_are_applied_and_shrink(tmp_path, words):
    model = adapted(**words)
    peft.save_adapter(model, tmp_path / "a")
    minilora.save_pretrained(base_model(), tmp_path / "base")
    rows = {row["name"]: row for row in study(str(tmp_path / "a"), base=str(tmp_path / "base"))["layers"]}
    for path, module in model.named_modules():
        if isinstance(module, Adapter):
            sigma = np.linalg.svd(module.delta().astype(float), compute_uv=False)
            row = rows.pop(hf_name(model, path))
            np.testing.assert_allclose(row["singular_values"]["update"], sigma[:3], rtol=1e-5)
            assert row["shape"] == list(module.delta().shape)
    assert not rows
    study(str(tmp_path / "a"), energy=1.0, out=str(tmp_path / "same"))
    again = base_model()
    peft.load_adapter(again, tmp_path / "same")
    np.testing.assert_allclose(again.forward(IDS)[0], model.forward(IDS)[0], atol=1e-4)


def test_biases_that_an_adapter_trains_are_kept_in_a_smaller_one(tmp_path, rng):
    model = minilora.gpt2(minilora.Config(**SHAPE | {"n_kv_heads": 4}, activation="gelu_tanh"), rng)
    minilora.save_pretrained(model, tmp_path / "base")
    minilora.attach_lora(model, ["o_proj"], 3, rng=rng)
    for path, parameter in model.named_parameters().items():
        parameter.trainable |= path.endswith("o_proj.bias")
        if parameter.trainable:
            parameter.data = 0.3 * rng.standard_normal(parameter.data.shape, dtype="f4")
    peft.save_adapter(model, tmp_path / "a")
    found = study(str(tmp_path / "a"), base=str(tmp_path / "base"), energy=1.0, out=str(tmp_path / "same"))
    assert len(found["summary"]["other_tensors"]) == 2
    again = minilora.load_pretrained(tmp_path / "base")
    peft.load_adapter(again, tmp_path / "same")
    np.testing.assert_allclose(again.forward(IDS)[0], model.forward(IDS)[0], atol=1e-4)


def test_an_adapter_in_half_precision_stays_so_and_its_rounding_is_no_error(here):
    edit_tensors(here / "adapter" / peft.WEIGHTS, lambda tensors: {n: x.astype("f2") for n, x in tensors.items()})
    result = study("adapter", energy=1.0, out="out")
    assert all(x.dtype == np.float16 for x in load_tensors(here / "out" / peft.WEIGHTS)[0].values())
    assert all(row["numerical_rank"] == 3 for row in result["layers"])
    assert 1e-5 < result["adapter"]["relative_error"] < 1e-3


@pytest.mark.parametrize("folders", [["adapter"], ["base", "full"]])
def test_an_adapter_that_is_farther_off_than_its_bound_is_not_written(folders, here, capfd, monkeypatch):
    monkeypatch.setattr(extraction, "truncate", lambda update, r: tuple(1.01 * x for x in spectrum.truncate(update, r)))
    assert_refused(here, capfd, ["rank", *folders, "--rank", "2", "--out", "out"], "from ΔW, and rank 2 allows")


# ---- the command ----


def run(capfd, *words):
    assert main(["rank", *words]) == 0
    captured = capfd.readouterr()
    assert captured.err == ""
    return captured.out


def test_the_table_has_a_line_for_each_layer_and_the_conclusion_its_numbers(here, capfd):
    said, result = run(capfd, "base", "full"), study("base", "full")
    total = result["summary"]
    for row in result["layers"]:
        line = next(line for line in said.splitlines() if line.split()[:1] == [row["name"]])
        cells = ["{}x{}".format(*row["shape"]), f"{row['singular_values']['update'][0]:.3g}"]
        cells += [f"{row['relative_norm']:.1%}", f"{row['stable_rank']:.1f}", f"{row['effective_rank']:.1f}"]
        cells += [str(row["numerical_rank"]), str(row["rank_90"]), f"{row['amplification']:.2g}"]
        assert line.split()[1:9] == cells
    assert f"Rank {total['rank_90']} keeps 90 % of the energy of ΔW and rank {total['rank_99']} keeps 99 %" in said
    assert f"their effective rank is {total['effective_rank']:.1f}" in said
    assert "Other tensors that differ, not matrices in both: model.layers.0.input_layernorm.weight, " in said
    assert "amplified" not in run(capfd, "adapter")


@pytest.mark.parametrize("words", [["adapter"], ["adapter", "--base", "base"], ["base", "full"]])
def test_every_layer_has_its_name_and_numbers_in_a_terminal_of_80_columns(words, here, narrow):
    wide, slim = narrow(["rank", *words])
    folded = "".join(re.findall(r"^ (\S+(?: \d+x\d+)?)", slim, re.MULTILINE)).replace(" ", "")
    rows = [line.split() for line in wide.splitlines() if re.search(r" \d+x\d+ ", line)]
    assert len(rows) >= 14
    for name, shape, *cells in rows:
        assert name + shape in folded
        assert any(
            line.split()[-len(cells) :] == cells and name.startswith(line.split()[0]) for line in slim.splitlines()
        )


def test_json_is_the_result_and_the_same_bytes_every_time(here, capfd):
    words = ["adapter", "--base", "base", "--compare", "other", "--energy", "0.8", "--json", "--out"]
    one, two = (run(capfd, *words, out) for out in ("one", "two"))
    assert one == two
    result = json.loads(one)
    assert result.keys() == {"layers", "summary", "adapter"}
    assert result["layers"] == study("adapter", base="base")["layers"]
    for name in (peft.CONFIG, peft.WEIGHTS):
        assert (here / "one" / name).read_bytes() == (here / "two" / name).read_bytes()


def test_what_is_written_is_an_adapter_for_the_next_command(here, capfd):
    said = run(capfd, "base", "full", "--energy", "0.8", "--out", "small")
    assert re.search(r"The adapter has 14 layers of rank \d to \d, [\d,]+ parameters; it misses \d+\.\d% of ‖ΔW‖", said)
    assert "It cannot hold what else differs: model.embed_tokens, " in said
    assert main(["merge", "--base", "base", "--adapter", "small", "--out", "out"]) == 0
    capfd.readouterr()
    assert "Rank" in run(capfd, "base", "out")


ASKED = {
    "alone": (["adapter"], ["energy", "layers"]),
    "beside its base": (["adapter", "--base", "base"], ["energy", "layers", "spectra"]),
    "beside another": (["adapter", "--compare", "other"], ["energy", "layers", "subspaces"]),
    "two checkpoints": (["base", "full", "--compare", "other"], ["energy", "layers", "spectra", "subspaces"]),
}


@pytest.mark.parametrize("case", ASKED)
def test_each_question_there_are_data_for_has_a_figure_whose_title_is_the_answer(case, here, capfd, monkeypatch):
    words, questions = ASKED[case]
    monkeypatch.setattr(rank_figures, "png_bytes", lambda figure: figure.get_suptitle().encode())
    result = json.loads(run(capfd, *words, "--json", "--plot", "figure.png"))
    rows, total = result["layers"], result["summary"]
    assert sorted(path.name for path in here.glob("*.png")) == [f"figure-{question}.png" for question in questions]
    title = {question: (here / f"figure-{question}.png").read_text() for question in questions}
    assert title["energy"].startswith(f"Rank {total['rank_90']} keeps 90 % of ")
    ranks = [row["effective_rank"] for row in rows]
    assert f"{min(ranks):.1f} to {max(ranks):.1f}" in title["layers"]
    if "spectra" in title:
        most = max(rows, key=lambda row: row["relative_norm"])
        assert title["spectra"].startswith(f"{most['name']}: ΔW is {100 * most['relative_norm']:.0f} % of W")
    if "subspaces" in title:
        for side in ("left", "right"):
            assert f"φ = {total['similarity'][side][0][0]:.2f}" in title["subspaces"]


@pytest.mark.slow
def test_figures_are_the_same_bytes_every_time(here, capfd):
    words, questions = ASKED["two checkpoints"]  # to which there is every figure
    assert set(questions) == {question for _, questions in ASKED.values() for question in questions}
    drawn = []
    for _ in range(2):
        run(capfd, *words, "--plot", "figure.png")
        drawn.append({path.name: path.read_bytes() for path in here.glob("*.png")})
    assert drawn[0] == drawn[1]
    assert all(png.startswith(b"\x89PNG") for png in drawn[0].values())


def test_a_layer_has_a_block_and_a_kind_in_any_family():
    def found(*names):
        return blocks_and_kinds({"layers": [{"name": name} for name in names]})

    assert found("model.layers.3.self_attn.q_proj", "lm_head") == [(3, "q_proj"), (None, "lm_head")]
    both = found("transformer.h.0.attn.c_proj", "transformer.h.11.mlp.c_proj")
    assert both == [(0, "attn.c_proj"), (11, "mlp.c_proj")]


REFUSED = {
    "neither": (["nowhere"], "no folder or file 'nowhere'"),
    "one checkpoint": (
        ["base"],
        "base is not an adapter folder, it holds no adapter_config.json; to compare two checkpoints, give",
    ),
    "not a checkpoint": (
        ["base", "adapter"],
        "adapter holds no model.safetensors and no .*: it is not a checkpoint in safetensors",
    ),
    "no base": (["adapter", "--base", "nowhere"], "no folder or file 'nowhere'"),
    "another base": (["adapter", "--base", "full"], "adapter was made for another base: the weights of full are not"),
    "nothing in common": (["builtin", "strange"], "builtin and strange have no weight matrix of the same name and sha"),
    "identical": (["base", "base"], "ΔW = 0: the 15 matrices of base and base are equal$"),
    "only norms": (["base", "norms"], "ΔW = 0: .* are equal; what differs is not a matrix: model.norm.weight"),
    "not trained": (["idle"], "ΔW = 0 in every layer of idle"),
    "a rank too high": (["base", "full", "--rank", "9", "--out", "out"], "_proj: rank 9 is above 8, the most a 8 x 16"),
    "a higher rank": (["adapter", "--rank", "4", "--out", "out"], "rank 4 is above 3, which the adapter has already"),
    "rank 0": (["adapter", "--rank", "0", "--out", "out"], "--rank: '0' is not a whole number above 0"),
    "energy 0": (["adapter", "--energy", "0", "--out", "out"], "--energy: '0' is not a share above 0 and up to 1"),
    "energy 1.5": (["adapter", "--energy", "1.5", "--out", "out"], "'1.5' is not a share above 0 and up to 1"),
    "both": (["adapter", "--energy", "0.5", "--rank", "2", "--out", "out"], "give one of them"),
    "nowhere to write": (["adapter", "--rank", "2"], "give a folder for it and a rank or a share of the energy"),
    "nothing to write": (["adapter", "--out", "out"], "give a folder for it and a rank or a share of the energy"),
    "out is taken": (["adapter", "--rank", "2", "--out", "base"], "base already holds config.json: choose another"),
    "out is taken, found first": (
        ["base", "nowhere", "--rank", "2", "--out", "base"],
        "base already holds config.json",
    ),
    "plot is no PNG": (
        ["adapter", "--plot", "figure.pdf"],
        "figure.pdf is not the name of a .png file in a folder that",
    ),
    "plot in no folder": (
        ["adapter", "--plot", "no/f.png"],
        "no/f.png is not the name of a .png file in a folder that",
    ),
    "base of two": (
        ["base", "full", "--base", "base"],
        "a base goes with an adapter; of two checkpoints, the first is",
    ),
    "the sizes are the base's, VeRA": (["vera"], "does not say the sizes of its layers: give its base too"),
    "the sizes are the base's, IA3": (["ia3"], "the sizes of .*: give its base too"),
    "compare with none": (["adapter", "--compare", "base"], "base holds no adapter_config.json"),
    "compare with another": (["adapter", "--compare", "wide"], r"of another shape, \(.*\) and not \(.*\)"),
    "an index of nothing": (["base", "shards"], "model.safetensors.index.json has no weight_map"),
    "a missing shard": (["base", "lost"], "part.safetensors is missing"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_done_is_refused_in_one_line_and_nothing_is_made(name, here, capfd):
    words, says = REFUSED[name]
    assert_refused(here, capfd, ["rank", *words], says)


@pytest.mark.parametrize(
    ("factor", "words"), [(1e25, ["--compare", "other", "--plot", "f.png"]), (1e-25, ["--rank", "2", "--out", "out"])]
)
def test_an_adapter_of_very_small_or_large_numbers_has_the_ranks_of_any(factor, words, here, capfd):
    usual = study("adapter")["layers"]
    edit_tensors(here / "adapter" / peft.WEIGHTS, lambda t: {n: x * np.float32(factor) for n, x in t.items()})
    found = json.loads(run(capfd, "adapter", "--json", *words))["layers"]
    for one, two in zip(usual, found, strict=True):
        assert two["numerical_rank"] == one["numerical_rank"] == 3
        assert (two["stable_rank"], two["rank_90"]) == (pytest.approx(one["stable_rank"], rel=1e-4), one["rank_90"])
        assert two["norm"] == pytest.approx(one["norm"] * factor**2, rel=1e-4)


@pytest.mark.parametrize("words", [[], ["--base", "base"]])
@pytest.mark.parametrize("alpha", [1e308, 1e-308])
def test_an_alpha_that_float64_cannot_square_is_refused_in_one_line(alpha, words, here, capfd):
    edit_json(here / "adapter" / peft.CONFIG, lora_alpha=alpha)
    assert_refused(here, capfd, ["rank", "adapter", *words], "down_proj: ΔW is beyond what float64 can square")


A_Q = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
DAMAGES = {
    "not finite": (lambda t: t | {A_Q: t[A_Q] * np.float32(np.nan)}, f"{A_Q} holds numbers that are not finite"),
    "no partner": (
        lambda t: {n: x for n, x in t.items() if n != A_Q},
        r"needs lora_A.weight \(r, n_in\) and lora_B.weight \(n_out, r\) with r = 3",
    ),
    "another rank": (lambda t: t | {A_Q: t[A_Q][:2]}, r"with r = 3, not \(2, 16\) and \(16, 3\)"),
    "a vector": (lambda t: t | {A_Q: t[A_Q][0]}, r"q_proj needs lora_A.weight \(r, n_in\)"),
    "something else": (
        lambda t: t | {"lm_head.weight": t[A_Q]},
        "lm_head.weight, which is not lora_A.weight or lora_B.weight or",
    ),
    "nothing": (lambda t: {}, "ΔW = 0 in every layer"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_adapter_is_refused_in_one_line(name, here, capfd):
    damage, says = DAMAGES[name]
    edit_tensors(here / "adapter" / peft.WEIGHTS, damage)
    assert_refused(here, capfd, ["rank", "adapter"], says)


@pytest.mark.parametrize("value", [None, True, "x", [], math.inf])
def test_an_alpha_that_is_no_number_is_refused_in_one_line(value, here, capfd):
    edit_json(here / "adapter" / peft.CONFIG, lora_alpha=value)
    assert_refused(here, capfd, ["rank", "adapter"], "lora_alpha: alpha .* is not a number")


def test_a_config_of_another_rank_than_the_tensors_is_refused_in_one_line(here, capfd):
    edit_json(here / "adapter" / peft.CONFIG, r=2)  # the scaling alpha / r would be another
    assert_refused(here, capfd, ["rank", "adapter"], r"down_proj needs .* with r = 2, not \(3, 24\) and \(16, 3\)")


def test_a_base_of_other_shapes_or_without_the_layers_is_refused(here, capfd):
    edit_tensors(here / "adapter" / peft.WEIGHTS, lambda tensors: tensors)  # the hash of the base is gone
    minilora.save_pretrained(minilora.llama(minilora.Config(**SHAPE | {"d_ff": 32}), np.random.default_rng(0)), "wider")
    assert_refused(
        here, capfd, ["rank", "adapter", "--base", "wider"], r"is \(16, 32\) in wider, and the adapter is for"
    )
    edit_tensors(here / "base" / "model.safetensors", lambda tensors: {"x.weight": np.eye(3)})
    assert_refused(here, capfd, ["rank", "adapter", "--base", "base"], "base has none of the layers of adapter")


@pytest.mark.parametrize("which", ["base", "full"])
def test_a_checkpoint_that_is_not_finite_is_refused_in_one_line(which, here, capfd):
    name = "model.layers.1.mlp.up_proj.weight"
    edit_tensors(here / which / "model.safetensors", lambda t: t | {name: t[name] * np.float32(np.inf)})
    assert_refused(here, capfd, ["rank", "base", "full"], f"{which}/model.safetensors: {name} holds numbers")


def test_extraction_refuses_what_has_no_linear_layer(here, capfd):
    tensors, _ = load_tensors(here / "base" / "model.safetensors")
    changed = {"model.embed_tokens.weight": 2 * tensors["model.embed_tokens.weight"]}
    (here / "embed").mkdir()
    save_tensors(here / "embed" / "model.safetensors", tensors | changed, {})
    words = ["--rank", "1", "--out", "out"]
    assert_refused(here, capfd, ["rank", "base", "embed", *words], "an adapter on, only model.embed_tokens")


# ---- every family ----


def tiny(family, head="lm"):
    """A small model of any family whose weights are not as small as those of a new one."""
    rng = np.random.default_rng(1)
    sizes = SHAPE | {"n_kv_heads": 0, "head": head, "labels": 3, "activation": "gelu"}
    model = FAMILIES[family].build(minilora.Config(**sizes, offset=2 if family == "roberta" else 0), rng)
    for parameter in model.named_parameters().values():
        parameter.data = (parameter.data + 0.2 * rng.standard_normal(parameter.data.shape)).astype("f4")
    return model


def tuned(family, head="lm", targets="all-linear"):
    model, rng = tiny(family, head), np.random.default_rng(3)
    minilora.attach_lora(model, targets, 3, alpha=5, rng=rng)
    for path, parameter in model.trainable_parameters().items():
        if path.endswith(("lora_A", "lora_B")):
            parameter.data = 0.3 * rng.standard_normal(parameter.data.shape, dtype="f4")
    return model


@pytest.mark.each_value
@pytest.mark.parametrize(("family", "head"), FAMILY_HEADS)
def test_in_every_family_adapter_and_checkpoints_are_measured_alike_and_what_was_merged_comes_back(
    family, head, tmp_path
):
    base, out = tmp_path / "base", tmp_path / "out"
    minilora.save_pretrained(tiny(family, head), base)
    peft.save_adapter(tuned(family, head), tmp_path / "adapter")
    minilora.save_pretrained(merged(tuned(family, head)), tmp_path / "merged")
    one = study(str(tmp_path / "adapter"), base=str(base))["layers"]
    two = study(str(base), str(tmp_path / "merged"), rank=3, out=str(out))["layers"]
    layers = peft.adapters_of(tuned(family, head))
    assert len(one) == len(two) == len(layers)
    shapes = {hub_name(family, path, head): layer.delta().shape for path, layer in layers.items()}
    assert {row["name"]: tuple(row["shape"]) for row in two} == shapes
    for a, b in zip(one, two, strict=True):
        assert (a["shape"], a["intruders"]) == (b["shape"], b["intruders"])
        assert a["relative_norm"] == pytest.approx(b["relative_norm"], rel=1e-3)
    expected = tuned(family, head).forward(IDS, beside(tuned(family, head), IDS))[0]
    study(str(tmp_path / "adapter"), energy=1.0, out=str(tmp_path / "same"))
    for folder in ("out", "same"):
        model = tiny(family, head)
        peft.load_adapter(model, tmp_path / folder)
        assert np.abs(model.forward(IDS, beside(model, IDS))[0] - expected).max() < 1e-4 * np.abs(expected).max()


# ---- the oracle ----


@pytest.mark.oracle
def test_checkpoints_in_bfloat16_are_studied_as_the_float32_they_stand_for(made, tmp_path):
    torch, safetensors_torch = pytest.importorskip("torch"), pytest.importorskip("safetensors.torch")
    for name in ("base", "full"):
        rounded = {
            path: torch.tensor(x).bfloat16() for path, x in load_tensors(made / name / "model.safetensors")[0].items()
        }
        for dtype in (torch.bfloat16, torch.float32):
            folder = tmp_path / f"{name}-{dtype}".replace("torch.", "")
            folder.mkdir()
            tensors = {path: x.to(dtype) for path, x in rounded.items()}
            safetensors_torch.save_file(tensors, folder / "model.safetensors")
    stored, widened = (
        study(*(str(tmp_path / f"{name}-{dtype}") for name in ("base", "full"))) for dtype in ("bfloat16", "float32")
    )
    assert json.dumps(stored).replace("bfloat16", "float32") == json.dumps(widened)


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
@pytest.mark.parametrize("folders", [["base", "full"], ["adapter"]])
@pytest.mark.parametrize("words", [{"rank": 2}, {"energy": 0.7}])
def test_peft_loads_the_adapter_with_the_same_logits(made, tmp_path, folders, words):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    huggingface_peft = pytest.importorskip("peft")
    study(*(str(made / folder) for folder in folders), out=str(tmp_path / "out"), **words)
    ours = loaded(tmp_path / "out").forward(IDS)[0]
    base = transformers.AutoModelForCausalLM.from_pretrained(made / "base")
    theirs = huggingface_peft.PeftModel.from_pretrained(base, tmp_path / "out")
    assert np.abs(theirs(torch.tensor(IDS)).logits.detach().numpy() - ours).max() < 1e-5 * np.abs(ours).max()
    assert np.abs(base_model().forward(IDS)[0] - ours).max() > 1e-2 * np.abs(ours).max()


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
@pytest.mark.parametrize("family", ["gpt2", "bert", "roberta"])
def test_peft_loads_what_is_extracted_in_the_other_families(family, tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    huggingface_peft = pytest.importorskip("peft")
    minilora.save_pretrained(tiny(family), tmp_path / "base")
    minilora.save_pretrained(merged(tuned(family)), tmp_path / "merged")
    study(str(tmp_path / "base"), str(tmp_path / "merged"), rank=2, out=str(tmp_path / "out"))
    ours = tiny(family)
    peft.load_adapter(ours, tmp_path / "out")
    auto = transformers.AutoModelForCausalLM if family == "gpt2" else transformers.AutoModelForMaskedLM
    theirs = huggingface_peft.PeftModel.from_pretrained(auto.from_pretrained(tmp_path / "base"), tmp_path / "out")
    ids = np.maximum(IDS, 2)  # to RoBERTa 1 is padding, and has no position
    expected = ours.forward(ids)[0]
    found = theirs.eval()(torch.tensor(ids)).logits.detach().numpy()
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()
    assert np.abs(tiny(family).forward(ids)[0] - expected).max() > 1e-2 * np.abs(expected).max()


def test_a_layer_that_the_base_does_not_have_is_a_row_of_the_table_too(tmp_path, capfd):
    saving.save_pretrained(base_model(), tmp_path / "base")  # its head is tied, so that the file lacks it
    peft.save_adapter(adapted(targets=["q_proj", "lm_head"]), tmp_path / "adapter")
    assert main(["rank", str(tmp_path / "adapter"), "--base", str(tmp_path / "base")]) == 0
    assert "lm_head" in capfd.readouterr().out
