"""Families: one file each, which no other file names."""

import ast
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import minilora
from minilora.models.config_json import read_config, write_config
from minilora.models.families import FAMILIES
from minilora.verify.model_cases import SPECIAL

PACKAGE = Path(minilora.__file__).parent
FOLDER = PACKAGE / "models" / "families"


def test_each_file_in_families_is_a_family_that_builds_models_of_its_name():
    assert set(FAMILIES) == {path.stem for path in FOLDER.glob("*.py")} - {"__init__", "family"}
    config = minilora.Config(8, 1, 4, 1, head="none", image_size=16)  # which only those that read images look at
    assert {name: family.build(config, None).family for name, family in FAMILIES.items()} == {x: x for x in FAMILIES}


def test_no_file_asks_which_family_a_model_is_of():
    for path in PACKAGE.rglob("*.py"):
        if FOLDER in path.parents:
            continue
        text = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)) if "family" in text else ():
            if isinstance(node, ast.Compare) and any(
                getattr(side, "attr", getattr(side, "id", "")) == "family" for side in (node.left, *node.comparators)
            ):
                constants = {part.value for part in ast.walk(node) if isinstance(part, ast.Constant)}
                assert not constants & set(FAMILIES), f"{path}:{node.lineno}"


@pytest.mark.parametrize("name", FAMILIES)
def test_a_config_comes_back_from_its_config_json(name):
    shape = {"d_ff": 12, "max_length": 9, "tied": False}
    shape |= {key: value for key, value in SPECIAL.get(name, {}).items() if key not in ("n_kv_heads", "rope_scaling")}
    if "kv" in "".join(FAMILIES[name].config_keys):
        shape |= {"n_kv_heads": 2, "rope_theta": 50.0, "head_dim": 6}
    if "segments" in FAMILIES[name].config_keys:
        shape |= {"segments": 3, "offset": 2 * (name == "roberta")}
    if "image_size" in FAMILIES[name].config_keys:
        shape = {"d_ff": 12, "image_size": 9, "patch_size": 2, "channels": 2, "head": "classify"}
    config = minilora.Config(8 * ("image_size" not in shape), 2, 8, 4, **shape)
    model = FAMILIES[name].build(config, np.random.default_rng(0))
    assert read_config(write_config(model), "config.json", "float32") == (name, model.config)
    assert model.config == config if "eps" in FAMILIES[name].config_keys else model.config == replace(config, eps=1e-12)


def test_a_qwen3_without_a_head_dim_has_heads_of_128_as_in_transformers():
    values = {"model_type": "qwen3", "vocab_size": 8, "hidden_size": 8, "num_hidden_layers": 1, "rms_norm_eps": 1e-6}
    values |= {"num_attention_heads": 32, "intermediate_size": 8, "max_position_embeddings": 8}
    config = read_config(values, "config.json", "float32")[1]
    assert (config.head_dim, config.n_kv_heads) == (128, 32)
