"""What `import minisft` offers: lazily, completely, with type hints."""

import ast
import inspect
import subprocess
import sys
import tomllib
import typing
from pathlib import Path

import pytest

import minisft

ROOT = Path(__file__).resolve().parents[1]


def python(code):
    """Runs code in a new interpreter -> what it printed."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_loads_nothing():
    assert python("import sys, minisft\n"
                  "print([name for name in sys.modules if name.startswith('minisft')])\n"
                  "assert not {'numpy', 'matplotlib', 'tokenizers'} & sys.modules.keys()\n"
                  "assert {'TextClassifier', 'load', '__version__'} <= set(dir(minisft))\n"
                  ) == "['minisft']"


@pytest.mark.parametrize("given, found", [(None, "20"), ("26", "26")])
def test_idle_threads_of_openblas_sleep_soon(monkeypatch, given, found):
    monkeypatch.delenv("OPENBLAS_THREAD_TIMEOUT", raising=False)
    if given is not None:
        monkeypatch.setenv("OPENBLAS_THREAD_TIMEOUT", given)
    assert python("import minisft, os\nprint(os.environ['OPENBLAS_THREAD_TIMEOUT'])") == found


def test_estimators_need_no_scikit_learn():
    assert python("import sys\n"
                  "sys.modules['sklearn'] = None     # importing it fails\n"
                  "import minisft\n"
                  "classifier = minisft.TextClassifier()\n"
                  "try:\n"
                  "    classifier.predict(['text'])\n"
                  "except minisft.NotFittedError as error:\n"
                  "    print(error)").startswith("this TextClassifier is not fitted yet")


@pytest.mark.parametrize("name", minisft.__all__)
def test_every_name_is_there(name):
    assert getattr(minisft, name) is not None
    assert name in dir(minisft)


def test_a_name_that_does_not_exist():
    with pytest.raises(AttributeError, match="module 'minisft' has no attribute 'TextClasifier'"):
        minisft.TextClasifier    # noqa: B018
    with pytest.raises(ImportError):
        from minisft import nothing_of_this_name  # noqa: F401


def test_a_module_is_a_module():
    from minisft import gradcheck
    from minisft.verify.gradcheck import check
    assert gradcheck.check is check
    assert callable(minisft.generate)     # and not the module of that name


def test_type_checkers_see_the_same_names():
    tree = ast.parse(Path(minisft.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.asname: node.module for node in block.body for alias in node.names}
    assert seen == minisft._MODULES
    assert (ROOT / "minisft" / "py.typed").is_file()


def test_mypy_checks_every_module_behind_a_name():
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    modules = {"minisft.verify.gradcheck" if name == "gradcheck" else module
               for name, module in minisft._MODULES.items()}
    assert modules <= {path.removesuffix(".py").replace("/", ".")
                       for path in config["tool"]["mypy"]["files"]}


def public_callables():
    """-> (name, function) of every public function, class and method behind `__all__`."""
    for name in minisft.__all__:
        value = getattr(minisft, name)
        if inspect.isclass(value):
            for attribute, member in inspect.getmembers(value):
                module = getattr(inspect.unwrap(member), "__module__", "") if callable(
                    member) else ""
                if inspect.isroutine(member) and (module or "").startswith("minisft") and (
                        not attribute.startswith("_") or attribute == "__init__"):
                    yield f"{name}.{attribute}", member
        elif inspect.ismodule(value):
            yield from ((f"{name}.{attribute}", member) for attribute, member in
                        inspect.getmembers(value, inspect.isfunction)
                        if not attribute.startswith("_") and member.__module__ == value.__name__)
        elif callable(value):
            yield name, value


@pytest.mark.parametrize("name, function", list(public_callables()), ids=lambda x: x if isinstance(
    x, str) else "")
def test_every_public_callable_is_annotated(name, function):
    parameters = inspect.signature(function).parameters
    missing = [p for p in parameters if p not in ("self", "cls") and
               parameters[p].annotation is inspect.Parameter.empty]
    assert not missing, f"{name}: {', '.join(missing)}"
    hints = typing.get_type_hints(function)
    if not name.endswith(".__init__"):
        assert "return" in hints, name
