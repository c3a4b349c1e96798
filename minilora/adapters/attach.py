"""Attaching adapters to the layers of a model: visible assignment, in a loop.

model.freeze()
model["block_0.attention.q_proj"] = LoRALinear(model["block_0.attention.q_proj"], r=8, alpha=16, rng=rng)
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ..backend import Array, Rng, generator
from ..data import Batch
from ..nn import TABLES, Embedding, Module
from ..nn.optim import Penalty, both
from ..spelling import choose_from
from . import DEFAULT
from .base import Adapter, smaller_side
from .lora import LoRAEmbedding, LoRALinear, TiedLoRALinear
from .parts import Parts
from .registry import class_for, classes_of, variants
from .targets import (
    HEADS,
    LAYERS,
    Targets,
    choose,
    fused_above,
    last,
    layer_at,
    listed,
    tied_heads,
    trained_beside_adapters,
)


def wasted_rank(ranks: Mapping[str, tuple[int, int]]) -> str:
    """A note on the layers whose rank is more than they can use, of {layer: (rank, min(in, out))}; "" if none is."""
    above = {name: pair for name, pair in ranks.items() if pair[0] > pair[1]}
    if not above:
        return ""
    name, (r, most) = next(iter(above.items()))
    others = f" (and of {len(above) - 1} more)" if len(above) > 1 else ""
    return f"rank {r} of {name}{others} is above {most}, the smaller side of its weight: the rest is wasted"


def attach(
    model: Module,
    variant: str = DEFAULT,
    targets: Targets | None = None,
    *,
    rng: Rng,
    train: str | Collection[str] = (),
    **options: Any,
) -> list[str]:
    """Freeze the model, replace every target by a new adapter of the variant, and return the dotted paths.

    targets     last names of layers ("q_proj"; "embed" is the token embedding); or "all-linear", every Linear except
                HEADS; or, where the variant has a rank, a dict from last names or dotted paths to ranks. By default
                the targets that the variant's classes state, or where they state none every layer that they can adapt,
                except a classifier.
    rng         a generator, or a seed for one
    train       what else is trained: "bias" (every bias), "norm" (every gain and bias of a norm), or the last name of
                a module, such as "lm_head"
    options     those of the variant's classes

    An adapter of an embedding changes the input only, even if a head is tied to it; token rows change both, and the
    head's path is returned too. A second call adapts further layers, also by another variant: attach_lora(model, rng=0)
    and attach(model, "token-rows", token_indices=[5, 7], rng=0). Afterwards all adapters are trainable, also those that
    were frozen in between, and of the base only what the second `train` names. Nothing ever writes to its weights.
    Warns once of layers whose rank is above min(in, out): the excess adds parameters, but B A has no higher rank.
    Raises ValueError, and leaves the model as it was, for a target that matches nothing or is adapted already, an
    option that the variant lacks or that is out of range, and an `rng` that is neither a seed nor a generator.
    """
    rng = generator(rng)

    def start(cls: type[Adapter], base: Any, **given: Any) -> Adapter:
        return cls.start(base, rng=rng, **given)

    return place(model, variant, targets, train, options, start, prepare=True)


def attach_without_weights(
    model: Module, variant: str = DEFAULT, targets: Targets | None = None, train: Collection[str] = (), **options: Any
) -> list[str]:
    """attach() for counting: the adapters of a model built without weights have shapes, and take no memory."""
    return place(model, variant, targets, train, options, lambda cls, base, **given: cls.without_weights(base, **given))


def attach_lora(
    model: Module,
    targets: Targets = ("q_proj", "v_proj"),
    r: int = 8,
    alpha: float = 16,
    *,
    rng: Rng,
    dropout: float = 0.0,
    rslora: bool = False,
    init: str = "uniform",
    data: Batch | Iterable[Batch] | None = None,
    rho: float = 2.0,
    quantize: str = "nf4",
    rounds: int = 1,
    train: str | Collection[str] = (),
    ensure_weight_tying: bool = False,
) -> list[str]:
    """attach() of LoRA, with its options and defaults written out.

    init        how A and B begin: a name of adapters/initialisations, such as "uniform", "gaussian", "pissa" or "eva".
                Those that take a part of W (PiSSA, OLoRA, CorDA, LoRA-GA) make a ResidualLoRALinear; W never changes
    data        a batch or several, over which the model runs once, for an init that looks at its layers' inputs or
                gradients ("eva", "corda", "lora_ga"); others do not read it
    rho         of "eva": the highest rank of a layer is rho r; with 1 each has r
    quantize    of "loftq": the format that the adapted layers are held in from here on. The others stay as they are:
                quantize(model, format) does those
    rounds      of "loftq": the number of alternations between Q and A, B (the paper's T, PEFT's loftq_iter)

    With `ensure_weight_tying` (PEFT's name for it) a head that is tied to an adapted embedding is adapted too, by the
    same A and B: TiedLoRALinear. Raises ValueError where there is no such head, or where it is a target itself.
    """
    chosen = choose(model, targets)
    heads = tied_heads(model, chosen, chosen) if ensure_weight_tying else {}
    if ensure_weight_tying and not heads:
        raise ValueError("ensure_weight_tying: no target is an embedding that a head is tied to; it is called 'embed'")
    paths = attach(
        model, "lora", targets, rng=rng, train=train, r=r, alpha=alpha, dropout=dropout, rslora=rslora, init=init,
        data=data, rho=rho, quantize=quantize, rounds=rounds,
    )  # fmt: skip
    for head, embedding in heads.items():
        model[head] = TiedLoRALinear(model[head], model[embedding], dropout)  # type: ignore[arg-type]
    for parameter in trained_beside_adapters(model, train):
        parameter.trainable = True  # of a head that its adapter has frozen
    return [*paths, *heads]


def attach_tokens(model: Module, ids: Sequence[int], train: str | Collection[str] = ()) -> tuple[str, list[str]]:
    """Make the rows of these tokens trainable, in the embedding and in a head that has a weight of its own: attach() of
    the variant whose option is a set of token ids. Returns the variant and the paths."""
    variant, option = next(
        (name, option.name)
        for name, classes in variants().items()
        for option in classes[0].options
        if option.is_ids and not option.ordered
    )
    own = {m.weight: path for path, m in reversed([*model.named_modules()]) if path in TABLES}  # type: ignore[attr-defined]
    return variant, attach(model, variant, list(own.values()), rng=0, train=train, **{option: list(ids)})


def fit_options(model: Module, steps: int, penalty: Penalty | None = None) -> dict[str, Any]:
    """What training.fit is to be given to train the adapters of a model for so many steps, as their variants say: {}
    for most. A `penalty` is added to theirs.

        fit(model, batches, steps, **fit_options(model, steps))
    """
    found: dict[str, Any] = {} if penalty is None else {"penalty": penalty}
    for cls in dict.fromkeys(type(module) for _, module in model.named_modules() if isinstance(module, Adapter)):
        own = cls.fit_options(model, steps)
        if "penalty" in own and "penalty" in found:
            own["penalty"] = both(found["penalty"], own["penalty"])
        found |= own
    return found


def low_rank_adapter(base: Module, A: Array, B: Array) -> Adapter:
    """The LoRA of a Linear or an Embedding with ΔW = B A (s = 1), of A (r, n) and B (m, r) for a W (m, n)."""
    if isinstance(base, Embedding):
        return LoRAEmbedding.of(base, {"lora_A": B.T, "lora_B": A.T}, r=len(A), alpha=float(len(A)))
    return LoRALinear.of(base, {"lora_A": A, "lora_B": B}, r=len(A), alpha=float(len(A)))


class Target(NamedTuple):
    """A layer that gets an adapter."""

    layer: Any
    cls: type[Adapter]
    options: dict[str, Any]  # of start()


def place(
    model: Module,
    variant: str,
    targets: Targets | None,
    train: str | Collection[str],
    options: dict[str, Any],
    make: Callable[..., Adapter],
    prepare: bool = False,
) -> list[str]:
    """Replace every target by make(class, base, **options), as attach() says; `prepare`: with Adapter.prepare()."""
    chosen = targets_of(model, variant, targets, options)
    ties = tied_heads(model, [path for path, target in chosen.items() if target.cls.always_tied], chosen)
    extra = trained_beside_adapters(model, train)
    before = [module for _, module in model.named_modules() if isinstance(module, Adapter)]
    chosen = with_shared_parameters(model, chosen, options, prepare)
    if note := wasted_rank(ranks_of(chosen)):
        warnings.warn(note, stacklevel=4)

    made = create_adapters(model, chosen, make)
    model.freeze()
    for path in fused_above(model, made):
        model[path] = Parts(model[path])  # type: ignore[arg-type]
    for path, adapter in made.items():
        model[path] = adapter
    for head, path in ties.items():
        embedding: Any = model[path]
        model[head] = embedding.tied_head.of(model[head], embedding.own_parameters(), **embedding.settings)
    for adapter in [*before, *made.values()]:
        for slot in adapter.slots:
            getattr(adapter, slot.name).trainable = slot.trained
    for parameter in extra:
        parameter.trainable = True
    return [*made, *ties]


def targets_of(model: Module, variant: str, targets: Targets | None, options: dict[str, Any]) -> dict[str, Target]:
    """{path: Target} of the layers to adapt. Raises ValueError where one cannot be adapted, or not with its options."""
    classes = classes_of(variant)
    check_options(variant, targets, options)
    if targets is None:
        targets = [name for cls in classes for name in cls.targets] or adaptable(model, variant, **options)
    ranks = choose(model, targets)
    fused_above(model, ranks)
    for key in {cls.modules_key for cls in classes} & options.keys():
        if strange := set(listed(options[key])) - {*ranks, *map(last, ranks)}:
            raise ValueError(f"{key}: {min(strange)!r} is not a target")
    sharing = [slot.name for cls in classes for slot in cls.slots if slot.shared]
    if sharing and any(isinstance(m, Adapter) and m.variant == variant for _, m in model.named_modules()):
        raise ValueError(f"{variant} is attached to all its layers at once, as they share {' and '.join(sharing)}")
    found = {}
    for path, r in ranks.items():
        layer, own = layer_at(model, path), options if r is None else options | {"r": r}
        cls = adapter_for(layer, variant, path, **options)
        try:
            cls.check(layer, **own)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        found[path] = Target(layer, cls.form(layer, **own), own)
    return found


def with_shared_parameters(
    model: Module, chosen: Mapping[str, Target], options: dict[str, Any], prepare: bool
) -> dict[str, Target]:
    """The targets after Adapter.prepare(), if `prepare`, with shared Parameters such as VeRA's A and B added to their
    options."""
    found: dict[str, Target] = {}
    for cls in dict.fromkeys(target.cls for target in chosen.values()):
        layers = {path: target.layer for path, target in chosen.items() if target.cls is cls}
        own = {path: chosen[path].options for path in layers}
        own = cls.prepare(model, layers, own) if prepare else own
        shared = cls.draw_shared(layers.values(), **options)
        found |= {path: Target(layers[path], cls, {**given, **shared}) for path, given in own.items()}
    return {path: found[path] for path in chosen if path in found}


def ranks_of(chosen: Mapping[str, Target]) -> dict[str, tuple[int, int]]:
    """{path: (rank, min(in, out))} of the layers whose adapter trains a matrix."""
    found = {}
    for path, (layer, cls, options) in chosen.items():
        if cls.trains_a_matrix():
            r = cls.sizes_for(layer, cls.defaults() | options)["r"]
            found[path] = r, smaller_side(layer.weight.data.shape)
    return found


def create_adapters(model: Module, chosen: Mapping[str, Target], make: Callable[..., Adapter]) -> dict[str, Adapter]:
    """{path: make(class, layer, **options)}. Raises ValueError with the path of one that cannot be made; parameters
    that the adapters before it have frozen are made trainable again."""
    trainable = [parameter for parameter in model.parameters() if parameter.trainable]
    made = {}
    for path, (layer, cls, options) in chosen.items():
        try:
            made[path] = make(cls, layer, **options)
        except ValueError as error:
            for parameter in trainable:
                parameter.trainable = True
            raise ValueError(f"{path}: {error}") from None
    return made


def adaptable(model: Module, variant: str, targets: Targets | None = None, **options: Any) -> list[str]:
    """The layers that a variant can adapt: of these targets; or of the whole model except the classifier, which is new
    and trained whole. Raises ValueError, with the reason for the first, where the whole model has none."""
    paths = choose(model, targets) if targets is not None else {
        path: None for path, m in model.named_modules() if isinstance(m, LAYERS) and last(path) not in HEADS[1:]
    }  # fmt: skip
    found, reasons = [], []
    for path in paths:
        base = layer_at(model, path)
        cls = adapter_for(base, variant, path, **options)
        try:
            cls.check(base, **options)
            found.append(path)
        except ValueError as error:
            reasons += [f"{path}: {error}"] if isinstance(base, cls.base_type) else []
    if not found and targets is None:
        raise ValueError(f"{variant} can adapt no layer of this model; {(reasons or ['it has none of the type'])[0]}")
    return found


def check_options(variant: str, targets: Targets | None, options: Collection[str]) -> None:
    """Raise ValueError for an option that the variant does not have, or a rank for each target where it has none."""
    classes = classes_of(variant)
    known = {name for cls in classes for name in (*cls.defaults(), *cls.start_options, cls.modules_key) if name}
    if unknown := next((name for name in options if name not in known), None):
        raise ValueError(f"{variant} has no option {unknown!r}: {choose_from(unknown, sorted(known))}")
    if isinstance(targets, Mapping) and not any(o.name == "r" and o.pattern for cls in classes for o in cls.options):
        raise ValueError(f"{variant} has no rank for each layer: name its targets in a list")


def adapter_for(base: Module, variant: str, path: str, **options: Any) -> type[Adapter]:
    """The class of a variant for the layer at `path`, which an option may name by its path or the end of it."""
    names, init = {path, last(path)}, options.get("init")
    classes = sorted(classes_of(variant), key=lambda cls: init not in cls.inits)  # first those of this init
    return class_for(classes, base, lambda cls: bool(names & {*listed(options.get(cls.modules_key, cls.targets))}))
