"""Putting an adapter on a model: modules that take the places of others.

An adapter is {path: module}: LoRALinear and LoRAEmbedding around layers of the base, and whole copies of what
modules_to_save and bias train. They share the base's other Parameters and never write to them, so that putting them in
place, and the base's own back, moves no number.
"""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from ...backend import get_array_module
from ...models.config import LABELLED
from ...models.configs import label_maps, names_of
from ...models.pretrained import BASE, CLASSIFIER_DRAWN, base_hash, load_pretrained, name_labels, their_name
from ...models.transformer import Transformer
from ...nn import Embedding, Module, Parameter
from ...spelling import choose_from
from ..attach import wasted_rank
from ..base import Adapter
from ..lora import LoRA, LoRAEmbedding, LoRALinear, TiedLoRALinear
from ..merge import MergedEmbedding, MergedLinear
from .format import CONFIG, LABELS, PREFIX, WEIGHTS, carried, layers_of, locate_adapter, read_adapter
from .plan import Plan, base_of, what_to_adapt
from .tensors import Place, check_tensors, of_pooler, only_these, tensor_names

HEADS_OF_TASKS = {"SEQ_CLS": "classify", "TOKEN_CLS": "tokens", "FEATURE_EXTRACTION": "none"}  # of PEFT's task_type


def load_adapter(model: Transformer, folder: str | Path) -> str:
    """Put the adapter in `folder`, or of that name on the Hugging Face Hub ("ORG/NAME", "ORG/NAME@REVISION"), on
    `model`, whose base must be the one it was made for; return a note.

    What the adapter trains learns on: A and B, the copies of modules_to_save, the biases. All else in the model is
    frozen, adapters of other layers too. An adapter that does not say its base (PEFT's own do not) is checked by names
    and shapes, and the note says so; it says too what is passed over, tensors for a pooler that a model without a head
    lacks, and which ranks are above min(in, out); otherwise it is empty. To switch between several: Adapters.
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
    source: str | Path, config: dict[str, Any], tensors: dict[str, np.ndarray], rng: np.random.Generator | None = None
) -> Transformer:
    """The model in `source` with the head that an adapter is for: a classifier of as many labels as the adapter's.

    What the base lacks is drawn from `rng`. Raises and warns as load_pretrained does, but for a classifier that is
    drawn: the adapter brings its own.
    """
    head = HEADS_OF_TASKS.get(str(config.get("task_type")))
    bodies = tuple(f"{PREFIX}{body}." for body in BASE.values())
    if head == "none" and any(name.startswith(bodies) for name in tensors):  # it was trained below a head
        head = None
    weight = classifier_weight(tensors)
    labels = None if weight is None else len(weight)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", CLASSIFIER_DRAWN)
        model = load_pretrained(source, head=head, labels=labels if head in LABELLED else None, rng=rng)
        if labels and model.config.head not in LABELLED:  # and the config has no task_type
            model = load_pretrained(source, head="classify", labels=labels, rng=rng)
    return model


def classifier_weight(tensors: dict[str, np.ndarray]) -> np.ndarray | None:
    """W (labels, in) of the last layer of an adapter's classifier, if it brings one."""
    ends = tuple(f".{name}.weight" for name in ("classifier", "classifier.out_proj", "score"))
    return next((W for name, W in tensors.items() if name.endswith(ends)), None)


def read_modules(model: Transformer, folder: Path) -> tuple[dict[str, Module], list[str], str]:
    """({path: module}, names of labels, note) of the adapter in `folder`; `model` is as it was. Raises as load_adapter
    does."""
    config, tensors, metadata = read_adapter(folder)
    try:
        plan = what_to_adapt(model, config, tensors)
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG} does not fit this model: {error}") from None
    names = tensor_names(model, plan)
    try:
        check_tensors(model, config, plan, names, only_these(model, config, plan, tensors))
    except ValueError as error:
        raise ValueError(f"{folder / WEIGHTS} does not fit this model and its config: {error}") from None
    expected = metadata.get("base_sha256")
    if expected and expected != base_hash(model, carried(plan.saved, plan.biases)):
        raise ValueError(f"{folder} was made for another base: the weights of this model are not those it names")
    notes = [] if expected else [f"{folder} does not say which base it is for; its names and shapes fit this one"]
    pooler = of_pooler(model, tensors)
    if pooler:
        notes.append(f"{len(pooler)} of its tensors are for a pooler, which a model without a head lacks")
    layers = layers_of(model)
    ranks = {their_name(model, path): (r, min(layers[path].weight.data.shape)) for path, (r, _) in plan.adapted.items()}
    notes += filter(None, [wasted_rank(ranks)])
    arrays = {place: tensors[name] for place, name in names.items()}
    labels = label_names(metadata, model.config.labels) if model.config.head in LABELLED else []
    return build(model, config, plan, arrays), labels, "; ".join(notes)


def label_names(metadata: dict[str, str], labels: int) -> list[str]:
    """The names of so many labels, in order, that an adapter's metadata holds; [] if it holds none."""
    try:
        return names_of(json.loads(metadata.get(LABELS, "null")), labels)
    except (ValueError, RecursionError):
        return []


def build(model: Transformer, config: dict[str, Any], plan: Plan, arrays: dict[Place, np.ndarray]) -> dict[str, Module]:
    """{path: module} with these numbers. The base's Parameters are shared; what the adapter trains is its own."""
    layers = layers_of(model)

    def parameter(path: str, what: str) -> Parameter:
        W = base_of(layers[path]).weight.data
        return Parameter(get_array_module(W).asarray(arrays[path, what], dtype=W.dtype))

    modules: dict[str, Any] = {}
    for path in plan.saved:
        modules[path] = with_own(layers[path], {what: parameter(path, what) for p, what in arrays if p == path})
    for path in plan.biases:
        modules[path] = with_own(layers[path], {"bias": parameter(path, "bias")})
    dropout, rslora = float(config.get("lora_dropout") or 0.0), bool(config.get("use_rslora"))
    for path, (_, alpha) in plan.adapted.items():
        base, A, B = modules.get(path, layers[path]), arrays[path, "lora_A"], arrays[path, "lora_B"]
        if isinstance(base, Embedding):
            adapter: LoRA = LoRAEmbedding.of(base, {"lora_A": A, "lora_B": B}, r=len(A), alpha=alpha, rslora=rslora)
        else:
            options = {"r": len(A), "alpha": alpha, "rslora": rslora, "dropout": dropout}
            adapter = LoRALinear.of(base, {"lora_A": A, "lora_B": B}, **options)
        modules[path] = adapter
        if path in plan.biases:
            adapter.base.bias.trainable = True
    embedding = modules.get("embed.token")
    if plan.head and isinstance(embedding, LoRAEmbedding):
        modules[plan.head] = TiedLoRALinear(layers[plan.head], embedding, dropout)
    elif plan.head and embedding is not None:
        modules[plan.head].weight = embedding.weight
    return modules


def with_own(layer: Module, own: dict[str, Parameter]) -> Module:
    """A module that shares all Parameters of `layer`, but for these."""
    made = copy.copy(layer)
    for name, parameter in own.items():
        setattr(made, name, parameter)
    return made


# ---- several ----


class Adapters:
    """Several adapters on one base, by name, at most one of them active.

        adapters = Adapters(model)
        adapters.load("notes", "runs/notes")
        adapters.load("tests", "runs/tests")
        adapters.activate("notes")              # the model now answers with it
        adapters.activate("tests")
        adapters.activate(None)                 # the base, bit for bit

    The base is frozen from here on, and nothing writes to it. Each adapter has its own A and B, its own copies of what
    modules_to_save and bias train, and shares everything else.
    """

    def __init__(self, model: Transformer) -> None:
        """Raises ValueError for a model that is adapted already."""
        kinds = Adapter | MergedLinear | MergedEmbedding
        path = next((path for path, module in model.named_modules() if isinstance(module, kinds)), None)
        if path:
            raise ValueError(f"{path} is adapted already: Adapters takes a model without an adapter")
        model.freeze()
        self.model, self.loaded, self.active = model, dict[str, dict[str, Module]](), ""
        self.said = {"": model.said}  # with the names that each adapter gives to a classifier's labels
        self.base: dict[str, Module] = {}  # what the active one is in the place of

    def load(self, name: str, folder: str | Path) -> str:
        """Read an adapter, to be called `name`; return a note. Nothing else changes. Raises as load_adapter does, and
        ValueError for a name that is taken or empty."""
        if not name or name in self.loaded:
            raise ValueError(
                f"an adapter is called {name!r} already: choose another name" if name else "give it a name"
            )
        active = self.active
        self.activate(None)
        try:
            modules, names, note = read_modules(self.model, locate_adapter(folder))
        finally:
            self.activate(active or None)
        self.loaded[name] = modules
        self.said[name] = self.said[""] | (label_maps(names) if names else {})
        return note

    def activate(self, name: str | None) -> None:
        """Put the adapter of that name in place, or with None the base alone. Raises KeyError for a name not loaded."""
        if name is not None and name not in self.loaded:
            raise KeyError(f"no adapter is called {name!r}: {choose_from(name, self.loaded)}")
        for path, module in self.base.items():
            self.model[path] = module
        self.base, self.active = {}, name or ""
        self.model.said = self.said[self.active]
        for path, module in self.loaded[name].items() if name else ():
            self.base[path] = self.model[path]
            self.model[path] = module
