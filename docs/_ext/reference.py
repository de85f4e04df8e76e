"""The command line from its parsers, and plain docstrings as autodoc wants them."""

import ast
import importlib
import inspect
import re
from functools import partial

from catalogue import ROOT, modules
from docutils import nodes
from repository import source_link
from sphinx.util.docutils import SphinxDirective

from minisft.cli.parser import COMMANDS, CommandParser, Formatter


class CommandLine(SphinxDirective):
    """`command-line`: a section for each command of minisft.

    Each option has an anchor such as #minisft-finetune-seeds, a link to itself, and takes part in
    Sphinx's role: {option}`minisft finetune --seeds`.
    """

    def run(self):
        return [self.section(name) for name in COMMANDS]

    def section(self, name):
        parser = CommandParser(name)
        parser.formatter_class = partial(Formatter, width=90)
        title = f"minisft {name}"
        made = nodes.section(ids=[f"minisft-{name}"], names=[title])
        made += nodes.title("", "", nodes.literal(title, title))
        help = parser.description
        made += nodes.paragraph("", help[0].upper() + help[1:] + ".")
        usage = parser.format_usage().removeprefix("usage: ").rstrip()
        made += nodes.literal_block(usage, usage, language="text", classes=["usage"])
        if examples := "\n".join(getattr(parser.module, "EXAMPLES", ())):
            made += nodes.literal_block(examples, examples, language="sh")
        for group in parser._action_groups:     # argparse has no public way to them
            if actions := [a for a in group._group_actions if a.dest not in ("help", "help_all")]:
                made += nodes.rubric("", group.title)
                made += self.option_list(parser, actions)
        self.state.document.note_explicit_target(made)
        return made

    def option_list(self, parser, actions):
        """-> a definition list of a group's options and what each does."""
        made, formatter = nodes.definition_list(classes=["options"]), Formatter(parser.prog)
        for action in actions:
            shown = formatter._format_action_invocation(action)
            help = formatter._expand_help(action) if action.help else ""
            term = nodes.term("", "", nodes.literal(shown, shown))
            for flag in action.option_strings[:1]:
                anchor = anchor_of(parser, flag)
                term["ids"] = [anchor]
                term += nodes.reference("", "#", refid=anchor, classes=["headerlink"])
                self.env.domains["std"].add_program_option(
                    parser.prog, flag, self.env.docname, anchor)
            made += nodes.definition_list_item("", term, nodes.definition(
                "", nodes.paragraph("", "", *with_flags(parser, help))))
        return made


def anchor_of(parser, flag):
    """-> the id of an option: minisft-finetune-seeds."""
    return f"{parser.prog} {flag}".replace(" --", "-").replace(" ", "-")


def with_flags(parser, help):
    """-> nodes of a help text: its flags are code, and lead to the command's own options."""
    known = {flag for action in parser._actions for flag in action.option_strings}
    for i, part in enumerate(re.split(r"(?<![\w-])(--[a-z][a-z0-9-]*)", help)):
        if i % 2 == 0:
            yield nodes.Text(part)
        elif part in known:
            yield nodes.reference("", "", nodes.literal(part, part),
                                  refid=anchor_of(parser, part))
        else:
            yield nodes.literal(part, part)


def expand_modules(app, page, source):
    """Event source-read: ```{modules} NAME``` becomes a section for each module of that package."""
    source[0] = re.sub(r"^```\{modules\} (\w+)\n```$",
                       lambda match: "\n".join([summary(modules(match[1])), *map(
                           section_of, modules(match[1]))]),
                       source[0], flags=re.M)


def summary(names):
    """Names of modules -> a list with a line for each, in Markdown."""
    lines = []
    for module in names:
        path = ROOT / module.replace(".", "/")
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        said = (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").split("\n\n")
        title = module.removeprefix("minisft.")
        anchor = re.sub(r"[^\w-]", "", title.lower())
        lines.append(f"- [{title}](#{anchor}): {' '.join(said[0].split())}")
    return "\n".join([*lines, ""])


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
