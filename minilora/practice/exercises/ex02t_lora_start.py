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
    ### BEGIN SOLUTION
    n_in = A.shape[1]
    nn.init.uniform_(A, -1 / math.sqrt(n_in), 1 / math.sqrt(n_in))
    nn.init.zeros_(B)
    ### END SOLUTION


### THE CHECK

import copy

import numpy as np

from .ex02_lora_init import init
from ..exercise import Exercise, Viva
from ..torch_functions import Twin, reproducible


class Start(Twin):
    """The function fills two parameters; that of the NumPy exercise returns two arrays."""

    def call(self, function, arguments):
        rng, n_in, n_out, r = arguments.values()
        with reproducible(int(copy.deepcopy(rng).integers(2**31))):
            A, B = (nn.Parameter(torch.full(shape, torch.nan)) for shape in ((r, n_in), (n_out, r)))
            function(A, B)
        return {"A": A.detach().numpy(), "B": B.detach().numpy()}

    def in_torch(self, wrong):
        def function(A, B):
            rng = np.random.default_rng(torch.initial_seed())
            with torch.no_grad():
                for tensor, array in zip((A, B), wrong(rng, A.shape[1], len(B), len(A)), strict=True):
                    tensor.copy_(torch.from_numpy(array))

        return function


start = Start(
    lora_start_,
    of=init,
    without=("transposed", "returned_in_the_wrong_order", "widths_exchanged", "global_random_state", "own_generator"),
)


@start.mistake(
    "{it} is still as it was given: the name was bound to a new tensor, and the parameter was not filled",
    "After A = torch.zeros(2), which tensor does the optimizer hold?",
)
def bound_anew(A, B):
    A = torch.randn(A.shape) / math.sqrt(A.shape[1])
    B = torch.zeros(B.shape)


@start.mistake(
    "{it} fills A and leaves B as it was given: nothing says that an empty tensor holds zeros",
    "What does torch.empty hold?",
)
def B_left_empty(A, B):
    nn.init.normal_(A, std=1 / math.sqrt(A.shape[1]))


@start.mistake(
    "{it} draws from another generator than PyTorch's: after the same torch.manual_seed, the numbers differ",
    "What makes a run repeatable?",
)
def another_generator(A, B):
    bound = 1 / math.sqrt(A.shape[1])
    A.data = torch.from_numpy(np.random.default_rng().uniform(-bound, bound, A.shape))
    nn.init.zeros_(B)


def same_from_any_seed(function):
    cases = [
        start.call(function, {"rng": np.random.default_rng(seed), "n_in": 30, "n_out": 20, "r": 4}) for seed in (1, 2)
    ]
    return all(np.array_equal(cases[0][name], cases[1][name]) for name in "AB")


@start.rule(
    "{it} gives the same numbers whatever the seed is: it sets a seed of its own",
    "Two layers of equal shape are filled one after the other: are their A the same?",
    same_from_any_seed,
)
def own_seed(A, B):
    torch.manual_seed(0)
    lora_start_(A, B)


EXERCISE = Exercise(
    title="The start, in PyTorch",
    kind="write",
    minutes=10,
    difficulty=1,
    needs=["02"],
    may_import=["torch"],
    limit=30.0,  # torch must be imported first
    parts=[start],
    hints=(
        "torch.nn.init has functions whose names end in _: they fill what they are given, without a gradient.",
        "Which number does your choice of nn.init take for fan_in, and what variance does it give to an entry of A?",
    ),
    viva=[
        Viva(
            "PEFT writes kaiming_uniform_(A, a=√5). Which distribution is that?",
            "Uniform within ±√(6/((1 + 5) in)) = ±1/√in, since fan_in is the last axis of A: a variance of 1/(3 in), "
            "and 1/3 for an entry of x Aᵀ. The √5 only cancels the 6.",
            "He's initialisation, which keeps the variance at 1.",
        ),
        Viva(
            "Why fill parameters in place, and not assign new ones?",
            "An optimizer, a tied module or a distributed wrapper may hold the old objects: new ones would never be "
            "updated. And the same code then serves meta tensors that are filled later.",
            "It makes no difference in Python.",
        ),
    ],
    asks=["B2", "C1", "C2", "C3"],
    derivation="lora",
)
