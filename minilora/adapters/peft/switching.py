"""Several adapters on one base, read once: switched by name, or in one batch, each for rows of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...backend import Rng
from ...models.labels import label_maps
from ...models.transformer import Transformer
from ...nn import Module
from ...spelling import choose_from
from .. import DEFAULT
from ..attach import attach
from ..base import Adapter
from ..many import Many
from ..targets import LAYERS, Targets
from .format import locate_adapter
from .reading import read_modules


def load_adapters(model: Transformer, folders: Mapping[str, str | Path]) -> Adapters:
    """Read several adapters, {name: folder}, for batches in which each row has its own:

        adapters = load_adapters(model, {"fr": "runs/fr", "de": "runs/de"})
        model.forward(ids, Inputs(adapters=["fr", "de", None]))         # None: the base

    Raises as load_adapter does; the model is then as it was, but frozen. Notes are in Adapters.notes.
    """
    adapters = Adapters(model)
    for name, folder in folders.items():
        adapters.load(name, folder)
    adapters.activate_by_row()
    return adapters


class Adapters:
    """Several adapters on one base, by name: one of them active, or each for rows of its own.

        adapters = Adapters(model)
        adapters.load("notes", "runs/notes")
        adapters.load("tests", "runs/tests")
        adapters.activate("notes")              # the model now answers with it
        adapters.activate("tests")
        adapters.activate(None)                 # the base, bit for bit
        adapters.activate_by_row()              # by Inputs(adapters=["notes", None, "tests"]), adapters/many.py

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
        self.replaced: dict[str, Module] = {}  # the base's modules where an active adapter has its own
        self.by_row = False
        self.notes: dict[str, str] = {}  # what load() returned, by name

    def load(self, name: str, folder: str | Path) -> str:
        """Read an adapter, to be called `name`; return a note. Nothing else changes. Raises as load_adapter does, and
        ValueError for a name that is taken or empty."""
        self.check_name(name)
        with self.base_alone():
            modules, names, self.notes[name] = read_modules(self.model, locate_adapter(folder))
            self.add(name, modules, names)
        return self.notes[name]

    def attach(
        self, name: str, variant: str = DEFAULT, targets: Targets | None = None, *, rng: Rng, **options: Any
    ) -> None:
        """Start a new adapter, to be called `name`, as attach() does on the base: several can be trained in one batch
        (Batch.adapters). Nothing else changes. Raises ValueError as attach() does, for a name that is taken, and for
        `train`, as all share the base."""
        self.check_name(name)
        if "train" in options:
            raise ValueError(f"train={options['train']!r}: all adapters share the base, so none of it can be trained")
        with self.base_alone():
            plain = {path: m for path, m in self.model.named_modules() if isinstance(m, LAYERS)}
            attach(self.model, variant, targets, rng=rng, **options)
            modules = {path: m for path in plain if isinstance(m := self.model[path], Adapter)}
            for path in modules:
                self.model[path] = plain[path]
            self.add(name, modules, [])

    @contextmanager
    def base_alone(self) -> Iterator[None]:
        """No adapter is active inside this block; afterwards those are that were."""
        active, by_row = self.active, self.by_row
        self.activate(None)
        try:
            yield
        finally:
            self.activate_by_row() if by_row else self.activate(active or None)

    def check_name(self, name: str) -> None:
        """Raise ValueError for a name that is taken or empty."""
        if not name or name in self.loaded:
            raise ValueError(
                f"an adapter is called {name!r} already: choose another name" if name else "give it a name"
            )

    def add(self, name: str, modules: Mapping[str, Module], names: list[str]) -> None:
        self.loaded[name] = dict(modules)
        self.hf_configs[name] = self.hf_configs[""] | (label_maps(names) if names else {})

    def activate(self, name: str | None) -> None:
        """Put the adapter of that name in place, or with None the base alone. Raises KeyError for a name not loaded."""
        if name is not None and name not in self.loaded:
            raise KeyError(f"no adapter is called {name!r}: {choose_from(name, self.loaded)}")
        self.put(self.loaded[name] if name else {})
        self.active, self.by_row, self.model.adapter_names = name or "", False, ()
        self.model.hf_config = self.hf_configs[self.active]

    def activate_by_row(self) -> None:
        """Put all adapters in place, each for the rows of a batch that Inputs.adapters gives it."""
        self.activate(None)
        paths = dict.fromkeys(path for modules in self.loaded.values() for path in modules)
        self.put(
            {
                path: Many(self.model[path], {name: m[path] for name, m in self.loaded.items() if path in m})
                for path in paths
            }
        )
        self.by_row, self.model.adapter_names = True, tuple(self.loaded)

    def put(self, modules: Mapping[str, Module]) -> None:
        """Put these in place, and the base's own where none is."""
        for path, module in self.replaced.items():
            self.model[path] = module
        self.replaced = {path: self.model[path] for path in modules}
        for path, module in modules.items():
            self.model[path] = module
