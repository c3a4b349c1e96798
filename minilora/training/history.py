"""What a training run reports: its losses."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np


@dataclass
class History:
    """The losses of a run; no times, so that the same seed gives the same bytes."""

    loss: list[float] = field(default_factory=list)  # nats, one for each step
    evaluations: list[list[float]] = field(default_factory=list)  # [steps done, nats on held-out data]
    stopped_early: bool = False
    watched: list[list[float]] = field(default_factory=list)  # as evaluations, on data that decides nothing

    def best(self) -> float:
        """The lowest loss on held-out data so far; infinity before the first evaluation."""
        return min((loss for _, loss in self.evaluations), default=math.inf)

    def evaluations_since_best(self) -> int:
        """The number of evaluations after the best one; all of them if none is finite."""
        losses = [loss for _, loss in self.evaluations]
        return len(losses) - 1 - int(np.nanargmin(losses)) if np.isfinite(losses).any() else len(losses)
