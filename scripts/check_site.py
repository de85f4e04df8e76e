"""Reads a built site: every link and anchor is there, and nothing is loaded from elsewhere.

    python scripts/check_site.py build/site
"""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit


class Page(HTMLParser):
    """Collects the anchors of a page, where it leads, and what it loads."""

    def __init__(self, text):
        super().__init__()
        self.anchors, self.links, self.loads = {"", "top"}, set(), set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.anchors |= {given[name] for name in ("id", "name") if given.get(name)}
        if tag == "a" and given.get("href"):
            self.links.add(given["href"])
        if tag == "link" and given.get("rel") in ("stylesheet", "icon", "preload"):
            self.loads.add(given["href"])
        if tag in ("script", "img", "iframe", "source") and given.get("src"):
            self.loads.add(given["src"])


def problems(site):
    """A folder -> what is wrong, one line each."""
    pages = {path.resolve(): Page(path.read_text(encoding="utf-8"))
             for path in sorted(site.rglob("*.html")) if "_static" not in path.parts}
    found = []
    for path, page in pages.items():
        name = path.relative_to(site.resolve())
        found += [f"{name} loads {url}" for url in sorted(page.loads)
                  if urlsplit(url).scheme not in ("", "data") or url.startswith("//")]
        local = {url for url in page.links | page.loads
                 if not urlsplit(url).scheme and not url.startswith("//")}
        for url in sorted(local):
            address, anchor = urldefrag(url)
            target = (path.parent / unquote(urlsplit(address).path)).resolve() \
                if address else path
            if not target.is_file():
                found.append(f"{name} leads to {url}: no such file")
            elif target in pages and unquote(anchor) not in pages[target].anchors:
                found.append(f"{name} leads to {url}: no such place on that page")
    return found if pages else [f"{site}: no pages"]


def main(argv):
    """-> exit code."""
    found = problems(Path(argv[1]))
    print("\n".join([*found, f"{len(found)} broken"]))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
