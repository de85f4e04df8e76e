"""The documentation: `sphinx-build -W -n docs build/site`, with the extra `docs`, offline."""

import importlib.util
import re
import shutil
import sys
from pathlib import Path

from docutils import nodes

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent)]

from reference import linkcode_resolve  # noqa: E402, F401  (sphinx.ext.linkcode looks for it here)

project = "minisft"
html_title = "minisft"
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_favicon = "_static/favicon.svg"
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
highlight_language = "text"     # docstrings; fenced code names its own
pygments_style = "friendly"
pygments_dark_style = "monokai"
exclude_patterns = ["_ext"]
smartquotes = False     # they make a dash of --
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.linkcode", "sphinx.ext.mathjax",
              "sphinx_copybutton", "repository", "operations", "reference", "pages"]
copybutton_selector = ", ".join(f"div.highlight-{language} pre" for language in (
    "python", "ipython3", "sh", "toml"))     # what one types, not what is printed

myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "deflist"]
myst_dmath_double_inline = True     # a formula of its own line within a paragraph
myst_heading_anchors = 3
# links that _ext/repository.py made; the rest is what a page may lead to by itself
myst_url_schemes = {"http": None, "https": None,
                    "repository": {"url": "{{path}}#{{fragment}}"}}
nb_execution_mode = "off"      # notebooks are kept with their outputs; CI runs them
nb_merge_streams = True

autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_default_options = {"members": True}

# MathJax is a file of the site: nothing is fetched when a page is read.
mathjax_path = "mathjax/tex-chtml-full.js"
mathjax3_config = {"options": {"enableMenu": False}, "chtml": {"scale": 0.94}}
suppress_warnings = ["myst.mathjax"]


def copy_mathjax(app, error):
    """Event build-finished: MathJax with its fonts, from the package of the extra `docs`."""
    if error or app.builder.format != "html":
        return
    package = Path(importlib.util.find_spec("mathjax").origin).parent
    library, target = package / "static/mathjax/es5", Path(app.outdir) / "_static/mathjax"
    fonts = "output/chtml/fonts/woff-v2"
    target.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(library / "tex-chtml-full.js", target / "tex-chtml-full.js")
    shutil.copytree(library / fonts, target / fonts, dirs_exist_ok=True)


def drop_what_is_not_there(app, page, source):
    """Event source-read: the contents name some pages by a pattern that may have none yet."""
    source[0] = re.sub(r"^[\w/-]+\*\n",
                       lambda line: line[0] if any(HERE.glob(line[0].strip())) else "",
                       source[0], flags=re.M)


def keep_tags(app, doctree):
    """Event doctree-read: Sphinx would set lines in `split`, which takes no equation number."""
    for node in doctree.findall(nodes.math_block):
        text = node.astext()
        if r"\tag" in text and r"\\" in text and r"\begin{align" not in text:
            node.children = [nodes.Text(rf"\[{text}\]")]
            node["nowrap"] = node["no-wrap"] = True


def inline_drawings(app, doctree, page):
    """Event doctree-resolved: drawings become part of the page, to take its colours."""
    if app.builder.format != "html":
        return
    for image in list(doctree.findall(nodes.image)):
        path = HERE / image["uri"]
        if path.suffix == ".svg" and path.is_file():
            svg = path.read_text(encoding="utf-8")
            figure = f'<div class="drawing">{svg}</div>'
            image.parent.replace(image, nodes.raw("", figure, format="html"))


def setup(app):
    app.connect("source-read", drop_what_is_not_there)
    app.connect("doctree-read", keep_tags)
    app.connect("build-finished", copy_mathjax)
    app.connect("doctree-resolved", inline_drawings)
