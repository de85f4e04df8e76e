"""The pages: links that lead somewhere, equations that exist, no operation left out. No Sphinx."""

import ast
import doctest
import importlib.util
import re
import sys
from pathlib import Path

import pytest

from minisft.cli import COMMANDS, main
from scripts import draw_headline

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
COPIES = ("README.zh-CN.md", "CONTRIBUTING.md", "CHANGELOG.md")
PAGES = [*(ROOT / name for name in COPIES), *sorted(
    path for path in DOCS.rglob("*.md")     # but what the build copies in
    if path.name not in ("readme.zh-CN.md", "contributing.md", "changelog.md")
    and path.parent != DOCS / "notebooks")]
LINK = re.compile(r"\]\(([^()\s:#]*)(?:#([^()\s]*))?\)")
NAMES = [path.relative_to(ROOT).as_posix() for path in PAGES]


def load_catalogue():
    """docs/_ext is no package: what the site shows of the operations is loaded by its path."""
    spec = importlib.util.spec_from_file_location("catalogue", DOCS / "_ext" / "catalogue.py")
    module = sys.modules["catalogue"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


catalogue = load_catalogue()
OPERATIONS = {o.stem: o for o in catalogue.operations()}
INDEX = (DOCS / "operations.md").read_text(encoding="utf-8")
SECTIONS = {part.split("\n", 1)[0]: part for part in re.split(r"^## ", INDEX, flags=re.M)[1:]}


def prose(path):
    """-> a page without its code."""
    return re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.S)


def slugs(path):
    """-> the anchors that a page's headings give."""
    titles = re.findall(r"^#+ (.+)$", prose(path), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def broken(path):
    """-> the links of a page that lead nowhere."""
    found = []
    for target, fragment in LINK.findall(prose(path)):
        file = (path.parent / target).resolve() if target else path
        if not file.is_file():
            found.append(target)
        elif fragment and file.suffix == ".py":
            lines = file.read_text(encoding="utf-8").count("\n")
            if re.fullmatch(r"L\d+", fragment):
                found += [f"{target}#{fragment}"] * (int(fragment[1:]) > lines)
            elif fragment not in {place.name for place in catalogue.names(file)}:
                found.append(f"{target}#{fragment}")
        elif fragment and file.suffix == ".md" and fragment not in slugs(file):
            found.append(f"{target}#{fragment}")
    return found


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name):
    assert not broken(ROOT / name)


def test_a_dead_link_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# One two\n[a](none.md) [b](#one-two) [c](#three) [d](page.md#one-two)\n")
    assert broken(page) == ["none.md", "#three"]


def test_every_page_is_in_the_contents():
    listed = set()
    for page in (DOCS / "index.md", DOCS / "library.md"):
        for tree in re.findall(r"```\{toctree\}\n(.*?)```", page.read_text("utf-8"), re.S):
            listed |= {line for line in tree.split("\n") if line and not line.startswith(":")}
    for path in PAGES[len(COPIES):]:
        page = path.relative_to(DOCS).with_suffix("").as_posix()
        assert page == "index" or page in listed or \
            any("*" in p and Path(page).match(p) for p in listed), f"{page} is in no toctree"


def test_every_operation_is_on_the_index():
    stems = {path.stem for path in (ROOT / "minisft" / "ops").glob("[a-z]*.py")}
    assert OPERATIONS.keys() == SECTIONS.keys() == stems | {"optim"}
    for stem, section in SECTIONS.items():
        assert f"```{{operation}} {stem}\n```" in section


@pytest.mark.parametrize("stem", sorted(OPERATIONS))
def test_the_table_leads_to_everything_of_an_operation(stem):
    o = OPERATIONS[stem]
    (row,) = re.findall(rf"^\| \[{stem}\].*$", INDEX, re.M)
    for path in (o.path, o.notebook, o.check.path, *o.kernels, *o.compiled):
        assert path is None or f"(../{path}" in row, path
    assert f"(../{o.dispatch.path}#{o.dispatch.name})" in row


@pytest.mark.parametrize("stem", sorted(OPERATIONS))
def test_equation_numbers_are_those_of_the_code(stem):
    shown = [int(n) for n in re.findall(r"\\tag\{(\d+)\}", SECTIONS[stem])]
    o = OPERATIONS[stem]
    assert shown == sorted(o.equations) == sorted(o.places), \
        "the index, the docstring and the comments of the code number other equations"
    doc = ast.get_docstring(ast.parse((ROOT / o.path).read_text("utf-8")), clean=False)
    for number, text in o.equations.items():
        assert f"({number}) {text.split('   ')[0].splitlines()[0]}" in doc


@pytest.mark.parametrize("stem", sorted(OPERATIONS))
def test_links_of_an_operation_lead_to_its_lines(stem):
    o = OPERATIONS[stem]
    lines = {path: (ROOT / path).read_text("utf-8").splitlines()
             for path in {o.path, o.check.path, *o.kernels}}
    assert lines[o.check.path][o.check.line - 1].startswith(f"def {o.check.name}(")
    for number, places in o.places.items():
        for place in places:
            assert f"({number})" in lines[place.path][place.line - 1]
    for place in o.functions:
        assert place.name.rpartition(".")[2] in lines[o.path][place.line - 1]
    assert o.notebook is None or (ROOT / o.notebook).is_file()


@pytest.mark.parametrize("number, right", [(4, True), (5, False)])
def test_a_number_that_the_docstring_lacks_is_found(tmp_path, monkeypatch, number, right):
    text = (ROOT / OPERATIONS["linear"].path).read_text("utf-8")
    assert "# (4)" in text
    (tmp_path / "op.py").write_text(text.replace("# (4)", f"# ({number})"))
    monkeypatch.setattr(catalogue, "ROOT", tmp_path)
    doc = ast.get_docstring(ast.parse(text), clean=False)
    found = catalogue.gather(tmp_path / "op.py")
    assert (found.keys() == catalogue.equations(doc).keys()) == right


def equations_cited(path):
    """-> (stem, number) of each equation that a page names after a link to its operation."""
    said = re.compile(r"\[[^\]]+\]\([./]*minisft/(?:ops/)?(\w+)\.py#?\w*\)"
                      r"[^\[]{0,12}(?:equations?|公式)((?:[ \n]*(?:\(\d+\)|and|to|至|、|,))+)")
    return [(stem, int(n)) for stem, numbers in said.findall(prose(path))
            for n in re.findall(r"\((\d+)\)", numbers)]


@pytest.mark.parametrize("name", [name for name in NAMES if "article" in name])
def test_equations_that_a_page_cites_exist(name):
    cited = equations_cited(ROOT / name)
    assert len(cited) >= 10
    for stem, number in cited:
        assert number in OPERATIONS[stem].equations, f"{stem} has no equation ({number})"


def test_the_two_languages_link_to_the_same_code():
    english, chinese = (
        {target for target in LINK.findall(prose(DOCS / name)) if target[0].endswith(".py")}
        for name in ("article.md", "article.zh-CN.md"))
    assert english == chinese


def statements(name):
    """-> the rows of the table that goes through the whole article, without its head."""
    rows = re.findall(r"^\|(.*)\|$", prose(DOCS / name), re.M)
    return [[cell.strip() for cell in row.split(" | ")] for row in rows[2:]]


@pytest.mark.parametrize("name", ["article.md", "article.zh-CN.md"])
def test_every_statement_of_the_article_has_a_row(name):
    rows = statements(name)
    assert all(len(row) == 4 and all(row) for row in rows), "an empty or a broken row"
    sections = {row[0].strip().split(",")[0].split("，")[0] for row in rows}
    parts = {2: 2, 3: 4, 4: 3, 5: 4, 6: 4, 7: 3, 8: 4}
    assert sections == {"1", *(f"{a}.{b + 1}" for a, n in parts.items() for b in range(n)), "9"}


def test_the_two_languages_treat_the_same_statements():
    english, chinese = (statements(name) for name in ("article.md", "article.zh-CN.md"))
    assert len(english) == len(chinese) > 70
    for there, here in zip(english, chinese, strict=True):
        assert re.match(r"[\d.]+", there[0])[0] == re.match(r"[\d.]+", here[0])[0]
        assert LINK.findall(there[-1]) == LINK.findall(here[-1])


def test_no_section_of_the_article_is_missing(shared_data):
    article = (shared_data / "article.zh-CN.txt").read_text(encoding="utf-8")
    parts = set(re.findall(r"^#{2,3} (\d(?:\.\d)?)[. ]", article, re.M))
    covered = {re.match(r"[\d.]+", row[0])[0] for row in statements("article.md")}
    assert parts - {part[0] for part in parts if "." in part} == covered
    formulas = len(re.findall(r"\$\$.+?\$\$", article, re.S))
    assert sum("formula" in row[0] for row in statements("article.md")) == formulas


@pytest.mark.parametrize("name", NAMES)
def test_commands_and_their_options_exist(name, capsys):
    text = (ROOT / name).read_text(encoding="utf-8")
    for command, rest in re.findall(r"^minisft (\w+)((?:[^\n]|(?<=\\)\n)*)", text, re.M):
        assert command in COMMANDS
        with pytest.raises(SystemExit):
            main([command, "--help-all"])
        known = capsys.readouterr().out
        for option in re.findall(r"--[a-z][a-z-]*", rest):
            assert option in known, f"minisft {command} has no {option}"


@pytest.mark.parametrize("name", [
    *(name for name in NAMES if any(word in name for word in ("article", "gpu", "architecture"))),
    pytest.param("docs/index.md", marks=pytest.mark.slow)])
def test_python_of_a_page_runs(name, capsys):
    text = (ROOT / name).read_text(encoding="utf-8")
    for code, shown in re.findall(r"```python\n(.*?)```\n(?:\n```text\n(.*?)```)?", text, re.S):
        exec(compile(code, name, "exec"), {})
        printed = capsys.readouterr().out
        assert not shown or doctest.OutputChecker().check_output(shown, printed, 0)


def test_every_module_is_in_the_library():
    shown = [module for path in (DOCS / "library").glob("*.md")
             for name in re.findall(r"^```\{modules\} (\w+)\n```$", path.read_text("utf-8"), re.M)
             for module in catalogue.modules(name)]
    every = {name for name in catalogue.modules("") if name not in ("minisft", "minisft.__main__")}
    assert sorted(shown) == sorted(every)


def test_the_picture_of_the_headline_shows_its_table():
    assert draw_headline.PICTURE.read_text("utf-8") == draw_headline.draw(draw_headline.rows())


def test_the_drawing_names_what_is_there():
    drawn = re.findall(r'class="code">([^<]+)<', (DOCS / "architecture.svg").read_text("utf-8"))
    for name in re.findall(r"[a-z_0-9/]+(?= ·|$)", "\n".join(n for n in drawn if " · " in n), re.M):
        path = ROOT / "minisft" / name
        assert path.is_dir() or path.with_suffix(".py").is_file(), name
