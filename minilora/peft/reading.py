"""From an adapter folder to modules that take the places of others.

An adapter is {path: module}: LoRALinear and LoRAEmbedding around layers of the base, and whole copies of what
modules_to_save and bias train. They share the base's other Parameters and never write to them, so that putting them in
place, and the base's own back, moves no number.
"""

from __future__ import annotations

import copy
import math
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..backend import get_array_module, to_numpy
from ..lora import HEADS, Adapter, LoRAEmbedding, LoRALinear, MergedEmbedding, MergedLinear, TiedLoRALinear, check_base
from ..modules import Embedding, Linear, Module, Parameter, check_fit
from ..pretrained import CONSTANT, base_hash, their_name
from ..transformer import Transformer
from .format import (
    PREFIX,
    TIED_NAMES,
    WEIGHTS,
    adapter_tensors,
    carried,
    first_match,
    has_pooler_apart,
    is_saved,
    is_target,
    layers_of,
    read_adapter,
    tied_head,
)


class Plan(NamedTuple):
    """What the files hold for one model, by our paths."""

    adapted: dict[str, tuple[int, float]]  # {path: (r, alpha)}
    head: str | None  # a tied head that has the embedding's adapter, or its saved copy
    saved: list[str]  # layers that are there whole
    biases: list[str]  # other layers whose bias is there


def load_adapter(model: Transformer, folder: str | Path) -> str:
    """Put the adapter in `folder` on `model`, whose base must be the one it was made for; return a note.

    What the adapter trains learns on: A and B, the copies of modules_to_save, the biases. All else in the model is
    frozen, adapters of other layers too. An adapter that does not say its base (PEFT's own do not) is checked by names
    and shapes, and the note says so; otherwise the note is empty. To switch between several: Adapters.
    Raises FileNotFoundError for a missing file, ValueError for another base, a feature that is not supported, layers
    that are adapted already, or missing, unexpected and misshapen tensors; the model is then as it was.
    """
    modules, note = read_modules(model, Path(folder))
    shared = set(model.named_parameters().values())
    trained = [p for module in modules.values() for p in module.trainable_parameters().values() if p not in shared]
    model.freeze()
    for path, module in modules.items():
        model[path] = module
    for parameter in trained:
        parameter.trainable = True
    return note


def read_modules(model: Transformer, folder: Path) -> tuple[dict[str, Module], str]:
    """({path: module}, note) of the adapter in `folder`; `model` is as it was. Raises as load_adapter does."""
    config, tensors, metadata = read_adapter(folder)
    try:
        plan = what_to_adapt(model, config, tensors)
        names = tensor_names(model, plan)
        tensors = only_these(model, config, plan, tensors)
        check_tensors(model, config, plan, names, tensors)
    except ValueError as error:
        raise ValueError(f"{folder / WEIGHTS} does not fit this model and its config: {error}") from None
    expected = metadata.get("base_sha256")
    if expected and expected != base_hash(model, carried(plan.saved, plan.biases)):
        raise ValueError(f"{folder} was made for another base: the weights of this model are not those it names")
    note = "" if expected else f"{folder} does not say which base it is for; its names and shapes fit this one"
    arrays = {place: tensors[name] for place, name in names.items()}
    return build(model, config, plan, arrays), note


# ---- what is meant ----


def what_to_adapt(model: Transformer, config: dict[str, Any], tensors: dict[str, np.ndarray]) -> Plan:
    """Raises ValueError where a layer cannot be adapted so, or has tensors and is not named."""
    if config.get("fan_in_fan_out") and model.family != "gpt2":
        raise ValueError(f"fan_in_fan_out = True is for layers stored as (in, out), and a {model.family} has none")
    layers, ties = layers_of(model), tie_of(model, config, tensors)
    if ties and saves_the_pair(model, config, tensors):
        pair = [their_name(model, path) for path in ("embed.token", ties)]
        config = config | {"modules_to_save": [*(config.get("modules_to_save") or []), *pair]}
    config = config | {"target_modules": targets_of(model, config, tensors, ties)}
    adapted: dict[str, tuple[int, float]] = {}
    for path, layer in layers.items():
        theirs = their_name(model, path)
        if not is_target(config, theirs) or path == ties:
            if path != ties and any(name in tensors for name in adapter_tensors(model, path, layer).values()):
                raise ValueError(
                    f"target_modules = {config['target_modules']!r} do not name {theirs}, which has tensors"
                )
            continue
        r = first_match(config, "rank_pattern", theirs, config["r"])
        alpha = first_match(config, "alpha_pattern", theirs, config["lora_alpha"])
        try:
            check_base(layer, alpha, config.get("lora_dropout") or 0.0)
            if type(r) is not int or r < 1:
                raise ValueError(f"rank {r!r} is not a whole number from 1 up")
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        adapted[path] = (r, alpha)
    saved = [path for path in layers if is_saved(config, their_name(model, path))]
    bias = config.get("bias") or "none"
    those = {"none": [], "all": list(layers), "lora_only": list(adapted)}[bias]
    biases = [path for path in those if path not in saved and getattr(base_of(layers[path]), "bias", None) is not None]
    for path in [*saved, *biases]:
        if isinstance(layers[path], Adapter | MergedLinear | MergedEmbedding):
            raise ValueError(f"{path}: this layer is adapted already, and the adapter has a copy of it")
    both = next((path for path in saved if path in adapted), None)
    if both:
        raise ValueError(f"{their_name(model, both)} is among modules_to_save and among target_modules")
    return Plan(adapted, ties, saved, biases)


def base_of(layer: Module) -> Any:
    return layer.base if isinstance(layer, Adapter) else layer


def targets_of(model: Transformer, config: dict[str, Any], tensors: dict[str, np.ndarray], ties: str | None) -> Any:
    """target_modules, with what "all-linear" stands for, and a missing one by the tensors that are there."""
    targets, layers = config.get("target_modules"), layers_of(model)
    if targets is None:
        named = {path for path, layer in layers.items() if adapter_tensors(model, path, layer)["lora_A"] in tensors}
        targets = [their_name(model, path) for path in named if path != ties]
    elif isinstance(targets, str) and targets.lower() == "all-linear":
        linears = [path for path, layer in layers.items() if isinstance(base_of(layer), Linear)]
        # PEFT leaves out a head that gives words, and a classifier where the task says that it is one
        heads = ["lm_head"] if model.config.head == "lm" or config.get("task_type") != "SEQ_CLS" else HEADS
        targets = [their_name(model, path) for path in linears if path not in heads]
    elif ties:
        targets = f"(?:{targets})" if isinstance(targets, str) else targets
        embedding = their_name(model, "embed.token")
        targets = rf"{targets}|{embedding}" if isinstance(targets, str) else [*targets, embedding]
    return targets


def tie_of(model: Transformer, config: dict[str, Any], tensors: dict[str, np.ndarray]) -> str | None:
    """The path of the head that ensure_weight_tying gives the embedding's A and B, or its saved copy.

    PEFT ties where the model does and one of the two is named "embed_tokens" or "lm_head"; of GPT-2's it then writes
    the name "wte" alone, so the head's tensors say it too.
    """
    head = tied_head(model)
    if not head or not config.get("ensure_weight_tying"):
        return None
    targets, saved = config.get("target_modules"), config.get("modules_to_save") or []
    named = {name.rpartition(".")[2] for name in [*saved, *(targets if isinstance(targets, list) else [])]}
    there = f"{PREFIX}{their_name(model, head)}"
    if {f"{there}.lora_A.weight", f"{there}.weight"} & tensors.keys():
        return head
    by_regex = isinstance(targets, str) and any(is_target({"target_modules": targets}, name) for name in TIED_NAMES)
    return head if by_regex or named & set(TIED_NAMES) else None


def saves_the_pair(model: Transformer, config: dict[str, Any], tensors: dict[str, np.ndarray]) -> bool:
    """Does a tie mean the copies of modules_to_save, rather than A and B?"""
    saved = {name.rpartition(".")[2] for name in config.get("modules_to_save") or []}
    return bool(saved & set(TIED_NAMES)) or f"{PREFIX}{their_name(model, 'lm_head')}.weight" in tensors


# ---- the tensors ----

Place = tuple[str, str]  # the path of a layer, and lora_A, lora_B, weight or bias


def tensor_names(model: Transformer, plan: Plan) -> dict[Place, str]:
    """{place: name of its tensor} of all that must be there."""
    layers, names = layers_of(model), {}
    for path in [*plan.adapted, *([plan.head] if plan.head and "embed.token" in plan.adapted else [])]:
        for side, name in adapter_tensors(model, path, layers[path]).items():
            names[path, side] = name
    for path in plan.saved:
        for parameter in ("weight", "bias"):
            if getattr(layers[path], parameter, None) is not None:
                names[path, parameter] = f"{PREFIX}{their_name(model, path)}.{parameter}"
    for path in plan.biases:
        inside = ".base_layer" if path in plan.adapted else ""
        names[path, "bias"] = f"{PREFIX}{their_name(model, path)}{inside}.bias"
    return names


def only_these(
    model: Transformer, config: dict[str, Any], plan: Plan, tensors: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """`tensors` without what PEFT writes beside them. Raises ValueError where a copy is no copy."""
    rest = {name: x for name, x in tensors.items() if not CONSTANT.fullmatch(name)}
    drop_base_weights(model, plan, rest)
    if config.get("bias") == "all" or "lm_head" in plan.saved:
        drop_bias_copies(model, plan, rest)
    if has_pooler_apart(model):
        pooler = [name for name in rest if name.startswith(f"{PREFIX}pooler.")]
        for name in pooler:
            del rest[name]
        if pooler:
            warnings.warn(f"{len(pooler)} tensors are for a pooler, which a model without a head lacks", stacklevel=5)
    return rest


def drop_base_weights(model: Transformer, plan: Plan, tensors: dict[str, np.ndarray]) -> None:
    """An adapted embed_tokens or lm_head has its frozen weight there too. Raises ValueError unless it is the base's."""
    layers = layers_of(model)
    for path in [*plan.adapted, *([plan.head] if plan.head else [])]:
        name = f"{PREFIX}{their_name(model, path)}.base_layer.weight"
        if name not in tensors:
            continue
        theirs, W = tensors.pop(name), to_numpy(base_of(layers[path]).weight.data)
        if not np.array_equal(W.astype(theirs.dtype), theirs):
            raise ValueError(f"{name} is not the weight of this base: it was made for another, or trained or resized")


def drop_bias_copies(model: Transformer, plan: Plan, tensors: dict[str, np.ndarray]) -> None:
    """The bias of a masked head that is saved, or with bias "all", is there under its two names; those of a saved
    module, with bias "all", in three states, of which original_module is not used any more. Raises ValueError where a
    copy is no copy."""
    copies = {}
    if model.config.head == "lm":
        inside = ".base_layer" if "lm_head" in plan.adapted else ""
        copies[PREFIX + their_name(model, "lm_head.bias")] = f"{PREFIX}{their_name(model, 'lm_head')}{inside}.bias"
    for name in list(tensors):
        module, state, end = name.partition(".modules_to_save.")
        if state:  # the name of the adapter comes next, where the module has modules of its own
            copies[name] = f"{module}.{end if f'{module}.{end}' in tensors else end.partition('.')[2]}"
        if ".original_module." in name:
            del tensors[name]
    for name, original in copies.items():
        if name == original or name not in tensors or original not in tensors:
            continue
        copied = tensors.pop(name)
        if not np.array_equal(copied, tensors[original]):
            raise ValueError(f"{name} is not {original}, of which it must be a copy")


def check_tensors(
    model: Transformer, config: dict[str, Any], plan: Plan, names: dict[Place, str], tensors: dict[str, np.ndarray]
) -> None:
    """Raise ValueError unless the tensors are just those that are needed, of the right shapes, and can be converted."""
    if not tensors:
        raise ValueError("it holds no tensor")
    layers = layers_of(model)
    shapes: dict[str, tuple[int, ...]] = {}
    for (path, what), name in names.items():
        W = base_of(layers[path]).weight.data
        r = plan.adapted.get("embed.token" if path == plan.head else path, (0, 0))[0]
        rows, columns = W.shape if W.ndim == 2 else (len(W), 0)
        n_out, n_in = (columns, rows) if isinstance(layers[path], Embedding) else (rows, columns)
        shapes[name] = {"lora_A": (r, n_in), "lora_B": (n_out, r), "weight": W.shape, "bias": (rows,)}[what]
    found, needed = prefixes(set(tensors) - set(shapes), set(shapes) - set(tensors))
    if needed:
        there = f"begin with {found!r}" if found else "lack a prefix"
        raise ValueError(f"the names of its tensors {there}, and for this model it must be {needed!r}")
    check_fit(tensors, shapes)
    dtype = next(iter(model.named_parameters().values())).data.dtype
    for name, x in tensors.items():
        if x.dtype.kind != "f":
            raise ValueError(f"{name} is of {x.dtype}, and must be floating point")
        with np.errstate(over="ignore"):
            if not np.isfinite(x.astype(dtype)).all():
                raise ValueError(f"{name} holds numbers that are too large for {dtype}")
    for path, (r, alpha) in plan.adapted.items():
        A, B = (float(np.abs(tensors[names[path, side]]).max()) for side in ("lora_A", "lora_B"))
        s = alpha / (math.sqrt(r) if config.get("use_rslora") else r)
        if not abs(s) * max(1.0, r * A * B) <= float(np.finfo(dtype).max):
            raise ValueError(
                f"lora_alpha = {alpha!r} of {their_name(model, path)} makes s B A too large for {dtype} (A is up to "
                f"{A:.3g}, B up to {B:.3g})"
            )
    if plan.head and "embed.token" in plan.adapted:
        for side, other in (("lora_A", "lora_B"), ("lora_B", "lora_A")):
            one, two = names[plan.head, side], names["embed.token", other]
            if not np.array_equal(tensors[one], tensors[two].T):
                raise ValueError(f"ensure_weight_tying: {one} is not {two} transposed")
    if plan.head and "embed.token" in plan.saved:
        one, two = names[plan.head, "weight"], names["embed.token", "weight"]
        if not np.array_equal(tensors[one], tensors[two]):
            raise ValueError(f"ensure_weight_tying: {one} is not {two}")


def prefixes(unexpected: set[str], missing: set[str]) -> tuple[str, str]:
    """(the prefix that the names have, the one they must have), if that is all that is wrong with them; else "", ""."""
    if not unexpected or len(unexpected) != len(missing):
        return "", ""
    needed = min(missing)
    for name in unexpected:
        parts, others = name.split("."), needed.split(".")
        same = 0
        while same < min(len(parts), len(others)) and parts[-1 - same] == others[-1 - same]:
            same += 1
        if same < 2:
            continue
        end = ".".join(parts[len(parts) - same :])
        found, wanted = name.removesuffix(end), needed.removesuffix(end)
        if found != wanted and {wanted + x.removeprefix(found) for x in unexpected if x.startswith(found)} == missing:
            return found, wanted
    return "", ""


# ---- the modules ----


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
            adapter: Adapter = LoRAEmbedding.of(base, A, B, alpha, rslora=rslora)
        else:
            adapter = LoRALinear.of(base, A, B, alpha, rslora=rslora)
            adapter.dropout = dropout
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
            modules, note = read_modules(self.model, Path(folder))
        finally:
            self.activate(active or None)
        self.loaded[name] = modules
        return note

    def activate(self, name: str | None) -> None:
        """Put the adapter of that name in place, or with None the base alone. Raises KeyError for a name not loaded."""
        if name is not None and name not in self.loaded:
            raise KeyError(f"no adapter is called {name!r}; there are: {', '.join(self.loaded) or 'none'}")
        for path, module in self.base.items():
            self.model[path] = module
        self.base, self.active = {}, name or ""
        for path, module in self.loaded[name].items() if name else ():
            self.base[path] = self.model[path]
            self.model[path] = module
