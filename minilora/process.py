"""The process: the threads of BLAS, what malloc does with freed memory, and the most memory there has been."""

from __future__ import annotations

import ctypes
import functools
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_lock = threading.Lock()
_blocks = 0  # of blas_threads(), open now, in all threads of Python
_before: list[int] = []  # the threads of each BLAS library before the first of them began


@contextmanager
def blas_threads(n: int = 1) -> Iterator[None]:
    """Have BLAS compute on `n` threads in this block, and afterwards on as many as before. Also a decorator.

    A model's forward and backward, `fit`, `evaluate`, merging, SVDs and the checks are such blocks, of one thread. A
    block inside another changes nothing: `with blas_threads(4): fit(...)` trains on four. The number is the whole
    process's: "inside" includes other threads of Python, and the old number is back when the last block has ended.

    Why one: a step has many products that take less than a millisecond (heads of attention, rank r), and each waits
    until its slowest thread gets a core. Time on two threads / on one, OpenBLAS 0.3.31, 2 cores, beside busy processes:

        LoRA steps    built-in 16 x 128: 10    MiniLM 32 x 64: 2.7    SmolLM2 1 x 128: 9.3    GPT-2 2 x 128: 3.4
        evaluate 11    check_gradient of a 344 x 128 layer 18    SVD of 344 x 128 107

    There a product gains from about 7 GFLOP on, and none but a head's is so large. Who knows that the cores are free
    opens a block: large products then take half the time on two threads. `shards` use more cores without waiting.

    Entering and leaving takes 9 µs, 1 µs inside another block. Raises ValueError for n below 1. Nothing happens where
    threadpoolctl knows no BLAS (Apple's Accelerate). An OpenBLAS built on OpenMP, which NumPy's wheels are not, counts
    for each thread of Python, and the block limits its own thread alone.
    """
    global _blocks
    if n < 1:
        raise ValueError(f"BLAS cannot compute on {n} threads: give 1 or more")
    libraries = blas_libraries()
    with _lock:
        if not _blocks:
            _before[:] = [library.num_threads for library in libraries]
            set_threads([n] * len(libraries))
        _blocks += 1
    try:
        yield
    finally:
        with _lock:
            _blocks -= 1
            if not _blocks:
                set_threads(_before)


@functools.cache
def blas_libraries() -> list[Any]:
    """threadpoolctl's controllers of the BLAS libraries in this process. Looking takes a millisecond: once will do, as
    NumPy's is loaded first."""
    import numpy  # noqa: F401
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController().select(user_api="blas").lib_controllers


def set_threads(numbers: list[int]) -> None:
    for library, n in zip(blas_libraries(), numbers, strict=True):
        # From 3.8 on threadpoolctl ignores all threads but the first that set the number, until it clears this.
        # Here the last block to end may be another thread's.
        clear = getattr(library, "clear_controlling_thread", lambda force: None)
        clear(force=True)
        library.set_num_threads(n)
        clear(force=True)


def keep_freed_memory() -> None:
    """Have malloc keep what is freed, for training: ops allocate their results, and fresh pages cost time.

    A setting of the whole process, so the commands that train make it, and importing the library never does. Only
    glibc has it; elsewhere nothing happens.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
    mallopt(M_MMAP_THRESHOLD, 2**30)
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def peak_memory() -> int:
    """The most memory that the process has held, in bytes; 0 where the system does not say (Windows)."""
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage would count what the parent held when it started this process
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        return 0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
