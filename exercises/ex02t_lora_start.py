"""02t · The start, in PyTorch

    y = base(x) + s (x Aᵀ) Bᵀ        s = α/r

    x (..., in)    A (r, in)    B (out, r)    y (..., out)

Fill A and B, two nn.Parameters that are there already, for the first step of
training, such that

1. y is what base gives, bit for bit, whatever x and α are;
2. the adapter can learn: A or B has a gradient that is not zero;
3. what is random is drawn from PyTorch's own generator, which the user has
   given a seed with torch.manual_seed: independent entries of mean 0;
4. if A is random, an x whose entries are independent, of mean 0 and variance
   1, gives an x Aᵀ whose entries have a variance between 1/3 and 1, whatever
   in, out and r are. (PEFT's default lies at 1/3.)

A and B are changed in place and stay the same objects: an optimizer may hold
them already. Before the call nothing is known of their entries. Nothing is
returned.

One number by hand: where in = 50 and the entries of A have the standard
deviation 0.1, an entry of x Aᵀ is a sum of 50 products of variance 0.01, and
has the variance 0.5: within the bounds.
"""

import math

import torch
from torch import nn


def lora_start_(A, B):
    """Fill A and B.

    >>> A, B = nn.Parameter(torch.empty(3, 50)), nn.Parameter(torch.empty(40, 3))
    >>> lora_start_(A, B)
    >>> 1 / 4 < (torch.randn(1000, 50) @ A.T).var().item() < 5 / 4
    True
    """
    raise NotImplementedError
