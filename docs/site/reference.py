"""The API: a page for each public module, an index for each room, and the extension of Sphinx that reads our docstrings.

Sphinx's autodoc takes the names and their docstrings from the package. Docstrings are plain English with indented
formulas: `to_rest` turns them into reST, so that a reader sees the same characters. Signatures are shown as they are
written, and so are the fields of a class and a module's constants, whose comments say their shapes.
"""

import ast
import importlib
import inspect
import re
import textwrap
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
HIDDEN = "minilora.practice.exercises"  # they hold their solutions
OPTIONAL = [name for name in ("torch", "pytest") if find_spec(name) is None]  # what a file imports at its top

Definition = ast.FunctionDef | ast.ClassDef | ast.Assign | ast.AnnAssign


# ---- docstrings as reST


def to_rest(lines: list[str]) -> list[str]:
    """The lines of a docstring as reST that shows them: indented and aligned blocks character for character."""
    rest = []
    for kind, block in blocks(lines):
        if kind == "paragraph":
            rest += ["\\ " + escaped(" ".join(block))]
        elif kind == "list":
            rest += ["- \\ " + escaped(item) for item in re.split(r"(?:^| )- ", " ".join(map(str.strip, block)))[1:]]
        elif kind == "table":
            for name, *text in rows(block):
                rest += ["\\ " + escaped(name), "   \\ " + escaped(" ".join(text))]
        else:
            rest += code(block, "pycon" if block[0].startswith(">>> ") else "text")
        rest += [""]
    return rest


def blocks(lines: list[str]) -> list[tuple[str, list[str]]]:
    """What stands between blank lines, and its kind: paragraph, list, table or literal. Literal blocks that follow each
    other are one."""
    found: list[tuple[str, list[str]]] = []
    for block in filter(None, re.split(r"\n(?:[ \t]*\n)+", "\n".join(lines).strip("\n").expandtabs())):
        kind, inside = kind_of(block.split("\n"), first=not found), block.split("\n")
        if kind == "literal" and found and found[-1][0] == kind:
            found[-1][1].extend(["", *inside])
        else:
            found.append((kind, inside))
    return found


def kind_of(block: list[str], first: bool) -> str:
    if block[0].startswith("- ") and all(line.startswith(("- ", "  ")) for line in block):
        return "list"
    if rows(block):
        return "table"
    if any(re.search(r"^ |\S {2,}\S", line) for line in block) or block[0].startswith(">>> "):
        return "literal"
    is_formula = first and len(block) == 1 and re.search(r" (=|->|←) ", block[0]) and not block[0].endswith(".")
    return "literal" if is_formula else "paragraph"


def rows(block: list[str]) -> list[list[str]]:
    """[[name, line of text, ...], ...] of a table of two columns, the second of them sentences; [] of another block."""
    starts = [match.end() for line in block if (match := re.match(r"\S+(?: \S+)* {2,}", line))]
    found: list[list[str]] = []
    for line in block:
        name, text = line[: max(starts, default=0)].strip(), line[max(starts, default=0) :]
        if text.startswith(" ") or "  " in text or "  " in name or not (name or found) or not text:
            return []
        found += [[name, text]] if name else []
        if not name:
            found[-1].append(text)
    return found if len(block) > 1 else []


def escaped(text: str) -> str:
    """A line of reST that shows `text`; what is in backticks is code."""
    parts = re.split(r"`([^`]+)`", text)
    parts[::2] = [re.sub(r"[\\*`|_@]|:(?!//)", r"\\\g<0>", part) for part in parts[::2]]
    parts[1::2] = [f"\\ ``{part}``\\ " for part in parts[1::2]]
    return "".join(parts)


def code(lines: list[str], language: str) -> list[str]:
    return [f".. code-block:: {language}", "", *textwrap.indent("\n".join(lines), "   ").split("\n"), ""] if lines else []


def summary(docstring: str) -> str:
    """The first sentence, or the first formula, as reST."""
    (kind, block), *_ = blocks(docstring.splitlines()) or [("paragraph", [""])]
    if kind == "literal":
        return escaped(f"`{re.split(' {2,}', block[0].strip())[0]}`")
    return "\\ " + escaped(re.split(r"(?<=\.) (?=[A-Z])", " ".join(block))[0])


# ---- the package, read as text


@cache
def modules() -> dict[str, Path]:
    """{dotted name: file} of the public modules; a room comes before what is in it."""
    paths = {path.relative_to(ROOT).with_suffix("").parts: path for path in (ROOT / "minilora").rglob("*.py")}
    names = {".".join(part for part in parts if part != "__init__"): path for parts, path in sorted(paths.items())}
    return {
        name: path for name, path in sorted(names.items()) if "._" not in name and not f"{name}.".startswith(f"{HIDDEN}.")
    }


def inside(room: str) -> list[str]:
    """The modules of a room."""
    return [name for name in modules() if name.rpartition(".")[0] == room]


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(modules()[module].read_text(encoding="utf-8"))


def definitions(module: str) -> dict[str, Definition]:
    """{public name: where it is defined}, in the order of the file."""
    return {name: node for node in tree(module).body for name in names_of(node) if not name.startswith("_")}


def names_of(node: ast.stmt) -> list[str]:
    """The names that a statement defines."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    flat = [inner for target in targets for inner in (target.elts if isinstance(target, ast.Tuple) else [target])]
    return [name.id for name in flat if isinstance(name, ast.Name)]


def definition(name: str) -> tuple[str, Any]:
    """The module of a name with dots, and the node that defines it there."""
    module = max((module for module in modules() if name.startswith(f"{module}.")), key=len)
    node: Any = tree(module)
    for part in name.removeprefix(f"{module}.").split("."):
        node = next(inner for inner in node.body if part in names_of(inner))
    return module, node


def text_of(module: str, nodes: list[ast.stmt]) -> list[str]:
    """The lines of statements, with the comments above and beside them."""
    lines = modules()[module].read_text(encoding="utf-8").splitlines()
    found = []
    for node in nodes:
        start = node.lineno - 1
        while lines[start - 1].strip().startswith("#"):
            start -= 1
        found += lines[start : node.end_lineno]
    return textwrap.dedent("\n".join(dict.fromkeys(found))).split("\n") if found else []


# ---- what autodoc asks


def docstring_as_rest(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    if what == "module" or what in ("function", "method", "property"):
        lines[:] = to_rest(lines)
        return
    module, node = definition(name)
    if what == "data":
        lines[:] = code(text_of(module, [node]), "python")
    else:  # a class: Python makes up a docstring for a NamedTuple or a dataclass that has none
        fields = [inner for inner in node.body if any(not field.startswith("_") for field in names_of(inner)[:1])]
        fields = [field for field in fields if not isinstance(field, ast.FunctionDef | ast.ClassDef)]
        lines[:] = to_rest((ast.get_docstring(node) or "").splitlines()) + code(text_of(module, fields), "python")


def written_signature(app: Any, what: str, name: str, obj: Any, options: Any, *given: Any) -> tuple[str, str] | None:
    """The arguments as the source has them: Array, where Python knows numpy.ndarray. A class whose __init__ Python
    makes shows its fields instead."""
    if what not in ("function", "method", "class", "exception"):
        return None
    try:
        source = inspect.getsource(obj.__init__ if isinstance(obj, type) else obj)
    except (OSError, TypeError):
        return "", ""
    function: Any = ast.parse(textwrap.dedent(source)).body[0]
    if what != "function" and "staticmethod" not in map(ast.unparse, function.decorator_list):
        function.args.args = function.args.args[1:]
    returns = function.returns and what in ("function", "method") and ast.unparse(function.returns)
    return f"({ast.unparse(function.args)})", returns or ""


def without_fields(app: Any, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Fields are shown with their comments, in one block below their class."""
    is_code = inspect.isroutine(obj) or isinstance(obj, property | type) or hasattr(obj, "__wrapped__")
    return True if what == "class" and not is_code and not hasattr(obj, "func") else None


def let_go(app: Any, doctree: Any) -> None:
    """Nodes of an eval-rst block keep a document of their own, and with it all that Sphinx knows: 5 MB in each file."""
    for node in doctree.findall():
        node.document = doctree


def setup(app: Any) -> dict[str, bool]:
    app.connect("doctree-read", let_go)
    app.connect("autodoc-process-docstring", docstring_as_rest)
    app.connect("autodoc-process-signature", written_signature)
    app.connect("autodoc-skip-member", without_fields)
    return {"parallel_read_safe": True}


# ---- the pages


def pages() -> dict[str, str]:
    made = {f"reference/{name}.md": page(name) for name in modules() if name != "minilora"}
    return made | {"reference/index.md": front()}


def page(module: str) -> str:
    lines = [f".. automodule:: {module}", ""]
    if inside(module):
        lines += table([(f":py:mod:`{name}`", sentence(name)) for name in inside(module)])
    for name, node in definitions(module).items():
        kind = {ast.FunctionDef: "function", ast.ClassDef: "class"}.get(type(node), "data")
        lines += [f".. auto{kind}:: {module}.{name}"]
        lines += ["   :no-value:"] if kind == "data" else ["   :members:"] if kind == "class" else []
        lines += [""]
    return markdown(module, lines, inside(module))


def sentence(module: str) -> str:
    return summary(ast.get_docstring(tree(module)) or "")


def front() -> str:
    """What `import minilora` shows, then the house from the top floor down."""
    import minilora

    shown = []
    for name, room in minilora.NAMES.items():
        obj = getattr(minilora, name)
        shown += [(f":py:obj:`{name} <{obj.__module__}.{name}>`", summary(inspect.getdoc(obj) or ""))]
    house = [(f":py:mod:`{name}`", sentence(name)) for name in floors()]
    lines = [".. automodule:: minilora", "", "What ``import minilora`` shows:", "", *table(shown)]
    lines += ["The house, from the top floor to the ground; a file imports only from its own floor or a lower one:", ""]
    return markdown("The code", lines + table(house), floors())


def floors() -> list[str]:
    """The rooms, in the order of docs/architecture.md."""
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    cells = re.findall(r"^\| \d+ \| (.*?) \|", text, re.MULTILINE)
    return [f"minilora.{room}" for cell in cells for room in re.findall(r"`(\w+)(?:/|\.py)`", cell)]


def table(entries: list[tuple[str, str]]) -> list[str]:
    rows = [line for left, right in entries for line in (f"   * - {left}", f"     - {right}")]
    return [".. list-table::", "   :widths: auto", "", *rows, ""]


def markdown(title: str, lines: list[str], below: list[str]) -> str:
    menu = ["```{toctree}", ":hidden:", "", *below, "```", ""] if below else []
    return "\n".join([f"# {title}", "", "```{eval-rst}", *lines, "```", "", *menu])
