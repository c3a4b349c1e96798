"""The gradient of A with dx cut at the frozen weights, beside the right one, averaged over more and more batches.

Both are those of an adapter after ten right steps (notebook 04).
"""

from unittest.mock import patch

import adapting
import numpy as np
from grids.cut import adapted, backward_cut

import minilora
from minilora.data import random_windows
from minilora.training import loss_and_gradients

AVERAGED = (1, 2, 4, 8, 16, 32, 64)
RUNS = [{"seed": seed, "most": 64} for seed in range(3)]


def cosine(a, b):
    return float((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))


def of_blocks(model, grads):
    """dA of all seven adapters of a block in one row: (blocks, numbers)."""
    rows = {}
    for path, parameter in model.trainable_parameters().items():
        if path.endswith("lora_A"):
            rows.setdefault(path.partition(".")[0], []).append(grads[parameter].ravel())
    return np.array([np.concatenate(row) for row in rows.values()], dtype=float)


def run(seed: int, most: int) -> dict:
    """For each block and number of batches: cosines of the sum over them of the right dA to that over other batches,
    and of the cut dA to the right dA of the same batches; and the length of the cut dA as a share of the right one's.
    """
    model, _ = adapted(cut=False, lr=8e-3, seed=seed, steps=10)
    batches = random_windows(adapting.source().train, batch=8, length=64, seed=1000 + seed)
    right, other, cut = 0.0, 0.0, 0.0
    found = {"noise": [], "cut": [], "length": []}
    for n in range(most):
        right = right + of_blocks(model, loss_and_gradients(model, batches(2 * n))[1])
        other = other + of_blocks(model, loss_and_gradients(model, batches(2 * n + 1))[1])
        with patch.object(minilora.LoRALinear, "backward", backward_cut):
            cut = cut + of_blocks(model, loss_and_gradients(model, batches(2 * n))[1])
        if n + 1 in AVERAGED:
            found["noise"].append([round(cosine(a, b), 4) for a, b in zip(right, other, strict=True)])
            found["cut"].append([round(cosine(a, b), 4) for a, b in zip(right, cut, strict=True)])
            lengths = np.linalg.norm(cut, axis=1) / np.linalg.norm(right, axis=1)
            found["length"].append([round(float(share), 4) for share in lengths])
    return found
