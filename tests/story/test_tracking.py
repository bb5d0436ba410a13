"""A shared file or folder cannot track who looks at it: in a real browser, no page asks another host for anything."""

from urllib.parse import urlsplit

import pytest

from tests import poison
from tests.app.test_pages import PAGES
from tests.servers import dashboard

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]
RUN = "poisoned-run"
RENDERED = f"""() => [...document.querySelectorAll('img, a, iframe, image, object')]
  .flatMap(e => [...e.attributes].map(a => a.value)).filter(v => v.includes('{poison.HOST}'))"""
MADE = """() => document.querySelectorAll(
  '.katex, [class*=stMarkdownColored], [data-testid=stMarkdownContainer] :is(del, ol, ul, blockquote, pre)').length"""
FORBIDDEN = f"""async () => {{
  const seen = new Set();
  document.addEventListener('securitypolicyviolation', e => seen.add(e.effectiveDirective));
  new Image().src = 'http://{poison.HOST}/p.png';
  await fetch('http://{poison.HOST}/f').catch(() => 0);
  await new Promise(done => setTimeout(done, 200));
  return [...seen].sort();
}}"""
"""What the browser refuses, whatever a page should ask for."""
BARE = "t => t.replaceAll('\\u2060', '').replace(/\\s+/g, ' ')"


def written(text):
    return " ".join(text.split())


def looked_at(browser, tmp_path, monkeypatch, names):
    """Open pages of the poisoned run; return name to what each shows, after a look at what it rendered and fetched."""
    poison.write_poisoned(tmp_path / "runs" / RUN, tmp_path)
    monkeypatch.setenv("MODALSCAPE_FILES", str(tmp_path))
    shown, elsewhere, problems = {}, [], []
    with dashboard(tmp_path) as (address, _):
        here = urlsplit(address).netloc
        page = browser.new_context(viewport={"width": 1400, "height": 1000}).new_page()
        page.on("request", lambda r: urlsplit(r.url).netloc in (here, "") or elsewhere.append(r.url))
        page.on("pageerror", lambda error: problems.append(str(error)))
        for name in names:
            page.goto(f"{address}/{'' if name == 'start' else name}?run={RUN}", wait_until="domcontentloaded")
            page.locator("[data-testid=stSidebar]").get_by_text("Methods", exact=True).wait_for(timeout=60_000)
            if name == "start":
                page.locator(f".st-key-row-{RUN}").wait_for()
            page.wait_for_function("() => !document.querySelector('.ms-waiting, [data-testid=stSkeleton]')")
            page.wait_for_function("() => !document.querySelector('[data-testid=stStatusWidget]')")
            assert page.evaluate(RENDERED) == [], name
            shown[name] = page.evaluate(f"({BARE})(document.body.innerText)")
            if name not in ("start", "methods"):  # these show Markdown of their own
                assert page.evaluate(MADE) == 0, name
        assert (elsewhere, problems) == ([], [])
        assert page.evaluate(FORBIDDEN) == ["connect-src", "img-src"]
    return shown


def test_no_page_fetches_or_links_what_a_file_names(browser, tmp_path, monkeypatch):
    shown = looked_at(browser, tmp_path, monkeypatch, ("start", "live", "log"))
    assert written(poison.NOTE) in shown["start"]
    assert written(poison.TITLE)[:80] in shown["live"]
    assert written(poison.TEXTS[2]) in shown["log"]


@pytest.mark.slow
def test_nor_does_any_other(browser, tmp_path, monkeypatch):
    names = [n.partition("_")[2].removesuffix(".py") for n in PAGES]
    shown = looked_at(browser, tmp_path, monkeypatch, names)
    assert all(f"Train {m} alone" in shown["balance"] for m in poison.MODALITIES)
