"""Continue a prompt."""

from ..models import load_model, located, sampling, shown
from ..options import Add, Options, add_generation

EXAMPLE = "minilora generate --adapter runs/demo --prompt 'def main(' --temperature 0.7"
SHARED = "--device", "--seed"


def arguments(add: Add) -> None:
    add_generation(add)
    add("--prompt", required=True, metavar="TEXT")


def run(options: Options) -> None:
    from ...jobs.bases import tokenizer_for
    from ...models.generation import stream

    base, adapter = located(options)
    model = load_model(base, adapter, options)
    tokenizer = tokenizer_for(base, adapter)
    pieces = stream(model, options.prompt, options.tokens, tokenizer=tokenizer, **sampling(options))
    print(shown(options.prompt.encode(errors="surrogateescape").decode(errors="replace")), end="", flush=True)
    try:
        for piece in pieces:
            print(shown(piece), end="", flush=True)
    finally:
        print()
