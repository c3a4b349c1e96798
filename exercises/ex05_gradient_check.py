"""05 · Write the gradient check

A check that sees nothing is worse than none. Write one, and inputs for it.

accepts(forward, backward, inputs, constants) returns True if backward is the
gradient of forward, and False if not:

    inputs, constants                        {name: value}
    forward(**inputs, **constants)           y, an array
    backward(dy, **inputs, **constants)      {"dx": ..., ...}: for each input x
                                             ∂L/∂x of L = Σ dy ∘ y

dy, of the shape of y, is your check's choice. inputs are float64 arrays, and
you may call both functions as often as you like, at other values of the inputs
too; constants stay as they are. No slope of a right function is infinite; it
may have a kink, as max(z, 0) has, but none is nearer to the inputs than 1e-4.
A wrong gradient is off by 1 % or more in at least one tensor, relative to the
norm of that tensor. Gradients may be as small as 1e-10, and entries of them 0;
none is 0 as a whole. y may be a million times larger than they are.

lora_case(rng) returns inputs and constants at which no mistake in LoRA's
gradient stays hidden. (At badly chosen ones the best check sees nothing.)

    y = x Wᵀ + α/r (x ∘ keep) Aᵀ Bᵀ

    inputs       x (batch, tokens, in)    A (r, in)    B (out, r)
    constants    W (out, in)    keep (batch, tokens, in)    alpha, r, p

in that order, each width your choice (at most 10). keep is 0 where dropout of
probability p drops x, else 1/(1-p).

Your check meets 12 right functions and 68 wrong gradients; your inputs meet
all the mistakes in LoRA's backward that are known here.

One slope by hand: y = x², x = 3, dy = 5, h = 0.1. L goes from 5 · 2.9² = 42.05
to 5 · 3.1² = 48.05: 6 / 0.2 = 30 = dy · 2x.
"""

import numpy as np


def accepts(forward, backward, inputs, constants):
    """Return True where backward is the gradient of forward.

    >>> x = {"x": np.array([3.0, -2.0])}
    >>> accepts(lambda x: x * x, lambda dy, x: {"dx": dy * 2 * x}, x, {})
    True
    >>> accepts(lambda x: x * x, lambda dy, x: {"dx": dy * x}, x, {})
    False
    """
    raise NotImplementedError


def lora_case(rng):
    """Return inputs, constants.

    >>> inputs, constants = lora_case(np.random.default_rng(0))
    >>> list(inputs), list(constants)
    (['x', 'A', 'B'], ['W', 'keep', 'alpha', 'r', 'p'])
    """
    raise NotImplementedError
