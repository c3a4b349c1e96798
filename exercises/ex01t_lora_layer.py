"""01t · The layer, in PyTorch

An nn.Module around a frozen nn.Linear (Hu et al., 2021, equation 3):

    LoRALinear(base, r, alpha, p)        an nn.Module

    y = base(x) + s (x ∘ keep) Aᵀ Bᵀ     s = α/r

    base   an nn.Linear from in to out, with or without a bias. The layer holds
           it, trains neither its weight nor its bias, and leaves it as it is
    A      self.A (r, in), and B, self.B (out, r): nn.Parameter, or nn.Linear
           without bias. They are all that is trained
    x      (..., in)    y (..., out)
    keep   dropout, on the low-rank path alone. In train mode 0 with
           probability p and otherwise 1/(1-p), drawn anew for every entry of x
           in every call; in eval mode 1

At the start y is what base gives, bit for bit, and A or B has a gradient that
is not zero. Never form the (out, in) matrix B A: for large layers it is as
large as W. The backward is autograd's: what is checked is that it arrives at
x, A and B, in float64.

One number by hand, with in = out = r = 1, in eval mode: x = 2, W = 3, b = 4,
A = 5, B = 6, α = 7. base(x) = 10, x A B = 60, s = 7, y = 430; and
∂y/∂x = 3 + 7 · 30 = 213.
"""

import torch
from torch import nn
from torch.nn import functional as F


class LoRALinear(nn.Module):
    """A LoRA layer.

    >>> layer = LoRALinear(nn.Linear(1, 1), 1, 7.0, 0.1).eval()
    >>> for name, value in {"base.weight": 3, "base.bias": 4, "A": 5, "B": 6}.items():
    ...     layer.get_parameter(name).data.fill_(value).item()
    3.0
    4.0
    5.0
    6.0
    >>> layer(torch.tensor([2.0])).item()
    430.0
    """

    def __init__(self, base, r, alpha, p):
        super().__init__()
        raise NotImplementedError

    def forward(self, x):
        raise NotImplementedError
