"""Events of the loop: keys, saved files, the end of the input."""

from __future__ import annotations

import contextlib
import os
import queue
import select
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from ..process import BROWSER


class Event(NamedTuple):
    kind: str  # key, saved, end, or wait: nothing happened for a while
    value: str = ""


class Events:
    """What happens in a folder and on the keyboard, in order.

    A terminal gives single keys. Any other standard input is read line by line: the first letter of a line, or its
    number, is the key. Files are watched by watchfiles if it is installed, else polled three times a second. Raises
    RuntimeError in a browser, where neither is possible.
    """

    def __init__(self, folder: Path):
        if BROWSER:
            raise RuntimeError("in a browser nothing waits for keys and files: check one by `minilora ex check N`")
        self.folder = folder
        self.queue: queue.Queue[Event] = queue.Queue()
        self.stop = threading.Event()
        self.reading = threading.Event()  # cleared while an editor has the terminal
        self.reading.set()
        self.single = sys.stdin.isatty()

    def __enter__(self) -> Events:
        self.restore = self.cbreak()
        for work in (self.read_keys if self.single else self.read_lines, self.watch):
            threading.Thread(target=work, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.restore()

    def next(self, timeout: float | None = None) -> Event:
        try:
            return self.queue.get(timeout=timeout)
        except queue.Empty:
            return Event("wait")

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the terminal to another program."""
        self.reading.clear()
        self.restore()
        try:
            yield
        finally:
            self.restore = self.cbreak()
            self.reading.set()

    def cbreak(self) -> Callable[[], None]:
        """Let the terminal give each key when it is pressed; return a function that undoes this."""
        if not self.single or sys.platform == "win32":
            return lambda: None
        import termios
        import tty

        before = termios.tcgetattr(sys.stdin.fileno())
        tty.setcbreak(sys.stdin.fileno())
        return lambda: termios.tcsetattr(sys.stdin.fileno(), termios.TCSADRAIN, before)

    def read_keys(self) -> None:
        while not self.stop.is_set():
            self.reading.wait()
            if sys.platform == "win32":
                import msvcrt

                if msvcrt.kbhit():
                    self.queue.put(Event("key", msvcrt.getwch()))
                else:
                    time.sleep(0.05)
            elif select.select([sys.stdin], [], [], 0.2)[0] and self.reading.is_set():
                try:
                    key = os.read(sys.stdin.fileno(), 1)
                except OSError:  # the terminal is gone
                    key = b""
                if key == b"\x1b":  # an arrow or a function key: more bytes, and none of them a key
                    while select.select([sys.stdin], [], [], 0.02)[0]:
                        os.read(sys.stdin.fileno(), 1)
                    continue
                if not key:
                    self.queue.put(Event("end"))
                    return
                self.queue.put(Event("key", key.decode(errors="ignore")))

    def read_lines(self) -> None:
        for line in sys.stdin:
            word = line.strip()
            for key in f"{word}\n" if word[:1].isdigit() else word[:1]:
                self.queue.put(Event("key", key))
        self.queue.put(Event("end"))

    def watch(self) -> None:
        try:
            from watchfiles import watch
        except ImportError:
            self.poll()
            return
        for changes in watch(
            self.folder, stop_event=self.stop, debounce=100, step=20, recursive=False, raise_interrupt=False
        ):
            for name in {Path(path).name for _, path in changes}:
                self.queue.put(Event("saved", name))

    def poll(self) -> None:
        seen = self.times()
        while not self.stop.wait(0.3):
            now = self.times()
            for name in now:
                if now[name] != seen.get(name):
                    self.queue.put(Event("saved", name))
            seen = now

    def times(self) -> dict[str, tuple[int, int]]:
        found = {}
        for entry in self.folder.glob("*.py"):
            with contextlib.suppress(OSError):
                found[entry.name] = (entry.stat().st_mtime_ns, entry.stat().st_size)
        return found
