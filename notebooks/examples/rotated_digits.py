"""A small convolutional network reads upright digits, and is taught to read them lying on their side.

    python notebooks/examples/rotated_digits.py [--small]

Every layer is one that minilora has: Conv2d, Gelu, Flatten, Linear. LoRA adapts the three convolutions, and the head
learns whole. The images are scikit-learn's, 8 x 8 pixels, turned by 90 degrees. Of those ten of each digit are there
to learn from. Under a minute on one core.
"""

import sys

import numpy as np
from sklearn.datasets import load_digits
from ways import Data, table

from minilora.data import Batch
from minilora.nn import Conv2d, Flatten, Gelu, Linear, Sequential

CONVOLUTIONS = ["conv_1", "conv_2", "conv_3"]


def network(rng):
    """(N, 1, 8, 8) -> logits (N, 10)"""

    def weight(*shape):
        return (rng.standard_normal(shape) * (2 / np.prod(shape[1:])) ** 0.5).astype("float32")

    def zeros(n):
        return np.zeros(n, "float32")

    return Sequential({
        "conv_1": Conv2d(weight(16, 1, 3, 3), zeros(16), padding=1),  # 8 x 8
        "gelu_1": Gelu(approximate=True),
        "conv_2": Conv2d(weight(32, 16, 3, 3), zeros(32), stride=2, padding=1),  # 4 x 4
        "gelu_2": Gelu(approximate=True),
        "conv_3": Conv2d(weight(32, 32, 3, 3), zeros(32), stride=2, padding=1),  # 2 x 2
        "gelu_3": Gelu(approximate=True),
        "flatten": Flatten(),
        "classifier": Linear(weight(10, 128), zeros(10)),
    })  # fmt: skip


def data(seed):
    """600 images are for the test, upright and turned; ten of each digit, and ten more to choose a rate, are turned."""
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(y))
    x, y = (x[order] / 16).astype("float32").reshape(-1, 1, 8, 8), y[order]
    turned = np.rot90(x, axes=(2, 3)).copy()
    rows = [600 + np.flatnonzero(y[600:] == digit) for digit in range(10)]
    few, choose = (np.concatenate([r[i : i + 10] for r in rows]) for i in (0, 10))
    old, new, spare = Batch(x[600:], y[600:]), Batch(turned[few], y[few]), Batch(turned[choose], y[choose])
    return Data(old, new, spare, (Batch(x[:600], y[:600]), Batch(turned[:600], y[:600])))


def main(small=False):
    return table(network, data, CONVOLUTIONS, ("upright", "turned"), small)


if __name__ == "__main__":
    main("--small" in sys.argv)
