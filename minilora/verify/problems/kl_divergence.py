"""The Kullback-Leibler divergence of distillation, both ways. The maths is in ops/kl_divergence.py.

All positions are labelled here, and `count`, which divides the loss, is not their number.
"""

import numpy as np

from ..case import Case
from ..problem import Factor, Problem

# batch, tokens, V, count of each case
SHAPES = [(3, 5, 7, 20), (2, 4, 9, 11), (4, 6, 5, 31), (5, 3, 8, 26), (6, 7, 4, 50), (7, 8, 6, 71)]


def draw(rng, shape):
    batch, tokens, V, count = shape
    t = 2 * rng.standard_normal((batch, tokens, V))
    sizes = {"batch": batch, "tokens": tokens, "V": V, "count": count}
    T = float(rng.uniform(2.2, 2.9))  # neither 1 nor 2 nor 4
    constants = {"t": t, "T": T, "count": count}
    return Case(np.array(rng.uniform(1.2, 1.8)), {"z": 2 * rng.standard_normal((batch, tokens, V))}, constants, sizes)


def log_softmax(z):
    z = z - z.real.max(axis=-1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=-1, keepdims=True))


def softmax(z):
    return np.exp(log_softmax(z))


def forward(z, t, T, count):
    log_p, log_q = log_softmax(t / T), log_softmax(z / T)
    return T**2 / count * (np.exp(log_p) * (log_p - log_q)).sum()


def backward(dL, z, t, T, count):
    return {"dz": dL * T / count * (softmax(z / T) - softmax(t / T))}


def terms(dL, z, t, T, count):
    return {
        "dz": {
            "the term of the student": dL * T / count * softmax(z / T),
            "the term of the teacher": -dL * T / count * softmax(t / T),
        }
    }


def row_sums(tensors, case):
    dz = tensors["dz"]
    return float(np.abs(dz.sum(axis=-1)).max() / np.abs(dz).max())


SUM_TO_0 = {"each row of dz sums to 0, because shifting a row of logits changes no probability": row_sums}
FACTORS = {
    "mean": Factor("the factor 1/count", lambda count: 1 / count, ("dz",)),
    "T": Factor("the factor T", lambda T: T, ("dz",)),
}
SAYS = {
    "no_mean": "dz is not divided by the count: it belongs to the sum of the divergences, not to their mean",
    "no_T": "dz lacks the factor T that is left of the T² of the loss and the 1/T of z/T",
    "T_twice": "dz has T² where T is left: the 1/T from the derivative of z/T is missing",
}
ASKS = {
    "no_mean": "How much does one position weigh in the loss of forward?",
    "no_T": "Which powers of T come from the loss, and which from the derivative of z/T?",
    "T_twice": "What is the derivative of z/T with respect to z?",
}

kl_divergence = Problem(
    "kl_divergence",
    forward,
    backward,
    draw,
    terms,
    laws=SUM_TO_0,
    factors=FACTORS,
    says=SAYS
    | {
        "sign_flipped": "dz has the wrong sign: the teacher minus the student",
        "no_term_of_the_teacher": "dz lacks the teacher's probabilities: nothing says where the student is to go",
        "no_term_of_the_student": "dz lacks the student's probabilities, the gradient of its log Σ exp z/T",
    },
    asks=ASKS
    | {
        "sign_flipped": "If the student gives a token less than the teacher does, is its logit to rise or to fall?",
        "no_term_of_the_teacher": "At which z is the loss 0, and is your gradient 0 there?",
        "no_term_of_the_student": "What does a logit do to the probabilities of the other tokens?",
    },
    shapes=SHAPES,
    formula="L = T²/count Σ p (log p - log q), p = softmax(t/T), q = softmax(z/T); dy is dL",
    aliases=("kl", "distillation", "knowledge_distillation", "kd_loss"),
    rows=True,
)

kl_divergence.multiplied("T_squared_forgotten", dz=lambda T: T**-2)(
    "dz has 1/T where T is left: the T² of the loss is forgotten",
    "With a loss without T², what becomes of the gradient as T grows?",
)
kl_divergence.called_with("teacher_without_temperature", t=lambda t, T: t * T)(
    "the teacher's probabilities in dz are those at T = 1", "Which of the two distributions does T soften?"
)
kl_divergence.called_with("student_without_temperature", z=lambda z, T: z * T)(
    "the student's probabilities in dz are those at T = 1", "Which of the two distributions does T soften?"
)
kl_divergence.computed("logits_for_probabilities", dz=lambda dL, z, t, T, count: dL * T / count * (z - t) / T)(
    "dz holds the difference of the logits, not of the probabilities",
    "Does your gradient stay the same when a constant is added to a row of logits?",
)
kl_divergence.computed(
    "one_hot_for_teacher",
    dz=lambda dL, z, t, T, count: (
        dL * T / count * (softmax(z / T) - (np.arange(t.shape[-1]) == t.argmax(-1)[..., None]))
    ),
)(
    "dz has the teacher's most probable token instead of its distribution: cross-entropy with hard labels",
    "What does the teacher say of the tokens that are not its first choice?",
)
kl_divergence.called_with("divided_by_vocabulary", count=lambda count, z: count * z.shape[-1])(
    "dz is divided by the size of the vocabulary as well: a mean over the logits",
    "Over what does the loss take its mean: the positions, or also the logits of each?",
)
kl_divergence.called_with("divided_by_samples", count=lambda z: len(z))(
    "dz is divided by the length of the first axis alone, as a 'batchmean' of logits that are not flattened is",
    "Over which positions does forward take its mean?",
)


# ---- reversed ----


def reverse_forward(z, t, T, count):
    log_p, log_q = log_softmax(t / T), log_softmax(z / T)
    return T**2 / count * (np.exp(log_q) * (log_q - log_p)).sum()


def reverse_backward(dL, z, t, T, count):
    log_q = log_softmax(z / T)
    q, d = np.exp(log_q), log_q - log_softmax(t / T)
    return {"dz": dL * T / count * q * (d - (q * d).sum(axis=-1, keepdims=True))}


def reverse_terms(dL, z, t, T, count):
    log_q = log_softmax(z / T)
    q, d = np.exp(log_q), log_q - log_softmax(t / T)
    return {
        "dz": {
            "the first term": dL * T / count * q * d,
            "the second term": -dL * T / count * q * (q * d).sum(axis=-1, keepdims=True),
        }
    }


reverse_kl_divergence = Problem(
    "reverse_kl_divergence",
    reverse_forward,
    reverse_backward,
    draw,
    reverse_terms,
    laws=SUM_TO_0,
    factors=FACTORS,
    says=SAYS
    | {"no_second_term": "dz lacks the term q Σ q d, which normalising the softmax brings: rows do not sum to 0"},
    asks=ASKS | {"no_second_term": "What does a logit do to the probabilities of the other tokens?"},
    shapes=SHAPES,
    formula="L = T²/count Σ q (log q - log p), p = softmax(t/T), q = softmax(z/T); dy is dL",
    aliases=("reverse_kl", "minillm"),
    rows=True,
)

reverse_kl_divergence.multiplied("T_squared_forgotten", dz=lambda T: T**-2)(
    "dz has 1/T where T is left: the T² of the loss is forgotten",
    "With a loss without T², what becomes of the gradient as T grows?",
)
reverse_kl_divergence.computed("forward_divergence", dz=lambda dL, z, t, T, count: backward(dL, z, t, T, count)["dz"])(
    "dz is the gradient of KL(p ‖ q), the teacher's distribution first, but the loss is KL(q ‖ p)",
    "Over which distribution does forward take its mean?",
)
reverse_kl_divergence.computed(
    "softmax_without_q",
    dz=lambda dL, z, t, T, count: (
        dL * T / count * ((d := log_softmax(z / T) - log_softmax(t / T)) - d.mean(-1, keepdims=True))
    ),
)(
    "dz is d less its mean over the vocabulary: neither is weighted by q",
    "By how much can the logit of a token with probability 0 change the loss?",
)
