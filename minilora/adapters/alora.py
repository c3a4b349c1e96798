"""Activated LoRA: a LoRA that acts only from the last occurrence of its invocation tokens in a text onward. The maths
is in ops/alora.py. Greenewald et al. (2025), "Activated LoRA: Fine-tuned LLMs for intrinsics".

    attach(model, "alora", ["q_proj", "v_proj"], invocation_tokens=tokenizer.encode("<judge>").tolist(), rng=0)
    model.forward(ids)                                  # on from the last "<judge>" in each text

Tokens before an invocation have the base's outputs, keys and values: go_on_from() takes a KV cache of the base.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, ClassVar

from .. import ops
from ..backend import Array
from ..models.transformer import Transformer
from ..nn import FusedLinear, Inputs, KVCache, Module, Part, Pass
from ..nn.inputs import sort_rows
from .base import Adapter, Law
from .lora import LoRALinear
from .many import Many
from .statements import Option


class ALoRALinear(LoRALinear):
    """y = x W₀ᵀ + b + on ∘ s (x Aᵀ) Bᵀ        on: 0 or 1 for each token; A, B and s as LoRALinear's

    `on` is 1 from the last occurrence of `invocation_tokens` to the end of each text, and 0 in a text without one, as
    in PEFT; Inputs.active, if given, replaces it. With a KV cache it is that of the whole text, Inputs.text: a token
    that is generated is on if its text has an invocation by then. A layer that is run by itself, without a model's
    ids, is on for all tokens. Start, dropout and training are LoRALinear's.
    Raises ValueError as LoRALinear does, and for an empty invocation. It cannot be merged.
    """

    variant = "alora"
    mergeable = False
    keys = LoRALinear.keys._replace(
        inits=(True, False),
        fixed={key: value for key, value in LoRALinear.keys.fixed.items() if key != "alora_invocation_tokens"},
    )
    start_options = ()
    reads_text = True
    options = (*LoRALinear.options, Option("invocation_tokens", "alora_invocation_tokens", (), ordered=True))
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

    @classmethod
    def check(cls, base: Module, **options: Any) -> None:
        super().check(base, **options)
        if not options.get("invocation_tokens"):
            raise ValueError(
                "invocation_tokens is empty: name the ids that turn the adapter on, as invocation_tokens=[5, 7]; with "
                "a mask instead, Inputs.active, any adapter parallel to its base will do, such as lora"
            )

    def active(self, inputs: Inputs, run: Pass) -> Array | None:
        if inputs.active is not None or inputs.text is None:
            return inputs.active
        word, kv_cache = self.invocation_tokens, run.kv_cache
        on: Array = run.once(("on", word), ops.from_last_occurrence, inputs.text, word)
        if kv_cache is None:
            return on
        if on[:, : kv_cache.borrowed].any():
            raise ValueError(
                f"the invocation {list(word)} begins among the {kv_cache.borrowed} tokens that the base has read: let "
                "the base read only what comes before it"
            )
        return on[:, kv_cache.length :]

    @classmethod
    def join_parts(cls, base: FusedLinear, parts: list[Any]) -> ALoRALinear:
        """As LoRALinear's, where all parts have one invocation."""
        invocations = {part.invocation_tokens for part in parts if part.is_adapter}
        if len(invocations) > 1:
            raise ValueError("the parts of a fused layer differ in invocation_tokens, and one adapter has one of each")
        lora = LoRALinear.join_parts(base, parts)
        return cls.of(base, lora.own_parameters(), **lora.settings, invocation_tokens=invocations.pop())


def go_on_from(model: Transformer, kv_cache: KVCache, adapters: Sequence[str | None] | None = None) -> KVCache:
    """A copy of a KV cache of the base, from which activated adapters continue: tokens before an invocation have the
    base's keys and values, so one reading of a text serves them all.

        model.forward(ids, run=Pass(kv_cache=read))                 # of the base, with or without adapters in place
        mine = go_on_from(model, read, ["fr", "de", None])          # of Inputs.adapters, or None
        model.forward(more, Inputs(adapters=["fr", "de", None]), Pass(kv_cache=mine))

    A cache of one text serves as many rows as there are names; `kv_cache` itself stays as it is. The invocation must
    begin in what is read afterwards, which is checked then. Raises ValueError for a cache that is not the base's, and
    for adapters that are not all activated ones.
    """
    names = None if adapters is None else tuple(adapters)
    of_cache = active_adapters(kv_cache.layers, kv_cache.adapters or ())
    of_rows = active_adapters(model.modules(), names or ())
    wrong = next((a for a in (*of_cache, *of_rows) if not isinstance(a, ALoRALinear)), None)
    if wrong is not None:
        kind = wrong.variant if isinstance(wrong, Adapter) else type(wrong).__name__
        raise ValueError(
            f"a {kind} acts on all tokens, so its keys and values are not the base's: read the text with a new KVCache"
        )
    invoked = any(
        ops.from_last_occurrence(kv_cache.ids[:, : kv_cache.length], a.invocation_tokens).any() for a in of_cache
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


def active_adapters(layers: Sequence[Module], names: Collection[str | None]) -> list[Any]:
    """The adapters among a model's layers; where each row has its own, those with these names."""
    many = [m for m in layers if isinstance(m, Many)]
    if many:
        return [m.adapters[name] for m in many for name in names if name in m.adapters]
    return [m for m in layers if isinstance(m, Adapter) and m.slots]


def plain(layers: Sequence[Module]) -> set[Module]:
    return {m for m in layers if not m.is_adapter and not isinstance(m, Part)}
