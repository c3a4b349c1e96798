"""Chat templates: programs in Jinja that come with a tokenizer, from whoever made the model.

Jinja's sandbox keeps a template from files and from Python's insides, and bounds neither time nor memory: two lines
of a template make a text of 3 GB, or one that doubles until nothing is left, or compare for a year. Nothing within
Python stops a single operation. So templates are rendered by a process of its own, which this same file is: it starts
with the first of them, and ends with us, or with a template that does not keep to its bounds.
"""

from __future__ import annotations

import atexit
import faulthandler
import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from datetime import datetime
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

SECONDS = 1.0  # a template that people use takes a millisecond
MEMORY = 256 * 2**20  # bytes
LONGEST = 2**22  # letters of a text

RUNNING: dict[int, subprocess.Popen[bytes]] = {}  # the renderer of each process, by its id: a fork has its own
LOCK = threading.Lock()


def render(template: str, **values: Any) -> str:
    """A chat template's text, in the sandbox and with the names that `transformers` gives it. `values` are JSON.

    Bounded on every system: the time (SECONDS) and the text (LONGEST), and this process is not harmed if the other
    breaks; where the system bounds a process's memory (Linux; not macOS nor Windows) that too (MEMORY), and elsewhere
    by no more than what can be filled in SECONDS. The first text takes some 60 ms, to start Python.

    Raises ImportError where jinja2 is missing, ValueError where the template is wrong, refuses the messages or does
    not keep to its bounds.
    """
    if find_spec("jinja2") is None:
        raise ImportError("a chat template is written in Jinja: pip install 'jinja2>=3.1.6'")
    try:
        request = json.dumps([template, values]).encode()
    except (TypeError, RecursionError) as error:
        raise ValueError(f"these messages are not JSON, as a chat template reads it: {error}") from None
    with LOCK:
        answer = asked(request)
    if not answer:
        raise ValueError(f"the chat template takes more than {SECONDS:g} s or {MEMORY >> 20} MiB, and is not rendered")
    text, wrong = json.loads(answer)
    if wrong:
        raise ValueError(f"the chat template does not accept these messages: {wrong}")
    return str(text)


def asked(request: bytes) -> bytes:
    """The renderer's answer to a request, each a line; none if it breaks on it."""
    process = RUNNING.get(os.getpid())
    if process and process.poll() is not None:  # someone else ended it
        end()
        process = None
    if process is None:
        command = [sys.executable, "-P", __file__]  # -P: the files beside this one are not to be found as modules
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL)
        RUNNING[os.getpid()] = process
    assert process.stdin
    assert process.stdout
    answer = b""
    try:
        with suppress(BrokenPipeError):
            process.stdin.write(request + b"\n")
            process.stdin.flush()
            answer = process.stdout.readline()
    finally:
        if not answer:  # or Ctrl-C came, and the next must not read the answer to this
            end()
    return answer


@atexit.register
def end() -> None:
    """End this process's renderer, if there is one."""
    process = RUNNING.pop(os.getpid(), None)
    if process:
        process.kill()
        process.communicate()


# ---- the other process ----


def main() -> None:
    """Answer each line, [template, values], with another: [text, what is wrong]."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C at the terminal is for the other
    with suppress(ImportError):  # what Python and Jinja take to start is not the template's
        sandbox()
    bound_memory()
    for line in sys.stdin.buffer:
        faulthandler.dump_traceback_later(SECONDS, exit=True)  # from a thread that waits for no operation of Python's
        answer = json.dumps(rendered(*json.loads(line)))
        faulthandler.cancel_dump_traceback_later()
        print(answer, flush=True)


def bound_memory() -> None:
    """Refuse this process more than MEMORY from now on."""
    with suppress(ImportError, ValueError, OSError):  # Windows has no resource, macOS does not do it
        import resource

        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))


def rendered(template: str, values: dict[str, Any]) -> tuple[str, str]:
    try:
        text = compiled(template).render(tools=None, documents=None, **values)
        if len(text) > LONGEST:
            raise ValueError(f"it makes a text of {len(text):,} letters")
    except MemoryError:  # which ends this process
        raise
    except Exception as error:  # whatever a template may raise
        return "", " ".join(str(error)[:500].split()) or type(error).__name__
    return text, ""


@lru_cache(1)  # a file of answers renders one template for each of its lines
def compiled(template: str) -> Any:
    return sandbox().from_string(template)


def sandbox() -> Any:
    """Jinja's environment as `transformers` makes it."""
    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """{% generation %}: which part of a text the model wrote. It adds nothing to the text."""

        tags = {"generation"}  # noqa: RUF012, as the base class has it

        def parse(self, parser: Any) -> list[nodes.Node]:
            next(parser.stream)
            return list(parser.parse_statements(("name:endgeneration",), drop_needle=True))

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)  # Jinja's own escapes HTML

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


if __name__ == "__main__":
    main()
