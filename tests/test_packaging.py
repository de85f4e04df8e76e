"""The wheel carries everything that the code opens, and nothing else."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The names in a wheel built from a copy of the tracked and new files of this tree."""
    folder = tmp_path_factory.mktemp("wheel")
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT,
                            capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout: nothing says which files belong to the project")
    source = folder / "source"
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    built = subprocess.run([sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet",
                            "--wheel-dir", str(folder), str(source)],
                           capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as file:
        return path.name, set(file.namelist())


def test_wheel_carries_every_module(wheel):
    _, names = wheel
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "minisft").rglob("*.py")}
    assert modules <= names, f"missing: {sorted(modules - names)}"


def test_wheel_carries_every_kernel(wheel):
    _, names = wheel
    kernels = {f"minisft/kernels/{path.relative_to(ROOT / 'kernels').as_posix()}"
               for path in (ROOT / "kernels").rglob("*") if path.is_file()}
    assert kernels <= names, f"missing: {sorted(kernels - names)}"


def test_wheel_carries_the_bundled_model(wheel):
    _, names = wheel
    files = {path.relative_to(ROOT).as_posix() for path in (ROOT / "minisft" / "bundled").rglob("*")
             if path.is_file()}
    assert any(name.endswith("model.safetensors") for name in files)
    assert files <= names, f"missing: {sorted(files - names)}"


def test_wheel_carries_the_style_of_reports(wheel):
    assert "minisft/evaluation/report.css" in wheel[1]


def test_wheel_holds_one_package_only(wheel):
    name, names = wheel
    assert {n.split("/")[0] for n in names} == {
        "minisft", "-".join(name.split("-")[:2]) + ".dist-info"}
    assert name.endswith("-py3-none-any.whl")


def test_a_plain_checkout_runs():
    found = subprocess.run([sys.executable, "-m", "minisft", "--help"], cwd=ROOT,
                           capture_output=True, text=True)
    assert found.returncode == 0 and "finetune" in found.stdout
