"""The built site, read by headless Chromium as people read it: SITE=docs/_build/html pytest tests/test_site.py

Needs `pip install '.[docs,browser]'` and Debian's chromium (or `playwright install chromium`).
"""

import functools
import os
import posixpath
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).parent.parent
if "SITE" not in os.environ:
    pytest.skip("SITE=docs/_build/html, the built site, is not set", allow_module_level=True)
SITE = Path(os.environ["SITE"]).resolve()


def pages_of(folder: Path) -> list[str]:
    """The pages of a site, without the theme's files and JupyterLite's."""
    names = (path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*.html")))
    return [name for name in names if not name.startswith(("_static/", "lite/"))]


PAGES = pages_of(SITE)
assert PAGES, f"{SITE} has no pages: make -C docs html"

PHONE, DESKTOP = {"width": 390, "height": 844}, {"width": 1280, "height": 900}

# What a reader sees when all of the page is there: it is called in the page and returns what is wrong.
SEEN = r"""async () => {
  const images = [...document.images];
  images.forEach((image) => (image.loading = "eager"));
  await Promise.allSettled([window.MathJax?.startup.promise, document.fonts.ready, ...images.map((i) => i.decode())]);
  const all = (selector) => [...document.querySelectorAll(selector)];
  const right = (element) => element?.getBoundingClientRect().right;
  return [
    ...images.filter((image) => !image.naturalWidth).map((image) => `no picture: ${image.src}`),
    ...all(".math").filter((e) => !e.querySelector("mjx-container")).map((e) => `not rendered: ${e.textContent}`),
    ...all("mjx-merror, mjx-mtext[style*=red]").map((e) => `not TeX: ${e.closest(".math")?.textContent}`),
    ...all(".bd-article span.math").filter((e) => right(e.querySelector("mjx-math")) > right(e) + 1)
      .map((e) => `cut off: ${e.textContent}`),
  ];
}"""
WIDTH = "Math.max(...[...document.querySelectorAll('html, .bd-article-container')].map((e) => e.scrollWidth))"


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=shutil.which("chromium"))


@pytest.fixture(scope="session")
def serve() -> Iterator[Callable[[Path], str]]:
    """A folder's address."""

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    servers = []

    def start(folder: Path) -> str:
        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder)))
        threading.Thread(target=servers[-1].serve_forever, args=(0.01,)).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="session")
def site(serve: Callable[[Path], str]) -> str:
    return serve(SITE)


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    with browser.new_page(viewport=DESKTOP) as page:
        yield page


@pytest.fixture(scope="session")
def wrong(browser: Any) -> Callable[[str], list[str]]:
    """What is wrong with the page at an address, on a desktop and on a phone."""
    page = browser.new_page()  # one for all: to open a tab takes as long as to open a page
    found = []
    ours = ("http://127.0.0.1:", "data:", "blob:")
    page.on("console", lambda message: message.type in ("error", "warning") and found.append(message.text))
    page.on("pageerror", lambda error: found.append(str(error)))
    page.on("request", lambda request: request.url.startswith(ours) or found.append(f"another host: {request.url}"))
    page.on("response", lambda answer: answer.status < 400 or found.append(f"{answer.status}: {answer.url}"))
    page.on("requestfailed", lambda request: found.append(f"{request.failure}: {request.url}"))

    def look(address: str) -> list[str]:
        page.goto("about:blank")  # what the page before still waited for, it has asked for
        found.clear()
        page.goto(address)
        for size in (DESKTOP, PHONE):
            page.set_viewport_size(size)
            found.extend(fault for fault in page.evaluate(SEEN) if fault not in found)
            if (width := page.evaluate(WIDTH)) > size["width"]:
                found.append(f"scrolls sideways: {width} pixels on {size['width']}")
        return found[:]

    return look


@pytest.mark.parametrize("name", PAGES)
def test_a_page_opens_whole(wrong, site, name):
    assert not wrong(f"{site}/{name}")


COURSE = "course/04_lora_backward.html"


@pytest.mark.parametrize(
    ("added", "said"),
    [
        ("", None),
        ('<img src="nowhere.png">', "no picture: .*nowhere.png"),
        ("<script>minilora.teach()</script>", "minilora is not defined"),
        ("<script>console.error('too late')</script>", "too late"),
        ('<script src="nowhere.js"></script>', "404: .*nowhere.js"),
        ('<style>@import "https://fonts.example/a.css"</style>', "another host: https://fonts.example/a.css"),
        ('<span class="math">\\(\\badmacro\\)</span>', r"not TeX: .*badmacro"),
        ('<span class="math">\\(\\frac{1}\\)</span>', "not TeX"),
        ('<span class="math">d_model</span>', "not rendered: d_model"),
        (f'<span class="math">\\({"x + " * 50} x\\)</span>', "cut off: "),
        ('<table style="min-width: 2000px"><tr><td>wide</table>', "scrolls sideways: 2[0-9]{3} pixels on 390"),
    ],
)
def test_what_is_wrong_with_a_page_is_found(wrong, serve, tmp_path, added, said):
    for folder in ("_static", "_images"):
        (tmp_path / folder).symlink_to(SITE / folder)
    (tmp_path / COURSE).parent.mkdir()
    text = (SITE / COURSE).read_text(encoding="utf-8")
    (tmp_path / COURSE).write_text(text.replace("</article>", added + "</article>"), encoding="utf-8")
    found = wrong(f"{serve(tmp_path)}/{COURSE}")
    assert not found if said is None else [one for one in found if re.match(said, one)], found


class Page(HTMLParser):
    """The anchors of a page, what it links to, and what it loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors, self.links = {""}, set()
        self.loads = urls(" ".join(re.findall("<style.*?</style>", text, re.DOTALL)))
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if name == "id":
                self.anchors.add(value)
            elif name in ("href", "src"):
                (self.loads if name == "src" or tag == "link" else self.links).add(value)


def urls(css: str) -> set[str]:
    """What a style sheet loads."""
    found = re.findall(r"(?:url\(|@import\s(?!\s*url))\s*['\"]?([^'\")\s]+)", css)
    return {url for url in found if not url.startswith("data:")}


def broken(folder: Path) -> list[str]:
    """Links that lead to no file or anchor of a site, and what its pages load from elsewhere."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    styles = [name for name in files if name.endswith(".css") and not name.startswith("lite/")]
    texts = {name: files[name].read_text(encoding="utf-8") for name in [*pages_of(folder), *styles]}
    pages = {name: Page(text) for name, text in texts.items() if name.endswith(".html")}
    loads = {name: page.loads for name, page in pages.items()}
    loads |= {name: urls(text) for name, text in texts.items() if name.endswith(".css")}
    found = []
    for name in loads:
        for link in loads[name] | (pages[name].links if name in pages else set()):
            url = urlsplit(link)
            target = posixpath.normpath(
                posixpath.join(posixpath.dirname(name), unquote(url.path) or posixpath.basename(name))
            )
            if url.scheme or url.netloc:
                if link in loads[name]:
                    found.append(f"{name} loads {link}")
            elif target not in files:
                found.append(f"{name}: no file {link}")
            elif target in pages and unquote(url.fragment) not in pages[target].anchors:
                found.append(f"{name}: no anchor {link}")
    return found


def test_every_link_leads_to_a_file_and_an_anchor_of_the_site():
    assert not broken(SITE)


@pytest.mark.parametrize(
    ("added", "said"),
    [
        ("", None),
        ('<a href="#here">', None),
        ('<a href="https://example.org">', None),
        ('<a href="#nowhere">', "index.html: no anchor #nowhere"),
        ('<a href="index.html#nowhere">', "index.html: no anchor index.html#nowhere"),
        ('<a href="nowhere.html">', "index.html: no file nowhere.html"),
        ('<img src="nowhere.png">', "index.html: no file nowhere.png"),
        ('<script src="//example.org/a.js"></script>', "index.html loads //example.org/a.js"),
        ('<link href="https://example.org/a.css">', "index.html loads https://example.org/a.css"),
        (
            "<style>@font-face { src: url('https://example.org/a.woff') }</style>",
            "index.html loads https://example.org/a.woff",
        ),
        ("<style>@import '/a.css'</style>", "index.html: no file /a.css"),
    ],
)
def test_a_broken_link_is_found(tmp_path, added, said):
    (tmp_path / "index.html").write_text(f"<p id=here>{added}", encoding="utf-8")
    assert broken(tmp_path) == ([said] if said else [])


def test_what_a_style_sheet_loads_is_looked_at(tmp_path):
    (tmp_path / "a.css").write_text(
        "@import url(a.css); a { background: url(nowhere.svg) } b { background: url(data:image/svg) }"
    )
    assert broken(tmp_path) == ["a.css: no file nowhere.svg"]


def search(page: Any, site: str, words: str) -> list[str]:
    """What somebody who types `words` into the site's search field is shown: addresses, the best first."""
    page.goto(f"{site}/index.html")
    page.get_by_role("button", name="Search").locator("visible=true").click()
    page.keyboard.type(words)
    page.keyboard.press("Enter")
    page.get_by_text(re.compile("search query|did not match")).wait_for()
    return [link.evaluate("link => link.href") for link in page.locator("ul.search li > a").all()]


@pytest.mark.parametrize("words", ["gauge", "缩放因子", "缩放", "秩", "LoRA 缩放因子", "learning rate warmup"])
def test_the_first_results_of_a_search_have_each_word(page, site, words):
    found = search(page, site, words)
    assert len(found) >= 3
    for address in found[:3]:
        page.goto(address)
        text = page.text_content("article").lower()  # also what is folded
        assert all(word in text for word in words.lower().split()), address


@pytest.mark.parametrize("words", ["gradiantless", "缩因放子", "LoRA 龘"])
def test_a_search_for_what_is_on_no_page_says_so(page, site, words):
    assert search(page, site, words) == []
    assert page.get_by_text("did not match any documents").is_visible()


TEXTS = st.text(st.sampled_from("秩缩放因子㐀一鿿LoRAgauge_ 0π²α.,，。-é！々"))


@pytest.fixture(scope="session")
def splitters(browser: Any, site: str) -> tuple[Callable[[str], list[str]], Callable[[str], list[str]]]:
    """How a page and how a query is split."""
    from search import EnglishAndChinese

    page = browser.new_page()
    page.goto(f"{site}/search.html")
    return EnglishAndChinese({}).split, lambda text: page.evaluate("splitQuery", text)


@given(TEXTS)
def test_a_page_is_found_by_each_of_its_words_and_by_its_own_text(splitters, text):
    of_page, of_query = splitters
    assert set(of_query(text)) <= set(of_page(text))
    for word in of_page(text):
        assert of_query(word) == [word]


@given(st.text(st.sampled_from("秩缩放因子㐀一鿿"), min_size=2))
def test_a_query_for_chinese_is_every_pair_of_neighbours(splitters, text):
    assert splitters[1](text) == [a + b for a, b in pairwise(text)]


def test_the_switch_of_language_stays_at_the_same_question(page, site):
    page.goto(f"{site}/questions/en/b.html#b3")
    for language in ("zh", "en"):
        page.locator("a.language").locator("visible=true").click()
        page.wait_for_url(f"{site}/questions/{language}/b.html#b3")
        assert page.locator("#b3").first.bounding_box()["y"] < DESKTOP["height"]


def test_the_front_page_begins_with_the_two_commands(page, site):
    page.goto(f"{site}/index.html")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert page.inner_text("article pre >> nth=0").split("\n")[:2] == re.findall(
        r"^    (python3 .*)", readme, re.MULTILINE
    )


def test_the_menu_opens_on_a_phone(page, site):
    page.set_viewport_size(PHONE)
    page.goto(f"{site}/index.html")
    page.get_by_role("button", name="Site navigation").click()
    page.get_by_role("dialog").get_by_role("link", name="Exercises").first.click()
    page.wait_for_url(f"{site}/exercises/index.html")


@pytest.mark.skipif(not (SITE / "lite/index.html").exists(), reason="the notebooks are not built: make -C docs lite")
def test_a_page_leads_to_its_notebook_which_asks_no_other_host_but_for_pyodide(browser, site):
    page = browser.new_context(viewport=PHONE).new_page()
    asked, errors = [], []
    page.route(lambda url: not url.startswith(site), lambda route: route.abort())
    page.on("request", lambda request: request.url.startswith((site, "data:", "blob:")) or asked.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(f"{site}/lite/lab/index.html")
    for name in ("course", "exercises", "guide", "start.ipynb"):
        page.locator(".jp-DirListing-itemName", has_text=name).wait_for()
    assert not asked
    assert not errors
    page.goto(f"{site}/course/00_lora_in_40_lines.html")
    page.get_by_role("link", name="Run this page in your browser").click()
    page.locator(".jp-Cell", has_text="%pip install -q minilora").wait_for()
    page.locator(".jp-Cell h1", has_text="LoRA in 40 lines").wait_for()
    assert all(url.startswith("https://cdn.jsdelivr.net/pyodide/") for url in asked)
    page.context.close()
