"""The command line from its argparse parsers, and plain docstrings as autodoc wants them."""

import argparse
import importlib
import inspect
import re
from functools import partial

from catalogue import ROOT, modules
from docutils import nodes
from repository import source_link
from sphinx.util.docutils import SphinxDirective

from minisft.cli import COMMANDS, _Formatter


class CommandLine(SphinxDirective):
    """`command-line`: a section for each command of minisft."""

    def run(self):
        return [self.section(name) for name in COMMANDS]

    def section(self, name):
        module = importlib.import_module(f"minisft.cli.{name}")
        parser = argparse.ArgumentParser(prog=f"minisft {name}", add_help=False,
                                         formatter_class=partial(_Formatter, width=90))
        module.add_arguments(parser)
        title = f"minisft {name}"
        made = nodes.section(ids=[f"minisft-{name}"], names=[title])
        made += nodes.title("", "", nodes.literal(title, title))
        made += nodes.paragraph("", module.HELP[0].upper() + module.HELP[1:] + ".")
        usage = parser.format_usage().removeprefix("usage: ").rstrip()
        made += nodes.literal_block(usage, usage, language="text", classes=["usage"])
        for group in parser._action_groups:     # argparse has no public way to them
            if group._group_actions:
                made += nodes.rubric("", group.title)
                made += options(parser, group._group_actions)
        self.state.document.note_explicit_target(made)
        return made


def options(parser, actions):
    """-> a definition list of a group's options and what each does."""
    made, formatter = nodes.definition_list(classes=["options"]), _Formatter(parser.prog)
    for action in actions:
        shown = formatter._format_action_invocation(action)
        help = formatter._expand_help(action) if action.help else ""
        made += nodes.definition_list_item(
            "", nodes.term("", "", nodes.literal(shown, shown)),
            nodes.definition("", nodes.paragraph("", help)))
    return made


def expand_modules(app, page, source):
    """Event source-read: ```{modules} NAME``` becomes a section for each module of that package."""
    source[0] = re.sub(r"^```\{modules\} (\w+)\n```$",
                       lambda match: "\n".join(map(section_of, modules(match[1]))),
                       source[0], flags=re.M)


def section_of(module):
    """minisft.ops.softmax -> its section of a page, in Markdown."""
    title = module.removeprefix("minisft.")
    return f"## {title}\n\n```{{eval-rst}}\n.. automodule:: {module}\n```\n"


def as_rst(app, what, name, thing, options, lines):
    """Event autodoc-process-docstring: text as it stands; indented lines are equations or code."""
    text = "\n".join(lines)
    if what == "module":     # autodoc took the indentation away where every line has it
        text = thing.__doc__ or ""
    lines[:] = [line for block in re.split(r"\n\s*\n", text) for line in blocks(block.splitlines())]


def blocks(lines):
    """Lines of one paragraph -> reStructuredText: runs of indented lines become literal."""
    out, inside = [], False
    for line in lines:
        if line.startswith(" ") and not inside:
            out += ["", "::", ""]
        elif not line.startswith(" ") and inside:
            out.append("")
        inside = line.startswith(" ")
        out.append(line if inside else escaped(line))
    return [*out, ""]


def escaped(line):
    """Plain text, with `code` in single backticks -> the same in reStructuredText."""
    parts = re.split(r"`+([^`]+)`+", line)
    for i, part in enumerate(parts):
        parts[i] = f"``{part}``" if i % 2 else re.sub(r"([\\*|_:<>])", r"\\\1", part)
    return "\\ ".join(parts).removeprefix("\\ ").removesuffix("\\ ")


def linkcode_resolve(domain, info):
    """For sphinx.ext.linkcode, on the pages of library/: a function -> its lines on this site."""
    thing = importlib.import_module(info["module"])
    for name in info["fullname"].split("."):
        thing = getattr(thing, name, None)
    try:
        thing = inspect.unwrap(thing.fget if isinstance(thing, property) else thing)
        path, line = inspect.getsourcefile(thing), inspect.getsourcelines(thing)[1]
    except (AttributeError, TypeError):     # a constant
        return None
    module = f"{info['module'].replace('.', '/')}.py"
    if not path.endswith(module) or not (ROOT / module).is_file():
        return None
    return source_link("library/x", module, f"L{line}")


def setup(app):
    app.add_directive("command-line", CommandLine)
    app.connect("source-read", expand_modules)
    app.connect("autodoc-process-docstring", as_rst)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
