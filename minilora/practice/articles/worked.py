"""The worked examples of the articles, computed again, and the pipeline of one of them with minilora's commands."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from ...verify.language import Words, words


class Step(NamedTuple):
    """A step of an article's example: the number that it prints, and the right one."""

    place: str
    step: Words
    printed: str
    right: str


def softmax(S: np.ndarray) -> np.ndarray:
    e = np.exp(S - S.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def shown(a: np.ndarray, digits: int = 4) -> str:
    return np.array2string(np.asarray(a), precision=digits, floatmode="fixed", separator=", ").replace("\n", "")


def attention_by_hand() -> Iterator[Step]:
    """Three tokens (rows of E), one number each for query, key and value: its columns."""
    E = np.array([[1, 0, 1], [0, 1, 0], [1, 1, 1.0]])
    Q, K, V = E[:, :1], E[:, 1:2], E[:, 2:]
    U, Vt = np.eye(2), np.array([[1, 1], [1, 0.0]])
    place, s = "002 §4.3", softmax(np.array([2, 1.0]))
    yield Step(place, words("V, the third column of E, beside Q and K"), "[1, 1, 1]", shown(V.ravel().astype(int)))
    yield Step(place, words("rank of the 2 × 2 product that is called low-rank"), "–", str(matrix_rank(U @ Vt)))
    yield Step(place, words("softmax of (2, 1)"), "2/3, 1/3", shown(s))
    yield Step(place, words("error of dividing by the sum instead"), "–", shown(np.array([2 / 3, 1 / 3]) / s - 1, 3))
    yield Step(place, words("scores Q Kᵀ"), "–", shown((Q @ K.T).astype(int)))
    yield Step(place, words("output softmax(Q Kᵀ) V"), "[2/3, 1/3]", shown((softmax(Q @ K.T) @ V).ravel()))


def truncation_by_hand() -> Iterator[Step]:
    """A 100 × 300 matrix, drawn at random, and its first ten singular values."""
    W = np.random.default_rng(33).standard_normal((100, 300))
    U, S, Vt = np.linalg.svd(W, full_matrices=False)
    cut, kept = (U[:, :10] * S[:10]) @ Vt[:10], float((S[:10] ** 2).sum() / (S**2).sum())
    twice = (U[:, :10] * S[:10] ** 2) @ Vt[:10]
    error = np.linalg.norm(twice - cut) / np.linalg.norm(cut)
    place = "003 §4.3"
    yield Step(place, words("numbers in the three factors, of 30,000"), "–", f"{10 * (100 + 300) + 10:,}")
    yield Step(place, words("the rank from which factors are no smaller"), "–", f"{100 * 300 // (100 + 300)}")
    yield Step(place, words("share of ‖W‖² that ten values keep"), "–", f"{kept:.1%}")
    yield Step(place, words("relative error if S stands in the product twice, as printed"), "0", f"{error:.1f}")
    yield Step("003 §4.4.2", words("rank of U (S + δ) Vᵀ - W for diagonal δ"), "–", str(matrix_rank((U * 0.1) @ Vt)))
    yield Step("003 §5.2", words("loss of a constant guess, two classes"), "0.7131", f"{np.log(2):.4f}")


def matrix_rank(a: np.ndarray) -> int:
    return int(np.linalg.matrix_rank(a))


def steps() -> list[Step]:
    return [*attention_by_hand(), *truncation_by_hand()]


PIPELINE = (  # article 003 pretrains, decomposes, fine-tunes, optimises, deploys
    (words("pretrained already: MiniLM; nothing is decomposed"), "minilora info minilm"),
    (
        words("fine-tune an adapter; this is the optimisation, not a separate step"),
        "minilora finetune --task classify --base minilm --data rotten_tomatoes --targets q_proj,v_proj --out reviews",
    ),
    (words("use it with the frozen base"), "echo 'A film to remember.' | minilora predict --adapter reviews"),
    (
        words("deploy: one model of the base's size, for Transformers"),
        "minilora merge --adapter reviews --out merged",
    ),
)
