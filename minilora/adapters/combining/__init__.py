"""Methods to make one LoRA of several on the same layer, one file each.

    ΔWᵢ = sᵢ Bᵢ Aᵢ        Aᵢ (rᵢ, in)   Bᵢ (out, rᵢ)   sᵢ = α/r        wᵢ: the weight of adapter i
    Σ = w₁ ΔW₁ + w₂ ΔW₂ + ...        what is meant by "both at once"
    B A                              what a method returns, to be used with s = 1

Σ has the rank r₁ + r₂ + ... in general. So a method is exact and of that rank (cat), or as near to Σ as a rank allows
(svd), or near to something else. The last work elementwise, with a function `join` of tensors and weights:

    NAME         A = join(Aᵢ; √(wᵢsᵢ))   B = join(Bᵢ; √(wᵢsᵢ))    on the factors, of one rank r, which the result keeps
    NAME_svd     B A = the best of rank k of join(ΔWᵢ; wᵢ)         on the ΔWᵢ, which it forms: (out, in) each

On the factors even the plain sum (linear) is not Σ: with aᵢ = √(wᵢsᵢ)

    B A = (Σᵢ aᵢ Bᵢ)(Σⱼ aⱼ Aⱼ) = Σ + Σ_{i≠j} aᵢ aⱼ Bᵢ Aⱼ

whose cross terms no adapter has learned. They are as large as Σ itself, and arbitrary: (M⁻¹A, B M) is the same adapter
for every invertible M, but with another M its cross terms are others. cat and svd depend on the ΔWᵢ alone.

An adapter with a negative weight is treated as -ΔWᵢ with a positive one, so that methods which look at signs see the
right ones; one of weight 0 is left out. (PEFT 0.21.2 lets it vote in ties, and lets one with a negative weight vote for
what it takes away: docs/peft.md.) With positive weights the results are PEFT's, except for which of several equal
entries a pruning keeps.

A file states COMBINATIONS = {"name": Combination("a line about it", its function, ...)}; the names are PEFT's, as in
add_weighted_adapter(combination_type=...). combine.py, beside this folder, applies them to all layers of a model.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .combination import Combination


@functools.cache
def combinations() -> dict[str, Combination]:
    """{name: Combination} of all files."""
    files = (importlib.import_module(f".{file.name}", __package__) for file in pkgutil.iter_modules(__path__))
    found = {name: method for file in files for name, method in getattr(file, "COMBINATIONS", {}).items()}
    return {name: found[name] for name in descriptions()}


def descriptions() -> dict[str, str]:
    """{name: a line about it}, those that take no density first. Read from the files' text without importing them, for
    a --help that need not wait for NumPy."""
    files = (path.read_text(encoding="utf-8") for path in sorted(Path(__path__[0]).glob("*.py")))
    found = {
        name: about
        for text in files
        for name, about in re.findall(r'^    "(\w+)": Combination\(\s*"(.+?)"', text, re.M)
    }
    plain = "cat", "svd", "linear"
    return {name: found[name] for name in (*plain, *sorted(found.keys() - {*plain}))}
