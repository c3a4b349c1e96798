"""The sum of the gradients of the parts of a batch, formed while the parts run."""

from __future__ import annotations

import threading
from collections import Counter

from ..backend import Array
from ..nn import Gradients, Memory, Parameter

Use = tuple[Parameter, int]  # (parameter, number of its use): a tied weight is used more than once


class GradientSum:
    """The gradients of n parts of a batch, summed parameter by parameter as they come. So there are never n sets of
    them in memory: for full fine-tuning each is as large as the model.

    A sum is always formed in the order of the parts, so that its bytes do not depend on which thread is faster: a
    gradient that comes early waits for its turn.
    """

    def __init__(self, n: int) -> None:
        self.parts = [PartGradients(self, part) for part in range(n)]
        self.sums: dict[Use, Array] = {}
        self.turn: Counter[Use] = Counter()  # the part whose gradient is next
        self.waiting: dict[tuple[Use, int], Array] = {}
        self.lock = threading.Lock()

    def add(self, use: Use, part: int, gradient: Array) -> None:
        with self.lock:
            self.waiting[use, part] = gradient
            while (use, self.turn[use]) in self.waiting:
                self.add_waiting(use, self.turn[use])
                self.turn[use] += 1

    def add_waiting(self, use: Use, part: int) -> None:
        gradient = self.waiting.pop((use, part))
        if use in self.sums:
            self.sums[use] += gradient
        else:
            self.sums[use] = gradient

    def total(self) -> Gradients:
        """The sum, once all parts have run, in the order in which the parts first added to the parameters."""
        for use, part in sorted(self.waiting, key=lambda key: key[1]):  # adapters by row: an earlier part had none
            self.add_waiting(use, part)
        total = Gradients()
        for use in dict.fromkeys(use for part in self.parts for use in part.uses):
            total.add(use[0], self.sums.pop(use))
        return total


class PartGradients(Gradients):
    """The Gradients of one part: each parameter's gradient goes to the sum at once."""

    def __init__(self, total: GradientSum, part: int) -> None:
        self.total, self.part = total, part
        self.uses: dict[Use, None] = {}  # in order
        self.times: Counter[Parameter] = Counter()

    def add(self, parameter: Parameter, gradient: Array) -> None:
        if isinstance(parameter, Memory):  # this part's backward reads it
            super().add(parameter, gradient)
            return
        use = parameter, self.times[parameter]
        self.times[parameter] += 1
        self.uses[use] = None
        self.total.add(use, self.part, gradient)
