"""The base that an adapter is for: its head, and the tokens that were added to its vocabulary."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ...backend import Rng
from ...models.config import LABELLED
from ...models.families import FAMILIES
from ...models.pretrained import CLASSIFIER_DRAWN, load_pretrained
from ...models.quantized import quantize as hold_as
from ...models.transformer import Transformer
from ...models.vocabulary import add_rows
from ...nn import TABLES
from ...quantization import STORED
from .config import classes_of, token_keys
from .plan import plan_of
from .view import PREFIX, View, view_of

WHOLE_TABLE = "weight", "base_layer.weight", "token_adapter.base_layer.weight"  # how its name in a file may end
HEADS_OF_TASKS = {"SEQ_CLS": "classify", "TOKEN_CLS": "tokens", "FEATURE_EXTRACTION": "none"}  # of PEFT's task_type


def load_base(
    source: str | Path,
    config: dict[str, Any],
    tensors: dict[str, np.ndarray],
    rng: Rng = 0,
    quantize: str | None = None,
) -> Transformer:
    """The model in `source` with the head that an adapter is for, a classifier of as many labels as the adapter's, and
    with the tokens that were added to its vocabulary (models/vocabulary.py).

    `quantize` is the format that it is held in, except for layers that the adapter quantizes itself (LoftQ). What the
    base lacks is drawn from `rng`. Raises and warns as load_pretrained does, except for a classifier that is drawn: the
    adapter brings its own.
    """
    head = HEADS_OF_TASKS.get(str(config.get("task_type")))
    bodies = tuple(f"{PREFIX}{body}." for body in {family.base_model_prefix for family in FAMILIES.values()})
    if head == "none" and any(name.startswith(bodies) for name in tensors):  # it was trained below a head
        head = None
    weight = classifier_weight(tensors)
    labels = None if weight is None else len(weight)
    replaces_weight = classes_of(config)[0].replaces_weight
    load = partial(load_pretrained, source, quantize=None if replaces_weight else quantize, rng=rng)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", CLASSIFIER_DRAWN)
        model = load(head=head, labels=labels if head in LABELLED else None)
        if labels and model.config.head not in LABELLED:  # and the config has no task_type
            model = load(head="classify", labels=labels)
    n, tables = added_tokens(view_of(model), config, tensors)
    if n:
        add_rows(model, n, tables)
    if replaces_weight and quantize not in (None, STORED):
        hold_as(model, quantize, plan_of(view_of(model), config, tensors).adapters)
    return model


def classifier_weight(tensors: dict[str, np.ndarray]) -> np.ndarray | None:
    """W (labels, in) of the last layer of an adapter's classifier, if it brings one."""
    ends = tuple(f".{name}.weight" for name in ("classifier", "classifier.out_proj", "score"))
    return next((W for name, W in tensors.items() if name.endswith(ends)), None)


def added_tokens(
    view: View, config: dict[str, Any], tensors: Mapping[str, np.ndarray]
) -> tuple[int, dict[str, np.ndarray]]:
    """(number of tokens that an adapter adds to the model's vocabulary, {path: W} of the resized tables).

    PEFT saves a resized embedding and head completely, unless it is told not to. Without them in the file the number is
    that of the new tokens whose rows are trained, provided that these are all of the new tokens.
    """
    V, tables, ids = view.model.config.vocab_size, {}, set()
    for path in (path for path in TABLES if path in view.layers):
        W = next((W for end in WHOLE_TABLE if (W := tensors.get(view.tensor(path, end))) is not None), None)
        if W is not None and W.ndim == 2 and W.shape[1] == view.bases[path].weight.data.shape[1]:
            tables[path] = W
    if tables:
        return max(0, max(map(len, tables.values())) - V), {path: W for path, W in tables.items() if len(W) > V}
    for key in token_keys(config):
        values = config.get(key) or []
        ids |= {i for each in (values.values() if isinstance(values, dict) else [values]) for i in each}
    new = {i for i in ids if i >= V}
    return (len(new) if new == {*range(V, V + len(new))} else 0), {}
