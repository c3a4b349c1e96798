"""Calls on the workers of a Dask cluster. Each is in a process of its own, which the worker starts and can kill: a
thread of Dask's would go on to its end after Ctrl-C. joblib's backend for Dask (1.6.0) has threads, and waits for ever
for a call that Dask gave up because the workers that made it died."""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import platform
import queue
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..files import write_whole
from ..process import end_with

CONNECT = 5.0  # seconds until a connection has failed
PATIENCE = 30.0  # seconds without any worker until the calls have failed; a worker that was killed is back in two
POLL = 0.1  # seconds between looks at whether a call is still wanted
PROBE = ".minilora.cluster.partial"  # check_free() takes it for a file that a killed process left
Client = Any  # distributed's, which is loaded when it is first needed


@contextmanager
def connected(address: str | None, out: Path, inputs: Sequence[str]) -> Iterator[Client | None]:
    """A client of the Dask scheduler at `address`, whose workers see the folders that this process sees: the working
    directory, `out`, which exists, and those of `inputs` that are files or folders here. None for no address.

    At the end, and when this process is killed, the workers stop what they do for it. Raises ImportError without
    distributed, ValueError or OSError for a wrong address, RuntimeError for workers on which the calls would fail or
    give another result: other versions of minilora, NumPy or Python, another disk, no worker at all.
    """
    if address is None:
        yield None
        return
    if find_spec("distributed") is None:
        raise ImportError("--cluster needs Dask: pip install '.[cluster]' in the clone, here and on the workers")
    import distributed

    with quiet():
        with ThreadPoolExecutor(1) as thread:  # a notebook runs a loop in its own
            kind = thread.submit(asyncio.run, kind_at(address)).result()
        if kind is None:
            raise OSError(f"no Dask scheduler answers at {address} within {CONNECT:g} seconds")
        if kind != "Scheduler":
            raise ValueError(f"a Dask {kind.lower()} is at {address}: give the address of the scheduler")
        with distributed.Client(address, timeout=CONNECT, set_as_default=False) as client:
            check_workers(client, out, inputs)
            yield client


async def kind_at(address: str) -> str | None:
    """What of Dask answers there; Client would wait for ever for a port where nothing of Dask is."""
    import distributed

    try:
        async with distributed.core.rpc(address) as there:
            found = await asyncio.wait_for(there.identity(), CONNECT)
            return str(found["type"])
    except OSError:
        return None


@contextmanager
def quiet() -> Iterator[None]:
    """Dask's log goes to stderr, where an error is one line."""
    loggers = [logging.getLogger(name) for name in ("distributed", "distributed.client", "tornado.application")]
    before = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


# ---- are the workers like this process? ----


def check_workers(client: Client, out: Path, inputs: Sequence[str]) -> None:
    """Raise RuntimeError for the first worker that is not."""
    address = client.scheduler.address
    if not client.nthreads():
        raise RuntimeError(f"the Dask scheduler at {address} has no worker: start one by dask worker {address}")
    folder, token = os.getcwd(), os.urandom(16).hex()
    probe = out.absolute() / PROBE
    there = [os.path.abspath(path) for path in inputs if os.path.exists(path)]
    try:
        write_whole(probe, token.encode())
        found = client.run(what_is_wrong, versions(), [folder, *there], str(probe), token, on_error="return")
    finally:
        probe.unlink(missing_ok=True)
    for worker, wrong in found.items():
        if isinstance(wrong, BaseException):  # such as a minilora that is not there
            raise RuntimeError(f"worker {worker} cannot run minilora: {wrong}: install there what is installed here")
        if wrong:
            raise RuntimeError(f"worker {worker} {wrong}")


def versions() -> dict[str, str]:
    return {"minilora": __version__, "NumPy": np.__version__, "Python": platform.python_version()}


def what_is_wrong(expected: dict[str, str], paths: Sequence[str], probe: str, token: str) -> str | None:
    """What differs on the worker that runs this, in words; None if nothing does."""
    for name, version in versions().items():
        if version != expected[name]:
            return f"has {name} {version}, and here it is {expected[name]}: install the same"
    for path in paths:
        if not os.path.exists(path):
            return f"does not see {path}: all machines must have it under this path, on a disk that they share"
    try:
        same = Path(probe).read_text() == token
    except OSError:
        same = False
    return None if same else f"sees another {os.path.dirname(probe)}: it must be on a disk that all machines share"


# ---- calls ----


def on_cluster(
    client: Client, function: Callable[..., Any], calls: Sequence[tuple[Any, ...]], progress: Callable[[], object]
) -> list[Any]:
    """[function(*call) for call in calls], as many at a time as the workers have threads; `progress` is called after
    each. A call whose worker ends is made again on another, by Dask. Raises what the first call raised that failed, and
    RuntimeError for workers that die and for a scheduler that ends."""
    from distributed.scheduler import KilledWorker

    folder, done = os.getcwd(), queue.SimpleQueue[Any]()
    futures = [client.submit(in_a_process, folder, function, call, pure=False) for call in calls]
    for future in futures:
        future.add_done_callback(done.put)
    for _ in calls:
        future = next_done(client, done)
        if future.status == "cancelled":
            raise RuntimeError(f"the Dask scheduler at {client.scheduler.address} is gone; --resume goes on")
        error = future.exception()
        if isinstance(error, KilledWorker):
            died = f"{error.allowed_failures + 1} workers died of it, the last at {error.last_worker.address}"
            raise RuntimeError(f"a run was given up: {died}: see that worker's log, and its memory")
        if error is not None:
            raise error
        progress()
    return [future.result() for future in futures]


def next_done(client: Client, done: queue.SimpleQueue[Any]) -> Any:
    """The next future that is done. Raises RuntimeError when there is no worker for PATIENCE seconds."""
    seen = time.monotonic()
    while True:
        try:
            return done.get(timeout=1)
        except queue.Empty:
            if client.status != "running" or client.nthreads():  # a client that has lost its scheduler fails by itself
                seen = time.monotonic()
            elif time.monotonic() - seen > PATIENCE:
                raise RuntimeError(
                    f"the Dask scheduler at {client.scheduler.address} has no worker any more: start one by "
                    f"dask worker {client.scheduler.address}; --resume goes on"
                ) from None


def in_a_process(folder: str, function: Callable[..., Any], call: tuple[Any, ...]) -> Any:
    """function(*call) in a new process in the working directory `folder`, on the worker that computes this. It is
    killed when nobody waits for it any more."""
    from distributed import get_worker

    worker = get_worker()
    key = worker.get_current_task()
    message: bytes | None = pickle.dumps((os.getpid(), function, call))
    pipe, command = subprocess.PIPE, [sys.executable, "-P", "-m", __name__]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, cwd=folder) as process:
        while True:
            try:
                out, err = process.communicate(message, timeout=POLL)
                break
            except subprocess.TimeoutExpired:
                message = None  # it has it
                task = worker.state.tasks.get(key)
                if task is None or task.state == "cancelled" or worker.status.name in ("closing", "closed", "failed"):
                    process.kill()
    if process.returncode:
        said = err.decode(errors="replace").strip().splitlines()
        how = said[-1] if said else f"code {process.returncode}"
        if process.returncode < 0:
            how = signal.Signals(-process.returncode).name
        raise RuntimeError(f"a process on worker {worker.address} ended with {how}; --resume goes on")
    result, error = pickle.loads(out)
    if error is not None:
        raise error
    return result


def main() -> None:
    """What that process does."""
    out, (parent, function, call) = sys.stdout.buffer, pickle.load(sys.stdin.buffer)
    end_with(parent)
    result = error = None
    with redirect_stdout(sys.stderr):
        try:
            result = function(*call)
        except Exception as failed:
            error = failed
    out.write(pickle.dumps((result, error)))


if __name__ == "__main__":
    main()
