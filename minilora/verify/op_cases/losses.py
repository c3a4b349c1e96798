"""The losses; each is a scalar."""

from __future__ import annotations

from typing import Any

import numpy as np

from ... import ops
from ...backend import Array
from ..case import Case
from ..op import TEMPERATURE, Op, Rng, Size, drawn, on, one


def cross_entropy(count: int | None) -> Op:
    def draw(size: Size, rng: Rng) -> Case:
        B, T, V = size(), size(2, 4), size(2, 5)
        targets = rng.integers(0, V, (B, T))
        targets[:, 1] = ops.IGNORE
        return drawn(rng, (), {"logits": rng.standard_normal((B, T, V))}, targets=targets, count=count)

    return Op(
        draw,
        lambda logits, targets, count: ops.cross_entropy_forward(logits, on(logits, targets), count),
        one("cross_entropy_backward"),
    )


def kl(name: str, count: int | None) -> Op:
    """The divergence whose functions in ops begin with `name`."""

    def draw(size: Size, rng: Rng) -> Case:
        B, T, V = size(), size(2, 4), size(2, 5)
        labelled = np.ones((B, T), bool)
        labelled[:, 1] = False
        t = 2 * rng.standard_normal((B, T, V))
        z = {"z": rng.standard_normal((B, T, V))}
        return drawn(rng, (), z, t=t, T=TEMPERATURE, labelled=labelled, count=count)

    def forward(z: Array, t: Array, T: float, labelled: Array, count: int | None) -> tuple[Array, Any]:
        return getattr(ops, f"{name}_forward")(z, on(z, t), T, on(z, labelled), count)

    return Op(draw, forward, one(f"{name}_backward"))


def draw_mean_squared_error(size: Size, rng: Rng) -> Case:
    shape = size(), size()
    target = rng.standard_normal(shape)
    return drawn(rng, (), {"y": rng.standard_normal(shape)}, target=target)


OPS = {
    "cross-entropy": cross_entropy(None),
    "cross-entropy, a part of a batch": cross_entropy(17),
    "KL divergence": kl("kl", None),
    "KL divergence, a part of a batch": kl("kl", 17),
    "KL divergence, reversed": kl("reverse_kl", None),
    "mean squared error": Op(
        draw_mean_squared_error,
        lambda y, target: ops.mean_squared_error_forward(y, on(y, target)),
        one("mean_squared_error_backward"),
    ),
}
