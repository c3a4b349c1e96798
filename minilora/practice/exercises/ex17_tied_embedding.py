"""17 · The embedding and its tied head

One table E is read by its rows at the input, and multiplied with at the head:

    x = E[ids]    ...the layers in between...    h    logits = h Eᵀ

    E, dE (V, C)    ids (batch, tokens), integers from 0 to V - 1
    x, dx, dy, h, dh (batch, tokens, C)    logits, dlogits (batch, tokens, V)

a. embedding_backward(dy, ids, V): the look-up y = E[ids] alone, dy = ∂L/∂y.
   Return dE. The same id may occur at many places. No id means padding.
b. tied_backward(dlogits, dx, h, ids, E): both uses. dlogits = ∂L/∂logits, and
   dx = ∂L/∂x has come back through the layers already. Return dE, for the one
   table, and dh = ∂L/∂h as it leaves the head.
c. merge_tied(E, A, B, alpha, adapted): a LoRA adapter of the table,

       ΔE = s (B A)ᵀ    s = α/r    A (r, V)    B (C, r)

   acts where `adapted` says: on the look-up ("embed"), on the head ("head"),
   or on both with the same A and B ("both"); the other use reads E. Return
   the tables (embed, head) of a model without an adapter that computes the
   same. E is still the base of other adapters, and must not change. With
   "both", return the same array object twice: the tables stay tied.

By hand, V = 2, C = 1, E = (2, 3). a: ids = (1, 1), dy = (5, 7): dE = (0, 12).
b: with those ids, dx = (5, 7), h = (1, 4), dlogits = ((1, 10), (2, 20)):
dE = (9, 102), dh = (32, 64).
c: A = (1, 4), B = 5, α = 3, r = 1: ΔE = (15, 60), E + ΔE = (17, 63).
"""

import numpy as np


def embedding_backward(dy, ids, V):
    """Return dE.

    >>> embedding_backward(np.array([[[5.0], [7.0]]]), np.array([[1, 1]]), 2).tolist()
    [[0.0], [12.0]]
    """
    ### BEGIN SOLUTION
    dE = np.zeros((V, dy.shape[-1]))
    np.add.at(dE, ids, dy)
    return dE
    ### END SOLUTION


def tied_backward(dlogits, dx, h, ids, E):
    """Return dE, dh.

    >>> dlogits, dx, h = np.array([[[1.0, 10.0], [2.0, 20.0]]]), np.array([[[5.0], [7.0]]]), np.array([[[1.0], [4.0]]])
    >>> dE, dh = tied_backward(dlogits, dx, h, np.array([[1, 1]]), np.array([[2.0], [3.0]]))
    >>> dE.tolist(), dh.tolist()
    ([[9.0], [102.0]], [[[32.0], [64.0]]])
    """
    ### BEGIN SOLUTION
    dE = np.einsum("btv,btc->vc", dlogits, h) + embedding_backward(dx, ids, len(E))
    dh = dlogits @ E
    return dE, dh
    ### END SOLUTION


def merge_tied(E, A, B, alpha, adapted):
    """Return embed, head.

    >>> embed, head = merge_tied(np.array([[2.0], [3.0]]), np.array([[1.0, 4.0]]), np.array([[5.0]]), 3.0, "head")
    >>> embed.tolist(), head.tolist()
    ([[2.0], [3.0]], [[17.0], [63.0]])
    """
    ### BEGIN SOLUTION
    merged = E + alpha / len(A) * (B @ A).T
    return (E if adapted == "head" else merged), (E if adapted == "embed" else merged)
    ### END SOLUTION


### THE CHECK

from ...adapters.lora import LoRAEmbedding
from ...nn import Embedding
from ...ops import embedding_gradients, linear_backward, linear_gradients
from ...verify.problems.embedding import SHAPES, draw_ids, last_rows
from ..exercise import Exercise, Viva
from ..parts import Gradient, Value

lookup = Gradient(
    embedding_backward,
    "dE",
    problem="embedding",
    called={"W": "E"},
    makes={"V": lambda case: len(case.inputs["W"])},
)


# b. both uses


def draw(rng, i):
    ids, sizes = draw_ids(rng, SHAPES[i])
    V, C = sizes["V"], sizes["width"]
    dlogits = rng.standard_normal((*ids.shape, V))
    dx, h = rng.standard_normal((2, *ids.shape, C))
    return {"dlogits": dlogits, "dx": dx, "h": h, "ids": ids, "E": rng.standard_normal((V, C))}


def truth(dlogits, dx, h, ids, E):
    return linear_gradients(dlogits, h) + embedding_gradients(dx, ids, len(E)), linear_backward(dlogits, E)


tied = Value(tied_backward, "dE dh", truth=truth, draw=draw)


def output_path(dlogits, h):
    return np.einsum("btv,btc->vc", dlogits, h)


def input_path(dx, ids, E):
    return embedding_backward(dx, ids, len(E))


def wrong_dE(name, says, asks, dE):
    """dE is another function of the arguments."""

    def wrong(dlogits, dx, h, ids, E):
        return dE(dlogits, dx, h, ids, E), dlogits @ E

    wrong.__name__ = name
    tied.mistake(says, asks)(wrong)


wrong_dE(
    "output_path_missing",
    "{it} lacks the path through the head: the gradient from the logits h Eᵀ",
    "A row of E that no id looks up still makes a logit: what is its gradient?",
    lambda dlogits, dx, h, ids, E: input_path(dx, ids, E),
)
wrong_dE(
    "input_path_missing",
    "{it} lacks the path through the look-up: what dx brings to the rows that were read",
    "In how many places does the forward use E?",
    lambda dlogits, dx, h, ids, E: output_path(dlogits, h),
)
wrong_dE(
    "repeats_lost",
    "the look-up's part of {it} holds only the last place of a repeated id: its other places are lost",
    "What happens in NumPy when the same index occurs several times in an indexed in-place addition?",
    lambda dlogits, dx, h, ids, E: output_path(dlogits, h) + last_rows(ids, dx, len(E)),
)


@tied.mistake(
    "the look-up overwrites the rows of {it} that were read, but must add to them",
    "What did those rows hold before the gradient of the look-up arrived?",
)
def output_path_overwritten(dlogits, dx, h, ids, E):
    dE = output_path(dlogits, h)
    dE[ids] = dx
    return dE, dlogits @ E


wrong_dE(
    "counted_twice",
    "{it} is counted twice: both paths are added for each of the two uses of E",
    "The table is one parameter under two names: how often was its gradient accumulated?",
    lambda dlogits, dx, h, ids, E: 2 * (output_path(dlogits, h) + input_path(dx, ids, E)),
)
wrong_dE(
    "paths_averaged",
    "{it} is the mean of its two paths, but must be their sum",
    "If E moves a little, do the changes along both paths add up or average?",
    lambda dlogits, dx, h, ids, E: (output_path(dlogits, h) + input_path(dx, ids, E)) / 2,
)
wrong_dE(
    "averaged_over_positions",
    "{it} is divided by the number of positions: it is a mean, but must be a sum",
    "Is there a mean in the two uses of E, or would it belong to the loss?",
    lambda dlogits, dx, h, ids, E: (output_path(dlogits, h) + input_path(dx, ids, E)) / ids.size,
)
wrong_dE(
    "last_sample_only",
    "{it} holds the last sample alone: the others were overwritten, not added",
    "Does your loop over the samples add to the result of the sample before, or overwrite it?",
    lambda dlogits, dx, h, ids, E: output_path(dlogits[-1:], h[-1:]) + input_path(dx[-1:], ids[-1:], E),
)
wrong_dE(
    "row_zero_as_padding",
    "the look-up's part of {it} leaves out row 0, as though the id 0 were padding",
    "Does the forward treat the id 0 differently from the others?",
    lambda dlogits, dx, h, ids, E: output_path(dlogits, h) + input_path(dx * (ids > 0)[..., None], ids, E),
)
wrong_dE(
    "ids_of_the_next_token",
    "the look-up's part of {it} adds each dx to the row of the next token's id: those are the targets",
    "Which ids does the look-up read: those of the input, or those that the model is to predict?",
    lambda dlogits, dx, h, ids, E: output_path(dlogits, h) + input_path(dx, np.roll(ids, -1, axis=1), E),
)
wrong_dE(
    "head_fed_with_dx",
    "the head's part of {it} multiplies dlogits by dx, a gradient, and not by what E is multiplied by in the logits",
    "What does Eᵀ multiply in the forward?",
    lambda dlogits, dx, h, ids, E: output_path(dlogits, dx) + input_path(dx, ids, E),
)
wrong_dE(
    "look_up_fed_with_dh",
    "the look-up's part of {it} adds dh up, the gradient at the other end of the layers, and not dx",
    "Which of dh and dx is the gradient of the rows that were read?",
    lambda dlogits, dx, h, ids, E: output_path(dlogits, h) + input_path(dlogits @ E, ids, E),
)


@tied.mistake(
    "{it} has dx added to it: dx lies below the layers in between, dh above them",
    "By which paths does h reach the loss? Is x one of them?",
)
def dx_added_to_dh(dlogits, dx, h, ids, E):
    return output_path(dlogits, h) + input_path(dx, ids, E), dlogits @ E + dx


@tied.mistake(
    "{it} takes the rows of ids alone, but every row of E makes a logit of h",
    "Which logits change when one h changes: that of the id read there, or those of the whole vocabulary?",
)
def dh_from_the_rows_of_ids(dlogits, dx, h, ids, E):
    picked = np.take_along_axis(dlogits, ids[..., None], axis=-1)
    return output_path(dlogits, h) + input_path(dx, ids, E), picked * E[ids]


# c. merging

ADAPTED = ("both", "embed", "head", "both", "head", "embed")
TABLES = [(7, 4, 2), (9, 5, 3), (6, 8, 4), (11, 3, 1), (8, 6, 5), (5, 7, 2)]  # V, C, r


def draw_adapter(rng, i):
    V, C, r = TABLES[i]
    E, A, B = rng.standard_normal((V, C)), rng.standard_normal((r, V)), rng.standard_normal((C, r))
    return {"E": E, "A": A, "B": B, "alpha": r + float(rng.uniform(1.5, 9)), "adapted": ADAPTED[i]}


def true_tables(E, A, B, alpha, adapted):
    options = {"r": len(A), "alpha": alpha, "rslora": False, "dropout": 0.0}
    merged = LoRAEmbedding.of(Embedding(E), {"lora_A": A, "lora_B": B}, **options).merged()[0]
    return {"embed": E if adapted == "head" else merged, "head": E if adapted == "embed" else merged}


merging = Value(merge_tied, "embed head", truth=true_tables, draw=draw_adapter)


def update(A, B, alpha):
    return alpha / len(A) * (B @ A).T


@merging.mistake(
    "{it} is E without ΔE where the adapter acts on both uses: the look-up was merged, the head was not",
    "With the adapter on both, which two places of the forward read the table?",
)
def head_left_out(E, A, B, alpha, adapted):
    return merge_tied(E, A, B, alpha, "embed" if adapted == "both" else adapted)


@merging.mistake(
    "{it} is E without ΔE where the adapter acts on both uses: the head was merged, the look-up was not",
    "With the adapter on both, which two places of the forward read the table?",
)
def look_up_left_out(E, A, B, alpha, adapted):
    return merge_tied(E, A, B, alpha, "head" if adapted == "both" else adapted)


@merging.mistake(
    "{it} has ΔE whatever is adapted: merging into the shared table changed the use that has no adapter",
    "The adapter acts on one use of the table: what did the other use read before merging?",
)
def merged_into_the_shared_table(E, A, B, alpha, adapted):
    return merge_tied(E, A, B, alpha, "both")


@merging.mistake(
    '{it} has ΔE where the other use is adapted: "embed" and "head" are exchanged',
    "Which of the two does each word name, and which of them do you return first?",
)
def uses_exchanged(E, A, B, alpha, adapted):
    return merge_tied(E, A, B, alpha, adapted)[::-1]


@merging.mistake(
    "{it} never has ΔE: it is the base's table, and the adapter is lost",
    "What does the model with the adapter compute that the base does not?",
)
def never_merged(E, A, B, alpha, adapted):
    return E, E


@merging.mistake(
    "{it} has ΔE without the scale α/r", "With which factor does the adapter add its low-rank path to the output?"
)
def no_scale(E, A, B, alpha, adapted):
    return merge_tied(E, A, B, len(A), adapted)


@merging.mistake("the scale of ΔE in {it} is α, not divided by r", "Which two numbers make up the scale?")
def not_divided_by_r(E, A, B, alpha, adapted):
    return merge_tied(E, A, B, alpha * len(A), adapted)


@merging.mistake("the scale of ΔE in {it} is α/√r, that of rsLoRA", "Which of the two scales does the equation have?")
def divided_by_root_r(E, A, B, alpha, adapted):
    return merge_tied(E, A, B, alpha * np.sqrt(len(A)), adapted)


@merging.mistake(
    "the scale of ΔE in {it} is α divided by the size of the vocabulary", "Which axis of A is as long as the rank?"
)
def divided_by_V(E, A, B, alpha, adapted):
    return merge_tied(E, A, B, alpha * len(A) / len(E), adapted)


@merging.mistake(
    "{it} is ΔE alone where it is adapted, without E", "If B were zero, what would the merged table have to be?"
)
def base_left_out(E, A, B, alpha, adapted):
    delta = update(A, B, alpha)
    return (E if adapted == "head" else delta), (E if adapted == "embed" else delta)


@merging.mistake(
    "{it} has ΔE twice where both uses are adapted: it is one table, merged once for each of its names",
    "How many tables are there before merging, and how often may each be changed?",
)
def merged_once_for_each_use(E, A, B, alpha, adapted):
    return merge_tied(E, A, B, 2 * alpha if adapted == "both" else alpha, adapted)


def no_longer_tied(function):
    """With the adapter on both uses, are the tables two arrays?"""
    case = draw_adapter(np.random.default_rng(5), 0)
    embed, head = merging.run(function, case).values()
    return not np.shares_memory(embed, head)


@merging.rule(
    '{it} returns two arrays with "both": they are equal now, and one more step of training parts them',
    "How much memory does a table of 150,000 × 4,096 take, and how many of them did the model have before merging?",
    no_longer_tied,
)
def untied(E, A, B, alpha, adapted):
    return tuple(table.copy() for table in merge_tied(E, A, B, alpha, adapted))


EXERCISE = Exercise(
    title="The embedding and its tied head",
    kind="write",
    minutes=30,
    difficulty=3,
    needs=["03", "11"],
    parts=[lookup, tied, merging],
    hints=(
        "Think of the look-up as a linear layer, x = onehot(ids) E, and of the head as another that has E for its W: "
        "exercise 03 has both backwards. Which of their gradients belong to the same E?",
        "In a, test with one id at every place. In c, write down what the look-up and the head read before merging, "
        "for each of the three words: after merging each must read the same.",
    ),
    viva=[
        Viva(
            "A LoRA adapter acts on the look-up of a tied model alone. What if it is merged into the table?",
            "The head reads the same table, and now has ΔE as well, which it never had in training: logits change. The "
            "two must be untied for the merge, with one large matrix more, and the config must say so, or loading ties "
            "them again.",
            "Nothing: merging is exact.",
        ),
        Viva(
            "Which rows of dE are zero without the tied head, and which with it?",
            "Without it every row whose id is not in the batch. With it none: each row makes a logit at every "
            "position, and softmax gives each logit a gradient.",
            "The same ones: a row that is not read gets no gradient.",
        ),
    ],
    asks=["F3"],
    derivation="embedding",
)
