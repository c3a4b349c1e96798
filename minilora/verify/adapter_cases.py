"""Checks of the adapters: every class on one layer (ADAPTERS), and every variant in a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from ..adapters import DEFAULT
from ..adapters.attach import adaptable, attach, attach_lora
from ..adapters.base import Adapter
from ..adapters.merge import MergedEmbedding
from ..adapters.peft import Adapters
from ..adapters.registry import variants
from ..models.families.bert import bert
from ..models.parts import LayerFactory
from ..nn import Conv1d, Conv2d, Embedding, LayerNorm, Linear, Module
from .check import Report
from .fed import SHAPES, check, shake, shaken
from .model_cases import VOCABULARY, checked, model
from .module_cases import convolution
from .op import Rng


def adapter(cls: type[Adapter], options: Mapping[str, Any], new: LayerFactory) -> Adapter:
    """A new adapter on a layer of the class's base type."""
    assert new.rng is not None
    wide = new.config.d_model + new.config.d_ff
    bases: dict[Any, Callable[[], Any]] = {
        Embedding: lambda: new.embedding(new.config.vocab_size),
        LayerNorm: new.layer_norm,
        Linear: lambda: new.linear(new.config.d_model, wide, True),
        Conv1d: lambda: convolution(Conv1d, new),
        Conv2d: lambda: convolution(Conv2d, new),
    }
    return cls.start(bases[cls.base_type](), rng=new.rng, **options)


CLASSES = [cls for classes in variants().values() for cls in classes]  # of every variant of adapters
ADAPTERS: dict[str, Callable[[LayerFactory], Adapter]] = {
    f"{cls.__name__}{what}": partial(adapter, cls, options) for cls in CLASSES for what, options in cls.examples.items()
}


def first_on(base_type: type[Module]) -> Callable[[LayerFactory], Adapter]:
    """The function in ADAPTERS that makes an adapter for this type of layer, of the default variant if it has one."""
    return next(ADAPTERS[cls.__name__] for cls in (*variants()[DEFAULT], *CLASSES) if cls.base_type is base_type)


def merged_embedding(new: LayerFactory) -> Module:
    """BERT's embeddings with a MergedEmbedding as the token table. Alone it has no gradient to check: it is frozen, and
    reads ids."""
    embeddings = bert(new.config, new.rng)["embed"]
    made = first_on(Embedding)(new)
    for parameter in made.own_parameters().values():
        parameter.data = parameter.data if parameter.data.any() else parameter.data + 0.3
    embeddings.replace("token", MergedEmbedding(made))
    return embeddings


def of_tied(rng: Rng) -> Iterator[Report]:
    """A tied head that has the adapter of the embedding: two uses of one A and one B."""
    for shape in SHAPES:
        made = model("bert", rng, adapted=False)
        attach_lora(made, ["embed", "q_proj"], r=2, alpha=3, dropout=0.4, rng=rng, ensure_weight_tying=True)
        yield checked(shaken(made, rng), shape, rng)


def of_variant(variant: str, rng: Rng) -> Iterator[Report]:
    """The variant in a llama, where layers of several sizes share slots, and in a gpt2, where fused layers are adapted
    by parts. Llama has no biases: a variant that needs them is left out there."""
    cls = variants()[variant][0]
    options = cls.examples[""]
    invocation = next((options[option.name] for option in cls.options if option.ordered), ())
    for family, wanted, shape in (("llama", "all-linear", SHAPES[0]), ("gpt2", None, SHAPES[1])):
        made = model(family, rng, adapted=False)
        targets = wanted and adaptable(made, variant, wanted, **options)
        if targets == []:
            continue
        for path in attach(made, variant, targets, rng=rng, **options):
            shake(made[path].own_parameters().values(), rng)
        yield checked(made, shape, rng, invocation)


def of_many(rng: Rng) -> Iterator[Report]:
    """Batches whose rows have different adapters: two parallel to the base, one that changes the base, and none."""
    on_linear = [cls for cls in CLASSES if cls.base_type is Linear and cls.variant != DEFAULT]
    parallel, changing = (next(c for c in on_linear if c.acts_on_some_tokens == kind) for kind in (True, False))
    classes = {"a": variants()[DEFAULT][0], "b": parallel, "c": changing}
    batches: tuple[list[str | None], ...] = ["b"], ["a", None, "b"], ["c", "a"]
    for names in batches:
        adapters = Adapters(model("gpt2", rng, adapted=False))
        for name in filter(None, names):
            targets, options = ["o_proj", "up_proj", "down_proj"], classes[name].examples[""]
            adapters.attach(name, classes[name].variant, targets, rng=rng, **options)
        adapters.activate_by_row()
        ids = rng.integers(0, VOCABULARY, (len(names), 5))
        yield check(shaken(adapters.model, rng), ids, "none", rng, names)
