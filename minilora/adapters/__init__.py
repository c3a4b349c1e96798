"""Adapters: what is trained beside a frozen model."""

DEFAULT = "lora"  # the variant, where none is named
