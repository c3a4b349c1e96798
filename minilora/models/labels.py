"""The names of a classifier's labels, as config.json has them: id2label and label2id."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .config import LABELLED
from .transformer import Transformer


def label_maps(names: Sequence[str]) -> dict[str, Any]:
    """id2label and label2id of the outputs of a classifier, in order."""
    return {"id2label": {str(i): name for i, name in enumerate(names)}, "label2id": {x: i for i, x in enumerate(names)}}


def default_label_maps(labels: int) -> dict[str, Any]:
    """id2label and label2id as `transformers` writes them for labels without names."""
    return label_maps([f"LABEL_{i}" for i in range(labels)])


def names_from(id2label: Any, labels: int) -> list[str]:
    """The names in an id2label, in order; [] unless it has exactly `labels` different ones."""
    found = id2label if isinstance(id2label, dict) else {}
    names = [str(found[str(i)]) for i in range(len(found)) if isinstance(found.get(str(i)), str | int)]
    return names if len(set(names)) == len(found) == labels else []


def labels_of(model: Transformer) -> list[str]:
    """The names of a classifier's outputs, in order; [] where they are not known."""
    return names_from(model.hf_config.get("id2label"), model.config.labels) if model.config.head in LABELLED else []


def name_labels(model: Transformer, names: Sequence[str]) -> None:
    """Name the outputs of a classifier, in order, for save_pretrained and save_adapter."""
    model.hf_config = model.hf_config | label_maps(names)


def list_labels(names: Sequence[str]) -> str:
    """The names in brackets, at most 8 of them; "" for none."""
    more = [f"and {len(names) - 8} more"] if len(names) > 8 else []
    return f" ({', '.join([*names[:8], *more])})" if names else ""
