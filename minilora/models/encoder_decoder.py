"""A model of two stacks: an encoder reads the source, and a decoder writes what follows from it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from ..backend import Array, get_array_module
from ..nn import Costs, Gradients, Inputs, Memory, MetaArray, Module, Pass, Sequential
from .config import Config
from .transformer import Transformer, check_arguments, check_ids, check_inputs


class Encoder(Sequential):
    """embed, block_0, ..., norm: token ids (B, S) to the memory's (B, S, C). The decoder has the same embed, and lists
    it among its layers."""

    def children(self) -> dict[str, Module]:
        return {name: layer for name, layer in self.layers.items() if name != "embed"}

    @property
    def trainable(self) -> bool:
        return any(layer.trainable for layer in self.layers.values())


class EncoderDecoderCache(NamedTuple):
    decoder: list[Any]
    memory: Memory
    encoder: list[Any]  # [] where the memory was given


class EncoderDecoder(Transformer):
    """The decoder's layers, as in every Transformer, and the `encoder`. Besides the ids (B, T) it reads inputs.source
    (B, S), or inputs.memory, which `encode` has made of it."""

    reads_source = True

    def __init__(self, family: str, config: Config, layers: dict[str, Module], encoder: dict[str, Module]) -> None:
        super().__init__(family, config, layers)
        self.encoder = Encoder({"embed": layers["embed"], **encoder})

    def children(self) -> dict[str, Module]:
        return {**self.layers, "encoder": self.encoder}

    def first_trainable(self) -> int:
        """If the encoder is trained, every block has a gradient to give: that of the memory."""
        first = super().first_trainable()
        return min(first, list(self.layers).index("block_0")) if self.encoder.trainable else first

    def encode(self, source: Array, padding: Array | None = None) -> Memory:
        """What the decoder reads of a source (B, S), padding (B, S): made once, for any number of forwards. It passes
        no gradient on. Raises ValueError as forward does."""
        memory, _ = self.encoded(Inputs(source=source, source_padding=padding), Pass(needs_cache=False))
        memory.trainable = False
        return memory

    def encoded(self, inputs: Inputs, run: Pass) -> tuple[Memory, list[Any]]:
        source, padding, xp = inputs.source, inputs.source_padding, next(self.parameters()).xp
        if source is None:
            raise ValueError(f"a {self.family} reads two texts: forward(ids, Inputs(source=...)), the ids of the other")
        if get_array_module(source) is np:
            check_ids(source, self.config)
        check_inputs(Inputs(padding), Pass(), np.shape(source), None)
        padding = None if padding is None else xp.asarray(padding)
        m, caches = self.encoder.forward(xp.asarray(source), Inputs(padding), run)
        return Memory(m, self.encoder.trainable, padding), caches

    def forward(self, ids: Array, inputs: Inputs = Inputs(), run: Pass = Pass()) -> tuple[Array, Any]:
        """The output and the cache, as Transformer.forward; raises also for a source that is missing, or not as the ids
        must be, and for adapters of rows or of some tokens."""
        check_arguments(inputs, run)
        if inputs.adapters is not None or inputs.active is not None:
            raise ValueError(f"a {self.family} of two stacks has one adapter for all rows and all tokens of a batch: "
                             "leave adapters and active out")  # fmt: skip
        memory, encoder = inputs.memory, list[Any]()
        if memory is None:
            memory, encoder = self.encoded(inputs, run._replace(kv_cache=None))
        inputs = inputs._replace(memory=memory, source=None, source_padding=None)
        y, caches = super().forward(ids, inputs, run)
        return y, EncoderDecoderCache(caches, memory, encoder)

    def backward(self, dy: Array, cache: Any, grads: Gradients) -> None:
        super().backward(dy, cache.decoder, grads)
        dm = grads.pop(cache.memory, None)
        if dm is not None:
            self.encoder.backward(dm, cache.encoder, grads)

    def costs(self, x: MetaArray, costs: Costs) -> MetaArray:
        m = self.encoder.costs(costs.source, costs)
        costs.memory = replace(m, needs_dx=self.encoder.trainable)
        costs.keep(self.encoder, "m", costs.memory, "dWk = dkᵀ m, dWv = dvᵀ m, and running a block again")
        return super().costs(x, costs)
