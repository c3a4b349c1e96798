"""BLAS computes on one thread while minilora works, and on as many as before once it is done, however it ends."""

import platform
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import examples
import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

import minilora
from minilora import ops
from minilora.adapters import spectrum
from minilora.adapters.lora import LoRALinear
from minilora.data import Batch
from minilora.jobs.prediction import probabilities
from minilora.models.config import Config
from minilora.models.generation import stream
from minilora.models.transformer import Transformer
from minilora.process import blas_threads
from minilora.training import evaluate, fit, loss_and_gradients
from minilora.verify import check_backward, check_gradient, check_model, diagnose
from minilora.verify.mutation import mutation_run
from minilora.verify.suite import verify

BEFORE = 3  # BLAS threads, whatever the machine has


@pytest.fixture(autouse=True)
def _three_threads() -> Iterator[None]:
    with threadpool_limits(BEFORE, user_api="blas"):
        if set(blas()) != {BEFORE}:
            pytest.skip("threadpoolctl does not know this BLAS")
        yield


def blas() -> list[int]:
    return [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """The numbers of BLAS threads that products were computed on."""
    found: set[int] = set()
    for name in ("linear_forward", "linear_backward"):

        def watched(*arguments: Any, call: Callable[..., Any] = getattr(ops, name)) -> Any:
            found.update(blas())
            return call(*arguments)

        monkeypatch.setattr(ops, name, watched)
    return found


@pytest.fixture
def model() -> Transformer:
    return minilora.llama(
        Config(vocab_size=256, n_layers=1, d_model=8, n_heads=2, max_length=16), np.random.default_rng(0)
    )


IDS = np.arange(40).reshape(4, 10)
BATCH = Batch(IDS, IDS + 1)
X, W = (np.random.default_rng(0).standard_normal(shape) for shape in ((3, 4), (5, 4)))


def linear(x: Any, W: Any) -> Any:
    return ops.linear_forward(x, W)[0]


def linear_gradients(dy: Any, x: Any, W: Any) -> Any:
    return ops.linear_backward(dy, W), ops.linear_gradients(dy, x)


def train(model: Transformer, **words: Any) -> None:
    fit(model, lambda i: BATCH, 2, held_out=lambda: [BATCH], evaluate_every=1, description=None, **words)


def named(model: Transformer) -> None:
    diagnose(lambda dy, x, W, b: (linear(dy, W.T), 0 * W, 0 * b), "linear")


def classified(model: Transformer) -> None:
    config = Config(vocab_size=256, n_layers=1, d_model=8, n_heads=2, max_length=16, head="classify")
    probabilities(minilora.llama(config, np.random.default_rng(0)), BATCH)


WORK: dict[str, Callable[[Transformer], Any]] = {
    "a forward": lambda model: model.forward(IDS),
    "a step of one's own": lambda model: loss_and_gradients(model, BATCH),
    "fit": train,
    "fit in shards": lambda model: train(model, shards=2),
    "evaluate": lambda model: evaluate(model, [BATCH]),
    "evaluate in shards": lambda model: evaluate(model, [BATCH, BATCH], shards=2),
    "generate": lambda model: minilora.generate(model, "a", 3),
    "stream": lambda model: list(stream(model, "a", 3)),
    "a classifier": classified,
    "check_gradient": lambda model: check_gradient(linear, linear_gradients, {"x": X, "W": W}),
    "check_backward": lambda model: check_backward(
        lambda x, W: ops.linear_forward(x, W), lambda dy, x: linear(dy, W.T), {"x": X}, constants={"W": W}
    ),
    "verify": lambda model: verify("op linear"),
    "mutants": lambda model: mutation_run(1, only="linear_gradients"),
    "diagnose": named,
}


@pytest.mark.parametrize("work", examples.some_of(WORK))
def test_blas_has_one_thread_at_work_and_afterwards_as_many_as_before(work, model, seen):
    WORK[work](model)
    assert seen == {1}
    assert set(blas()) == {BEFORE}


def test_check_model_limits_the_losses_that_it_asks_for(model, seen):
    def loss() -> Any:
        seen.update(blas())
        return np.square(weight.data).sum()

    model.freeze()
    weight = model["block_0.attention.o_proj"].weight
    weight.trainable, weight.data = True, weight.data.astype(np.float64)
    grads = minilora.Gradients({weight: 2 * weight.data})
    assert check_model(model, loss, grads, rng=np.random.default_rng(0)).ok
    assert seen == {1}
    assert set(blas()) == {BEFORE}


def test_svds_and_merging_have_one_thread(model, seen, monkeypatch):
    def watched(*arguments: Any, call: Callable[..., Any] = np.linalg.svd, **words: Any) -> Any:
        seen.update(blas())
        return call(*arguments, **words)

    monkeypatch.setattr(np.linalg, "svd", watched)
    spectrum.svd(W)
    spectrum.singular_values(W)
    spectrum.lora_svd(W.T, W, 1.0)
    assert seen == {1}
    minilora.attach_lora(model, "all-linear", 2, rng=np.random.default_rng(0))
    monkeypatch.setattr(
        LoRALinear, "delta", lambda self: [seen.update(blas()), np.zeros_like(self.base.weight.data)][1]
    )
    minilora.merge(model)
    assert seen == {1}
    assert set(blas()) == {BEFORE}


def fail(*_: Any) -> Any:
    raise ZeroDivisionError


@pytest.mark.parametrize(
    "work",
    [lambda model: fit(model, fail, 1, description=None), lambda model: evaluate(model, map(fail, "a")),
     lambda model: check_gradient(fail, linear_gradients, {"x": X, "W": W})],
    ids=["fit", "evaluate", "check_gradient"],
)  # fmt: skip
def test_what_raises_leaves_as_many_threads_as_before(work, model):
    with pytest.raises((ZeroDivisionError, ValueError)):  # the check says whose function it was
        work(model)
    assert set(blas()) == {BEFORE}


def test_between_two_pieces_of_a_text_blas_is_whoever_takes_them(model, seen):
    pieces = stream(model, "a", 5)
    next(pieces)
    assert seen == {1}
    assert set(blas()) == {BEFORE}
    pieces.close()
    assert set(blas()) == {BEFORE}


def test_a_block_outside_decides(model, seen):
    with blas_threads(2):
        train(model, shards=2)
        assert set(blas()) == {2}
    assert seen == {2}
    assert set(blas()) == {BEFORE}


def test_fewer_threads_that_were_set_outside_stay_after_it(model):
    with threadpool_limits(1, user_api="blas"):
        train(model)
        assert set(blas()) == {1}


@pytest.mark.parametrize("first_to_end", [0, 1])
def test_two_fits_at_once_have_one_thread_until_the_last_ends_and_leave_as_many_as_before(first_to_end, model):
    begun, end = [threading.Event() for _ in "ab"], [threading.Event() for _ in "ab"]
    both_seen = threading.Event()  # until then both threads of Python live: threadpoolctl cares

    def batches(i: int) -> Callable[[int], Batch]:
        def wait(_: int) -> Batch:
            begun[i].set()
            end[i].wait(60)
            return BATCH

        return wait

    def run(i: int) -> None:
        fit(model, batches(i), 1, description=None)
        done[i].set()
        both_seen.wait(60)

    done = [threading.Event() for _ in "ab"]
    fits = [threading.Thread(target=run, args=[i]) for i in (0, 1)]
    try:
        for i, each in enumerate(fits):
            each.start()
            assert begun[i].wait(60)
        for i, left in ((first_to_end, {1}), (1 - first_to_end, {BEFORE})):
            end[i].set()
            assert done[i].wait(60)
            assert set(blas()) == left
    finally:
        for event in (*end, both_seen):
            event.set()
        for each in fits:
            each.join()


def test_no_thread_at_all_is_refused():
    with pytest.raises(ValueError, match="BLAS cannot compute on 0 threads"), blas_threads(0):
        pass


def test_importing_changes_no_number_of_threads():
    code = """if True:
        import numpy
        from threadpoolctl import threadpool_info
        before = threadpool_info()
        import minilora.cli, minilora.jobs.demo, minilora.jobs.sweep, minilora.verify.suite
        from minilora import fit, generate
        assert before and threadpool_info()[: len(before)] == before
    """
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(minilora.__file__).parents[1])


FAULTS = """
import resource
import numpy as np
from minilora.models.config import Config
from minilora.models.families.gpt2 import gpt2
from minilora.nn import Pass

model, ids = gpt2(Config(96, 2, 64, 4, max_length=64), 0), np.zeros((16, 64), int)
faults = []
for _ in range(12):
    model.forward(ids, run=Pass(needs_cache=False))
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print((faults[-1] - faults[1]) // 10)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc is not glibc's")
def test_a_small_model_does_not_give_back_its_memory_at_every_array():
    found = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True, timeout=60)
    assert int(found.stdout) < 50  # fresh pages in a forward; without let_heap_grow() thousands
