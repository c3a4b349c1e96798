"""A whole model: embeddings, blocks and a head."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, ClassVar, NamedTuple

import numpy as np

from ..backend import Array, get_array_module
from ..nn import Attention, Gradients, Inputs, Module, Pass, Sequential
from ..spelling import choose_from
from .config import Config


class SortedByAdapter(NamedTuple):
    """The cache of a forward whose rows had adapters of their own."""

    outputs: Array  # the caller's place of each row of the output
    caches: list[Any]


class Transformer(Sequential):
    """embed, block_0, ..., norm, and a head. Token ids (B, T) in, or images (B, channels, size, size) where the config
    has an image_size; out, by config.head:

    lm          logits (B, T, V), or (N, V) of the N positions inputs.labelled
    classify    logits (B, labels)
    tokens      logits (B, T, labels)
    none        hidden states (B, T, C)
    """

    reads_source: ClassVar[bool] = False  # whether it is an EncoderDecoder

    def __init__(self, family: str, config: Config, layers: dict[str, Module]) -> None:
        super().__init__(layers)
        self.family, self.config = family, config
        self.hf_config: dict[str, Any] = {}  # other keys of the config.json, which save_pretrained writes unchanged
        self.hub: tuple[str, str | None] | None = None  # its name on the Hugging Face Hub, and the commit
        self.added_tokens = 0  # tokens of its vocabulary that its files lack (vocabulary.py)
        self.adapter_names: tuple[str, ...] = ()  # those that a row of a batch may have (adapters/many.py)
        self.modules_now: tuple[Module, ...] = ()  # made by modules()

    @property
    def causal(self) -> bool:
        """Whether a token sees no later one, so that the model can continue a text."""
        return all(module.causal for _, module in self.named_modules() if isinstance(module, Attention))

    def __setitem__(self, path: str, module: Module) -> None:
        super().__setitem__(path, module)
        self.modules_now = ()

    def modules(self) -> tuple[Module, ...]:
        """All current modules: a KV cache is valid only for the same ones."""
        self.modules_now = self.modules_now or tuple(module for _, module in self.named_modules())
        return self.modules_now

    def forward(self, ids: Array, inputs: Inputs = Inputs(), run: Pass = Pass()) -> tuple[Array, Any]:
        """The output and the cache. Moves ids and inputs to the device of the weights. Rows with adapters of their own
        (inputs.adapters) are sorted by adapter on the way.

        Raises ValueError for
            ids       that are not (B, T) integers in 0..V-1, or images that are not floats of the config's size; for
                      more tokens (those of run.kv_cache included) than config.max_length
            inputs    whose padding, segments, active or text are not as Inputs says, with an adapter that the model
                      does not have, or with a source, which only an EncoderDecoder reads
            run       whose KV cache was filled by other layers or adapters, or gets padding behind a token
        and TypeError for `inputs` and `run` of other types, and for a run.rng that is not a generator. Values that are
        on a GPU already are not checked: that would wait for it.
        """
        xp = next(self.parameters()).xp
        check_arguments(inputs, run)
        if not self.reads_source and inputs.source is not None:
            raise ValueError(f"a {self.family} has no encoder beside it that could read a source: leave source out")
        kv_cache, labelled = run.kv_cache, inputs.labelled
        names = None if inputs.adapters is None else tuple(inputs.adapters)
        if self.config.image_size:
            check_images(ids, inputs, run, self.config)
            ids = xp.asarray(ids, dtype=next(self.parameters()).data.dtype)
        elif get_array_module(ids) is np:
            check_ids(ids, self.config, kv_cache.most_tokens() if kv_cache else 0)
        segment = getattr(self.layers["embed"], "segment", None)
        check_inputs(inputs, run, np.shape(ids), None if segment is None else len(segment.weight.data))
        acts_on_all = inputs.active is not None and [
            m for m in self.modules() if m.is_adapter and not m.acts_on_some_tokens
        ]
        if acts_on_all:
            kind = type(acts_on_all[0]).__name__
            raise ValueError(f"active: a {kind} acts on all tokens, as it changes what its base does: leave active out")
        ids = xp.asarray(ids)
        labelled = None if labelled is None else (xp.asarray(labelled[0]), xp.asarray(labelled[1]))
        inputs = inputs.each(xp.asarray)._replace(labelled=labelled, adapters=names)
        outputs = None
        if names is not None:
            check_adapters(names, self.adapter_names, len(ids))
            inputs, order, outputs = inputs.by_adapter()
            ids = ids[xp.asarray(order)]
            if labelled is None or "labelled" not in self.layers:
                outputs = order
        so_far = kv_cache.read(ids, self.modules(), names, inputs.padding) if kv_cache else ids
        if inputs.text is None and any(module.reads_text for module in self.modules()):
            inputs = inputs._replace(text=so_far)
        y, caches = super().forward(ids, inputs, run)
        if kv_cache:
            kv_cache.length += ids.shape[1]
        if outputs is None:
            return y, caches
        return y[xp.asarray(np.argsort(outputs))], SortedByAdapter(xp.asarray(outputs), caches)

    def backward(self, dy: Array, caches: Any, grads: Gradients) -> None:
        if isinstance(caches, SortedByAdapter):
            dy, caches = dy[caches.outputs], caches.caches
        super().backward(dy, caches, grads)


def check_adapters(names: Collection[str | None], known: Collection[str], B: int) -> None:
    """Raise ValueError unless there is a name for each of B rows, that of an adapter, or None."""
    if len(names) != B:
        raise ValueError(
            f"adapters are {len(names)} names, and the batch has {B} rows: one for each, None for the base"
        )
    unknown = next((name for name in names if name is not None and name not in known), None)
    if unknown is not None or not known:
        advice = choose_from(unknown, known) if known else "this model has none: load_adapters(model, {name: folder})"
        raise ValueError(f"adapters: no adapter of a row is called {unknown!r}, {advice}")


def check_arguments(inputs: Any, run: Any) -> None:
    if not (isinstance(inputs, Inputs) and isinstance(run, Pass)):
        raise TypeError("forward(ids, Inputs(padding=..., segments=...), Pass(rng=...)) takes these two types")
    if run.rng is not None and not isinstance(run.rng, np.random.Generator):
        raise TypeError(f"Pass(rng={run.rng!r}) is not a generator: numpy.random.default_rng(0)")


def check_ids(ids: Any, config: Config, start: int = 0) -> None:
    """Raise ValueError unless a model of this config can read these host `ids` after `start` other tokens."""
    ids = np.asarray(ids)
    if ids.ndim != 2 or ids.size == 0 or ids.dtype.kind not in "iu":
        raise ValueError(f"token ids are integers of shape (batch, tokens), not {ids.dtype} of shape {ids.shape}")
    if start + ids.shape[1] > config.max_length:
        raise ValueError(f"{start + ids.shape[1]} tokens are more than the model's {config.max_length} positions")
    if ids.min() < 0 or ids.max() >= config.vocab_size:
        wrong = ids[(ids < 0) | (ids >= config.vocab_size)][0]
        raise ValueError(f"token id {wrong} is outside the vocabulary 0..{config.vocab_size - 1}")


def check_images(x: Any, inputs: Inputs, run: Pass, config: Config) -> None:
    """Raise ValueError unless a model of this config can read these images."""
    size = config.channels, config.image_size, config.image_size
    if x.ndim != 4 or not len(x) or x.shape[1:] != size or x.dtype.kind != "f":
        raise ValueError(
            f"images are floats of shape (batch, {', '.join(map(str, size))}), not {x.dtype} of shape {x.shape}"
        )
    of_tokens = inputs.padding, inputs.segments, inputs.labelled, inputs.active, inputs.text, run.kv_cache
    if any(given is not None for given in of_tokens):
        raise ValueError("images have no padding, no segments, no labels of tokens and no KV cache: leave them out")


def check_inputs(inputs: Inputs, run: Pass, shape: tuple[int, ...], segments: int | None) -> None:
    """Raise ValueError unless padding and segments fit ids of this shape.

    `segments` is the number of the model's segments; None if it has none. Values on a GPU are not checked.
    """
    padding, s, text = inputs.padding, inputs.segments, inputs.text
    of_tokens = (
        ("padding", padding, "bool", "b"),
        ("segments", s, "integers", "iu"),
        ("active", inputs.active, "bool", "b"),
    )
    for name, x, kind, kinds in of_tokens:
        if x is not None and (x.shape != shape or x.dtype.kind not in kinds):
            raise ValueError(f"{name} is {kind} of the ids' shape {shape}, not {x.dtype} of shape {x.shape}")
    end = shape[1] + (run.kv_cache.length if run.kv_cache else 0)
    if text is not None and (
        text.ndim != 2 or len(text) != shape[0] or text.shape[1] < end or text.dtype.kind not in "iu"
    ):
        raise ValueError(
            f"text is integers of shape ({shape[0]}, {end} or more), not {text.dtype} of shape {text.shape}"
        )
    if segments and s is not None and get_array_module(s) is np and not 0 <= s.min() <= s.max() < segments:
        raise ValueError(f"segments from {s.min()} to {s.max()} are outside 0..{segments - 1}")
