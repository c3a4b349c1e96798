"""Runs that do not depend on each other, several at a time."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext, redirect_stderr
from importlib.util import find_spec
from typing import Any

from ..process import blas_threads, end_with, keep_freed_memory
from .cluster import Client, on_cluster


def check_joblib(what: str) -> None:
    """Raise ImportError, for `what`, where joblib is not installed."""
    if find_spec("joblib") is None:
        raise ImportError(f"{what} needs joblib: pip install '.[sweep]' in the clone")


def run_all(
    function: Callable[..., Any],
    calls: Sequence[tuple[Any, ...]],
    jobs: int | Client,
    threads: int,
    description: str,
    unit: str,
) -> list[Any]:
    """[function(*call) for call in calls], each with `threads` of BLAS, and a progress bar.

    joblib runs `jobs` of them at a time, in processes, which end with this one, or where joblib.parallel_config says
    (threads, Ray). A client of cluster.connected() instead of a number runs them on the workers of its cluster.
    """
    import joblib
    from tqdm import tqdm

    if not isinstance(jobs, int):
        with tqdm(total=len(calls), desc=description, unit=unit, disable=None, leave=False) as bar:
            return on_cluster(jobs, run_one, [(function, call, 0, threads) for call in calls], bar.update)

    class Parallel(joblib.Parallel):
        def print_progress(self) -> None:  # called after each, by every backend: not all can return a generator
            bar.update(self.n_completed_tasks - bar.n)

    backend, _ = joblib.parallel.get_active_backend()
    children = type(backend) in (joblib.parallel.BACKENDS[name] for name in ("loky", "multiprocessing"))
    parent = os.getpid() if children else None
    workers = {"initializer": end_with, "initargs": (parent,)} if children else {}
    one = joblib.delayed(run_one)
    with tqdm(total=len(calls), desc=description, unit=unit, disable=None, leave=False) as bar:
        found: list[Any] = Parallel(n_jobs=jobs, **workers)(one(function, call, parent, threads) for call in calls)
    return found


def run_one(function: Callable[..., Any], call: tuple[Any, ...], parent: int | None, threads: int) -> Any:
    """function(*call). `parent` is the id of the process that asks, if joblib runs it in another."""
    from tqdm import tqdm

    child = parent not in (None, os.getpid())
    if child:
        keep_freed_memory()
        tqdm.set_lock(threading.RLock())  # the default lock is a semaphore, and Python warns of one that Ctrl-C left
    # The bars of several processes would fight for one line of the terminal.
    with redirect_stderr(io.StringIO()) if child else nullcontext(), blas_threads(threads):
        return function(*call)
