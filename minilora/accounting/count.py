"""One method on one model, counted: an Account."""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from .. import nn
from ..adapters import DEFAULT
from ..models.quantized import format_of
from ..models.transformer import Transformer
from ..nn import Checkpointed, Costs, KeptArray, Parameter
from ..nn.costs import Shape
from ..quantization import Quantized
from ..spelling import choose_from
from .flops import Flops, total
from .memory import (
    DTYPES,
    IN_4_BITS,
    ITEMSIZE,
    QUANTISED,
    Held,
    adapter_bytes,
    added_tensors,
    decoded_bytes,
    has_file,
    held_weights,
    itemsize,
    loss_keeps,
    step_costs,
)
from .methods import OVER_4_BITS, TRAINS_WEIGHTS, apply_method, is_whole, virtual_tokens
from .named import without_weights, zeros

GROUPS = ("embedding", "attention", "mlp", "norm", "head")


@dataclass(frozen=True)
class Account:
    """A method on a model: parameters, and for `batch` sequences of `tokens` the bytes and FLOPs of one training step.

    `dtype` is the base's; what is Quantized in it is counted as it is held. What is added is trained in float32
    (float64 beside a float64 base), as PEFT does. Two numbers of optimizer state (Adam's m and v) go with each trained
    parameter, in its own dtype.
    """

    name: str
    model: Transformer  # what is trainable in it is what the method trains
    method: str
    batch: int
    tokens: int
    dtype: str
    source_tokens: int | None = None  # of an encoder-decoder, those of each source; None: `tokens` too

    @cached_property
    def parameters(self) -> dict[str, Parameter]:
        """{path: Parameter} of the base, a tied one once."""
        return self.model.base_parameters()

    @property
    def tensors(self) -> dict[str, Shape]:
        """{path: shape} of them."""
        return {path: p.data.shape for path, p in self.parameters.items()}

    @property
    def total(self) -> int:
        """Parameters of the base, without what is added."""
        return sum(map(math.prod, self.tensors.values()))

    @cached_property
    def added(self) -> dict[str, Shape]:
        """{name in PEFT's file: shape} of what is added and trained."""
        return added_tensors(self.model, trained=True)

    @property
    def trained(self) -> dict[str, Shape]:
        """{name: shape} of all that is trained: tensors of the base by our paths, added ones as in PEFT's file."""
        return {path: p.data.shape for path, p in self.parameters.items() if p.trainable} | self.added

    @property
    def trainable(self) -> int:
        return sum(map(math.prod, self.trained.values()))

    @property
    def share(self) -> float:
        """trainable / total; more than 1 is possible, since the total does not contain the adapter."""
        return self.trainable / self.total

    @property
    def has_file(self) -> bool:
        return has_file(self.model)

    @cached_property
    def adapter_bytes(self) -> int:
        return adapter_bytes(self.model, self.dtype)

    def groups(self) -> dict[str, int]:
        """Parameters of the base by what they belong to."""
        counts = dict.fromkeys(GROUPS, 0)
        for path, shape in self.tensors.items():
            counts[group_of(path)] += math.prod(shape)
        return counts

    @property
    def virtual_tokens(self) -> int:
        return virtual_tokens(self.model)

    @property
    def recompute(self) -> bool:
        """Whether blocks are run again for their backward."""
        return any(isinstance(layer, Checkpointed) for layer in self.model.layers.values())

    @cached_property
    def costs(self) -> Costs:
        """Of the step, layer by layer."""
        return step_costs(self.model, self.batch, self.tokens, self.computed, source_tokens=self.source_tokens)

    def ledger(self) -> list[KeptArray]:
        """What is alive when forward and loss end."""
        kept = self.costs.alive()
        return kept and kept + loss_keeps(self.model, self.batch, self.tokens, self.computed)

    @property
    def computed(self) -> str:
        """The dtype of activations: a live quantised model's own; beside a base counted in 4 or 8 bits, bfloat16."""
        if format_of(self.model):
            return self.model.config.dtype
        return self.dtype if self.dtype in ITEMSIZE else "bfloat16"

    @property
    def added_itemsize(self) -> int:
        return max(4, itemsize(self.computed))

    def trained_bytes(self) -> int:
        """Bytes of all trained parameters, counted once."""
        added = sum(map(math.prod, self.added.values()))
        return (self.trainable - added) * ITEMSIZE.get(self.dtype, 4) + added * self.added_itemsize

    def weights(self) -> dict[str, Held]:
        """{kind of array: its bytes} of the base, and of what is added."""
        shapes = [*self.added.values(), *added_tensors(self.model, trained=False).values()]
        added = sum(map(math.prod, shapes))
        held = held_weights(self.model, self.dtype)
        return held | {"added": Held(added * self.added_itemsize, added)} if added else held

    @property
    def decoded(self) -> int:
        """Bytes of the rows of a quantised matrix that are decoded at a time, and freed after their product."""
        return decoded_bytes(self.model, self.dtype, self.computed)

    def memory(self) -> dict[str, int]:
        """Bytes: weights (with what is added), gradients, optimizer, activations."""
        trained = self.trained_bytes()
        return {
            "weights": sum(held.nbytes for held in self.weights().values()),
            "gradients": trained,
            "optimizer": 2 * trained,
            "activations": sum(array.nbytes for array in self.ledger()),
        }

    def flops(self) -> tuple[Flops, Flops]:
        """Forward and backward of the step."""
        return total(self.costs.forward), total(self.costs.backward + self.costs.again)


def count(
    source: str | Path | Mapping[str, Any] | Transformer,
    method: str = DEFAULT,
    *,
    targets: str | Collection[str] | None = None,
    r: int | None = None,
    virtual_tokens: int = 8,
    head: str | None = None,
    labels: int | None = None,
    batch: int = 1,
    tokens: int | None = None,
    source_tokens: int | None = None,
    dtype: str | None = None,
    recompute: bool = False,
) -> Account:
    """`method` (see `apply_method`) on a model: a live one as it was before anything was added or frozen, or what
    `without_weights` builds.

    dtype: float64, float32, float16, bfloat16, or for methods that leave the weights as they are "int8", "nf4" or
    "nf4-dq"; by default the format of a live quantised model, "nf4-dq" for qlora, and otherwise float32. tokens: by
    default 512, or fewer if the model has fewer positions. source_tokens: those that an encoder reads, by default as
    many. Virtual tokens take positions too. Raises what those two raise, and ValueError for a batch below 1, for more
    tokens than positions, for source_tokens of a model that reads no source, for a method that trains the weights of a
    base in 4 or 8 bits, and for qlora on a dtype that is not of 4 bits.
    """
    if isinstance(source, Transformer):
        name, model = f"this {source.family}", plain_copy(source, keep_formats=dtype is None)
    else:
        name, model = without_weights(source, head, labels)
    apply_method(method, model, name, targets, r, virtual_tokens)
    if recompute:
        nn.recompute(model)
    held = format_of(model)
    dtype = dtype or held or ("nf4-dq" if method in OVER_4_BITS else "float32")
    if dtype not in DTYPES and not held:
        raise ValueError(f"no dtype is called {dtype!r}: {choose_from(dtype, DTYPES)}")
    if (held or dtype in QUANTISED) and method in TRAINS_WEIGHTS:
        raise ValueError(f"{method} trains the weights themselves, which {dtype} cannot hold: choose another dtype")
    if method in OVER_4_BITS and dtype not in IN_4_BITS:
        raise ValueError(f"{method} is over a base in 4 bits, {' or '.join(IN_4_BITS)}, not in {dtype}")
    if not is_whole(batch) or batch < 1:
        raise ValueError(f"a batch of {batch!r} sequences is not a whole number above 0")
    if source_tokens is not None and not model.reads_source:
        raise ValueError(f"{name} reads no source: leave source_tokens out (--source-tokens)")
    tokens = check_tokens(tokens, name, model)
    if model.reads_source:
        source_tokens = check_tokens(source_tokens or tokens, name, model)
    return Account(name, model, method, batch, tokens, dtype, source_tokens)


def check_tokens(tokens: int | None, name: str, model: Transformer) -> int:
    positions, prompt = model.config.max_length, virtual_tokens(model)
    if model.config.image_size:
        if tokens not in (None, positions) or prompt:
            size = model.config.image_size
            raise ValueError(f"{name} reads images of {size} x {size}, which are {positions} tokens, not more or fewer")
        return positions
    if tokens is None:
        return max(1, min(512, positions - prompt))
    if not (is_whole(tokens) and 1 <= tokens <= positions - prompt):
        beside = f", less {prompt} virtual tokens" if prompt else ""
        raise ValueError(f"{tokens!r} tokens are not from 1 to {name}'s {positions} positions{beside}")
    return tokens


def plain_copy(model: Transformer, keep_formats: bool) -> Transformer:
    """The model without what was added to it, everything trainable but what is Quantized; which is that only where
    `keep_formats`. The arrays are the model's own."""
    made = copy.deepcopy(model, {id(p.data): p.data for p in model.parameters()})
    for path, module in reversed(list(made.named_modules())):
        if isinstance(module, Checkpointed):
            made[path] = module.block
        if module.is_adapter:
            made[path] = module.base  # type: ignore[attr-defined]
    for parameter in made.parameters():
        if isinstance(parameter.data, Quantized) and not keep_formats:
            parameter.data = zeros(*parameter.data.shape)
        parameter.trainable = not isinstance(parameter.data, Quantized)
    return made


def group_of(path: str) -> str:
    name = path.removesuffix(".weight").removesuffix(".bias")
    if "norm" in name.rpartition(".")[2]:
        return "norm"
    if "attention." in name:
        return "attention"
    if ".mlp." in name:
        return "mlp"
    return "embedding" if name.startswith("embed") else "head"
