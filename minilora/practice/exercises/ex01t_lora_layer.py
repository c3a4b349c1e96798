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
        ### BEGIN SOLUTION
        self.base = base.requires_grad_(False)
        self.s = alpha / r
        self.A = nn.Parameter(torch.empty(r, base.in_features).uniform_(-1, 1) / base.in_features**0.5)
        self.B = nn.Parameter(torch.zeros(base.out_features, r))
        self.dropout = nn.Dropout(p)
        ### END SOLUTION

    def forward(self, x):
        ### BEGIN SOLUTION
        h = self.dropout(x) @ self.A.T
        return self.base(x) + self.s * h @ self.B.T
        ### END SOLUTION


### THE CHECK

import numpy as np

from ..exercise import Exercise, Viva
from ..torch_functions import watched
from ..torch_layers import Layer, begins, factor, fresh

layer = Layer(LoRALinear)
SCALE = "Which two numbers make up the scale?"
TRAINED = "Which parameters does an optimizer get, and which of them should move?"
PATHS = "By how many paths does x reach y, and which of them ask for a gradient?"
DROPPED = "Which path sees x with dropout, and at which point of it?"


def path(forward):
    """A layer with another forward."""
    return type(forward.__name__, (LoRALinear,), {"forward": forward})


def start(change):
    """A layer that is changed at the end of __init__."""

    def __init__(self, *arguments):
        LoRALinear.__init__(self, *arguments)
        change(self)

    return type(change.__name__, (LoRALinear,), {"__init__": __init__})


def low(self, x):
    return self.dropout(x) @ self.A.T @ self.B.T


def scale(self):
    """α and r."""
    return self.s * len(self.A), len(self.A)


@layer.mistake("{it} has no scale: the low-rank path is not multiplied by α/r", "At α = 0, what must y be?")
@path
def no_scale(self, x):
    return self.base(x) + low(self, x)


@layer.mistake("the scale in {it} is α, not divided by r", SCALE)
@path
def not_divided_by_r(self, x):
    return self.base(x) + scale(self)[0] * low(self, x)


@layer.mistake("the scale in {it} is α/√r, that of rsLoRA", "Which of the two scales does the equation have?")
@path
def divided_by_root_r(self, x):
    alpha, r = scale(self)
    return self.base(x) + alpha / r**0.5 * low(self, x)


@layer.mistake("the scale in {it} is upside down, r/α", "If α is doubled, does the low-rank path grow or shrink?")
@path
def scale_inverted(self, x):
    return self.base(x) + low(self, x) / self.s


@layer.mistake("{it} has the scale twice", "How often does the low-rank path pass through s?")
@path
def scale_twice(self, x):
    return self.base(x) + self.s**2 * low(self, x)


@layer.mistake("the scale α/r is on the base path of {it} too", "Does α change what the frozen layer does?")
@path
def scale_on_both_paths(self, x):
    return self.s * (self.base(x) + low(self, x))


@layer.mistake("{it} has the low-rank path with the wrong sign", "If B A = W and s = 1, how much is y?")
@path
def subtracted(self, x):
    return self.base(x) - self.s * low(self, x)


@layer.mistake("{it} has no low-rank path", "Which two paths lead from x to y?")
@path
def no_low_rank_path(self, x):
    return self.base(x)


@layer.mistake("{it} has no base path: the frozen W is left out", "What must y be where B = 0?")
@path
def no_base_path(self, x):
    return self.s * low(self, x)


@layer.mistake("the bias of base is missing in {it}", "What is y where x is zero?")
@path
def no_bias(self, x):
    return x @ self.base.weight.T + self.s * low(self, x)


@layer.mistake("{it} fails where base has no bias", "What is nn.Linear(2, 2, bias=False).bias?")
@path
def needs_a_bias(self, x):
    return x @ self.base.weight.T + self.base.bias + self.s * low(self, x)


@layer.mistake("{it} has a ReLU between A and B", "Could B A still be added to W?")
@path
def relu_between(self, x):
    return self.base(x) + self.s * F.relu(self.dropout(x) @ self.A.T) @ self.B.T


@layer.mistake(
    "{it} has a softmax over the rank between A and B, as in attention", "What chooses among the r numbers, and why?"
)
@path
def softmax_between(self, x):
    return self.base(x) + self.s * F.softmax(self.dropout(x) @ self.A.T, dim=-1) @ self.B.T


@layer.mistake("{it} shows that no gradient passes through the frozen W to x", PATHS)
@path
def no_gradient_through_base(self, x):
    return self.base(x.detach()) + self.s * low(self, x)


@layer.mistake("{it} shows that no gradient passes through A and B to x", PATHS)
@path
def no_gradient_through_the_adapter(self, x):
    return self.base(x) + self.s * low(self, x.detach())


@layer.mistake("{it} shows that no gradient reaches x at all: the layers below would learn nothing", PATHS)
@path
def no_gradient_to_x(self, x):
    return LoRALinear.forward(self, x.detach())


@layer.mistake("{it} shows that the low-rank path is computed without gradients", PATHS)
@path
def no_gradient_in_the_adapter(self, x):
    with torch.no_grad():
        y = self.s * low(self, x)
    return self.base(x) + y


@layer.mistake("{it} shows that all is computed without gradients", PATHS)
@path
def no_gradient_at_all(self, x):
    with torch.no_grad():
        return LoRALinear.forward(self, x)


@layer.mistake("{it} is not zero: base is trained too, its weight and its bias", TRAINED)
@start
def base_not_frozen(self):
    self.base.requires_grad_(True)


@layer.mistake("{it} is not zero: the bias of base is trained too", TRAINED)
@start
def bias_not_frozen(self):
    if self.base.bias is not None:
        self.base.bias.requires_grad_(True)


@layer.mistake("{it} is not zero: the weight of base is trained too", TRAINED)
@start
def weight_not_frozen(self):
    self.base.weight.requires_grad_(True)


@layer.mistake("{it} is zero, because A and B are frozen too", TRAINED)
@start
def all_frozen(self):
    self.requires_grad_(False)


@layer.mistake("{it} is zero, because A is frozen: only B is trained", TRAINED)
@start
def A_frozen(self):
    self.A.requires_grad_(False)


@layer.mistake("{it} is zero, because B is frozen: only A is trained", TRAINED)
@start
def B_frozen(self):
    self.B.requires_grad_(False)


@layer.mistake(
    "A and B are tensors that {it} does not know as parameters: no optimizer is given them, no checkpoint has them",
    "What does layer.state_dict() hold?",
)
class plain_tensors(LoRALinear):
    def __init__(self, base, r, alpha, p):
        super().__init__(base, r, alpha, p)
        A, B = self.A.data, self.B.data
        del self.A, self.B
        self.A, self.B = A.requires_grad_(), B.requires_grad_()


@layer.mistake(
    "{it} does not hold the base that it is given as a module of its own: no checkpoint of the layer has W",
    "What does layer.state_dict() hold?",
)
class base_not_held(LoRALinear):
    def __init__(self, base, r, alpha, p):
        super().__init__(base, r, alpha, p)
        del self.base
        self.hidden = [base]

    def forward(self, x):
        return self.hidden[0](x) + self.s * low(self, x)


@layer.mistake("{it} drops entries in eval mode too: what it computes differs from call to call", DROPPED)
@path
def always_on_dropout(self, x):
    return self.base(x) + self.s * F.dropout(x, self.dropout.p) @ self.A.T @ self.B.T


@layer.mistake("{it} is 1 for every x: nothing is dropped in train mode", "Where is p used?")
@path
def no_dropout(self, x):
    return self.base(x) + self.s * x @ self.A.T @ self.B.T


@layer.mistake(
    "{it} is not 1/(1-p) where x is kept: the entries that survive are not scaled up",
    "What must the mean of keep be, for eval mode to give what train mode gives on average?",
)
@path
def not_rescaled(self, x):
    kept = 1 - self.dropout.p if self.training else 1
    return self.base(x) + kept * self.s * low(self, x)


@layer.mistake("in {it}, p is the probability of what is kept, not of what is dropped", "With p = 0, what is dropped?")
@start
def p_inverted(self):
    self.dropout = nn.Dropout(1 - self.dropout.p)


@layer.mistake("{it} is not 0 and 1/(1-p): base sees x with dropout too", DROPPED)
@path
def dropout_on_both_paths(self, x):
    x = self.dropout(x)
    return self.base(x) + self.s * x @ self.A.T @ self.B.T


@layer.mistake("{it} is not 0 and 1/(1-p): dropout acts on x Aᵀ, not on x", DROPPED)
@path
def dropout_between(self, x):
    return self.base(x) + self.s * self.dropout(x @ self.A.T) @ self.B.T


@layer.mistake("{it} is not 0 and 1/(1-p): dropout acts on the output of the whole layer", DROPPED)
@path
def dropout_on_y(self, x):
    return self.dropout(self.base(x) + self.s * x @ self.A.T @ self.B.T)


def trains_base(function):
    _, layer = fresh(function)
    trained = {id(tensor) for tensor in layer.parameters() if tensor.requires_grad}
    return trained != {id(factor(layer, name)) for name in "AB"}


def forms_the_product(function, n=200):
    """Is any result as large as W, beside those of __init__?"""
    layer = function(nn.Linear(n, n, dtype=torch.float64), 2, 8.0, 0.25)
    layer = layer.to(torch.float64)
    return watched(lambda x: layer(x), np.ones((1, n))).largest >= n * n


@layer.rule(
    "A and B are both zero at the start, and stay so: each has the other as a factor in its gradient",
    "Write down dA and dB: which matrix stands in each?",
    begins(False, False),
)
@start
def both_zero(self):
    self.A.data.zero_()


@layer.rule(
    "A and B are both random at the start: y is not what base gives before the first step",
    "What must B A be, for the adapted model to begin where the frozen one is?",
    begins(True, True),
)
@start
def both_random(self):
    nn.init.normal_(self.B, std=0.02)


@layer.rule(
    "other tensors than A and B ask for gradients, though none reaches them: they count as trained, and weight decay "
    "moves them in some optimizers",
    TRAINED,
    trains_base,
)
class detached_not_frozen(LoRALinear):
    def __init__(self, base, r, alpha, p):
        super().__init__(base, r, alpha, p)
        self.base.requires_grad_(True)

    def forward(self, x):
        b = self.base.bias
        return F.linear(x, self.base.weight.detach(), b if b is None else b.detach()) + self.s * low(self, x)


def drops_another_share(function):
    """In every case? Of 480 numbers or more, a share within 0.06 of p is 3 standard deviations."""
    return all(abs(dropped.mean() - p) > 0.06 for p, dropped in layer.masks(function))


def drops_alike(function):
    """Is the mask the same for each sample, for each token, or for each number of a token?"""
    masks = [dropped for _, dropped in layer.masks(function)]
    return any(all(np.all(d == d.take([0], axis)) for d in masks) for axis in (0, 1, 2))


@layer.rule(
    "one entry of the mask is drawn for several entries of x, which are dropped or kept together",
    "How many entries does x have, and how many does your mask have?",
    drops_alike,
)
class one_mask(LoRALinear):
    def forward(self, x):
        keep = self.dropout(torch.ones_like(x[:1]))
        return self.base(x) + self.s * (x * keep) @ self.A.T @ self.B.T


@layer.rule(
    "the share of x that is dropped in train mode is not p",
    "Of 1000 numbers and p = 0.1, how many are dropped, and how many does your mask drop?",
    drops_another_share,
)
class another_share(LoRALinear):
    def forward(self, x):
        p = self.dropout.p
        keep = (torch.rand_like(x) > p + 0.1) / (1 - p) if self.training else torch.ones_like(x)
        return self.base(x) + self.s * (x * keep) @ self.A.T @ self.B.T


@layer.rule(
    "{it} forms the (out, in) matrix B A, which is as large as W",
    "How many entries does B A have, and how many does x Aᵀ have?",
    forms_the_product,
)
@path
def product_formed(self, x):
    return self.base(x) + self.s * self.dropout(x) @ (self.B @ self.A).T


EXERCISE = Exercise(
    title="The layer, in PyTorch",
    kind="write",
    minutes=15,
    difficulty=2,
    needs=["01"],
    may_import=["torch"],
    limit=30.0,  # torch must be imported first
    parts=[layer],
    hints=(
        "Begin with __init__: what is frozen, what is a parameter, which of A and B is zero? Then forward: two paths.",
        "Where a result is wrong, look at its name: y and keep come from forward, dW and db from what is frozen, dx "
        "from every path on which x goes.",
    ),
    viva=[
        Viva(
            "base is frozen. Why must its forward still be recorded by autograd?",
            "Because x comes from layers below that have adapters of their own: dx = dy W + ... passes through W. "
            "requires_grad=False saves dW alone; no_grad or detach would cut dx.",
            "It need not be, a frozen layer can run under no_grad.",
        ),
        Viva(
            "Which test of this layer sees that the scale is missing?",
            "One with B ≠ 0 and α ≠ r, against an independent formula. At the start, or with α = r, a layer without a "
            "scale passes everything, as in the tests of several public graders.",
            "That the output has the right shape and equals base at the start.",
        ),
    ],
    asks=["A1", "C1", "J5", "F8"],
    derivation="lora",
)
