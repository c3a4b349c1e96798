"""What adapter_config.json says: the variant, the keys and what each may hold.

The rules are those of PEFT 0.21.2 (tuners/tuners_utils.py, utils/other.py).
"""

from __future__ import annotations

import itertools
import re
from typing import Any

from ..base import Adapter
from ..registry import class_for, variants
from ..statements import short
from .matching import VALUES, WHOLE, entries, matches_pattern

# Keys that PEFT's configs have in common: those that are read, and those that say where an adapter is from.
READ = {
    *("peft_type", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save"),
    *("bias", "fan_in_fan_out", "ensure_weight_tying"),
}
INFORMATION = {
    *("task_type", "base_model_name_or_path", "revision", "auto_mapping", "inference_mode", "peft_version"),
}
# Prompt learning: it trains tokens, or keys and values, before the text, and changes no weight.
PROMPTS = (
    *("ADAPTION_PROMPT", "CARTRIDGE", "CPT", "MULTITASK_PROMPT_TUNING"),
    *("P_TUNING", "PREFIX_TUNING", "PROMPT_TUNING"),
)
REGULAR = "target_modules", "exclude_modules"  # keys that are lists of names, or one regular expression
CLASSIFIERS = "classifier", "score"
# What PEFT adds to modules_to_save for a task_type, whatever the model has (peft_model.py).
ADDED = {"SEQ_CLS": CLASSIFIERS, "TOKEN_CLS": CLASSIFIERS, "QUESTION_ANS": ("qa_outputs",)}


def classes_of(config: dict[str, Any]) -> list[type[Adapter]]:
    """The classes of a config's variant that support its init. Raises ValueError, saying what to do, for a variant or
    an init that is not supported."""
    if "peft_type" not in config:
        raise ValueError(
            "it lacks 'peft_type', which PEFT always writes: it is not an adapter of PEFT; peft.layouts converts those "
            "of mlx-lm and loralib"
        )
    kind = config["peft_type"]
    found = [classes for classes in variants().values() if classes[0].peft_type == kind]
    if not found:
        known = ", ".join(sorted({classes[0].peft_type for classes in variants().values()}))
        instead = "merge it into its base (merge_and_unload) and save that model"
        if kind in PROMPTS:
            instead = "generate with it there, as no weight can hold it"
        raise ValueError(f"peft_type = {short(kind)} is not read here, only {known}: in PEFT, {instead}")

    def differing(classes: list[type[Adapter]]) -> list[str]:
        fixed = classes[0].keys.fixed
        return [key for key, value in fixed.items() if config.get(key) not in (value, value or None)]

    def without_ids(classes: list[type[Adapter]]) -> int:
        return sum(option.is_ids and not config.get(option.key) for option in classes[0].options)

    # a LoRA-FA is written as a LoRA: of variants with equal files, the first in alphabetical order is read
    nearest = min(found, key=lambda classes: (len(differing(classes)), without_ids(classes), classes[0].variant))
    for key in differing(nearest):
        raise ValueError(f"{key} = {short(config.get(key))} is not supported, only {nearest[0].keys.fixed[key]}")
    init = config.get(nearest[0].keys.init)
    reading = [cls for cls in nearest if (True if init is None else init) in cls.keys.inits]
    if not reading:
        raise ValueError(
            f"{nearest[0].keys.init} = {short(init)} is not known to leave the base as it is, so the adapter would not "
            "fit it: in PEFT, save it with path_initial_model_for_weight_conversion, or merge_and_unload() and save "
            "the model"
        )
    return reading


def flat(config: dict[str, Any]) -> dict[str, Any]:
    """The config with a key "a.b" for each b of a mapping a, where keys of options are written so."""
    keys = {option.key for classes in variants().values() for cls in classes for option in cls.options}
    outer = {key.partition(".")[0] for key in keys if "." in key}
    found: dict[str, Any] = {}
    for key, value in config.items():
        inside = key in outer and isinstance(value, dict)
        found |= {f"{key}.{name}": x for name, x in value.items()} if inside else {key: value}
    return found


def nested(config: dict[str, Any]) -> dict[str, Any]:
    """The config as a file has it, of a flat() one."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        outer, dot, name = key.partition(".")
        found[outer] = {**found.get(outer, {}), name: value} if dot else value
    return found


def known_keys(cls: type[Adapter]) -> set[str]:
    """The keys that the config of a variant may hold."""
    options = {key for option in cls.options for key in (option.key, option.pattern) if key}
    modules = {other.modules_key for other in variants()[cls.variant] if other.modules_key}
    keys = cls.keys
    more = {*keys.fixed, *keys.ignored, *keys.companions, keys.init}
    return ((READ | INFORMATION) - {*keys.lacks}) | options | modules | more


def companions_in(config: dict[str, Any]) -> dict[str, tuple[list[type[Adapter]], dict[str, Any]]]:
    """{key: (classes, {end of a layer's name: the value of their option})} of the adapters of other variants that a
    config holds. The end is "" for the token embedding."""
    found = {}
    for key in classes_of(config)[0].keys.companions:
        classes = next(c for c in variants().values() if c[0].companion and c[0].companion.key == key)
        value = config.get(key)
        if value is not None:
            found[key] = classes, value if isinstance(value, dict) else {"": value}
    return found


def token_keys(config: dict[str, Any]) -> list[str]:
    """The keys that hold ids of tokens."""
    options = classes_of(config)[0].options
    return [option.key for option in options if option.is_ids and not option.ordered] + [*companions_in(config)]


def check_config(config: dict[str, Any]) -> None:
    """Raise ValueError, with the key and its value, for what is missing, not supported, not known, or of another type.

    The names and numbers of layers, which depend on the model, are checked with it (plan.py).
    """
    cls = classes_of(config)[0]
    for option in cls.options:
        if option.default and option.key and option.key not in config:
            raise ValueError(f"it lacks {option.key!r}, which PEFT always writes: save it again in PEFT")
    known = known_keys(cls)
    for key, value in config.items():
        if key not in known and value not in (None, False, "", [], {}):
            raise ValueError(f"{key} = {short(value)} is not known here, so what it changes would be ignored")
    check_general(config, cls)
    for key, (classes, values) in companions_in(config).items():
        option = next(o for o in classes[0].options if classes[0].companion and o.name == classes[0].companion.option)
        try:
            for value in values.values():
                option.check(value)
        except ValueError as error:
            raise ValueError(f"{key}: {error}") from None
    for option in cls.options:
        values = config.get(option.pattern) or {}
        if not isinstance(values, dict):
            what = "names of tensors to lists" if option.mask_of else "regular expressions to numbers"
            raise ValueError(f"{option.pattern} maps {what}, and is {short(values)}")
        given = [(option.key, config.get(option.key)), *((option.pattern, value) for value in values.values())]
        for key, value in given:
            try:
                if key and (value is not None or option.default or option.mask_of):
                    option.check(option.from_file(value))
            except ValueError as error:
                raise ValueError(f"{key}: {error}") from None
        for pattern in values if not option.mask_of else ():
            check_pattern(option.pattern, pattern, VALUES)


def check_general(config: dict[str, Any], cls: type[Adapter]) -> None:
    """check_config(), of the keys that PEFT's configs have in common."""
    for key in ("fan_in_fan_out", "ensure_weight_tying"):
        if config.get(key) not in (True, False, None):
            raise ValueError(f"{key} = {short(config[key])} is neither true nor false")
    if config.get("bias") not in (*biases_of(cls), None):
        raise ValueError(f"bias = {short(config['bias'])} is not one of {', '.join(biases_of(cls))}")
    lists = ["modules_to_save", "layers_pattern", *regular_keys(cls)]
    for key in lists:
        value = config.get(key)
        if not (value is None or is_list_of(value, str) or (isinstance(value, str) and key != "modules_to_save")):
            one = " or a regular expression" * (key in regular_keys(cls))
            raise ValueError(f"{key} is a list of names{one}, not {short(value)}")
        for pattern in entries(config, key) if key in WHOLE or isinstance(value, str) else ():
            check_pattern(key, pattern, WHOLE.get(key, "PATTERN"))
    layers, targets = config.get("layers_to_transform"), config.get("target_modules")
    if layers is not None and type(layers) is not int and not is_list_of(layers, int):
        raise ValueError(f"layers_to_transform = {short(layers)} is not a list of numbers of layers")
    if config.get("layers_pattern") and layers is None:
        raise ValueError(
            f"layers_pattern = {short(config['layers_pattern'])} does nothing without layers_to_transform: give the "
            "numbers of the layers too, or take it out"
        )
    if isinstance(targets, str) and layers is not None:
        raise ValueError(
            f"layers_to_transform = {short(layers)} does nothing with target_modules = {short(targets)}, which is not "
            "a list: name the layers in the regular expression, or take it out"
        )


def check_pattern(key: str, pattern: str, whole: str = "PATTERN") -> None:
    """Raise ValueError unless it is a regular expression that is quick on a name: (.*)*x cuts a name of n characters
    in 2ⁿ ways before it gives up, and .*.*.*.*.*x in about n⁵/5!. Some that would be quick are refused too."""
    try:
        re.compile(pattern)
        re.compile(whole.replace("PATTERN", pattern))
    except (re.error, OverflowError, RecursionError):
        raise ValueError(f"{key}: {short(pattern)} is not a regular expression") from None
    text = re.sub(r"(\\d|\[0-9\]|\[\\d\])(\+|\{1,\})?", "0", pattern)  # a number, which is short
    text = re.sub(r"\[[^]]*\]|\\[^b]", ".", text.replace(r"\.", "_")).replace(r"\b", "")
    text = re.sub(r"\(\?([:=!]|<[=!]|P<\w+>|i\))", "(", text)
    repeats, choices = len(re.findall(r"[*+?{]\??", text)), 0
    for part in re.split(r"[()]", text):
        words = part.split("|")
        exclusive = all(re.match(r"\w", a) and not b.startswith(a) for a, b in itertools.permutations(words, 2))
        choices += 0 if exclusive else len(words) - 1
    if len(pattern) > 500 or re.search(r"\)[*+?{]|\(\?", text) or 20**repeats * 2**choices > 10**6:
        raise ValueError(f"{key}: {short(pattern)} could run for minutes on a name: it needs fewer repeats (* and +), "
                         "none of them of a group")  # fmt: skip


def biases_of(cls: type[Adapter]) -> tuple[str, ...]:
    """PEFT's values for which biases are in the file: none, all, those of the adapted layers."""
    return ("none",) if "bias" in cls.keys.lacks else ("none", "all", f"{cls.peft_type.lower()}_only")


def regular_keys(cls: type[Adapter]) -> list[str]:
    return [*REGULAR, *(other.modules_key for other in variants()[cls.variant] if other.modules_key)]


def is_list_of(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(type(item) is kind and item != "" for item in value)


def class_of_layer(classes: list[type[Adapter]], config: dict[str, Any], base: Any, name: str) -> type[Adapter]:
    """The class for one layer, whose name the lists of modules give as PEFT reads them."""

    def is_listed(cls: type[Adapter]) -> bool:
        listed = config.get(cls.modules_key)
        return bool(re.fullmatch(listed, name)) if isinstance(listed, str) else name.endswith(tuple(listed or ()))

    return class_for(classes, base, is_listed)


def options_of(cls: type[Adapter], config: dict[str, Any], name: str) -> dict[str, Any]:
    """{name of an option: its value} for the layer of that name. The first pattern that matches the end of the name
    gives the value, as in PEFT; a mask is found by the name of its tensor."""
    found = {}
    for option in cls.options:
        patterns, value = config.get(option.pattern) or {}, config.get(option.key)
        if option.mask_of:
            value = patterns.get(f"{name}.{option.mask_of}", value)
        else:
            matching = (x for pattern, x in patterns.items() if matches_pattern(option.pattern, pattern, name))
            value = next(matching, value)
        found[option.name] = option.default if value is None else option.from_file(value)
    return found
