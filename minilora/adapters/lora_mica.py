"""LoRA with B frozen at the minor singular vectors of W. The start is in initialisations/mica.py."""

from __future__ import annotations

from typing import Any, ClassVar

from .. import ops
from ..backend import Array
from ..nn import Gradients, Linear
from .base import Law, relative_difference
from .lora import LoRALinear
from .lora_base import INITS, LoRA


def A_by_the_dense_gradient(adapter: MiCALinear, x: Array, dy: Array, grads: Gradients) -> float:
    G = ops.linear_gradients(dy, x)
    return relative_difference(grads[adapter.lora_A], adapter.scaling * adapter.lora_B.data.T @ G)


class MiCALinear(LoRALinear):
    """LoRALinear with B frozen, at the minor singular vectors of W (initialisations/mica.py)."""

    base_type = Linear
    keys = LoRA.keys._replace(inits=("mica",))
    inits = tuple(name for name, init in INITS.items() if init.freezes_B)
    slots = LoRALinear.slots[0], LoRALinear.slots[1]._replace(trained=False)
    kept = LoRALinear.kept[:1]  # type: ignore[assignment]
    products = LoRALinear.products._replace(gradients={("lora_A",): "2 * r * n_in"})
    laws: ClassVar[dict[str, Law]] = {"dA = s Bᵀ G": A_by_the_dense_gradient}
    examples: ClassVar[dict[str, dict[str, Any]]] = {"": {"r": 3, "alpha": 5}}
