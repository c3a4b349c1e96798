"""What the tensors of an adapter must be: their names, shapes and numbers."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import numpy as np

from ...backend import to_numpy
from ...models.pretrained import CONSTANT, their_name
from ...models.transformer import Transformer
from ...nn import Embedding, check_fit
from .config import short
from .format import PREFIX, adapter_tensors, has_pooler_apart, layers_of
from .plan import Plan, base_of

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
    beside = {name for name in tensors if CONSTANT.fullmatch(name)} | of_pooler(model, tensors)
    beside |= base_weights(model, plan, tensors)
    if config.get("bias") == "all" or "lm_head" in plan.saved:
        beside |= bias_copies(model, plan, tensors)
    return {name: x for name, x in tensors.items() if name not in beside}


def of_pooler(model: Transformer, tensors: Collection[str]) -> set[str]:
    """The tensors for a pooler that our model without a head lacks."""
    return {name for name in tensors if has_pooler_apart(model) and name.startswith(f"{PREFIX}pooler.")}


def base_weights(model: Transformer, plan: Plan, tensors: dict[str, np.ndarray]) -> set[str]:
    """An adapted embed_tokens or lm_head has its frozen weight there too. Raises ValueError unless it is the base's."""
    layers, found = layers_of(model), set()
    for path in [*plan.adapted, *([plan.head] if plan.head else [])]:
        name = f"{PREFIX}{their_name(model, path)}.base_layer.weight"
        if name in tensors:
            theirs, W = tensors[name], to_numpy(base_of(layers[path]).weight.data)
            if not np.array_equal(W.astype(theirs.dtype), theirs):
                raise ValueError(
                    f"{name} is not the weight of this base: it was made for another, or trained or resized"
                )
            found.add(name)
    return found


def bias_copies(model: Transformer, plan: Plan, tensors: dict[str, np.ndarray]) -> set[str]:
    """The bias of a masked head that is saved, or with bias "all", is there under its two names; those of a saved
    module, with bias "all", in three states, of which original_module is not used any more. Raises ValueError where a
    copy is no copy."""
    unused = {name for name in tensors if ".original_module." in name}
    there, copies = tensors.keys() - unused, {}
    if model.config.head == "lm":
        inside = ".base_layer" if "lm_head" in plan.adapted else ""
        copies[PREFIX + their_name(model, "lm_head.bias")] = f"{PREFIX}{their_name(model, 'lm_head')}{inside}.bias"
    for name in there:
        module, state, end = name.partition(".modules_to_save.")
        if state:  # the name of the adapter comes next, where the module has modules of its own
            copies[name] = f"{module}.{end if f'{module}.{end}' in tensors else end.partition('.')[2]}"
    found = {name for name, original in copies.items() if name != original and {name, original} <= there}
    for name in sorted(found):
        if not np.array_equal(tensors[name], tensors[copies[name]]):
            raise ValueError(f"{name} is not {copies[name]}, of which it must be a copy")
    return found | unused


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
                f"lora_alpha = {short(alpha)} of {their_name(model, path)} makes s B A too large for {dtype} "
                f"(A is up to {A:.3g}, B up to {B:.3g})"
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
