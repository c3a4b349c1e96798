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
        ### BEGIN SOLUTION
        y = self.base(x)
        if self.W is None:
            y = y + self.alpha / self.r * self.dropout(x) @ self.A.T @ self.B.T
        return y
        ### END SOLUTION

    def merge(self):
        ### BEGIN SOLUTION
        if self.W is None:
            self.W = self.base.weight.data
            self.base.weight.data = self.W + self.alpha / self.r * self.B.data @ self.A.data
        ### END SOLUTION

    def unmerge(self):
        ### BEGIN SOLUTION
        if self.W is not None:
            self.base.weight.data, self.W = self.W, None
        ### END SOLUTION


### THE CHECK

import numpy as np

from ...verify.problems.low_rank import low_rank
from .ex10_merge import truth as merged
from ..exercise import Exercise, Viva
from ..torch_layers import Layer, fresh, give, output


class Merging(Layer):
    """The weight and the output after merge() and after unmerge(), each of them once and again."""

    def merge(self, layer):
        layer.merge()

    def unmerge(self, layer):
        layer.unmerge()

    def measured(self, layer, base, case):
        self.unmerge(layer.eval())
        give(layer, case)
        found = {}
        for change, weight, y in (
            (self.merge, "W2", "y2"),
            (self.merge, "again", ""),
            (self.unmerge, "W", "y"),
            (self.unmerge, "untouched", ""),
        ):
            change(layer)
            found |= {weight: base.weight.detach().numpy().copy(), y: output(layer, case)}
        return found

    def of_truth(self, dy, x, A, B, W, b, alpha, r, p):
        y = low_rank.forward(x, A, B, W, np.ones(x.shape), alpha, r, 0.0) + (0 if b is None else b)
        W2 = merged(W, A, B, alpha, p, False)
        true = {"W2": W2, "y2": y, "again": W2, "W": W, "y": y, "untouched": W}
        return {name: true[name] for name in self.tensors}


layer = Merging(LoRALinear, "W2 y2 again W y untouched", groups=("W2 y2 again W y untouched",), may_change_base=True)


def adds(update):
    """A layer that merges another update."""

    def merge(self):
        if self.W is None:
            self.W = self.base.weight.data
            self.base.weight.data = update(self).detach()

    return type(update.__name__, (LoRALinear,), {"merge": merge})


def delta(self):
    return self.alpha / self.r * self.B.data @ self.A.data


@layer.mistake("{it} has no scale: B A is added as it is", "At α = 0, what must W2 be?")
@adds
def no_scale(self):
    return self.W + self.B @ self.A


@layer.mistake("the scale in {it} is α, not divided by r", "Which two numbers make up the scale?")
@adds
def not_divided_by_r(self):
    return self.W + self.r * delta(self)


@layer.mistake("the scale in {it} is upside down, r/α", "If α is doubled, does W2 move away from W or towards it?")
@adds
def scale_inverted(self):
    return self.W + self.r / self.alpha * self.B @ self.A


@layer.mistake(
    "{it} scales ΔW by 1 - p: but the mask was divided by that in training", "What is the mean of one entry of keep?"
)
@adds
def times_kept(self):
    return self.W + (1 - self.dropout.p) * delta(self)


@layer.mistake("{it} scales ΔW by 1/(1-p), as the mask of training", "What is keep at inference?")
@adds
def divided_by_kept(self):
    return self.W + delta(self) / (1 - self.dropout.p)


@layer.mistake("{it} is ΔW alone: the frozen W is missing", "What must W2 be where B = 0?")
@adds
def no_base(self):
    return delta(self)


@layer.mistake("in {it}, ΔW is subtracted from W, not added", "Which sign does the low-rank path have in y?")
@adds
def subtracted(self):
    return self.W - delta(self)


@layer.mistake("{it} shows that nothing is merged: base.weight is what it was", "Which tensor does base compute with?")
@adds
def merged_elsewhere(self):
    self.merged_weight = self.W + delta(self)
    return self.W


@layer.mistake(
    "{it} has the low-rank path twice: it is in the merged weight, and the branch is still on",
    "After merge(), what must forward leave out?",
)
class still_on(LoRALinear):
    def forward(self, x):
        return self.base(x) + self.alpha / self.r * self.dropout(x) @ self.A.T @ self.B.T


@layer.mistake("{it} has ΔW once more: a merged layer was merged again", "How does merge know that it was called?")
class merged_again(LoRALinear):
    def merge(self):
        self.W = self.base.weight.data if self.W is None else self.W
        self.base.weight.data = self.base.weight.data + delta(self)


@layer.mistake(
    "{it} shows that ΔW is merged twice, and that W is lost: the second merge() kept the merged weight",
    "How does merge know that it was called?",
)
class merged_again_and_kept(LoRALinear):
    def merge(self):
        self.W = self.base.weight.data
        self.base.weight.data = self.W + delta(self)


@layer.mistake(
    "{it} has ΔW left: what merge() kept is the same memory as the weight that it then changed in place",
    "After b = a and a += 1, what is b?",
)
class kept_in_the_same_memory(LoRALinear):
    def merge(self):
        if self.W is None:
            self.W = self.base.weight.data
            self.base.weight.data += delta(self)


@layer.mistake("{it} is the merged weight: unmerge() does not bring W back", "What does base compute after unmerge()?")
class never_unmerged(LoRALinear):
    def unmerge(self):
        pass


@layer.mistake(
    "{it} is that of base alone: after unmerge() the branch is not on again, or A or B is gone",
    "How does forward know what is merged?",
)
class branch_stays_off(LoRALinear):
    off = False

    def forward(self, x):
        return self.base(x) if self.off else LoRALinear.forward(self, x)

    def merge(self):
        LoRALinear.merge(self)
        self.off = True


@layer.mistake(
    "{it} is W - ΔW: unmerge() subtracts what was never added", "How does unmerge know that something is merged?"
)
class taken_off_unasked(LoRALinear):
    def unmerge(self):
        if self.W is None:
            self.base.weight.data = self.base.weight.data - delta(self)
        else:
            LoRALinear.unmerge(self)


@layer.mistake("{it} has ΔW left over: unmerge() subtracts B A without its scale", "What did merge() add?")
class unscaled_taken_off(LoRALinear):
    def unmerge(self):
        if self.W is not None:
            self.base.weight.data, self.W = self.base.weight.data - self.B.data @ self.A.data, None


def rounded(function):
    """Is a bit of W lost? What is added is larger than W, and takes its last bits."""
    base, layer = fresh(function)
    before = base.weight.detach().clone()
    with torch.no_grad():
        layer.B.fill_(7)
    layer.merge()
    layer.unmerge()
    return not torch.equal(base.weight, before)


def on_in_train_mode(function):
    _, layer = fresh(function)
    with torch.no_grad():
        layer.B.fill_(7)
    layer.merge()
    x = torch.ones(1, layer.base.in_features, dtype=torch.float64)
    return not torch.allclose(layer.train()(x), layer.eval()(x))


def trains_the_merged(function):
    _, layer = fresh(function)
    with torch.no_grad():
        layer.B.fill_(7)
    layer.merge()
    weight = layer.base.weight
    return weight.requires_grad or not isinstance(weight, nn.Parameter)


@layer.rule(
    "unmerge() gives W up to rounding, and not bit for bit: it is computed from the merged weight",
    "What is (0.1 + 0.2) - 0.2 in Python? Which bits of W does a sum with something larger keep?",
    rounded,
)
class by_subtraction(LoRALinear):
    def unmerge(self):
        if self.W is not None:
            self.base.weight.data, self.W = self.base.weight.data - delta(self), None


@layer.rule(
    "after merge(), the branch is still on in train mode, in addition to the merged weight",
    "What tells forward that the layer is merged: the mode, or something else?",
    on_in_train_mode,
)
class on_by_the_mode(LoRALinear):
    def forward(self, x):
        y = self.base(x)
        return y + self.alpha / self.r * self.dropout(x) @ self.A.T @ self.B.T if self.training or self.W is None else y


@layer.rule(
    "after merge(), base.weight asks for a gradient: the next step would train it",
    "What do nn.Parameter(...) and a sum with A in it ask of autograd, if nothing else is said?",
    trains_the_merged,
)
class parameter_anew(LoRALinear):
    def merge(self):
        LoRALinear.merge(self)
        self.base.weight.requires_grad_(True)


EXERCISE = Exercise(
    title="Merge and unmerge, in PyTorch",
    kind="write",
    minutes=20,
    difficulty=2,
    needs=["10"],
    may_import=["torch"],
    limit=30.0,  # torch must be imported first
    parts=[layer],
    hints=(
        "The layer is in one of two states. Which attribute says in which, and which of the three methods look at it?",
        "Nothing here has to be recorded by autograd: how do you write into a parameter without that? And what of all "
        "that is there gives W back without any arithmetic?",
    ),
    viva=[
        Viva(
            "loralib merges when the layer goes into eval mode. What can go wrong with that?",
            "eval() twice, or a train() in between that subtracts ΔW: each round loses bits, and a checkpoint saved in "
            "eval mode has the merged weight. A step in eval mode trains factors that no forward sees.",
            "Nothing, that is what eval mode is for.",
        ),
        Viva(
            "After a merge, outputs are off by exactly the low-rank path. What happened, and which test sees it?",
            "It was merged twice, or the branch is still on beside the merged weight. Compare the merged model with "
            "the one from before, at B ≠ 0; a model compared with itself sees nothing.",
            "It is rounding, and goes away in float64.",
        ),
    ],
    asks=["G1", "G9", "B5"],
    derivation="lora",
)
