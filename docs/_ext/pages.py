"""What each page of the site has beside its text: a description, its language, links above it.

A page NAME.zh-CN is Chinese, and counterparts lead to each other. Notebooks can be downloaded, with
the modules that they import: all of them lie in _static/notebooks.
"""

import posixpath
import re
import shutil
from html import escape
from pathlib import Path

from catalogue import ROOT
from docutils import nodes

LONGEST_DESCRIPTION = 160
CHINESE = "zh-CN"
COUNTERPARTS = {"article": "article.zh-CN", "index": "readme.zh-CN"}
DOWNLOADS = "_static/notebooks"
HELPERS = ("exercises.py", "pictures.py")


def setup(app):
    app.connect("html-page-context", complete)
    app.connect("build-finished", copy_notebooks)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def complete(app, page, template, context, doctree):
    """Event html-page-context: description, language, and the links below the title."""
    if doctree is not None and (said := description(doctree)):
        context["metatags"] = (context.get("metatags", "")
                               + f'\n<meta name="description" content="{escape(said)}">')
    if page.endswith(CHINESE):
        context["language"] = CHINESE
    found = [*language_link(page), *download_links(page)]
    if found and "body" in context:
        line = f'<p class="page-links">{" · ".join(found)}</p>'
        context["body"] = re.sub(r"</h1>", lambda end: end[0] + line, context["body"], count=1)


def description(doctree):
    """-> the first paragraph of prose, cut at a word; "" where there is none."""
    for paragraph in doctree.findall(nodes.paragraph):
        text = " ".join(paragraph.astext().split())
        inside = isinstance(paragraph.parent, nodes.section)
        if inside and len(text) > 40 and not text.startswith(("Code:", "Before this:")):
            if len(text) <= LONGEST_DESCRIPTION:
                return text
            cut = text[:LONGEST_DESCRIPTION]
            return (cut.rsplit(" ", 1)[0] if " " in cut[40:] else cut) + " ..."
    return ""


def language_link(page):
    """-> a link to the page in the other language."""
    others = COUNTERPARTS | {chinese: page for page, chinese in COUNTERPARTS.items()}
    if page in others:
        lang, name = ("en", "English") if page.endswith(CHINESE) else (CHINESE, "中文")
        yield (f'<a lang="{lang}" hreflang="{lang}" rel="alternate" href="{others[page]}.html">'
               f"{name}</a>")


def download_links(page):
    """-> links to a notebook's own file, and to what it imports."""
    if page.startswith("notebooks/") and (ROOT / f"{page}.ipynb").exists():
        folder = "../" * page.count("/") + DOWNLOADS
        file, name = posixpath.relpath(page, "notebooks"), posixpath.basename(page)
        yield f'<a download href="{folder}/{file}.ipynb">Download {name}.ipynb</a>'
        yield "it imports " + ", ".join(
            f'<a download href="{folder}/{helper}">{helper}</a>' for helper in HELPERS)


def copy_notebooks(app, error):
    """Event build-finished: the notebooks as they are, beside the modules that they import."""
    if error or app.builder.format != "html":
        return
    target = Path(app.outdir) / DOWNLOADS
    shutil.rmtree(target, ignore_errors=True)
    for path in [*(ROOT / "notebooks").rglob("*.ipynb"),
                 *(ROOT / "notebooks" / helper for helper in HELPERS)]:
        if "." in path.parent.name:      # .ipynb_checkpoints
            continue
        copy = target / path.relative_to(ROOT / "notebooks")
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
