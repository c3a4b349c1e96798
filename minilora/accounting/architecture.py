"""A model without its weights: the ops of one forward, in order, each knowing its tensors and its input.

Everything that is counted (parameters, bytes kept for backward, FLOPs) is a sum over this list. An architecture comes
from a name or a Hugging Face config.json (named.py), or from a live model (live.py). Paths are ours:
block_0.attention.q_proj; names.py says what Hugging Face calls them.

Dims: C width, F hidden width, V vocabulary, H heads, G key/value heads, D head width, T tokens, B sequences.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

from .. import nn
from ..ops.blockwise_attention import BLOCK, first_key

Shape: TypeAlias = tuple[int, ...]


@dataclass(frozen=True)
class Table:
    """An embedding: W (rows, width). It is looked up with ids for the "batch" (B, T), or for its "positions" (T,), or
    (with "") read whole."""

    path: str
    rows: int
    width: int
    ids: str = "batch"

    def tensors(self) -> dict[str, Shape]:
        return {f"{self.path}.weight": (self.rows, self.width)}


@dataclass(frozen=True)
class Vector:
    """A parameter that is added and does nothing else: a class token, positions that are no table."""

    path: str
    shape: Shape

    def tensors(self) -> dict[str, Shape]:
        return {self.path: self.shape}


@dataclass(frozen=True)
class Linear:
    """y = x Wᵀ + b.  `x` names the array it reads; layers that read the same array share what is kept of it."""

    path: str
    n_in: int
    n_out: int
    bias: bool
    x: str
    tied: str = ""  # the path of the table whose weight it uses
    rows: int | None = None  # of x, for each sequence; None: one for each token
    shape: Shape = ()  # of the weight in the file, where it is not (out, in)

    def tensors(self) -> dict[str, Shape]:
        weight = {} if self.tied else {f"{self.path}.weight": self.shape or (self.n_out, self.n_in)}
        return weight | ({f"{self.path}.bias": (self.n_out,)} if self.bias else {})

    @property
    def weight(self) -> str:
        return f"{self.tied or self.path}.weight"


@dataclass(frozen=True)
class Norm:
    """Layer norm, or (without a bias) RMS norm."""

    path: str
    width: int
    bias: bool

    def tensors(self) -> dict[str, Shape]:
        gain: dict[str, Shape] = {f"{self.path}.weight": (self.width,)}
        return gain | ({f"{self.path}.bias": (self.width,)} if self.bias else {})


@dataclass(frozen=True)
class Attention:
    """softmax(q kᵀ/√D + mask) v.  `relative` > 0: DeBERTa's two products with so many embeddings of distances.

    `causal`: a query sees no later key, and a long sequence is taken in blocks. `window`: nor one so many keys back.
    """

    path: str
    heads: int
    kv_heads: int
    head_dim: int
    rope: bool = False
    fused: bool = False
    relative: int = 0
    causal: bool = False
    window: int | None = None

    def tensors(self) -> dict[str, Shape]:
        return {}

    def blockwise(self, T: int) -> bool:
        """Whether T tokens are so many that ops/blockwise_attention.py computes it."""
        return self.causal and nn.Attention.blockwise_from <= T

    def scores(self, T: int) -> int:
        """How many a head computes for a sequence: T², or those of the blocks that the mask does not hide."""
        if not self.blockwise(T):
            return T * T
        return sum(
            min(BLOCK, T - t) * (min(t + BLOCK, T) - first_key(t, BLOCK, self.window)) for t in range(0, T, BLOCK)
        )


@dataclass(frozen=True)
class Activation:
    """gelu, relu, tanh (one array kept), or swiglu (two)."""

    path: str
    kind: str
    width: int
    rows: int | None = None  # as of a Linear

    def tensors(self) -> dict[str, Shape]:
        return {}


@dataclass(frozen=True)
class Select:
    """One token of each sequence."""

    path: str

    def tensors(self) -> dict[str, Shape]:
        return {}


Op: TypeAlias = Table | Vector | Linear | Norm | Attention | Activation | Select


@dataclass(frozen=True)
class Architecture:
    """`stages`: the embeddings, each block, the rest, in the order of computation, as lists of ops."""

    name: str
    family: str
    head: str
    width: int
    stages: dict[str, list[Op]]
    context: int
    tokens: int | None = None  # a sequence has just so many, as of image patches

    def ops(self) -> Iterator[Op]:
        return (op for stage in self.stages.values() for op in stage)

    def tensors(self) -> dict[str, Shape]:
        """{path: shape} of every parameter, a tied one once."""
        return {path: shape for op in self.ops() for path, shape in op.tensors().items()}

    def linears(self) -> list[Linear]:
        return [op for op in self.ops() if isinstance(op, Linear)]

    def blocks(self) -> list[str]:
        return [name for name in self.stages if "block_" in name]
