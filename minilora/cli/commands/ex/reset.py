"""Write the file of an exercise anew. Your attempt is kept in attempts/."""

from ...options import Add, Options
from . import folder

EXAMPLE = "minilora ex reset 04"


def arguments(add: Add) -> None:
    add("exercise", metavar="N", help="its number, such as 04")
    folder(add)


def run(options: Options) -> None:
    from ....practice.catalogue import sheet
    from ....practice.workspace import Workspace

    workspace, task = Workspace.found(options.dir), sheet(options.exercise)
    kept = workspace.reset(task)
    print(f"{workspace.path(task)} is as it was at the start" + (f"; your attempt is {kept}" if kept else ""))
