"""The API: a page for each public module, an index for each room, and what Sphinx needs to read our docstrings.

Sphinx's autodoc takes the names and their docstrings from the package. Docstrings are plain English with indented
formulas: `to_rest` turns them into reST, so that a reader sees the same characters. Signatures are shown as they are
written, and so are the fields of a class and a module's constants, whose comments say their shapes.
"""

import ast
import inspect
import re
import sys
import textwrap
from functools import cache, cached_property
from importlib.util import find_spec
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any

import minilora

ROOT = Path(__file__).resolve().parents[2]
HIDDEN = "minilora.practice.exercises"  # they hold their solutions
OPTIONAL = [name for name in ("torch", "pytest") if find_spec(name) is None]  # what a file imports at its top

CLASS = "class", "exception"  # what autodoc calls one
VALUE = ast.Assign | ast.AnnAssign  # a constant, or a field of a class


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
                rest += ["\\ " + escaped(name), *indented(["\\ " + escaped(" ".join(text))])]
        else:
            rest += code(block, "pycon" if block[0].startswith(">>> ") else "text")
        rest += [""]
    return rest


def blocks(lines: list[str]) -> list[tuple[str, list[str]]]:
    """What stands between blank lines, and its kind: paragraph, list, table or literal. Literal blocks that follow each
    other are one."""
    found: list[tuple[str, list[str]]] = []
    for text in filter(None, re.split(r"\n(?:[ \t]*\n)+", "\n".join(lines).strip("\n").expandtabs())):
        if match := re.fullmatch(r"(\S.*\S) {2,}(\S.*\.)", text):  # a formula, and in the same line a sentence about it
            found += [("literal", [match[1]]), ("paragraph", [match[2]])]
            continue
        block = text.split("\n")
        kind = kind_of(block, first=not found)
        if kind == "literal" and found and found[-1][0] == kind:
            found[-1][1].extend(["", *block])
        else:
            found.append((kind, block))
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
    first = re.match(r"\S+(?: \S+)* {2,}", block[0])
    column = first.end() if first and len(block) > 1 else 0
    if not column or any(line[column - 2 : column] != "  " for line in block):
        return []
    found: list[list[str]] = []
    for line in block:
        found += [[line[:column].strip()]] if line[0] != " " else []
        found[-1].append(line[column:])
    return [] if any("  " in text or text.startswith(" ") for row in found for text in row) else found


def escaped(text: str) -> str:
    """A line of reST that shows `text`; what is in backticks is code."""
    parts = re.split(r"`([^`]+)`", text)
    parts[::2] = [re.sub(r"[\\*`|_@]|:(?!//)", r"\\\g<0>", part) for part in parts[::2]]
    parts[1::2] = [f"\\ ``{part}``\\ " for part in parts[1::2]]
    return "".join(parts)


def code(lines: list[str], language: str) -> list[str]:
    return [f".. code-block:: {language}", "", *indented(lines), ""] if lines else []


def indented(lines: list[str]) -> list[str]:
    return [f"   {line}" for line in lines]


def summary(docstring: str) -> str:
    """The first sentence, or the formulas that stand in its place, as reST."""
    (kind, block), *_ = blocks(docstring.splitlines()) or [("paragraph", [""])]
    if kind == "literal":
        return "\\ " + escaped(", ".join(re.split(r",? {2,}", "  ".join(block).strip())))
    return "\\ " + escaped(re.split(r"(?<=\.) (?=[A-Z])|:$", " ".join(block))[0])


# ---- the package, read as text


@cache
def modules() -> dict[str, Path]:
    """{dotted name: file} of the public modules; a room comes before what is in it."""
    paths = {path.relative_to(ROOT).with_suffix("").parts: path for path in (ROOT / "minilora").rglob("*.py")}
    names = {".".join(part for part in parts if part != "__init__"): path for parts, path in paths.items()}
    return {name: names[name] for name in sorted(names) if "._" not in name and not name.startswith(HIDDEN)}


def inside(room: str) -> list[str]:
    """The modules of a room."""
    return [name for name in modules() if name.rpartition(".")[0] == room]


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(modules()[module].read_text(encoding="utf-8"))


def definitions(module: str) -> list[ast.stmt]:
    """The statements that define a module's public names; of a name that is defined again, the first."""
    first = {name: node for node in reversed(tree(module).body) for name in public(node)}
    return [node for node in tree(module).body if any(first[name] is node for name in public(node))]


def public(node: ast.stmt) -> list[str]:
    """The public names that a statement defines."""
    return [name for name in names_of(node) if not name.startswith("_")]


def names_of(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    flat = [inner for target in targets for inner in (target.elts if isinstance(target, ast.Tuple) else [target])]
    return [inner.id for inner in flat if isinstance(inner, ast.Name)]


def definition(name: str) -> tuple[str, Any]:
    """The module of a name with dots, or the name itself if it is a module; and the node that defines it, or None."""
    module = max((module for module in modules() if f"{name}.".startswith(f"{module}.")), key=len)
    node: Any = tree(module)
    for part in filter(None, name.removeprefix(module).split(".")):
        node = next((inner for inner in getattr(node, "body", ()) if part in names_of(inner)), None)
    return module, node


def docstring(node: Any) -> str:
    """As it is written: inspect.cleandoc would move formulas to the left where nothing but formulas follows."""
    if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) or not ast.get_docstring(node):
        return ""
    return re.sub(f"(?m)^ {{{node.body[0].col_offset}}}", "", node.body[0].value.value)


def text_of(module: str, nodes: list[ast.stmt]) -> list[str]:
    """The lines of statements, with the comments above and beside them."""
    lines = modules()[module].read_text(encoding="utf-8").splitlines()
    found = []
    for node in nodes:
        start = node.lineno - 1
        while lines[start - 1].strip().startswith("#"):
            start -= 1
        found += lines[start : node.end_lineno]
    return textwrap.dedent("\n".join(found)).split("\n") if found else []


# ---- what autodoc asks


def docstring_as_rest(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    module, node = definition(name)
    fields = [inner for inner in node.body if isinstance(inner, VALUE) and public(inner)] if what in CLASS else []
    inherited = [] if what in CLASS else lines  # Python makes up a docstring for a NamedTuple that has none
    lines[:] = to_rest(docstring(node).splitlines() or inherited) + code(text_of(module, fields), "python")


def written_signature(app: Any, what: str, name: str, obj: Any, options: Any, *given: Any) -> tuple[str, str] | None:
    """The arguments as the source has them: Array, where Python knows numpy.ndarray. A class whose __init__ Python
    makes shows its fields instead."""
    if given[0] is None or what not in (*CLASS, "function", "method"):
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
    is_code = inspect.isroutine(obj) or isinstance(obj, property | cached_property | type)
    return True if what == "class" and not (is_code and getattr(obj, "__name__", name) == name) else None


def settle(app: Any, doctree: Any) -> None:
    """A name in a signature means what Python finds for it in that module."""
    for node in doctree.findall():
        node.document = doctree  # eval-rst's nodes have one of their own, and with it all that Sphinx knows: 5 MB
        if node.tagname == "pending_xref" and "refspecific" in node:
            try:
                found = attrgetter(node["reftarget"])(sys.modules[node["py:module"]])
                node["reftarget"] = f"{found.__module__}.{found.__qualname__}"
            except (AttributeError, KeyError):
                pass
            del node["refspecific"]  # or Sphinx takes any name with this end


def setup(app: Any) -> dict[str, bool]:
    app.connect("doctree-read", settle)
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
        lines += table([(f":py:mod:`~{name}`", sentence(name)) for name in inside(module)])
    for is_data, group in groupby(definitions(module), lambda node: isinstance(node, VALUE)):
        nodes: list[Any] = list(group)
        if is_data:
            lines += [".. py:data:: " + f"\n{' ' * 13}".join(name for node in nodes for name in public(node)), ""]
            lines += indented(code(text_of(module, nodes), "python"))
        else:
            for node in nodes:
                members = ["   :members:"] if isinstance(node, ast.ClassDef) else []
                lines += [f".. auto{'class' if members else 'function'}:: {node.name}", *members, ""]
    return markdown(module, lines, inside(module))


def sentence(module: str) -> str:
    return summary(docstring(tree(module)))


def front() -> str:
    """What `import minilora` shows, then the packages from the top level down."""
    objects = {name: getattr(minilora, name) for name in minilora.NAMES}
    shown = [(f":py:obj:`{n} <{obj.__module__}.{n}>`", summary(inspect.getdoc(obj))) for n, obj in objects.items()]
    house = [(f":py:mod:`~{name}`", sentence(name)) for name in floors()]
    lines = [".. automodule:: minilora", "", "What ``import minilora`` shows:", "", *table(shown)]
    lines += ["The packages, from the top level down; a file imports only from its own level or a lower one:", ""]
    return markdown("The code", lines + table(house), floors())


def floors() -> list[str]:
    """The packages, in the order of docs/architecture.md."""
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    cells = re.findall(r"^\| \d+ \| (.*?) \|", text, re.MULTILINE)
    return [f"minilora.{room}" for cell in cells for room in re.findall(r"`(\w+)(?:/|\.py)`", cell)]


def table(entries: list[tuple[str, str]]) -> list[str]:
    rows = [line for left, right in entries for line in (f"   * - {left}", f"     - {right}")]
    return [".. list-table::", "   :widths: auto", "   :class: names", "", *rows, ""]


def markdown(title: str, lines: list[str], below: list[str]) -> str:
    menu = [f"{name.rpartition('.')[2]} <{name}>" for name in below]
    toctree = ["```{toctree}", ":hidden:", "", *menu, "```", ""] if menu else []
    return "\n".join([f"# {title}", "", "```{eval-rst}", *lines, "```", "", *toctree])
