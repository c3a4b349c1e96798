"""06t · Six adapters that do not adapt, in PyTorch

Each of the six below was published as LoRA, or happened to people who meant it
to be; each is rewritten here in a few lines. Repair them. (a) to (e) are

    Class(base, r, alpha)               an nn.Module around base, an nn.Linear

    y = base(x) + s (x Aᵀ) Bᵀ           s = α/r, without dropout

    self.A (r, in) and self.B (out, r)  nn.Parameters, all that is trained
    at the start                        y is what base gives, and A or B has a
                                        gradient that is not zero

Of (a) to (d) y, dx, dA, dB are checked, and dW and db, the gradients of base,
which must be zero. (e) has the update in base.weight while it is in eval mode,
as loralib: W2 and y2 are base.weight and the output after eval(), again is
base.weight after a second eval(); W and y are those after train(), and
untouched is base.weight after a second train(). W must be what it was.

    attach(model, names, r, alpha)      (f) changes the model in place

Each nn.Linear of model, however deep, whose own name (the last part of its
path: q_proj in layers.0.q_proj) is one of names becomes a ScaleLeftOut around
it. The others stay, and nothing but the A and B is trained any more. It may be
wide or square. adapted says for each nn.Linear whether it was replaced, and
trained is how many numbers ask for a gradient.

By hand: q_proj is 4 → 4, v_proj 4 → 2, both targets, r = 2. Then trained is
2 (4 + 4) + 2 (4 + 2) = 28.
"""

import torch
from torch import nn


def start(base, r):
    """A and B of exercise 02."""
    bound = base.in_features**-0.5
    A = nn.Parameter(torch.empty(r, base.in_features).uniform_(-bound, bound))
    return A, nn.Parameter(torch.zeros(base.out_features, r))


class SoftmaxOverTheRank(nn.Module):
    """(a) A "LoRA adapter" of an article's interview questions."""

    def __init__(self, base, r, alpha):
        super().__init__()
        self.A = nn.Parameter(torch.rand(r, base.in_features))
        self.B = nn.Parameter(torch.rand(base.out_features, r))
        self.bias = nn.Parameter(torch.rand(base.out_features))

    def forward(self, x):
        return torch.softmax(x @ self.A.T, dim=-1) @ self.B.T + self.bias


class NeverCalled(nn.Module):
    """(b) A model with an adapter, all of which an optimizer is given."""

    def __init__(self, base, r, alpha):
        super().__init__()
        self.base, self.s = base, alpha / r
        self.A, self.B = start(base, r)

    def lora(self, x):
        return self.s * x @ self.A.T @ self.B.T

    def forward(self, x):
        return self.base(x)


class ScaleLeftOut(nn.Module):
    """(c) A small library of 2024, in which alpha is an argument.

    >>> layer = ScaleLeftOut(nn.Linear(1, 1), 1, 7.0)
    >>> for name, value in {"base.weight": 3, "base.bias": 4, "A": 5, "B": 6}.items():
    ...     _ = layer.get_parameter(name).data.fill_(value)
    >>> layer(torch.tensor([2.0])).item()
    430.0
    """

    def __init__(self, base, r, alpha):
        super().__init__()
        self.base, self.alpha = base.requires_grad_(False), alpha
        self.A, self.B = start(base, r)

    def forward(self, x):
        return self.base(x) + x @ self.A.T @ self.B.T


class BothZero(nn.Module):
    """(d) "The adapter must change nothing at the start." """

    def __init__(self, base, r, alpha):
        super().__init__()
        self.base, self.s = base.requires_grad_(False), alpha / r
        self.A = nn.Parameter(torch.zeros(r, base.in_features))
        self.B = nn.Parameter(torch.zeros(base.out_features, r))

    def forward(self, x):
        return self.base(x) + self.s * x @ self.A.T @ self.B.T


class MergedAndStillOn(nn.Module):
    """(e) In eval mode the update is in base.weight."""

    def __init__(self, base, r, alpha):
        super().__init__()
        self.base, self.s = base.requires_grad_(False), alpha / r
        self.A, self.B = start(base, r)
        self.W = None  # in eval mode, the weight from before

    def train(self, mode=True):
        if self.W is not None:
            self.base.weight.data, self.W = self.W, None
        if not mode:
            self.W = self.base.weight.data
            self.base.weight.data = self.W + self.s * self.B.data @ self.A.data
        return super().train(mode)

    def forward(self, x):
        return self.base(x) + self.s * x @ self.A.T @ self.B.T


def attach(model, names, r, alpha):
    """(f) Names that match nothing.

    >>> model = nn.Sequential(nn.ModuleDict({"q_proj": nn.Linear(4, 4), "v_proj": nn.Linear(4, 2)}))
    >>> attach(model, ("q_proj", "v_proj"), 2, 6.0)
    >>> sum(p.numel() for p in model.parameters() if p.requires_grad)
    28
    """
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and path in names and module.in_features == module.out_features:
            setattr(model, path, ScaleLeftOut(module, r, alpha))
