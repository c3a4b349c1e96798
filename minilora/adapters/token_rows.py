"""Trainable token rows: the embedding's rows of a few tokens are trained (PEFT's `TrainableTokensConfig`). The maths is
in ops/token_rows.py.

Alone, or together with LoRA on other layers (PEFT's `trainable_token_indices`):

    attach_lora(model, ["q_proj", "v_proj"], rng=0)
    attach(model, "token-rows", token_indices=[5, 7], rng=0)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

from .. import ops
from ..backend import Array, Rng, get_array_module
from ..nn import Embedding, Gradients, Inputs, Linear, Module, Parameter, Pass
from .base import Adapter, Law, relative_difference
from .statements import Companion, Kept, Keys, Option, Products, Slot


def rows_of_dW(adapter: TokenRows, x: Array, dy: Array, grads: Gradients) -> float:
    """dT = dW_I: the gradients that these rows of the whole table would get."""
    W, xp = adapter.weight.data, get_array_module(dy)
    looked_up = isinstance(adapter.base, Embedding)
    dW = ops.embedding_gradients(dy, x, len(W)) if looked_up else ops.linear_gradients(dy, x)
    return relative_difference(xp.asarray(dW[adapter.indices]), grads[adapter.token_rows])


class TokenRows(Adapter):
    """T (n, C) replaces the n rows `token_indices` of the table W (V, C). At the start they are W's."""

    variant = "token-rows"
    peft_type = "TRAINABLE_TOKENS"
    keys = Keys(
        "init_weights",
        inits=(True,),
        lacks=(
            *("exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save", "bias"),
            *("fan_in_fan_out", "ensure_weight_tying"),
        ),
    )
    companion = Companion("trainable_token_indices", "token_indices", "token_adapter.")
    options = (Option("token_indices", "token_indices", ()),)
    laws: ClassVar[dict[str, Law]] = {"dT is the rows of dW": rows_of_dW}
    examples: ClassVar[dict[str, dict[str, Any]]] = {"": {"token_indices": (3, 0, 2)}}
    token_rows: Parameter
    token_indices: tuple[int, ...]

    @classmethod
    def check(cls, base: Module, **options: Any) -> None:
        super().check(base, **options)
        i, V = options.get("token_indices", ()), len(base.weight.data)  # type: ignore[attr-defined]
        if not i:
            raise ValueError("token_indices is empty: name the tokens whose rows to train, as token_indices=[5, 7]")
        if max(i) >= V:
            raise ValueError(f"token_indices: this layer has the rows 0 to {V - 1}, and not {max(i)}")

    @classmethod
    def sizes_for(cls, base: Any, options: Mapping[str, Any]) -> dict[str, int]:
        return super().sizes_for(base, options) | {"tokens": len(options["token_indices"])}

    @classmethod
    def start(cls, base: Module, *, rng: Rng, **options: Any) -> TokenRows:
        """Nothing is drawn from `rng`."""
        cls.check(base, **options)
        return cls.of(base, {"token_rows": base.dense(list(options["token_indices"]))}, **options)  # type: ignore[attr-defined]

    @property
    def indices(self) -> Array:
        """i (n,)"""
        return self.weight.xp.asarray(self.token_indices)

    def merged(self) -> tuple[Array, Array | None]:
        """W with the rows T, and b as it is"""
        W, bias = self.dense().copy(), getattr(self.base, "bias", None)
        W[self.indices] = self.token_rows.data
        return W, None if bias is None else bias.data


class TokenRowsEmbeddingCache(NamedTuple):
    base: Any  # the ids too, if W is trained
    ids: Array | None  # (...)      None where T is frozen


class TokenRowsEmbedding(TokenRows):
    """y = W'[ids], W' = W with the rows T          ids (...)   T (n, C)   W (V, C)

    A head that is tied to the embedding has the same rows (TokenRowsLinear), and T is one Parameter of both.
    """

    base_type = Embedding
    targets = ("embed",)
    always_tied = True
    slots = (Slot("token_rows", "trainable_tokens_delta", ("tokens", "n_out")),)
    kept = (Kept("ids", "0", "dT adds dy up by id", ("token_rows",)),)
    products = Products(forward="0", backward="0", gradients={})

    def forward(
        self, ids: Array, inputs: Inputs = Inputs(), run: Pass = Pass()
    ) -> tuple[Array, TokenRowsEmbeddingCache]:
        y, cb = self.base.forward(ids, inputs, run)
        y = ops.token_rows_forward(y, self.places(ids), self.token_rows.data)
        return y, TokenRowsEmbeddingCache(cb, ids if self.token_rows.trainable else None)

    def backward(self, dy: Array, cache: TokenRowsEmbeddingCache, grads: Gradients) -> None:
        if cache.base is not None:
            self.base.backward(ops.token_rows_backward(dy, self.places(cache.base)), cache.base, grads)
        if cache.ids is not None:
            n = len(self.token_indices)
            grads.add(self.token_rows, ops.token_rows_gradients(dy, self.places(cache.ids), n))

    def places(self, ids: Array) -> Array:
        return ops.token_places(ids, self.indices, len(self.weight.data))


class TokenRowsLinearCache(NamedTuple):
    base: Any
    x: Array | None  # (..., C)     None where T is frozen


class TokenRowsLinear(TokenRows):
    """y = x W'ᵀ + b, W' = W with the rows T            x (..., C)   T (n, C)   W (V, C)   b (V,), optional"""

    base_type = Linear
    slots = (Slot("token_rows", "trainable_tokens_delta", ("tokens", "n_in")),)
    kept = (Kept("x", "n_in", "dT = dz_Iᵀ x", ("token_rows",)),)
    products = Products(
        forward="2 * tokens * n_in",
        backward="2 * tokens * n_in",
        gradients={("token_rows",): "2 * tokens * n_in"},
    )

    def forward(self, x: Array, inputs: Inputs = Inputs(), run: Pass = Pass()) -> tuple[Array, TokenRowsLinearCache]:
        z, cb = self.base.forward(x, inputs, run)
        b = None if self.base.bias is None else self.base.bias.data
        z, x = ops.token_columns_forward(z, x, self.token_rows.data, self.indices, b)
        return z, TokenRowsLinearCache(cb, x if self.token_rows.trainable else None)

    def backward(self, dz: Array, cache: TokenRowsLinearCache, grads: Gradients) -> Array | None:
        rest, dz_I = ops.token_columns_backward(dz, self.indices)
        if cache.x is not None:
            grads.add(self.token_rows, ops.linear_gradients(dz_I, cache.x))
        if cache.base.needs_db:  # b is in all columns
            self.base.backward(dz, cache.base._replace(x=None, needs_dx=False), grads)
        dx = self.base.backward(rest, cache.base._replace(needs_db=False), grads)
        if dx is not None:
            dx += ops.linear_backward(dz_I, self.token_rows.data)
        return dx


TokenRowsEmbedding.tied_head = TokenRowsLinear
