"""What each method of fine-tuning trains of a model, and adds to it.

    full            everything
    top2            the last two blocks                               (Li, Liang, 2021)
    prefix-embed    C l                the embeddings of l virtual tokens               (Hu et al., 2021, section 5.1)
    prefix-layer    L C l              the activations of l virtual tokens after each of L blocks
    adapter-…       Σ (2 C r + r + C)  C -> r -> C, with biases: houlsby after attention and MLP, pfeiffer after the
                                       MLP, lin after the MLP with a layer norm of its own, + 2 C
    qlora           Σ r (in + out)     LoRA over a base in 4 bits                       (Dettmers et al., 2023)

and every variant that has a file in adapters/; for token-rows `virtual_tokens` is the number of trained rows. Σ runs
over the adapted layers. The classes below have no forward: they state what an adapter-… adds, keeps and multiplies.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from numbers import Integral
from typing import Any, ClassVar

import numpy as np

from ..adapters import DEFAULT
from ..adapters.attach import attach_without_weights
from ..adapters.base import Adapter
from ..adapters.registry import variants
from ..adapters.statements import Kept, Option, Products, Slot
from ..adapters.targets import choose, last
from ..models.transformer import Transformer
from ..nn import Block, Costs, Linear, MetaArray, Module, Parameter
from ..spelling import choose_from

# ---- adapters after a layer, which have no file ----


class Bottleneck(Adapter):
    """After a Linear; PEFT has no file format for it."""

    base_type = Linear
    options = (Option("r", "r", 8),)
    slots: ClassVar[tuple[Slot, ...]] = (
        Slot("down", "down.weight", ("r", "n_out")),
        Slot("down_bias", "down.bias", ("r",)),
        Slot("up", "up.weight", ("n_out", "r")),
        Slot("up_bias", "up.bias", ("n_out",)),
    )
    kept: ClassVar[tuple[Kept, ...]] = (
        Kept("y", "n_out", "dW_down"),
        Kept("slope", "r", "through the nonlinearity"),
        Kept("z", "r", "dW_up"),
    )
    products = Products(
        forward="4 * r * n_out",
        backward="4 * r * n_out",
        without_dx="4 * r * n_out",
        gradients={("down",): "2 * r * n_out", ("up",): "2 * r * n_out"},
    )


class BottleneckWithNorm(Bottleneck):
    slots = (*Bottleneck.slots, Slot("gain", "norm.weight", ("n_out",)), Slot("shift", "norm.bias", ("n_out",)))
    kept = (
        *Bottleneck.kept,
        Kept("x̂", "n_out", "through the norm, and dg"),
        Kept("σ", "1", "through the norm"),
    )


BOTTLENECKS: dict[str, type[Adapter]] = {
    "adapter-houlsby": Bottleneck,
    "adapter-pfeiffer": Bottleneck,
    "adapter-lin": BottleneckWithNorm,
}


class VirtualTokens(Module):
    """Virtual tokens before those of a sequence, of a prompt or a prefix; `weight` is what is trained of them."""

    is_adapter = True

    def __init__(self, base: Module, tokens: int, name: str, shape: tuple[int, ...], peft_type: str = "") -> None:
        self.base, self.tokens, self.name, self.peft_type = base, tokens, name, peft_type
        self.weight = Parameter(np.broadcast_to(np.zeros((), np.float32), shape))

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        yield prefix, self
        yield from self.base.named_modules(prefix)

    def own_parameters(self) -> dict[str, Parameter]:
        return {self.name: self.weight}

    def costs(self, ids: MetaArray, costs: Costs) -> MetaArray:
        B, T = ids.shape
        return self.base.costs(costs.array(B, self.tokens + T, itemsize=ids.itemsize), costs)


def virtual_tokens(model: Transformer) -> int:
    embed = model.layers["embed"]
    return embed.tokens if isinstance(embed, VirtualTokens) else 0


# ---- methods ----

TRAINED = {  # method -> what it trains, of the base or of the virtual tokens
    "full": "every parameter",
    "top2": "the last two blocks",
    "prefix-embed": "C l",
    "prefix-layer": "L C l",
}
USUAL_TARGETS = {
    "qlora": "all-linear",
    "adapter-houlsby": ("o_proj", "down_proj"),
    "adapter-pfeiffer": ("down_proj",),
    "adapter-lin": ("down_proj",),
}
OVER_4_BITS = ("qlora",)
TRAINS_WEIGHTS = ("full", "top2")  # so the base cannot be in 4 or 8 bits
TARGETED = (*variants(), "qlora")  # whose layers can be chosen
METHODS = (*TRAINED, *dict.fromkeys((*TARGETED, *BOTTLENECKS)))


def apply_method(
    method: str, model: Transformer, name: str, targets: str | Collection[str] | None, r: int | None, prompt: int
) -> None:
    """Freeze a model without weights, except for what `method` trains of it, and add what the method adds.

    `targets`: as in attach(), "all-linear" being every Linear of the blocks; None, the method's usual ones. r is the
    rank, or a bottleneck's width; None, the variant's own, or 8. `prompt`: the number of virtual tokens. A new
    classification head is trained whatever the method. `name` is the model's, for errors.

    Raises ValueError for a method that is not known, targets that match nothing or that the method does not take, a
    rank below 1, and one above min(in, out) where it comes from the SVD of W; of others a warning says that.
    """
    if method not in METHODS:
        raise ValueError(f"no method is called {method!r}: {choose_from(method, METHODS)}")
    if targets is not None and method not in TARGETED:
        raise ValueError(f"{method} has no targets to choose")
    if not is_whole(prompt) or prompt < 1:
        raise ValueError(f"{prompt!r} virtual tokens are not a whole number above 0")
    if r is not None and (not is_whole(r) or r < 1):
        raise ValueError(f"rank {r!r} is not a whole number from 1 up")
    if method == "full":
        return
    blocks = [layer for layer in model.layers.values() if isinstance(layer, Block)]
    trained = [p for path, layer in model.layers.items() if path.startswith("classifier") for p in layer.parameters()]
    embed, C = model.layers["embed"], model.config.d_model
    model.freeze()
    if method == "top2":
        trained += [parameter for block in blocks[-2:] for parameter in block.parameters()]
    elif method.startswith("prefix") and model.reads_source:
        raise ValueError(f"{method} is counted for a model of one stack, and {name} has an encoder too")
    elif method == "prefix-embed":
        model.layers["embed"] = VirtualTokens(
            embed, prompt, "prompt_embeddings", (prompt, C), peft_type="PROMPT_TUNING"
        )
    elif method == "prefix-layer":
        model.layers["embed"] = VirtualTokens(embed, prompt, method, (len(blocks), C, prompt))
    else:
        add_adapters(method, model, targets, None if r is None else int(r), int(prompt))
    for parameter in trained:
        parameter.trainable = True


def add_adapters(
    method: str, model: Transformer, targets: str | Collection[str] | None, r: int | None, tokens: int
) -> None:
    """`tokens`: their number, for a variant that trains something for each of some tokens."""
    wanted = usual_targets(model, method) if targets is None else targets
    if wanted == "all-linear":
        wanted = [path for path, m in model.named_modules() if isinstance(m, Linear) and "block_" in path]
    if method not in BOTTLENECKS:
        variant = method if method in variants() else DEFAULT
        known = [option for cls in variants()[variant] for option in cls.options]
        options: dict[str, Any] = {"r": r} if r and any(option.name == "r" for option in known) else {}
        ids = [option.name for option in known if option.is_ids]
        options |= dict.fromkeys(ids, tuple(range(tokens)))
        attach_without_weights(model, variant, wanted, **options)
        return
    for path in choose(model, wanted or ()):
        model[path] = BOTTLENECKS[method].without_weights(model[path], r=r or 8)


def usual_targets(model: Transformer, method: str) -> str | Collection[str] | None:
    """The method's own, or its classes', or q_proj and v_proj; of a fused projection the whole. None: all it can."""
    classes = variants().get(method, [])
    if classes and not any(cls.targets for cls in classes):
        return None
    usual = USUAL_TARGETS.get(method) or [t for cls in classes for t in cls.targets] or ["q_proj", "v_proj"]
    names = {last(path) for path, _ in model.named_modules()}
    if isinstance(usual, str) or "qkv_proj" not in names:
        return usual
    return list(dict.fromkeys("qkv_proj" if t in ("q_proj", "k_proj", "v_proj") else t for t in usual))


def is_whole(x: Any) -> bool:
    """Whether x is an integer, of NumPy too, and not a bool."""
    return isinstance(x, Integral) and not isinstance(x, bool)
