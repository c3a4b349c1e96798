"""AdaLoRA: a low-rank path in the form of an SVD, whose least important triplets training prunes (Zhang et al., 2023).
The maths of the layer and of the penalty is in ops/adalora.py; that of the cuts is here, in Allocator.

e is the diagonal of the paper's Λ, B its P, A its Q; PEFT calls e lora_E.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np

from .. import ops
from ..backend import Array, Rng, generator, get_array_module, to_numpy
from ..nn import FusedLinear, Gradients, Linear, Module, Parameter, Pass
from .base import Law, relative_difference
from .lora import in_blocks
from .lora_base import LoRA
from .parallel import Parallel, dropped
from .statements import Kept, Option, Products, Slot


def same_share_of_a_triplet(adapter: AdaLoRALinear, x: Array, dy: Array, grads: Gradients) -> float:
    """eₖ deₖ = ⟨Aₖ, dAₖ⟩ = ⟨Bₖ, dBₖ⟩, of row k of A and column k of B: multiplying one of a triplet by c and another by
    1/c changes no output."""
    A, B, e = adapter.lora_A, adapter.lora_B, adapter.lora_E
    of_e, of_A, of_B = e.data * grads[e], (A.data * grads[A]).sum(axis=1), (B.data * grads[B]).sum(axis=0)
    return max(relative_difference(of_e, of_A), relative_difference(of_e, of_B))


def gradients_at_zero_e(adapter: AdaLoRALinear, x: Array, dy: Array, grads: Gradients) -> float:
    adapter.lora_E.data = 0 * adapter.lora_E.data
    grads = Gradients()
    adapter.backward(dy, adapter.forward(x)[1], grads)
    dA, dB, de = (abs(grads[p]).max() for p in (adapter.lora_A, adapter.lora_B, adapter.lora_E))
    return float(max(dA, dB) / de)


class AdaLoRALinearCache(NamedTuple):
    base: Any
    x: Array | None  # (..., in)   after dropout; None where A is frozen
    h: Array | None  # (N, r)      None where B and e are frozen
    learn_B: bool
    learn_e: bool
    keep: Array | None  # (..., in)   the dropout mask


class AdaLoRALinear(Parallel):
    """y = x W₀ᵀ + b + s ((x Aᵀ) ∘ e) Bᵀ           A (r, in)   e (r,)   B (out, r)   s = α/(r₀ + 1e-5)

    r₀ is the rank at the start, the option `r`, and cuts do not change s; both as in PEFT. At the start e = 0, so y is
    the base's, and A and B are normal with standard deviation 0.02. Dropout acts on the adapter's input only.

    It is trained with the Allocator of this file, which adds the penalty and cuts triplets; only it reads the options
    from target_r to total_step. A file holds the triplets that are left; the option `mask` says which of the r₀ they
    are, and is () if all are left.
    Raises ValueError for a base that is not a plain Linear, and for options out of range; alpha must be above 0: PEFT
    replaces any other by r₀.
    """

    variant = "adalora"
    peft_type = "ADALORA"
    keys = LoRA.keys._replace(  # those of LoRA's that AdaLoRA's config has as well, and PEFT reads no more
        inits=(True, False), ignored=(*LoRA.keys.ignored, "r", "use_rslora", "alpha_pattern")
    )
    base_type = Linear
    targets = "q_proj", "v_proj"
    options = (
        Option("r", "init_r", 12),
        Option("alpha", "lora_alpha", 8.0),
        Option("dropout", "lora_dropout", 0.0),
        Option("target_r", "target_r", 8),  # for each layer, on average
        Option("tinit", "tinit", 0),  # the last step before the cuts
        Option("tfinal", "tfinal", 0),  # steps after the last cut
        Option("deltaT", "deltaT", 1),  # steps from cut to cut
        Option("beta1", "beta1", 0.85),
        Option("beta2", "beta2", 0.85),
        Option("orth_reg_weight", "orth_reg_weight", 0.5),
        Option("total_step", "total_step", 1),  # an Allocator sets it; until then it is the least there can be
        Option("mask", "", (), "rank_pattern", mask_of="lora_E"),
    )
    slots = (
        Slot("lora_A", "lora_A", ("r", "n_in")),
        Slot("lora_B", "lora_B", ("n_out", "r")),
        Slot("lora_E", "lora_E", ("r",), file_shape=("r", "1")),
    )
    kept = (
        Kept("x", "n_in", "dA = dhᵀ x", ("lora_A",)),
        Kept("h", "r", "dB and de, by M = s dyᵀ h", ("lora_B", "lora_E")),
    )
    products = Products(
        forward="2 * r * (n_in + n_out)",
        backward="2 * r * (n_in + n_out)",
        without_dx="2 * r * (n_in + n_out)",
        gradients={("lora_A",): "2 * r * n_in", ("lora_B", "lora_E"): "2 * r * n_out"},
    )
    laws: ClassVar[dict[str, Law]] = {
        "eₖ deₖ = ⟨Aₖ, dAₖ⟩ = ⟨Bₖ, dBₖ⟩": same_share_of_a_triplet,
        "dA = dB = 0 at e = 0": gradients_at_zero_e,
    }
    examples: ClassVar[dict[str, dict[str, Any]]] = {
        "": {"r": 3, "alpha": 5.0, "total_step": 9},
        " with dropout": {"r": 3, "alpha": 5.0, "dropout": 0.4},
        " of which a cut has left one triplet": {"r": 3, "alpha": 5.0, "mask": (False, True, False)},
    }
    lora_A: Parameter
    lora_B: Parameter
    lora_E: Parameter
    r: int
    alpha: float
    dropout: float
    target_r: int
    tinit: int
    tfinal: int
    deltaT: int
    beta1: float
    beta2: float
    orth_reg_weight: float
    total_step: int
    mask: tuple[bool, ...]
    left: np.ndarray
    """(r,), bool: the triplets that the last cut left. Before the schedule's last cut the others may come back."""

    @classmethod
    def start(cls, base: Module, *, rng: Rng, **options: Any) -> AdaLoRALinear:
        rng = generator(rng)
        cls.check(base, **options)
        assert isinstance(base, Linear)
        (n_out, n_in), r = base.weight.data.shape, cls.rank(options)
        A, B = 0.02 * rng.standard_normal((r, n_in)), 0.02 * rng.standard_normal((n_out, r))
        return cls.of(base, {"lora_A": A, "lora_B": B, "lora_E": np.zeros(r)}, **options)

    @classmethod
    def check(cls, base: Module, **options: Any) -> None:
        super().check(base, **options)
        given = cls.defaults() | options
        if not given["alpha"] > 0:
            raise ValueError(f"alpha {given['alpha']} is not above 0: PEFT would take r in its place")
        for name in ("beta1", "beta2"):
            if not 0 < given[name] < 1:
                raise ValueError(f"{name} {given[name]} is not between 0 and 1")
        if given["orth_reg_weight"] < 0:
            raise ValueError(f"orth_reg_weight {given['orth_reg_weight']} is below 0")
        if "total_step" in options and given["tinit"] >= given["total_step"] - given["tfinal"]:
            raise ValueError(
                f"tinit {given['tinit']} and tfinal {given['tfinal']} leave no step to cut in: total_step "
                f"{given['total_step']} must be above their sum"
            )
        if given["mask"] and len(given["mask"]) != given["r"]:
            raise ValueError(f"mask has {len(given['mask'])} entries, and must have one for each of r = {given['r']}")

    @classmethod
    def rank(cls, options: Mapping[str, Any]) -> int:
        given = {**cls.defaults(), **options}
        return sum(given["mask"]) if given["mask"] else given["r"]

    def hold(self, base: Any, tensors: Mapping[str, Array | Parameter], **options: Any) -> None:
        least = options.get("tinit", 0) + options.get("tfinal", 0) + 1
        super().hold(base, tensors, **{"total_step": least, **options})
        self.left = np.ones(self.rank(options), dtype=bool)

    @property
    def scaling(self) -> float:
        return self.alpha / (self.r + 1e-5)

    @property
    def tensors(self) -> tuple[Array, Array, Array]:
        return self.lora_A.data, self.lora_B.data, self.lora_E.data

    def path_forward(self, x: Array, run: Pass) -> tuple[Array, AdaLoRALinearCache]:
        x, keep = dropped(x, self.dropout, run.rng)
        y, (x, h) = ops.adalora_forward(x, *self.tensors, self.scaling)
        learn_A, learn_B, learn_e = (p.trainable for p in (self.lora_A, self.lora_B, self.lora_E))
        return y, AdaLoRALinearCache(
            None, x if learn_A else None, h if learn_B or learn_e else None, learn_B, learn_e, keep
        )

    def path_backward(self, dy: Array, cache: AdaLoRALinearCache, grads: Gradients, needs_dx: bool) -> Array:
        A, B, e = self.tensors
        dx, dh = ops.adalora_backward(dy, A, B, e, self.scaling)
        if cache.x is not None:
            grads.add(self.lora_A, ops.lora_A_gradients(dh, cache.x))
        if cache.h is not None:
            dB, de = ops.adalora_gradients(dy, cache.h, B, e, self.scaling)
            if cache.learn_B:
                grads.add(self.lora_B, dB)
            if cache.learn_e:
                grads.add(self.lora_E, de)
        return dx if cache.keep is None else ops.dropout_backward(dx, cache.keep)

    def factors(self) -> tuple[Array, Array, float]:
        """ΔW = s B diag(e) A; where no triplet is left, one of zeros, as no SVD has rank 0."""
        A, B, e = self.tensors
        if not len(e):
            xp, (n_out, n_in) = get_array_module(A), self.weight.data.shape
            A, B, e = xp.zeros((1, n_in), A.dtype), xp.zeros((n_out, 1), A.dtype), xp.zeros(1, A.dtype)
        return e[:, None] * A, B, self.scaling

    def in_file(self) -> AdaLoRALinear:
        """Without the triplets that the last cut took and that have not come back since."""
        rows = self.left | (to_numpy(self.lora_E.data) != 0)
        if rows.all():
            return self
        A, B, e = self.tensors
        short = copy.copy(self)
        short.lora_A, short.lora_B, short.lora_E = (
            Parameter(x, p.trainable)
            for x, p in ((A[rows], self.lora_A), (B[:, rows], self.lora_B), (e[rows], self.lora_E))
        )
        mask = np.array(self.mask or (True,) * self.r)
        mask[mask] = rows
        short.mask, short.left = tuple(mask.tolist()), rows[rows]
        return short

    @classmethod
    def join_parts(cls, base: FusedLinear, parts: list[Any]) -> AdaLoRALinear:
        """The triplets of all parts, B_:k with zeros for the rows of the other parts, and an α by which s stays."""
        shortened = [part.in_file() if part.is_adapter else None for part in parts]
        adapted = [part for part in shortened if part]
        first = adapted[0]
        if any(part.settings | {"mask": ()} != first.settings | {"mask": ()} for part in adapted):
            raise ValueError("the parts of a fused layer differ in their options, and one adapter has one of each")
        A, e = (np.concatenate([to_numpy(part.tensors[j]) for part in adapted]) for j in (0, 2))
        B = in_blocks(base, [to_numpy(part.lora_B.data) if part else None for part in shortened])
        r = first.r * len(adapted)
        mask = [left for part in adapted for left in part.mask or (True,) * first.r]
        options = {"r": r, "alpha": first.scaling * (r + 1e-5), "mask": () if all(mask) else mask}
        return cls.of(base, {"lora_A": A, "lora_B": B, "lora_E": e}, **first.settings | options)

    @classmethod
    def fit_options(cls, model: Module, steps: int) -> dict[str, Any]:
        allocator = Allocator(model, steps)
        return {"penalty": allocator.penalty, "after_step": allocator}


SCHEDULE = "target_r", "tinit", "tfinal", "deltaT", "beta1", "beta2", "orth_reg_weight"  # options that a model has once


class Allocator:
    """The penalty and the cuts of the AdaLoRA adapters of a model, over a training of `steps` steps:

        allocator = Allocator(model, steps)
        fit(model, batches, steps, penalty=allocator.penalty, after_step=allocator)

    The sensitivity I of a weight w is smoothed, and so is its deviation; their product is the importance s. That of a
    triplet, S_k, is its e_k's and the means over A_k and B_:k:

        I = |w dw|          Ī ← β₁ Ī + (1-β₁) I         Ū ← β₂ Ū + (1-β₂) |I - Ī|          s = Ī Ū
        S_k = s(e_k) + mean s(A_k) + mean s(B_:k)

    w is that after the step, and dw what the optimizer was given for it: with the penalty's part, and clipped.

    After step t = 0, 1, ... of T there is a budget of b(t) triplets for the whole model, from all b₀ of them to
    target_r a layer, b_T together:

        b(t) = b_T + (b₀ - b_T) (1 - (t - tinit)/(T - tfinal - tinit))³         rounded down

    While tinit < t < T - tfinal, every deltaT steps, and at t = T - tfinal, e_k is set to 0 for the b₀ - b(t) triplets
    with the lowest S, and for ties with the highest of them. Training continues with all, so what is cut may come back,
    until the last cut: after it e_k = 0 after every step. With tfinal = 0 no step t = T is reached: then the last cut
    is that of the last multiple of deltaT, and is not held.

    Zhang et al. (2023), sections 3.2 and 3.3; in its order, and to the last triplet, as PEFT 0.21.2's
    update_and_allocate(t) between optimizer.step() and zero_grad(). Two differences: at r = target_r, where PEFT fails,
    nothing is cut; and the penalty does not depend on the task, where PEFT drops it without a task_type.

    `state` is what training needs to resume: training.fit keeps it in its checkpoint.
    If target_r is not below r there is nothing to cut. Raises ValueError for a model without AdaLoRA, for adapters
    that differ in an option of the schedule, and for `steps` that leave no step to cut in.
    """

    def __init__(self, model: Module, steps: int, *, squared: bool = False) -> None:
        """`squared`: the paper's penalty instead of PEFT's."""
        named = {path: module for path, module in model.named_modules() if isinstance(module, AdaLoRALinear)}
        if not named:
            raise ValueError('the model has no AdaLoRA: attach(model, "adalora", ...) first')
        schedules = [{name: a.settings[name] for name in SCHEDULE} for a in named.values()]
        if any(schedule != schedules[0] for schedule in schedules):
            raise ValueError(f"the adapters differ in one of {', '.join(SCHEDULE)}, and a model has one schedule")
        AdaLoRALinear.check(Linear(np.zeros((1, 1))), **schedules[0], total_step=steps)
        for adapter in named.values():
            adapter.total_step = steps
        self.adapters, self.squared = named, squared
        self.first = next(iter(named.values()))
        self.b_0 = sum(len(adapter.left) for adapter in named.values())
        self.b_T = self.first.target_r * len(named)
        zeros = {
            f"{path}.{name}": get_array_module(p.data).zeros_like(p.data)
            for path, adapter in named.items()
            for name, p in adapter.own_parameters().items()
        }
        self.mean, self.deviation = zeros, dict(zeros)

    def penalty(self) -> tuple[Array | float, Gradients]:
        """Its value and gradients, over all layers: the mean of all ‖A Aᵀ - I‖ and ‖Bᵀ B - I‖ times orth_reg_weight, as
        in PEFT; with `squared` the paper's, their squares' sum times that."""
        value, grads, w = 0.0, Gradients(), self.first.orth_reg_weight
        forward, gradients = ops.orthogonality_forward, ops.orthogonality_gradients
        if self.squared:
            forward, gradients = ops.squared_orthogonality_forward, ops.squared_orthogonality_gradients
        else:
            w /= 2 * len(self.adapters)
        for adapter in self.adapters.values():
            A, B = adapter.lora_A, adapter.lora_B
            (of_A, E_A), (of_B, E_B) = forward(A.data), forward(B.data.T)
            value = value + w * (of_A + of_B)
            if A.trainable:
                grads.add(A, gradients(w, E_A, A.data))
            if B.trainable:
                grads.add(B, gradients(w, E_B, B.data.T).T)
        return value, grads

    def __call__(self, t: int, grads: Gradients) -> None:
        """After step t, with its gradients, as training.fit calls it."""
        last = self.first.total_step - self.first.tfinal
        if t < last:
            self.update(grads)
        if t == last or (self.first.tinit < t < last and t % self.first.deltaT == 0):
            self.cut(self.b_0 - self.budget(t))
        elif t > last:
            self.zero()

    def update(self, grads: Gradients) -> None:
        """Ī and Ū of every weight."""
        b1, b2 = self.first.beta1, self.first.beta2
        for path, adapter in self.adapters.items():
            for name, p in adapter.own_parameters().items():
                key = f"{path}.{name}"
                importance = abs(p.data * grads[p]) if p in grads else 0 * p.data
                self.mean[key] = b1 * self.mean[key] + (1 - b1) * importance
                self.deviation[key] = b2 * self.deviation[key] + (1 - b2) * abs(importance - self.mean[key])

    def scores(self) -> dict[str, np.ndarray]:
        """{path of an adapter: S (r,)}"""
        found = {}
        for path in self.adapters:
            A, B, e = (
                self.mean[f"{path}.{name}"] * self.deviation[f"{path}.{name}"]
                for name in ("lora_A", "lora_B", "lora_E")
            )
            found[path] = to_numpy(e + (A.mean(axis=1) + B.mean(axis=0)))
        return found

    def budget(self, t: int) -> int:
        """b(t), while tinit < t"""
        adapter = self.first
        rest = 1 - (t - adapter.tinit) / (adapter.total_step - adapter.tfinal - adapter.tinit)
        return int((self.b_0 - self.b_T) * rest**3 + self.b_T)

    def cut(self, n: int) -> None:
        """Take the n triplets with the lowest scores, and those that tie with the highest of them; none for n < 1."""
        scores = self.scores()
        highest = np.sort(np.concatenate(list(scores.values())))[n - 1] if n > 0 else -np.inf
        for path, adapter in self.adapters.items():
            adapter.left = scores[path] > highest
        self.zero()

    def zero(self) -> None:
        """e_k = 0 of what the last cut took."""
        for adapter in self.adapters.values():
            e = adapter.lora_E.data
            xp = get_array_module(e)
            adapter.lora_E.data = xp.where(xp.asarray(adapter.left), e, xp.zeros_like(e))

    @property
    def state(self) -> dict[str, Array]:
        """{name: array}: Ī, Ū and what the last cut left."""
        means = {f"mean.{key}": x for key, x in self.mean.items()}
        deviations = {f"deviation.{key}": x for key, x in self.deviation.items()}
        return means | deviations | {f"left.{path}": adapter.left for path, adapter in self.adapters.items()}

    def load_state(self, state: Mapping[str, Array]) -> None:
        for key, x in self.mean.items():
            xp = get_array_module(x)
            self.mean[key], self.deviation[key] = (xp.asarray(state[f"{kind}.{key}"]) for kind in ("mean", "deviation"))
        for path, adapter in self.adapters.items():
            adapter.left = to_numpy(state[f"left.{path}"]).astype(bool)
