"""Activated LoRA: a LoRA that is on from its invocation in a text on, or for the tokens that a mask names. The maths is
in ops/alora.py. Greenewald et al. (2025), "Activated LoRA: Fine-tuned LLMs for intrinsics".

    attach(model, "alora", ["q_proj", "v_proj"], invocation_tokens=tokenizer.encode("<judge>").tolist(), rng=0)
    model.forward(ids)                                  # on from the last "<judge>" of each text on
    model.forward(ids, Inputs(active=is_image))         # on for these tokens, such as those of one modality

What comes before an invocation is the base's, keys and values too: go_on_from() takes a KV cache of the base.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, ClassVar, NamedTuple, NoReturn

from .. import ops
from ..backend import Array
from ..models.transformer import Transformer
from ..nn import Gradients, Inputs, KVCache, Module, Part, Pass
from ..nn.inputs import sort_rows
from ..ops.rows import rows
from .base import Adapter, Law, Option, dropped
from .lora import LoRALinear
from .many import Many


class ALoRALinearCache(NamedTuple):
    base: Any
    x: Array | None  # (n, in)   of the tokens that are on, after dropout; (..., in) where all are; None: A is frozen
    h: Array | None  # (n, r)    None where B is frozen
    keep: Array | None  # as x, the dropout mask
    on: Array | None  # (N,) bool; None: all


class ALoRALinear(LoRALinear):
    """y = x W₀ᵀ + b + on ∘ s (x Aᵀ) Bᵀ        on: 0 or 1 for each token; A, B and s as LoRALinear's

    `on` is Inputs.active, where that is given; else 1 from the last occurrence of `invocation_tokens` in each text on,
    and 0 everywhere in a text without one, as PEFT's. Tokens that are read with a KV cache count it over all that was
    read (Inputs.text): a token that is generated is on if its text has an invocation by then. A layer that is run by
    itself, without a model's ids, is on for all. Start, dropout and training are LoRALinear's.
    Raises ValueError as LoRALinear does; in merged(), as it cannot be merged; and in forward for a layer of a head that
    reads one token of each text.
    """

    variant = "alora"
    keys = LoRALinear.keys._replace(
        inits=(True, False),
        fixed={key: value for key, value in LoRALinear.keys.fixed.items() if key != "alora_invocation_tokens"},
    )
    start_options = ()
    options = (*LoRALinear.options, Option("invocation_tokens", "alora_invocation_tokens", (), in_a_row=True))
    laws: ClassVar[dict[str, Law]] = LoRALinear.laws
    examples: ClassVar[dict[str, dict[str, Any]]] = {
        "": {"r": 3, "alpha": 5, "invocation_tokens": (1,)},
        " with dropout": {"r": 3, "alpha": 5, "dropout": 0.4, "invocation_tokens": (1,)},
    }
    invocation_tokens: tuple[int, ...]

    @classmethod
    def start(cls, base: Module, *, rng: Any, **options: Any) -> ALoRALinear:
        cls.check(base, **options)
        tokens = options.pop("invocation_tokens", ())
        lora = LoRALinear.start(base, rng=rng, **options)
        return cls.of(base, lora.own_parameters(), **lora.settings, invocation_tokens=tokens)

    def active(self, x: Array, inputs: Inputs, run: Pass) -> Array | None:
        """on (N,); None: everywhere."""
        kv_cache, on = run.kv_cache, inputs.active
        if on is None and inputs.text is None:
            return None
        if on is None:
            if not self.invocation_tokens:
                raise ValueError("the adapter has no invocation_tokens: say where it acts, Inputs(active=mask)")
            everywhere = ("on", self.invocation_tokens), ops.from_last_occurrence, inputs.text, self.invocation_tokens
            on = run.once(*everywhere)
            if kv_cache and on[:, : kv_cache.borrowed].any():
                raise ValueError(
                    f"the invocation {list(self.invocation_tokens)} begins among the {kv_cache.borrowed} tokens that "
                    "the base has read: let the base read only what comes before it"
                )
            on = on[:, kv_cache.length if kv_cache else 0 :]
        if x.ndim == 2 and inputs.labelled is not None:
            on = on[inputs.labelled]
        elif x.shape[:-1] == (len(on), x.shape[-2]):
            on = on[:, : x.shape[-2]]
        if on.shape != x.shape[:-1]:
            raise ValueError("an activated LoRA acts on tokens, and this layer reads one of each text: take it out")
        return on.reshape(-1)

    def path_forward(self, x: Array, inputs: Inputs, run: Pass) -> tuple[Array, Any]:
        on = self.active(x, inputs, run)
        if on is None:
            y, cache = super().path_forward(x, inputs, run)
            return y, ALoRALinearCache(*cache, on)
        A, B = self.lora_A, self.lora_B
        x, keep = dropped(x, self.dropout, run.rng)
        y, (x, h) = ops.alora_forward(x, A.data, B.data, self.scaling, on)
        return y, ALoRALinearCache(None, x if A.trainable else None, h if B.trainable else None, keep, on)

    def path_backward(self, dy: Array, cache: Any, grads: Gradients, needs_dx: bool) -> Array:
        if cache.on is None:
            return super().path_backward(dy, cache, grads, needs_dx)
        dx, dh = ops.alora_backward(dy, self.lora_A.data, self.lora_B.data, self.scaling, cache.on)
        if cache.x is not None:
            grads.add(self.lora_A, ops.lora_A_gradients(dh, cache.x))
        if cache.h is not None:
            grads.add(self.lora_B, ops.lora_B_gradients(rows(dy)[cache.on], cache.h, self.scaling))
        return dx if cache.keep is None else ops.dropout_backward(dx, cache.keep)

    def merged(self) -> NoReturn:
        raise ValueError("an activated LoRA cannot be merged: it acts on some tokens, and a weight acts on all")

    def in_file(self) -> ALoRALinear:
        if not self.invocation_tokens:
            raise ValueError("PEFT's file says where an activated LoRA acts by its invocation_tokens, and it has none")
        return self

    @classmethod
    def join_parts(cls, base: Module, parts: list[Any]) -> ALoRALinear:
        """As LoRALinear's, where all parts have one invocation."""
        invocations = {part.invocation_tokens for part in parts if part.is_adapter}
        if len(invocations) > 1:
            raise ValueError("the parts of a fused layer differ in invocation_tokens, and one adapter has one of each")
        lora = LoRALinear.join_parts(base, parts)
        return cls.of(base, lora.own_parameters(), **lora.settings, invocation_tokens=invocations.pop())


def go_on_from(model: Transformer, kv_cache: KVCache, adapters: Sequence[str | None] | None = None) -> KVCache:
    """A copy of a KV cache of the base, from which activated adapters go on: what comes before an invocation has the
    base's keys and values, so one reading of a text serves them all.

        model.forward(ids, run=Pass(kv_cache=read))                 # of the base, with or without adapters in place
        mine = go_on_from(model, read, ["fr", "de", None])          # of Inputs.adapters, or None
        model.forward(more, Inputs(adapters=["fr", "de", None]), Pass(kv_cache=mine))

    A cache of one text serves as many rows as there are names; `kv_cache` itself stays as it is. The invocation must
    begin in what is read afterwards, which is checked then. Raises ValueError for a cache that is not the base's, and
    for adapters that are not all activated ones.
    """
    names = None if adapters is None else tuple(adapters)
    readers, goers = acting(kv_cache.layers, kv_cache.adapters or ()), acting(model.modules(), names or ())
    wrong = next((a for a in (*readers, *goers) if not isinstance(a, ALoRALinear)), None)
    if wrong is not None:
        kind = wrong.variant if isinstance(wrong, Adapter) else type(wrong).__name__
        raise ValueError(
            f"a {kind} acts on all tokens, so its keys and values are not the base's: read the text with a new KVCache"
        )
    invoked = any(
        ops.from_last_occurrence(kv_cache.ids[:, : kv_cache.length], a.invocation_tokens).any() for a in readers
    )
    if not kv_cache.length or invoked or plain(kv_cache.layers) != plain(model.modules()):
        raise ValueError("the base of this model did not fill the KV cache: read the text with it first")
    order = [*range(len(kv_cache.ids))]
    if names is not None:
        one = len(kv_cache.ids) == 1
        order = [0] * len(names) if one else sort_rows(names)[2].tolist()
    mine = kv_cache.take(order, model.modules(), names)
    mine.borrowed = kv_cache.length
    return mine


def acting(layers: Sequence[Module], names: Collection[str | None]) -> list[Any]:
    """Of a model's layers those that are adapters: of rows with these names, where each row has its own."""
    many = [m for m in layers if isinstance(m, Many)]
    if many:
        return [m.adapters[name] for m in many for name in names if name in m.adapters]
    return [m for m in layers if isinstance(m, Adapter) and m.slots]


def plain(layers: Sequence[Module]) -> set[Module]:
    return {m for m in layers if not m.is_adapter and not isinstance(m, Part)}
