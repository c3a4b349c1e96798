"""Write base and adapter as one model."""

from contextlib import suppress

from ...quantization import STORED, format_names
from ..models import load_model, located
from ..options import ADAPTER, Add, Options, add_base_of_adapter

EXAMPLE = "minilora merge --adapter runs/demo --out runs/merged"
HOLDS = "config.json, model.safetensors, the tokenizer's files"
SHARED = "--out", "--device"


def arguments(add: Add) -> None:
    add("--adapter", required=True, metavar="ADAPTER", help=ADAPTER)
    add_base_of_adapter(add)
    dtypes = ["float32", *(name for name in format_names() if name != STORED)]
    add("--dtype", choices=dtypes, default="float32", help="format of the matrices; its loss is printed before")
    add("--anyway", action="store_true", help="merge even if less than half of the adapter is kept")


def run(options: Options) -> None:
    from ...adapters.merge import merge
    from ...files import check_free, write_folder
    from ...jobs.bases import tokenizer_for
    from ...jobs.merging import check_merge
    from ...models.pretrained import tokenizer_files
    from ...models.quantized import convert
    from ...models.saving import model_files, reads_last_token

    check_free(options.out)
    base, adapter = located(options)
    model, tokenizer = load_model(base, adapter, options), None
    if reads_last_token(model):
        with suppress(FileNotFoundError):  # a base without one
            tokenizer = tokenizer_for(base, adapter)
    if options.dtype != "float32":
        check_merge(model, options.dtype, options.anyway)
    paths = merge(model)
    convert(model, options.dtype)
    files = tokenizer_for(base, adapter).files() if model.added_tokens else tokenizer_files(base)
    write_folder(options.out, model_files(model, tokenizer) | files)
    print(f"{len(paths)} adapters merged; written to {options.out}")
