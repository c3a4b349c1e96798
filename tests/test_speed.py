"""What a step costs, in numbers that are the same on every machine: the gate that keeps it fast.

- FLOPs executed are those that accounting predicts, and bytes kept those of its ledger.
- How often a step calls the array library (on a GPU: launches a kernel), how many arrays it makes, and of how many
  bytes, all counted by the double of CuPy; and the most memory that it takes: no more than speed.json says.
- No step waits for the device.
- An import loads no more than speed.json says.

Times are printed, and never judged.

    pytest tests/test_speed.py                  the gate
    python tests/test_speed.py --record         writes speed.json anew
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import examples
import fakecupy
import numpy as np
import pytest

from minilora import accounting, ops
from minilora.accounting import Account, executed_flops, ledger
from minilora.adapters.attach import attach_lora
from minilora.data import Batch
from minilora.models.config import Config
from minilora.models.families import FAMILIES
from minilora.models.generation import next_ids
from minilora.models.transformer import Transformer
from minilora.nn import Gradients, Linear, recompute
from minilora.nn.optim import AdamW, penalty
from minilora.training import fit, loss_and_gradients, loss_of
from minilora.training.gradients import count_labels

RECORD = Path(__file__).with_name("speed.json")
PEAK = "most KiB"  # by tracemalloc, which NumPy reports to
SLACK = 1.02  # of a peak: Python's own objects and NumPy's working memory are in it. Counts are exact
FAR = 0.95  # of a record: what has come below it is worth holding on to
HOLD = "python tests/test_speed.py --record"
ADVICE = f"work in place on an array the op has made, or see what else is made on the way; if it must be: {HOLD}"
BEFORE = 10  # tokens before the one that is generated


class Case(NamedTuple):
    family: str
    config: Config
    shape: tuple[int, int]  # of a batch: sequences, tokens
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    learned: tuple[str, ...] = ("LoRA", "full")


ENCODER = {"vocab_size": 256, "n_layers": 2, "d_model": 64, "n_heads": 4, "max_length": 64, "activation": "gelu"}
CASES = {
    "gpt2 tiny": Case("gpt2", Config(96, 2, 64, 4, max_length=64), (16, 64), ("qkv_proj",)),
    "gpt2 small": Case("gpt2", Config(256, 4, 256, 4, max_length=128), (8, 128), ("qkv_proj",)),
    # GPT-2 small, but 2 layers and 5,000 words. Full steps of it would take longest, and are tiny's but for the sizes.
    "gpt2 cut": Case("gpt2", Config(5000, 2, 768, 12, max_length=128), (2, 128), ("qkv_proj",), ("LoRA",)),
    "llama": Case("llama", Config(256, 2, 64, 4, n_kv_heads=2, d_ff=160, max_length=64), (16, 64)),
    "bert classify": Case("bert", Config(**ENCODER, head="classify", labels=3), (16, 64)),
    "bert tokens": Case("bert", Config(**ENCODER, head="tokens", labels=7), (16, 64)),
}
LARGE = {"gpt2 small": pytest.mark.slow, "gpt2 cut": pytest.mark.slow}
SLOW = LARGE | {"bert tokens": pytest.mark.slow}
each_case = pytest.mark.parametrize("name", [pytest.param(name, marks=SLOW.get(name, ())) for name in CASES])
each_decoder = pytest.mark.parametrize("name", [name for name in CASES if CASES[name].config.head == "lm"])


def build(case: Case, lora: bool, dropout: float = 0.0) -> Transformer:
    rng = np.random.default_rng(0)
    model = FAMILIES[case.family].build(case.config, rng)
    if lora:
        attach_lora(model, case.targets, r=8, dropout=dropout, rng=rng)
    return model


def batch_of(case: Case) -> Batch:
    """Every token has a label, or every text. What is classified is padded, as texts of unequal length are."""
    (B, T), c, rng = case.shape, case.config, np.random.default_rng(1)
    ids = rng.integers(0, c.vocab_size, (B, T))
    if c.head == "lm":
        return Batch(ids, rng.integers(0, c.vocab_size, (B, T)))
    padding = np.arange(T) < rng.integers(T // 2, T + 1, (B, 1))
    return Batch(ids, rng.integers(0, c.labels, (B, T) if c.head == "tokens" else B), padding)


def steps_seen(model: Transformer, batch: Batch, look: Callable[[], Any], steps: int, **options: Any) -> list[Any]:
    """What `look` sees whenever a step of fit() takes its batch."""
    seen = []

    def batches(i: int) -> Batch:
        seen.append(look())
        return batch

    fit(model, batches, steps, description=None, **options)
    return seen


# ---- FLOPs, and bytes that are kept ----


@each_case
def test_a_step_executes_the_flops_that_are_predicted_and_lora_spares_a_quarter_of_them(name):
    case, batch, steps = CASES[name], batch_of(CASES[name]), {}
    for what in ("LoRA", "full"):
        model = build(case, what == "LoRA")
        forward, backward = (part.products for part in accounting.flops(model, *case.shape))
        assert executed_flops(model, partial(model.forward, batch.ids))["products"] == forward
        steps[what] = executed_flops(model, partial(loss_and_gradients, model, batch))["products"]
        assert steps[what] == forward + backward
    assert steps["LoRA"] < 0.75 * steps["full"]


@each_decoder
def test_a_generated_token_executes_the_flops_of_one_token_that_looks_at_all_before_it(name):
    model, ids = build(CASES[name], lora=True), batch_of(CASES[name]).ids[0, :BEFORE]
    one, two = (accounting.flops(model, 1, tokens)[0] for tokens in (1, 2))
    alone = one.products + one.sums
    pair = (two.products + two.sums - 2 * alone) // 2  # of query and key: two tokens have 4 of them, not twice 1
    new = next_ids(model, ids, tokens=2)
    next(new)
    assert sum(executed_flops(model, lambda: next(new)).values()) == alone + BEFORE * pair


@each_case
@pytest.mark.parametrize("lora", [True, False], ids=["LoRA", "full"])
def test_a_step_keeps_the_bytes_of_the_ledger(name, lora):
    case = CASES[name]
    model, ids, grads = build(case, lora), batch_of(case).ids, Gradients()
    logits, cache = model.forward(ids)
    model.backward(np.ones_like(logits), cache, grads)
    kept = accounting.memory(model, cache, grads, AdamW(model.trainable_parameters()))
    predicted = Account("this", model, "this", *case.shape, case.config.dtype).memory()
    predicted["cache"] = sum(array.nbytes for array in ledger(model, *case.shape, loss=False))
    assert kept.items() <= predicted.items()


# ---- what is made on the way ----


def measured(name: str, kinds: tuple[str, ...] = ("LoRA", "full")) -> dict[str, int]:
    """{what: its number} of a step that learns with LoRA, of one that learns everything, and of a generated token."""
    case, numbers = CASES[name], {}
    for what in set(kinds) & set(case.learned):
        numbers |= {f"{what} step, {part}": n for part, n in made_by_a_step(case, what == "LoRA").items()}
        numbers[f"{what} step, {PEAK}"] = peak(case, what == "LoRA")
    if case.config.head == "lm":
        numbers |= {f"token, {kind}": n for kind, n in made_by_a_token(case).items()}
    return {f"{name}, {what}": n for what, n in numbers.items()}


def made() -> np.ndarray:
    """By the double, since it was loaded."""
    return np.array([fakecupy.launches, fakecupy.arrays, fakecupy.nbytes])


def named(row: np.ndarray) -> dict[str, int]:
    return dict(zip(("launches", "arrays", "bytes of arrays"), row.tolist(), strict=True))


@contextmanager
def on_the_double(case: Case, lora: bool, dropout: float = 0.0) -> Iterator[Transformer]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "cupy", fakecupy)
        patch.setitem(sys.modules, "cupyx.scipy.special", fakecupy.special)
        model = build(case, lora, dropout)
        model.to(fakecupy)
        yield model


def made_by_a_step(case: Case, lora: bool) -> dict[str, int]:
    batch = batch_of(case)
    count = count_labels(batch)
    with on_the_double(case, lora) as model:
        _, one, two = steps_seen(model, batch, made, 3)  # the first step may do what is done once
        start = made()
        loss_of(model, batch, count=count)
        middle = made()
        loss_and_gradients(model, batch, count=count)
        forward, both = middle - start, made() - middle
    parts = {"forward": forward, "backward": both - forward, "update": two - one - both}
    return {f"{part}, {kind}": n for part, row in parts.items() for kind, n in named(row).items()}


def made_by_a_token(case: Case) -> dict[str, int]:
    with on_the_double(case, lora=True) as model:
        ids = next_ids(model, batch_of(case).ids[0, :BEFORE], tokens=3)
        next(ids), next(ids)
        start = made()
        next(ids)
        return named(made() - start)


def peak(case: Case, lora: bool) -> int:
    """The most KiB that a step takes beside the weights, with all that is kept from step to step."""
    model, batch = build(case, lora), batch_of(case)
    steps_seen(model, batch, int, 1)  # what is done once: imports, tables
    tracemalloc.start()
    try:
        steps_seen(model, batch, tracemalloc.reset_peak, 2)
        return tracemalloc.get_traced_memory()[1] >> 10
    finally:
        tracemalloc.stop()


def above(now: dict[str, int], record: dict[str, int]) -> list[str]:
    """What is more than on record, a line each."""
    return [
        f"{what}: {n:,}, and {record.get(what, 0):,} on record ({n - record.get(what, 0):+,})"
        for what, n in now.items()
        if n > record.get(what, 0) * (SLACK if what.endswith(PEAK) else 1)
    ]


@each_case
def test_a_step_and_a_token_make_no_more_than_is_on_record(name):
    now = measured(name)
    record = {what: n for what, n in recorded()["numbers"].items() if what.startswith(f"{name}, ")}
    assert not (lines := above(now, record)), "\n".join(["", *lines, ADVICE])
    assert now.keys() == record.keys(), f"on record is what is no longer measured: {HOLD}"
    below = [what for what in now if now[what] < FAR * record[what]]
    SAID.extend(f"{what}: {now[what]:,}, far below the {record[what]:,} on record: {HOLD}" for what in below)
    SAID.append(f"{name:20}{times(CASES[name])}")


# ---- waiting for the device ----


OPTIONS = {"accumulate": 2}, {"shards": 2}, {"penalty": True}, {"recompute": True}, {"clip": 0.01}


@pytest.mark.parametrize(
    ("name", "options"),
    examples.some_of([(name, {}) for name in CASES if name not in LARGE] + [("bert tokens", o) for o in OPTIONS], 3),
    ids=str,
)
def test_a_step_waits_for_the_device_only_where_losses_are_read(name, options):
    assert waits(CASES[name], **options) == [0] * 10 + [1] * 2


def waits(case: Case, **options: Any) -> list[int]:
    """How often the host has waited when each of 12 steps takes its first batch."""
    small = case._replace(shape=(4, 8))
    batch = batch_of(small)._replace(padding=np.arange(8) < np.array([[8], [6], [7], [5]]))
    batch.targets[..., 2:] = ops.IGNORE
    with on_the_double(small, lora=True, dropout=0.1) as model:
        if options.pop("recompute", False):
            recompute(model)
        if options.pop("penalty", False):
            options["penalty"] = penalty(list(model.trainable_parameters().values()), l1=0.1, l2=0.1)
        start = fakecupy.syncs
        seen = steps_seen(model, batch, lambda: fakecupy.syncs - start, 12, **options)
    return seen[:: options.get("accumulate", 1)]


@each_decoder
def test_a_token_waits_for_the_device_once_to_be_known(name):
    with on_the_double(CASES[name], lora=True) as model:
        ids, start = next_ids(model, batch_of(CASES[name]).ids[0, :BEFORE], tokens=3), fakecupy.syncs
        assert [fakecupy.syncs - start for _ in ids] == [1, 2, 3]


# ---- imports ----

RUNS = {  # what is said, and the program
    "import minilora": "import minilora",
    "from minilora import attach_lora, fit": "from minilora import attach_lora, fit",
    "from minilora import generate, load_adapter": "from minilora import generate, load_adapter",
    "python -m minilora --help": "import runpy; sys.argv[1:] = ['-h']; runpy.run_module('minilora', {}, '__main__')",
}


def loaded(program: str) -> list[str]:
    """The files of minilora, and the packages from outside, that a program loads into a fresh Python."""
    found = "(name for name, module in sys.modules.items() if getattr(module, '__spec__', None))"  # out of a file
    start = f"import atexit, sys; look = lambda: print(*{found}, file=sys.stderr); look(); atexit.register(look); "
    done = subprocess.run([sys.executable, "-c", start + program], capture_output=True, text=True, check=True)
    before, after = (set(line.split()) for line in done.stderr.splitlines())
    names = {name if name.startswith("minilora") else name.partition(".")[0] for name in after - before}
    return sorted(names - set(sys.stdlib_module_names))


@pytest.mark.parametrize("what", RUNS)
def test_an_import_loads_no_more_than_is_on_record_and_nothing_but_numpy_from_outside(what):
    now, record = set(loaded(RUNS[what])), set(recorded()["imports"].get(what, []))
    assert not now - record, f"{what} loads {', '.join(sorted(now - record))} too. Import where it is used, or {HOLD}"
    assert {name for name in now if not name.startswith("minilora")} <= {"numpy"}
    if record - now:
        SAID.append(f"{what} no longer loads {', '.join(sorted(record - now))}: {HOLD}")


# ---- the gate can fail ----


@functools.cache
def as_it_is() -> dict[str, int]:
    return measured("gpt2 tiny", ("LoRA",))


@pytest.mark.parametrize("more", ["backward, arrays", "backward, launches", PEAK])
def test_an_array_a_call_or_a_kept_gradient_more_is_above_the_record(monkeypatch, more):
    kept: list[Any] = []
    worse = {
        "backward, arrays": lambda dy, slope: dy.copy() * slope,
        "backward, launches": lambda dy, slope: (dy.sum(), dy * slope)[1],
        PEAK: lambda dy, slope: kept.append(dy) or dy * slope,
    }
    record = as_it_is()
    monkeypatch.setattr(ops, "gelu_backward", worse[more])
    lines = above(measured("gpt2 tiny", ("LoRA",)), record)
    assert any(line.startswith(f"gpt2 tiny, LoRA step, {more}: ") for line in lines), lines


def test_a_float_in_a_step_is_a_wait(monkeypatch):
    monkeypatch.setattr(ops, "gelu_backward", lambda dy, slope: dy * slope if float(dy.sum()) else dy)
    assert waits(CASES["gpt2 tiny"])[:3] == [0, 2, 4]  # one in each layer


def test_a_gradient_of_a_frozen_weight_is_a_product_that_was_not_predicted(monkeypatch):
    def backward(self: Linear, dy: Any, cache: Any, grads: Gradients) -> Any:
        dx = ops.linear_backward(dy, self.weight.data)
        ops.linear_gradients(dy, dx)
        return dx

    monkeypatch.setattr(Linear, "backward", backward)
    with pytest.raises(AssertionError):
        test_a_step_executes_the_flops_that_are_predicted_and_lora_spares_a_quarter_of_them("gpt2 tiny")


def test_an_import_that_is_not_needed_is_seen():
    assert "safetensors" in loaded("import minilora, safetensors")
    assert "minilora.display.plots" in loaded("import minilora, minilora.display.plots")


# ---- the record ----


def recorded() -> dict[str, Any]:
    return json.loads(RECORD.read_text(encoding="utf-8"))


def write_record() -> None:
    numbers = {what: n for name in CASES for what, n in measured(name).items()}
    record = {"imports": {what: loaded(program) for what, program in RUNS.items()}, "numbers": numbers}
    RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


# ---- times ----

SAID: list[str] = []  # at the end of the run


@pytest.fixture(scope="module", autouse=True)
def _says_at_the_end(request: pytest.FixtureRequest) -> None:
    class Summary:
        def pytest_terminal_summary(self, terminalreporter: Any) -> None:
            for line in SAID:
                terminalreporter.write_line(line)

    request.config.pluginmanager.register(Summary())


def times(case: Case) -> str:
    """Of a forward, of a step of each kind and of a token: the least of a few."""
    batch, model = batch_of(case), build(case, lora=True)
    said = [f"forward {least([time.perf_counter() for _ in range(4) if model.forward(batch.ids)])}"]
    for what in case.learned:
        said.append(f"{what} step {least(steps_seen(build(case, what == 'LoRA'), batch, time.perf_counter, 4))}")
    if case.config.head == "lm":
        said.append(f"token {least([time.perf_counter() for _ in next_ids(model, batch.ids[0, :BEFORE], tokens=8)])}")
    return "   ".join(said)


def least(moments: list[float]) -> str:
    return f"{1000 * np.diff(moments).min():8.2f} ms"


if __name__ == "__main__":
    if sys.argv[1:] != ["--record"]:
        sys.exit(__doc__)
    write_record()
