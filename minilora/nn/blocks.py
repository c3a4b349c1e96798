"""MLPs, transformer blocks, and blocks with activation checkpointing."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

from .. import ops
from ..backend import Array, get_array_module
from .costs import Costs, MetaArray
from .inputs import Inputs, Pass
from .module import Gradients, Module, Sequential


class Gelu(Module):
    """y = gelu(x): exact, as in BERT, or, if `approximate`, in the tanh form of GPT-2."""

    def __init__(self, approximate: bool) -> None:
        self.approximate = approximate

    def forward(self, x: Array, inputs: Inputs = Inputs(), run: Pass = Pass()) -> tuple[Array, Array | None]:
        return (ops.gelu_tanh_forward if self.approximate else ops.gelu_forward)(x, run.needs_cache)

    def backward(self, dy: Array, slope: Array, grads: Gradients) -> Array:
        return ops.gelu_backward(dy, slope)

    def costs(self, x: MetaArray, costs: Costs) -> MetaArray:
        costs.keep(self, "dy/dx", costs.array(*x.shape), "dx = dy ∘ dy/dx")
        return costs.array(*x.shape)


class MLP(Module):
    """GPT-2, BERT:     y = down_proj(gelu(up_proj(x)))         T5 has a ReLU in the place of the GELU"""

    def __init__(self, up_proj: Module, gelu: Module, down_proj: Module) -> None:
        self.up_proj, self.gelu, self.down_proj = up_proj, gelu, down_proj

    def forward(self, x: Array, inputs: Inputs = Inputs(), run: Pass = Pass()) -> tuple[Array, Any]:
        h, c1 = self.up_proj.forward(x, inputs, run)
        h, c2 = self.gelu.forward(h, inputs, run)
        y, c3 = self.down_proj.forward(h, inputs, run)
        return y, (c1, c2, c3)

    def backward(self, dy: Array, cache: Any, grads: Gradients) -> Array:
        c1, c2, c3 = cache
        dh = self.down_proj.backward(dy, c3, grads)
        dh = self.gelu.backward(dh, c2, grads)
        return self.up_proj.backward(dh, c1, grads)

    def costs(self, x: MetaArray, costs: Costs) -> MetaArray:
        h = self.gelu.costs(self.up_proj.costs(x, costs), costs)
        return self.down_proj.costs(h, costs)


class GatedMLP(Module):
    """Llama, Gemma:    y = down_proj(act(gate_proj(x)) ∘ up_proj(x))       (Shazeer, 2020, equation 6)

    act is SiLU, or `gelu` if one is given.
    """

    def __init__(self, gate_proj: Module, up_proj: Module, down_proj: Module, gelu: Gelu | None = None) -> None:
        self.gate_proj, self.up_proj, self.down_proj, self.gelu = gate_proj, up_proj, down_proj, gelu

    def project(self, x: Array, inputs: Inputs, run: Pass) -> tuple[Array, Array, Any]:
        """gate, up and the caches of their projections."""
        gate, c1 = self.gate_proj.forward(x, inputs, run)
        up, c2 = self.up_proj.forward(x, inputs, run)
        return gate, up, (c1, c2)

    def project_backward(self, dgate: Array, dup: Array, cache: Any, grads: Gradients) -> Array:
        dx = self.gate_proj.backward(dgate, cache[0], grads)
        dx += self.up_proj.backward(dup, cache[1], grads)
        return dx

    def forward(self, x: Array, inputs: Inputs = Inputs(), run: Pass = Pass()) -> tuple[Array, Any]:
        gate, up, c1 = self.project(x, inputs, run)
        h: Array
        c2: Any
        if self.gelu is None:
            h, c2 = ops.swiglu_forward(gate, up, run.needs_cache)
        else:
            h, c2 = ops.geglu_forward(gate, up, self.gelu.approximate, run.needs_cache)
        y, c3 = self.down_proj.forward(h, inputs, run)
        return y, (c1, c2, c3)

    def backward(self, dy: Array, cache: Any, grads: Gradients) -> Array:
        c1, c2, c3 = cache
        dh = self.down_proj.backward(dy, c3, grads)
        dgate, dup = (ops.swiglu_backward if self.gelu is None else ops.geglu_backward)(dh, c2)
        return self.project_backward(dgate, dup, c1, grads)

    def project_costs(self, x: MetaArray, costs: Costs) -> MetaArray:
        """Add the costs of the projections. Returns up."""
        self.gate_proj.costs(x, costs)
        return self.up_proj.costs(x, costs)

    def costs(self, x: MetaArray, costs: Costs) -> MetaArray:
        act, h = "silu" if self.gelu is None else "gelu", self.project_costs(x, costs)
        costs.keep(self, "dy/dx", costs.array(*h.shape), "dx = dy ∘ dy/dx")
        costs.keep(self, f"{act}(gate)", costs.array(*h.shape), f"dup = dy ∘ {act}(gate)")
        return self.down_proj.costs(costs.array(*h.shape), costs)


class FusedGatedMLP(GatedMLP):
    """Phi-3, ModernBERT: one projection for gate and up,      [gate | up] = gate_up_proj(x)"""

    def __init__(self, gate_up_proj: Module, down_proj: Module, gelu: Gelu | None = None) -> None:
        self.gate_up_proj, self.down_proj, self.gelu = gate_up_proj, down_proj, gelu

    def project(self, x: Array, inputs: Inputs, run: Pass) -> tuple[Array, Array, Any]:
        both, cache = self.gate_up_proj.forward(x, inputs, run)
        F = both.shape[-1] // 2
        return both[..., :F], both[..., F:], cache

    def project_backward(self, dgate: Array, dup: Array, cache: Any, grads: Gradients) -> Array:
        both = get_array_module(dgate).concatenate([dgate, dup], axis=-1)
        dx: Array = self.gate_up_proj.backward(both, cache, grads)
        return dx

    def project_costs(self, x: MetaArray, costs: Costs) -> MetaArray:
        both = self.gate_up_proj.costs(x, costs)
        return costs.array(*both.shape[:-1], both.shape[-1] // 2)


class BlockCache(NamedTuple):
    norm_1: Any
    attention: Any
    norm_2: Any
    mlp: Any


class Block(Module):
    """The parts that all transformer blocks have; x and y (B, T, C)."""

    def __init__(self, norm_1: Module, attention: Module, norm_2: Module, mlp: Module) -> None:
        self.norm_1, self.attention, self.norm_2, self.mlp = norm_1, attention, norm_2, mlp


class PreNormBlock(Block):
    """GPT-2, Llama:    x₁ = x + attention(norm_1(x))       y = x₁ + mlp(norm_2(x₁))"""

    def forward(self, x: Array, inputs: Inputs = Inputs(), run: Pass = Pass()) -> tuple[Array, BlockCache]:
        h, c1 = self.norm_1.forward(x, inputs, run)
        h, c2 = self.attention.forward(h, inputs, self.norm_1.above(run))
        x, run = x + h, run.with_dx()
        h, c3 = self.norm_2.forward(x, inputs, run)
        h, c4 = self.mlp.forward(h, inputs, run)
        return x + h, BlockCache(c1, c2, c3, c4)

    def backward(self, dy: Array, cache: BlockCache, grads: Gradients) -> Array | None:
        dh = self.mlp.backward(dy, cache.mlp, grads)
        dx = dy + self.norm_2.backward(dh, cache.norm_2, grads)
        dh = self.attention.backward(dx, cache.attention, grads)
        dh = None if dh is None else self.norm_1.backward(dh, cache.norm_1, grads)
        return None if dh is None else dx + dh

    def costs(self, x: MetaArray, costs: Costs) -> MetaArray:
        h = self.attention.costs(self.norm_1.costs(x, costs), costs)
        h = self.mlp.costs(self.norm_2.costs(costs.array(*h.shape), costs), costs)
        return costs.array(*h.shape)


class SandwichNormBlockCache(NamedTuple):
    norm_1: Any
    attention: Any
    attention_norm: Any
    norm_2: Any
    mlp: Any
    mlp_norm: Any


class SandwichNormBlock(Block):
    """Gemma:           x₁ = x + attention_norm(attention(norm_1(x)))       y = x₁ + mlp_norm(mlp(norm_2(x₁)))"""

    def __init__(
        self, norm_1: Module, attention: Module, attention_norm: Module, norm_2: Module, mlp: Module, mlp_norm: Module
    ) -> None:
        super().__init__(norm_1, attention, norm_2, mlp)
        self.attention_norm, self.mlp_norm = attention_norm, mlp_norm

    def forward(self, x: Array, inputs: Inputs = Inputs(), run: Pass = Pass()) -> tuple[Array, SandwichNormBlockCache]:
        h, c1 = self.norm_1.forward(x, inputs, run)
        h, c2 = self.attention.forward(h, inputs, self.norm_1.above(run))
        run = run.with_dx()
        h, c3 = self.attention_norm.forward(h, inputs, run)
        x = x + h
        h, c4 = self.norm_2.forward(x, inputs, run)
        h, c5 = self.mlp.forward(h, inputs, run)
        h, c6 = self.mlp_norm.forward(h, inputs, run)
        return x + h, SandwichNormBlockCache(c1, c2, c3, c4, c5, c6)

    def backward(self, dy: Array, cache: SandwichNormBlockCache, grads: Gradients) -> Array | None:
        dh = self.mlp.backward(self.mlp_norm.backward(dy, cache.mlp_norm, grads), cache.mlp, grads)
        dx = dy + self.norm_2.backward(dh, cache.norm_2, grads)
        dh = self.attention_norm.backward(dx, cache.attention_norm, grads)
        dh = self.attention.backward(dh, cache.attention, grads)
        dh = None if dh is None else self.norm_1.backward(dh, cache.norm_1, grads)
        return None if dh is None else dx + dh

    def costs(self, x: MetaArray, costs: Costs) -> MetaArray:
        h = self.attention.costs(self.norm_1.costs(x, costs), costs)
        h = self.attention_norm.costs(h, costs)
        h = self.mlp.costs(self.norm_2.costs(costs.array(*h.shape), costs), costs)
        return costs.array(*self.mlp_norm.costs(h, costs).shape)


class PostNormBlock(Block):
    """BERT:            x₁ = norm_1(x + attention(x))       y = norm_2(x₁ + mlp(x₁))"""

    def forward(self, x: Array, inputs: Inputs = Inputs(), run: Pass = Pass()) -> tuple[Array, BlockCache]:
        h, c1 = self.attention.forward(x, inputs, run)
        run = run.with_dx()
        x, c2 = self.norm_1.forward(x + h, inputs, run)
        h, c3 = self.mlp.forward(x, inputs, run)
        y, c4 = self.norm_2.forward(x + h, inputs, run)
        return y, BlockCache(norm_1=c2, attention=c1, norm_2=c4, mlp=c3)

    def backward(self, dy: Array, cache: BlockCache, grads: Gradients) -> Array | None:
        dh = self.norm_2.backward(dy, cache.norm_2, grads)
        dx = dh + self.mlp.backward(dh, cache.mlp, grads)
        dh = self.norm_1.backward(dx, cache.norm_1, grads)
        dx = self.attention.backward(dh, cache.attention, grads)
        return None if dx is None else dh + dx

    def costs(self, x: MetaArray, costs: Costs) -> MetaArray:
        h = self.attention.costs(x, costs)
        x = self.norm_1.costs(costs.array(*h.shape), costs)
        h = self.mlp.costs(x, costs)
        return self.norm_2.costs(costs.array(*h.shape), costs)


class CheckpointedCache(NamedTuple):
    x: Array
    inputs: Inputs
    run: Pass


class Checkpointed(Module):
    """A block with activation checkpointing: its cache is its input, and its backward runs the forward again.

    The activations of only one block are in memory at a time, which costs a second forward (Chen et al., 2016). The
    parameters that are trainable during the backward get gradients.
    """

    def __init__(self, block: Module) -> None:
        self.block = block

    def children(self) -> dict[str, Module]:
        return self.block.children()  # so that paths stay the same

    def replace(self, name: str, module: Module) -> None:
        self.block.replace(name, module)

    def forward(self, x: Array, inputs: Inputs = Inputs(), run: Pass = Pass()) -> tuple[Array, CheckpointedCache]:
        rerun = run._replace(rng=copy.deepcopy(run.rng), memo=None)  # for the same dropout masks
        return self.block.forward(x, inputs, run._replace(needs_cache=False))[0], CheckpointedCache(x, inputs, rerun)

    def backward(self, dy: Array, cache: CheckpointedCache, grads: Gradients) -> Any:
        x, inputs, run = cache
        _, block_cache = self.block.forward(x, inputs, run._replace(rng=copy.deepcopy(run.rng)))
        return self.block.backward(dy, block_cache, grads)

    def costs(self, x: MetaArray, costs: Costs) -> MetaArray:
        costs.keep(self, "x", x, "computing the block again")
        again = costs.empty()
        y = self.block.costs(x, again)
        costs.recomputed.append({array: kept for array, kept in again.kept.items() if array not in costs.kept})
        costs.forward += again.forward
        costs.backward += again.backward
        costs.again += again.forward
        return y


def recompute(model: Sequential) -> None:
    """Turn on activation checkpointing for every block of the model."""
    for path, module in list(model.named_modules()):
        if isinstance(module, Block):
            model[path] = Checkpointed(module)
