"""10t · Merge and unmerge, in PyTorch

A LoRA layer around a frozen nn.Linear:

    y = base(x) + s (x ∘ keep) Aᵀ Bᵀ     s = α/r

    W, which is base.weight (out, in)    A (r, in)    B (out, r)

__init__ is there. Write three methods:

    layer.forward(x)    y; keep is self.dropout's, which is 1 in eval mode
    layer.merge()       puts the update into base.weight. From then on forward
                        gives from base alone, in both modes, the y that it
                        gave in eval mode. A second merge() changes nothing
    layer.unmerge()     base.weight is W again, bit for bit, and forward as it
                        was before. Where nothing is merged it does nothing

base.weight stays a frozen nn.Parameter. A and B stay as they are. You may keep
what you like on the layer.

What is checked: W2 is base.weight after merge(), y2 is what forward then gives
in eval mode, and again is base.weight after a second merge(). W and y are
base.weight and the output in eval mode after unmerge(), and untouched is
base.weight after one more unmerge(). All in float64.

One number by hand: W = 3, A a column of 1, 2, 3, 4, B a row of 5, 6, 7, 8, so
that r = 4; α = 6. B A = 70, s = 1.5, and merged the weight is 3 + 105 = 108.
"""

import torch
from torch import nn


class LoRALinear(nn.Module):
    """A LoRA layer that can be merged.

    >>> layer = LoRALinear(nn.Linear(1, 1), 4, 6.0, 0.1)
    >>> _ = layer.base.weight.data.fill_(3)
    >>> layer.A.data, layer.B.data = torch.tensor([[1.0], [2.0], [3.0], [4.0]]), torch.tensor([[5.0, 6.0, 7.0, 8.0]])
    >>> layer.merge()
    >>> layer.base.weight.item()
    108.0
    """

    def __init__(self, base, r, alpha, p):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.r, self.alpha = r, alpha
        self.A = nn.Parameter(torch.empty(r, base.in_features).uniform_(-1, 1) / base.in_features**0.5)
        self.B = nn.Parameter(torch.zeros(base.out_features, r))
        self.dropout = nn.Dropout(p)
        self.W = None  # while it is merged, the weight from before

    def forward(self, x):
        raise NotImplementedError

    def merge(self):
        raise NotImplementedError

    def unmerge(self):
        raise NotImplementedError
