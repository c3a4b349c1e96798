"""The frequencies of `transformers`, by its own functions, which compute in float32, in float64."""

from types import ModuleType
from typing import Any
from unittest import mock

import pytest


class Double(ModuleType):
    """torch, but for its float, which is a double."""

    def __getattr__(self, name: str) -> Any:
        torch = pytest.importorskip("torch")
        return torch.float64 if name in ("float", "float32") else getattr(torch, name)


def their_frequencies(config: Any, n: int | None = None) -> tuple[Any, float]:
    """ω (D/2,) and the factor on cos and sin, for a sequence of n tokens."""
    theirs = pytest.importorskip("transformers.modeling_rope_utils")
    with mock.patch.object(theirs, "torch", Double("torch")):
        omega, factor = theirs.ROPE_INIT_FUNCTIONS[config.rope_parameters["rope_type"]](config, seq_len=n)
    return omega, float(factor)
