"""The pages of the web site, assembled from where they stand in the repository: python docs/site/pages.py OUT

    README.md                     index.md
    docs/X.md                     guide/X.md             docs/zh.md     zh/index.md
    notebooks/NN_x.ipynb          course/NN_x.ipynb
    exercises/questions/en/a.md   questions/en/a.md
    README.md of a folder         index.md of its folder
    minilora/ops/lora.py          reference/minilora.ops.lora.md (reference.py), ex04_x.py exercises/en/ (exercises.py)
    any other file                files/..., a copy, where a page links to it

Links are written for the repository; here each leads to where its target stands on the site. A link to a file that is
not there is an error.
"""

import json
import posixpath
import re
import shutil
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import reference

import exercises

ROOT = Path(__file__).resolve().parents[2]

# What a page stands above, in the order of the menu; below any other index stand the pages that it links to.
MENU = {
    "index.md": ["course/index", "exercises/index", "questions/en/index", "guide/index", "reference/index", "zh/index"],
    "exercises/index.md": ["en/index", "TUTOR"],
    "zh/index.md": ["../exercises/zh/index", "../questions/zh/index"],
}


@cache
def generated() -> dict[str, str]:
    """The pages that are written anew: {path on the site: Markdown}."""
    return exercises.pages() | reference.pages()


def place(path: str) -> str:
    """Where a file or folder of the repository stands on the site; exercises have no page in the reference."""
    module = path.removesuffix("/__init__.py").removesuffix(".py").replace("/", ".")
    if f"reference/{module}.md" in generated():
        return f"reference/{module}.md"
    if path.endswith(".py") and f"exercises/en/{Path(path).stem}.md" in generated():
        return f"exercises/en/{Path(path).stem}.md"
    if path == "minilora/practice/exercises":
        return "exercises/en/index.md"
    if path == "docs/zh.md":
        return "zh/index.md"
    if not path.endswith((".md", ".ipynb")):
        return f"files/{path}"
    for here, there in (("docs/", "guide/"), ("notebooks/", "course/"), ("exercises/questions/", "questions/")):
        if path.startswith(here):
            path = there + path.removeprefix(here)
    return path.replace("README.md", "index.md")


CODE_OR_LINK = re.compile(
    r"^```.*?^```|\[([^]\n]*)\]\((?!https?:)([^)\s#]*)(?:#([^)\s]*))?\)", re.MULTILINE | re.DOTALL
)
QUESTION = re.compile(r'^(#+ )<a id="\w+"></a>', re.MULTILINE)  # the heading makes its anchor itself: conf.py, slug
MENTION = re.compile(r"(?<= · )notebook (\d\d)$", re.MULTILINE)  # below a question
NOTEBOOKS = {file.name[:2]: file.name for file in ROOT.glob("notebooks/[0-9]*.ipynb")}


def relinked(text: str, path: str, out: Path) -> str:
    """The Markdown of the file at `path`, with links that hold on the site; copies what is only linked to."""

    def moved(match: re.Match[str]) -> str:
        words, link, anchor = match.groups()
        if words is None:
            return match[0].replace("```python\n>>>", "```pycon\n>>>", 1)
        target = posixpath.normpath(posixpath.join(posixpath.dirname(path), link)) if link else path
        if not (ROOT / target).exists():
            raise SystemExit(f"{path} links to {link}, which is not there")
        new = place(target)
        if "/zh" in path:  # a page in Chinese, docs/zh.md among them
            new = new.replace("exercises/en/", "exercises/zh/")
        if new not in generated() and not new.endswith((".md", ".ipynb")):
            copy(ROOT / target, out / new)
        new = posixpath.relpath(new, posixpath.dirname(place(path)) or ".") if link else ""
        return f"[{words}]({new}{'#' * bool(anchor)}{anchor or ''})"

    text = MENTION.sub(lambda found: f"[{found[0]}](../../../notebooks/{NOTEBOOKS[found[1]]})", text)
    return CODE_OR_LINK.sub(moved, QUESTION.sub(r"\1", text))


def copy(source: Path, target: Path) -> None:
    if source.is_dir():
        raise SystemExit(f"a page links to the folder {source.relative_to(ROOT)}, which has no page on the site")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


BELOW = re.compile(r"\[([^]\n]*)\]\((?!\.\.|index\.)([\w/-]+)\.(?:md|ipynb)(#?)")


def toctree(page: str, text: str) -> str:
    """What the menu shows below an index page, by the name that its link has there, or else by its title."""
    linked = {target: f"{words} <{target}>" if not anchor else target for words, target, anchor in BELOW.findall(text)}
    return "\n".join(["", "```{toctree}", ":hidden:", "", *MENU.get(page, linked.values()), "```", ""])


def sources() -> Iterator[str]:
    """The repository's files that are pages."""
    for pattern in ("README.md", "docs/*.md", "notebooks/README.md", "notebooks/*.ipynb", "exercises/*.md"):
        yield from sorted(file.relative_to(ROOT).as_posix() for file in ROOT.glob(pattern))
    yield from sorted(file.relative_to(ROOT).as_posix() for file in ROOT.glob("exercises/questions/*/*.md"))


def assemble(out: Path) -> None:
    shutil.rmtree(out, ignore_errors=True)
    made = dict(generated())
    for path in sources():
        if path.endswith(".ipynb"):
            notebook = json.loads((ROOT / path).read_text(encoding="utf-8"))
            for cell in notebook["cells"]:
                if cell["cell_type"] == "markdown":
                    cell["source"] = relinked("".join(cell["source"]), path, out)
            made[place(path)] = json.dumps(notebook)
        else:
            text = relinked((ROOT / path).read_text(encoding="utf-8"), path, out)
            made[place(path)] = text + toctree(place(path), text) * place(path).endswith("index.md")
    for page, text in made.items():
        (out / page).parent.mkdir(parents=True, exist_ok=True)
        (out / page).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    assemble(Path(sys.argv[1]))
