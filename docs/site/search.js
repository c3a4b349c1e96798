// How a query is split: as search.py splits a page, but where two Chinese characters meet, into pairs alone.
function splitQuery(query) {
  const runs = query.match(/[\u3400-\u4dbf\u4e00-\u9fff]+|(?:(?![\u3400-\u4dbf\u4e00-\u9fff])[\p{L}\p{N}_])+/gu) || [];
  const pairs = (run) => Array.from(run.slice(1), (after, i) => run[i] + after);
  return runs.flatMap((run) => (/^[\u3400-\u4dbf\u4e00-\u9fff]{2}/.test(run) ? pairs(run) : [run]));
}

// Sphinx shows a page that lacks a term of one or two letters, as Chinese words are. Here a page has every term, and
// ranks by the term that fits it least.
const pagesOfTerms = Search.performTermsSearch;
Search.performTermsSearch = (terms, excluded) => {
  const found = new Map();
  for (const term of terms)
    for (const page of pagesOfTerms(new Set([term]), excluded)) found.set(page[0], [...(found.get(page[0]) || []), page]);
  const complete = [...found.values()].filter((pages) => pages.length === terms.size);
  return complete.map((pages) => pages.sort((a, b) => a[4] - b[4])[0]);
};
