"""Links from the pages to the files of the repository, and a page for each such file.

A page is written for two readers: on the web page of the repository
`[x](../minisft/data/text.py)` is a plain link; here it leads to the file's own page, numbered line
by line. `#L33` names a line, `#Adam` the line where a function or class begins. Notebooks and the
files of COPIES, which lie outside of this folder, are copied in before the pages are read.
"""

import posixpath
import re
import shutil
from pathlib import Path

from catalogue import ROOT, line_of
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import TextLexer, get_lexer_for_filename
from pygments.util import ClassNotFound

LINK = re.compile(r"\]\(([^()\s:#]+)(?:#([^()\s]*))?\)")
SCHEME = "repository"      # marks a link as done: see `myst_url_schemes` in conf.py
COPIES = {     # page: file, beside all notebooks
    "readme.zh-CN": "README.zh-CN.md", "contributing": "CONTRIBUTING.md",
    "changelog": "CHANGELOG.md"}
PAGES = (".ipynb", ".md")
SHOWN = ("minisft/**/*.py", "tests/**/*.py", "scripts/*.py", "notebooks/*.py", "kernels/**/*.cu*",
         "kernels/**/*.h", "README.md", "minisft/bundled/*/README.md", "LICENSE",
         "pyproject.toml", ".ci/run")


def setup(app):
    app.connect("config-inited", copy_in)
    app.connect("source-read", rewrite_links)
    app.connect("doctree-read", mark_solutions)
    app.connect("html-collect-pages", source_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def copy_in(app, config):
    """Copies what lies outside of the source folder; what is no longer there goes."""
    folder = Path(app.srcdir)
    shutil.rmtree(folder / "notebooks", ignore_errors=True)
    for path in sorted((ROOT / "notebooks").rglob("*")):
        if path.suffix in PAGES and "." not in path.parent.name:     # no .ipynb_checkpoints
            copy = folder / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
    for page, name in COPIES.items():
        if (ROOT / name).exists():
            shutil.copyfile(ROOT / name, folder / f"{page}.md")


def origin(page):
    """A page's name -> the file of the repository that it is."""
    if page in COPIES:
        return COPIES[page]
    if page.startswith("notebooks/"):
        return page     # in which folder it lies is all that its links need
    return f"docs/{page}.md"


def rewrite_links(app, page, source):
    """Event source-read: links as they are true in the repository become links of the site."""
    source[0] = LINK.sub(lambda match: f"]({site_link(page, match[1], match[2])})", source[0])


def mark_solutions(app, doctree):
    """Event doctree-read: one comes to a solution from its exercises, not from the contents."""
    if app.env.docname.startswith("notebooks/solutions/"):
        app.env.metadata[app.env.docname]["orphan"] = True


def site_link(page, target, fragment):
    """-> where a link of a page leads on the site; unchanged when nothing is there."""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(origin(page)), target))
    tail = f"#{fragment}" if fragment else ""
    above = posixpath.dirname(page) or "."
    pages = {name: page for page, name in COPIES.items()}
    if path in pages:
        return posixpath.relpath(f"{pages[path]}.md", above) + tail
    if not (ROOT / path).is_file() or path.endswith(".png"):     # Sphinx copies pictures itself
        return target + tail
    if path.startswith("notebooks/") and path.endswith(PAGES):
        return posixpath.relpath(path, above) + tail
    if path.startswith("docs/"):
        return posixpath.relpath(path.removeprefix("docs/"), above) + tail
    return f"{SCHEME}:{source_link(page, path, fragment)}"


def source_link(page, path, place=None):
    """-> the address, as seen from a page, of a file's own page, at a line or a name."""
    if isinstance(place, str) and not re.fullmatch(r"L\d+", place):
        place = line_of(path, place)
    tail = f"#{place}" if isinstance(place, str) else f"#L{place}" if place else ""
    return "../" * page.count("/") + f"source/{path.lstrip('.')}.html{tail}"


def source_pages(app):
    """Event html-collect-pages: a page for each file that a link may lead to."""
    for pattern in SHOWN:
        for path in sorted(ROOT.glob(pattern)):
            name = path.relative_to(ROOT).as_posix()
            body = f"<h1><code>{name}</code></h1>\n<div class='source'>{coloured(path)}</div>"
            yield f"source/{name.lstrip('.')}", {"title": name, "body": body}, "page.html"


def coloured(path):
    """-> a file as HTML, each line with the anchor that the repository's web page gives it."""
    text = path.read_text(encoding="utf-8")
    try:
        lexer = get_lexer_for_filename(path.name, text)
    except ClassNotFound:
        lexer = TextLexer()
    html = highlight(text, lexer, HtmlFormatter(linespans="L", linenos="inline"))
    return html.replace('<span id="L-', '<span id="L')
