"""02 · The start

    y = x Wᵀ + b + s (x Aᵀ) Bᵀ        s = α/r

    x (..., in)    W (out, in)    A (r, in)    B (out, r)    y (..., out)

Draw A and B for the first step of training, in float64, such that

1. y is what the frozen layer gives, bit for bit, whatever x and α are;
2. the adapter can learn: A or B has a gradient that is not zero;
3. what is random is drawn from the generator rng (numpy.random.Generator)
   that is given, and from nothing else: independent entries of mean 0;
4. if A is random, an x whose entries are independent, of mean 0 and variance
   1, gives an x Aᵀ whose entries have a variance between 1/3 and 1, whatever
   in, out and r are. (PEFT's default lies at 1/3.)

One number by hand: where in = 50 and the entries of A have the standard
deviation 0.1, an entry of x Aᵀ is a sum of 50 products of variance 0.01, and
has the variance 0.5: within the bounds.
"""

import numpy as np


def lora_init(rng, n_in, n_out, r):
    """Return A, B.

    >>> A, B = lora_init(np.random.default_rng(0), 50, 40, 3)
    >>> A.shape, B.shape
    ((3, 50), (40, 3))
    >>> x = np.random.default_rng(1).standard_normal((1000, 50))
    >>> bool(1 / 4 < (x @ A.T).var() < 5 / 4)
    True
    """
    raise NotImplementedError
