"""English and Chinese in one index: Sphinx alone takes a run of Chinese characters, which has no spaces, as one word.

Here a page is found by each Chinese character and by each pair of neighbours: 缩放因子 is in the index as 缩, 放, 因,
子, 缩放, 放因 and 因子. search.js splits a query. English keeps Sphinx's stemmer and stop words.
"""

import re
from pathlib import Path
from typing import Any

from sphinx.search.en import SearchEnglish

HAN = r"\u3400-\u4dbf\u4e00-\u9fff"


class EnglishAndChinese(SearchEnglish):
    js_splitter_code = Path(__file__).with_name("search.js").read_text(encoding="utf-8")

    def split(self, input: str) -> list[str]:
        return re.findall(rf"[{HAN}]|[^\W{HAN}]+", input) + re.findall(rf"(?=([{HAN}]{{2}}))", input)


def setup(app: Any) -> dict[str, bool]:
    app.add_search_language(EnglishAndChinese)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
