"""The built-in model before any training (notebooks 06 and 12)."""

from adapting import losses

import minilora

RUNS = [{"steps": 0}]


def run(steps):
    return losses(minilora.load_pretrained("builtin"))
