"""Ninety minutes, seven exercises, new constants each time; ten quick questions and a card at the end."""

from ...options import Add, Options
from . import folder, language

EXAMPLE = "minilora ex sprint"


def arguments(add: Add) -> None:
    folder(add)
    language(add)
    add("--minutes", type=float, default=90.0, metavar="N", help="how long (default 90)")
    add("--limit", type=float, default=10.0, metavar="S", help="seconds that one check may take (default 10)")


def run(options: Options) -> None:
    from ....display.tables import wide_console
    from ....practice.sprint import Sprint, prepare
    from ....practice.terminal import Events
    from ....practice.worker import Worker
    from ....practice.workspace import Workspace

    base, console = Workspace.found(options.dir), wide_console()
    workspace = prepare(base, options.lang or base.progress.language)
    with Worker(options.limit) as worker, Events(workspace.folder) as events:
        sprint = Sprint(workspace, worker, console, options.minutes, base.progress)
        sprint.run(events)
        sprint.flash(events)
    sprint.finish()
