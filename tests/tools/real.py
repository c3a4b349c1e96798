"""Real models from their packages, and what `transformers` reads from a GGUF file."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minilora.models.gguf import read_gguf
from minilora.models.names import standard_tensors
from minilora.models.sources import locate


def real(name: str) -> Path:
    """Where the package of this model holds it; the test is skipped where it is not installed."""
    try:
        return locate(name)
    except ImportError as error:
        pytest.skip(str(error))


def theirs_in(path: Path) -> Any:
    """The model that `transformers` reads from a GGUF file, in float32."""
    transformers = pytest.importorskip("transformers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype="float32")


def agree(path: Path, model: Any) -> set[str]:
    """That model has the tensors and values that we read from the file; the keys that only we have."""
    values, tensors = read_gguf(path)
    theirs = {name: x.numpy() for name, x in model.state_dict().items()}
    expected = dict(standard_tensors(values["model_type"], theirs))
    if values["tie_word_embeddings"]:
        expected.pop("lm_head.weight")
    assert set(tensors) == set(expected)
    for name in tensors:
        assert np.array_equal(tensors[name], expected[name]), name
    config = model.config.to_dict()
    config |= config.get("rope_parameters") or {}
    if config.get("n_inner", 0) is None:
        config["n_inner"] = 4 * config["n_embd"]
    for key, value in values.items():
        if isinstance(value, float):  # they keep a float32 as the float64 that is nearest to it
            assert np.float32(value) == np.float32(config[key]), key
        elif value is not None and key in config:
            assert value == config[key], key
    return set(values) - set(config)
