"""Does an adapter fit this model, and is the model the base that it was trained on?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...backend import to_numpy
from ...models.names import CONSTANT
from ...models.quantized import format_of, formats_for
from ...models.saving import base_hash
from ...models.transformer import Transformer
from ...nn import TABLES, Parameter, check_fit
from ...quantization import Quantized, dense, formats
from .format import BASE_FORMAT, base_without_weights
from .plan import Place, Plan, duplicate_rows
from .view import View

COPIES = ".original_module.", ".modules_to_save."  # in PEFT's second names of what it saves whole


def check_base(
    model: Transformer,
    plan: Plan,
    metadata: dict[str, str],
    folder: Path,
    made: Mapping[str, Parameter],
    called: str = "this model",
) -> str:
    """Raise ValueError unless the weights of `model`, with replaced_weights(), are those that the adapter in `folder`
    was trained on. Return a note, "" if there is nothing to report.

    A base that is held in another format (quantization/) than in training is accepted, and the note says so: one in
    full precision is encoded in the adapter's format to be compared, one in another format cannot be compared.
    """
    held = {p.data.name for p in model.base_parameters().values() if isinstance(p.data, Quantized)}
    now = format_of(model) or ", ".join(sorted(held))  # where an adapter makes the weights of the blocks, of the others
    expected, before = metadata.get("base_sha256"), metadata.get(BASE_FORMAT, "")
    if not expected:
        return f"{folder} does not say which base it is for; its names and shapes fit this one"
    if expected == base_hash(model, plan.replaced_paths(), made=made):
        return ""
    encoded = base_hash(model, plan.replaced_paths(), before, made) if before in formats() and not now else ""
    if encoded == expected:
        advice = f", but for what it adapts: quantize(model, {before!r})" if made else f": quantize={before!r}"
        return f"{folder} was trained on this base in {before}, and here it is in full precision{advice}"
    if encoded or before == now:
        raise ValueError(f"{folder} was made for another base: the weights of {called} are not those it names")
    return (
        f"{folder} was trained on its base in {before or 'full precision'}, and this one is in "
        f"{now or 'full precision'}: its names and shapes fit, and its weights cannot be compared"
    )


def without_redundant(
    view: View,
    config: dict[str, Any],
    plan: Plan,
    tensors: dict[str, np.ndarray],
    places: dict[str, Place],
    base_format: str,
) -> dict[str, np.ndarray]:
    """The adapter's tensors, without the redundant ones that PEFT writes too: buffers of old models, the frozen weight
    of an adapted or resized embedding or head, a second copy of token rows for a tied head, and copies by other names
    (COPIES). Raises ValueError if a frozen weight is not this base's, except for its format, or if a copy of token rows
    differs."""
    encoded = formats_for(view.model, base_format) if base_format in formats() else {}
    prefix = plan.prefixes()
    frozen = {view.tensor(path, f"{prefix.get(path, '')}base_layer.weight"): path for path in plan.adapters}
    frozen |= {name: path for path in TABLES if path in view.layers and path not in plan.saved
               if (name := view.tensor(path, "weight")) not in places}  # fmt: skip
    duplicates = duplicate_rows(view, plan)
    copies = {view.tensor(path, f"{x[1:]}weight") for path in TABLES if path in plan.saved for x in COPIES}
    head_bias = view.head_bias if ("lm_head", "bias") in [(p.path, p.name) for p in places.values()] else ""
    found = {}
    for name, x in tensors.items():
        copy = name in copies or (config.get("bias") == "all" and (COPIES[0] in name or COPIES[1] in name))
        if name in frozen:
            path = frozen[name]
            if path in plan.adapters and plan.adapters[path][0].replaces_weight:
                continue  # base_sha256 is of the weight that it makes
            p = view.bases[path].weight
            W = p.data if isinstance(p.data, Quantized) or p not in encoded else encoded[p].of(p.data)
            held = dense(type(p.data).of(x)) if type(p.data) in formats().values() else x
            if x.shape[1:] == W.shape[1:] and len(x) < len(W):
                raise ValueError(f"{name} has {len(x)} rows, and this base {len(W)}: it is of a smaller vocabulary")
            if not np.array_equal(to_numpy(dense(W)).astype(x.dtype), held):
                raise ValueError(f"{name} is not the weight of this base: it was made for another, or trained or "
                                 "resized")  # fmt: skip
        elif name in duplicates and duplicates[name] in tensors:
            if not np.array_equal(x, tensors[duplicates[name]]):
                raise ValueError(f"the head is tied to the embedding: {name} is not {duplicates[name]}")
        elif not copy and name != head_bias and not CONSTANT.fullmatch(name):
            found[name] = x
    return found


def check_tensors(view: View, plan: Plan, tensors: dict[str, np.ndarray], places: dict[str, Place]) -> None:
    """Raise ValueError unless the tensors are exactly those of `places`, of the right shapes, and the model's dtype
    holds their values."""
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
