"""Cross-entropy of softmax(logits). The maths is in ops/cross_entropy.py.

`count` divides the loss, as for a batch that is a part of a larger one: it is neither the number of positions here nor
the number of those with a label.
"""

import numpy as np

from ..case import Case
from ..problem import Factor, Problem

IGNORE = -100

# batch, tokens, V, count, ignored positions of each case
SHAPES = [(3, 5, 7, 20, 2), (2, 4, 9, 11, 3), (4, 6, 5, 31, 4), (5, 3, 8, 26, 5), (6, 7, 4, 50, 6), (7, 8, 6, 71, 7)]


def draw(rng, shape):
    batch, tokens, V, count, ignored = shape
    targets = rng.integers(V, size=(batch, tokens))
    targets.flat[rng.choice(targets.size, ignored, replace=False)] = IGNORE
    inputs = {"logits": 2 * rng.standard_normal((batch, tokens, V))}
    sizes = {"batch": batch, "tokens": tokens, "V": V, "count": count}
    return Case(np.asarray(rng.standard_normal()), inputs, {"targets": targets, "count": count}, sizes)


def exponentials(z, axis=-1):
    """exp(z - max), which does not overflow"""
    return np.exp(z - z.real.max(axis=axis, keepdims=True))


def softmax(z, axis=-1):
    E = exponentials(z, axis)
    return E / E.sum(axis=axis, keepdims=True)


def onehot(targets, V):
    """(..., V), with a row of zeros where the target is ignored"""
    return 1.0 * (targets[..., None] == np.arange(V))


def labelled(targets):
    return (targets != IGNORE)[..., None]


def forward(logits, targets, count):
    return -(onehot(targets, logits.shape[-1]) * np.log(softmax(logits))).sum() / count


def difference(logits, targets):
    """softmax(z) - onehot(t), 0 where ignored"""
    return labelled(targets) * softmax(logits) - onehot(targets, logits.shape[-1])


def backward(dL, logits, targets, count):
    return {"dlogits": dL / count * difference(logits, targets)}


def complete(logits, targets, count=None):
    """Without a count: a mean over all positions, each of which has a label."""
    if count is None:
        labels = np.arange(targets.size).reshape(targets.shape) % logits.shape[-1]
        targets, count = np.where(targets == IGNORE, labels, targets), targets.size
    return {"targets": targets, "count": count}


def terms(dL, logits, targets, count):
    return {
        "dlogits": {
            "the softmax term": dL / count * labelled(targets) * softmax(logits),
            "the one-hot term": -dL / count * onehot(targets, logits.shape[-1]),
        }
    }


def row_sums(tensors, case):
    dz = tensors["dlogits"]
    return float(np.abs(dz.sum(axis=-1)).max() / np.abs(dz).max())


def ignored_rows(tensors, case):
    dz = tensors["dlogits"]
    return float(np.abs(dz[case.constants["targets"] == IGNORE]).max() / np.abs(dz).max())


cross_entropy = Problem(
    "cross_entropy",
    forward,
    backward,
    draw,
    terms,
    laws={
        "each row of dlogits sums to 0, because shifting a row of logits changes no probability": row_sums,
        "dlogits is 0 at ignored positions, because they are not in the loss": ignored_rows,
    },
    factors={"mean": Factor("the factor 1/count", lambda count: 1 / count, ("dlogits",))},
    says={
        "no_one_hot_term": "dlogits lacks the one-hot term, the part that raises the target",
        "no_softmax_term": "dlogits lacks the softmax term, the gradient of log Σ exp z",
        "sign_flipped": "dlogits has the wrong sign: the one-hot minus the softmax",
        "no_mean": "dlogits is not divided by the count: it belongs to the sum of the losses, not to their mean",
    },
    asks={
        "no_one_hot_term": "How does the loss know which token was right?",
        "no_softmax_term": "What becomes of the loss when a logit other than the target's rises?",
        "sign_flipped": "Does the loss rise or fall when the logit of the target grows?",
        "no_mean": "How much does one position weigh in the loss of forward?",
    },
    shapes=SHAPES,
    formula="L = -1/count Σ log softmax(z)[target], over the positions with a label; dy is dL; -100 is no label",
    aliases=("ce", "cross_entropy_loss", "softmax_cross_entropy", "nll"),
    complete=complete,
    optional="also without count: then a mean over all positions, and all have labels; and without dL, which is then 1",
    rows=True,
    simpler={
        "where every position has a label, and count is their number": {
            "targets": lambda logits, targets: complete(logits, targets)["targets"],
            "count": lambda targets: targets.size,
        }
    },
)
fault = cross_entropy.fault


def with_softmax(name, P):
    """Add a fault in which the softmax term is another function of the logits."""

    def wrong(dL, logits, targets, count):
        return {"dlogits": dL / count * (labelled(targets) * P(logits) - onehot(targets, logits.shape[-1]))}

    return cross_entropy.add(name, wrong)


cross_entropy.called_with("divided_by_all_positions", count=lambda targets: targets.size)(
    "dlogits is divided by the number of all positions, the ignored ones among them",
    "Does a position without a label count in the mean?",
)
cross_entropy.called_with("divided_by_labels_here", count=lambda targets: labelled(targets).sum())(
    "dlogits is divided by the number of labels in this batch, but forward divides by the count it was given",
    "When a large batch is taken in parts, by which number must every part divide?",
)
cross_entropy.called_with("divided_by_vocabulary", count=lambda logits, count: count * logits.shape[-1])(
    "dlogits is divided by the size of the vocabulary as well: a mean over the logits",
    "Over what does the loss take its mean: the positions, or also the logits of each?",
)
cross_entropy.called_with("ignored_as_token_zero", targets=lambda targets: np.where(targets == IGNORE, 0, targets))(
    "ignored positions have a gradient in dlogits, as if their label were token 0",
    "Which label did you put for the ignored one, and what undoes it?",
)
cross_entropy.computed(
    "softmax_at_ignored",
    dlogits=lambda dL, logits, targets, count: dL / count * (softmax(logits) - onehot(targets, logits.shape[-1])),
)(
    "the softmax term of dlogits is left at ignored positions: only the one-hot term is masked there",
    "If the loss skips a position, by which way can its logits still matter?",
)


@fault(
    "dlogits is sent once more through the Jacobian of the softmax, which softmax - one-hot contains already",
    "Is softmax - one-hot the gradient of the probabilities, or of the logits?",
)
def softmax_twice(dL, logits, targets, count):
    P, dz = softmax(logits), backward(dL, logits, targets, count)["dlogits"]
    return {"dlogits": P * (dz - (P * dz).sum(axis=-1, keepdims=True))}


cross_entropy.computed(
    "stopped_at_probabilities",
    dlogits=lambda dL, logits, targets, count: -dL / count * onehot(targets, logits.shape[-1]) / softmax(logits),
)(
    "dlogits is the gradient of the probabilities, -1/P at the target: the backward of the softmax is missing",
    "Which step of forward lies between the logits and the probabilities?",
)
cross_entropy.multiplied("target_only", dlogits=lambda logits, targets: onehot(targets, logits.shape[-1]))(
    "dlogits is 0 outside the target: the Jacobian of the softmax is taken to be diagonal",
    "If another logit of the row rises, what happens to the probability of the target?",
)
with_softmax("logits_for_softmax", lambda z: z)(
    "the softmax term of dlogits holds the logits themselves: the softmax is forgotten",
    "Of which loss is logits - one-hot the gradient?",
)
with_softmax("log_softmax_for_softmax", lambda z: np.log(softmax(z)))(
    "the softmax term of dlogits holds log-probabilities, not probabilities", "Can the softmax term be negative?"
)
with_softmax("sigmoid_for_softmax", lambda z: 1 / (1 + np.exp(-z)))(
    "the softmax term of dlogits is a sigmoid of each logit by itself",
    "Do the probabilities in your gradient sum to 1 over the vocabulary?",
)
with_softmax("not_normalised", exponentials)(
    "the softmax term of dlogits is not normalised: it holds exp(z - max)", "What must each row of your softmax sum to?"
)
with_softmax("softmax_over_tokens", lambda z: softmax(z, axis=1))(
    "the softmax term of dlogits is normalised over the tokens, not over the vocabulary",
    "Between which alternatives does a position choose?",
)


@fault(
    "dlogits uses the targets of the next position: they were shifted once more than in forward",
    "Are the targets that you were given shifted already?",
)
def targets_shifted_again(dL, logits, targets, count):
    last = np.full_like(targets[:, :1], IGNORE)
    return backward(dL, logits, np.concatenate([targets[:, 1:], last], axis=1), count)
