"""For a class: an nbgrader course, a zip for otter and Gradescope, a week of LoRA."""

import re

from ...options import Add, Options

EXAMPLE = "minilora ex export --nbgrader course --exercises 01,04,10"


def arguments(add: Add) -> None:
    add("--nbgrader", metavar="DIR", help="a new folder: an nbgrader course with a notebook an exercise")
    add("--otter", metavar="FILE.zip", help="an autograder for Gradescope, and beside it FILE.ipynb for the students")
    add(
        "--pack",
        nargs=2,
        metavar=("NAME", "DIR"),
        help="lora-week, into a new folder: slides, lab, problem set, rubric, oral questions",
    )
    add("--exercises", metavar="N,N,...", help="which exercises (default all but those in PyTorch)")
    add("--assignment", metavar="NAME", default="exercises", help="the name of the assignment (default exercises)")
    add("--requirement", metavar="TEXT", default="minilora", help="what pip installs on Gradescope (default minilora)")
    add("--lang", choices=["en", "zh"], default="en", help="English or Chinese (default en)")
    add("--seed", metavar="NAME", help="other constants and data for each name, such as a class or a student")


def run(options: Options) -> None:
    from ....practice.catalogue import chosen, exercise
    from ....practice.export import nbgrader, otter, pack
    from ....practice.export.notebook import Setting
    from ....practice.tracks import full_path
    from ....practice.workspace import seed_of

    given = [name for name in ("nbgrader", "otter", "pack") if getattr(options, name)]
    if len(given) != 1:
        raise ValueError(f"give one of --nbgrader, --otter and --pack: {len(given)} were given")
    if not re.fullmatch(r"[\w-]+", options.assignment):
        raise ValueError(f"--assignment {options.assignment!r} names a folder: give letters, digits, - and _ only")
    seed = seed_of(options.seed) if options.seed else 0
    setting = Setting(options.lang, seed, options.assignment, options.requirement)
    if options.pack:
        if options.exercises:
            raise ValueError("--exercises does not go with --pack, which has exercises of its own: leave it out")
        name, folder = options.pack
        absent = pack.write(name, folder, setting)
        print(f"{folder}: begin with README.md" + (f"; not in this version yet: {', '.join(absent)}" if absent else ""))
        return
    wanted = [each.number for each in chosen(options.exercises)] if options.exercises else sorted(full_path())
    tasks = [exercise(number) for number in wanted]
    if options.nbgrader:
        nbgrader.write(options.nbgrader, tasks, setting)
        print(f"{len(tasks)} notebooks: cd {options.nbgrader} && nbgrader generate_assignment {options.assignment}")
    else:
        otter.write(options.otter, tasks, setting)
        print(f"{options.otter}: upload it to Gradescope; its students get {options.otter.removesuffix('.zip')}.ipynb")
