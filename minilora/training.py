"""The training loop: gradients of a batch, fit, evaluate, and a run that can be killed and resumed."""

from __future__ import annotations

import json
import math
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from . import ops
from .backend import Array, get_array_module, to_numpy
from .checkpoint import load_tensors, save_tensors
from .modules import Chain, Context, Gradients, Module, check_fit, shapes_of
from .optim import AdamW, Optimizer, Penalty, Schedule, clip_by_global_norm
from .process import blas_threads
from .text import Batch


def loss_of(
    model: Chain, batch: Batch, rng: np.random.Generator | None = None, count: int | None = None
) -> tuple[Array, tuple[Any, Any]]:
    """Mean cross-entropy over what has a label (a 0-d array, on the device), and the caches of model and loss.

    `model` is a Transformer, or a chain of your own parts, whose first layer takes batch.ids, whatever they are.
    `count` replaces their number where the batch is a part of a larger one; losses and gradients then add up.
    Raises ValueError for targets that are neither one of the head's outputs nor IGNORE, or do not fit its shape.
    """
    targets, where = batch.targets, None
    if "labelled" in model.layers and targets.shape == batch.ids.shape and 0 < labelled(batch) < targets.size:
        b, t = np.nonzero(targets != ops.IGNORE)  # the logits of the others, V numbers each, would go unread
        targets, where = targets[b, t], (b, t)
    logits, cache = model.forward(batch.ids, Context(batch.padding, batch.segments, rng, where))
    check_targets(targets, logits.shape[-1])
    loss, ce_cache = ops.cross_entropy_forward(logits, get_array_module(logits).asarray(targets), count)
    return loss, (cache, ce_cache)


def check_targets(targets: np.ndarray, outputs: int) -> None:
    """Raise ValueError unless every label is one of the head's outputs, or IGNORE."""
    if targets.dtype.kind not in "iu":
        raise ValueError(f"labels are integers, not {targets.dtype}")
    wrong = targets[((targets < 0) | (targets >= outputs)) & (targets != ops.IGNORE)]
    if wrong.size:
        raise ValueError(f"label {wrong[0]} is outside the head's outputs 0..{outputs - 1}")


def loss_and_gradients(
    model: Chain, batch: Batch, rng: np.random.Generator | None = None, count: int | None = None
) -> tuple[Array, Gradients]:
    """The loss of a batch, as loss_of() says, and its gradients."""
    loss, (cache, ce_cache) = loss_of(model, batch, rng, count)
    dlogits, grads = ops.cross_entropy_backward(1.0, ce_cache), Gradients()
    del ce_cache  # as many numbers as there are logits, on top of the most memory that a step needs
    model.backward(dlogits, cache, grads)
    return loss, grads


def sharded_loss_and_gradients(
    pool: ThreadPoolExecutor, shards: int, model: Chain, batches: list[Batch], seed: list[int]
) -> tuple[Array, Gradients]:
    """The same for several batches as if they were one, each cut along B in `shards` that run on threads.

    Each shard has gradients and a generator of its own; they are summed in a fixed order.
    """
    count = sum(labelled(batch) for batch in batches)

    def one(i: int, shard: Batch) -> tuple[Array, Gradients]:
        return loss_and_gradients(model, shard, np.random.default_rng([*seed, i]), count)

    parts = [shard for batch in batches for shard in cut(batch, shards)]
    run = pool.map if len(parts) > 1 else map  # a thread for one part alone would only be waited for
    losses, grads = zip(*run(one, range(len(parts)), parts), strict=True)
    return sum(losses), sum(grads, Gradients())


def cut(batch: Batch, shards: int) -> list[Batch]:
    """`batch` in at most `shards` parts along B."""
    shards = min(shards, len(batch.ids))
    fields = ([None] * shards if a is None else np.array_split(a, shards) for a in batch)
    return [Batch(*parts) for parts in zip(*fields, strict=True)]


def labelled(batch: Batch) -> int:
    return int((batch.targets != ops.IGNORE).sum())


@blas_threads()
def evaluate(model: Chain, batches: Iterable[Batch], *, shards: int = 1, description: str | None = None) -> float:
    """Mean cross-entropy in nats per labelled position, without dropout; `shards` batches at a time.

    `description` labels a progress bar; None shows none. Raises ValueError when no position has a label, or one is
    outside the vocabulary.
    """
    from tqdm import tqdm

    def one(batch: Batch) -> tuple[float, int]:
        n = labelled(batch)
        return n * float(loss_of(model, batch, count=n)[0]), n

    batches = list(batches)
    with threads(shards) as pool:
        judged = pool.map(one, batches)
        bar = tqdm(judged, description, len(batches), disable=None if description else True, leave=False)
        total, count = map(sum, zip(*bar, strict=True)) if batches else (0.0, 0)
    if not count:
        raise ValueError("nothing to evaluate: no position has a label")
    return total / count


def threads(n: int) -> ThreadPoolExecutor:
    """A loss that is not finite is found, and explained, when it is read: NumPy need not warn of it on the way."""
    return ThreadPoolExecutor(n, initializer=partial(np.seterr, all="ignore"))


@dataclass
class History:
    """What a run has seen; no times, so that the same seed gives the same bytes."""

    loss: list[float] = field(default_factory=list)  # nats, one for each step
    evaluations: list[list[float]] = field(default_factory=list)  # [steps done, nats on held-out data]
    stopped_early: bool = False

    def best(self) -> float:
        return min((loss for _, loss in self.evaluations), default=math.inf)


@blas_threads()
def fit(
    model: Chain,
    batches: Callable[[int], Batch],
    steps: int,
    *,
    lr: float = 1e-3,
    optimizer: Optimizer | None = None,
    schedule: Schedule = lambda step: 1.0,
    penalty: Penalty | None = None,
    accumulate: int = 1,
    clip: float = 1.0,
    shards: int = 1,
    seed: int = 0,
    held_out: Callable[[], Iterable[Batch]] | None = None,
    evaluate_every: int = 0,
    patience: int = 0,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 100,
    resume: bool = False,
    description: str | None = "training",
) -> History:
    """Train what is trainable in `model` for `steps` steps of AdamW at `lr` (or `optimizer`); return the history.

    `batches(i)` is the i-th batch; a step takes `accumulate` of them, each cut in `shards` for as many threads.
    An `optimizer` brings its own rates: `lr` is then ignored. A `penalty` (optim.penalty) is added to the loss that is
    trained on, and noted; held-out data is judged without it. The gradient is clipped to the norm `clip`.
    `held_out()` is evaluated before the first step, every `evaluate_every` steps, and after the last; after `patience`
    times without a new best, training stops. Then, or after the last step, the best parameters are put back; without
    `patience` the last ones stay. `checkpoint` names a file written every `checkpoint_every` steps, at the end, and
    on Ctrl-C; with `resume`, training goes on from it, to the very bytes of a run never stopped, or starts from the
    beginning if there is none yet. It must be of the same `seed`, `steps` (on which schedules depend), `accumulate`,
    `clip` and `shards`, and of the same optimizer but for its rates. `description` labels the progress bar; None shows
    none.

    BLAS computes on one thread, whatever the environment says, unless process.blas_threads(n) is open: the same seed
    gives the same bytes here and on the command line, where --threads opens it.

    Raises FloatingPointError when the loss is no longer finite, with the last good checkpoint kept; ValueError for
    a number that makes no sense, and for a checkpoint that is there without `resume`, or is of other parameters or of
    another run; FileNotFoundError for a folder of `checkpoint` that is not there; KeyboardInterrupt after Ctrl-C.
    """
    from tqdm import tqdm

    def at(step: int) -> list[Batch]:
        return [batches(step * accumulate + i) for i in range(accumulate)]

    for name, number, least in (
        ("steps", steps, 0), ("accumulate", accumulate, 1), ("shards", shards, 1), ("patience", patience, 0),
        ("evaluate_every", evaluate_every, 0), ("checkpoint_every", checkpoint_every, 1),
    ):  # fmt: skip
        if isinstance(number, bool) or not isinstance(number, int | np.integer) or number < least:
            raise ValueError(f"{name} = {number!r} is not a whole number from {least} up")
    for name, rate in (("lr", lr), ("clip", clip)):
        if not rate > 0:
            raise ValueError(f"{name} = {rate!r} is not above 0")
    if patience and held_out is None:
        raise ValueError(f"patience = {patience} waits for evaluations: give held_out")
    if checkpoint is not None and not Path(checkpoint).parent.is_dir():
        raise FileNotFoundError(f"no folder {Path(checkpoint).parent} for the checkpoint: make it first")
    optimizer = optimizer or AdamW(model.trainable_parameters(), lr)
    settings = {"seed": int(seed), "steps": int(steps), "accumulate": int(accumulate), "clip": float(clip)}
    settings |= {"shards": int(shards), **optimizer.settings()}
    run = Run(model, optimizer, None if checkpoint is None else Path(checkpoint), settings)
    if run.path and run.path.exists():
        if not resume:
            raise ValueError(f"{run.path} is there already: resume, or choose another place")
        run.load()
    done = len(run.history.loss)
    bar = tqdm(
        total=steps, initial=done, desc=description, disable=None if description else True, unit="step", leave=False
    )
    with bar, threads(shards) as pool, interruption() as interrupted, np.errstate(all="ignore"):
        if held_out and not run.history.evaluations:
            run.judge(evaluate(model, held_out(), shards=shards), patience)
        for step in range(done, steps):
            if run.history.stopped_early:
                break
            loss, grads = sharded_loss_and_gradients(pool, shards, model, at(step), [seed, step])
            if penalty:
                more, more_grads = penalty()
                loss, grads = loss + more, grads + more_grads
            run.step(loss, *clip_by_global_norm(grads, clip), schedule(step))
            bar.update()
            stop, last = interrupted.is_set(), step + 1 == steps
            if stop or last or (step + 1) % 10 == 0:
                run.read(at)
                bar.set_postfix_str(f"loss {run.history.loss[-1]:.3f}")
            if held_out and (last or (evaluate_every and (step + 1) % evaluate_every == 0)):
                run.read(at)
                run.judge(evaluate(model, held_out(), shards=shards), patience)
            if run.path and (stop or last or run.history.stopped_early or (step + 1) % checkpoint_every == 0):
                run.read(at)
                run.save()
            if stop:
                raise KeyboardInterrupt(f"stopped after step {step + 1}{run.kept(', which is kept in {}')}")
    run.finish()
    return run.history


class Run:
    """What a checkpoint holds: parameters, optimizer state, history, the best parameters so far, and the settings by
    which another run is told from this one."""

    def __init__(self, model: Chain, optimizer: Optimizer, path: Path | None, settings: dict[str, Any]) -> None:
        self.model, self.optimizer, self.path, self.settings = model, optimizer, path, settings
        self.history = History()
        self.unread: list[tuple[Array, Array]] = []  # losses and norms of the gradient, still on the device
        self.finite: Array | bool = True  # were they all? on the device, too
        self.best: dict[str, Array] = {}

    def state(self) -> dict[str, Array]:
        return {name: parameter.data for name, parameter in self.model.trainable_parameters().items()}

    def kept(self, words: str) -> str:
        """`words` about the checkpoint, if there is one."""
        return words.format(self.path) if self.path and self.path.exists() else ""

    def step(self, loss: Array, grads: Gradients, norm: Array, factor: float) -> None:
        """One step of the optimizer, which changes nothing once a loss or gradient was not finite: no one waits for
        the device, and what made it so can still be found when the losses are read."""
        xp = get_array_module(loss)
        self.finite = self.finite & xp.isfinite(loss) & xp.isfinite(norm)
        self.optimizer.step(grads, factor, self.finite)
        self.unread.append((loss, norm))

    def read(self, at: Callable[[int], list[Batch]]) -> None:
        """Fetch the losses. Raises FloatingPointError if one, or its gradient, is not finite; at(step) is its data."""
        if not self.unread:
            return
        xp = get_array_module(self.unread[0][0])
        for loss, norm in to_numpy(xp.stack([xp.stack(pair) for pair in self.unread])).tolist():
            if not math.isfinite(loss + norm):
                step = len(self.history.loss)
                what, value = ("gradient's norm", norm) if math.isfinite(loss) else ("loss", loss)
                culprits = (first_not_finite(self.model, batch) for batch in at(step))
                culprit = next(filter(None, culprits), "the backward")
                raise FloatingPointError(
                    f"the {what} of step {step + 1} is {value}, first in {culprit}: "
                    f"lower the learning rate{self.kept('; {} holds the last good state')}"
                )
            self.history.loss.append(loss)
        self.unread = []

    def judge(self, loss: float, patience: int) -> None:
        """Note an evaluation. The optimizer replaces arrays and never writes to them: a reference is a snapshot."""
        if patience and loss < self.history.best():
            self.best = self.state()
        self.history.evaluations.append([len(self.history.loss), loss])
        values = [value for _, value in self.history.evaluations]
        since_best = len(values) - 1 - int(np.nanargmin(values)) if np.isfinite(values).any() else len(values)
        self.history.stopped_early = bool(patience) and since_best >= patience

    def finish(self) -> None:
        """Put the best parameters back, if they were looked for."""
        for name, data in self.best.items():
            self.model.trainable_parameters()[name].data = data

    def save(self) -> None:
        """Write the checkpoint, unless a parameter is not finite: the last good one is worth more."""
        assert self.path is not None
        tensors = {f"parameter.{name}": data for name, data in self.state().items()}
        bad = next((name for name, data in tensors.items() if not np.isfinite(to_numpy(data)).all()), None)
        if bad:
            raise FloatingPointError(f"{bad} is not finite after step {self.optimizer.t}: lower the learning rate")
        tensors |= {f"optimizer.{name}": data for name, data in self.optimizer.state.items()}
        tensors |= {f"best.{name}": data for name, data in self.best.items()}
        note = {"t": self.optimizer.t, "history": asdict(self.history), "settings": self.settings}
        save_tensors(self.path, tensors, {"minilora": json.dumps(note, sort_keys=True)})

    def load(self) -> None:
        """Go back to a checkpoint. Raises ValueError, with nothing changed, if it is damaged or of another run."""
        assert self.path is not None
        tensors, metadata = load_tensors(self.path)
        kinds: dict[str, dict[str, np.ndarray]] = {"parameter": {}, "optimizer": {}, "best": {}}
        for name, data in tensors.items():
            kind, _, rest = name.partition(".")
            kinds.get(kind, {})[rest] = data
        parameters = self.model.trainable_parameters()
        try:
            check_fit(kinds["parameter"], shapes_of(self.state()))
            check_fit(kinds["optimizer"], shapes_of(self.optimizer.state))
            check_fit(kinds["best"], shapes_of(self.state() if kinds["best"] else {}))
            note = json.loads(metadata["minilora"])
            t, history = int(note["t"]), History(**note["history"])
            check_settings(note.get("settings"), self.settings)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{self.path} is not a checkpoint of this run: {error}") from None
        for name, parameter in parameters.items():
            parameter.data = get_array_module(parameter.data).asarray(kinds["parameter"][name])
        self.optimizer.load_state(kinds["optimizer"], t)
        self.best = {name: get_array_module(parameters[name].data).asarray(x) for name, x in kinds["best"].items()}
        self.history = history


def check_settings(before: dict[str, Any] | None, now: dict[str, Any]) -> None:
    """Raise ValueError where a run was begun with other settings than it is resumed with, or does not say them."""
    if before is None:
        raise ValueError("it does not say its seed and steps, as those of older versions: start again")
    for key, value in now.items():
        if before.get(key) != value:
            raise ValueError(f"it was begun with {key} = {before.get(key)!r}, not {value!r}: resume with the same")


@contextmanager
def interruption() -> Iterator[threading.Event]:
    """An event that Ctrl-C sets, so that a step is never cut in the middle. A second Ctrl-C stops at once."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = signal.getsignal(signal.SIGINT)

    def handle(number: int, frame: Any) -> None:
        event.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, handle)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, before)


def first_not_finite(model: Chain, batch: Batch) -> str:
    """The path of the first module, in the order of computation, whose output on `batch` is not finite; "" if none."""
    found: list[str] = []

    def watched(path: str, forward: Callable[..., tuple[Array, Any]]) -> Callable[..., tuple[Array, Any]]:
        def run(*arguments: Any) -> tuple[Array, Any]:
            y, cache = forward(*arguments)
            if not found and not np.isfinite(to_numpy(y)).all():
                found.append(path)
            return y, cache

        return run

    modules: list[tuple[str, Module]] = list(model.named_modules())
    try:
        for path, module in modules:
            vars(module)["forward"] = watched(path, module.forward)
        model.forward(batch.ids, Context(batch.padding, batch.segments))
    finally:
        for _, module in modules:
            vars(module).pop("forward", None)
    return found[0] if found else ""
