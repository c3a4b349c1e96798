"""Explanations of a wrong tensor. One is given only if it holds in every case to 1e-7."""

from __future__ import annotations

import numpy as np

from .finding import Finding, WrongTensor, agree, alternatives
from .of_entries import one_of_many
from .of_pairs import pair
from .of_problem import combination, mutant, named, other_mask
from .of_values import added, clipped, other_tensor, rearranged, scaled, shape, unread


def explain(w: WrongTensor) -> list[Finding]:
    """All explanations of the tensor that are equally simple; [] if there is none."""
    together = zip(w.gradient, w.true, w.cases, strict=True)
    w = w.where([bool(np.any(true)) or not agree(gradient, true, case) for gradient, true, case in together])
    if found := named(w):
        return alternatives(found)
    values = [step(w) for step in (rearranged, other_tensor, scaled, added, clipped)]
    if found := [*filter(None, values), *one_of_many(w)]:
        return alternatives(found)
    once = next(filter(None, (step(w) for step in (shape, other_mask, combination, mutant))), None)
    return [once] if once else pair(w) or [*filter(None, [unread(w)])]
