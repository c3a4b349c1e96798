"""What will a visitor look at next? A causal transformer over items that are features, not words; a new market by LoRA.

    python notebooks/examples/recommender.py [--small] [FIGURE.png]

The world is simulated (market.py). The new market differs from the old by a shift of rank 1: just what LoRA can say,
and no real market need be so kind. The model is SASRec (Kang and McAuley, 2018), with features in the place of a table.
"""

import sys
from copy import deepcopy

import figures
import numpy as np
from market import F, N, T, sessions

import minilora
from minilora.accounting import count_parameters
from minilora.data import Batch, shuffled
from minilora.models.parts import LayerFactory, layers_by_name
from minilora.nn import Inputs, Linear, Module, Parameter, Pass, PreNormBlock, Sequential
from minilora.nn.optim import cosine_schedule


class Items(Module):
    """y_t = E f(id_t) + P_t        f (N, F) the features, which are given; E and P learn"""

    def __init__(self, features, new, C):
        self.features, self.proj, self.position = features, new.linear(F, C, bias=False), Parameter(new.normal(T, C))

    def forward(self, ids, inputs=Inputs(), run=Pass()):
        h, cache = self.proj.forward(self.features[ids], inputs, run)
        return h + self.position.data, cache

    def backward(self, dy, cache, grads):
        grads.add(self.position, dy.sum(axis=0))  # every session of the batch adds the same P
        self.proj.backward(dy, cache, grads)  # its dx would be the features': they are given


def recommender(features, C=64):
    """The last layer, frozen, compares a query with every item: logits = query(h) fᵀ."""
    new = LayerFactory(minilora.Config(vocab_size=N, n_layers=2, d_model=C, n_heads=4), np.random.default_rng(0))
    norm, attention = new.layer_norm, lambda: new.attention(causal=True, bias=True)
    blocks = [PreNormBlock(norm(), attention(), norm(), new.mlp()) for _ in range(new.config.n_layers)]
    score = Linear(features)
    score.freeze()
    head = {"query": new.linear(C, F, bias=False), "score": score}
    return Sequential(layers_by_name(Items(features, new, C), blocks, norm=norm(), **head))


def hits(scores, targets, most=20):
    """For k = 1..most, the share of next items that are among the k of best score."""
    rank = (scores > np.take_along_axis(scores, targets[..., None], axis=-1)).sum(axis=-1)
    return [float((rank < k).mean()) for k in range(1, most + 1)]


def main(small=False, out="runs/recommender.png"):
    rng = np.random.default_rng(0)
    f, groups, M = rng.standard_normal((N, F)), rng.standard_normal((2, F)), rng.standard_normal((F, F)) / F**0.5
    shifted = M + 1.5 * np.outer(*rng.standard_normal((2, F))) / F**0.5
    old, _ = sessions(f, M, groups, 1000 if small else 3000, rng)
    (learn, _), (choose, _), (test, truth) = (sessions(f, shifted, groups, n, rng) for n in (1000, 200, 1000))

    def train(model, batch, steps, lr, **stop):
        schedule = cosine_schedule(steps)
        minilora.fit(model, shuffled(batch, 32, seed=0), steps, lr=lr, schedule=schedule, description=None, **stop)
        return model

    f = f.astype("float32")
    base = train(recommender(f), old, 200 if small else 800, 3e-3)
    start = {"LoRA": deepcopy(base), "full": base, "from nothing": recommender(f)}
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj", "query"]
    minilora.attach_lora(start["LoRA"], targets, r=2, alpha=4, rng=rng)
    counts = (f"{way} {count_parameters(model)['trainable']:,}" for way, model in start.items())
    print("parameters that learn:", ", ".join(counts))
    stop = {"held_out": lambda: [choose], "evaluate_every": 20, "patience": 5}  # the best step is kept
    curves = {n: {} for n in ((30,) if small else (10, 30, 100, 300, 1000))}
    for n, row in curves.items():
        few, scores = Batch(learn.ids[:n], learn.targets[:n]), {"the world itself": truth}
        for way, model in start.items():
            tried = [train(deepcopy(model), few, 300, lr, **stop) for lr in ((3e-3,) if small else (1e-3, 3e-3))]
            best = min(tried, key=lambda model: minilora.evaluate(model, [choose]))
            scores[way] = best.forward(test.ids)[0]
        scores["base"] = base.forward(test.ids)[0]
        popular = np.bincount(few.targets.ravel(), minlength=N) + rng.random(N) / 2  # chance decides between equals
        scores["most popular"] = np.broadcast_to(popular, truth.shape)
        row |= {way: hits(score, test.targets) for way, score in scores.items()}
        print(
            f"{n:>5} sessions, next item in the best 10:  ",
            ", ".join(f"{way} {hit[9]:.3f}" for way, hit in row.items()),
        )
    figures.recommender(out, curves)
    return curves


if __name__ == "__main__":
    main("--small" in sys.argv, next((word for word in sys.argv if word.endswith(".png")), "runs/recommender.png"))
