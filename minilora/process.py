"""The process that runs: its memory, the folder that it alone writes, and the parent that it does not outlive."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

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

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.1)
        starter = multiprocessing.parent_process()  # with a fork server between, not the parent that the system knows
        with suppress(TypeError, ValueError):  # loky's workers cannot wait for it
            if starter is not None:
                starter.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
