"""The exercises in order, then those in PyTorch, and what you did in each."""

from ...models import print_json
from ...options import JSON, Add, Options
from . import folder, language, track

EXAMPLE = "minilora ex list --lang zh"


def arguments(add: Add) -> None:
    folder(add)
    track(add)
    language(add)
    add("--json", action="store_true", help=JSON)


def run(options: Options) -> None:
    from ....display.tables import wide_console
    from ....practice.catalogue import twins
    from ....practice.screen import listed, progress_bar, table, table_of_twins
    from ....practice.workspace import Workspace

    workspace = Workspace.found(options.dir)
    workspace.progress.language = options.lang or workspace.progress.language
    workspace.progress.track = options.track or workspace.progress.track
    order = workspace.order()
    if options.json:
        print_json(listed(workspace, order))
        return
    console = wide_console()
    console.print(table(workspace, order))
    console.print(progress_bar([workspace.progress.passed(number) for number in order]))
    if any(map(workspace.has, twins())):
        console.print(table_of_twins(workspace))
