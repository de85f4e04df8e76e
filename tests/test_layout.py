"""The plan of the house: packages import downwards only, and each operation has what it must."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "minisft"

# A module imports from its own package and from those before it in this list.
PACKAGES = ["errors", "backend", "ops", "dispatch", "nn", "data", "models", "io", "training",
            "evaluation", "verify", "planning", "jobs", "estimators", "cli", "__main__"]
MOST_ENTRIES = 20     # of the package's own folder: more cannot be overlooked

# What each operation must have today. The table may only grow; what an operation will never have
# is an exemption, with its reason.
KINDS = {
    "test": lambda stem: ROOT / "tests" / f"test_{stem}.py",
    "page": lambda stem: ROOT / "docs" / "operations.md",
    "kernel": lambda stem: ROOT / "kernels" / f"{stem}.cu",
    "launcher": lambda stem: PACKAGE / "backend" / "gpu" / "launch" / f"{stem}.py",
}
REQUIRED = {stem: {"test", "page", "kernel", "launcher"} for stem in (
    "attention", "cross_entropy", "dropout", "embedding", "gelu", "layer_norm", "linear",
    "lora", "softmax", "span_cross_entropy")}
EXEMPT = {     # (stem, kind): reason
    ("linear", "kernel"): "a matrix product is the work of cuBLAS",
    ("linear", "launcher"): "it has no kernel",
    ("lora", "kernel"): "matrix products are the work of cuBLAS",
    ("lora", "launcher"): "it has no kernel",
    ("span_cross_entropy", "kernel"): "two numbers a token are no work for a card",
    ("span_cross_entropy", "launcher"): "it has no kernel",
}

TESTS_OF_AN_OPERATION = ["test_forward_matches_loops", "test_backward_matches_finite_differences",
                         "test_hostile_inputs"]


def modules():
    """-> name below `minisft` -> file."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path, known):
    """-> the modules of the package that a file imports, at its top or within a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {a.name.removeprefix("minisft").lstrip(".") for a in node.names
                      if a.name.split(".")[0] == "minisft"}
        if isinstance(node, ast.ImportFrom) and node.module and \
                node.module.split(".")[0] == "minisft":
            base = node.module.removeprefix("minisft").lstrip(".")
            for alias in node.names:
                inner = f"{base}.{alias.name}".lstrip(".")
                found.add(inner if inner in known else base)
    return {name for name in found if name}


def package_of(name):
    return name.split(".")[0]


@pytest.mark.parametrize("name", sorted(modules()))
def test_imports_go_down_only(name):
    known = modules()
    if name == "":      # the front door looks at every room, when it is asked
        return
    place = PACKAGES.index(package_of(name))
    for other in imports(known[name], known):
        assert PACKAGES.index(package_of(other)) <= place, \
            f"minisft.{name} imports minisft.{other}, of a package further down the list"


def test_modules_import_each_other_in_no_circle():
    known = modules()
    below = {name: imports(path, known) - {name} for name, path in known.items() if name}
    while free := [name for name, others in below.items() if not others & below.keys()]:
        for name in free:
            del below[name]
    assert not below, f"in a circle, or above one: {sorted(below)}"


def test_the_package_is_a_page():
    tracked = {path.name for path in PACKAGE.iterdir() if path.name != "__pycache__"}
    assert len(tracked) <= MOST_ENTRIES, sorted(tracked)
    assert {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or
            (path / "__init__.py").is_file()} <= {*PACKAGES, "__init__"}


def test_cupy_is_imported_in_one_place():
    users = [name for name, path in modules().items()
             if re.search(r"^\s*(import|from) cupy\b", path.read_text(), re.M)]
    assert users == ["backend.array"]


def test_each_operation_has_what_it_must():
    stems = {path.stem for path in (PACKAGE / "ops").glob("[a-z]*.py")}
    assert stems == REQUIRED.keys()
    for stem, kinds in REQUIRED.items():
        for kind in kinds:
            there = KINDS[kind](stem).exists()
            assert there != ((stem, kind) in EXEMPT), f"{stem}: {KINDS[kind](stem)}"


@pytest.mark.parametrize("stem", sorted(REQUIRED))
def test_operation_is_documented_and_tested_by_the_form(stem):
    source = (PACKAGE / "ops" / f"{stem}.py").read_text(encoding="utf-8")
    doc, code = ast.get_docstring(ast.parse(source)), source.split('"""', 2)[2]
    numbers = set(re.findall(r"^ *\((\d+)\)", doc, re.M))
    assert numbers, "no numbered equations"
    used = set(re.findall(r"\((\d+)\)", " ".join(re.findall(r"#.*|equation.*", code))))
    assert used == numbers, f"equations {sorted(numbers ^ used)} stand on one side only"
    assert re.search(r"\b(19|20)\d\d\b", doc), "no source"
    tests = (ROOT / "tests" / f"test_{stem}.py").read_text(encoding="utf-8")
    for name in TESTS_OF_AN_OPERATION:
        assert f"def {name}(" in tests, f"no {name}"
    assert f"minisft/ops/{stem}.py" in KINDS["page"](stem).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", sorted(modules()))
def test_no_file_hides_what_it_is(name):
    assert name.split(".")[-1] not in {"utils", "common", "base", "helpers", "misc"}


@pytest.mark.parametrize("path", sorted((ROOT / "kernels").glob("*.cu")), ids=lambda p: p.stem)
def test_kernel_says_what_it_computes(path):
    """The opening names the equations of its formula, what a block owns, memory and demands."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    opening = "\n".join(lines[:next(i for i, s in enumerate(lines) if not s.startswith("//"))])
    for words in ("Computes", "owns", "Shared memory", "Demands"):
        assert words in opening, f"the opening does not say: {words}"
    assert "#include" not in text
    formula = re.search(r"minisft/(\w+/)?\w+\.py", opening)[0]
    doc = ast.get_docstring(ast.parse((ROOT / formula).read_text(encoding="utf-8")))
    numbers = set(re.findall(r"^ *\((\d+)\)", doc, re.M))
    used = set(re.findall(r"\((\d)\)", " ".join(re.findall(r"//.*", text[len(opening):]))))
    assert used and used <= numbers, f"equations {sorted(used - numbers)} are not in {formula}"
    assert max(map(len, lines)) <= 100
