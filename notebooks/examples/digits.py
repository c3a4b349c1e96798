"""A vision transformer reads digits: trained on 0..6, then taught 7, 8 and 9 from ten images of each of the ten digits.

    python notebooks/examples/digits.py [--small] [FIGURE.png]

The model is the family "vit": beside a language model one layer is new, PatchEmbeddings in the place of the token
embedding. The images are scikit-learn's, of so few pixels that the nearest one does better than the models.
"""

import sys
from copy import deepcopy
from pathlib import Path

import figures
import numpy as np
from sklearn.datasets import load_digits

import minilora
from minilora.accounting import count_parameters
from minilora.data import Batch, shuffled
from minilora.files import save_tensors
from minilora.models.families import FAMILIES
from minilora.nn.optim import cosine_schedule


def vit():
    config = minilora.Config(
        0, n_layers=2, d_model=32, n_heads=4, image_size=8, patch_size=4, channels=1, head="classify", labels=10
    )  # a vocabulary of 0: there are no words
    return FAMILIES["vit"].build(config, np.random.default_rng(0))


def one_split(seed, small):
    """The models by name, the share of the old and of the new digits that each reads rightly, and twelve readings."""
    rng, (x, y) = np.random.default_rng(seed), load_digits(return_X_y=True)
    order = rng.permutation(len(y))
    x, y = (x[order] / 16).astype("float32").reshape(-1, 1, 8, 8), y[order]
    test, old = np.arange(len(y)) < 600, y < 7
    rows = [np.flatnonzero(~test & (y == digit)) for digit in range(10)]
    few, choose = (np.concatenate([r[i : i + 10] for r in rows]) for i in (0, 10))  # to learn; to choose a rate

    def train(model, rows, steps, lr):
        batches, schedule = shuffled(Batch(x[rows], y[rows]), 32, seed=0), cosine_schedule(steps)
        minilora.fit(model, batches, steps, lr=lr, schedule=schedule, description=None)
        return model

    pretraining, steps, rates = (100, 60, [1e-2]) if small else (300, 200, [1e-3, 3e-3, 1e-2, 3e-2])
    base = train(vit(), np.flatnonzero(~test & old), pretraining, 3e-3)
    models = {"base": base, "from nothing": vit(), "new head": deepcopy(base), "LoRA": deepcopy(base), "full": base}
    models["new head"].freeze()
    models["new head"]["classifier"].weight.trainable = True
    minilora.attach_lora(models["LoRA"], [f"{x}_proj" for x in "qkvo"], r=4, alpha=8, rng=rng, train=["classifier"])
    for way in ("from nothing", "new head", "LoRA", "full"):
        tried = [train(deepcopy(models[way]), few, steps, lr) for lr in rates]
        models[way] = min(tried, key=lambda model: minilora.evaluate(model, [Batch(x[choose], y[choose])]))
    guesses = {way: model.forward(x)[0].argmax(axis=-1) for way, model in models.items()}
    guesses["nearest image"] = y[few][((x[:, None] - x[few]) ** 2).sum(axis=(2, 3, 4)).argmin(axis=1)]  # by pixels
    right = {way: [float((g == y)[test & which].mean()) for which in (old, ~old)] for way, g in guesses.items()}
    shown = [np.flatnonzero(test & (y == d))[k // 9] for k, d in enumerate((0, 1, 2, 3, 4, 5, 7, 8, 9, 7, 8, 9))]
    return models, right, (x[shown, 0], y[shown], {way: g[shown] for way, g in guesses.items()})


def main(small=False, out="runs/digits.png"):
    splits = [one_split(seed, small) for seed in range(1 if small else 5)]
    models, right, pictures = splits[0]
    right = {way: np.array([split[1][way] for split in splits]) for way in right}  # (splits, old and new)
    for way, shares in right.items():
        learned = count_parameters(models[way])["trainable"] if way in models else 0
        old, new = (f"{share.mean():6.1%} ({share.min():.0%} to {share.max():.0%})" for share in shares.T)
        print(f"{way:<14}{learned:>7,} parameters learned    0..6: {old}    7, 8, 9: {new}")
    figures.digits(out, *pictures, right)
    adapter = {path: p.data for path, p in models["LoRA"].trainable_parameters().items()}  # A, B and the head
    save_tensors(Path(out).with_suffix(".safetensors"), adapter, {})
    return {way: shares.tolist() for way, shares in right.items()}


if __name__ == "__main__":
    main("--small" in sys.argv, next((word for word in sys.argv if word.endswith(".png")), "runs/digits.png"))
