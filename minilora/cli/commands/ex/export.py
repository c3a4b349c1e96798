"""For a class: an nbgrader course, a zip for otter and Gradescope, a week of LoRA."""

from ...options import Add, Options

EXAMPLE = "minilora ex export --nbgrader course --exercises 01,04,10"


def arguments(add: Add) -> None:
    add("--nbgrader", metavar="DIR", help="a new folder: an nbgrader course with one assignment an exercise")
    add("--otter", metavar="FILE.zip", help="a Gradescope autograder that otter runs")
    add(
        "--pack",
        nargs=2,
        metavar=("NAME", "DIR"),
        help="lora-week, into a new folder: slides, lab, problem set, rubric",
    )
    add("--exercises", metavar="N,N,...", help="which exercises (default all)")


def run(options: Options) -> None:
    raise NotImplementedError
