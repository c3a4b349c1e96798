"""Token, position and segment embeddings, and those of an image's patches."""

from __future__ import annotations

import math
from typing import Any

from .. import ops
from ..backend import Array, get_array_module
from .costs import Costs, MetaArray
from .inputs import Inputs, Pass
from .kv_cache import KVCache
from .layers import Embedding
from .module import Gradients, Module, Parameter

TABLES = "embed.token", "lm_head"  # the paths in a model of the layers that have a row for each token


class Embeddings(Module):
    """y = norm(scale token[ids] + position[0..T-1] + segment[segments])        ids (B, T)   y (B, T, C)

    All but `token` are optional. The first position is row `offset` of `position` (RoBERTa: 2). A head that is tied to
    `token` reads it unscaled.
    """

    def __init__(
        self,
        token: Embedding,
        position: Embedding | None = None,
        segment: Embedding | None = None,
        norm: Module | None = None,
        offset: int = 0,
        scale: float | None = None,
    ) -> None:
        self.token, self.position, self.segment, self.norm = token, position, segment, norm
        self.offset, self.scale = offset, scale

    def forward(self, ids: Array, inputs: Inputs = Inputs(), run: Pass = Pass()) -> tuple[Array, Any]:
        xp = get_array_module(ids)
        x, ct = self.token.forward(ids, inputs, run)
        cp = cs = cn = None
        if self.scale is not None:
            x = self.scale * x
        if self.position is not None:
            p, cp = self.position.forward(positions(ids, inputs.padding, self.offset, run.kv_cache), inputs, run)
            x = x + p
        if self.segment is not None:
            segments = xp.zeros_like(ids) if inputs.segments is None else inputs.segments
            s, cs = self.segment.forward(segments, inputs, run)
            x = x + s
        if self.norm is not None:
            x, cn = self.norm.forward(x, inputs, run.with_dx())  # the tables read it
        return x, (ct, cp, cs, cn)

    def backward(self, dy: Array, cache: Any, grads: Gradients) -> None:
        ct, cp, cs, cn = cache
        if self.norm is not None:
            dy = self.norm.backward(dy, cn, grads)
        if self.segment is not None:
            self.segment.backward(dy, cs, grads)
        if self.position is not None:
            self.position.backward(dy, cp, grads)
        self.token.backward(dy if self.scale is None else self.scale * dy, ct, grads)

    def costs(self, ids: MetaArray, costs: Costs) -> MetaArray:
        x = self.token.costs(ids, costs)
        if self.position is not None:  # without padding every sequence has the same positions
            self.position.costs(costs.array(ids.shape[1], itemsize=ids.itemsize), costs)
        if self.segment is not None:
            self.segment.costs(costs.array(*ids.shape, itemsize=ids.itemsize), costs)
        return x if self.norm is None else self.norm.costs(x, costs)


class PatchEmbeddings(Module):
    """y = [c; E p_1; ...; E p_L] + P          x (B, channels, size, size)   y (B, 1 + L, C)

    The projection E is a Conv2d whose stride is its kernel, so that its windows are the patches p, side by side, in
    reading order. c (1, 1, C) is the class token, P (1, 1 + L, C) the positions. Dosovitskiy et al. (2021), equation 1.
    """

    def __init__(self, projection: Module, class_token: Array, position: Array) -> None:
        self.class_token, self.position = Parameter(class_token), Parameter(position)
        self.projection = projection

    def forward(self, x: Array, inputs: Inputs = Inputs(), run: Pass = Pass()) -> tuple[Array, Any]:
        xp = get_array_module(x)
        h, cache = self.projection.forward(x, inputs, run)
        c, patches = self.class_token.data, ops.channels_last(h).reshape(len(h), -1, h.shape[1])
        y = xp.concatenate([xp.broadcast_to(c, (len(h), *c.shape[1:])), patches], axis=1)
        y += self.position.data
        return y, (cache, h.shape, self.class_token.trainable, self.position.trainable)

    def backward(self, dy: Array, cache: Any, grads: Gradients) -> Array | None:
        cp, (B, C, *L), class_learns, position_learns = cache
        if position_learns:
            grads.add(self.position, dy.sum(axis=0, keepdims=True))
        if class_learns:
            grads.add(self.class_token, dy[:, :1].sum(axis=0, keepdims=True))
        dx: Array | None = self.projection.backward(ops.channels_first(dy[:, 1:].reshape(B, *L, C)), cp, grads)
        return dx

    def costs(self, x: MetaArray, costs: Costs) -> MetaArray:
        B, C, *L = self.projection.costs(x, costs).shape
        return costs.array(B, 1 + math.prod(L), C)


def positions(ids: Array, padding: Array | None, start: int, kv_cache: KVCache | None = None) -> Array:
    """(B, T): the real tokens have positions start, start + 1, ..., so that padding on either side changes no logits.
    The tokens of a KV cache come before them.

    Hugging Face's RoBERTa does the same. Its BERT and GPT-2 also count padding on the left (GPT-2 not in generate(),
    which passes position_ids): there the logits of a text depend on the padding.
    """
    xp, T = get_array_module(ids), ids.shape[1]
    if kv_cache is not None:
        if (of_rows := kv_cache.positions(T)) is not None:
            return start + xp.asarray(of_rows)
        start, padding = start + kv_cache.length, None
    if padding is None:
        one = xp.arange(start, start + T, dtype=xp.int64)[None]
        return one if len(ids) == 1 else xp.broadcast_to(one, ids.shape)  # which is slow for one token
    return start + xp.maximum(xp.cumsum(padding, axis=1, dtype=xp.int64) - 1, 0)
