"""29 · Padding = packing = accumulation

One data set, laid out in three ways, is one data set. Each text is predicted
by itself, every token but its first from those before it, and

    loss = 1/n Σ -log P(next token)        over all n tokens that are predicted

    padded         a row for each text, short ones filled up at their end
    packed         one row: all texts, one after another
    accumulated    padded batches of `size` texts each, in order; the last may
                   be smaller. All together make one step of gradient descent

`losses` trains on each layout and returns three arrays: the loss before each
of `steps` steps, each of which subtracts rate · gradient of that loss. The
three must be equal. As handed out all three are wrong, so that none of them
serves as a model for the others: repair each.

    texts     a list of integer arrays of different lengths, 2 or longer
    params    E (V, C) of tokens, P (positions, C), U (V, C) of the output
    batch     ids, targets, positions (rows, T); visible (T, T) or (rows, T, T)

The first token of a text has position 0. P has a row for each token of all
texts, more than any one text needs. `model` is right: a token's logits are the
mean of E[id] + P[position] over the tokens that it sees, times Uᵀ; a target of
-1 predicts nothing. It returns a sum over the tokens, and you say by what it
is divided.

One number by hand: where U is 0, so are all logits, and each token's loss is
ln V. With V = 2 the first loss is 0.6931 in every layout. Texts (0, 1, 1) and
(1, 0) have n = 3.
"""

import numpy as np


def model(params, ids, targets, positions, visible):
    """Return the sum of the losses of a batch, and its gradients in E, P and U. There is nothing to repair here."""
    E, P, U = params
    M = visible / visible.sum(axis=-1, keepdims=True)
    h = M @ (E[ids] + P[positions])
    z = h @ U.T
    log_P = z - np.log(np.exp(z).sum(axis=-1, keepdims=True))
    onehot = targets[..., None] == np.arange(len(U))
    dz = (targets >= 0)[..., None] * np.exp(log_P) - onehot
    dx = np.swapaxes(M, -1, -2) @ (dz @ U)
    dE, dP = np.zeros_like(E), np.zeros_like(P)
    np.add.at(dE, ids, dx)
    np.add.at(dP, positions, dx)
    return -(onehot * log_P).sum(), [dE, dP, np.einsum("btv,btc->vc", dz, h)]


def pad(texts):
    """Return the batch with a row for each text."""
    lengths = [len(text) - 1 for text in texts]
    ids, targets = np.zeros((len(texts), max(lengths)), int), np.full((len(texts), max(lengths)), -1)
    for row, text in enumerate(texts):
        ids[row, : lengths[row]], targets[row, : lengths[row]] = text[:-1], text[1:]
    positions = np.tile(np.arange(max(lengths)), (len(texts), 1))
    return ids, targets, positions, np.tri(max(lengths))


def pack(texts):
    """Return the batch with all texts in one row."""
    ids, targets = (np.concatenate([text[part] for text in texts]) for part in (slice(-1), slice(1, None)))
    ### BEGIN SOLUTION
    lengths = [len(text) - 1 for text in texts]
    text_of = np.repeat(np.arange(len(texts)), lengths)
    positions = np.concatenate([np.arange(length) for length in lengths])
    visible = np.tri(len(ids)) * (text_of[:, None] == text_of)
    ### END SOLUTION
    #| positions = np.arange(len(ids))
    #| visible = np.tri(len(ids))
    return ids[None], targets[None], positions[None], visible


def train(batches, params, steps, rate):
    """Return the loss before each step. All batches together make one step."""
    curve = []
    ### BEGIN SOLUTION
    n = sum((targets >= 0).sum() for _, targets, _, _ in batches)
    for _ in range(steps):
        loss, gradients = 0.0, [0.0, 0.0, 0.0]
        for batch in batches:
            total, of_total = model(params, *batch)
            loss += total / n
            gradients = [g + d / n for g, d in zip(gradients, of_total, strict=True)]
        params = [p - rate * g for p, g in zip(params, gradients, strict=True)]
        curve.append(loss)
    ### END SOLUTION
    #| for _ in range(steps):
    #|     loss, gradients = 0.0, [0.0, 0.0, 0.0]
    #|     for batch in batches:
    #|         total, of_total = model(params, *batch)
    #|         n = batch[1].size * len(batches)
    #|         loss += total / n
    #|         gradients = [g + d / n for g, d in zip(gradients, of_total, strict=True)]
    #|     params = [p - rate * g for p, g in zip(params, gradients, strict=True)]
    #|     curve.append(loss)
    return np.array(curve)


def losses(texts, params, size, steps, rate):
    """Return padded, packed, accumulated: the three curves of the loss.

    >>> texts, params = [np.array([0, 1, 1]), np.array([1, 0])], [np.ones((2, 3)), np.ones((5, 3)), np.zeros((2, 3))]
    >>> [curve.round(4) for curve in losses(texts, params, 1, 1, 0.5)]
    [array([0.6931]), array([0.6931]), array([0.6931])]
    """
    layouts = [pad(texts)], [pack(texts)], [pad(texts[i : i + size]) for i in range(0, len(texts), size)]
    return tuple(train(batches, params, steps, rate) for batches in layouts)


### THE CHECK

from ...ops.cross_entropy import cross_entropy_backward, cross_entropy_forward
from ...ops.embedding import embedding_forward, embedding_gradients
from ...ops.linear import linear_backward, linear_forward, linear_gradients
from ..exercise import Exercise, Viva
from ..parts import Value

# texts, and in a batch: the last batch is short
SIZES = [(3, 2), (5, 3), (7, 3), (5, 2), (6, 4), (8, 5)]


def draw(rng, i):
    count, size = SIZES[i]
    lengths = rng.permutation(np.arange(2, 2 + count))
    V, C = rng.integers(4, 9, size=2)
    texts = [rng.integers(V, size=length) for length in lengths]
    params = [rng.standard_normal((rows, C)) for rows in (V, lengths.sum(), V)]
    return {"texts": texts, "params": params, "size": size, "steps": 3, "rate": float(rng.uniform(0.1, 0.4))}


def truth(texts, params, size, steps, rate):
    """Text by text, without padding, packing or batches."""
    curve, n = [], sum(len(text) - 1 for text in texts)
    for _ in range(steps):
        E, P, U = params
        loss, dE, dP, dU = 0.0, np.zeros_like(E), np.zeros_like(P), np.zeros_like(U)
        for text in texts:
            ids, T = text[:-1], len(text) - 1
            mean = np.tri(T) / np.arange(1, T + 1)[:, None]
            h = mean @ (embedding_forward(ids, E)[0] + P[:T])
            part, cache = cross_entropy_forward(linear_forward(h, U)[0], text[1:], count=n)
            dz = cross_entropy_backward(1.0, cache)
            dx = mean.T @ linear_backward(dz, U)
            loss, dE, dU = loss + float(part), dE + embedding_gradients(dx, ids, len(E)), dU + linear_gradients(dz, h)
            dP[:T] += dx
        params = [p - rate * d for p, d in zip(params, (dE, dP, dU), strict=True)]
        curve.append(loss)
    return np.array(curve), np.array(curve), np.array(curve)


part = Value(losses, "padded packed accumulated", truth=truth, draw=draw)


def curve(batches, ns, params, steps, rate, ns_of_loss=None, cleared=True):
    """As train, with a divisor of its own for each batch."""
    found, gradients = [], [0.0, 0.0, 0.0]
    for _ in range(steps):
        loss, gradients = 0.0, [0.0, 0.0, 0.0] if cleared else gradients
        for batch, n, n_of_loss in zip(batches, ns, ns_of_loss or ns, strict=True):
            total, of_total = model(params, *batch)
            loss += total / n_of_loss
            gradients = [g + d / n for g, d in zip(gradients, of_total, strict=True)]
        params = [p - rate * g for p, g in zip(params, gradients, strict=True)]
        found.append(loss)
    return np.array(found)


def predicted(batch):
    return int((batch[1] >= 0).sum())


def places(batch):
    return batch[1].size


def right_divisors(batches):
    return [sum(map(predicted, batches))] * len(batches)


def in_batches(texts, size):
    return [pad(texts[i : i + size]) for i in range(0, len(texts), size)]


def right(texts, params, steps, rate):
    """The curves before any of them is made wrong: all are one."""
    return dict.fromkeys(part.tensors, train([pad(texts)], params, steps, rate))


def otherwise(of):
    """A mistake: `of(texts, size)` gives the batches and their divisors of the layouts that it makes wrong."""

    def wrong(texts, params, size, steps, rate):
        wrong = {name: curve(*laid, params, steps, rate) for name, laid in of(texts, size).items()}
        return right(texts, params, steps, rate) | wrong

    wrong.__name__ = of.__name__
    return wrong


def divided(*tensors, only_the_gradient=False, **how):
    """The decorated function gives the divisors of some batches, for these layouts."""

    def decorate(ns):
        def wrong(texts, params, size, steps, rate):
            layouts = {"padded": [pad(texts)], "packed": [pack(texts)], "accumulated": in_batches(texts, size)}
            found = right(texts, params, steps, rate)
            for name in tensors:
                batches = layouts[name]
                ns_of_loss = right_divisors(batches) if only_the_gradient else None
                found[name] = curve(batches, ns(batches), params, steps, rate, ns_of_loss, **how)
            return found

        wrong.__name__ = ns.__name__
        return wrong

    return decorate


# By what the sum of a batch is divided


@part.mistake(
    "{it} has the padding in its divisor: the sum of the losses is divided by all places, not by n",
    "If the padding is made longer, must the loss fall?",
)
@divided("padded", "accumulated")
def pads_in_the_divisor(batches):
    return [sum(map(places, batches))] * len(batches)


@part.mistake(
    "{it} is a mean of the means of the batches: the last, short batch weighs as much as a full one",
    "Two batches, of 9 predicted tokens and of 1: which part of the loss belongs to that one?",
)
@divided("accumulated")
def every_batch_weighs_the_same(batches):
    return [predicted(batch) * len(batches) for batch in batches]


@part.mistake(
    "{it} divides each batch by all its places, padding included, and then takes a mean over the batches: two "
    "mistakes in one divisor",
    "How much must one predicted token weigh, whichever batch it is in, and how much does it weigh here?",
)
@divided("accumulated")
def pads_and_equal_batches(batches):
    return [places(batch) * len(batches) for batch in batches]


@part.mistake(
    "{it} weighs the means of the batches by their number of texts, but texts differ in length",
    "Two batches of 2 texts, one with 12 predicted tokens, one with 3: does each token weigh the same?",
)
@divided("accumulated")
def batches_weighed_by_texts(batches):
    texts = sum(len(batch[0]) for batch in batches)
    return [predicted(batch) * texts / len(batch[0]) for batch in batches]


@part.mistake(
    "{it} adds the means of the batches: with more batches the loss and the step grow",
    "What happens to your loss if the same texts are cut into twice as many batches?",
)
@divided("accumulated")
def sum_of_means(batches):
    return [predicted(batch) for batch in batches]


@part.mistake(
    "{it} is a sum over the tokens, divided by nothing",
    "What happens to the loss, and to the step, if every text is there twice?",
)
@divided("padded", "packed", "accumulated")
def not_divided(batches):
    return [1] * len(batches)


@part.mistake(
    "{it} starts right and then leaves: the loss is divided by n, and the gradient is not divided at all",
    "Is your gradient that of the loss that you return?",
)
@divided("padded", "packed", "accumulated", only_the_gradient=True)
def gradient_not_divided(batches):
    return [1] * len(batches)


@part.mistake(
    "{it} starts right and then leaves: the loss is divided by n, the gradient by the places of each batch, padding "
    "included",
    "Is your gradient that of the loss that you return?",
)
@divided("padded", "accumulated", only_the_gradient=True)
def only_the_loss_repaired(batches):
    return [places(batch) * len(batches) for batch in batches]


@part.mistake(
    "{it} starts right and then leaves: each step takes the gradient of the last batch alone, the others are "
    "overwritten",
    "What becomes of the gradient of the first batch when that of the second arrives?",
)
@divided("accumulated", only_the_gradient=True)
def last_batch_overwrites(batches):
    return [*[np.inf] * (len(batches) - 1), sum(map(predicted, batches))]


@part.mistake(
    "the divisor of {it} leaves out the tokens with id 0, as though 0 were the padding",
    "Which target marks the padding, and is 0 a token like any other?",
)
@divided("padded", "packed", "accumulated")
def token_zero_not_counted(batches):
    return [int(sum((batch[1] > 0).sum() for batch in batches))] * len(batches)


@part.mistake(
    "{it} starts right and then leaves: the gradients of one step are added to those of the steps before",
    "What is in the array of the gradients when the second step begins?",
)
@divided("padded", "packed", "accumulated", cleared=False)
def gradients_not_cleared(batches):
    return right_divisors(batches)


# What the batches are made of


@part.mistake(
    "{it} is a mean of the means of the texts: a token of a short text weighs more than one of a long text",
    "Of two texts, one has 1 predicted token and the other 9: how much of the loss belongs to each of the 10?",
)
@otherwise
def mean_of_means(texts, size):
    each = [pad([text]) for text in texts]
    laid = each, [predicted(text) * len(texts) for text in each]
    return {"padded": laid, "accumulated": laid}


def predict_pads(batch):
    ids, targets, positions, visible = batch
    return ids, np.maximum(targets, 0), positions, visible


@part.mistake(
    "{it} has losses at the padding: there too a token is predicted, that with id 0",
    "How often does token 0 really follow in these texts, and how often does your loss ask for it?",
)
@otherwise
def pads_predicted(texts, size):
    whole, parts = [predict_pads(pad(texts))], [predict_pads(batch) for batch in in_batches(texts, size)]
    return {"padded": (whole, right_divisors(whole)), "accumulated": (parts, right_divisors(parts))}


@part.mistake(
    "{it} leaves out the last, short batch",
    "Into how many batches do 5 texts go, if each takes 2?",
)
@otherwise
def last_batch_dropped(texts, size):
    batches = in_batches(texts, size)[: len(texts) // size]
    return {"accumulated": (batches, right_divisors(batches))}


@part.mistake(
    "{it} makes a step after each batch: the gradients are not accumulated",
    "At which parameters must the gradient of the last batch be taken?",
)
def updated_after_each_batch(texts, params, size, steps, rate):
    found, batches = right(texts, params, steps, rate), in_batches(texts, size)
    found["accumulated"] = np.zeros(steps)
    for step in range(steps):
        for batch, n in zip(batches, right_divisors(batches), strict=True):
            total, of_total = model(params, *batch)
            found["accumulated"][step] += total / n
            params = [p - rate * d / n for p, d in zip(params, of_total, strict=True)]
    return found


# The packed row


def packed(texts, see_each_other=False, run_on=False, borders=False, later=False):
    """A row of all texts. With `borders` the last token of a text predicts the first of the next."""
    cut = 0 if borders else 1
    lengths = [len(text) - cut for text in texts]
    stream = np.concatenate(texts)
    ids = stream if borders else np.concatenate([text[:-1] for text in texts])
    targets = np.append(stream[1:], -1) if borders else np.concatenate([text[1:] for text in texts])
    positions = np.arange(len(ids)) if run_on else np.concatenate([np.arange(length) for length in lengths])
    text_of = np.repeat(np.arange(len(texts)), lengths)
    visible = (np.tri(len(ids)) + later > 0) * (see_each_other | (text_of[:, None] == text_of))
    return ids[None], targets[None], positions[None], visible


for name, how, says, asks in [
    (
        "texts_see_each_other",
        {"see_each_other": True},
        "in {it} the texts see each other: a token sees those of the texts before its own",
        "Which tokens does the second text see when it stands in a row of its own?",
    ),
    (
        "positions_run_on",
        {"run_on": True},
        "in {it} the positions run on from one text to the next",
        "Which position has the first token of a text in the padded layout?",
    ),
    (
        "one_long_text",
        {"see_each_other": True, "run_on": True},
        "{it} makes one long text of all: the texts see each other, and the positions run on",
        "By which two things can a token of the second text tell that it is not in a row of its own?",
    ),
    (
        "later_tokens_seen",
        {"later": True},
        "in {it} a token sees all of its text, also what comes after it: the mask is not causal",
        "May a token see the one that it has to predict?",
    ),
    (
        "borders_predicted",
        {"borders": True},
        "in {it} the last token of each text predicts the first of the next one",
        "How many tokens are predicted in your row, and how many must it be?",
    ),
    (
        "one_stream",
        {"see_each_other": True, "run_on": True, "borders": True},
        "{it} makes one stream of all texts, in which each predicts the next: as in pre-training, where borders are "
        "let be, and not what is asked for here",
        "What does a token of the second text see, which position has it, and who predicts its first token?",
    ),
]:

    def one_row(texts, size, how=how):
        row = [packed(texts, **how)]
        return {"packed": (row, right_divisors(row))}

    one_row.__name__ = name
    part.mistake(says, asks)(otherwise(one_row))


EXERCISE = Exercise(
    title="Padding = packing = accumulation",
    kind="repair",
    minutes=25,
    difficulty=3,
    needs=["11"],
    parts=[part],
    hints=(
        "Take two texts, of 5 tokens and of 2, with size 1, and write for each layout by which number the loss of each "
        "single token is divided. It is one number in all three.",
        "In the packed row, write under each token its position and whom it sees. Compare both with what it has and "
        "sees in a row of its own.",
    ),
    viva=[
        Viva(
            "Why did averaging the losses of accumulated batches go unnoticed for so long in widely used trainers?",
            "With batches of equal numbers of tokens the mean of means is the mean. Only where they differ, by padding "
            "or by labels on some tokens alone, do the weights differ, and then the loss still falls.",
            "It makes no difference: a mean of means is the mean.",
        ),
        Viva(
            "In the padded layout real tokens never see the padding. Why not, and when would they?",
            "The padding is at the end and the mask is causal: what comes later is not seen. With padding in front, or "
            "without a causal mask, a mask of the padding is needed, and in front the positions move too.",
            "Because the id of the padding is 0, so that its embedding adds nothing.",
        ),
    ],
    asks=["I5"],
    derivation="cross_entropy",
)
