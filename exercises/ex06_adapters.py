"""06 · Seven adapters that do not adapt

Each of the seven classes below was published as LoRA, or happened to people
who meant it to be; each is rewritten here in a few lines. None adapts.

    adapter = Class(weights, r, alpha, rng)
    adapter.trained                {name: array}, all that the optimizer gets,
                                   which changes these arrays in place
    adapter.forward(x)             y; x (batch, tokens, in)
    adapter.merge()                {name: W}: all weights, the update added
    Class.base(weights, x)         the frozen model's y; it is right as it is

weights is {name: W (out, in)}, and stays as it is. The factors of the weight n
are trained[n + ".A"] (r, in) and trained[n + ".B"] (out, r); its update is
α/r B A. Class.targets holds the last parts of the names that get factors.

First write five(make, weights, r, alpha). It makes an adapter of the class
make and returns five bools, in this order:

    start   before training, forward gives what base gives
    learns  before training, the output has a slope in what is trained:
            moving all of it at random by 1e-6 moves the output by far more
            than 1e-6 squared
    count   trained holds r (in + out) numbers for each target, and no others
    scale   for each target, merge() minus W is α/r B A
    merge   base of the merged weights gives what forward gives, the adapter's
            forward is the same after merge(), and weights are as they were

x is the input of the first weight, whose in it has. Then repair the seven,
until all five hold of each. forward may add s (x Aᵀ) Bᵀ or use merged weights.

By hand: W is 4 × 3, r = 2, α = 6. There are 2 (3 + 4) = 14 numbers to train,
and where A and B are all ones, each entry of the update is 6/2 · 2 = 6.
"""

import numpy as np


def five(make, weights, r, alpha):
    """Return start, learns, count, scale, merge.

    >>> five(ScaleLeftOut, {"proj": np.ones((4, 3))}, 2, 6.0)
    (True, True, True, True, True)
    """
    raise NotImplementedError


def softmax(z):
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def start(W, r, rng):
    """A and B of exercise 02."""
    return rng.uniform(-1, 1, (r, W.shape[1])) / np.sqrt(W.shape[1]), np.zeros((len(W), r))


def linear(weights, x):
    return x @ weights["proj"].T


def attention(weights, x):
    q, k, v = (x @ weights[name].T for name in ("q_proj", "k_proj", "v_proj"))
    return softmax(q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])) @ v


def classifier(weights, x):
    return np.tanh(x @ weights["encoder"].T).mean(axis=1) @ weights["head"].T


def layers(weights, x):
    for W in weights.values():
        x = np.tanh(x @ W.T)
    return x


class SoftmaxOverTheRank:
    """(a) A "LoRA adapter" of an article's interview questions."""

    base, targets = staticmethod(linear), ("proj",)

    def __init__(self, weights, r, alpha, rng):
        self.W = weights["proj"]
        n_out, n_in = self.W.shape
        A, B, gate = rng.random((r, n_in)), rng.random((n_out, r)), rng.random((r, n_in))
        self.trained = {"proj.A": A, "proj.B": B, "gate": gate, "bias": rng.random(n_out)}

    def forward(self, x):
        A, B, _, bias = self.trained.values()
        return softmax(x @ A.T) @ B.T + bias

    def merge(self):
        return {"proj": self.trained["proj.B"] @ self.trained["proj.A"]}


class FactorsForWeights:
    """(b) "Decompose the weights of attention": q and v are to be adapted."""

    base, targets = staticmethod(attention), ("q_proj", "v_proj")

    def __init__(self, weights, r, alpha, rng):
        self.weights, self.s, self.trained = weights, alpha / r, {}
        for name in self.targets:
            self.trained[f"{name}.A"], self.trained[f"{name}.B"] = start(weights[name], r, rng)

    def forward(self, x):
        q, v = (x @ self.trained[f"{name}.A"].T @ self.trained[f"{name}.B"].T for name in self.targets)
        k = x @ self.weights["k_proj"].T
        return softmax(q @ k.swapaxes(-1, -2)) @ v

    def merge(self):
        updates = {name: self.s * self.trained[f"{name}.B"] @ self.trained[f"{name}.A"] for name in self.targets}
        return self.weights | updates


class NeverCalled:
    """(c) A classifier with `self.lora`, and an optimizer that gets model.parameters()."""

    base, targets = staticmethod(classifier), ("encoder",)

    def __init__(self, weights, r, alpha, rng):
        self.weights, self.s = weights, alpha / r
        A, B = start(weights["encoder"], r, rng)
        self.weights = {name: W.copy() for name, W in weights.items()}
        self.trained = {"encoder.A": A, "encoder.B": B} | self.weights

    def forward(self, x):
        return classifier(self.weights, x)

    def merge(self):
        update = self.s * self.trained["encoder.B"] @ self.trained["encoder.A"]
        return self.weights | {"encoder": self.weights["encoder"] + update}


class ScaleLeftOut:
    """(d) Small code that is copied much: alpha is taken, and not used."""

    base, targets = staticmethod(linear), ("proj",)

    def __init__(self, weights, r, alpha, rng):
        self.W = weights["proj"]
        self.A, self.B = start(self.W, r, rng)
        self.trained = {"proj.A": self.A, "proj.B": self.B}

    def forward(self, x):
        return x @ self.W.T + (x @ self.A.T) @ self.B.T

    def merge(self):
        return {"proj": self.W + self.B @ self.A}


class BothZero:
    """(e) "Zeros, so that the output is unchanged at first": in four code bases."""

    base, targets = staticmethod(linear), ("proj",)

    def __init__(self, weights, r, alpha, rng):
        self.W, self.s = weights["proj"], alpha / r
        self.A, self.B = np.zeros((r, self.W.shape[1])), np.zeros((len(self.W), r))
        self.trained = {"proj.A": self.A, "proj.B": self.B}

    def forward(self, x):
        return x @ self.W.T + self.s * (x @ self.A.T) @ self.B.T

    def merge(self):
        return {"proj": self.W + self.s * self.B @ self.A}


class MergedAndStillOn:
    """(f) Merged for inference, as in many a server."""

    base, targets = staticmethod(linear), ("proj",)

    def __init__(self, weights, r, alpha, rng):
        self.weights, self.s = dict(weights), alpha / r
        self.A, self.B = start(weights["proj"], r, rng)
        self.trained = {"proj.A": self.A, "proj.B": self.B}

    def forward(self, x):
        return linear(self.weights, x) + self.s * (x @ self.A.T) @ self.B.T

    def merge(self):
        self.weights["proj"] = self.weights["proj"] + self.s * self.B @ self.A
        return self.weights


class NamesThatMatchNothing:
    """(g) Attached by name, to square matrices: with grouped queries v is not square."""

    base, targets = staticmethod(layers), ("q_proj", "v_proj")

    def __init__(self, weights, r, alpha, rng):
        self.weights, self.s, self.trained = weights, alpha / r, {}
        chosen = [name for name, W in weights.items() if name in self.targets and W.shape[0] == W.shape[1]]
        for name in chosen:
            self.trained[f"{name}.A"], self.trained[f"{name}.B"] = start(weights[name], r, rng)

    def forward(self, x):
        return layers(self.merge(), x)

    def merge(self):
        merged = dict(self.weights)
        for name in {key[:-2] for key in self.trained}:
            merged[name] = merged[name] + self.s * self.trained[f"{name}.B"] @ self.trained[f"{name}.A"]
        return merged
