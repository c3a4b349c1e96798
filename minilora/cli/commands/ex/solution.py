"""The solution of an exercise that you passed: its code, its derivation, and how yours differs."""

from ...options import Add, Options
from . import folder, language

EXAMPLE = "minilora ex solution 04"


def arguments(add: Add) -> None:
    add("exercise", metavar="N", help="its number, such as 04")
    folder(add)
    language(add)
    add("--spoil", action="store_true", help="also where it is not passed")


def run(options: Options) -> None:
    from ....practice.catalogue import exercise
    from ....practice.help import solution
    from ....practice.workspace import Workspace

    workspace = Workspace.found(options.dir)
    language = options.lang or workspace.progress.language
    print(solution(workspace, exercise(options.exercise), language, options.spoil))
