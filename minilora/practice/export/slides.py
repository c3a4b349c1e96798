"""A notebook as slides: one HTML file that fetches nothing. nbconvert renders the cells, formulas become MathML.

A cell's metadata may hold "notes", for the teacher: the key n shows them.

nbconvert's own slides load reveal.js, require.js, jQuery, MathJax and fonts from four hosts, so that a room without a
network sees unformatted TeX. Browsers draw MathML themselves, and turning pages takes a few lines.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LONG = 8  # lines of code that are folded away where there is a result to look at

PAGE = """<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
{css}
html {{ scroll-snap-type: y proximity; font: min(2.9vh, 1.65vw)/1.4 system-ui, sans-serif; color: #1a1a1a }}
body {{ margin: 0; counter-reset: slide }}
section {{ min-height: 100vh; box-sizing: border-box; padding: 2em max(3em, calc(50vw - 28em)); position: relative;
  display: flex; flex-direction: column; justify-content: center; counter-increment: slide; scroll-snap-align: start }}
section::after {{ content: counter(slide); position: absolute; right: 1em; bottom: .6em; color: #767676 }}
section + section {{ border-top: 1px solid #ddd }}
code {{ font: .85em ui-monospace, monospace }}
pre {{ font: .74rem/1.4 ui-monospace, monospace }} /* 120 columns fit */
pre {{ overflow-x: auto; margin: .5em 0 }}
.highlight {{ background: #f6f6f6; padding: .2em .4em; border-radius: .3em }}
summary {{ color: #0b57a4; cursor: pointer }}
img {{ max-width: 100%; max-height: 75vh; display: block; margin: auto }}
table {{ border-collapse: collapse }} td, th {{ padding: .2em .8em; border-bottom: 1px solid #ccc; text-align: left }}
aside {{ display: none; background: #fff8dc; padding: .2em 1em; font-size: .8em }} .notes aside {{ display: block }}
@media print {{ section {{ break-after: page; border: 0 }} }}
</style>
{slides}
<script>
const slides = [...document.querySelectorAll("section")];
const turn = {{ArrowRight: 1, ArrowDown: 1, PageDown: 1, " ": 1, ArrowLeft: -1, ArrowUp: -1, PageUp: -1}};
addEventListener("keydown", event => {{
  if (event.key === "n") document.body.classList.toggle("notes");
  const step = turn[event.key];
  if (!step || event.target.tagName === "SUMMARY") return;
  const now = slides.findLastIndex(slide => slide.getBoundingClientRect().top < innerHeight / 2);
  const box = slides[now].getBoundingClientRect();
  if (step > 0 ? box.bottom > innerHeight + 9 : box.top < -9) return;  // the rest of a long slide first
  event.preventDefault();
  slides[Math.min(Math.max(now + step, 0), slides.length - 1)].scrollIntoView();
}});
</script>
</html>
"""


def need_nbconvert() -> Any:
    """nbconvert's exporter, which renders a cell. Raises ImportError without the extra [notebooks]."""
    try:
        return html_exporter()
    except ImportError:
        raise ImportError("slides need nbconvert and latex2mathml: pip install '.[notebooks]' in the clone") from None


def slides(path: Path) -> bytes:
    """The page. Raises ImportError without the extra [notebooks]."""
    exporter = need_nbconvert()
    import nbformat
    from pygments.formatters import HtmlFormatter

    book = nbformat.read(path, as_version=4)
    shown = "\n".join(f'<section id="{n}">{page}</section>' for n, page in enumerate(pages(book, exporter), 1))
    css = HtmlFormatter().get_style_defs(".highlight")
    return PAGE.format(title=html.escape(headings(path)[0]), css=css, slides=shown).encode()


def pages(book: Any, exporter: Any) -> Iterator[str]:
    """The HTML of each slide: of a text up to its next heading, of a cell of code with its result."""
    for cell in book.cells:
        texts = re.split(r"\n(?=#+ )", cell.source) if cell.cell_type == "markdown" else [cell.source]
        texts = list(filter(str.strip, texts))
        for text in texts:
            one = cell.copy()
            one.source = text
            body = exporter.from_notebook_node(type(book)(book | {"cells": [one]}))[0]
            if cell.cell_type == "code" and cell.outputs and text.count("\n") >= LONG:
                code, result = body.split('<div class="output_wrapper">')
                body = f'<details><summary>code</summary>{code}</div></details><div class="output_wrapper">{result}'
            if text is texts[-1] and "notes" in cell.metadata:
                body += f"<aside>{exporter.markdown2html(cell.metadata['notes'])}</aside>"
            yield body


def html_exporter() -> Any:
    """nbconvert's exporter to HTML, with formulas as MathML."""
    from latex2mathml.converter import convert
    from nbconvert import HTMLExporter
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

    class Renderer(IPythonRenderer):
        def inline_math(self, body: str) -> str:
            return convert(body)

        def block_math(self, body: str) -> str:
            return convert(body, display="block")

    class Exporter(HTMLExporter):
        def markdown2html(self, source: str) -> str:
            return MarkdownWithMath(renderer=Renderer(escape=False, exclude_anchor_links=True)).render(source)

    return Exporter(template_name="basic", exclude_input_prompt=True, exclude_output_prompt=True)


def headings(path: Path) -> list[str]:
    """The title of a notebook and of its sections."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    texts = ("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    return [line.lstrip("# ") for text in texts for line in text.splitlines() if re.match("#+ ", line)]
