"""The process: threads of BLAS, memory, the folder that it alone writes, and the parent that it does not outlive."""

from __future__ import annotations

import ctypes
import functools
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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

    Why one, whatever the shape: no rule by shape is right on a busy machine, where each product waits until its slowest
    thread gets a core. Time of loss_and_gradients() of a LoRA model inside blas_threads(2) over that inside
    blas_threads(1), taking turns, medians of 7, OpenBLAS 0.3.31 on 2 cores, free and beside two busy processes:

        built-in 16 x 128     0.78    1.9 (at most 3.2)
        tiny GPT-2 16 x 64    0.89    0.84 (at most 3.6)
        GPT-2 2 x 128         0.62    2.2 (at most 6.5)
        width 1024 4 x 512    0.56    1.4 (at most 3.6)

    `shards` use more cores without waiting inside a product, and one thread gives the same bytes everywhere.
    blas_threads(2) is for a large model on a batch of one, where cores are free.

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


LOCK = ".minilora.lock"  # in a folder that is being written; a process that was killed leaves it behind
PATIENCE = 1.0  # seconds that a process which was just killed may take to be gone


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


@contextmanager
def folder_lock(path: str | Path) -> Iterator[bool]:
    """Be the only one that writes the folder `path`, which is made if it is not there, and removed if nothing was put
    into it. Yields whether the last one that wrote there was killed.

    The system holds the lock for as long as the process lives, so none is left of a dead one: flock, or on Windows
    msvcrt.locking. Other machines that write to the same network disk are kept out where it passes locks on (NFS, SMB);
    where a file system has no locks, no one is. Raises ValueError when another process writes there, or `path` is a
    file; OSError when nothing can be written there.
    """
    path = Path(path).absolute()
    if os.path.lexists(path) and not path.is_dir():
        raise ValueError(f"{path} is a file: choose another folder")
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    descriptor = None
    try:
        try:
            path.mkdir(parents=True, exist_ok=True)
            descriptor, killed = acquire(path / LOCK)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from error
        yield killed
    finally:
        if descriptor is not None:
            with suppress(PermissionError):  # Windows keeps a file that is open
                (path / LOCK).unlink(missing_ok=True)
            os.close(descriptor)
        for folder in made:
            with suppress(OSError):  # it is not empty
                folder.rmdir()


def acquire(file: Path) -> tuple[int, bool]:
    """(descriptor of the locked file, whether its last owner was killed)."""
    deadline = time.monotonic() + PATIENCE
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        if locked(descriptor):
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), os.stat(file)):  # else its owner has just removed it
                    killed = bool(os.read(descriptor, 1))
                    os.ftruncate(descriptor, 0)
                    os.lseek(descriptor, 0, os.SEEK_SET)
                    os.write(descriptor, str(os.getpid()).encode())
                    return descriptor, killed
        elif time.monotonic() > deadline:
            owner = os.read(descriptor, 20).decode(errors="replace")
            os.close(descriptor)
            raise ValueError(
                f"{file.parent} is being written by process {owner}: wait until it ends, or choose another folder"
            )
        os.close(descriptor)
        time.sleep(0.02)


def locked(descriptor: int) -> bool:
    """Lock a file, unless another has locked it. A file system without locks locks nothing."""
    try:
        if sys.platform == "win32":
            import msvcrt

            os.lseek(descriptor, 2**30, os.SEEK_SET)  # a byte beyond those that others read
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
            os.lseek(descriptor, 0, os.SEEK_SET)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return True
    return True


def end_with(parent: int) -> None:
    """Make this process end when the process `parent`, which started it, does: at once if it has ended already.

    Windows keeps the id of a parent that has ended; there, nothing happens.
    """
    import multiprocessing  # slow, and --help need not wait for it

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.1)
        starter = multiprocessing.parent_process()  # with a fork server between, not the parent that the system knows
        with suppress(TypeError, ValueError):  # loky's workers cannot wait for it
            if starter is not None:
                starter.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
