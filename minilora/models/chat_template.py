"""Chat templates: programs in Jinja that come with a tokenizer. They run in Jinja's sandbox, as in `transformers`.

The sandbox keeps a template from files and from Python's internals. It bounds neither time nor memory.
"""

from __future__ import annotations

import json
from datetime import datetime
from functools import lru_cache
from typing import Any


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


@lru_cache(1)  # a file of answers renders one template for each of its lines
def compiled(template: str) -> Any:
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
    return environment.from_string(template)
