"""Loss scaling, for gradients too small for float16: L is multiplied by S before backward, the gradients divided after.

    dz = ∂(S L)/∂z = S ∂L/∂z        g = dθ / S

Every gradient on the way is S times as large, and those of θ are divided in float32, which has the range. S should be
as large as possible without overflow. It is found by trial: if a gradient is infinite or NaN, the step is skipped and

    S ← b S         (b = backoff_factor)            and else, after each `growth_interval` steps in a row,
    S ← f S         (f = growth_factor)             as long as that is finite in float32

    with half_precision(model.parameters(), "float16"):
        loss, grads = loss_and_gradients(model, batch, dL=scale.S)
    grads, finite = scale.unscaled(grads)
    if finite:
        optimizer.step(grads)
    scale.update(finite)

Source: Micikevicius et al. (2018), "Mixed precision training", section 3.2; numbers and roundings as in PyTorch's
torch.amp.GradScaler.
"""

from __future__ import annotations

import math

import numpy as np

from ..backend import get_array_module
from ..nn import Gradients


class LossScale:
    """S, a float32, and `steps`, the number of finite steps in a row since S last changed.

    Raises ValueError for a number out of range.
    """

    def __init__(
        self,
        init_scale: float = 2.0**16,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
    ) -> None:
        with np.errstate(over="ignore"):
            S = float(np.float32(init_scale))
        if not (0 < S < math.inf and growth_factor > 1 > backoff_factor > 0 and growth_interval >= 1):
            raise ValueError(
                f"init_scale {init_scale} and backoff_factor {backoff_factor} must be above 0, and finite in float32, "
                f"backoff_factor below 1, growth_factor {growth_factor} above 1, and growth_interval "
                f"{growth_interval} at least 1"
            )
        self.growth_factor, self.backoff_factor, self.growth_interval = growth_factor, backoff_factor, growth_interval
        self.S, self.steps = S, 0

    def unscaled(self, grads: Gradients) -> tuple[Gradients, bool]:
        """g = dθ / S, arrays that compute in float32, and whether all dθ are finite."""
        inverse, unscaled, finite = np.float32(1 / self.S), Gradients(), True
        for parameter, g in grads.items():
            xp = get_array_module(g)
            finite = finite and bool(xp.isfinite(g).all())
            unscaled[parameter] = xp.asarray(g) * inverse
        return unscaled, finite

    def update(self, finite: bool) -> None:
        """After a step whose gradients were `finite`, or were not. Raises FloatingPointError when S gets to 0."""
        S, self.steps = self.S, self.steps + 1 if finite else 0
        if not finite:
            S *= self.backoff_factor
        elif self.steps == self.growth_interval:
            S, self.steps = S * self.growth_factor, 0
        with np.errstate(over="ignore"):
            S = float(np.float32(S))
        if S == 0:
            raise FloatingPointError("the gradients are not finite at any loss scale: check that the loss is")
        self.S = S if np.isfinite(S) else self.S
