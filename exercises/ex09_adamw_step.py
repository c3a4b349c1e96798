"""09 · The step

After the backward, one step of AdamW (Loshchilov, Hutter, 2019), with LoRA+'s
own rate for B (Hayou et al., 2024). Change these three, and return nothing;
an array may be changed in place, or another put in its place in the dict:

    params   {name: array} of W, b, A and B
    grads    {name: array} of the same names, whether they are trained or not
    state    {"t": steps so far, "m": {name: array}, "v": {name: array}}

    trained  the names that are trained, such as ("A", "B"). Nothing else
             moves, and m and v hold nothing else
    lr, ratio, decay    numbers. The rate η is lr, and for B ratio · lr

For a parameter p with gradient g:

    m, v   running means of g and of g∘g. In each step a mean keeps β of what
           it was, and takes 1 - β of what is new: β₁ = 0.9 for m, β₂ = 0.999
           for v. A name that is not in them yet starts from zero
    m̂, v̂   the same, corrected: after t steps the weights in such a mean add
           up to 1 - βᵗ, not 1; divide by that. t counts this step too: it is
           1 in the first
    decay  decoupled: it does not pass through the gradient. p, be it a matrix
           or b, first shrinks by the share η · decay
    step   then p goes down by η times m̂ / (√v̂ + ε), ε = 1e-8

The backward adds to what is in grads: leave an array of zeros there for every
name, for the next one.

One number by hand, the first step of A = 2 with g = 0.5, lr = 0.1 and
decay = 0.5: m = 0.05, v = 0.00025, m̂ = 0.5, v̂ = 0.25, and
A = 2 · 0.95 - 0.1 · 0.5 / 0.5 = 1.8.
"""

import numpy as np


def adamw_step(params, grads, state, lr, ratio, decay, trained):
    """Change params, grads and state.

    >>> params, grads = {"A": np.array([2.0]), "W": np.array([3.0])}, {"A": np.array([0.5]), "W": np.array([0.7])}
    >>> state = {"t": 0, "m": {}, "v": {}}
    >>> adamw_step(params, grads, state, 0.1, 4.0, 0.5, ("A",))
    >>> params["A"].round(6), params["W"], grads["W"], state["t"]
    (array([1.8]), array([3.]), array([0.]), 1)
    """
    raise NotImplementedError
