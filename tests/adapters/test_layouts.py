"""Adapters of mlx-lm and loralib: exact conversions both ways, and refusals that say why."""

import json
from functools import partial
from typing import Any

import numpy as np
import pytest
from peft_models import IDS, adapted, base, logits

from minilora.adapters import peft
from minilora.adapters.attach import attach
from minilora.adapters.lora import TiedLoRALinear
from minilora.adapters.peft.layouts import from_loralib, from_mlx, to_loralib, to_mlx
from minilora.files import load_tensors, save_tensors

MLX = "adapters.safetensors"


# ---- mlx-lm ----


def mlx_folder(folder: Any, tensors: dict[str, np.ndarray], **words: Any) -> Any:
    folder.mkdir()
    save_tensors(folder / MLX, tensors, {"format": "mlx"})
    lora = {"rank": 3, "scale": 1.7, "dropout": 0.0, "keys": ["self_attn.q_proj"], **words.pop("lora_parameters", {})}
    config = {"fine_tune_type": "lora", "num_layers": 2, "lora_parameters": lora, **words}
    (folder / peft.CONFIG).write_text(json.dumps(config))
    return folder


def mlx_tensors(rng: np.random.Generator, paths: dict[str, tuple[int, int]]) -> dict[str, np.ndarray]:
    return {
        f"{path}.{name}": rng.standard_normal(shape)
        for path, (n_in, n_out) in paths.items()
        for name, shape in (("lora_a", (n_in, 3)), ("lora_b", (3, n_out)))
    }


LINEAR = {f"model.layers.{i}.self_attn.{name}_proj": (12, out) for i in (0, 1) for name, out in (("q", 12), ("v", 6))}


def test_a_layer_of_mlx_computes_the_same_here(tmp_path, rng):
    tensors = mlx_tensors(rng, LINEAR)
    from_mlx(mlx_folder(tmp_path / "mlx", tensors), tmp_path / "peft")
    model = base("llama")
    peft.load_adapter(model, tmp_path / "peft")
    x = rng.standard_normal((2, 5, 12))
    for path in LINEAR:
        layer = model[path.replace("model.layers.", "block_").replace("self_attn", "attention")]
        z = (x @ tensors[f"{path}.lora_a"]) @ tensors[f"{path}.lora_b"]  # mlx_lm/tuner/lora.py, LoRALinear.__call__
        np.testing.assert_allclose(layer.forward(x)[0], layer.base.forward(x)[0] + 1.7 * z, rtol=1e-12, atol=1e-12)
        assert layer.scaling == 1.7


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_an_embedding_of_mlx_is_adapted_in_both_its_uses_where_the_model_is_tied(tmp_path, rng, family):
    path = {"llama": "model.embed_tokens", "gpt2": "model.wte"}[family]
    tensors = mlx_tensors(rng, {path: (31, 12)})
    a, b = tensors[f"{path}.lora_a"], tensors[f"{path}.lora_b"]
    source = mlx_folder(tmp_path / "mlx", tensors)
    with pytest.raises(ValueError, match="which mlx-lm applies to a tied head too: say tied=True or tied=False"):
        from_mlx(source, tmp_path / "peft")
    from_mlx(source, tmp_path / "peft", tied=True)
    model = base(family)
    peft.load_adapter(model, tmp_path / "peft")
    token, head, x = model["embed.token"], model["lm_head"], rng.standard_normal((2, 12))
    assert isinstance(head, TiedLoRALinear)
    np.testing.assert_allclose(token.forward(IDS)[0], token.weight.data[IDS] + 1.7 * (a[IDS] @ b), rtol=1e-12)
    expected = x @ token.weight.data.T + 1.7 * (x @ b.T) @ a.T  # LoRAEmbedding.as_linear
    np.testing.assert_allclose(head.forward(x)[0], expected, rtol=1e-12, atol=1e-12)
    to_mlx(tmp_path / "peft", tmp_path / "again", tied=True)
    again = load_tensors(tmp_path / "again" / MLX)[0]
    assert again.keys() == tensors.keys()
    assert all(np.array_equal(again[name], tensors[name]) for name in tensors)


def test_mlx_to_peft_to_mlx_is_bit_exact_and_so_is_peft_to_mlx_to_peft(tmp_path, rng):
    tensors = mlx_tensors(rng, LINEAR)
    from_mlx(mlx_folder(tmp_path / "mlx", tensors), tmp_path / "peft")
    to_mlx(tmp_path / "peft", tmp_path / "again")
    again = load_tensors(tmp_path / "again" / MLX)[0]
    assert all(np.array_equal(again[name], tensors[name]) for name in tensors)
    words = json.loads((tmp_path / "again" / peft.CONFIG).read_text())["lora_parameters"]
    assert (words["rank"], words["scale"], words["keys"]) == (3, 1.7, sorted(LINEAR))
    from_mlx(tmp_path / "again", tmp_path / "peft2")
    assert (tmp_path / "peft2" / peft.WEIGHTS).read_bytes() == (tmp_path / "peft" / peft.WEIGHTS).read_bytes()


def test_an_adapter_of_several_ranks_and_one_scale_goes_to_mlx_with_zeros_and_comes_back_the_same_function(tmp_path):
    model = adapted("llama", "lm", {"q_proj": 2, "down_proj": 4}, rslora=False)
    for i in (0, 1):
        model[f"block_{i}.attention.q_proj"].alpha = 2.5
    peft.save_adapter(model, tmp_path / "peft")
    to_mlx(tmp_path / "peft", tmp_path / "mlx")
    from_mlx(tmp_path / "mlx", tmp_path / "again")
    loaded = base("llama")
    peft.load_adapter(loaded, tmp_path / "again")
    np.testing.assert_allclose(logits(loaded), logits(model), rtol=1e-12, atol=1e-12)


def saved(folder: Any, family: str = "llama", targets: Any = ("q_proj",), **words: Any) -> Any:
    peft.save_adapter(adapted(family, "lm", list(targets), **words), folder)
    return folder


def test_what_mlx_has_no_place_for_is_refused_with_the_reason_and_nothing_is_written(tmp_path):
    out = tmp_path / "out"
    for name, words, tied, message in [
        ("scales", {"targets": {"q_proj": 2, "v_proj": 3}}, None, "scales its layers by .* one scale for all"),
        ("norms", {"train": ["norm"]}, None, "trains whole modules or biases of the base"),
        ("bert", {"family": "bert"}, None, "mlx-lm has language models alone"),
        ("embed", {"targets": ["embed"]}, None, "say tied=True or tied=False"),
        ("input", {"targets": ["embed"]}, True, "adapts the embedding alone, and mlx-lm adapts the head too"),
        (
            "both",
            {"targets": ["embed"], "ensure_weight_tying": True},
            False,
            "adapts both uses of a tied embedding, and",
        ),
    ]:
        family = words.pop("family", "llama")
        peft.save_adapter(adapted(family, "lm", **{"targets": ["q_proj"], **words}), tmp_path / name)
        with pytest.raises(ValueError, match=message):
            to_mlx(tmp_path / name, out, tied=tied)
        assert not out.exists()


Q = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("words", "change", "message"),
    [
        ({"fine_tune_type": "dora"}, {}, "fine_tune_type = 'dora' has no exact conversion"),
        ({"fine_tune_type": "full"}, {}, "fine_tune_type = 'full' has no exact conversion"),
        ({"lora_parameters": {"scale": None}}, {}, "lacks lora_parameters with a rank and a scale"),
        ({"lora_parameters": {"rank": 3.0}}, {}, "lacks lora_parameters with a rank and a scale"),
        ({"lora_parameters": {"rank": 4}}, {}, r"needs lora_a \(in, 4\) and lora_b \(4, out\), not \(12, 3\)"),
        ({}, {f"{Q}.m": np.ones(12)}, r"holds .*q_proj\.m, which is not lora_a or lora_b"),
        ({}, {f"{Q}.lora_a": np.ones((2, 3, 12))}, "q_proj needs lora_a"),
        ({}, {"model.norm.weight": np.ones(12)}, r"holds model\.norm\.weight, which is not lora_a"),
    ],
)
def test_an_mlx_adapter_that_is_no_plain_lora_is_refused(tmp_path, rng, words, change, message):
    source = mlx_folder(tmp_path / "mlx", mlx_tensors(rng, LINEAR) | change, **words)
    with pytest.raises(ValueError, match=message):
        from_mlx(source, tmp_path / "peft")
    assert not (tmp_path / "peft").exists()


def test_a_folder_of_peft_is_not_taken_for_one_of_mlx_nor_the_other_way_round(tmp_path, rng):
    with pytest.raises(FileNotFoundError, match=r"adapters\.safetensors is missing"):
        from_mlx(saved(tmp_path / "peft"), tmp_path / "out")
    with pytest.raises(ValueError, match="it lacks 'peft_type'"):
        to_mlx(mlx_folder(tmp_path / "mlx", mlx_tensors(rng, LINEAR)), tmp_path / "out")


# ---- loralib ----

ENABLED = [[True, False, True], [True, True, True], [False, True, False]]


def their_layer(enabled: list[bool], r: int, alpha: float, seed: int = 0) -> Any:
    """loralib's MergedLinear (12 -> 36) with other numbers than 0 in A and B."""
    loralib, torch = pytest.importorskip("loralib"), pytest.importorskip("torch")
    layer = loralib.MergedLinear(12, 36, r=r, lora_alpha=alpha, enable_lora=enabled, merge_weights=False).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in (layer.lora_A, layer.lora_B):
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return layer


@pytest.mark.oracle
@pytest.mark.parametrize("enabled", ENABLED, ids=str)
def test_a_merged_linear_of_loralib_is_one_pair_in_blocks_and_goes_back_to_the_bit(tmp_path, rng, enabled):
    torch = pytest.importorskip("torch")
    r, alpha, n = 2, 5, sum(enabled)
    theirs = [their_layer(enabled, r, alpha, seed) for seed in (0, 1)]
    file = tmp_path / "lora.safetensors"
    tensors = {
        f"transformer.h.{i}.attn.c_attn.lora_{side}": getattr(layer, f"lora_{side}").detach().numpy()
        for i, layer in enumerate(theirs)
        for side in "AB"
    }
    save_tensors(file, tensors, {})
    from_loralib(file, tmp_path / "peft", r=r, alpha=alpha, fused={"c_attn": enabled})
    model = base("gpt2")
    peft.load_adapter(model, tmp_path / "peft")
    x = rng.standard_normal((2, 5, 12))
    for i, layer in enumerate(theirs):
        ours = model[f"block_{i}.attention.qkv_proj"]
        assert ours.r == n * r
        with torch.no_grad():
            layer.weight.copy_(torch.tensor(ours.base.weight.data))
            layer.bias.copy_(torch.tensor(ours.base.bias.data))
            expected = layer(torch.tensor(x)).numpy()
        np.testing.assert_allclose(ours.forward(x)[0], expected, rtol=1e-12, atol=1e-12)
    made = to_loralib(tmp_path / "peft", tmp_path / "back.safetensors", fused={"c_attn": 3})
    assert made["transformer.h.1.attn.c_attn"] == {"r": r, "lora_alpha": alpha, "enable_lora": enabled}
    back = load_tensors(tmp_path / "back.safetensors")[0]
    assert back.keys() == tensors.keys()
    assert all(np.array_equal(back[name], tensors[name]) for name in tensors)


@pytest.mark.oracle
def test_a_pair_that_shares_its_A_becomes_copies_of_it_and_computes_the_same_in_loralib(tmp_path, rng):
    loralib, torch = pytest.importorskip("loralib"), pytest.importorskip("torch")
    model = adapted("gpt2", "lm", ["qkv_proj"], alpha=7)
    peft.save_adapter(model, tmp_path / "peft")
    made = to_loralib(tmp_path / "peft", tmp_path / "lora.safetensors", fused={"c_attn": 3})
    tensors = load_tensors(tmp_path / "lora.safetensors")[0]
    x = rng.standard_normal((2, 12))
    for i in (0, 1):
        name, ours = f"transformer.h.{i}.attn.c_attn", model[f"block_{i}.attention.qkv_proj"]
        assert made[name]["enable_lora"] == [True, True, True]
        layer = loralib.MergedLinear(12, 36, merge_weights=False, **made[name]).double()
        assert np.array_equal(tensors[f"{name}.lora_A"], np.tile(ours.lora_A.data, (3, 1)))
        state = {side: torch.tensor(tensors[f"{name}.{side}"]) for side in ("lora_A", "lora_B")}
        state |= {"weight": torch.tensor(ours.base.weight.data), "bias": torch.tensor(ours.base.bias.data)}
        layer.load_state_dict(state)
        np.testing.assert_allclose(layer(torch.tensor(x)).detach().numpy(), ours.forward(x)[0], rtol=1e-12, atol=1e-12)


@pytest.mark.oracle
def test_linear_layers_and_embeddings_of_loralib_come_over_as_they_are(tmp_path, rng):
    loralib, torch = pytest.importorskip("loralib"), pytest.importorskip("torch")
    table = loralib.Embedding(31, 12, r=2, lora_alpha=3, merge_weights=False).double()
    linear = loralib.Linear(12, 20, r=2, lora_alpha=3, merge_weights=False).double()
    tensors = {}
    for path, layer in (("model.embed_tokens", table), ("model.layers.1.mlp.up_proj", linear)):
        for side in ("lora_A", "lora_B"):
            x = rng.standard_normal(getattr(layer, side).shape)
            getattr(layer, side).data = torch.tensor(x)
            tensors[f"{path}.{side}"] = x
    save_tensors(tmp_path / "lora.safetensors", tensors, {})
    from_loralib(tmp_path / "lora.safetensors", tmp_path / "peft", r=2, alpha=3)
    model = base("llama")
    peft.load_adapter(model, tmp_path / "peft")
    for ours, theirs, x in (
        (model["embed.token"], table, IDS),
        (model["block_1.mlp.up_proj"], linear, rng.standard_normal((3, 12))),
    ):
        with torch.no_grad():
            theirs.weight.copy_(torch.tensor(ours.weight.data))
            if getattr(theirs, "bias", None) is not None:
                theirs.bias.zero_()
        np.testing.assert_allclose(theirs(torch.tensor(x)).detach().numpy(), ours.forward(x)[0], rtol=1e-12, atol=1e-13)
    to_loralib(tmp_path / "peft", tmp_path / "back.safetensors")
    back = load_tensors(tmp_path / "back.safetensors")[0]
    assert all(np.array_equal(back[name], tensors[name]) for name in tensors)


C = "transformer.h.0.attn.c_attn"


@pytest.mark.parametrize(
    ("tensors", "words", "message"),
    [
        ({}, {}, "there is no lora_A and lora_B to convert"),
        ({f"{C}.weight": (36, 12)}, {}, r"holds .*c_attn\.weight, which is not lora_A or lora_B"),
        ({f"{C}.lora_A": (2, 12)}, {}, "needs lora_A and lora_B, two matrices, not .2, 12."),
        ({f"{C}.lora_A": (6, 12), f"{C}.lora_B": (36, 2)}, {}, r"needs lora_A \(2, in\)"),
        (
            {f"{C}.lora_A": (6, 12), f"{C}.lora_B": (35, 2)},
            {"fused": {"c_attn": [True] * 3}},
            r"needs lora_A \(6, in\)",
        ),
        ({f"{C}.lora_A": (2, 12), f"{C}.lora_B": (36, 2)}, {"r": 0}, "r = 0 and alpha = 3 must be a whole number"),
        ({f"{C}.lora_A": (2, 12), f"{C}.lora_B": (36, 2)}, {"fused": {"c_attn": [False] * 3}}, "one is True"),
    ],
)
def test_what_does_not_fit_loralibs_layout_is_refused_and_nothing_is_written(tmp_path, rng, tensors, words, message):
    save_tensors(tmp_path / "t", {name: rng.standard_normal(shape) for name, shape in tensors.items()}, {})
    with pytest.raises(ValueError, match=message):
        from_loralib(tmp_path / "t", tmp_path / "peft", **{"r": 2, "alpha": 3, **words})
    assert not (tmp_path / "peft").exists()


def test_what_loralib_has_no_place_for_is_refused_with_the_reason(tmp_path):
    for name, words, fused, message in [
        (
            "biases",
            {"family": "gpt2", "targets": ["qkv_proj"], "train": ["bias"]},
            {},
            "whole modules or biases of the base",
        ),
        ("tied", {"targets": ["embed"], "ensure_weight_tying": True}, {}, "one A and B for two layers"),
        (
            "parts",
            {"targets": ["up_proj"]},
            {"up_proj": 3},
            "up_proj gives 20 numbers, which do not divide into 3 equal",
        ),
    ]:
        saved(tmp_path / name, **words)
        with pytest.raises(ValueError, match=message):
            to_loralib(tmp_path / name, tmp_path / "t", fused=fused)
        assert not (tmp_path / "t").exists()


@pytest.mark.parametrize("targets", [["q_proj", "up_proj"], ["embed"]])
@pytest.mark.parametrize("convert", [to_loralib, partial(to_mlx, tied=False)], ids=["loralib", "mlx"])
def test_a_dora_is_no_product_of_two_matrices_and_has_no_place_in_either(tmp_path, convert, targets):
    model = base("llama")
    attach(model, "dora", targets, rng=0, r=3)
    peft.save_adapter(model, tmp_path / "dora")
    with pytest.raises(ValueError, match="dora: ΔW of dora is not a product of two matrices, as this layout needs"):
        convert(tmp_path / "dora", tmp_path / "t")
    assert not (tmp_path / "t").exists()


def test_a_pickled_state_dict_of_loralib_is_refused(tmp_path):
    (tmp_path / "lora.pt").write_bytes(b"PK\x03\x04 and so on")
    with pytest.raises(ValueError, match="it is a pickle, which can run code and is never read"):
        from_loralib(tmp_path / "lora.pt", tmp_path / "peft", r=2, alpha=3)
