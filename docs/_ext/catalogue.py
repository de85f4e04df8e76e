"""What the index of operations shows, read from the code. No Sphinx here: the tests import it too.

An operation is a file of `minisft/ops`, and `optim`, which has numbered equations as well.
"""

import ast
import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NUMBER = re.compile(r"\((\d+)\)")
COMMENTS = {".py": "#", ".cu": "//"}
# The test that proves the numbered equations; optim has no gradient.
CHECKS = {"optim": "test_each_value_follows_the_equations"}
NOTEBOOKS = {"optim": "adam",     # where it is not the operation's stem
             "span_cross_entropy": "span_answers"}
KERNELS = {"optim": "adamw"}      # and of its compiled loop and in dispatch


@dataclass(frozen=True)
class Place:
    """A line of a file of the repository, and what it is called there."""

    name: str
    path: str
    line: int


@dataclass(frozen=True)
class Operation:
    """One numbered file: paths from the root of the repository, None for what is not there."""

    stem: str
    path: str
    title: str
    equations: dict      # number -> text in the docstring
    places: dict         # number -> the lines that compute it, in the code and in the kernels
    functions: list      # of Place: the public functions and classes
    notebook: str | None
    check: Place
    kernels: list
    compiled: list       # of its loops for Numba
    dispatch: Place      # where its implementations are listed


def operations():
    """-> every Operation, in the order of the notebooks and then of the names."""
    stems = {path.stem: path for path in (ROOT / "minisft" / "ops").glob("[a-z]*.py")}
    stems["optim"] = ROOT / "minisft" / "training" / "optim.py"
    found = [operation(stem, path) for stem, path in stems.items()]
    return sorted(found, key=lambda o: (o.notebook or "~", o.stem))


def operation(stem, path):
    """-> the Operation of one file."""
    source = path.read_text(encoding="utf-8")
    doc = ast.get_docstring(ast.parse(source), clean=False)     # cleaning would lose the indents
    other = KERNELS.get(stem, stem)
    kernels = sorted((ROOT / "kernels").glob(f"{other}*.cu"))
    compiled = sorted((ROOT / "minisft/backend/cpu/compiled").glob(f"{other}*.py"))
    lists = "minisft/dispatch/operations.py"
    return Operation(
        stem, below_root(path), doc.splitlines()[0].rstrip(".:"), equations(doc),
        gather(path, *kernels), functions(path), notebook(stem),
        check(stem), [below_root(kernel) for kernel in kernels],
        [below_root(loop) for loop in compiled], Place(other, lists, line_of(lists, other)))


def equations(doc):
    """A module's docstring -> number: the equation's lines, without their indentation."""
    found, number, indent = {}, None, 0
    for line in doc.splitlines():
        depth = len(line) - len(line.lstrip())
        if match := re.match(r" +\((\d+)\) ", line):
            number, indent = int(match[1]), depth
            found[number] = spaced(line[match.end():])
        elif number and depth > indent and line.strip():
            found[number] += "\n" + spaced(line)
        else:
            number = None
    return found


def spaced(line):
    return re.sub(" {3,}", "   ", line.strip())     # the file sets its remarks in columns


def gather(*paths):
    """-> number: the Places whose comment names it."""
    found = {}
    for path in paths:
        mark, names = COMMENTS[path.suffix], functions(path)
        text = path.read_text(encoding="utf-8")
        lines = text.splitlines()
        for n in range(text.split('"""', 2)[1].count("\n") + 1 if mark == "#" else 0, len(lines)):
            # the head of a kernel tells which equations it computes; it computes none itself
            if mark not in lines[n] or not lines[n].split(mark)[0].strip():
                continue
            inside = [f.name for f in names if f.line <= n + 1] or [path.name]
            name = inside[-1] if mark == "#" else path.name
            for number in NUMBER.findall(lines[n].split(mark, 1)[1]):
                found.setdefault(int(number), []).append(Place(name, below_root(path), n + 1))
    return found


def functions(path):
    """-> the Places of a Python file's functions and classes, and of the functions in those."""
    if path.suffix != ".py":
        return []
    found = []
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.append(Place(node.name, below_root(path), node.lineno))
            found += [Place(f"{node.name}.{inner.name}", below_root(path), inner.lineno)
                      for inner in getattr(node, "body", []) if isinstance(inner, ast.FunctionDef)
                      and isinstance(node, ast.ClassDef)]
    return found


def assignments(path):
    """-> the Places of the names that a Python file assigns at its top level."""
    return [Place(node.targets[0].id, below_root(path), node.lineno)
            for node in ast.parse(path.read_text(encoding="utf-8")).body
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)]


def names(path):
    """-> the Places that a link may name in a Python file."""
    return functions(path) + assignments(path)


def line_of(path, name):
    """-> the line on which a name of a Python file begins; raises KeyError."""
    return {place.name: place.line for place in names(ROOT / path)}[name]


def notebook(stem):
    """-> the path of an operation's derivation, or None."""
    found = sorted((ROOT / "notebooks").glob(f"[0-9][0-9]_{NOTEBOOKS.get(stem, stem)}.ipynb"))
    return below_root(found[0]) if found else None


def check(stem):
    """-> the Place of the test that proves an operation's equations; raises KeyError."""
    name, path = CHECKS.get(stem, "test_backward_matches_finite_differences"), \
        f"tests/test_{stem}.py"
    return Place(name, path, line_of(path, name))


def modules(name):
    """A package or module of minisft -> the dotted names below it that have any code, sorted."""
    place = ROOT / "minisft" / name
    files = place.rglob("*.py") if place.is_dir() else [place.with_suffix(".py")]
    dotted = {".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
              for file in files}
    return sorted(module for module, file in dotted.items()
                  if ast.parse(file.read_text(encoding="utf-8")).body[1:])     # [0]: the docstring


def below_root(path):
    return path.relative_to(ROOT).as_posix()
