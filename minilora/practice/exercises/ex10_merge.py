"""10 · Merge and unmerge

A LoRA layer computes y = x Wᵀ + s (x ∘ keep) Aᵀ Bᵀ, with W frozen. At
inference one matrix W2 is enough, of the size of W: x W2ᵀ = y for every x.

    merge(W, A, B, alpha, p, rs)      returns W2

    W, W2 (out, in)    A (r, in)    B (out, r)    r ≥ 1, read off A
    s       α/r, or where rs is True α/√r, that of rsLoRA
    p       the probability of dropout in training: keep was 0 with
            probability p, and 1/(1-p) otherwise. At inference keep is 1

The adapter can be taken out again. What then stands in the layer must be what
was there before, bit for bit:

    unmerge(layer)      returns that weight

    layer   a dict, of what a merged layer keeps: "weight" is W2, and "W", "A",
            "B", "alpha", "p" and "rs" are what merge was given

Nothing that is given may change.

One number by hand: W = 3, A a column of 1, 2, 3, 4, B a row of 5, 6, 7, 8, so
that r = 4; α = 6. B A = 5 + 12 + 21 + 32 = 70. With rs False s = 1.5, and
W2 = 3 + 105 = 108; with rs True s = 3, and W2 = 213. Unmerging gives 3 again.
"""

import numpy as np


def merge(W, A, B, alpha, p, rs=False):
    """Return W2.

    >>> A, B = np.array([[1.0], [2.0], [3.0], [4.0]]), np.array([[5.0, 6.0, 7.0, 8.0]])
    >>> merge(np.array([[3.0]]), A, B, 6.0, 0.1), merge(np.array([[3.0]]), A, B, 6.0, 0.1, True)
    (array([[108.]]), array([[213.]]))
    """
    ### BEGIN SOLUTION
    r = len(A)
    s = alpha / np.sqrt(r) if rs else alpha / r
    return W + s * B @ A
    ### END SOLUTION


def unmerge(layer):
    """Return the weight from before the merge.

    >>> one = np.ones((1, 1))
    >>> layer = {"weight": 108 * one, "W": 3 * one, "A": 5 * one, "B": 7 * one, "alpha": 3.0, "p": 0.1, "rs": False}
    >>> unmerge(layer)
    array([[3.]])
    """
    ### BEGIN SOLUTION
    return layer["W"]
    ### END SOLUTION


### THE CHECK

import copy
from dataclasses import replace

from ...adapters.lora import LoRALinear
from ...nn import Linear, Parameter
from ..exercise import Exercise, Viva
from ..parts import Refused, Value, equal

# out, in, r, whether rs, of each case
SHAPES = [(5, 4, 2, False), (6, 4, 3, True), (3, 7, 2, False), (5, 8, 3, True), (4, 8, 5, False), (7, 6, 2, True)]


def draw(rng, i):
    n, m, r, rs = SHAPES[i]
    W, A, B = (rng.standard_normal(shape) for shape in ((n, m), (r, m), (n, r)))
    return {"W": W, "A": A, "B": B, "alpha": float(rng.uniform(5.5, 12)), "p": float(rng.uniform(0.1, 0.4)), "rs": rs}


def truth(W, A, B, alpha, p, rs):
    options = {"r": len(A), "alpha": alpha, "dropout": p, "rslora": rs}
    return LoRALinear.of(Linear(Parameter(W)), {"lora_A": A, "lora_B": B}, **options).merged()[0]


def draw_layer(rng, i):
    given = draw(rng, i)
    return {"layer": {"weight": merge(*given.values()), **given}}


def restored(layer):
    return layer["W"]


def rounded(function):
    """Is a bit of W lost? What is added is larger than W, and takes its last bits."""
    rng = np.random.default_rng(7)
    W, A, B = rng.standard_normal((40, 30)), rng.standard_normal((2, 30)), rng.standard_normal((40, 2))
    layer = {"weight": merge(W, A, B, 50.0, 0.1), "W": W, "A": A, "B": B, "alpha": 50.0, "p": 0.1, "rs": False}
    return not np.array_equal(function(layer), W)


class Merging(Value):
    """Two products that do not fit are the same mistake only where NumPy complains of the same sizes."""

    def run(self, function, arguments):
        try:
            return super().run(function, arguments)
        except Refused as refused:
            if refused.kind == "raises":
                refused.detail = refused.says.en
            raise


class Unmerging(Value):
    """Rounding counts: W is not right where the rule is broken, nor would it be if layer were left alone."""

    def check(self, function, seed=0):
        checked = super().check(function, seed)
        broken = [replace(f, tensor="W", kind="fault") for f in checked.findings if f.kind == "rule"]
        return checked._replace(findings=broken or checked.findings)

    def outcome(self, function, arguments, true):
        try:
            return super().outcome(function, arguments, true)
        except Refused as refused:
            if refused.kind == "changed" and not equal(self.run(function, copy.deepcopy(arguments)), true):
                refused.detail = "and wrong"
            raise


merging = Merging(merge, "W2", truth=truth, draw=draw)
unmerging = Unmerging(unmerge, "W", truth=restored, draw=draw_layer)


def scale(A, alpha, rs):
    return alpha / np.sqrt(len(A)) if rs else alpha / len(A)


@merging.mistake("{it} has no scale: B A is added as it is", "At α = 0, what must W2 be?")
def no_scale(W, A, B, alpha, p, rs):
    return W + B @ A


@merging.mistake("the scale in {it} is α, not divided by r", "Which two numbers make up the scale?")
def not_divided_by_r(W, A, B, alpha, p, rs):
    return W + alpha * B @ A


@merging.mistake("the scale in {it} is upside down, r/α", "If α is doubled, does W2 move away from W or towards it?")
def scale_inverted(W, A, B, alpha, p, rs):
    return W + 1 / scale(A, alpha, rs) * B @ A


@merging.mistake("the scale in {it} is α/r also where rs is True", "What does rs change?")
def rslora_forgotten(W, A, B, alpha, p, rs):
    return W + scale(A, alpha, False) * B @ A


@merging.mistake("the scale in {it} is α/√r also where rs is False", "What does rs change?")
def always_rslora(W, A, B, alpha, p, rs):
    return W + scale(A, alpha, True) * B @ A


@merging.mistake("the two scales in {it} are exchanged", "With rs False, what is the scale at r = 4?")
def scales_exchanged(W, A, B, alpha, p, rs):
    return W + scale(A, alpha, not rs) * B @ A


@merging.mistake("the root in {it} is over all of α/r, not over r alone", "At α = 8 and r = 4, how much is α/√r?")
def root_of_the_scale(W, A, B, alpha, p, rs):
    s = alpha / len(A)
    return W + (np.sqrt(s) if rs else s) * B @ A


@merging.mistake("{it} divides α by the number of columns of A, not by its rows", "Which axis of A is r long?")
def divided_by_width(W, A, B, alpha, p, rs):
    return W + scale(A.T, alpha, rs) * B @ A


@merging.mistake(
    "{it} scales ΔW by 1 - p: but the mask was divided by that in training", "What is the mean of one entry of keep?"
)
def times_kept(W, A, B, alpha, p, rs):
    return W + (1 - p) * scale(A, alpha, rs) * B @ A


@merging.mistake("{it} scales ΔW by 1/(1-p), as the mask of training", "What is keep at inference?")
def divided_by_kept(W, A, B, alpha, p, rs):
    return W + scale(A, alpha, rs) / (1 - p) * B @ A


@merging.mistake(
    "two things are wrong with the scale in {it}: it is α/r also where rs is True, and multiplied by 1 - p",
    "What does rs change? And what is the mean of one entry of keep?",
)
def rslora_forgotten_times_kept(W, A, B, alpha, p, rs):
    return W + (1 - p) * scale(A, alpha, False) * B @ A


@merging.mistake(
    "two things are wrong with the scale in {it}: it is α/r also where rs is True, and divided by 1 - p",
    "What does rs change? And what is keep at inference?",
)
def rslora_forgotten_divided_by_kept(W, A, B, alpha, p, rs):
    return W + scale(A, alpha, False) / (1 - p) * B @ A


@merging.mistake(
    "{it} adds the transpose of B A, of shape (in, out), to W, of shape (out, in)",
    "Which shape has B A, and which axis of it is the layer's output?",
)
def transposed(W, A, B, alpha, p, rs):
    return W + scale(A, alpha, rs) * (B @ A).T


@merging.mistake(
    "{it} multiplies A and B in an order in which their shapes do not fit",
    "Write (r, in) above A and (out, r) above B: in which order do they give (out, in)?",
)
def wrong_order(W, A, B, alpha, p, rs):
    return W + scale(A, alpha, rs) * A @ B


@merging.mistake("{it} is ΔW alone: the frozen W is missing", "What must W2 be where B = 0?")
def no_base(W, A, B, alpha, p, rs):
    return scale(A, alpha, rs) * B @ A


@merging.mistake("in {it}, the scale is on W too", "Does α change what the frozen layer does?")
def scale_on_both(W, A, B, alpha, p, rs):
    return scale(A, alpha, rs) * (W + B @ A)


@merging.mistake("in {it}, ΔW is subtracted from W, not added", "Which sign does the low-rank path have in y?")
def subtracted(W, A, B, alpha, p, rs):
    return W - scale(A, alpha, rs) * B @ A


@merging.mistake("in {it}, ΔW is added twice", "How often does the low-rank path stand in y?")
def added_twice(W, A, B, alpha, p, rs):
    return W + 2 * scale(A, alpha, rs) * B @ A


@merging.mistake(
    "{it} writes into the frozen W itself: the layer has nothing left to go back to",
    "Where is the W from before the merge, after it?",
)
def base_changed(W, A, B, alpha, p, rs):
    W += scale(A, alpha, rs) * B @ A
    return W


def taken_off(layer, s):
    return layer["weight"] - s * layer["B"] @ layer["A"]


def scale_in(layer):
    return scale(layer["A"], layer["alpha"], layer["rs"])


@unmerging.rule(
    "{it} returns W except for its last bits: any sum changes these",
    "What is (0.1 + 0.2) - 0.2 in Python? Is a sum needed to come back to W?",
    rounded,
)
def by_subtraction(layer):
    return taken_off(layer, scale_in(layer))


@unmerging.mistake(
    "{it} changes its argument layer, and does not return W bit for bit: a copy of layer repairs only the first",
    "What is (0.1 + 0.2) - 0.2 in Python? Is a sum needed to come back to W?",
)
def by_subtraction_in_place(layer):
    layer["weight"] -= scale_in(layer) * layer["B"] @ layer["A"]
    return layer["weight"]


@unmerging.mistake(
    "{it} is computed from the merged weight, and subtracts B A without its scale",
    "Must W be computed at all? And what did merge add?",
)
def unscaled_taken_off(layer):
    return taken_off(layer, 1)


@unmerging.mistake(
    "{it} is computed from the merged weight, and with α/r where the merge had α/√r",
    "Must W be computed at all? And what did merge add where rs is True?",
)
def taken_off_without_rs(layer):
    return taken_off(layer, layer["alpha"] / len(layer["A"]))


@unmerging.mistake("{it} has ΔW twice: it is added once more", "Is the weight of a merged layer W or W2?")
def added_again(layer):
    return taken_off(layer, -scale_in(layer))


@unmerging.mistake(
    "ΔW is subtracted from the frozen {it}, which never had it", "Which of the layer's weights has ΔW in it?"
)
def taken_off_the_base(layer):
    return layer["W"] - scale_in(layer) * layer["B"] @ layer["A"]


@unmerging.mistake("{it} is the merged weight, as it came", "What does the layer compute after that?")
def still_merged(layer):
    return layer["weight"]


EXERCISE = Exercise(
    title="Merge and unmerge",
    kind="write",
    minutes=20,
    difficulty=2,
    needs=["01"],
    parts=[merging, unmerging],
    hints=(
        "Take one row x and write both paths of y with brackets, so that x stands in front once. What stands behind?",
        "What is keep where nothing is dropped, and what does that say of p? As for the way back: every sum is "
        "rounded. Is there a way without one?",
    ),
    viva=[
        Viva(
            "Is merging exact?",
            "In algebra. In numbers W2 is rounded: outputs move by about 4e-8 in float32 and 3e-4 in float16, and in "
            "four bits the adapter may be rounded away. To come back exactly, W must be kept, or read again.",
            "Yes, it is lossless, and subtraction undoes it.",
        ),
        Viva(
            "After a merge, outputs are off by exactly the low-rank path. What happened, and which test sees it?",
            "It was merged twice, or the branch is still on beside the merged weight. Compare the merged model with "
            "the one from before, at B ≠ 0; a model compared with itself sees nothing.",
            "It is rounding, and goes away in float64.",
        ),
    ],
    asks=["G1", "G9", "B5"],
)
