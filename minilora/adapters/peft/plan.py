"""What the files of an adapter hold for one model: which layers, and which tensors."""

from __future__ import annotations

import itertools
from collections.abc import Collection
from typing import Any, NamedTuple

from ...models.families import FAMILIES
from ...nn import Linear
from ..base import Adapter
from ..statements import Slot, shape, short
from ..targets import HEADS
from .config import ADDED, class_of_layer, classes_of, companions_in, options_of, regular_keys
from .matching import WHOLE, entries, is_named_by, is_saved, is_target, matches_pattern
from .view import SHARED, View


class Plan(NamedTuple):
    """What an adapter's files hold, by our paths."""

    adapters: dict[str, tuple[type[Adapter], dict[str, Any]]]  # {path: (class, options)}
    tied: bool  # do the token embedding and its head have one adapter, or one saved weight, between them?
    saved: list[str]  # layers saved whole
    biases: list[str]  # other layers whose bias is saved
    companions: Collection[str] = ()  # layers whose adapter is of another variant than the config's

    def replaced_paths(self) -> list[str]:
        """The paths of the base's parameters that the adapter stores itself: the base's hash leaves them out."""
        whole = [f"{path}.{name}" for path in self.saved for name in ("weight", "bias")]
        return whole + [f"{path}.bias" for path in self.biases]

    def prefixes(self) -> dict[str, str]:
        """{path: the prefix of the names of its slots in the file} of the `companions`."""
        return {path: self.adapters[path][0].companion.prefix for path in self.companions}  # type: ignore[union-attr]


class Place(NamedTuple):
    """Where a tensor of the file belongs."""

    path: str  # of the layer; "" if it is shared by all
    name: str  # of a slot, or weight or bias
    slot: Slot | None
    shape: tuple[int, ...]  # in the file


def tensors_of(view: View, plan: Plan) -> dict[str, Place]:
    """{name of a tensor: its place} of all that the file holds. Raises ValueError for an embedding that PEFT's model
    has twice."""
    if FAMILIES[view.model.family].copies and "embed.token" in (*plan.adapters, *plan.saved):
        raise ValueError(
            f"{view.names['embed.token']}: in PEFT each stack of a {view.model.family} has an embedding of its own and "
            "reads no other, so there is no file for an adapter of both: merge(model), and save the model"
        )
    found: dict[str, Place] = {}
    shared: dict[Slot, bool] = {}  # does the file hold it?
    largest = {"n_in": 0, "n_out": 0}
    prefix = plan.prefixes()
    for path, (cls, options) in plan.adapters.items():
        if plan.tied and path == view.head and path in plan.companions:
            continue  # PEFT writes what a head shares with the embedding only where it stands alone
        sizes = cls.sizes_for(view.bases[path], options)
        largest = sizes | {axis: max(largest[axis], sizes[axis]) for axis in ("n_in", "n_out")}
        for slot in cls.slots:
            axes = slot.file_shape or slot.shape
            if not slot.file:
                continue
            if slot.shared:
                shared[slot] = not slot.saved_if or options[slot.saved_if]
            else:
                name = view.tensor(path, prefix.get(path, "") + slot.file)
                found[name] = Place(path, slot.name, slot, shape(axes, sizes))
    for slot in (slot for slot, saved in shared.items() if saved):
        found[SHARED + slot.file] = Place("", slot.name, slot, shape(slot.shape, largest))
    for path in plan.saved:
        for name in ("weight", "bias"):
            parameter = getattr(view.layers[path], name, None)
            if parameter is not None:
                found[view.tensor(path, name)] = Place(path, name, None, parameter.data.shape)
    for path in plan.biases:
        end = prefix.get(path, "") + ("base_layer.bias" if path in plan.adapters else "bias")
        found[view.tensor(path, end)] = Place(path, "bias", None, view.bases[path].bias.data.shape)
    return found


def duplicate_rows(view: View, plan: Plan) -> dict[str, str]:
    """{tensor of a tied head: the embedding's, of the same values}: PEFT writes the head's only for a resized table."""
    if not (plan.tied and view.head in plan.companions):
        return {}
    cls, prefix = plan.adapters[view.head][0], plan.prefixes()[view.head]
    ends = [prefix + slot.file for slot in cls.slots]
    return {view.tensor(view.head, end): view.tensor("embed.token", end) for end in ends}


def plan_of(view: View, config: dict[str, Any], tensors: Collection[str]) -> Plan:
    """The Plan of a config for this model; `tensors` are the names in its file. Raises ValueError as check_names()
    does, for a layer that cannot be adapted so, and for one that has tensors but is not named."""
    check_names(view, config)
    if config.get("fan_in_fan_out") and not view.transposed:
        family = view.model.family
        raise ValueError(f"fan_in_fan_out = True is for layers stored as (in, out), and a {family} has none")
    classes, names = classes_of(config), view.names
    config = config | {"target_modules": targets_of(view, config, tensors)}
    targets = [path for path, name in names.items() if is_target(config, name)]
    saved = [path for path, name in names.items() if is_saved(config, name)]
    embedding = next((cls for cls in classes if cls.tied_head), None)
    tied_class = embedding.tied_head if embedding else None
    if embedding and tied_class:
        by_class = embedding.always_tied and view.head and "embed.token" in targets
        ends = [slot.file for slot in tied_class.slots]
        tied_class = tied_class if by_class or is_tied(view, config, targets, tensors, ends) else None
    elif is_tied(view, config, targets, tensors, [slot.file for cls in classes for slot in cls.slots]):
        raise ValueError(
            f"ensure_weight_tying = True: {classes[0].variant} has no adapter that an embedding and its head share; in "
            "PEFT, merge it into its base (merge_and_unload) and save that model"
        )
    if tied_class:
        targets = [path for path in names if path in (*targets, "embed.token") and path != view.head]
    tied = is_tied(view, config, saved, tensors, ["weight"])
    if tied:
        saved = [path for path in names if path in (*saved, "embed.token", view.head)]
    adapters: dict[str, tuple[type[Adapter], dict[str, Any]]] = {}
    for path, layer in view.layers.items():
        name = names[path]
        cls = class_of_layer(classes, config, view.bases[path], name)
        if tied_class and path == view.head:
            check_is_plain(view, path)
            adapters[path] = tied_class, options_of(tied_class, config, names["embed.token"])
            continue
        if path not in targets:
            others = (slot for slot in cls.slots if not (slot.file == "bias" and path in saved))  # not the layer's own
            if any(view.tensor(path, slot.file) in tensors for slot in others):
                raise ValueError(f"target_modules = {short(config['target_modules'])} do not name {name}, which has "
                                 "tensors")  # fmt: skip
            continue
        options = options_of(cls, config, name)
        check_layer(cls, layer, name, options)
        init = config.get(cls.keys.init)
        in_pefts_words = all(config.get(option.key) in option.words for option in cls.options if option.words)
        if view.transposed and "block_" in path and init in cls.keys.wrong_transposed and in_pefts_words:
            raise ValueError(
                f"{name} is stored as (in, out), where PEFT's {cls.keys.init} = {init!r} is wrong from the start"
            )
        adapters[path] = cls.form(view.bases[path], **options), options
    companions = companion_adapters(view, config)
    both = next((path for path in companions if path in adapters or path in saved), None)
    if both:
        keys = " and ".join(companions_in(config))
        raise ValueError(f"{names[both]} is in {keys}, and another key says to adapt or to save it too")
    those = {"none": [], "all": list(names)}.get(config.get("bias") or "none", list(adapters))
    biases = [path for path in those if path not in saved and getattr(view.bases[path], "bias", None) is not None]
    for path in [*saved, *biases]:
        if view.layers[path].is_adapter or view.layers[path].is_merged:
            raise ValueError(f"{names[path]}: this layer is adapted already, and the adapter has a copy of it")
    both = next((path for path in saved if path in adapters), None)
    if both:
        raise ValueError(f"{names[both]} is among modules_to_save and among target_modules")
    one = tied or tied_class is not None or {"embed.token", view.head} <= companions.keys()
    return Plan(adapters | companions, one, saved, biases, [*companions])


def companion_adapters(view: View, config: dict[str, Any]) -> dict[str, tuple[type[Adapter], dict[str, Any]]]:
    """{path: (class, options)} of the adapters of other variants than the config's. A tied head has the embedding's,
    and a config that gives it another is refused."""
    found: dict[str, tuple[type[Adapter], dict[str, Any]]] = {}
    for key, (classes, values) in companions_in(config).items():
        for end, value in values.items():
            paths = [path for path, name in view.names.items() if name.endswith(end)] if end else ["embed.token"]
            if not paths:
                raise ValueError(f"{key}: nothing in this {view.model.family} is called {short(end)}")
            for path in paths:
                cls = class_of_layer(classes, {}, view.bases[path], view.names[path])
                assert cls.companion
                options = cls.defaults() | {cls.companion.option: value}
                check_layer(cls, view.layers[path], view.names[path], options)
                found[path] = cls, options
        cls, options = found.get("embed.token", (classes[0], {}))
        if options and view.head and cls.tied_head:
            if found.pop(view.head, (cls, options))[1] != options:
                raise ValueError(f"{key}: {view.names[view.head]} is tied to the embedding, so it has the same rows")
            check_is_plain(view, view.head)
            found[view.head] = cls.tied_head, options
    return found


def check_layer(cls: type[Adapter], layer: Any, name: str, options: dict[str, Any]) -> None:
    """Raise ValueError, with the layer's Hugging Face name, if the class cannot adapt it with these options."""
    try:
        cls.check(layer, **options)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def check_is_plain(view: View, path: str) -> None:
    if view.layers[path].is_adapter or view.layers[path].is_merged:
        raise ValueError(f"{view.names[path]}: this layer is adapted already, and the adapter is for the plain one")


def is_tied(
    view: View, config: dict[str, Any], chosen: Collection[str], tensors: Collection[str], ends: Collection[str]
) -> bool:
    """Whether ensure_weight_tying applies: one of the tied pair is chosen, so both have one adapter or saved weight.

    PEFT ties the pair of a tied model if it knows one of the two names. For GPT-2's pair the config may have the name
    that PEFT does not know, so tensors of the head count too.
    """
    by_name = any(path in chosen and view.ties_by_name(path) for path in ("embed.token", view.head) if path)
    by_tensor = any(view.tensor(view.head, end) in tensors for end in ends) if view.head else False
    return bool(config.get("ensure_weight_tying")) and (by_name or by_tensor)


def check_names(view: View, config: dict[str, Any]) -> None:
    """Raise ValueError for a name, a layer's number or a tie that the model does not have.

    PEFT ignores a name that matches nothing. Here it is an error: the adapter is probably for another base.
    """
    family, advice = view.model.family, "the adapter is for another base, or this must come out of its config"
    cls = classes_of(config)[0]
    added = ADDED.get(str(config.get("task_type")), ())
    masks = {option.pattern: option.mask_of for option in cls.options if option.mask_of}
    patterns = [option.pattern for option in cls.options if option.pattern]
    for key in (*regular_keys(cls), *WHOLE, *patterns):
        value = config.get(key)
        if key == "target_modules" and isinstance(value, str):
            continue  # what it does not match has no tensor either
        known = [*view.names.values(), *view.unused] if key == "target_modules" else view.modules

        def matches(entry: str, key: str = key, value: Any = value, known: list[str] = known) -> bool:
            if key == "modules_to_save":
                return entry in added or any(is_saved({key: [entry]}, name) for name in known)
            if key in masks:
                return entry.removesuffix(f".{masks[key]}") in known
            if key in WHOLE or key in patterns:
                return any(matches_pattern(key, entry, name) for name in known)
            return any(is_named_by(entry if isinstance(value, str) else [entry], name) for name in known)

        nothing = (entry for entry in entries(config, key) if not matches(entry))
        first = [short(entry) for entry in itertools.islice(nothing, 4)]
        if first:
            names = f"{', '.join(first[:3])}{', ...' * (len(first) > 3)}"
            raise ValueError(f"{key}: nothing in this {family} matches {names}; {advice}")
    wanted, last = config.get("layers_to_transform"), view.model.config.n_layers - 1
    beyond = [i for i in ([wanted] if type(wanted) is int else wanted or []) if not 0 <= i <= last]
    if beyond:
        raise ValueError(f"layers_to_transform: this {family} has layers 0 to {last}, and not {short(beyond[0])}; "
                         f"{advice}")  # fmt: skip
    if config.get("ensure_weight_tying") and not view.head:
        raise ValueError(f"ensure_weight_tying = True, and this {family} ties no head to its embedding; {advice}")


def targets_of(view: View, config: dict[str, Any], tensors: Collection[str]) -> Any:
    """target_modules with "all-linear" expanded; if the key is missing, the layers that have tensors in the file."""
    targets = config.get("target_modules")
    if targets is None:
        ends = [slot.file for cls in classes_of(config) for slot in cls.slots if not slot.shared]
        return [name for path, name in view.names.items() if any(view.tensor(path, end) in tensors for end in ends)]
    if isinstance(targets, str) and targets.lower() == "all-linear":
        # PEFT leaves out a language model's head, and a classifier if task_type says that it is one
        heads = ["lm_head"] if view.model.config.head == "lm" or config.get("task_type") != "SEQ_CLS" else HEADS
        return [view.names[path] for path, x in view.bases.items() if isinstance(x, Linear) and path not in heads]
    return targets
