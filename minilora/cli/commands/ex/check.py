"""Check one exercise, or every one that was started. The exit code is 1 if one does not pass."""

from ...models import print_json
from ...options import JSON, Add, Options
from . import folder, language

EXAMPLE = "minilora ex check 04 --json"


def arguments(add: Add) -> None:
    add("exercise", nargs="?", metavar="N", help="its number, such as 04 (default: every one that was started)")
    folder(add)
    language(add)
    add("--file", metavar="FILE", help="a file elsewhere, as a student handed it in")
    add("--seed", metavar="NAME", help="other constants and data for each name (default: that of `ex init`)")
    add("--limit", type=float, default=10.0, metavar="S", help="seconds that one check may take (default 10)")
    add("--json", action="store_true", help=JSON)


def run(options: Options) -> int:
    from pathlib import Path

    from ....display.tables import wide_console
    from ....practice.catalogue import exercise
    from ....practice.screen import show_pictures, show_result
    from ....practice.worker import Worker
    from ....practice.workspace import Workspace, language_of, seed_of

    if options.file and not options.exercise:
        raise ValueError("say which exercise the file is: minilora ex check 04 --file FILE")
    workspace = None if options.file else Workspace.found(options.dir)
    progress = workspace.progress if workspace else None
    language = options.lang or language_of(options.dir)
    seed = seed_of(options.seed) if options.seed else progress.seed if progress else 0
    numbers = [options.exercise] if options.exercise or not workspace else workspace.started()
    console, passed, found = wide_console(), True, []
    with Worker(options.limit) as worker:
        for number in numbers:
            task = exercise(number)
            result = worker.check(
                task.number, workspace.path(task) if workspace else Path(options.file), language, seed
            )
            if workspace and progress:
                progress.add(result, workspace.text(task))
                progress.save()
            passed &= result.passed
            found.append(result.as_json())
            if not options.json:
                console.print(result.headline())
                show_result(console, result, language)
                show_pictures(console, result, language)
    if options.json:
        print_json(found[0] if options.exercise else found)
    return int(not passed)
