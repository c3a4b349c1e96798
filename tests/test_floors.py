"""The house: a file imports only from floors below its own, or from its own floor without a circle."""

import ast
import functools
import re
from pathlib import Path

import minilora

PACKAGE = Path(minilora.__file__).parent
FLOORS = [
    {"backend", "process", "spelling"},
    {"ops", "quantization"},
    {"files"},
    {"nn"},
    {"data"},
    {"models", "training"},
    {"adapters", "display"},
    {"accounting", "verify"},
    {"jobs", "practice"},
    {"cli", "__main__"},
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


@functools.cache
def imports(path: Path) -> set[str]:
    """The files of the package that `path` imports, as dotted names below minilora."""
    here = path.relative_to(PACKAGE).with_suffix("").parts
    here = here[:-1] if here[-1] == "__init__" else here
    package = here if path.name == "__init__.py" else here[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            start = package[: len(package) + 1 - node.level]
            if node.module:
                found.add(".".join((*start, *node.module.split("."))))
            else:
                found |= {".".join((*start, alias.name)) for alias in node.names}
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            assert not any(name.split(".")[0] == "minilora" for name in names), f"{path}: relative imports only"
    return found - {"__version__", "__doc__"}


def test_a_file_imports_from_no_floor_above_its_own():
    room_of = {path: path.relative_to(PACKAGE).with_suffix("").parts[0] for path in FILES}
    up = [
        (path, other) for path in FILES for other in imports(path) if FLOOR[other.split(".")[0]] > FLOOR[room_of[path]]
    ]
    assert not up


def test_every_room_is_in_the_house():
    assert {path.relative_to(PACKAGE).with_suffix("").parts[0] for path in FILES} == set(FLOOR)


def test_imports_make_no_circle():
    name_of = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in FILES}
    name_of |= {name.removesuffix(".__init__"): path for name, path in name_of.items()}
    finished: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, f"a circle: {' -> '.join((*trail, name))}"
        if name in name_of and name not in finished:
            for other in imports(name_of[name]):
                visit(other, (*trail, name))
            finished.add(name)

    for name in name_of:
        visit(name, ())


def test_the_adapter_and_the_transformer_do_not_know_each_other():
    assert not any(name.startswith("models") for name in imports(PACKAGE / "adapters" / "lora.py"))
    assert not any(name.startswith("adapters") for name in imports(PACKAGE / "models" / "transformer.py"))


def test_only_the_backend_names_cupy():
    named = [path.name for path in FILES if "import cupy" in path.read_text(encoding="utf-8")]
    assert named == ["backend.py"]


def test_every_folder_with_code_is_a_package_which_is_what_gets_installed():
    root = Path(__file__).parent.parent
    assert 'include = ["minilora*"]' in (root / "pyproject.toml").read_text(encoding="utf-8")
    assert all((path.parent / "__init__.py").is_file() for path in (root / "minilora").rglob("*.py"))


def test_tests_mirror_the_house_and_what_they_share_is_in_tools():
    tests = Path(__file__).parent
    assert {path.parent.name for path in tests.glob("*/*.py")} <= {*FLOOR, "tools"}
    for path in tests.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"^ *(from|import) (test_|conftest)", text, re.MULTILINE), f"{path} imports a test file"
