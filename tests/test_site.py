"""The built site in a real browser: `python -m pytest -m slow tests/test_site.py`.

Needs the extra `docs`, `pip install playwright`, and Chromium (Debian's package `chromium`).
MINISFT_SCREENSHOTS=DIR keeps a picture of each page, wide and narrow, light and dark.
"""

import functools
import http.server
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
WIDTHS, SCHEMES = (1280, 390), ("light", "dark")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """-> the folder of the built site."""
    pytest.importorskip("myst_nb", reason="needs the extra docs")
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run([sys.executable, "-m", "sphinx", "-W", "-n", "-q", "-d",
                            folder / "doctrees", ROOT / "docs", folder / "html"],
                           capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return folder / "html"


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def address(site):
    """-> where the site is served."""
    handler = functools.partial(Quiet, directory=site)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("no chromium")
    with api.sync_playwright() as play:
        opened = play.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield opened
        opened.close()


def pages(site):
    return sorted(path.relative_to(site).as_posix() for path in site.rglob("*.html")
                  if "_static" not in path.parts)


def read_page(page, address, name, problems):
    """Opens a page, waits for its mathematics -> notes what is wrong with it."""
    page.goto(f"{address}/{name}", wait_until="load")
    if page.locator(".math").count():
        page.evaluate("() => window.MathJax.startup.promise")
        bare = page.locator(".math:not(:has(mjx-container))").count()
        errors = page.locator("mjx-merror, [data-mjx-error]").count()
        if bare or errors:
            problems.append(f"{name}: {bare} formulas not typeset, {errors} in error")
    text = page.evaluate("""() => {
        const copy = document.querySelector('article, .content, body').cloneNode(true);
        copy.querySelectorAll('pre, code, .math').forEach(e => e.remove());
        return copy.textContent; }""")
    if raw := re.search(r"\$[^$\s][^$\n]*\$|\\\(|\\\[|\\tag", text):
        problems.append(f"{name}: raw mathematics {raw[0]!r}")
    wide, window = page.evaluate("() => [document.documentElement.scrollWidth, innerWidth]")
    if wide > window:
        problems.append(f"{name}: {wide} wide in a window of {window}")


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_every_page_in_a_browser(site, address, browser, width, scheme):
    problems, pictures = [], os.environ.get("MINISFT_SCREENSHOTS")
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.on("console", lambda said: problems.append(f"{page.url}: {said.type} {said.text}"))
    page.on("pageerror", lambda error: problems.append(f"{page.url}: {error}"))
    # aborted: the icon, when the page is left before it has come
    page.on("requestfailed", lambda r: r.failure == "net::ERR_ABORTED" or
            problems.append(f"{page.url}: {r.url} failed"))
    page.on("request", lambda r: r.url.startswith((address, "data:")) or
            problems.append(f"{page.url}: asks for {r.url}"))
    for name in pages(site):
        if name.startswith("source/") and "/ops/" not in name:
            continue     # a hundred files, all made alike
        read_page(page, address, name, problems)
        if pictures and not name.startswith(("source/", "genindex", "search")):
            Path(pictures).mkdir(exist_ok=True)
            file = Path(pictures, f"{name.removesuffix('.html').replace('/', '_')}"
                        f"-{width}-{scheme}.png")
            page.screenshot(path=file, full_page=True)
    page.close()
    assert not problems, "\n".join(problems)


def text_of(site, name):
    return (site / name).read_text(encoding="utf-8")


def test_every_page_has_a_description_and_its_language(site):
    for name in pages(site):
        html = text_of(site, name)
        chinese = name.endswith("zh-CN.html")
        assert re.search(r'<html[^>]* lang="(zh-CN|en)"', html)[1] == ("zh-CN" if chinese else "en")
        if not name.startswith(("source/", "genindex", "py-modindex", "search")):
            said = re.search(r'<meta name="description" content="([^"]{20,})"', html)
            assert said, f"{name} has no description"
    for name in ("article", "index"):
        assert 'hreflang="zh-CN"' in text_of(site, f"{name}.html")
    for name in ("article.zh-CN", "readme.zh-CN"):
        assert 'hreflang="en"' in text_of(site, f"{name}.html")


def test_every_notebook_can_be_downloaded_as_it_is(site):
    names = [name for name in pages(site) if name.startswith("notebooks/") and "README" not in name]
    assert len(names) > 30
    for name in names:
        (link,) = re.findall(r'<a download href="([^"]+\.ipynb)"', text_of(site, name))
        file = (site / name).parent / link
        assert file.resolve().read_bytes() == (ROOT / name).with_suffix(".ipynb").read_bytes()
    assert (site / "_static/notebooks/exercises.py").is_file()
    assert (site / "_static/notebooks/pictures.py").is_file()


def test_options_keep_their_two_dashes(site):
    for name in pages(site):
        assert not re.search(r"[–—][a-z]+(-[a-z]+)* (with|of|and|\d)", text_of(site, name)), name
    assert 'id="minisft-finetune-lr"' in text_of(site, "commands.html")


def test_library_pages_begin_with_a_line_for_each_module(site):
    html = text_of(site, "library/ops.html")
    listed = html[:html.index('id="opssoftmax"')]
    assert re.search(r'href="#ops-?softmax">ops.softmax</a>: \w', listed)


@pytest.mark.parametrize("width", WIDTHS)
def test_search_copy_buttons_and_figures_in_the_dark(address, browser, width):
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme="dark")
    page.goto(f"{address}/search.html?q=--lr", wait_until="load")
    page.wait_for_selector("#search-results li")
    found = page.locator("#search-results li a").evaluate_all("links => links.map(a => a.href)")
    assert any("commands.html" in link for link in found[:5]), found[:5]
    page.goto(f"{address}/quickstart.html", wait_until="load")
    assert page.locator("button.copybtn").count() >= 3
    page.goto(f"{address}/notebooks/06_attention.html", wait_until="load")
    behind = page.locator(".cell_output img").first.evaluate(
        "image => getComputedStyle(image).backgroundColor")
    assert behind == "rgb(255, 255, 255)"
    page.close()


def test_wide_tables_scroll_on_a_telephone(address, browser):
    page = browser.new_page(viewport={"width": 390, "height": 900})
    page.goto(f"{address}/article.html", wait_until="load")
    table = page.locator(".table-wrapper").last
    inner, outer = table.evaluate("t => [t.scrollWidth, t.clientWidth]")
    assert inner >= 600 > outer
    page.goto(f"{address}/architecture.html", wait_until="load")
    inner, outer = page.locator(".drawing").first.evaluate("t => [t.scrollWidth, t.clientWidth]")
    assert inner >= 600 > outer     # its letters stay legible
    page.close()
