"""What a comparison of methods compares: each at the rank of the reference, and at that of about as many parameters."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from ..accounting import count_parameters
from ..adapters import DEFAULT
from ..adapters.attach import attach_without_weights
from ..adapters.registry import variants
from ..data import python_source, random_windows
from ..models.pretrained import load_pretrained
from ..models.transformer import Transformer
from .arguments import json_or_text
from .finetuning import attach, options_of, settings_of
from .settings import OF_METHOD, LanguageModelSettings

BATCH, LENGTH = 8, 128
RANK, SCALE = 8, 2  # of the reference; s = α/r is the same at every rank
FULL = "full"  # full fine-tuning, in addition to the variants


class Cell(NamedTuple):
    """One method at one size."""

    method: str
    option: dict[str, Any]  # of the method alone
    r: int | None  # at the end of the training; None if it has none, or if `option` holds it
    why: str  # "equal rank", "equal parameters", both, or "as it is"

    @property
    def name(self) -> str:
        said = {} if self.r is None else {"r": self.r}
        return " ".join([self.method, *(f"{key}={json.dumps(x)}" for key, x in (said | self.option).items())])

    def settings(self, **more: Any) -> LanguageModelSettings:
        """Those of a run; `more` are further fields."""
        if self.method == FULL:
            return LanguageModelSettings(**more)
        own, fields = options_of(self.method), {name: field for field, name in OF_METHOD.items()}
        given = {name: x for name, x in self.option.items() if name not in fields}
        if self.r is not None:
            more["rank"] = self.r
            if "target_r" in own:  # AdaLoRA starts with half as many more ranks, and cuts them down to r
                more["rank"], given = self.r + self.r // 2, {"target_r": self.r} | given
        if "alpha" in own:
            more["alpha"] = float(SCALE * self.option.get("r", more.get("rank", own["r"])))
        more |= {fields[name]: x for name, x in self.option.items() if name in fields}
        found: LanguageModelSettings = settings_of(
            LanguageModelSettings, method=self.method, option=given or None, **more
        )
        return found


def cells_of(methods: Sequence[str]) -> tuple[list[Cell], dict[str, str]]:
    """(the cells, the reference first; {method: why it is left out}). Raises ValueError for a name or option that is
    not known."""
    named = [name for word in methods for name in ((*variants(), FULL) if word == "all" else (word,))]
    reference = Cell(DEFAULT, {}, RANK, "equal rank, equal parameters")
    size, cells, left_out = count(reference), [reference], {}
    for word in dict.fromkeys(named):
        method, *pairs = word.split(":")
        option = {name: json_or_text(text) for name, _, text in (pair.partition("=") for pair in pairs)}
        if method == FULL:
            cells.append(Cell(FULL, {}, None, "as it is"))
            continue
        own = options_of(method)
        ranked = "r" in own and "r" not in option
        try:
            found = sized(method, option, size) if ranked else [Cell(method, option, None, "as it is")]
            for cell in found:
                adapted(cell)
        except ValueError as error:
            if option or word in methods:
                raise
            left_out[word] = str(error)
            continue
        cells += [cell for cell in found if cell.name not in {other.name for other in cells}]
    return cells, left_out


def sized(method: str, option: dict[str, Any], size: int) -> list[Cell]:
    """The method at the rank of the reference, and at the rank, up to the model's width, that trains about as many
    numbers as the reference's `size`."""
    counts: dict[int, int] = {}
    for r in range(1, load_pretrained().config.d_model + 1):
        with suppress(ValueError):  # a rank that this method cannot have
            counts[r] = count(Cell(method, option, r, ""))
        if r not in counts or counts[r] > size:
            break
    if not counts:
        return [Cell(method, option, RANK, "equal rank")]  # the error is attach()'s
    nearest = min(counts, key=lambda r: abs(counts[r] - size))
    if nearest == RANK:
        return [Cell(method, option, RANK, "equal rank, equal parameters")]
    near = abs(counts[nearest] - size) <= size / 10
    most = Cell(method, option, nearest, "equal parameters" if near else "as many parameters as it can have")
    return [Cell(method, option, RANK, "equal rank"), most]


def count(cell: Cell) -> int:
    """The trained numbers of a cell, without weights; after the last cut where it cuts some."""
    model, settings = load_pretrained(), cell.settings()
    if cell.method != FULL:
        options: dict[str, Any] = dict(settings.option or {})
        if settings.rank is not None:
            options["r"] = options.get("target_r", settings.rank)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a rank above the smaller side of a weight
            attach_without_weights(model, cell.method, settings.targets, **options)
    return count_parameters(model)["trainable"]


def adapted(cell: Cell, seed: int = 0) -> Transformer:
    """The built-in model, ready for the training of a cell."""
    model = load_pretrained()
    if cell.method != FULL:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # as in count()
            attach(model, cell.settings(seed=seed), random_windows(python_source().train, BATCH, LENGTH, seed))
    return model
