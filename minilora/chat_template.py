"""Chat templates: programs in Jinja that come with a tokenizer, from whoever made the model.

Jinja's sandbox keeps a template from files and from Python's insides, and bounds neither time nor memory: two lines
of a template make a text of 3 GB, or one that doubles until nothing is left, or compare for a year. Nothing within
Python stops a single operation, so each template is rendered by a process of its own, which this same file is.
"""

from __future__ import annotations

import faulthandler
import json
import subprocess
import sys
from contextlib import suppress
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

SECONDS = 1.0  # a template that people use takes some milliseconds
MEMORY = 256 * 2**20  # bytes
LONGEST = 2**24  # letters of a text
REFUSED = 3  # the exit status of a template that raises


def render(template: str, **values: Any) -> str:
    """A chat template's text, in the sandbox and with the names that `transformers` gives it. `values` are JSON.

    To start Python takes some 60 ms a call. Bounded on every system: the time (SECONDS) and the text (LONGEST), and
    this process is not harmed if the other breaks; where the system bounds a process's memory (Linux; not macOS nor
    Windows) that too (MEMORY), and elsewhere by no more than what can be filled in SECONDS.

    Raises ImportError where jinja2 is missing, ValueError where the template is wrong, refuses the messages or does
    not keep to its bounds.
    """
    if find_spec("jinja2") is None:
        raise ImportError("a chat template is written in Jinja: pip install 'jinja2>=3.1.6'")
    try:
        request = json.dumps([template, values]).encode()
    except (TypeError, RecursionError) as error:
        raise ValueError(f"these messages are not JSON, as a chat template reads it: {error}") from None
    command = [sys.executable, "-P", __file__]  # -P: the files beside this one are not to be found as modules
    done = subprocess.run(command, input=request, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    text = done.stdout.decode(errors="surrogatepass")
    if done.returncode == REFUSED:
        raise ValueError(f"the chat template does not accept these messages: {text}")
    if done.returncode:
        raise ValueError(f"the chat template takes more than {SECONDS:g} s or {MEMORY >> 20} MiB, and is not rendered")
    return text


# ---- the other process ----


def main() -> int:
    """Render what comes in: out goes the text (status 0), or what is wrong with it (REFUSED)."""
    template, values = json.load(sys.stdin.buffer)
    try:
        environment = sandbox()
        bound()  # what Python and Jinja took to start is not the template's
        text = environment.from_string(template).render(tools=None, documents=None, **values)
        if len(text) > LONGEST:
            raise ValueError(f"it makes a text of {len(text):,} letters")
    except MemoryError:
        return 1
    except Exception as error:  # whatever a template may raise
        said = str(error)[:500] or type(error).__name__
        sys.stdout.buffer.write(" ".join(said.split()).encode(errors="surrogatepass"))
        return REFUSED
    sys.stdout.buffer.write(text.encode(errors="surrogatepass"))
    return 0


def bound() -> None:
    """End this process after SECONDS from now, and refuse it more than MEMORY from now on."""
    faulthandler.dump_traceback_later(SECONDS, exit=True)  # from a thread that waits for none of Python's operations
    with suppress(ImportError, ValueError, OSError):  # Windows has no resource, macOS does not do it
        import resource

        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))


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
    sys.exit(main())
