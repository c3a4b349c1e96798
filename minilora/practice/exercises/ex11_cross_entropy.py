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
    ### BEGIN SOLUTION
    counted = targets != ignore
    count = max(counted.sum(), 1)
    z = logits - logits.max(axis=-1, keepdims=True)
    log_P = z - np.log(np.exp(z).sum(axis=-1, keepdims=True))
    onehot = targets[..., None] == np.arange(logits.shape[-1])  # a row of zeros where ignored
    loss = -(onehot * log_P).sum() / count
    dlogits = (counted[..., None] * np.exp(log_P) - onehot) / count
    return loss, dlogits
    ### END SOLUTION


### THE CHECK

from dataclasses import replace
from functools import cached_property

from ...verify.case import apply
from ...verify.problems import problems
from ...verify.problems.cross_entropy import IGNORE, backward, forward, onehot, softmax
from ..exercise import Exercise, Viva
from ..naming import named
from ..parts import Gradient, right, same


def as_a_mean(case):
    """A case of the problem whose count is that of the tokens that are not ignored."""
    count = int((case.constants["targets"] != IGNORE).sum())
    constants, sizes = {**case.constants, "count": count}, {**case.sizes, "count": count}
    return case._replace(dy=np.asarray(1.0), constants=constants, sizes=sizes)


def ignore_of(case):
    """-1 to -4. An index from the end of the vocabulary, so that what takes it for a target does not raise."""
    return -1 - case.constants["count"] % 4


def targets_of(case):
    targets = case.constants["targets"]
    return np.where(targets == IGNORE, ignore_of(case), targets)


class MeanLoss(Gradient):
    """The problem grades dlogits. The loss, and mistakes that the problem does not have, are graded by their values."""

    @cached_property
    def bank(self):
        bank = problems()["cross_entropy"]
        no_mistakes_here = ("upstream_forgotten", "divided_by_labels_here")
        return replace(
            bank,
            draw=lambda rng, shape: as_a_mean(bank.draw(rng, shape)),
            faults={name: fault for name, fault in bank.faults.items() if name not in no_mistakes_here},
        )

    def of_truth(self, case):
        return {"loss": forward(*case.inputs.values(), **case.constants), **apply(backward, case)}

    def as_gradient(self, function, dL, logits, **constants):
        case = self.bank.cases(n=1)[0]._replace(inputs={"logits": logits}, constants=constants)
        return {"dlogits": self.by_name(function(*self.of_case(case).values()))["dlogits"]}

    def as_learners(self, wrong, *arguments):
        case = self.case_of(dict(zip(self.arguments, arguments, strict=True)))
        return self.of_truth(case) | apply(wrong, case)

    def compared(self, function, seed):
        checked = super().compared(function, seed)
        if not checked.errors:  # it was refused before any number was compared
            return checked
        drawn = self.bank.cases(seed)
        cases, true = [self.of_case(case) for case in drawn], [self.of_truth(case) for case in drawn]

        def run(f):
            return [self.by_name(f(*case.values())) for case in cases]

        mine, wrong = run(function), {name: run(mistake.wrong) for name, mistake in self.mistakes.items()}
        findings = []
        for it in self.tensors:
            a, t = [m[it] for m in mine], [m[it] for m in true]
            of_problem = [finding for finding in checked.findings if finding.tensor == it]
            listed = [
                self.mistakes[name] for name, w in wrong.items() if all(map(same, [values[it] for values in w], a))
            ]
            capped = self.rules["loss_capped"]
            if it == "loss" and not listed and checked.errors[it] < 1e-3 and capped.broken(function):
                listed = [capped.mistake]  # as with log(P + 1e-8), which the numbers of these cases show
            if all(map(same, a, t)):
                findings.append(right(it))
            elif listed or not of_problem:
                findings += named(it, a, t, cases, listed, same, common=True)
            else:
                findings += of_problem
        return checked._replace(findings=findings)


part = MeanLoss(cross_entropy, "loss dlogits", makes={"targets": targets_of, "ignore": ignore_of})


def nll(P, targets):
    """-log P[target] of each token, 0 where ignored."""
    picked = np.take_along_axis(P, np.maximum(targets, 0)[..., None], axis=-1)[..., 0]
    return np.where(targets < 0, 0, -np.log(picked))


def gradient(logits, targets, ignore):
    """The true dlogits, beside a wrong loss."""
    return cross_entropy(logits, targets, ignore)[1]


@part.mistake(
    "{it} is divided by the number of all tokens, the ignored ones among them",
    "If ten more ignored tokens are added, must the loss change?",
)
def loss_over_all_tokens(logits, targets, ignore):
    return nll(softmax(logits), targets).mean(), gradient(logits, targets, ignore)


@part.mistake(
    "{it} is a sum over the tokens, not divided by count",
    "What happens to your loss when every sample of the batch is there twice?",
)
def loss_not_divided(logits, targets, ignore):
    return nll(softmax(logits), targets).sum(), gradient(logits, targets, ignore)


@part.mistake(
    "{it} is divided by the size of the vocabulary as well: a mean over all entries of the one-hot",
    "How many numbers does one token add to the sum?",
)
def loss_over_the_vocabulary(logits, targets, ignore):
    loss, dlogits = cross_entropy(logits, targets, ignore)
    return loss / logits.shape[-1], dlogits


@part.mistake(
    "{it} has the wrong sign: a log-probability is never positive, a loss never negative",
    "For a token of probability 0.1, what is the loss?",
)
def loss_negative(logits, targets, ignore):
    loss, dlogits = cross_entropy(logits, targets, ignore)
    return -loss, dlogits


@part.mistake(
    "{it} lacks the normaliser log Σ exp: it is the mean of the targets' logits, with a minus",
    "If 1 is added to all logits of a token, must its loss change?",
)
def loss_of_logits(logits, targets, ignore):
    loss = nll(np.exp(logits), targets).sum() / (targets != ignore).sum()
    return loss, gradient(logits, targets, ignore)


@part.mistake(
    "{it} takes the softmax of probabilities: it is applied twice",
    "What does your log-softmax expect, logits or probabilities, and what does it get?",
)
def loss_of_softmax_twice(logits, targets, ignore):
    return cross_entropy(softmax(logits), targets, ignore)[0], gradient(logits, targets, ignore)


@part.mistake(
    "{it} pairs the logits with the targets of the next place: they are shifted once more",
    "Which target belongs to the logits at place 0?",
)
def loss_of_targets_shifted_again(logits, targets, ignore):
    return cross_entropy(logits[:, :-1], targets[:, 1:], ignore)[0], gradient(logits, targets, ignore)


@part.mistake(
    "{it} counts the ignored tokens too: their negative target is read as an index from the end of the vocabulary",
    "Which number marks an ignored token in this call, and is it always the same one?",
)
def ignore_not_read(logits, targets, ignore):
    return cross_entropy(logits, targets % logits.shape[-1], ignore)


@part.mistake(
    "{it} is a mean over the samples of each sample's own mean: a token weighs more where its sample has fewer",
    "Of two samples, one has 1 token that counts and the other 9: how much of the loss belongs to each of the 10?",
)
def mean_of_means(logits, targets, ignore):
    each = [cross_entropy(z[None], t[None], ignore) for z, t in zip(logits, targets, strict=True)]
    loss, dlogits = zip(*each, strict=True)
    return np.mean(loss), np.concatenate(dlogits) / len(targets)


@part.mistake(
    "{it} is a sum over the samples of each sample's own mean",
    "What happens to your loss when every sample of the batch is there twice?",
)
def sum_of_means(logits, targets, ignore):
    loss, dlogits = mean_of_means(logits, targets, ignore)
    return loss * len(targets), dlogits * len(targets)


@part.mistake(
    "{it} leaves out the tokens whose target is 0, as if only positive targets counted",
    "Is 0 the id of a token?",
)
def token_zero_left_out(logits, targets, ignore):
    return cross_entropy(logits, np.where(targets > 0, targets, ignore), ignore)


@part.mistake(
    "{it} is divided by the number of samples: it is a sum over the tokens of each",
    "Does a sample weigh as a whole in the loss, or does each token weigh the same?",
)
def over_the_samples(logits, targets, ignore):
    loss, dlogits = cross_entropy(logits, targets, ignore)
    tokens_each = (targets != ignore).sum() / len(targets)
    return loss * tokens_each, dlogits * tokens_each


# What only large logits show, or a batch in which every token is ignored

LARGE = np.array([[[1000.0, 998, 997], [999, 1001, 998.5]]]), np.array([[1, 0]])
APART = np.array([[[1000.0, 998, 997], [-1000, -998, -1001]]]), np.array([[1, 0]])
UNLIKELY = np.array([[[3.0, 803, -1], [1, 5, 2]]]), np.array([[0, 1]])
NONE_LEFT = np.array([[[3.0, 8, -1], [1, 5, 2]]]), np.array([[-3, -3]])


def index_error(function):
    """With an ignore that is no index from the end of the vocabulary either."""
    try:
        function(LARGE[0], np.array([[1, -100]]), -100)
    except IndexError:
        return True
    except Exception:  # it may raise anything
        return False
    return False


def results(function, batch):
    """Loss and dlogits in one row of numbers; NaN where the function raises."""
    try:
        loss, dlogits = part.by_name(function(*batch, -3)).values()
        return np.append(loss, dlogits)
    except Exception:  # it may raise anything
        return np.array([np.nan])


def not_finite(batch):
    return lambda function: not np.all(np.isfinite(results(function, batch)))


def differs(batch):
    return lambda function: not same(results(function, batch), results(cross_entropy, batch))


def from_log(log_P, P, targets):
    """Loss and dlogits in another way, where no token is ignored."""
    count = max((targets >= 0).sum(), 1)
    hot = onehot(targets, P.shape[-1])
    return -np.where(hot, log_P, 0).sum() / count, ((targets >= 0)[..., None] * P - hot) / count


@part.rule(
    "{it} overflows at logits of 1,000",
    "What is the largest number whose exponential float64 can hold, and which number may you add to all logits of a "
    "token without changing P?",
    not_finite(LARGE),
)
def no_maximum(logits, targets, ignore):
    E = np.exp(logits)
    P = E / E.sum(axis=-1, keepdims=True)
    return from_log(np.log(P), P, targets)


@part.rule(
    "{it} subtracts one maximum for all tokens: where one token's logits are near 1,000 and another's near -1,000, "
    "all exponentials of the second are 0",
    "Over which axis is P normalised, and over which did you take the maximum?",
    not_finite(APART),
)
def one_maximum_for_all(logits, targets, ignore):
    return no_maximum(logits - logits.max(), targets, ignore)


@part.rule(
    "{it} takes the logarithm of a P that is rounded to 0: where a target's logit is 800 below the largest, the loss "
    "is infinite and not 800",
    "Can log P be written without forming P first?",
    not_finite(UNLIKELY),
)
def log_of_rounded_softmax(logits, targets, ignore):
    return from_log(np.log(softmax(logits)), softmax(logits), targets)


@part.rule(
    "the loss is capped: where a target's logit is 800 below the largest, it must be 800 for that token",
    "What did you add to P, or clip, before the logarithm, and what is the loss where P is smaller than that?",
    differs(UNLIKELY),
)
def loss_capped(logits, targets, ignore):
    return from_log(np.log(softmax(logits) + 1e-300), softmax(logits), targets)


@part.rule(
    "{it} divides by 0 where every token is ignored",
    "Which loss does a batch have that asks nothing of the model?",
    differs(NONE_LEFT),
)
def none_left(logits, targets, ignore):
    loss, dlogits = cross_entropy(logits, targets, ignore)
    count = (targets != ignore).sum()
    return loss * max(count, 1) / count, dlogits * max(count, 1) / count


@part.rule(
    "{it} raises IndexError with ignore = -100: it looks up the target of an ignored token, which is not an id",
    "At which index do you read where the target is -100, and what may stand there in its place?",
    index_error,
)
def ignored_looked_up(logits, targets, ignore):
    np.take_along_axis(logits, targets[..., None], axis=-1)
    return cross_entropy(logits, targets, ignore)


EXERCISE = Exercise(
    title="Cross-entropy with ignored tokens",
    kind="write",
    minutes=25,
    difficulty=2,
    parts=[part],
    hints=(
        "Write log P of one token as its logit minus the logarithm of a sum. What is the derivative of that logarithm "
        "by one of the logits?",
        "Look at three rows of dlogits: that of a likely target, of an unlikely one, of an ignored token. What must "
        "each of them sum to?",
    ),
    viva=[
        Viva(
            "Two losses of one model on one batch: 2.1, divided by all tokens, and 2.8, by those with a label. What is "
            "the share of ignored tokens, and which of the two learns as the learning rate says?",
            "A quarter: 2.1/2.8 is the share that counts. The second: with the first the gradient shrinks with the "
            "padding, so that the same rate makes smaller steps in a batch with more of it.",
            "The first is better, its loss is lower.",
        ),
        Viva(
            "Why does each row of dlogits sum to 0, and what does this check not see?",
            "Adding a number to all logits of a token changes no probability, so that the loss is constant along that "
            "direction. A wrong divisor, a wrong sign, and targets of another place all pass.",
            "Because the probabilities sum to 1, so the gradient is right.",
        ),
    ],
    asks=["I5"],
    derivation="cross_entropy",
)
