"""Damaged files for the readers: one change of a valid file, and bounds of time and memory for whoever reads it."""

import signal
import struct
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def bounded(seconds=2.0, memory=512 * 2**20):
    """Whatever runs here has 2 s and 512 MiB; where the system can tell."""
    resource = pytest.importorskip("resource")
    pages = Path("/proc/self/statm")
    limits = resource.getrlimit(resource.RLIMIT_AS)

    def late(*_):
        raise TimeoutError(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    if pages.exists():
        now = int(pages.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + memory, limits[1]))
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, limits)


def mutate(content, end, rng):
    """One change of a file: of a byte, of a number, of its length, of a piece. Mostly before `end`, in the header."""
    data = bytearray(content)
    at = int(rng.integers(0, end if rng.random() < 0.9 else len(data)))
    size = int(rng.integers(1, 64))
    kind = rng.integers(7)
    if kind == 0:
        data[at] ^= 1 << int(rng.integers(8))
    elif kind == 1:
        data[at] = int(rng.integers(256))
    elif kind == 2:  # a number of 8 bytes: a count, a length, an offset
        extreme = [0, 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**63, 2**64 - 1, len(data)]
        data[at : at + 8] = struct.pack("<Q", extreme[rng.integers(len(extreme))])
    elif kind == 3:
        del data[at:]
    elif kind == 4:
        del data[at : at + size]
    elif kind == 5:
        data[at:at] = rng.bytes(size)
    else:
        other = int(rng.integers(0, end))
        data[at : at + size] = data[other : other + size]
    return bytes(data)


def refusal(read, path):
    """The line with which `read` refuses the file, or None: the only ways in which it may end."""
    try:
        with bounded():
            read(path)
    except ValueError as error:
        line = str(error)
        assert "\n" not in line, line
        assert len(line) < 700, line
        return line
    return None
