"""The process: what the platform offers, BLAS threads, memory, a lock on a folder, ending with its parent."""

from __future__ import annotations

import ctypes
import functools
import os
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import ContextDecorator, contextmanager, suppress
from pathlib import Path
from typing import Any

BROWSER = sys.platform == "emscripten"  # Pyodide, which starts neither threads nor processes
if BROWSER:
    warnings.filterwarnings("ignore", "tqdm:disabling monitor support")  # which only a bar that waits needs

_lock = threading.Lock()
_blocks = 0  # the number of open blas_threads() blocks, in all threads of Python
_before: list[int] = []  # the number of threads of each BLAS library outside these blocks


class blas_threads(ContextDecorator):
    """Run BLAS on `n` threads inside this block, and afterwards on as many as before. Also a decorator.

    A model's forward and backward, `fit`, `evaluate`, merging, SVDs and the checks are such blocks, with one thread. A
    block inside another has no effect: `with blas_threads(4): fit(...)` trains on four. The number applies to the whole
    process, other threads of Python included, and is restored when the last open block ends.

    Why one thread for every shape: on a busy machine each product waits until its slowest thread gets a core. The table
    gives the time of loss_and_gradients() of a LoRA model with two threads, divided by that with one; alternating runs,
    medians of 7, OpenBLAS 0.3.31 on 2 cores, idle and beside two busy processes:

        built-in 16 x 128     0.78    1.9 (at most 3.2)
        tiny GPT-2 16 x 64    0.89    0.84 (at most 3.6)
        GPT-2 2 x 128         0.62    2.2 (at most 6.5)
        width 1024 4 x 512    0.56    1.4 (at most 3.6)

    `shards` use more cores without waiting inside a product, and one thread gives the same bytes everywhere. Use more
    threads for a large model and a batch of one, on idle cores.

    A block costs 7 µs, 3 where that is the number already, inside another 0.5 µs. Raises ValueError for n below 1. Has
    no effect on a BLAS that threadpoolctl does not know (Apple's Accelerate). An OpenBLAS built on OpenMP, unlike that
    of NumPy's wheels, has a number for each thread of Python, and a block sets only that of its own.
    """

    def __init__(self, n: int = 1) -> None:
        if n < 1:
            raise ValueError(f"BLAS cannot compute on {n} threads: give 1 or more")
        self.n = n

    def __enter__(self) -> None:
        global _blocks
        with _lock:
            if not _blocks:
                libraries = blas_libraries()
                _before[:] = [library.num_threads for library in libraries]
                set_threads([self.n] * len(libraries))
            _blocks += 1

    def __exit__(self, *error: object) -> None:
        global _blocks
        with _lock:
            _blocks -= 1
            if not _blocks:
                set_threads(_before)


@functools.cache
def blas_libraries() -> list[Any]:
    """threadpoolctl's controllers of the BLAS libraries in this process, looked up once: it takes a millisecond."""
    import numpy  # noqa: F401  its BLAS must be loaded
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController().select(user_api="blas").lib_controllers


def set_threads(numbers: list[int]) -> None:
    """Set the number of threads of each BLAS library."""
    for library, n in zip(blas_libraries(), numbers, strict=True):
        if library.num_threads == n:
            continue
        # Since 3.8, threadpoolctl ignores all threads but the first that set the number. Here the last block to end may
        # be in another thread, so it has to be cleared.
        clear = getattr(library, "clear_controlling_thread", lambda force: None)
        clear(force=True)
        library.set_num_threads(n)
        clear(force=True)


LOCK = ".minilora.lock"  # in a folder that is being written; a killed process leaves it behind
LOCK_TIMEOUT = 1.0  # seconds: a process that was just killed may hold its lock a little longer


def keep_freed_memory() -> None:
    """Tell malloc to keep freed memory, for training: ops allocate their results, and fresh pages cost time. And to
    keep it in one place for all threads, so that a shard can use what another has freed.

    It applies to the whole process, so only the commands that train call it, and the processes that they start. Has no
    effect without glibc.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
    mallopt(M_MMAP_THRESHOLD, 2**30)
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(M_ARENA_MAX, 1)


@functools.cache
def let_heap_grow() -> None:
    """Let malloc keep up to 64 MB of freed memory, as glibc does by itself once a block of 32 MB has come and gone.

    A model's forward calls it: without it a step of a small model gives back its pages, and gets fresh ones, at every
    array, which may take as long as all the rest. Other than keep_freed_memory() it sets nothing. Harmless elsewhere.
    """
    if BROWSER:
        return
    try:
        libc = ctypes.CDLL(None)
        malloc, free = libc.malloc, libc.free
    except (AttributeError, OSError, TypeError):
        return
    malloc.restype, malloc.argtypes, free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
    free(malloc(2**25 - 2**13))


def peak_memory() -> int:
    """The peak resident memory of the process in bytes; 0 on Windows and in a browser."""
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage would include the parent's at the start of this process
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@contextmanager
def folder_lock(path: str | Path) -> Iterator[bool]:
    """Lock the folder `path` for writing. It is created if needed, and removed at the end if it is empty.

    Yields whether the last process that wrote there was killed. The lock is the system's (flock, or msvcrt.locking on
    Windows) and ends with the process. It holds for other machines on a network disk that supports locks (NFS, SMB); a
    file system without locks excludes nobody. Raises ValueError when another process writes there or `path` is a file,
    OSError when the folder cannot be written.
    """
    path = Path(path).absolute()
    if os.path.lexists(path) and not path.is_dir():
        raise ValueError(f"{path} is a file: choose another folder")
    created = [folder for folder in (path, *path.parents) if not folder.exists()]
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
            with suppress(PermissionError):  # Windows cannot remove an open file
                (path / LOCK).unlink(missing_ok=True)
            os.close(descriptor)
        for folder in created:
            with suppress(OSError):  # not empty
                folder.rmdir()


def acquire(file: Path) -> tuple[int, bool]:
    """(descriptor of the locked file, whether its last owner was killed). Raises ValueError for a locked one."""
    deadline = time.monotonic() + LOCK_TIMEOUT
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        if locked(descriptor):
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), os.stat(file)):  # else its owner just removed it
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
    """Lock a file; False if another process has locked it. True, without a lock, where the file system has none."""
    try:
        if sys.platform == "win32":
            import msvcrt

            os.lseek(descriptor, 2**30, os.SEEK_SET)  # a byte that nobody reads
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
    """End this process when its `parent` process ends, at once if it already has.

    Has no effect on Windows, where a process keeps the id of a parent that has ended.
    """
    import multiprocessing  # slow, and --help need not wait for it

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.1)
        starter = multiprocessing.parent_process()  # with a fork server, not the system's parent
        with suppress(TypeError, ValueError):  # loky's workers cannot wait for it
            if starter is not None:
                starter.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
