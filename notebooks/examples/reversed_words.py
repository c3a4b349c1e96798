"""Digits to words, backwards: an encoder-decoder that says 405 as "four zero five" learns to say "five zero four".

    python notebooks/examples/reversed_words.py [--small] [FIGURE.png]

The base, a small T5, learns the one way and is frozen; LoRA learns the other, on all layers or on those of one kind.
Backwards, each word must read another place of the source: which A and B can make it do so?
"""

import sys
import time
from copy import deepcopy

import figures
import numpy as np

import minilora
from minilora.accounting import count_parameters
from minilora.data import Batch
from minilora.models.families import FAMILIES
from minilora.models.generation import next_ids
from minilora.nn import Inputs
from minilora.nn.optim import cosine_schedule
from minilora.ops import IGNORE

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
PAD, END, DIGIT, WORD = 0, 1, 2, 12  # ids: padding, with which the decoder begins; the end; ten digits; ten words
MOST, BLOCKS = 5, range(2)  # digits of a number; blocks of each stack
QKVO = "q_proj", "k_proj", "v_proj", "o_proj"
CROSS = {x: [f"block_{i}.cross_attention.{x}" for i in BLOCKS] for x in QKVO}
PLACES = {
    "all layers": [*QKVO, "up_proj", "down_proj"],
    "encoder": [f"encoder.block_{i}.attention.{x}" for i in BLOCKS for x in QKVO],
    "decoder": [f"block_{i}.attention.{x}" for i in BLOCKS for x in QKVO],
    "cross": [path for paths in CROSS.values() for path in paths],
    **{f"cross, {x[0]} alone": CROSS[x] for x in QKVO[:3]},
}


def numbers(n, rng, backwards, held_out=False):
    """A Batch of n numbers of 2 to MOST digits: ids of the source, and of the words that the decoder predicts. Numbers
    whose digits add up to a multiple of 5 are held out."""
    length, t = rng.integers(2, MOST + 1, (n, 1)), np.arange(MOST + 1)
    digits, real = rng.integers(0, 10, (n, MOST + 1)), t <= length
    residue = 0 if held_out else rng.integers(1, 5, n)
    digits[:, 0] = (residue - (digits * (t < length))[:, 1:].sum(axis=1)) % 5 + 5 * rng.integers(0, 2, n)
    said = np.take_along_axis(digits, np.where((t < length) & backwards, length - 1 - t, t), axis=1)
    source, words = (
        np.where(t < length, x, np.where(real, END, PAD)) for x in (DIGIT + digits, WORD + said)
    )  # fmt: skip
    ids = np.concatenate([np.full((n, 1), PAD), words[:, :-1]], axis=1)
    return Batch(ids, np.where(real, words, IGNORE), real, source=source, source_padding=real)


def share_right(model, batch):
    """The share of numbers with no word wrong: of those, greedy decoding writes the same text."""
    inputs = Inputs(batch.padding, source=batch.source, source_padding=batch.source_padding)
    guesses = model.forward(batch.ids, inputs)[0].argmax(axis=-1)
    return float(((guesses == batch.targets) | (batch.targets == IGNORE)).all(axis=1).mean())


def say(model, number):
    ids = next_ids(model, np.array([*(DIGIT + int(x) for x in number), END]), MOST + 1, [END])
    return " ".join(WORDS[i - WORD] if i >= WORD else "?" for i in ids)


def one_seed(seed, steps, places):
    """The base and LoRA at each place, and {place: [right forwards, right backwards]}, shares of held-out numbers."""
    sizes = {"d_ff": 64, "max_length": 16, "relative_buckets": 16, "relative_distance": 16}
    config = minilora.Config(22, len(BLOCKS), d_model=32, n_heads=4, gated=False, **sizes)

    def train(model, backwards, steps, lr):
        batches = lambda i: numbers(64, np.random.default_rng([seed, i, backwards]), backwards)  # noqa: E731
        minilora.fit(model, batches, steps, lr=lr, schedule=cosine_schedule(steps), description=None)
        return model

    models = {"base": train(FAMILIES["t5"].build(config, seed), False, steps, 3e-3)}
    for place in places:
        models[place] = deepcopy(models["base"])
        minilora.attach_lora(models[place], PLACES[place], r=8, alpha=16, rng=seed)
        train(models[place], True, steps // 2, 1e-2)
    test = [numbers(1000, np.random.default_rng([seed, 10**6, way]), way, held_out=True) for way in (False, True)]
    return models, {way: [share_right(model, batch) for batch in test] for way, model in models.items()}


def main(small=False, out="runs/reversed_words.png"):
    began, places = time.process_time(), ["cross", "cross, v alone"] if small else PLACES
    seeds = [one_seed(seed, 600, places) for seed in range(1 if small else 3)]
    models, right = seeds[0][0], {way: [shares[way] for _, shares in seeds] for way in seeds[0][0]}
    for way, shares in right.items():
        forwards, backwards = (" ".join(f"{share:6.1%}" for share in column) for column in zip(*shares, strict=True))
        learned = count_parameters(models[way])["trainable"]
        print(f"{way:<16}{learned:>7,} learn   forwards {forwards}   backwards {backwards}   {say(models[way], '405')}")
    print(f"{time.process_time() - began:.0f} s of CPU")
    figures.reversed_words(out, right)
    return right


if __name__ == "__main__":
    main("--small" in sys.argv, next((word for word in sys.argv if word.endswith(".png")), "runs/reversed_words.png"))
