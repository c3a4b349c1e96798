"""One method on one model, counted: an Account."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..spelling import choose_from
from .architecture import Architecture, Shape
from .flops import Flops, flops
from .memory import DTYPES, QUANTISED, Entry, adapter_bytes, added_tensors, itemsize, ledger, size, weight_bytes
from .methods import Plan, is_whole, plan
from .named import architecture

GROUPS = ("embedding", "attention", "mlp", "norm", "head")


@dataclass(frozen=True)
class Account:
    """A method on a model: parameters, and for `batch` sequences of `tokens` the bytes and FLOPs of one training step.

    `dtype` is the base's; what is added is trained in float32 (float64 beside a float64 base), as PEFT does. Two
    numbers of optimizer state (Adam's m and v) go with each trained parameter, in its own dtype.
    """

    model: Architecture
    plan: Plan
    batch: int
    tokens: int
    dtype: str
    recompute: bool

    @property
    def total(self) -> int:
        """Parameters of the base, without what is added."""
        return sum(map(size, self.model.tensors().values()))

    @property
    def trained(self) -> dict[str, Shape]:
        """{name: shape} of all that learns: tensors of the base by our paths, added ones as in PEFT's file."""
        shapes = self.model.tensors()
        return {path: shapes[path] for path in shapes if path in self.plan.trained} | self.added()

    def added(self) -> dict[str, Shape]:
        return added_tensors(self.model, self.plan, trained=True)

    @property
    def trainable(self) -> int:
        return sum(map(size, self.trained.values()))

    @property
    def share(self) -> float:
        """trainable / total; more than 1 is possible, since the total does not contain the adapter."""
        return self.trainable / self.total

    @property
    def adapter_bytes(self) -> int:
        return adapter_bytes(self.model, self.plan, self.dtype)

    def groups(self) -> dict[str, int]:
        """Parameters of the base by what they belong to."""
        counts = dict.fromkeys(GROUPS, 0)
        for path, shape in self.model.tensors().items():
            counts[group_of(path)] += size(shape)
        return counts

    def ledger(self) -> list[Entry]:
        return ledger(self.model, self.plan, self.batch, self.tokens, self.dtype, recompute=self.recompute)

    @property
    def added_itemsize(self) -> int:
        return max(4, itemsize(self.dtype))

    def trained_bytes(self) -> int:
        """Of everything that learns, once."""
        added = sum(map(size, self.added().values()))
        return (self.trainable - added) * itemsize(self.dtype) + added * self.added_itemsize

    def memory(self) -> dict[str, int]:
        """Bytes: weights (with what is added), gradients, optimizer, activations."""
        added = self.added() | added_tensors(self.model, self.plan, trained=False)
        trained = self.trained_bytes()
        return {
            "weights": weight_bytes(self.model, self.dtype) + sum(map(size, added.values())) * self.added_itemsize,
            "gradients": trained,
            "optimizer": 2 * trained,
            "activations": sum(entry.nbytes for entry in self.ledger()),
        }

    def flops(self) -> tuple[Flops, Flops]:
        """Forward and backward of the step."""
        return flops(self.model, self.plan, self.batch, self.tokens, recompute=self.recompute)


def count(
    source: str | Path | Mapping[str, Any] | Architecture,
    method: str = "lora",
    *,
    targets: str | Collection[str] | None = None,
    r: int = 8,
    virtual_tokens: int = 8,
    head: str | None = None,
    labels: int | None = None,
    batch: int = 1,
    tokens: int | None = None,
    dtype: str | None = None,
    recompute: bool = False,
) -> Account:
    """Lay `method` out (see `plan`) over a model: a name in NAMED, a config.json (see `architecture`), an Architecture.

    dtype: float64, float32, float16, bfloat16, "nf4" or "nf4-dq" (qlora's own). tokens: 512, where the model has as
    many positions; a vision model has its own number. Virtual tokens take positions too. Raises what those two raise,
    and ValueError for a batch below 1, for another number of tokens than the model can, for a method that trains
    weights in 4 bits, and for qlora in more than 4.
    """
    model = source if isinstance(source, Architecture) else architecture(source, head, labels)
    laid_out = plan(model, method, targets, r, virtual_tokens)
    dtype = dtype or ("nf4-dq" if method == "qlora" else "float32")
    if dtype not in DTYPES:
        raise ValueError(f"no dtype is called {dtype!r}: {choose_from(dtype, DTYPES)}")
    if dtype in QUANTISED and method in ("full", "top2"):
        raise ValueError(f"{method} trains the weights themselves, which 4 bits cannot hold: choose another dtype")
    if method == "qlora" and dtype not in QUANTISED:
        raise ValueError(
            f"qlora is over a base in 4 bits, {' or '.join(QUANTISED)}, not in {dtype}: lora is what that is"
        )
    if not is_whole(batch) or batch < 1:
        raise ValueError(f"a batch of {batch!r} sequences is not a whole number above 0")
    room = model.context - (0 if model.tokens else laid_out.virtual_tokens)
    if tokens is None:
        tokens = model.tokens or max(1, min(512, room))
    if model.tokens and tokens != model.tokens:
        raise ValueError(f"{model.name} looks at {model.tokens} tokens, its patches and what it adds, not at {tokens}")
    if not model.tokens and not (is_whole(tokens) and 1 <= tokens <= room):
        beside = f", less {laid_out.virtual_tokens} virtual tokens" if laid_out.virtual_tokens else ""
        raise ValueError(f"{tokens!r} tokens are not from 1 to {model.name}'s {model.context} positions{beside}")
    return Account(model, laid_out, batch, tokens, dtype, recompute)


def group_of(path: str) -> str:
    name = path.removesuffix(".weight").removesuffix(".bias")
    if "norm" in name.rpartition(".")[2]:
        return "norm"
    if "attention." in name:
        return "attention"
    if ".mlp." in name or name == "conv":
        return "mlp"
    return "embedding" if name.startswith("embed") else "head"
