"""The Python of browsers itself, in node: Pyodide without NumPy, whose wheel for it is on no package index.

It says whether the double in tools/in_a_browser.py is right, compiles the package, and has the modules that it imports.
"""

import ast
import json
import shutil
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import in_a_browser
import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "minilora"
RUN = """
import {{ loadPyodide }} from {module};
const python = await loadPyodide();
python.mountNodeFS("/clone", {clone});
python.runPython({code});
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pyodide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of Pyodide's npm package."""
    npm = shutil.which("npm")
    if not npm or not shutil.which("node"):
        pytest.skip("needs node and npm: apt-get install nodejs npm")
    folder = tmp_path_factory.mktemp("npm")
    subprocess.run([npm, "install", "--prefix", folder, "pyodide@314.0.7"], check=True, timeout=300)
    return folder / "node_modules/pyodide"


@pytest.fixture
def run(pyodide: Path) -> Callable[[str], Any]:
    """Run code in Pyodide, beside this clone in /clone: the JSON that it prints last."""

    def run(code: str) -> Any:
        where = {"module": (pyodide / "pyodide.mjs").as_uri(), "clone": str(ROOT), "code": code}
        script = RUN.format(**{name: json.dumps(value) for name, value in where.items()})
        done = subprocess.run(
            ["node", "--input-type=module", "-e", script], capture_output=True, text=True, encoding="utf-8", timeout=300
        )
        assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run


def test_the_double_has_the_facts_of_pyodide_and_lacks_its_modules(run):
    code = """
import importlib.util, json, sys
sys.path.append("/clone/tests/tools")
from in_a_browser import facts
missing = [name for name in sys.stdlib_module_names if importlib.util.find_spec(name) is None]
print(json.dumps([facts(), missing]))
"""
    facts, missing = run(code)
    assert facts == in_a_browser.FACTS
    others = {"_winapi", "_wmi", "_overlapped", "msvcrt", "nt", "winreg", "winsound", "_scproxy"}  # Windows, macOS
    others |= {name for name in missing if name.endswith("_support")}  # _ios_support, ...
    assert set(missing) - others == set(in_a_browser.MODULES)


def test_every_file_compiles_without_a_warning(run):
    code = """
import json, pathlib, sys, warnings
warnings.simplefilter("error")
folders = pathlib.Path("/clone/minilora"), pathlib.Path("/clone/notebooks"), pathlib.Path("/clone/exercises")
files = [path for folder in folders for path in folder.rglob("*.py")]
for path in files:
    compile(path.read_text(encoding="utf-8"), str(path), "exec")
print(json.dumps([sys.version_info[:2], len(files)]))
"""
    version, files = run(code)
    assert version == [3, 14]
    assert files > 400


def imports(body: list[ast.stmt], lazy: bool) -> Iterator[str]:
    """The names of what the statements import, those inside of functions where `lazy`, else those outside."""
    for node in body:
        kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
        functions = [child for child in ast.walk(node) if isinstance(child, kinds)]
        inside = {id(child) for function in functions for child in ast.walk(function)}
        for child in ast.walk(node):
            if (id(child) in inside) == lazy and isinstance(child, ast.Import):
                yield from (alias.name for alias in child.names)
            elif (id(child) in inside) == lazy and isinstance(child, ast.ImportFrom) and not child.level:
                yield from (f"{child.module}:{alias.name}" for alias in child.names)


def imported(lazy: bool) -> set[str]:
    """What the package imports, "module" or "module:name", but for the twins of exercises, which are in PyTorch."""
    twins = {*PACKAGE.glob("practice/torch_*.py"), *PACKAGE.glob("practice/exercises/ex??t_*.py")}
    files = set(PACKAGE.rglob("*.py")) - twins
    return {name for path in files for name in imports(ast.parse(path.read_text(encoding="utf-8")).body, lazy)}


FAILED = """
import importlib, json, sys
failed = []
for name in {names}:
    module, _, attribute = name.partition(":")
    if module.partition(".")[0] not in sys.stdlib_module_names:
        failed.append(module.partition(".")[0])
        continue
    try:
        found = importlib.import_module(module)
        attribute and (hasattr(found, attribute) or importlib.import_module(module + "." + attribute))
    except ImportError:
        failed.append(module.partition(".")[0])
print(json.dumps(sorted(set(failed))))
"""


def packages(pyodide: Path) -> dict[str, Any]:
    """{name to import: entry} of the packages that come with Pyodide."""
    locked = json.loads((pyodide / "pyodide-lock.json").read_text(encoding="utf-8"))["packages"].values()
    return {name: entry for entry in locked for name in entry["imports"]}


def test_whatever_the_package_imports_when_it_is_imported_is_there(run, pyodide):
    assert set(run(FAILED.format(names=sorted(imported(lazy=False))))) <= set(packages(pyodide))


def test_what_functions_import_is_there_but_for_these(run, pyodide):
    known = {
        "msvcrt": "Windows",
        "resource": "the peak of memory, which is 0 without it",
        "cupy": "a GPU",
        "torch": "an autograd to compare with",
        "huggingface_hub": "downloads",
        "distributed": "a cluster",
        "tokenizers": "models of others",
        "gguf": "models of others",
        "watchfiles": "the loop of exercises, which needs threads",
        "latex2mathml": "slides",
        "nbconvert": "slides",
        "nbformat": "slides",
    }
    missing = set(run(FAILED.format(names=sorted(imported(lazy=True)))))
    assert missing - set(packages(pyodide)) == set(known)


def test_pyodide_brings_what_the_package_needs_and_lacks_what_the_double_lacks(pyodide):
    there = packages(pyodide)
    needs = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    for need in map(Requirement, needs):
        assert need.specifier.contains(there[need.name]["version"]), need
    assert not set(in_a_browser.PACKAGES) & set(there)


def test_the_process_knows_where_it_is_and_locks_folders(run):
    code = """
import json, os, sys
sys.path.append("/clone")
from minilora.process import BROWSER, folder_lock, keep_freed_memory, peak_memory
with folder_lock("runs/one") as killed:
    inside = os.listdir("runs/one")
keep_freed_memory()
print(json.dumps([BROWSER, peak_memory(), killed, inside, os.path.exists("runs")]))
"""
    assert run(code) == [True, 0, False, [".minilora.lock"], False]


def test_instructions_are_counted_from_the_first_time_on(run):
    code = """
import json, runpy
instructions = runpy.run_path("/clone/minilora/practice/measure.py")["instructions"]
print(json.dumps([instructions(lambda n: [i for i in range(n)], n) for n in (20, 40, 20)]))
"""
    first, more, again = run(code)
    assert 20 <= first == again <= more - 20
