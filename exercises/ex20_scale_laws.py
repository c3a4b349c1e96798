"""20 · Scale laws

    y = x Wᵀ + s (x Aᵀ) Bᵀ        s = α/r

    x (rows, in)    W (out, in)    A (r, in)    B (out, r)    ΔW = s B A

At the start B = 0. The entries of A are independent, of mean 0 and a variance
that depends on in alone, not on r. G = ∂L/∂W is unrelated to A. Where no sizes
are given, r is far smaller than in and out.

Take one step at the rate η. At B = 0 A has no gradient, so B alone moves:

    SGD     B = -η dB
    Adam    B = -η sign(dB), which is its first step, except for ε

    drop    -Σ G ∘ ΔW, over all entries: what the loss falls, to first order
    length  √(Σ ΔW²)

Return a dict. Eight numbers, each right if it is off by less than 5 %. By what
is the drop of the first step multiplied, on average over draws of A, if this is
changed and all else, η too, stays as it is?

    sgd_alpha, adam_alpha    α is doubled
    sgd_r, adam_r            r is doubled, α kept
    sgd_both, adam_both      α and r are doubled

    adam_r_length            by what is the length of Adam's ΔW multiplied, if r
                             is doubled and α kept?
    cosine                   between ΔW after SGD's first step and -η G, the
                             first step of full fine-tuning; r = in = out, large

Four words, "rises", "falls" or "stays": how does the best rate move, the η with
the lowest loss after five steps? ("stays": by less than a factor 1.5.) The loss
is the mean square of y - y*, where y* comes from a W that differs by a matrix
of rank 1. in = out = 24, and at first r = 2, α = 8.

    best_sgd_alpha, best_adam_alpha    α is multiplied by 4
    best_sgd_r, best_adam_r            r is multiplied by 8, α kept

By hand, with every matrix 1 × 1: A = 2, G = 3, s = 5, η = 0.1. dB = s G A = 30.
SGD: B = -3, ΔW = 5 · -3 · 2 = -30, drop 90. Adam: B = -0.1, ΔW = -1, drop 3.
"""


def predictions():
    """Return {"sgd_alpha": ..., ...}, the twelve of them.

    >>> len(predictions())
    12
    """
    raise NotImplementedError
