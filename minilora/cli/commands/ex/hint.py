"""The next hint: two of them, and after a wrong attempt the mistakes that people make."""

from ...options import Add, Options
from . import folder, language

EXAMPLE = "minilora ex hint 04"


def arguments(add: Add) -> None:
    add("exercise", metavar="N", help="its number, such as 04")
    folder(add)
    language(add)


def run(options: Options) -> None:
    from ....display.tables import wide_console
    from ....practice.catalogue import exercise
    from ....practice.help import next_hint
    from ....practice.workspace import Workspace

    workspace = Workspace.found(options.dir)
    hint = next_hint(workspace, exercise(options.exercise))
    wide_console().print(hint.in_language(options.lang or workspace.progress.language))
