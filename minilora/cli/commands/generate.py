"""Continue a prompt, or each prompt of a file.

With --data each row gives a line of JSON, in the order of the rows: {"prompt": ..., "continuation": ..., "tokens": the
number that was added, "end": "stop" where the model ended the text, or "length"}. Several are read at a time; each is
continued as alone.
"""

import sys
import time

from ...jobs.arguments import positive_int
from ...jobs.settings import ENCODING, SKIP_EMPTY
from ..models import load_model, located, sampling, shown
from ..options import Add, Options, add_generation

EXAMPLE = "minilora generate --adapter runs/demo --prompt 'def main(' --temperature 0.7"
SHARED = "--device", "--seed"
OF_DATA = "out", "resume", "chat", "skip_empty"  # options that say nothing of a single prompt


def arguments(add: Add) -> None:
    add_generation(add)
    add("--prompt", metavar="TEXT", help="what to continue")
    add("--data", metavar="FILE", help="a .csv, .tsv, .jsonl or .json: a prompt in each row")
    add("--text", default="text", metavar="NAME", help="the column of the prompts (default text)")
    add("--encoding", default="utf-8", metavar="NAME", help=ENCODING)
    add("--skip-empty", action="store_true", help=SKIP_EMPTY)
    add("--chat", action="store_true", help="each prompt is a message, which the model answers (its chat template)")
    add("--batch", type=positive_int, default=16, metavar="N", help="prompts that are read at a time (default 16)")
    add("--out", metavar="FILE", help="a new file of JSON lines (default: standard output)")
    add("--resume", action="store_true", help="continue where the same command with --out was stopped")


def run(options: Options) -> None:
    if (options.prompt is None) == (options.data is None):
        raise ValueError("give either --prompt TEXT or --data FILE")
    if options.data is not None:
        continue_rows(options)
        return
    if wrong := next((name for name in OF_DATA if getattr(options, name)), None):
        raise ValueError(f"--{wrong.replace('_', '-')} goes with --data: leave it out")
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


def continue_rows(options: Options) -> None:
    from pathlib import Path

    from ...data import check_encoding
    from ...data.records import read_records
    from ...jobs.bases import tokenizer_for
    from ...jobs.generation import as_line, continued, encode, lines_done, write_lines
    from ...models.generation import Sampling
    from ...spelling import counted

    if options.resume and options.out is None:
        raise ValueError("--resume goes on with the lines of --out: give both")
    check_encoding(options.encoding)
    prompts = read_records(options.data, options.text, None, options.encoding, options.skip_empty).texts
    base, adapter = located(options)
    tokenizer = tokenizer_for(base, adapter)
    ids = encode(prompts, tokenizer, options.chat)
    out = None if options.out is None else Path(options.out)
    done = 0 if out is None else lines_done(out, prompts, options.resume)
    model = load_model(base, adapter, options)
    found = continued(
        model, prompts, ids, options.tokens, tokenizer, Sampling(**sampling(options)), options.batch, done
    )
    start, tokens = time.perf_counter(), 0
    if out is None:
        for one in found:
            print(shown(as_line(one).rstrip("\n")), flush=True)
            tokens += one.tokens
    else:
        tokens = write_lines(out, found, done, len(prompts))
    seconds = time.perf_counter() - start
    each = f"{tokens:,} tokens in {seconds:.1f} s, {tokens / max(seconds, 1e-9):.0f} a second"
    print(f"minilora: {counted(len(prompts) - done, 'prompt')}, {each}", file=sys.stderr)
