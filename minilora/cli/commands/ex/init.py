"""Write the exercises into a folder: a file each, a README, TUTOR.md. What is there already is left as it is."""

from ...options import Add, Options
from . import language

EXAMPLE = "minilora ex init exercises --lang zh"


def arguments(add: Add) -> None:
    add("folder", metavar="DIR", nargs="?", default="exercises", help="a folder (default exercises)")
    language(add)
    add("--seed", metavar="NAME", help="other constants and data for each name, such as a student's")
    add("--exercises", metavar="N,N,...", help="these only (default all)")


def run(options: Options) -> None:
    from pathlib import Path

    from ....practice.catalogue import chosen
    from ....practice.workspace import initialise, seed_of

    folder = Path(options.folder)
    seed = seed_of(options.seed) if options.seed else 0
    tasks = chosen(options.exercises) if options.exercises else None
    written, left = initialise(folder, options.lang or "en", seed, tasks)
    print(
        f"{len(written)} files written to {folder}"
        + (f"; {len(left)} were there and are left as they are" if left else "")
    )
    where = "" if options.folder == "exercises" else f" --dir {folder}"
    print(f"begin with: minilora ex{where}")
