"""What a folder holds: family, shapes, adapter, hash of the base, a run or a sweep and how far it is."""

from ...display.tables import visible
from ..options import MODEL, Add, Options

EXAMPLE = "minilora info runs/demo"


def arguments(add: Add) -> None:
    add("folder", metavar="DIR", help=f"a folder with a model, an adapter or a run; or {MODEL}")


def run(options: Options) -> None:
    from ...adapters.peft import CONFIG, describe_adapter, locate_adapter
    from ...jobs.methods import RUNS, TASK, describe_methods
    from ...jobs.runs import SETTINGS, describe_run
    from ...jobs.sweep import CELLS, JSON, describe_sweep
    from ...models.describe import describe_model
    from ...models.sources import locate

    folder = locate(options.folder, (), ("config.json", CONFIG))
    found: dict[str, str] = {}
    if folder.is_file() or (folder / "config.json").is_file():
        found |= describe_model(options.folder)
    if (folder / CONFIG).is_file():
        found |= describe_adapter(locate_adapter(options.folder))
    if (folder / SETTINGS).is_file():
        found |= describe_run(folder)
    if (folder / JSON).is_file() or any(folder.glob(CELLS)):
        found |= describe_sweep(folder)
    if (folder / RUNS / TASK).is_file():
        found |= describe_methods(folder)
    if not found:
        raise FileNotFoundError(
            f"{folder} holds no model (config.json), adapter ({CONFIG}), run ({SETTINGS}), sweep ({JSON}) or "
            f"comparison ({RUNS}/{TASK})"
        )
    for name, value in found.items():
        print(f"{name:<12} {visible(value)}")
