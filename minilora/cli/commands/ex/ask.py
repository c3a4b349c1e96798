"""Interview questions: think, see the answer, grade yourself. What you did not know comes again tomorrow."""

from ...options import Add, Options
from . import folder, language

EXAMPLE = "minilora ex ask --topic B"


def arguments(add: Add) -> None:
    add("--topic", default="", metavar="LETTER", help="of one topic, A to J")
    add("--level", type=int, default=0, choices=[1, 2, 3, 4], help="of one level")
    add("--flash", action="store_true", help="only those that are answered wrongly in many places")
    add("--anki", metavar="FILE", help="write them for Anki instead of asking (a text file that Anki imports)")
    folder(add)
    language(add)


def run(options: Options) -> None:
    from datetime import date
    from pathlib import Path

    from ....display.tables import wide_console
    from ....files import write_whole
    from ....practice.progress import Progress
    from ....practice.questions.anki import deck
    from ....practice.questions.ask import Asking
    from ....practice.questions.boxes import graded, order
    from ....practice.questions.catalogue import Question, chosen
    from ....practice.terminal import Events
    from ....practice.workspace import Workspace, language_of
    from ....verify.language import words

    language = options.lang or language_of(options.dir)
    questions, console = chosen(options.topic, options.level, options.flash), wide_console()
    if options.anki:
        write_whole(Path(options.anki), deck(questions, language))
        print(f"{len(questions)} questions in {options.anki}")
        return
    today = date.today()
    try:
        progress: Progress | None = Workspace.found(options.dir).progress
    except ValueError:
        progress = None
        console.print(words(UNKEPT).in_language(language) + "\n")

    def keep(question: Question, known: bool) -> None:
        if progress:
            progress.refresh()
            progress.cards[question.key] = graded(progress.cards.get(question.key), known, today)
            progress.save()

    asked = order(questions, progress.cards if progress else {}, today)
    with Events(progress.path.parent if progress else Path()) as events:
        known, of = Asking(console, events, language).ask(asked, keep)
    if not asked:
        console.print(words("Nothing is due today.").in_language(language))
    else:
        console.print(words("{known} of {of} known", known=str(known), of=str(of)).in_language(language))


UNKEPT = "What you knew is not kept here: `minilora ex init exercises` makes a folder for it."
