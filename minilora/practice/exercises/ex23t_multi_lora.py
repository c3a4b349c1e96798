"""23t · One batch, many adapters, in PyTorch

A server holds one base and many adapters. In one batch each sample asks for
its own adapter, or for none:

    y[n] = x[n] Wᵀ + s (x[n] Aᵀ) Bᵀ     with the A, B and s of adapter idx[n]
    y[n] = x[n] Wᵀ                      where idx[n] = -1

    x (batch, tokens, in)    W (out, in)    y (batch, tokens, out)
    As       a list of matrices A (r, in), Bs of matrices B (out, r), in the
             same order; r may differ from adapter to adapter
    scales   (adapters,), the scale s of each
    idx      (batch,), integers from -1 to adapters - 1. Several samples may
             share an adapter, and an adapter may have no sample

All are tensors, and gradients must arrive at x, W, As, Bs and scales: the
adapters can be trained in one batch too.

Two things are asked of a server. Samples are not taken one by one in Python: a
loop may go over the adapters, of which there are few, not over the samples.
And no (out, in) matrix B A is formed: each would be as large as W.

One number by hand, with in = out = tokens = 1, and a batch of two: x = 2, 3,
W = 5. One adapter, A = 7, B = 11, s = 0.5, and idx = 0, -1.
y = 10 + 0.5 · 2 · 77 = 87, and 15.
"""

import torch


def multi_lora_forward(x, W, As, Bs, scales, idx):
    """Return y.

    >>> x, W = torch.tensor([[[2.0]], [[3.0]]]), torch.tensor([[5.0]])
    >>> A, B = torch.tensor([[7.0]]), torch.tensor([[11.0]])
    >>> multi_lora_forward(x, W, [A], [B], torch.tensor([0.5]), torch.tensor([0, -1])).ravel()
    tensor([87., 15.])
    """
    ### BEGIN SOLUTION
    y = x @ W.T
    for i, (A, B, s) in enumerate(zip(As, Bs, scales, strict=True)):
        mine = (idx == i).nonzero().ravel()
        y = y.index_add(0, mine, s * (x[mine] @ A.T) @ B.T)
    return y
    ### END SOLUTION


### THE CHECK

import numpy as np

from .ex23_multi_lora import forward as in_numpy
from ..exercise import Exercise, Viva
from ..torch_functions import Twin, cut_from_autograd, watched


def operations(function, samples):
    x, W = np.ones((samples, 2, 3)), np.ones((4, 3))
    As, Bs = [np.ones((1, 3)), np.ones((2, 3))], [np.ones((4, 1)), np.ones((4, 2))]
    return watched(function, x, W, As, Bs, np.array([0.5, 2.0]), np.arange(samples) % 3 - 1).operations


def loops_over_samples(function):
    """Are there more operations on tensors for 60 samples than for 12?"""
    return operations(function, 60) - operations(function, 12) >= 48


def forms_the_product(function, n=300):
    """Is any result as large as W?"""
    A, B = np.ones((1, n)), np.ones((n, 1))
    arguments = np.ones((3, 1, n)), np.ones((n, n)), [A, A], [B, B], np.array([0.5, 2.0]), np.array([1, -1, 0])
    return watched(function, *arguments).largest >= n * n


forward = Twin(
    multi_lora_forward,
    of=in_numpy,
    without=("loop_over_samples", "product_formed"),
)


def one_by_one(x, W, As, Bs, scales, idx):
    y = [x_n @ W.T for x_n in x]
    for n, i in enumerate(idx.tolist()):
        if i >= 0:
            y[n] = y[n] + scales[i] * (x[n] @ As[i].T) @ Bs[i].T
    return torch.stack(y)


@forward.rule(
    "{it} goes through the samples one by one in Python: every product is a small one",
    "Which samples can share one product?",
    loops_over_samples,
)
def loop_over_samples(x, W, As, Bs, scales, idx):
    return one_by_one(x, W, As, Bs, scales, idx)


@forward.rule(
    "{it} forms an (out, in) matrix B A, which is as large as W",
    "How many entries does B A have, and how many does x Aᵀ have?",
    forms_the_product,
)
def product_formed(x, W, As, Bs, scales, idx):
    y = x @ W.T
    for i, (A, B, s) in enumerate(zip(As, Bs, scales, strict=True)):
        mine = (idx == i).nonzero().ravel()
        y = y.index_add(0, mine, x[mine] @ (s * B @ A).T)
    return y


@forward.rule(
    "the right gradient does not arrive at every argument of {it}: a part of y is cut off from autograd",
    "Where does a tensor become a number, an array, or one without a graph: item, tolist, detach, data, torch.tensor?",
    cut_from_autograd(forward),
)
def scales_as_numbers(x, W, As, Bs, scales, idx):
    return multi_lora_forward(x, W, As, Bs, scales.tolist(), idx)


EXERCISE = Exercise(
    title="One batch, many adapters, in PyTorch",
    kind="write",
    minutes=25,
    difficulty=3,
    needs=["23"],
    may_import=["torch"],
    limit=30.0,  # torch must be imported first
    parts=[forward],
    hints=(
        "What do all samples have in common, whatever their adapter is? Do that first, for the whole batch at once.",
        "Adding to a part of a tensor in place is refused by autograd for a leaf, and allowed for a result. Which "
        "functions of a tensor add rows at given places?",
    ),
    viva=[
        Viva(
            "Stacked adapters indexed by idx and bmm, or a loop over the adapters: when is which better?",
            "bmm copies a whole adapter for each sample: when decoding one token a sample, each must be read anyway, "
            "and one launch wins. With few adapters and many tokens, a loop makes large products and copies nothing.",
            "bmm always, loops are slow in Python.",
        ),
        Viva(
            "Two samples share an adapter. What is its gradient?",
            "The sum over both: indexing in forward is adding at those places in backward. Assigning would keep the "
            "last alone.",
            "That of the sample which comes last.",
        ),
    ],
    asks=["G3", "I8"],
    derivation="lora",
)
