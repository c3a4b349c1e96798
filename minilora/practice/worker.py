"""A process that checks files, so that the loop outlives whatever they do: it is warm, has a time limit, and may die.

The child reads one JSON request a line and answers with one JSON result a line. While a learner's code runs, what it
prints is kept, and starting another process is refused.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import queue
import re
import signal
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from ..process import BROWSER, end_with
from ..verify.language import words
from .catalogue import exercise
from .checking import Broken, check_file
from .parts import Refused
from .result import Result

LIMIT = 10.0  # seconds for one check
STARTS = ("os.fork", "os.forkpty", "os.exec", "os.posix_spawn", "os.spawn", "os.system", "subprocess.Popen")
UNLIMITED = "there is no second process here, so a check has no time limit: to end one, restart the kernel"


class Worker:
    """The parent's side. A check that takes longer than `limit` seconds is ended; the next one starts a new child.

    An exercise that needs more has a limit of its own. In a browser there is no child: files are checked here.
    """

    def __init__(self, limit: float = LIMIT):
        if BROWSER:
            warnings.warn(UNLIMITED, stacklevel=2)
        self.limit = limit
        self.child: subprocess.Popen[str] | None = None
        descriptor, stacks = tempfile.mkstemp(prefix="minilora-")  # where a child that hangs writes its stack
        os.close(descriptor)
        self.stacks = Path(stacks)

    def check(self, number: str, path: Path, language: str = "en", seed: int = 0) -> Result:
        """Grade a learner's file in the child."""
        if BROWSER:
            return check_file(number, path, language, seed)
        child, limit = self.started(), max(self.limit, exercise(number).limit)
        assert child.stdin
        assert child.stdout
        request = {"number": number, "path": str(path), "seed": seed, "limit": limit}
        with contextlib.suppress(OSError):  # it has died: there will be no answer
            child.stdin.write(json.dumps(request) + "\n")
            child.stdin.flush()
        answers: queue.Queue[str] = queue.Queue()
        threading.Thread(target=lambda out: answers.put(out.readline()), args=[child.stdout], daemon=True).start()
        try:
            answer = answers.get(timeout=limit)
        except queue.Empty:
            self.close()
            return too_long(limit, self.line_of(path)).result(exercise(number), language)
        if not answer.endswith("\n"):
            code = child.wait()
            self.close()
            return ended(code).result(exercise(number), language)
        return Result.of_json(json.loads(answer), language)

    def started(self) -> subprocess.Popen[str]:
        if self.child is None or self.child.poll() is not None:
            self.child = subprocess.Popen(
                [sys.executable, "-m", "minilora.practice.worker", str(self.stacks)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8", start_new_session=True,
            )  # fmt: skip
            assert self.child.stdout
            self.child.stdout.readline()  # it has imported what it needs: from here on time counts
        return self.child

    def line_of(self, path: Path) -> int:
        """The line of the learner's file in which the child hangs; 0 if it is not known."""
        found = re.search(rf'File "{re.escape(str(path))}", line (\d+)', self.stacks.read_text(errors="replace"))
        return int(found[1]) if found else 0

    def close(self) -> None:
        if self.child is not None:
            self.child.kill()
            self.child.wait()
            for stream in (self.child.stdin, self.child.stdout):
                with contextlib.suppress(OSError):
                    assert stream
                    stream.close()
            self.child = None

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self.stacks.unlink(missing_ok=True)


def too_long(limit: float, line: int) -> Broken:
    says = words("no answer within {limit} seconds", limit=f"{limit:g}")
    asks = words("Is there a loop that does not end? It was in line {line}.", line=str(line))
    return Broken("time", says, asks if line else words("Is there a loop that does not end?"))


def ended(code: int) -> Broken:
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return Broken("crash", words("the process that ran your file ended before it answered ({how})", how=how))


def serve(requests: IO[str], answers: IO[str], stacks: IO[str]) -> None:
    """The child's side: answer until there are no more requests."""
    refuse = False

    def no_processes(event: str, _: Any) -> None:
        if refuse and event.startswith(STARTS):
            raise Refused("process", words("your file starts another process: an exercise needs none"))

    sys.addaudithook(no_processes)
    answers.write("ready\n")
    answers.flush()
    for line in requests:
        request = json.loads(line)
        stacks.seek(0)
        stacks.truncate()
        faulthandler.dump_traceback_later(0.8 * request["limit"], file=stacks)
        refuse = True
        result = check_file(request["number"], Path(request["path"]), seed=request["seed"])
        refuse = False
        faulthandler.cancel_dump_traceback_later()
        answers.write(json.dumps(result.as_json()) + "\n")
        answers.flush()


@contextlib.contextmanager
def own_streams() -> Iterator[tuple[IO[str], IO[str]]]:
    """The standard streams for requests and answers alone: a learner's file reads nothing, and prints to nowhere."""
    with os.fdopen(os.dup(0), encoding="utf-8") as requests, os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(null, descriptor)
        yield requests, answers


if __name__ == "__main__":
    end_with(os.getppid())  # also in the middle of a loop without an end
    with own_streams() as (requests, answers), open(sys.argv[1], "w", encoding="utf-8") as stacks:
        serve(requests, answers, stacks)
