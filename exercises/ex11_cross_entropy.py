"""11 · Cross-entropy with ignored tokens

    P = softmax(logits), over the vocabulary
    loss = -1/count Σ log P[target]

    logits, dlogits (batch, tokens, V)    targets (batch, tokens)
    ignore: a negative integer, as -100   loss: a number

The sum runs over the tokens that are not ignored, those whose target is not
`ignore`, and count is their number in the whole batch. Every other target is
the id of a token, 0 to V - 1. Nothing is to be shifted: targets[b, t] belongs
to logits[b, t].

Return the loss and its gradient dlogits = ∂loss/∂logits. Where all tokens are
ignored, both are 0. Logits may be as large as ±1,000.

One number by hand, with V = 2 and ignore = -7: logits (0, ln 3) and (5, 9),
targets (1, -7). The second token is ignored. For the first, P = (1/4, 3/4), so
loss = -log 3/4 = 0.2877. If its first logit grows by a small ε, P[1] falls to
3/(4 + ε), and the loss grows by ε/4: the first entry of dlogits is 0.25.
"""

import numpy as np


def cross_entropy(logits, targets, ignore):
    """Return loss, dlogits.

    >>> loss, dlogits = cross_entropy(np.array([[[0.0, np.log(3)], [5.0, 9.0]]]), np.array([[1, -7]]), -7)
    >>> round(float(loss), 4), round(float(dlogits[0, 0, 0]), 4)
    (0.2877, 0.25)
    """
    raise NotImplementedError
