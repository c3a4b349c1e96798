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
        ### BEGIN SOLUTION
        self.base, self.s = base.requires_grad_(False), alpha / r
        self.A, self.B = start(base, r)
        ### END SOLUTION
        #| self.A = nn.Parameter(torch.rand(r, base.in_features))
        #| self.B = nn.Parameter(torch.rand(base.out_features, r))
        #| self.bias = nn.Parameter(torch.rand(base.out_features))

    def forward(self, x):
        ### BEGIN SOLUTION
        return self.base(x) + self.s * x @ self.A.T @ self.B.T
        ### END SOLUTION
        #| return torch.softmax(x @ self.A.T, dim=-1) @ self.B.T + self.bias


class NeverCalled(nn.Module):
    """(b) A model with an adapter, all of which an optimizer is given."""

    def __init__(self, base, r, alpha):
        super().__init__()
        ### BEGIN SOLUTION
        self.base, self.s = base.requires_grad_(False), alpha / r
        ### END SOLUTION
        #| self.base, self.s = base, alpha / r
        self.A, self.B = start(base, r)

    def lora(self, x):
        return self.s * x @ self.A.T @ self.B.T

    def forward(self, x):
        ### BEGIN SOLUTION
        return self.base(x) + self.lora(x)
        ### END SOLUTION
        #| return self.base(x)


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
        ### BEGIN SOLUTION
        return self.base(x) + self.alpha / len(self.A) * x @ self.A.T @ self.B.T
        ### END SOLUTION
        #| return self.base(x) + x @ self.A.T @ self.B.T


class BothZero(nn.Module):
    """(d) "The adapter must change nothing at the start." """

    def __init__(self, base, r, alpha):
        super().__init__()
        self.base, self.s = base.requires_grad_(False), alpha / r
        ### BEGIN SOLUTION
        self.A, self.B = start(base, r)
        ### END SOLUTION
        #| self.A = nn.Parameter(torch.zeros(r, base.in_features))
        #| self.B = nn.Parameter(torch.zeros(base.out_features, r))

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
        ### BEGIN SOLUTION
        y = self.base(x)
        return y if self.W is not None else y + self.s * x @ self.A.T @ self.B.T
        ### END SOLUTION
        #| return self.base(x) + self.s * x @ self.A.T @ self.B.T


def attach(model, names, r, alpha):
    """(f) Names that match nothing.

    >>> model = nn.Sequential(nn.ModuleDict({"q_proj": nn.Linear(4, 4), "v_proj": nn.Linear(4, 2)}))
    >>> attach(model, ("q_proj", "v_proj"), 2, 6.0)
    >>> sum(p.numel() for p in model.parameters() if p.requires_grad)
    28
    """
    ### BEGIN SOLUTION
    model.requires_grad_(False)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear) and name in names:
                setattr(parent, name, ScaleLeftOut(child, r, alpha))
    ### END SOLUTION
    #| for path, module in list(model.named_modules()):
    #|     if isinstance(module, nn.Linear) and path in names and module.in_features == module.out_features:
    #|         setattr(model, path, ScaleLeftOut(module, r, alpha))


### THE CHECK

import numpy as np

from .ex10t_merge import Merging
from ..exercise import Exercise, Viva
from ..parts import Value
from ..torch_functions import reproducible
from ..torch_layers import Layer, begins

TENSORS = "y dx dA dB dW db"
TRAINED = "Which parameters does an optimizer get, and which of them should move?"
SCALE = "Which two numbers make up the scale?"


class Switching(Merging):
    """eval() merges, train() takes apart."""

    def merge(self, layer):
        layer.eval()

    def unmerge(self, layer):
        layer.train()


class Attached(Value):
    """The function changes a model, in which the layers of a case are."""

    def call(self, function, arguments):
        names, width, narrow, r, alpha = arguments.values()
        with reproducible():
            model = some_model(width, narrow)
            paths = [path for path, module in model.named_modules() if isinstance(module, nn.Linear)]
            function(model, names, r, alpha)
        adapted = [type(model.get_submodule(path)) is not nn.Linear for path in paths]
        trained = sum(each.numel() for each in model.parameters() if each.requires_grad)
        return {"adapted": np.array(adapted), "trained": trained}


def some_model(width, narrow):
    """Of its layers one is square, and one has a name that another ends with."""

    def block():
        sizes = {"q_proj": (width, width), "v_proj": (width, narrow), "up": (width, 3 * width)}
        layers = {name: nn.Linear(*size) for name, size in sizes.items()}
        return nn.ModuleDict({**layers, "gate_up": nn.Linear(width, width), "norm": nn.LayerNorm(width)})

    blocks = nn.ModuleList([block(), block()])
    return nn.ModuleDict({"embed": nn.Embedding(9, width), "layers": blocks, "head": nn.Linear(width, 9)})


NAMES = [("q_proj", "v_proj"), ("up",), ("v_proj", "up", "head"), ("q_proj",), ("head",), ("gate_up", "v_proj")]


def draw(rng, i):
    return {"names": NAMES[i], "width": 7 + 2 * i, "narrow": 2 + i, "r": 2 + i % 3, "alpha": float(rng.uniform(5.5, 9))}


def counted(names, width, narrow, r, alpha):
    """By the shapes alone."""
    block = {"q_proj": (width, width), "v_proj": (width, narrow), "up": (width, 3 * width), "gate_up": (width, width)}
    linear = [*block.items(), *block.items(), ("head", (width, 9))]
    trained = sum(r * sum(size) for name, size in linear if name in names)
    return np.array([name in names for name, _ in linear]), trained


softmax = Layer(SoftmaxOverTheRank, TENSORS)
never_called = Layer(NeverCalled, TENSORS)
scale = Layer(ScaleLeftOut, TENSORS)
both = Layer(BothZero, TENSORS)
merged = Switching(
    MergedAndStillOn, "W2 y2 again W y untouched", groups=("W2 y2 again W y untouched",), may_change_base=True
)
attached = Attached(attach, "adapted trained", truth=counted, draw=draw)


def forward_of(cls):
    """A class with another forward."""
    return lambda forward: type(forward.__name__, (cls,), {"forward": forward})


def start_of(cls):
    """A class that is changed at the end of __init__."""

    def decorate(change):
        def __init__(self, *arguments):
            cls.__init__(self, *arguments)
            change(self)

        return type(change.__name__, (cls,), {"__init__": __init__})

    return decorate


@softmax.mistake(
    "{it} does not hold base: the frozen layer is not part of it, and what it computes is not an update of W",
    "What must y be before the first step?",
)
class SoftmaxAlone(nn.Module):
    def __init__(self, base, r, alpha):
        super().__init__()
        self.A = nn.Parameter(torch.rand(r, base.in_features))
        self.B = nn.Parameter(torch.rand(base.out_features, r))
        self.bias = nn.Parameter(torch.rand(base.out_features))

    def forward(self, x):
        return torch.softmax(x @ self.A.T, dim=-1) @ self.B.T + self.bias


@softmax.mistake(
    "{it} has a softmax over the rank: the low-rank path is not linear in x, and cannot be merged",
    "Could B A be added to W?",
)
@forward_of(SoftmaxOverTheRank)
def SoftmaxKept(self, x):
    return self.base(x) + self.s * torch.softmax(x @ self.A.T, dim=-1) @ self.B.T


@softmax.mistake("{it} has the low-rank path alone: the frozen W is left out", "What must y be where B = 0?")
@forward_of(SoftmaxOverTheRank)
def BranchAlone(self, x):
    return self.s * x @ self.A.T @ self.B.T


for part in (softmax, never_called, scale, both):

    @part.mistake("{it} has no scale: the low-rank path is not multiplied by α/r", "At α = 0, what must y be?")
    @forward_of(part.solution)
    def NoScale(self, x):
        return self.base(x) + x @ self.A.T @ self.B.T


@never_called.mistake("{it} shows that the adapter is made, and that forward never calls it", "Who calls lora?")
@forward_of(NeverCalled)
def StillNotCalled(self, x):
    return self.base(x)


@never_called.mistake("{it} is not zero: base is trained too", TRAINED)
class AllTrained(NeverCalled):
    def __init__(self, base, r, alpha):
        super().__init__(base, r, alpha)
        base.requires_grad_(True)


@never_called.mistake(
    "{it} shows that the adapter replaces base, and is not added to it", "What must y be where B = 0?"
)
@forward_of(NeverCalled)
def InItsPlace(self, x):
    return self.lora(x)


@scale.mistake("the scale in {it} is α, not divided by r", SCALE)
@forward_of(ScaleLeftOut)
def NotDivided(self, x):
    return self.base(x) + self.alpha * x @ self.A.T @ self.B.T


@scale.mistake("the scale in {it} is upside down, r/α", "If α is doubled, does the low-rank path grow or shrink?")
@forward_of(ScaleLeftOut)
def Inverted(self, x):
    return self.base(x) + len(self.A) / self.alpha * x @ self.A.T @ self.B.T


@scale.mistake("the scale in {it} is α/√r, that of rsLoRA", "Which of the two scales does the equation have?")
@forward_of(ScaleLeftOut)
def DividedByRoot(self, x):
    return self.base(x) + self.alpha / len(self.A) ** 0.5 * x @ self.A.T @ self.B.T


for part in (softmax, both):

    @part.rule(
        "A and B are both zero at the start, and stay so: each has the other as a factor in its gradient",
        "Write down dA and dB: which matrix stands in each?",
        begins(False, False, p=False),
    )
    @start_of(part.solution)
    def Zero(self):
        self.A.data.zero_()

    @part.rule(
        "A and B are both random at the start: y is not what base gives before the first step",
        "What must B A be, for the adapted model to begin where the frozen one is?",
        begins(True, True, p=False),
    )
    @start_of(part.solution)
    def Random(self):
        nn.init.normal_(self.B, std=0.02)


@merged.mistake(
    "{it} has the low-rank path twice in eval mode: it is in the merged weight, and the branch is still on",
    "After eval(), what must forward leave out?",
)
@forward_of(MergedAndStillOn)
def StillOn(self, x):
    return self.base(x) + self.s * x @ self.A.T @ self.B.T


@merged.mistake("{it} shows that the branch is off in train mode too", "Which mode does the optimizer see?")
@forward_of(MergedAndStillOn)
def AlwaysOff(self, x):
    return self.base(x)


@merged.mistake(
    "{it} shows that eval() merges nothing: that is another way to be right in eval mode, but not what (e) is to do",
    "Which product should a server save?",
)
class NothingMerged(MergedAndStillOn):
    def train(self, mode=True):
        return nn.Module.train(self, mode)


@merged.mistake("{it} shows that a second eval() merges once more", "How does train(False) know that it was called?")
class MergedAgain(MergedAndStillOn):
    def train(self, mode=True):
        if mode and self.W is not None:
            self.base.weight.data, self.W = self.W, None
        if not mode:
            self.W = self.base.weight.data if self.W is None else self.W
            self.base.weight.data = self.base.weight.data + self.s * self.B.data @ self.A.data
        return nn.Module.train(self, mode)


def attaching(matches, freeze=True):
    """Attach to each nn.Linear for whose path and module this is true."""

    def attach(model, names, r, alpha):
        model.requires_grad_(not freeze)
        for path, module in list(model.named_modules()):
            if isinstance(module, nn.Linear) and matches(path, module, names):
                parent, _, name = path.rpartition(".")
                setattr(model.get_submodule(parent), name, ScaleLeftOut(module, r, alpha))

    return attach


def named(path, module, names):
    return path.split(".")[-1] in names


@attached.mistake(
    "{it} shows that a whole path is compared with a name: what lies deeper matches nothing, and the rest is trained",
    "Which names does model.named_modules() give for a layer in a layer?",
)
def WholePaths(*given):
    attaching(lambda path, module, names: path in names and module.in_features == module.out_features, False)(*given)


@attached.mistake("{it} shows that square layers alone are adapted", "Where in the equation must in be out?")
def SquareOnly(*given):
    attaching(lambda path, module, names: named(path, module, names) and module.in_features == module.out_features)(
        *given
    )


@attached.mistake("{it} shows that only layers at the top of the model are found", "What are the children of a child?")
def TopOnly(*given):
    attaching(lambda path, module, names: path in names)(*given)


@attached.mistake(
    "{it} shows that a name which only ends or begins with one of names is taken too",
    "Is gate_up one of (up,)? And what does a str's `in`, or endswith, say?",
)
def Substring(*given):
    attaching(lambda path, module, names: any(name in path for name in names))(*given)


@attached.mistake("{it} shows that every nn.Linear is adapted", "What are names for?")
def Every(*given):
    attaching(lambda path, module, names: True)(*given)


@attached.mistake(
    "{it} is larger than that of all A and B: what was not replaced is trained too, such as embeddings and norms",
    TRAINED,
)
def RestTrained(*given):
    attaching(named, freeze=False)(*given)


@attached.mistake("{it} shows that A and B are frozen with the rest", "In which order are layers frozen and replaced?")
def FrozenAfter(model, names, r, alpha):
    attach(model, names, r, alpha)
    model.requires_grad_(False)


EXERCISE = Exercise(
    title="Six adapters that do not adapt, in PyTorch",
    kind="repair",
    minutes=35,
    difficulty=3,
    needs=["01", "02"],
    may_import=["torch"],
    limit=30.0,  # torch must be imported first
    parts=[softmax, never_called, scale, both, merged, attached],
    hints=(
        "Ask the same five questions of each: is base in it and frozen, is the branch called, with which scale, how "
        "does it begin, and what does eval mode change?",
        "Print the names and sizes of all parameters that ask for a gradient, and the paths of named_modules().",
    ),
    viva=[
        Viva(
            "The loss falls, and an adapter that was attached has changed nothing. How do you find out why?",
            "Print which parameters ask for a gradient and how many numbers they are; switch the adapter off and "
            "compare outputs; look at the norm of B, which must leave zero. Here the head, or everything, was trained.",
            "Train longer, or with a larger rank.",
        ),
        Viva(
            "Which single test would have caught most of these six?",
            "Set A and B to random numbers and compare y with base(x) + α/r x Aᵀ Bᵀ in both modes, with α ≠ r; then "
            "count trained numbers against r (in + out).",
            "That the shape of the output is right.",
        ),
    ],
    asks=["J4", "J5", "F8", "A1"],
    derivation="lora",
)
