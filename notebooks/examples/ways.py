"""What rotated_digits.py and signals.py share: a network over the old data is taught the new by LoRA and a new head,
in full, or by the head alone, and is read on both."""

from copy import deepcopy
from typing import NamedTuple

import numpy as np

import minilora
from minilora.accounting import count_parameters
from minilora.data import Batch, shuffled
from minilora.nn.optim import cosine_schedule

RATES = {"head alone": (3e-3, 3e-2), "LoRA": (3e-3, 1e-2, 3e-2), "full": (3e-4, 1e-3, 3e-3)}


class Data(NamedTuple):
    """Inputs and labels: the old to learn from, the few new, as many to choose a learning rate by, and the tests."""

    old: Batch
    new: Batch
    choose: Batch
    tests: tuple[Batch, Batch]  # old and new


def train(model, batch, steps, lr):
    batches, schedule = shuffled(batch, 32, seed=0), cosine_schedule(steps)
    minilora.fit(model, batches, steps, lr=lr, schedule=schedule, description=None)
    return model


def accuracy(model, batch):
    return float((model.forward(batch.ids)[0].argmax(axis=-1) == batch.targets).mean())


def one_seed(network, data, convolutions, seed, small):
    """{way: (numbers that learn, accuracy on the old test, on the new)}"""
    pretraining, steps = (150, 60) if small else (300, 200)
    base = train(network(np.random.default_rng(seed)), data.old, pretraining, 3e-3)
    start = {"head alone": deepcopy(base), "LoRA": deepcopy(base), "full": base}
    start["head alone"].freeze()
    start["head alone"]["classifier"].weight.trainable = start["head alone"]["classifier"].bias.trainable = True
    minilora.attach_lora(start["LoRA"], convolutions, r=4, alpha=8, rng=seed, train=["classifier"])
    models = {"base": base}
    for way, rates in RATES.items():
        tried = [train(deepcopy(start[way]), data.new, steps, lr) for lr in rates[: 1 if small else None]]
        models[way] = min(tried, key=lambda model: minilora.evaluate(model, [data.choose]))
    learned = {way: 0 if way == "base" else count_parameters(start[way])["trainable"] for way in models}
    merged = deepcopy(models["LoRA"])
    minilora.merge(merged)  # into plain kernels, which read the same
    x = data.tests[1].ids
    assert np.abs(merged.forward(x)[0] - models["LoRA"].forward(x)[0]).max() < 1e-3
    return {way: (learned[way], *(accuracy(model, test) for test in data.tests)) for way, model in models.items()}


def table(network, data, convolutions, names, small):
    """Print mean and range over the seeds of each way's two accuracies; return them all, {way: [(n, old, new), ...]}"""
    seeds = [one_seed(network, data(seed), convolutions, seed, small) for seed in range(1 if small else 3)]
    found = {way: [seed[way] for seed in seeds] for way in seeds[0]}
    for way, rows in found.items():
        shares = (f"{name}: {mean:5.1%} ({low:.0%} to {high:.0%})" for name, mean, low, high in spread(names, rows))
        print(f"{way:<10}{rows[0][0]:>8,} parameters learned    {'    '.join(shares)}")
    return found


def spread(names, rows):
    for name, values in zip(names, list(zip(*rows, strict=True))[1:], strict=True):
        yield name, sum(values) / len(values), min(values), max(values)
