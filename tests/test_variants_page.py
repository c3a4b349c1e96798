"""docs/variants.md: its table says what the classes of the variants state."""

import math
import re
from pathlib import Path

import numpy as np
import pytest

from minilora.adapters.registry import variants
from minilora.adapters.statements import shape
from minilora.nn import Linear

PAGE = (Path(__file__).parent.parent / "docs" / "variants.md").read_text(encoding="utf-8")
TABLE = PAGE.partition("## The table\n")[2].partition("\n## ")[0]
LINES = [re.split(r"(?<!\\)\|", line)[1:-1] for line in TABLE.splitlines() if line.startswith("| ")]
ROWS = {cells[0].strip(" `"): [cell.strip() for cell in cells] for cells in LINES}
LINEAR = [name for name, classes in variants().items() if any(cls.base_type is Linear for cls in classes)]


def value(formula: str, sizes: dict[str, int]) -> int:
    """2 r (in + out), of its sizes"""
    words = re.sub(r"\bin\b", "n_in", re.sub(r"\bout\b", "n_out", formula.replace("₁", "1").replace("₂", "2")))
    return eval(re.sub(r"(?<=[\w)]) (?=[\w(])", " * ", words), {}, sizes)


def test_every_variant_has_a_row_with_the_type_of_its_file():
    for name, (cls, *_) in variants().items():
        assert re.search(rf"\b{cls.peft_type}\b", ROWS[name][-1])


@pytest.mark.parametrize("name", [name for name in LINEAR if "|" not in ROWS[name][2]])
def test_the_numbers_of_a_row_are_those_that_the_class_for_a_linear_states(name):
    cls = next(cls for cls in variants()[name] if cls.base_type is Linear)
    adapter = cls.start(Linear(np.ones((20, 42)), np.ones(20)), rng=0, **cls.examples[""])
    sizes = {"drops": 0, **adapter.settings, **adapter.sizes}
    learns, keeps, flops = ROWS[name][2:5]
    assert value(learns, sizes) == sum(math.prod(shape(s.shape, adapter.sizes)) for s in cls.slots if s.trained)
    kept = {kept.what: eval(kept.width, {}, sizes) for kept in cls.kept if not kept.once}
    assert value(keeps, sizes) == sum(kept.values())
    assert value(flops, sizes) == eval(cls.products.forward, {}, sizes)
