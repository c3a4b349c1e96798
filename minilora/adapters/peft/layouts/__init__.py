"""Adapters in the layouts of mlx-lm and of loralib's MergedLinear, from and to PEFT's, wherever that is exact."""

from .loralib import from_loralib, to_loralib
from .mlx import from_mlx, to_mlx

__all__ = ["from_loralib", "from_mlx", "to_loralib", "to_mlx"]
