"""CHECKS: for every op, module, adapter and family, a function that yields the Reports of its gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial

from ..adapters.registry import variants
from ..models.families import FAMILIES
from ..nn import Conv1d, Conv2d, LayerNorm, Linear
from .adapter_cases import ADAPTERS, first_on, merged_embedding, of_many, of_tied, of_variant
from .check import Report
from .model_cases import BODIES, CLASSIFIERS, ENCODERS, of_family
from .module_cases import MODULES, of_part
from .op import Rng
from .op_cases import OPS, at_every_size


def of_op(op: str, rng: Rng) -> Iterator[Report]:
    return (OPS[op].check(case, rng) for case in at_every_size(op, rng))


CHECKS: dict[str, Callable[[Rng], Iterable[Report]]] = {
    **{f"op {name}": partial(of_op, name) for name in OPS},
    **{f"module {name}": partial(of_part, make) for name, make in MODULES.items()},
    **{f"adapter {name}": partial(of_part, make) for name, make in ADAPTERS.items()},
    "adapter MergedLinear": partial(of_part, first_on(Linear), merged=True),
    "adapter MergedLayerNorm": partial(of_part, first_on(LayerNorm), merged=True),
    "adapter MergedConv1d": partial(of_part, first_on(Conv1d), merged=True),
    "adapter MergedConv2d": partial(of_part, first_on(Conv2d), merged=True),
    "adapter MergedEmbedding": partial(of_part, merged_embedding),
    "adapter TiedLoRALinear": of_tied,
    "adapter Many in a model": of_many,
    **{f"adapter {variant} in a model": partial(of_variant, variant) for variant in variants()},
    **{f"family {name}": partial(of_family, name, False, BODIES[name]) for name in FAMILIES},
    **{f"family {name} with adapters": partial(of_family, name, True, BODIES[name]) for name in FAMILIES},
    **{f"family {name}, classifier with adapters": partial(of_family, name, True, "classify") for name in CLASSIFIERS},
    **{f"family {name}, tokens with adapters": partial(of_family, name, True, "tokens") for name in ENCODERS},
}
