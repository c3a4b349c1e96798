"""A variant of adapters is one file: nobody who reads, writes, counts or verifies adapters names one."""

import ast
import functools
from pathlib import Path

import minilora
from minilora.adapters.base import Adapter
from minilora.adapters.registry import variants

PACKAGE = Path(minilora.__file__).parent
ROOMS = "adapters/peft", "accounting", "verify", "jobs", "cli"
FILES = [path for room in ROOMS for path in sorted((PACKAGE / room).rglob("*.py")) if path.parent.name != "problems"]
LEFT = {
    "adapters/peft/layouts/mlx.py",  # mlx-lm's word for the type of its adapters
    "accounting/audit.py",  # a paper's tables, by the names of their rows
    *("jobs/demo.py", "jobs/demo_figure.py"),  # LoRA beside full fine-tuning, by these names in the report
}


def subclasses(cls: type) -> set[type]:
    return {cls}.union(*map(subclasses, cls.__subclasses__()))


@functools.cache
def classes_of_variants() -> set[str]:
    return {cls.__name__ for cls in subclasses(Adapter) if cls.variant in variants()}


def names_of_variants(path: Path) -> list[str]:
    """The lines of a file that name a variant, its file or one of its classes."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant):
            named = node.value if isinstance(node.value, str) and node.value in variants() else ""
        elif isinstance(node, ast.ImportFrom):
            named = next((p for p in (node.module or "").split(".") if p.replace("_", "-") in variants()), "")
        elif isinstance(node, ast.Name | ast.Attribute):
            named = node.id if isinstance(node, ast.Name) else node.attr
            named = named if named in classes_of_variants() else ""
        else:
            named = ""
        if named:
            found.append(f"line {getattr(node, 'lineno', 0)}: {named}")
    return found


def test_there_are_variants_and_rooms_to_look_into():
    assert {"LoRALinear", "TiedLoRALinear"} < classes_of_variants()
    assert {path.relative_to(PACKAGE).parts[0] for path in FILES} == {"adapters", "accounting", "verify", "jobs", "cli"}
    assert names_of_variants(PACKAGE / "adapters" / "attach.py")  # attach_lora is the LoRA case


def test_no_room_but_adapters_names_a_variant_or_asks_for_its_class():
    found = {path.relative_to(PACKAGE).as_posix(): names_of_variants(path) for path in FILES}
    assert {path: names for path, names in found.items() if bool(names) != (path in LEFT)} == {}
