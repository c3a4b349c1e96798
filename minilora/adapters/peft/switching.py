"""Several adapters on one base, read once and switched by name."""

from __future__ import annotations

from pathlib import Path

from ...models.labels import label_maps
from ...models.transformer import Transformer
from ...nn import Module
from ...spelling import choose_from
from .format import locate_adapter
from .reading import read_modules


class Adapters:
    """Several adapters on one base, by name, at most one of them active.

        adapters = Adapters(model)
        adapters.load("notes", "runs/notes")
        adapters.load("tests", "runs/tests")
        adapters.activate("notes")              # the model now answers with it
        adapters.activate("tests")
        adapters.activate(None)                 # the base, bit for bit

    The base is frozen from here on, and nothing writes to it. Each adapter has its own slots, its own copies of what
    modules_to_save and bias train, and shares everything else.
    """

    def __init__(self, model: Transformer) -> None:
        """Raises ValueError for a model that is adapted already."""
        path = next((path for path, module in model.named_modules() if module.is_adapter or module.is_merged), None)
        if path:
            raise ValueError(f"{path} is adapted already: Adapters takes a model without an adapter")
        model.freeze()
        self.model, self.loaded, self.active = model, dict[str, dict[str, Module]](), ""
        self.hf_configs = {"": model.hf_config}  # with the names that each adapter gives to a classifier's labels
        self.replaced: dict[str, Module] = {}  # the base's modules where the active adapter has its own

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
        self.hf_configs[name] = self.hf_configs[""] | (label_maps(names) if names else {})
        return note

    def activate(self, name: str | None) -> None:
        """Put the adapter of that name in place, or with None the base alone. Raises KeyError for a name not loaded."""
        if name is not None and name not in self.loaded:
            raise KeyError(f"no adapter is called {name!r}: {choose_from(name, self.loaded)}")
        for path, module in self.replaced.items():
            self.model[path] = module
        self.replaced, self.active = {}, name or ""
        self.model.hf_config = self.hf_configs[self.active]
        for path, module in self.loaded[name].items() if name else ():
            self.replaced[path] = self.model[path]
            self.model[path] = module
