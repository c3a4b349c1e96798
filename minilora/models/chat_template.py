"""Chat templates: programs in Jinja that come with a tokenizer. They run in Jinja's sandbox, as in `transformers`.

The sandbox keeps a template from files and from Python's internals. It bounds neither time nor memory.
"""

from __future__ import annotations

import json
import re
from datetime import datetime
from functools import lru_cache
from typing import Any

BEGINS, ENDS = "\ud800", "\ud801"  # around what {% generation %} marks: halves of letters, which no text can hold


def render(template: str, **values: Any) -> str:
    """The text of a chat template, with the names that `transformers` gives it.

    Raises ImportError where jinja2 is missing, ValueError where the template is wrong or refuses the messages.
    """
    try:
        import jinja2  # noqa: F401
    except ImportError:
        raise ImportError("a chat template is written in Jinja: pip install 'jinja2>=3.1.6'") from None
    try:
        return str(compiled(template).render(tools=None, documents=None, **values))
    except Exception as error:  # whatever a template may raise
        reason = " ".join(str(error)[:500].split()) or type(error).__name__
        raise ValueError(f"the chat template does not accept these messages: {reason}") from None


def marked(template: str, **values: Any) -> list[tuple[int, int]]:
    """The parts [start, end) of what render() returns that the template marks with {% generation %}: what the model
    wrote. Raises as render() does."""
    text = render(template, generation_begins=BEGINS, generation_ends=ENDS, **values)
    parts, at, start = list[tuple[int, int]](), 0, 0
    for piece in re.split(f"([{BEGINS}{ENDS}])", text):
        if piece == BEGINS:
            start = at
        elif piece == ENDS:
            parts.append((start, at))
        else:
            at += len(piece)
    return parts


@lru_cache(1)  # a file of answers renders one template for each of its lines
def compiled(template: str) -> Any:
    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """{% generation %}: which part of a text the model wrote. marked() has marks put around it, render() none."""

        tags = {"generation"}  # noqa: RUF012, as the base class has it

        def parse(self, parser: Any) -> list[nodes.Node]:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            before, after = (nodes.Output([nodes.Name(f"generation_{at}", "load")]) for at in ("begins", "ends"))
            return [nodes.Scope([before, *body, after]).set_lineno(line)]

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
    return environment.from_string(template)
