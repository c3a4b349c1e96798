"""What is measured: the sizes, and the cases, each a piece of work that several contestants do alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from minilora.process import peak_memory
from minilora.spelling import choose_from

MEASURES = {
    "forward": "the logits of a batch",
    "lora": "a step of LoRA: loss, gradients, AdamW",
    "dora": "a step of DoRA, with the gradient through the norm, which PEFT holds constant",
    "dora-held": "a step of DoRA with the norm held constant, as PEFT",
    "vera": "a step of VeRA",
    "qlora": "a step of LoRA over a base held in fewer bits, beside float32's, and PEFT's with bitsandbytes",
    "full": "a step of full fine-tuning",
    "generate": "tokens after a prompt, one at a time, with a cache of keys and values",
}
ADAPTERS: dict[str, tuple[str, dict[str, Any]]] = {  # {measure: the variant, its options}
    "lora": ("lora", {"alpha": 16}),
    "dora": ("dora", {"alpha": 16}),
    "dora-held": ("dora", {"alpha": 16, "through_norm": False}),
    "vera": ("vera", {}),
    "qlora": ("lora", {"alpha": 16}),
}
BASES = "float32", "bfloat16", "int8", "nf4", "nf4-dq"
BITSANDBYTES = BASES[2:]
MALLOCS = "kept", "default"  # freed memory kept by every contestant, and the platform's settings
TARGETS = "q_proj,v_proj", "all-linear"
PROMPT, NEW = 16, 48  # tokens read and generated
SEED = 0
LONG = 256  # tokens from which attention in blocks stands beside the plain op


class Size(NamedTuple):
    """A model and its batches. A model without `shape` is a real one, known to load_pretrained by its name."""

    batch: int
    tokens: int
    shape: dict[str, int] | None = None  # of a GPT-2 with random weights


def gpt2_shape(layers: int, width: int, heads: int, vocab: int) -> dict[str, int]:
    return {"n_layers": layers, "d_model": width, "n_heads": heads, "vocab_size": vocab}


SIZES = {
    "tiny": Size(16, 64, gpt2_shape(2, 64, 4, 96)),
    "small": Size(8, 128, gpt2_shape(4, 256, 4, 256)),
    "gpt2": Size(2, 128, gpt2_shape(12, 768, 12, 50257)),
    "minilm": Size(32, 64),
    "smollm2": Size(1, 128),
}


@dataclass(frozen=True)
class Case:
    """`measure` of a model, on batch × tokens, with as many cores for each contestant."""

    size: str
    batch: int
    tokens: int
    measure: str
    cores: int = 1
    rank: int = 8
    targets: str = "q_proj,v_proj"
    device: str = "cpu"
    bases: str = ""  # of "qlora": formats, with commas
    malloc: str = "kept"  # one of MALLOCS

    @property
    def real(self) -> bool:
        return SIZES[self.size].shape is None

    @property
    def adapts(self) -> bool:
        return self.measure in ADAPTERS

    @property
    def shape(self) -> dict[str, Any]:
        """As transformer.Config takes it."""
        shape = SIZES[self.size].shape
        assert shape is not None
        return {**shape, "max_length": max(self.tokens, PROMPT + NEW)}

    @property
    def shards(self) -> int:
        """Of minilora: a training step and a forward use the cores by halving the batch, where it can be halved."""
        divides = self.measure != "generate" and self.batch >= self.cores and self.device == "cpu"
        return self.cores if divides else 1

    def __str__(self) -> str:
        what = f" r = {self.rank} on {self.targets}" if self.adapts else ""
        malloc = ", default malloc" * (self.malloc == "default")
        return f"{self.size} {self.batch} × {self.tokens}, {self.measure}{what}{malloc}"


class Job(NamedTuple):
    """What a contestant has ready."""

    run: Callable[[], Any]  # the work, once
    wait: Callable[[], Any]  # until it is done, on a GPU too; what came out
    peak: Callable[[], int] = peak_memory  # bytes; on a GPU those of the device
    event: Callable[[], Callable[[], bool]] | None = None  # on a GPU: is all that it was given so far done?


class Contestant(NamedTuple):
    library: str  # minilora, torch, torch compiled, or hugging face's transformers with peft, and with bitsandbytes
    targets: str = ""  # of the adapter, where it is not what the case says
    plain: bool = False  # attention holds all T × T scores, whatever T is
    base: str = ""  # how it holds the base

    def __str__(self) -> str:
        return " ".join(filter(None, (self.library, self.targets, "plain attention" * self.plain, self.base)))


def pairs(case: Case) -> list[tuple[Contestant, Contestant]]:
    """Ours and theirs, doing the same work. GPT-2 in transformers has one matrix for q, k and v: beside PEFT, what goes
    on q and v elsewhere goes on all three, on both sides."""
    if case.measure == "qlora":
        return quantised_pairs(case.bases.split(","))
    ours, torch, peft = Contestant("minilora"), Contestant("torch"), Contestant("peft")
    if case.real:
        return [(ours, peft)]
    plain = [(ours, torch)]
    if case.device == "cpu":  # where a compiler of C++ is enough
        plain.append((ours, Contestant("torch compiled")))
    if case.measure == "generate":
        return [*plain, (ours, Contestant("transformers"))]
    if not case.adapts:
        return plain
    fused = "qkv_proj" if case.targets == "q_proj,v_proj" else ""
    beside_peft = Contestant("minilora", fused), Contestant("peft", fused)
    if case.measure != "lora":
        return [beside_peft]
    if case.tokens >= LONG:
        return [*plain, (ours, Contestant("minilora", plain=True))]
    return [*plain, beside_peft]


def quantised_pairs(bases: list[str]) -> list[tuple[Contestant, Contestant]]:
    """Ours beside theirs that is held alike; and beside both in float32."""
    ours = [Contestant("minilora", base=base) for base in bases]
    theirs = [Contestant("bitsandbytes" if base in BITSANDBYTES else "peft", base=base) for base in bases]
    full = Contestant("minilora", base="float32"), Contestant("peft", base="float32")
    found = [*zip(ours, theirs, strict=True), *((each, other) for other in full for each in ours if each != other)]
    return list(dict.fromkeys(found))


def read_size(word: str) -> tuple[str, int, int]:
    """ "small" or "small:1x128" as name, batch and tokens. Raises ValueError for what is neither."""
    name, given, shape = word.partition(":")
    if name not in SIZES:
        raise ValueError(f"no size {name!r}: {choose_from(name, SIZES)}")
    batch, tokens, _ = SIZES[name]
    if given:
        numbers = shape.split("x")
        if len(numbers) != 2 or not all(n.isdecimal() and 0 < len(n) < 8 and int(n) for n in numbers):
            raise ValueError(f"{word!r} is no size such as {name} or {name}:{batch}x{tokens}")
        batch, tokens = map(int, numbers)
    return name, batch, tokens


def cases(
    sizes: list[str],
    measures: list[str],
    cores: list[int],
    ranks: list[int],
    targets: list[str],
    device: str,
    bases: Sequence[str] = BASES,
    mallocs: Sequence[str] = MALLOCS[:1],
) -> list[Case]:
    """Every case of these; ranks and targets are for adapters, real models for adapters alone, and "qlora" for them.

    Raises ValueError for targets that not every contestant can adapt, for bases that are not compared, and for settings
    of malloc that are none of MALLOCS.
    """
    for malloc in mallocs:
        if malloc not in MALLOCS:
            raise ValueError(f"no setting {malloc!r} of malloc: {choose_from(malloc, MALLOCS)}")
    for base in bases:
        if base not in BASES:
            raise ValueError(f"a base in {base!r} is not compared: {choose_from(base, BASES)}")
    for target in targets:
        if target not in TARGETS:
            raise ValueError(f"targets {target!r} are not compared: {choose_from(target, TARGETS)}")
    found = []
    for each in cores:
        for name, batch, tokens in map(read_size, sizes):
            for measure in measures:
                case = Case(name, batch, tokens, measure, each, device=device)
                if measure == "qlora":
                    if not case.real or device != "cpu":
                        continue
                    case = replace(case, bases=",".join(bases))
                if case.adapts:
                    found += [replace(case, rank=r, targets=target) for r in ranks for target in targets]
                elif not case.real:
                    found.append(replace(case, batch=1) if measure == "generate" else case)
    return [replace(case, malloc=malloc) for case in dict.fromkeys(found) for malloc in dict.fromkeys(mallocs)]
