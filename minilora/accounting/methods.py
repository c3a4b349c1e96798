"""What each method of fine-tuning trains, adds, keeps and computes: a Plan.

    full            everything
    top2            the last two blocks                               (Li, Liang, 2021)
    bitfit          every bias                                        (Ben Zaken et al., 2022)
    prefix-embed    C l                the embeddings of l virtual tokens               (Hu et al., 2021, section 5.1)
    prefix-layer    L C l              the activations of l virtual tokens after each of L blocks
    adapter-…       Σ (2 C r + r + C)  C -> r -> C, with biases: houlsby after attention and MLP, pfeiffer after the
                                       MLP, lin after the MLP with a layer norm of its own, + 2 C
    lora            Σ r (in + out)     y += s (x Aᵀ) Bᵀ                                 (Hu et al., 2021)
    lora-fa         Σ r out            A stays as it was drawn                          (Zhang et al., 2023)
    dora            Σ r (in + out) + out    and the length of every row of W + ΔW       (Liu et al., 2024)
    vera            Σ (out + r)        y += b ∘ (B (d ∘ (A x))), A and B random and shared   (Kopiczko et al., 2023)
    lora-xs         Σ r²               y += B R (A x), A and B from the SVD of W        (Bałazy et al., 2024)
    ia3             Σ out, or Σ in     scales keys, values and the input of down_proj   (Liu et al., 2022)
    qlora           as lora            over a base in 4 bits                            (Dettmers et al., 2023)

Σ runs over the adapted layers. An insert keeps what its own gradients need, by the same rule as ops/: the gradient of
a matrix needs its input, of a scale what it scales, of anything frozen nothing.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any, NamedTuple

from ..adapters.attach import wasted_rank
from ..spelling import choose_from
from .architecture import Architecture, Linear, Shape, Table

LORA_LIKE = ("lora", "lora-fa", "dora", "vera", "lora-xs", "qlora")
TARGETED = (*LORA_LIKE, "ia3")  # what adapts layers of one's choice


class Kept(NamedTuple):
    """One array that forward leaves for backward, of `width` numbers a token. "x" is the layer's own input."""

    what: str
    width: int
    why: str


@dataclass(frozen=True)
class Insert:
    """What is added to one layer. FLOPs are those of matrix products, a multiplication and an addition each: for a
    token, and `once` for a step."""

    layer: Linear | Table
    trained: Mapping[str, Shape]  # by the end of their names in PEFT's file
    kept: list[Kept]
    forward: int = 0
    backward: int = 0
    once: int = 0
    frozen: Mapping[str, Shape] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """A method, laid out over one architecture."""

    method: str
    formula: str
    trained: frozenset[str] = frozenset()  # paths of the base's tensors
    inserts: tuple[Insert, ...] = ()
    rest: Mapping[str, Shape] = field(default_factory=dict)  # trained, and part of no layer
    shared: Mapping[str, Shape] = field(default_factory=dict)  # frozen, one for all layers
    virtual_tokens: int = 0
    in_peft: bool = True  # PEFT knows it, and has a file format for it


def lora(layer: Linear | Table, r: int) -> Insert:
    """Linear: ops/lora.py. Embedding: h = A[:, ids], a look-up, and y += s h Bᵀ."""
    if isinstance(layer, Table):
        shapes = {"lora_embedding_A": (r, layer.rows), "lora_embedding_B": (layer.width, r)}
        kept = [Kept("ids", 0, "dA adds dh up by id"), Kept("h", r, "dB = s dyᵀ h")]
        return Insert(layer, shapes, kept, 2 * r * layer.width, 4 * r * layer.width)
    n_in, n_out = layer.n_in, layer.n_out
    shapes = {"lora_A.weight": (r, n_in), "lora_B.weight": (n_out, r)}
    kept = [Kept("x", n_in, "dA = dhᵀ x"), Kept("h", r, "dB = s dyᵀ h")]
    return Insert(layer, shapes, kept, 2 * r * (n_in + n_out), 4 * r * (n_in + n_out))


def lora_fa(layer: Linear, r: int) -> Insert:
    n_in, n_out = layer.n_in, layer.n_out
    A, B = {"lora_A.weight": (r, n_in)}, {"lora_B.weight": (n_out, r)}
    kept = [Kept("h", r, "dB = s dyᵀ h")]
    return Insert(layer, B, kept, 2 * r * (n_in + n_out), 2 * r * (n_in + 2 * n_out), frozen=A)


def dora(layer: Linear, r: int) -> Insert:
    plain = lora(layer, r)
    kept = [*plain.kept, Kept("v", layer.n_out, "dm = Σ dy ∘ v, v = (W + s B A) x / ‖·‖")]
    trained = {**plain.trained, "lora_magnitude_vector": (layer.n_out,)}
    return Insert(layer, trained, kept, plain.forward, plain.backward, once=2 * r * layer.n_in * layer.n_out)


def vera(layer: Linear, r: int) -> Insert:
    """The products with A and B are LoRA's; neither has a gradient."""
    n_in, n_out = layer.n_in, layer.n_out
    kept = [Kept("h", r, "dd = Σ dh ∘ h"), Kept("u", n_out, "db = Σ dy ∘ u, u = B (d ∘ h)")]
    trained: dict[str, Shape] = {"vera_lambda_b": (n_out,), "vera_lambda_d": (r,)}
    return Insert(layer, trained, kept, 2 * r * (n_in + n_out), 2 * r * (n_in + n_out))


def lora_xs(layer: Linear, r: int) -> Insert:
    n_in, n_out = layer.n_in, layer.n_out
    forward, frozen = 2 * r * (n_in + n_out + r), {"lora_A.weight": (r, n_in), "lora_B.weight": (n_out, r)}
    kept = [Kept("h", r, "dR = (Bᵀ dy) hᵀ")]
    return Insert(layer, {"lora_R.weight": (r, r)}, kept, forward, forward + 2 * r * r, frozen=frozen)


def ia3(layer: Linear, r: int) -> Insert:
    if layer.path.endswith("down_proj"):
        return Insert(layer, {"ia3_l": (1, layer.n_in)}, [Kept("unscaled", layer.n_in, "dl = Σ dx ∘ x")])
    return Insert(layer, {"ia3_l": (layer.n_out, 1)}, [Kept("y", layer.n_out, "dl = Σ dy ∘ y")])


def bottleneck(layer: Linear, r: int) -> Insert:
    C = layer.n_out
    trained: dict[str, Shape] = {"down.weight": (r, C), "down.bias": (r,), "up.weight": (C, r), "up.bias": (C,)}
    kept = [Kept("y", C, "dW_down"), Kept("slope", r, "through the nonlinearity"), Kept("z", r, "dW_up")]
    return Insert(layer, trained, kept, 4 * r * C, 8 * r * C)


def bottleneck_with_norm(layer: Linear, r: int) -> Insert:
    plain, C = bottleneck(layer, r), layer.n_out
    trained: dict[str, Shape] = {**plain.trained, "norm.weight": (C,), "norm.bias": (C,)}
    kept = [*plain.kept, Kept("x̂", C, "through the norm, and dg"), Kept("σ", 1, "through the norm")]
    return Insert(layer, trained, kept, plain.forward, plain.backward)


class Added(NamedTuple):
    """A method that adds to layers: how to one of them, and the formulas of what it trains and of its products."""

    make: Callable[..., Insert]
    trained: str
    products: tuple[str, str]  # forward and backward; n rows of x


LORA_PRODUCTS = "2 Σ n r (in + out)   (x Aᵀ) Bᵀ", "4 Σ n r (in + out)   dh = dy B, dh A, dhᵀ x, dyᵀ h"
ADAPTER_PRODUCTS = "4 Σ n r out   down, up", "8 Σ n r out   dx and dW of down, up"
NO_PRODUCTS = "0   it multiplies number by number", "0"
ADDED: dict[str, Added] = {
    "lora": Added(lora, "Σ r (in + out)", LORA_PRODUCTS),
    "qlora": Added(lora, "Σ r (in + out)", LORA_PRODUCTS),
    "lora-fa": Added(lora_fa, "Σ r out", (LORA_PRODUCTS[0], "2 Σ n r (in + 2 out)   dh = dy B, dh A, dyᵀ h")),
    "dora": Added(
        dora, "Σ r (in + out) + out", ("2 Σ r (n (in + out) + in·out)   (x Aᵀ) Bᵀ, B A once", LORA_PRODUCTS[1])
    ),
    "vera": Added(vera, "Σ (out + r)", (LORA_PRODUCTS[0], "2 Σ n r (in + out)   dh = dy B, dh A")),
    "lora-xs": Added(
        lora_xs,
        "Σ r²",
        ("2 Σ n r (in + out + r)   ((x Aᵀ) Rᵀ) Bᵀ", "2 Σ n r (in + out + 2 r)   dy B, its R and A, dR"),
    ),
    "ia3": Added(ia3, "Σ out, or Σ in of down_proj", NO_PRODUCTS),
    "adapter-houlsby": Added(bottleneck, "Σ (2 C r + r + C)", ADAPTER_PRODUCTS),
    "adapter-pfeiffer": Added(bottleneck, "Σ (2 C r + r + C)", ADAPTER_PRODUCTS),
    "adapter-lin": Added(bottleneck_with_norm, "Σ (2 C r + r + C + 2 C)", ADAPTER_PRODUCTS),
}
METHODS = ("full", "top2", "bitfit", "prefix-embed", "prefix-layer", *ADDED)


def plan(
    model: Architecture,
    method: str,
    targets: str | Collection[str] | None = None,
    r: int = 8,
    virtual_tokens: int = 8,
) -> Plan:
    """`method` over `model`. `targets`: last names such as q_proj, lm_head, or "embed"; "all-linear", every Linear of
    the blocks; None, the method's own usual ones. r is the rank, or a bottleneck's width. A new classification head is
    trained whatever the method.

    Raises ValueError for a method that is not known, targets that match nothing or that the method has none of, a rank
    below 1, and for lora-xs one above min(in, out); of others a warning says that.
    """
    if method not in METHODS:
        raise ValueError(f"no method is called {method!r}: {choose_from(method, METHODS)}")
    if targets is not None and method not in TARGETED:
        raise ValueError(f"{method} has no targets to choose")
    if not is_whole(virtual_tokens) or virtual_tokens < 1:
        raise ValueError(f"{virtual_tokens!r} virtual tokens are not a whole number above 0")
    tensors, blocks = model.tensors(), model.blocks()
    head = frozenset(path for path in tensors if path.startswith("classifier"))
    if method == "full":
        return Plan(method, "every parameter", frozenset(tensors), in_peft=False)
    if method == "top2":
        last = tuple(f"{block}." for block in blocks[-2:])
        return Plan(method, "the last two blocks", head | {p for p in tensors if p.startswith(last)}, in_peft=False)
    if method == "bitfit":
        biases = frozenset(path for path in tensors if path.endswith(".bias"))
        if not biases:
            raise ValueError(f"{model.name} has no bias, so bitfit has nothing to train")
        return Plan(method, "every bias", head | biases, in_peft=False)
    if method.startswith("prefix"):
        rest: dict[str, Shape]
        if method == "prefix-embed":  # PEFT's prompt tuning, which has prompts for both stacks of a t5, and no vit
            formula, rest = "C l", {"prompt_embeddings": (virtual_tokens, model.width)}
            in_peft = model.family not in ("t5", "vit")
        else:
            formula, rest, in_peft = "L C l", {method: (len(blocks), model.width, virtual_tokens)}, False
        return Plan(method, formula, head, rest=rest, virtual_tokens=virtual_tokens, in_peft=in_peft)
    make, formula, _ = ADDED[method]
    chosen = choose(model, usual_targets(model, method) if targets is None else targets, method)
    if not is_whole(r) or r < 1:
        raise ValueError(f"rank {r!r} is not a whole number from 1 up")
    most = {layer.path: (r, smaller_side(layer)) for layer in chosen if method in LORA_LIKE and method != "vera"}
    note = wasted_rank(most)  # VeRA's shared A and B have one rank for all layers
    if note and method == "lora-xs":
        raise ValueError(f"{note}, and the SVD of W has no more")
    if note:
        warnings.warn(note, stacklevel=2)
    shared: dict[str, Shape] = {}
    if method == "vera":
        linears = [layer for layer in chosen if isinstance(layer, Linear)]
        shared = {"vera_A": (r, max(x.n_in for x in linears)), "vera_B": (max(x.n_out for x in linears), r)}
    in_peft = not method.startswith("adapter") and method != "lora-xs"
    return Plan(method, formula, head, tuple(make(layer, r) for layer in chosen), shared=shared, in_peft=in_peft)


def usual_targets(model: Architecture, method: str) -> str | list[str]:
    names = {last(layer.path) for layer in model.linears()}
    if method == "qlora":
        return "all-linear"
    if method == "adapter-houlsby":
        return ["o_proj", "down_proj"]
    if method.startswith("adapter"):
        return ["down_proj"]
    if method == "ia3":
        return [
            "qkv_proj" if "qkv_proj" in names else "k_proj",
            *(["v_proj"] if "v_proj" in names else []),
            "down_proj",
        ]
    return ["qkv_proj"] if "qkv_proj" in names else ["q_proj", "v_proj"]


def choose(model: Architecture, targets: str | Collection[str], method: str) -> list[Linear | Table]:
    """The layers that `targets` names, in the model's order."""
    layers = [(name, op) for op in model.ops() if isinstance(op, Linear | Table) and (name := target_name(op))]
    if targets == "all-linear":
        return [op for name, op in layers if name not in ("embed", "lm_head")]
    wanted = {targets} if isinstance(targets, str) else set(targets)
    names = dict.fromkeys(name for name, _ in layers)
    unknown = sorted(wanted - set(names))
    if unknown or not wanted:
        what = (
            f"no layer of {model.name} is called {', '.join(map(repr, unknown))}" if unknown else "no target is named"
        )
        raise ValueError(f"{what}: {choose_from(''.join(unknown[:1]), names)}")
    if "embed" in wanted and method not in ("lora", "qlora"):
        raise ValueError(f"{method} of an embedding is not counted, only lora")
    return [op for name, op in layers if name in wanted]


def target_name(op: Linear | Table) -> str:
    """What a target calls it; "" for what is not adapted: positions, a new head, a convolution."""
    if isinstance(op, Table):
        return "embed" if op.path == "embed.token" else ""
    return last(op.path) if "block_" in op.path or op.path == "lm_head" else ""


def smaller_side(layer: Linear | Table) -> int:
    return min((layer.rows, layer.width) if isinstance(layer, Table) else (layer.n_in, layer.n_out))


def is_whole(x: Any) -> bool:
    """An int, of NumPy too, and no bool."""
    return isinstance(x, Integral) and not isinstance(x, bool)


def last(path: str) -> str:
    return path.rpartition(".")[2]
