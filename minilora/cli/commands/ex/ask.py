"""Interview questions: think, see the answer, grade yourself. What you did not know comes again tomorrow."""

from ...options import Add, Options
from . import folder, language

EXAMPLE = "minilora ex ask --topic B"


def arguments(add: Add) -> None:
    add("--topic", default="", metavar="LETTER", help="of one topic, such as B")
    add("--level", type=int, default=0, choices=[1, 2, 3, 4], help="of one level")
    add("--flash", action="store_true", help="only those that many texts answer wrongly")
    add("--anki", metavar="FILE", help="write them for Anki instead of asking (a text file that Anki imports)")
    folder(add)
    language(add)


def run(options: Options) -> None:
    from pathlib import Path

    from ....display.tables import wide_console
    from ....files import write_whole
    from ....practice.questions.anki import deck
    from ....practice.questions.ask import ask_here
    from ....practice.questions.catalogue import chosen
    from ....practice.workspace import language_of

    language = options.lang or language_of(options.dir)
    questions = chosen(options.topic, options.level, options.flash)
    if options.anki:
        write_whole(Path(options.anki), deck(questions, language))
        print(f"{len(questions)} questions in {options.anki}")
    else:
        ask_here(options.dir, questions, wide_console(), language)
