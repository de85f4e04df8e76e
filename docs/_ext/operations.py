"""For each operation, the lines that compute each of its equations."""

from catalogue import operations
from docutils import nodes
from repository import site_link, source_link
from sphinx.util.docutils import SphinxDirective


class Lines(SphinxDirective):
    """`operation STEM`: the equations as the code spells them, and where each is computed."""

    required_arguments = 1

    def run(self):
        page = self.env.docname
        (o,) = [o for o in operations() if o.stem == self.arguments[0]]
        rows = []
        for number, text in o.equations.items():
            places = [at(page, place, place.line) for place in o.places.get(number, [])]
            rows.append([[nodes.Text(f"({number})")], [nodes.literal(text, text)], comma(places)])
        made = table(("", f"as {o.path} spells it", "computed in"), rows, "equations")
        for row, number in zip(made.findall(nodes.row), [None, *o.equations], strict=True):
            if number:
                row["ids"].append(f"{o.stem.replace('_', '-')}-{number}")
        return [made, self.footer(page, o)]

    def footer(self, page, o):
        """-> the paragraph of links below the table."""
        line = nodes.paragraph("", "", classes=["operation-links"])
        parts = [link(o.path, source_link(page, o.path)), derivation(page, o),
                 link(o.check.name, source_link(page, o.check.path, o.check.line))]
        parts += [link(path, source_link(page, path)) for path in o.kernels + o.compiled]
        parts.append(link("dispatch", source_link(page, o.dispatch.path, o.dispatch.line)))
        for part in parts:
            if isinstance(part, nodes.reference):
                line += [nodes.Text(" · ")] * bool(line.children) + [part]
        return line


def at(page, place, line=None):
    """-> a link to a line, called as the function that it is in."""
    shown = f"{place.name}:{line}" if line else place.name
    return link(shown, source_link(page, place.path, place.line), literal=True)


def derivation(page, o):
    """-> a link to the notebook, or a dash where none is."""
    if o.notebook is None:
        return nodes.Text("–")
    target = site_link(page, f"../{o.notebook}", None).removesuffix(".ipynb")
    return link(o.notebook.rpartition("/")[2].removesuffix(".ipynb"), f"{target}.html")


def link(text, target, literal=False):
    made = nodes.reference("", "", refuri=target, internal=True)
    made += nodes.literal(text, text) if literal else nodes.Text(text)
    return made


def comma(parts):
    """-> the nodes with commas between them, or a dash for none."""
    out = []
    for part in parts:
        out += [nodes.Text(", ")] * bool(out) + [part]
    return out or [nodes.Text("–")]


def table(head, rows, kind):
    """Column titles and rows of cells, each a list of inline nodes -> a table."""
    group = nodes.tgroup(cols=len(head))
    group += [nodes.colspec(colwidth=1) for _ in head]
    group += nodes.thead("", row([[nodes.Text(title)] for title in head]))
    group += nodes.tbody("", *map(row, rows))
    return nodes.table("", group, classes=[kind])


def row(cells):
    return nodes.row("", *[nodes.entry("", nodes.paragraph("", "", *cell)) for cell in cells])


def setup(app):
    app.add_directive("operation", Lines)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
