"""Sums over an axis of dy in which only one entry is left, or one is missing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...backend import Array
from ..case import Case, apply
from ..language import Words, words
from .finding import Finding, WrongTensor, same

ENTRIES = {
    "batch": "sample", "samples": "sample", "batch_size": "sample", "tokens": "token", "heads": "head",
    "rows": "row", "channels": "channel",
}  # fmt: skip


def name_of_axis(axis: int, cases: Sequence[Case]) -> str:
    """The name among the sizes that this axis of dy has in every case, if there is only one."""
    lengths = [np.shape(case.dy)[axis] for case in cases]
    others = [i for i in range(np.ndim(cases[0].dy)) if i != axis]
    if any(lengths == [np.shape(case.dy)[i] for case in cases] for i in others):
        return ""
    names = [name for name in cases[0].sizes if lengths == [case.sizes.get(name) for case in cases]]
    return names[0] if len(names) == 1 else ""


def one_of_many(w: WrongTensor) -> list[Finding]:
    found = []
    for axis in range(np.ndim(w.cases[0].dy)):
        name = name_of_axis(axis, w.cases)
        if name in ENTRIES:
            noun, where = words(ENTRIES[name]), Words("{entry}", "{entry}")
        else:
            noun = words("entry")
            where = words("{entry} of dy along axis {axis}", axis=str(axis) + (f" ({name})" if name else ""))
        for index, position in ((-1, words("the last {noun}")), (0, words("the first {noun}"))):
            kept, lacked = entries(w, axis, index)
            which = where.filled(entry=position.filled(noun=noun))
            lengths = [np.shape(case.dy)[axis] for case in w.cases]
            lost = [np.delete(np.arange(n), index) if kept else np.arange(n)[[index]] for n in lengths]
            if all(zero_at(gradient, axis, n, at) for gradient, n, at in zip(w.gradient, lengths, lost, strict=True)):
                must = words(", and is zero elsewhere") if kept else words(", and is zero there")
            else:
                must = (
                    words(": the {noun}s must add up", noun=noun)
                    if name in ENTRIES
                    else words(": the entries must add up")
                )
            if kept:
                found.append(w.finding("terms", "{it} holds {which} alone{must}", which=which, must=must))
            if lacked:
                found.append(w.finding("terms", "{it} lacks {which}{must}", which=which, must=must))
    return found


def zero_at(gradient: Array, axis: int, length: int, indices: Array) -> bool:
    """Whether the tensor has this axis of dy too, and is zero at these indices."""
    return gradient.shape[axis : axis + 1] == (length,) and not np.any(np.take(gradient, indices, axis))


def entries(w: WrongTensor, axis: int, index: int) -> tuple[bool, bool]:
    """(whether the tensor is only what this entry of dy contributes, whether it is all but that), in every case. A
    gradient is linear in dy, so that contributions add up."""
    kept = lacked = True
    for gradient, true, case in zip(w.gradient, w.true, w.cases, strict=True):
        if axis >= np.ndim(case.dy) or np.shape(case.dy)[axis] < 2:
            return False, False
        dy = np.zeros_like(case.dy)
        at = tuple(index if i == axis else slice(None) for i in range(dy.ndim))
        dy[at] = case.dy[at]
        try:
            part = apply(w.problem.backward, case._replace(dy=dy))[w.tensor]
        except ValueError:  # a gradient that is measured may not be measurable from one entry
            return False, False
        kept = kept and bool(np.any(part)) and same([gradient], [part])
        lacked = lacked and same([gradient], [true - part])
        if not kept and not lacked:
            break
    return kept, lacked
