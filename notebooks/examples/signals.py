"""A small 1-D convolutional network tells four waves apart, and is taught to do so behind another sensor.

    python notebooks/examples/signals.py [--small]

The signals are synthetic: a sine, a square wave, a saw and a rising tone, each of random frequency, phase, height and
noise. The other sensor is slow (it averages three samples), upside down, and hums. A hundred signals of each
kind, on average, are there to learn it from. Under a minute on one core.
"""

import sys

import numpy as np
from ways import Data, table

from minilora.data import Batch
from minilora.nn import Conv1d, Flatten, Gelu, Linear, Sequential

CONVOLUTIONS = ["conv_1", "conv_2", "conv_3"]
T = 64


def network(rng):
    """(N, 1, 64) -> logits (N, 4)"""

    def weight(*shape):
        return (rng.standard_normal(shape) * (2 / np.prod(shape[1:])) ** 0.5).astype("float32")

    def zeros(n):
        return np.zeros(n, "float32")

    return Sequential({
        "conv_1": Conv1d(weight(16, 1, 7), zeros(16), stride=2, padding=3),  # 32
        "gelu_1": Gelu(approximate=True),
        "conv_2": Conv1d(weight(32, 16, 5), zeros(32), stride=2, padding=2),  # 16
        "gelu_2": Gelu(approximate=True),
        "conv_3": Conv1d(weight(32, 32, 5), zeros(32), stride=4, padding=4, dilation=2),  # 4
        "gelu_3": Gelu(approximate=True),
        "flatten": Flatten(),
        "classifier": Linear(weight(4, 128), zeros(4)),
    })  # fmt: skip


def waves(n, rng):
    """(n, 64) and their kinds"""
    kind, t = rng.integers(0, 4, n), np.arange(T)
    frequency, phase, height = (rng.uniform(low, high, (n, 1)) for low, high in ((2, 6), (0, 1), (0.5, 1.5)))
    turns = frequency * t / T + phase
    rising = frequency * (t / T) ** 2 + phase
    shapes = (
        np.sin(2 * np.pi * turns),
        np.sign(np.sin(2 * np.pi * turns)),
        2 * (turns % 1) - 1,
        np.sin(2 * np.pi * rising),
    )
    return height * np.choose(kind[:, None], shapes) + 0.3 * rng.standard_normal((n, T)), kind


def other_sensor(x, rng):
    slow = np.apply_along_axis(np.convolve, 1, x, np.ones(3) / 3, mode="same")
    hum = 0.7 * np.sin(2 * np.pi * (12 * np.arange(T) / T + rng.uniform(0, 1, (len(x), 1))))
    return hum - slow


def data(seed):
    rng = np.random.default_rng(seed)

    def batch(n, sensor=lambda x, rng: x):
        x, y = waves(n, rng)
        return Batch(sensor(x, rng)[:, None].astype("float32"), y)

    tests = batch(1000), batch(1000, other_sensor)
    return Data(batch(2000), batch(400, other_sensor), batch(100, other_sensor), tests)


def main(small=False):
    return table(network, data, CONVOLUTIONS, ("old sensor", "new sensor"), small)


if __name__ == "__main__":
    main("--small" in sys.argv)
