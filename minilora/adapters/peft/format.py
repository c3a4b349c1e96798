"""PEFT's two files, read without a model."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from ...files import load_tensors, read_json
from ...models.hub import HubName, fetch, name_on_hub, pickle_error
from ...models.tokenizer_files import FILES_READ
from ...nn import Embedding, Linear
from ..base import Adapter
from ..statements import Slot, shape
from .config import check_config, classes_of, companions_in, flat, options_of, token_keys
from .matching import is_saved
from .view import PREFIX

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
MERGE_IT = "give its base too (--base), or merge it (minilora merge) and compare the two models"
BASE_FORMAT = "base_format"  # in the metadata: the format of quantization/ in which the blocks of the base are held
LABELS = "id2label"  # config.json's key, here in the tensors' metadata: PEFT warns of unknown keys in its config


def locate_adapter(source: str | Path) -> Path:
    """The folder of an adapter: a path, or where no such path exists that of a name on the Hub, "ORG/NAME@REVISION",
    with the tokenizer's files if it trains rows of tokens, which may be new.

    Raises what hub.fetch does.
    """
    hub = name_on_hub(source)
    if not hub:
        return Path(source)
    folder = fetch(hub, (CONFIG, WEIGHTS))
    config = flat(read_json(folder / CONFIG))
    with suppress(ValueError):  # read_adapter() raises it, with the name of the file
        if any(config.get(key) for key in token_keys(config)):
            fetch(HubName(hub.name, folder.name), (CONFIG,), FILES_READ)
    return folder


def read_adapter(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray], dict[str, str]]:
    """The config, tensors and metadata in an adapter folder.

    Raises FileNotFoundError for a missing file; ValueError for damaged ones, for a pickle, which is never read, and for
    a key of the config that is not supported, or not known and not empty.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no {CONFIG}: it is not an adapter folder")
    config = flat(read_json(path))
    try:
        check_config(config)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if (folder / PICKLE).is_file() and not (folder / WEIGHTS).is_file():
        raise pickle_error(folder / PICKLE, WEIGHTS)
    return config, *load_tensors(folder / WEIGHTS)


def slot_of(config: dict[str, Any], tensor: str) -> tuple[str, type[Adapter], Slot] | None:
    """(Hugging Face's name of the layer, class, slot) of a tensor that an adapter adds to a layer; None for others."""
    both = [(classes_of(config), "")]
    both += [(c, c[0].companion.prefix) for c, _ in companions_in(config).values() if c[0].companion]
    for cls, prefix in ((cls, prefix) for classes, prefix in both for cls in classes):
        for slot in cls.slots:
            end = f".{prefix}{slot.file}"
            if not slot.shared and tensor.startswith(PREFIX) and tensor.endswith(end):
                name = tensor.removeprefix(PREFIX).removesuffix(end)
                whole = slot.file == "bias" and is_saved(config, name)  # of a layer that is trained whole
                return None if whole else (name, cls, slot)
    return None


def layers_in(folder: Path, config: dict[str, Any], tensors: Mapping[str, np.ndarray]) -> dict[str, Adapter]:
    """{Hugging Face's name of a layer: its adapter}, built without the model: the bases are without weights.

    Raises ValueError for a tensor that no adapter adds to a layer, for tensors that do not fit each other and the
    config, and for a variant whose files do not hold all of its tensors or the sizes of its layers.
    """
    classes = classes_of(config)
    slots = {slot.file: slot for cls in classes for slot in cls.slots}
    if any(slot.shared for slot in slots.values()):
        raise ValueError(f"{folder} does not say the sizes of its layers: {MERGE_IT}")
    if "" in slots:
        raise ValueError(f"{folder} lacks {slots[''].name}, which is computed from the base: {MERGE_IT}")
    held: dict[str, dict[str, np.ndarray]] = {}  # of each layer, {Slot.file: array}
    for tensor, x in tensors.items():
        if tensor.endswith(".base_layer.weight"):
            continue  # the frozen weight of an adapted embedding or head
        place = slot_of(config, tensor)
        if place is None:
            raise ValueError(f"{folder / WEIGHTS} holds {tensor}, which is not {' or '.join(sorted(slots))} of a layer")
        held.setdefault(place[0], {})[place[2].file] = x
    layers = {}
    for name, found in held.items():
        files = {cls: {slot.file for slot in cls.slots} for cls in classes}
        near = [cls for cls in classes if files[cls] & found.keys()]
        axes_of = {cls: {slot.file: len(slot.file_shape or slot.shape) for slot in cls.slots} for cls in near}
        axes_here = {file: x.ndim for file, x in found.items()}
        cls = next((cls for cls in near if axes_of[cls] == axes_here), near[0])
        arrays = {slot.name: found[slot.file] for slot in cls.slots if slot.file in found}
        options = options_of(cls, config, name)
        axes = {slot.name: slot.file_shape or slot.shape for slot in cls.slots}
        sizes = {} if options.get("r") == 0 else {"r": cls.rank(options)}  # r = 0 (SVF): the arrays give the rank
        for attribute, x in arrays.items():
            sizes = dict(zip(axes[attribute], x.shape, strict=False)) | sizes
        there = files[cls] == found.keys() and all(len(axes[name]) == x.ndim for name, x in arrays.items())
        if there and {"n_in", "n_out"} - sizes.keys():
            raise ValueError(f"{folder / WEIGHTS} does not say the sizes of {name}: {MERGE_IT}")
        if not there or any(
            shape(axes[n], sizes) != x.shape or 0 in shape(axes[n], sizes | {"r": 1}) for n, x in arrays.items()
        ):
            needed = " and ".join(f"{slot.file} {axes[slot.name]}".replace("'", "") for slot in cls.slots)
            shapes = " and ".join(str(x.shape) for x in found.values())
            raise ValueError(f"{folder / WEIGHTS}: {name} needs {needed} with r = {sizes['r']}, not {shapes}")
        base = base_without_weights(cls, sizes, np.result_type(*arrays.values()))
        layers[name] = cls.of(base, {slot.name: slot.from_file(arrays[slot.name]) for slot in cls.slots}, **options)
    return layers


def is_whole_in_file(cls: type[Adapter]) -> bool:
    """Whether a file gives an adapter without its base: every slot, and by their shapes n_in and n_out."""
    sizes = {axis for slot in cls.slots for axis in slot.shape if not slot.shared}
    return {"n_in", "n_out"} <= sizes and all(slot.file for slot in cls.slots)


def base_without_weights(cls: type[Adapter], sizes: Mapping[str, int], dtype: np.dtype[Any]) -> Any:
    """A base of these sizes, for an adapter that is inspected and not run."""
    n_in, n_out, zero = sizes["n_in"], sizes["n_out"], np.zeros((), dtype)
    if cls.base_type is Embedding:
        return Embedding(np.broadcast_to(zero, (n_in, n_out)))
    kernel = [sizes[axis] for axis in cls.slots[0].shape if axis.startswith("k")]  # of a convolution
    kind: Any = cls.base_type if kernel else Linear
    return kind(np.broadcast_to(zero, (n_out, n_in, *kernel)))
