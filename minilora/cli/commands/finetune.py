"""Fine-tune a model with LoRA, or a variant of it: on a text, on answers to prompts, or to classify."""

import shlex
from dataclasses import fields

from ...jobs.settings import TASKS
from ...process import keep_freed_memory
from ..models import backend
from ..options import ADAPTER, CLASSIFYING, COLUMNS, MODEL, TUNING, Add, Options, add_settings, job_options

EXAMPLE = "minilora finetune --base builtin --data notes.txt --targets q_proj,v_proj --rank 8 --out runs/notes"
HOLDS = """adapter_config.json, adapter_model.safetensors, settings.json, history.json, checkpoint.safetensors;
  samples.json (before and after), or to classify scores.json and curves.png; with --watch forgetting.png; with
  --add-tokens the tokenizer's files"""
SHARED = "--out", "--resume", "--device", "--seed", "--shards"
DATA = "a file; or builtin, Python's own source; to classify, rotten_tomatoes or imdb"


def arguments(add: Add) -> None:
    what = """text (default): --data is a text; instruct: conversations in JSON, as messages, Alpaca's, ShareGPT's or
    {"prompt": "...", "answer": "..."}; classify: rows of a table, or JSON, with a text and its label"""
    add("--base", metavar="MODEL", help=f"{MODEL} (default builtin, or the base of the adapter of --from)")
    add("--from", dest="start", metavar="ADAPTER", help=f"continue from {ADAPTER}, with its options")
    add("--task", choices=[*TASKS], default="text", help=what)
    add_settings(add, "rank")
    add("--data", required=True, metavar="FILE", help=DATA)
    add_settings(add, *TUNING, *CLASSIFYING, *COLUMNS, "held_out", "add_tokens", "watch")


def run(options: Options) -> None:
    keep_freed_memory()
    from ...jobs.data import print_data
    from ...jobs.finetuning import finetune, task_named

    task, given = task_named(options.task), job_options(options)
    known = {"base", "data", "out", "task", "resume", "start", *(field.name for field in fields(task.settings_type))}
    unread = next((name for name in given if name not in known), None)
    if unread:
        raise ValueError(f"--task {options.task} does not read --{unread.replace('_', '-')}: leave it out")
    task.print_report(finetune(backend=backend(options), show_data=print_data, **given))
    print(f"written to {options.out}; now try")
    print(f"  minilora {task.next_command} --adapter {shlex.quote(options.out)}")
