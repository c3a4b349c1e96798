"""docs/site/reference.py: pages of the API, whose text is that of the docstrings."""

import ast
import re
from pathlib import Path

import examples
import pytest
import reference

import minilora
from minilora.ops.lora import LoRACache, lora_forward

ROOT = Path(__file__).parent.parent
FILES = {
    ".".join(part for part in path.relative_to(ROOT).with_suffix("").parts if part != "__init__"): path
    for path in (ROOT / "minilora").rglob("*.py")
}
PUBLIC = {
    name for name in FILES if not name.startswith("minilora.practice.exercises") and not name.endswith("__main__")
}


@pytest.fixture(scope="module")
def pages():
    return reference.pages()


@pytest.fixture(scope="module")
def docstrings():
    """[(docstring, its blocks, its reST), ...] of the whole package."""

    def inside(node):
        yield reference.docstring(node)
        for inner in node.body:
            if isinstance(inner, ast.FunctionDef | ast.ClassDef):
                yield from inside(inner)

    texts = [text for name in examples.some_of(sorted(PUBLIC)) for text in inside(reference.tree(name)) if text]
    assert len(texts) > (2000 if examples.every else 400)
    return [(text, reference.blocks(text.splitlines()), reference.to_rest(text.splitlines())) for text in texts]


def shown(rest):
    """What a reader sees of reST: literal blocks as they are; paragraphs without escapes and marks of code."""
    literal = False
    for line in rest:
        if (line and not line.startswith("   ")) or line.startswith("   \\ "):
            literal = line.startswith(".. code-block::")
        if literal:
            yield line[3:] if line.startswith("   ") else ""
        else:
            parts = re.split(r"\\ ``(.+?)``\\ ", line.strip().removeprefix("- ").removeprefix("\\ "))
            yield "".join(re.sub(r"\\(.)", r"\1", part) if i % 2 == 0 else part for i, part in enumerate(parts))


def words(text):
    return re.sub(r"^- |`", "", text, flags=re.MULTILINE).split()


def test_no_word_of_a_docstring_is_lost_or_changed(docstrings):
    for text, _, rest in docstrings:
        assert words("\n".join(shown(rest))) == words(text)


def test_indented_and_aligned_lines_keep_their_characters(docstrings):
    for text, blocks, rest in docstrings:
        literal = {line for kind, block in blocks if kind == "literal" for line in block}
        assert literal <= {*shown(rest)}
        aligned = {line for kind, block in blocks if kind == "table" for line in block}
        assert {line for line in text.splitlines() if line.startswith("    ")} <= literal | aligned


def test_no_markup_survives_outside_of_code(docstrings):
    for _, blocks, rest in docstrings:
        for block in (" ".join(block) for kind, block in blocks if kind == "paragraph"):
            line = "\\ " + reference.escaped(block)
            assert line in rest
            assert not re.search(r"[*`|_\\]|::", re.sub(r"\\ ``.+?``\\ |\\.", "", line))


@pytest.mark.parametrize(
    ("docstring", "rest"),
    [
        (["*args, x_ and |x|: a `name`s end::"], [r"\ \*args, x\_ and \|x\|\: a \ ``name``\ s end\:\:", ""]),
        (["1. is no list", "and goes on"], [r"\ 1. is no list and goes on", ""]),
        (["h = x Aᵀ        y = s h Bᵀ"], [".. code-block:: text", "", "   h = x Aᵀ        y = s h Bᵀ", "", ""]),
        (["dA = dhᵀ x"], [".. code-block:: text", "", "   dA = dhᵀ x", "", ""]),
        (["y = x W.  The cache is x."], [".. code-block:: text", "", "   y = x W.", "", "", r"\ The cache is x.", ""]),
        (["    a", "", "      b"], [".. code-block:: text", "", "       a", "   ", "         b", "", ""]),
        ([">>> 1 + 1", "2"], [".. code-block:: pycon", "", "   >>> 1 + 1", "   2", "", ""]),
        (["- one", "  more", "- two"], [r"- \ one more", r"- \ two", ""]),
        (["r    its rank", "s    α/r", "     of r"], [r"\ r", r"   \ its rank", r"\ s", r"   \ α/r of r", ""]),
        (["See https://a.org/b_c."], [r"\ See https://a.org/b\_c.", ""]),
    ],
)  # fmt: skip
def test_a_docstring_as_rest(docstring, rest):
    assert reference.to_rest(docstring) == rest


@pytest.mark.slow
def test_every_public_module_has_a_page_and_no_exercise_has_one(pages):
    assert {*pages} == {f"reference/{name}.md" for name in PUBLIC - {"minilora"}} | {"reference/index.md"}
    assert not [page for page, text in pages.items() if "practice.exercises" in text]


@pytest.mark.slow
def test_a_page_has_the_public_names_that_its_file_defines(pages):
    for name in PUBLIC - {"minilora"}:
        shown = re.findall(r"^\.\. auto(?:function|class):: (\w+)$", pages[f"reference/{name}.md"], re.MULTILINE)
        defined = [node.name for node in reference.tree(name).body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
        assert shown == [name for name in defined if not name.startswith("_")]


@pytest.mark.slow
def test_constants_are_shown_with_their_comments(pages):
    text = pages["reference/minilora.backend.md"]
    assert ".. py:data:: Array\n             Rng\n" in text
    assert "Array: TypeAlias = np.ndarray  # or a cupy.ndarray" in text
    assert "_ = " not in pages["reference/minilora.nn.md"]


@pytest.mark.slow
def test_a_room_lists_what_is_in_it_and_the_house_every_room(pages):
    for name in PUBLIC - {"minilora"}:
        room = name.rpartition(".")[0]
        index = pages["reference/index.md" if room == "minilora" else f"reference/{room}.md"]
        assert f":py:mod:`~{name}`" in index
        assert f"\n{name.rpartition('.')[2]} <{name}>\n" in index.partition("```{toctree}")[2]


@pytest.mark.slow
def test_the_front_shows_what_import_minilora_shows_before_the_house(pages):
    front = pages["reference/index.md"]
    shown = re.findall(r":py:obj:`(\w+) <(minilora[\w.]+)>`", front)
    assert [name for name, _ in shown] == [*minilora.NAMES]
    assert all(f":: {name}\n" in pages[f"reference/{home.rpartition('.')[0]}.md"] for name, home in shown)
    assert front.index(":py:obj:") < front.index(":py:mod:")
    assert "load it as \\ ``name``\\ ; return {dotted path of a layer\\: its Layer}.\n" in front


def test_signatures_are_those_of_the_source():
    def signature(what, obj):
        return reference.written_signature(None, what, "", obj, None, "(...)", "")

    assert signature("function", lora_forward) == (
        "(x: Array, A: Array, B: Array, s: float)",
        "tuple[Array, LoRACache]",
    )
    assert signature("method", minilora.Linear.forward)[0].startswith("(x: Array, inputs: Inputs=Inputs()")
    assert signature("class", LoRACache) == ("", "")
    assert reference.written_signature(None, "exception", "", ValueError, None, None, "") is None


def test_fields_are_shown_with_their_comments():
    lines = [LoRACache.__doc__]
    reference.docstring_as_rest(None, "class", "minilora.ops.lora.LoRACache", LoRACache, None, lines)
    assert lines[0] == ".. code-block:: python"
    assert "   x: Array  # (..., in)   for dA" in lines
    assert not any("Cache(" in line for line in lines)
