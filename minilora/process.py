"""The process that runs: what malloc does with freed memory, and the most memory there has been."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path


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
