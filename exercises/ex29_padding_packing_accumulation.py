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
    positions = np.arange(len(ids))
    visible = np.tri(len(ids))
    return ids[None], targets[None], positions[None], visible


def train(batches, params, steps, rate):
    """Return the loss before each step. All batches together make one step."""
    curve = []
    for _ in range(steps):
        loss, gradients = 0.0, [0.0, 0.0, 0.0]
        for batch in batches:
            total, of_total = model(params, *batch)
            n = batch[1].size * len(batches)
            loss += total / n
            gradients = [g + d / n for g, d in zip(gradients, of_total, strict=True)]
        params = [p - rate * g for p, g in zip(params, gradients, strict=True)]
        curve.append(loss)
    return np.array(curve)


def losses(texts, params, size, steps, rate):
    """Return padded, packed, accumulated: the three curves of the loss.

    >>> texts, params = [np.array([0, 1, 1]), np.array([1, 0])], [np.ones((2, 3)), np.ones((5, 3)), np.zeros((2, 3))]
    >>> [curve.round(4) for curve in losses(texts, params, 1, 1, 0.5)]
    [array([0.6931]), array([0.6931]), array([0.6931])]
    """
    layouts = [pad(texts)], [pack(texts)], [pad(texts[i : i + size]) for i in range(0, len(texts), size)]
    return tuple(train(batches, params, steps, rate) for batches in layouts)
