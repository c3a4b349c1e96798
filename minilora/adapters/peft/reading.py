"""Loading an adapter: modules that replace those of a model.

What a folder holds becomes {path: module}: adapters around layers of the base, and whole copies of what
modules_to_save and bias train. They share the base's other Parameters and never write to them, so switching adapters
changes no number of the base.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...models.config import LABELLED
from ...models.labels import name_labels, names_from
from ...models.transformer import Transformer
from ...models.vocabulary import say_added
from ...nn import Module, Parameter, converted
from ..attach import wasted_rank
from ..base import smaller_side
from .bases import added_tokens
from .fitting import check_base, check_tensors, without_redundant
from .format import BASE_FORMAT, CONFIG, LABELS, WEIGHTS, locate_adapter, read_adapter
from .plan import Place, Plan, plan_of, tensors_of
from .view import PREFIX, View, view_of


def load_adapter(model: Transformer, folder: str | Path) -> str:
    """Put the adapter in `folder`, or of that name on the Hugging Face Hub ("ORG/NAME", "ORG/NAME@REVISION"), on
    `model`, whose base must be the one it was made for; return a note.

    Afterwards only what the adapter trained is trainable: its slots, the copies of modules_to_save, the biases. The
    rest of the model is frozen, adapters of other layers too. The note says if the adapter does not name its base
    (PEFT's do not), so that names and shapes alone were checked; if the base is held in another format (quantization/)
    than in training, or has added tokens; how many of a pooler's tensors were left out; and which ranks are above
    min(in, out). Otherwise it is "". To switch between several: Adapters.
    The names of a classifier's labels that the adapter brings become the model's.
    Raises FileNotFoundError for a missing file, ValueError for another base, a feature that is not supported, a name in
    the config that nothing in the model has, layers that are adapted already, or missing, unexpected and misshapen
    tensors, and what hub.fetch raises; the model is then as it was.
    """
    modules, names, note = read_modules(model, locate_adapter(folder))
    shared = set(model.named_parameters().values())
    trained = [p for module in modules.values() for p in module.trainable_parameters().values() if p not in shared]
    model.freeze()
    for path, module in modules.items():
        model[path] = module
    for parameter in trained:
        parameter.trainable = True
    if names:
        name_labels(model, names)
    return note


def read_modules(model: Transformer, folder: Path) -> tuple[dict[str, Module], list[str], str]:
    """({path: module}, names of labels, note) of the adapter in `folder`; `model` is not changed. Raises as
    load_adapter does."""
    config, tensors, metadata = read_adapter(folder)
    view = view_of(model)
    n, tables = added_tokens(view, config, tensors)
    if tables and n:
        raise ValueError(
            f"{folder}: {say_added(n)}, which is of {model.config.vocab_size} in this model: peft.load_base() loads a "
            "base with them"
        )
    try:
        plan = plan_of(view, config, tensors)
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG} does not fit this model: {error}") from None
    places = tensors_of(view, plan)
    pooler = {name for name in tensors if name.startswith(tuple(f"{PREFIX}{layer}." for layer in view.unused))}
    try:
        rest = {name: x for name, x in tensors.items() if name not in pooler}
        rest = without_redundant(view, config, plan, rest, places, metadata.get(BASE_FORMAT, ""))
        check_tensors(view, plan, rest, places)
    except ValueError as error:
        raise ValueError(f"{folder / WEIGHTS} does not fit this model and its config: {error}") from None
    made = replaced_weights(view, plan)
    notes = list(filter(None, [check_base(model, plan, metadata, folder, made)]))
    if model.added_tokens:
        notes.append(f"{folder}: {say_added(model.added_tokens)}")
    if pooler:
        notes.append(f"{len(pooler)} of its tensors are for a pooler, which a model without a head lacks")
    sides = {path: smaller_side(view.bases[path].weight.data.shape) for path in plan.adapters}
    ranks = {path: cls.rank(options) for path, (cls, options) in plan.adapters.items() if cls.trains_a_matrix()}
    notes += filter(None, [wasted_rank({view.names[path]: (r, sides[path]) for path, r in ranks.items()})])
    labels = label_names(metadata, model.config.labels) if model.config.head in LABELLED else []
    return build(view, plan, places, tensors, made), labels, "; ".join(notes)


def replaced_weights(view: View, plan: Plan) -> dict[str, Parameter]:
    """{path: Parameter} of the weights that adapters use instead of the model's, as LoftQ's Q."""
    found = {}
    for path, (cls, options) in plan.adapters.items():
        weight = cls.weight_for(view.bases[path], **options)
        if weight is not view.bases[path].weight:
            found[f"{path}.weight"] = weight
    return found


def label_names(metadata: dict[str, str], labels: int) -> list[str]:
    """The names of so many labels, in order, that an adapter's metadata holds; [] if it holds none."""
    try:
        return names_from(json.loads(metadata.get(LABELS, "null")), labels)
    except (ValueError, RecursionError):
        return []


def build(
    view: View,
    plan: Plan,
    places: dict[str, Place],
    tensors: dict[str, np.ndarray],
    made: Mapping[str, Parameter],
) -> dict[str, Module]:
    """{path: module} with these arrays. They share the base's Parameters, except for `made`, those of
    replaced_weights(); what the adapter trains is its own."""
    held: dict[str, dict[str, Parameter]] = {}
    for name, (path, what, slot, _) in places.items():
        W = view.bases[path or next(iter(plan.adapters))].weight
        x = slot.from_file(tensors[name]) if slot else tensors[name]
        learns = slot is None or slot.trained
        held.setdefault(path, {})[what] = Parameter(converted(x, W.xp, W.data.dtype), learns)
    modules: dict[str, Any] = {}
    for path in [*plan.saved, *plan.biases]:
        own = {what: x for what, x in held[path].items() if what in ("weight", "bias")}
        modules[path] = with_own(view.layers[path], own)
    if plan.tied and view.head in plan.saved:
        modules[view.head].weight = modules["embed.token"].weight
    bases = [view.bases[path] for path in plan.adapters]
    shared = held.get("", {})
    for path, (cls, options) in plan.adapters.items():
        shared = shared or cls.draw_shared(bases, **options)
        twin = plan.tied and path == view.head
        own = modules["embed.token"].own_parameters() if twin else held[path]
        layer = modules.get(path, view.layers[path])
        if (weight := made.get(f"{path}.weight")) is not None:
            layer = with_own(layer, {"weight": weight})
        modules[path] = cls.of(layer, {**own, **shared, **cls.computed(layer, **options)}, **options)
        if path in plan.biases:
            modules[path].base.bias.trainable = True
    return modules


def with_own(layer: Module, own: dict[str, Parameter]) -> Module:
    """A module that shares all Parameters of `layer`, except for these."""
    made = copy.copy(layer)
    for name, parameter in own.items():
        setattr(made, name, parameter)
    return made
