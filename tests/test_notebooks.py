"""The notebooks without jupyter: what they show, what they cite, and what their exercises say."""

import json
import re
from pathlib import Path

import pytest

from scripts import reading_time

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "notebooks"
NOTEBOOKS = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
SOLUTIONS = sorted(path.stem for path in (FOLDER / "solutions").glob("*.ipynb"))
OPERATIONS = {path.stem for path in (ROOT / "minisft" / "ops").glob("[a-z]*.py")}
# Where the numbered equations of the other notebooks stand.
PLACES = {"block": "nn/blocks", "adam": "training/optim",
          "gradient_checking": "verify/gradcheck", "gpt2": "models/gpt2",
          "fused_kernels": "dispatch/attention_key_blocks", "headline": "evaluation/metrics",
          "span_answers": "ops/span_cross_entropy"}
MACHINE = re.compile(r"/home/|/root/|/tmp/|/work/|/Users/|/opt/|site-packages")
LEAST_MISTAKES = 3


def read(name):
    return json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))


def cells(name, kind):
    """-> the sources of a notebook's cells of that kind."""
    return ["".join(cell["source"]) for cell in read(name)["cells"] if cell["cell_type"] == kind]


def operation(name):
    """06_attention -> attention"""
    return name.split("/")[-1].split("_", 1)[1]


def place(stem):
    """-> the file that numbers the equations of a notebook, or None."""
    if stem in OPERATIONS:
        return ROOT / "minisft" / "ops" / f"{stem}.py"
    return ROOT / "minisft" / f"{PLACES[stem]}.py" if stem in PLACES else None


def numbers(stem):
    """-> the numbers of the equations in the docstrings of the notebook's file."""
    return set(re.findall(r"^ *\((\d+)\) ", place(stem).read_text(encoding="utf-8"), re.M))


def own_numbers(name):
    """-> the numbers of a notebook's own equations."""
    return set(re.findall(r"\\tag\{(\d+)\}", "\n".join(cells(name, "markdown"))))


def judgements(name):
    """-> the cells that judge an exercise."""
    return [source for source in cells(name, "code") if re.search(r"^judge\(", source, re.M)]


def before_exercises(name):
    """-> the code cells above the exercises, each with its outputs."""
    found = []
    for cell in read(name)["cells"]:
        if cell["cell_type"] == "code":
            found.append(cell)
        elif "".join(cell["source"]).startswith("## Exercises"):
            break
    return found


EVERY = NOTEBOOKS + [f"solutions/{name}" for name in SOLUTIONS]
NUMBERED = [name for name in NOTEBOOKS if place(operation(name))]


def test_there_are_notebooks():
    assert "00_tour" in NOTEBOOKS and len(NUMBERED) >= 7
    assert [name[:2] for name in NOTEBOOKS] == sorted({name[:2] for name in NOTEBOOKS})


@pytest.mark.parametrize("name", EVERY)
def test_it_is_a_notebook(name):
    book = read(name)
    assert book["nbformat"] == 4 and book["metadata"]["kernelspec"]["name"] == "python3"
    assert book["metadata"]["language_info"] == {"name": "python"}     # no version of a machine
    ids = [cell["id"] for cell in book["cells"]]
    assert len(set(ids)) == len(ids)
    assert "".join(book["cells"][0]["source"]).startswith("# ")


@pytest.mark.parametrize("name", EVERY)
def test_it_ran_from_top_to_bottom(name):
    code = [cell for cell in read(name)["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert outputs, "committed without outputs"
    assert not [o for o in outputs if o["output_type"] == "error" or o.get("name") == "stderr"]


@pytest.mark.parametrize("name", EVERY)
def test_it_names_no_machine(name):
    book = read(name)
    for cell in book["cells"]:
        for output in cell.get("outputs", []):
            output.get("data", {}).pop("image/png", None)     # any letters may stand in there
    found = MACHINE.search(json.dumps(book))
    assert not found, found


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_every_third_cell_shows_a_picture(name):
    without = 0
    for cell in before_exercises(name):
        shown = any("image/png" in output.get("data", {}) for output in cell["outputs"])
        without = 0 if shown else without + 1
        assert without < 3, f"three cells without a picture: {''.join(cell['source'])[:200]}"


@pytest.mark.parametrize("name", NUMBERED)
def test_equations_are_numbered_as_in_the_code(name):
    assert own_numbers(name) == numbers(operation(name))


@pytest.mark.parametrize("name", [name for name in NOTEBOOKS if own_numbers(name)])
def test_cited_equations_exist(name):
    comments = re.findall(r"#.*", "\n".join(cells(name, "code")))
    text = "\n".join(cells(name, "markdown") + comments)
    # (3) alone is this notebook's own equation; "(3) of `softmax`" is another's
    cited = re.findall(r"(?<![\w\\}\]])\((\d{1,2})\)(?: of `(\w+)`)?", text)
    assert cited
    for number, other in cited:
        known = numbers(other) if other else own_numbers(name)
        assert number in known, f"({number}) of {other or name} does not exist"


@pytest.mark.parametrize("name", [name for name in NUMBERED
                                  if place(operation(name)).parent.name == "ops"])
def test_an_operation_is_checked_and_its_cache_explained(name):
    stem = place(operation(name)).stem
    text, code = "\n".join(cells(name, "markdown")), "\n".join(cells(name, "code"))
    assert "## What the backward keeps, and why" in text
    assert re.search(r"\bcheck\(", code) and f"{stem}.backward" in code
    assert f"../minisft/ops/{stem}.py" in text and f"../tests/test_{stem}.py" in text


@pytest.mark.parametrize("name", EVERY)
def test_links_lead_somewhere(name):
    for target in re.findall(r"\]\(([^)#\s]+)\)", "\n".join(cells(name, "markdown"))):
        assert target.startswith("http") or ((FOLDER / name).parent / target).exists(), target


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_exercises_stand_open_and_have_solutions(name):
    assert name in SOLUTIONS, "no solutions"
    assert f"(solutions/{name}.ipynb)" in "\n".join(cells(name, "markdown"))
    assert len(judgements(name)) >= 3
    assert judgements(name) == judgements(f"solutions/{name}"), "the checks differ"
    for of, said in ((name, "open: "), (f"solutions/{name}", "right\n")):
        outputs = ["".join(output["text"]) for cell in read(of)["cells"]
                   if "".join(cell["source"]) in judgements(name) for output in cell["outputs"]]
        assert len(outputs) == len(judgements(name))
        assert all(output.startswith(said) for output in outputs), outputs


@pytest.mark.parametrize("name", SOLUTIONS)
def test_every_mistake_gets_its_own_hint(name, monkeypatch, capsys):
    assert name in NOTEBOOKS
    monkeypatch.chdir(FOLDER / "solutions")
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.setenv("MPLBACKEND", "agg")
    import exercises
    judge, calls = exercises.judge, []
    monkeypatch.setattr(exercises, "judge", lambda *args, **options: calls.append((args, options)))
    names = {}
    for source in cells(f"solutions/{name}", "code"):
        exec(source, names)
    capsys.readouterr()
    assert len(calls) == len(judgements(name))
    for (answer, right, mistakes), options in calls:
        judge(answer, right, mistakes, **options)
        assert capsys.readouterr().out == "right\n"
        assert len(mistakes) >= LEAST_MISTAKES
        for said, value in mistakes.items():
            judge(value, right, mistakes, **options)
            assert capsys.readouterr().out == f"not yet: {said}\n"


@pytest.mark.parametrize("name", EVERY)
def test_formulas_have_one_notation(name):
    text = "\n".join(cells(name, "markdown"))
    for formula in re.findall(r"\$\$.+?\$\$|\$[^$\n]+\$", text, re.S):
        assert not re.search(r"\^(T\b|\{T\})|\\intercal|\^\{?\\mathsf", formula), formula
        assert not re.search(r" \* |\\ast\b", formula), formula


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_it_says_what_comes_before_and_how_long_it_takes(name):
    note = cells(name, "markdown")[0].split("\n\n")[1]
    said = re.fullmatch(r"Before this: (.+)\. Reading (\d+) minutes, exercises (\d+)\. "
                        r"Skip it if .+\.", note)
    assert said, f"the second paragraph is no such note: {note[:80]}"
    assert (int(said[2]), int(said[3])) == reading_time.minutes(FOLDER / f"{name}.ipynb")
    before = re.findall(r"\]\((\w+)\.ipynb\)", said[1])
    assert (before or said[1] == "nothing") and all(other < name for other in before)
    table = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert re.search(rf"^\| \[{name}\]\({name}\.ipynb\) \|[^|]+\| {said[2]} \+ {said[3]} \|", table,
                     re.M), "notebooks/README.md says other minutes"


def test_the_reading_order_is_complete():
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    for name in NOTEBOOKS:
        assert f"({name}.ipynb)" in text, f"notebooks/README.md does not list {name}"
