"""Sphinx's settings. site/pages.py makes the pages that it reads, `make html` runs both."""

import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

from docutils import nodes

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "site"))

import lite  # noqa: E402
import reference  # noqa: E402

import minilora  # noqa: E402

project = "minilora"
version = release = minilora.__version__
copyright = "the minilora authors, MIT licence"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.viewcode",
    "sphinx.ext.mathjax",
    "sphinx_copybutton",
    "reference",
    "search",
]
autodoc_mock_imports = reference.OPTIONAL
autodoc_default_options = {"undoc-members": True, "member-order": "bysource", "show-inheritance": True}
autodoc_docstring_signature = False  # a docstring may begin with a formula that looks like one
autodoc_typehints_format = "short"
add_module_names = False
toc_object_entries_show_parents = "hide"
python_maximum_signature_line_length = 88
viewcode_follow_imported_members = False  # each is shown where it is defined
smartquotes = False  # the pages say what their sources say: --lr is no dash
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 4
myst_heading_slug_func = "conf.slug"
nb_execution_mode = "off"  # the stored outputs are shown; notebooks/build.py --check runs every notebook
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
highlight_language = "text"

html_theme = "pydata_sphinx_theme"
html_title = "minilora"
(MATHJAX,) = importlib.util.find_spec("sphinx-mathjax-offline").submodule_search_locations  # its files, as a package
html_static_path = ["static", f"{MATHJAX}/static"]
mathjax_path = "mathjax/tex-chtml.js"
html_css_files = ["custom.css"]
html_favicon = "static/icon.svg"
html_context = {"default_mode": "auto"}  # light or dark, as the reader's device is
html_js_files = ["language.js"]
templates_path = ["templates"]
html_theme_options = {
    "navbar_persistent": ["language", "search-button"],  # on a phone too
    "header_links_before_dropdown": 6,
    "article_header_start": ["breadcrumbs", "browser"],
    "navigation_with_keys": False,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
}
html_show_sourcelink = False


NUMBERED = re.compile(r"[A-Z]\d+(?= )")  # a question: B1 Derive dA, dB and dx.


def slug(title: str) -> str:
    """The anchor of a heading: b1 for a question, the same in both languages; otherwise GitHub's."""
    if match := NUMBERED.match(title):
        return match[0].lower()
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def name_sections(app: Any, doctree: Any) -> None:
    """Give each section the anchor that links to it are written with."""
    for section in doctree.findall(nodes.section):
        anchor = slug(section[0].astext())
        if anchor not in doctree.ids:
            section["ids"].insert(0, anchor)
            doctree.ids[anchor] = section


def counterpart(page: str, pages: Any) -> tuple[str, str] | None:
    """The same page in the other language: what the switch is called, and its name. None if there is none."""
    if page == "index":
        return "中文", "zh/index"
    if page == "zh/index":
        return "English", "index"
    for here, there, name in (("/en/", "/zh/", "中文"), ("/zh/", "/en/", "English")):
        if here in page and page.replace(here, there) in pages:
            return name, page.replace(here, there)
    return None


def show_switch(app: Any, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    context["counterpart"] = counterpart(page, app.env.all_docs)
    if "zh" in page.split("/"):
        context["language"] = "zh"


RUNNABLE = set(lite.notebooks())


def show_how_to_run(app: Any, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    context["runnable"] = page in RUNNABLE
    context["lite"] = app.tags.has("lite")  # whether their notebooks were built


def setup(app: Any) -> None:
    app.connect("doctree-read", name_sections, priority=100)  # before the table of contents is made
    app.connect("html-page-context", show_switch)
    app.connect("html-page-context", show_how_to_run)
