"""Loading an adapter: modules that replace those of a model.

What a folder holds becomes {path: module}: adapters around layers of the base, and whole copies of what
modules_to_save and bias train. They share the base's other Parameters and never write to them, so switching adapters
changes no number of the base.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ...backend import Rng, to_numpy
from ...models.config import LABELLED
from ...models.families import FAMILIES
from ...models.labels import name_labels, names_from
from ...models.names import CONSTANT
from ...models.pretrained import CLASSIFIER_DRAWN, load_pretrained
from ...models.quantized import format_of, formats_for
from ...models.quantized import quantize as hold_as
from ...models.saving import base_hash
from ...models.transformer import Transformer
from ...models.vocabulary import add_rows, say_added
from ...nn import TABLES, Module, Parameter, check_fit, converted
from ...quantization import STORED, Quantized, dense, formats
from ..attach import wasted_rank
from ..base import smaller_side
from .config import classes_of, token_keys
from .format import BASE_FORMAT, CONFIG, LABELS, WEIGHTS, base_without_weights, locate_adapter, read_adapter
from .plan import Place, Plan, plan_of, tensors_of, twins
from .view import PREFIX, View, view_of

WHOLE_TABLE = "weight", "base_layer.weight", "token_adapter.base_layer.weight"  # ends of the name of one in a file
COPIES = ".original_module.", ".modules_to_save."  # in other names that PEFT has for what it saves whole
HEADS_OF_TASKS = {"SEQ_CLS": "classify", "TOKEN_CLS": "tokens", "FEATURE_EXTRACTION": "none"}  # of PEFT's task_type


def load_adapter(model: Transformer, folder: str | Path) -> str:
    """Put the adapter in `folder`, or of that name on the Hugging Face Hub ("ORG/NAME", "ORG/NAME@REVISION"), on
    `model`, whose base must be the one it was made for; return a note.

    Afterwards only what the adapter trained is trainable: its slots, the copies of modules_to_save, the biases. The
    rest of the model is frozen, adapters of other layers too. An adapter that does not name its base (PEFT's do not)
    is checked by names and shapes. The note says so, and that the adapter was trained on its base in another format
    (quantization/); it names a pooler's tensors that were left out, as a model without a head has no pooler, and ranks
    above min(in, out). Otherwise it is empty. To switch between several: Adapters.
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


def load_base(
    source: str | Path,
    config: dict[str, Any],
    tensors: dict[str, np.ndarray],
    rng: Rng = 0,
    quantize: str | None = None,
) -> Transformer:
    """The model in `source` with the head that an adapter is for, a classifier of as many labels as the adapter's, and
    with the tokens that were added to its vocabulary (models/vocabulary.py).

    `quantize` is the format that it is held in, but for layers that the adapter holds in one itself. What the base
    lacks is drawn from `rng`. Raises and warns as load_pretrained does, but for a classifier that is drawn: the adapter
    brings its own.
    """
    head = HEADS_OF_TASKS.get(str(config.get("task_type")))
    bodies = tuple(f"{PREFIX}{body}." for body in {family.base_model_prefix for family in FAMILIES.values()})
    if head == "none" and any(name.startswith(bodies) for name in tensors):  # it was trained below a head
        head = None
    weight = classifier_weight(tensors)
    labels = None if weight is None else len(weight)
    makes_weight = classes_of(config)[0].makes_weight
    load = partial(load_pretrained, source, quantize=None if makes_weight else quantize, rng=rng)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", CLASSIFIER_DRAWN)
        model = load(head=head, labels=labels if head in LABELLED else None)
        if labels and model.config.head not in LABELLED:  # and the config has no task_type
            model = load(head="classify", labels=labels)
    n, tables = added_tokens(view_of(model), config, tensors)
    if n:
        add_rows(model, n, tables)
    if makes_weight and quantize not in (None, STORED):
        hold_as(model, quantize, plan_of(view_of(model), config, tensors).adapters)
    return model


def classifier_weight(tensors: dict[str, np.ndarray]) -> np.ndarray | None:
    """W (labels, in) of the last layer of an adapter's classifier, if it brings one."""
    ends = tuple(f".{name}.weight" for name in ("classifier", "classifier.out_proj", "score"))
    return next((W for name, W in tensors.items() if name.endswith(ends)), None)


def read_modules(model: Transformer, folder: Path) -> tuple[dict[str, Module], list[str], str]:
    """({path: module}, names of labels, note) of the adapter in `folder`; `model` is as it was. Raises as load_adapter
    does."""
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
    beside = {name for name in tensors if name.startswith(tuple(f"{PREFIX}{layer}." for layer in view.unused))}
    try:
        rest = {name: x for name, x in tensors.items() if name not in beside}
        check_tensors(view, plan, needed(view, config, plan, rest, places, metadata.get(BASE_FORMAT, "")), places)
    except ValueError as error:
        raise ValueError(f"{folder / WEIGHTS} does not fit this model and its config: {error}") from None
    made = made_weights(view, plan)
    notes = list(filter(None, [check_base(model, plan, metadata, folder, made)]))
    if model.added_tokens:
        notes.append(f"{folder}: {say_added(model.added_tokens)}")
    if beside:
        notes.append(f"{len(beside)} of its tensors are for a pooler, which a model without a head lacks")
    sides = {path: smaller_side(view.bases[path].weight.data.shape) for path in plan.adapters}
    ranks = {path: cls.rank(options) for path, (cls, options) in plan.adapters.items() if cls.trains_a_matrix()}
    notes += filter(None, [wasted_rank({view.names[path]: (r, sides[path]) for path, r in ranks.items()})])
    labels = label_names(metadata, model.config.labels) if model.config.head in LABELLED else []
    return build(view, plan, places, tensors, made), labels, "; ".join(notes)


def added_tokens(
    view: View, config: dict[str, Any], tensors: Mapping[str, np.ndarray]
) -> tuple[int, dict[str, np.ndarray]]:
    """(how many tokens an adapter's vocabulary has more than the model's, {path: W} of the tables with their rows).

    PEFT saves an embedding and a head that were resized, whole, unless it is told not to. Then the number follows from
    the rows that learn, if they are all of the new ones.
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


def made_weights(view: View, plan: Plan) -> dict[str, Parameter]:
    """{path: Parameter} of the weights that adapters stand beside in the place of the model's."""
    found = {}
    for path, (cls, options) in plan.adapters.items():
        weight = cls.weight_for(view.bases[path], **options)
        if weight is not view.bases[path].weight:
            found[f"{path}.weight"] = weight
    return found


def check_base(
    model: Transformer,
    plan: Plan,
    metadata: dict[str, str],
    folder: Path,
    made: Mapping[str, Parameter],
    called: str = "this model",
) -> str:
    """Raise ValueError unless the weights of `model`, with made_weights() in their place, are those that the adapter in
    `folder` was trained on.

    In another format (quantization/) than then, they are a base too, and a note says so. Weights in full precision are
    encoded in the adapter's format, to be compared. What they were cannot be told of weights that are encoded.
    Where there is nothing to say the note is empty.
    """
    held = {p.data.name for p in model.base_parameters().values() if isinstance(p.data, Quantized)}
    now = format_of(model) or ", ".join(sorted(held))  # where an adapter makes the weights of the blocks, of the others
    expected, before = metadata.get("base_sha256"), metadata.get(BASE_FORMAT, "")
    if not expected:
        return f"{folder} does not say which base it is for; its names and shapes fit this one"
    if expected == base_hash(model, plan.carried(), made=made):
        return ""
    encoded = base_hash(model, plan.carried(), before, made) if before in formats() and not now else ""
    if encoded == expected:
        advice = f", but for what it adapts: quantize(model, {before!r})" if made else f": quantize={before!r}"
        return f"{folder} was trained on this base in {before}, and here it is in full precision{advice}"
    if encoded or before == now:
        raise ValueError(f"{folder} was made for another base: the weights of {called} are not those it names")
    return (
        f"{folder} was trained on its base in {before or 'full precision'}, and this one is in "
        f"{now or 'full precision'}: its names and shapes fit, and its weights cannot be compared"
    )


def label_names(metadata: dict[str, str], labels: int) -> list[str]:
    """The names of so many labels, in order, that an adapter's metadata holds; [] if it holds none."""
    try:
        return names_from(json.loads(metadata.get(LABELS, "null")), labels)
    except (ValueError, RecursionError):
        return []


def needed(
    view: View,
    config: dict[str, Any],
    plan: Plan,
    tensors: dict[str, np.ndarray],
    places: dict[str, Place],
    base_format: str,
) -> dict[str, np.ndarray]:
    """The tensors without what PEFT writes beside them: constants of old models, the frozen weight of an embedding or
    head that is adapted or was resized, its token rows once more for a tied head, and of a resized one that is saved,
    or with bias "all", what it knows by two names. Raises ValueError for another frozen weight, but for one of which
    only the format differs, and for other rows of the head."""
    encoded = formats_for(view.model, base_format) if base_format in formats() else {}
    prefix = plan.prefixes()
    frozen = {view.tensor(path, f"{prefix.get(path, '')}base_layer.weight"): path for path in plan.adapters}
    frozen |= {name: path for path in TABLES if path in view.layers and path not in plan.saved
               if (name := view.tensor(path, "weight")) not in places}  # fmt: skip
    again = twins(view, plan)
    copies = {view.tensor(path, f"{x[1:]}weight") for path in TABLES if path in plan.saved for x in COPIES}
    head_bias = view.head_bias if ("lm_head", "bias") in [(p.path, p.name) for p in places.values()] else ""
    found = {}
    for name, x in tensors.items():
        copy = name in copies or (config.get("bias") == "all" and (COPIES[0] in name or COPIES[1] in name))
        if name in frozen:
            path = frozen[name]
            if path in plan.adapters and plan.adapters[path][0].makes_weight:
                continue  # base_sha256 is of the weight that it makes
            p = view.bases[path].weight
            W = p.data if isinstance(p.data, Quantized) or p not in encoded else encoded[p].of(p.data)
            held = dense(type(p.data).of(x)) if type(p.data) in formats().values() else x
            if x.shape[1:] == W.shape[1:] and len(x) < len(W):
                raise ValueError(f"{name} has {len(x)} rows, and this base {len(W)}: its vocabulary was cut before")
            if not np.array_equal(to_numpy(dense(W)).astype(x.dtype), held):
                raise ValueError(f"{name} is not the weight of this base: it was made for another, or trained or "
                                 "resized")  # fmt: skip
        elif name in again and again[name] in tensors:
            if not np.array_equal(x, tensors[again[name]]):
                raise ValueError(f"the head is tied to the embedding: {name} is not {again[name]}")
        elif not copy and name != head_bias and not CONSTANT.fullmatch(name):
            found[name] = x
    return found


def check_tensors(view: View, plan: Plan, tensors: dict[str, np.ndarray], places: dict[str, Place]) -> None:
    """Raise ValueError unless the tensors are just those of `places`, of the right shapes, and the model's dtype holds
    their numbers."""
    if not places.keys() & tensors.keys():
        raise ValueError(
            f"its tensors have names of another model: {min(tensors)} is there, and {min(places)} is needed"
            if tensors
            else "it holds no tensor"
        )
    check_fit(tensors, {name: place.shape for name, place in places.items()})
    dtype = next(iter(view.model.named_parameters().values())).data.dtype
    for name, x in tensors.items():
        if x.dtype.kind != "f":
            raise ValueError(f"{name} is of {x.dtype}, and must be floating point")
        with np.errstate(over="ignore"):
            if not np.isfinite(x.astype(dtype)).all():
                raise ValueError(f"{name} holds numbers that are too large for {dtype}")
    own: dict[str, dict[str, np.ndarray]] = {}
    for name, place in places.items():
        if place.slot:
            own.setdefault(place.path, {})[place.name] = place.slot.from_file(tensors[name])
    for path, (cls, options) in plan.adapters.items():
        if (plan.tied and path == view.head) or len(own.get(path, {})) < len(cls.slots):
            continue  # it shares the embedding's Parameters, or those of all layers
        sizes = cls.sizes_for(view.bases[path], options)
        base = base_without_weights(cls, sizes, dtype)
        factors = cls.of(base, own[path], **options).factors()
        if factors is None:
            continue
        A, B, s = factors
        a, b = (float(np.abs(x).max()) for x in (A, B))
        if not abs(s) * max(1.0, len(A) * a * b) <= float(np.finfo(dtype).max):
            raise ValueError(
                f"s = {s:.3g} of {view.names[path]} makes s B A too large for {dtype} (A is up to {a:.3g}, B up to "
                f"{b:.3g}): see its alpha"
            )
    heads = [(name, place) for name, place in places.items() if plan.tied and place.path == view.head]
    for name, (_, what, slot, _) in heads:
        other = next((n for n, place in places.items() if place[:2] == ("embed.token", what)), "")
        turned = slot is not None and bool(slot.file_shape)  # of an A and a B
        if other and not np.array_equal(tensors[name], tensors[other].T if turned else tensors[other]):
            raise ValueError(f"the head is tied to the embedding: {name} is not {other}{' transposed' * turned}")


def build(
    view: View,
    plan: Plan,
    places: dict[str, Place],
    tensors: dict[str, np.ndarray],
    made: Mapping[str, Parameter],
) -> dict[str, Module]:
    """{path: module} with these numbers. The base's Parameters are shared, but for those of made_weights(); what the
    adapter trains is its own."""
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
    """A module that shares all Parameters of `layer`, but for these."""
    made = copy.copy(layer)
    for name, parameter in own.items():
        setattr(made, name, parameter)
    return made
