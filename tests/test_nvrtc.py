"""Every kernel compiles for real cards, without a warning, and uses what the table says."""

import json

import nvrtc
import pytest

from minisft.backend.gpu import cuda

pytestmark = pytest.mark.skipif(nvrtc.folder() is None,
                                reason="no NVRTC (extra `kernels`) to compile CUDA kernels")
TABLE = json.loads(nvrtc.TABLE.read_text())
# The two main ones on each run; the older and the newer with the slow tests.
ARCHITECTURES = [pytest.param(name, marks=() if name in ("sm_80", "sm_90") else pytest.mark.slow)
                 for name in nvrtc.ARCHITECTURES]
# Bytes of spilled registers, in a thread: a few beside a bound that lets one block more in.
MOST_SPILLED = {"sm_75": 96, "sm_80": 16, "sm_90": 32, "sm_120": 88}


@pytest.fixture(scope="module")
def library():
    return nvrtc.library()


def test_the_compiler_is_the_one_of_the_table(library):
    assert nvrtc.version(library) == TABLE["nvrtc"]


def test_every_kernel_is_compiled():
    files = {path.stem for path in cuda.kernel_folder().glob("*.cu")}
    assert files == nvrtc.BUILDS.keys() == TABLE.keys() - {"nvrtc"}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("file, defines", [
    pytest.param(file, defines, id=f"{file} {nvrtc.label(defines)}")
    for file, builds in nvrtc.BUILDS.items() for defines in builds])
def test_kernels_use_what_the_table_says(library, file, defines, architecture):
    if nvrtc.too_old(file, architecture, defines):
        with pytest.raises(ValueError, match="NVRTC refuses"):
            nvrtc.measured(library, file, architecture, defines)
        return
    used, warnings = nvrtc.measured(library, file, architecture, defines)
    assert not warnings
    assert used.keys() == cuda.signatures(cuda.source(file)).keys()
    expected = {kernel: dict(rows[architecture]) for kernel, rows in
                TABLE[file][nvrtc.label(defines)].items()}
    if not nvrtc.disassembler():
        for row in expected.values():
            row.pop("loop", None)
    assert used == expected, "if it is meant so: python tests/nvrtc.py"


def test_local_memory_holds_spilled_registers_alone():
    """An array that is indexed by what the compiler cannot know lies in the card's memory."""
    for file in nvrtc.BUILDS:
        for label, kernels in TABLE[file].items():
            for kernel, rows in kernels.items():
                for architecture, row in rows.items():
                    build = file, label, kernel, architecture
                    assert row["stack"] <= (MOST_SPILLED.get(architecture, 0)), build
                    assert bool(row["stack"]) == bool(row["spilled"]), build


def test_what_is_wrong_is_found(library):
    text = cuda.source("softmax")
    with pytest.raises(ValueError, match=r"softmax.cu\(\d+\): error"):
        nvrtc.compiled(library, text.replace("float mine = 0.0f;", ""), "softmax.cu", "sm_80", {})
    log, _ = nvrtc.compiled(
        library, text.replace("float mine = 0.0f;", "float mine, unused = 0.0f;"), "softmax.cu",
        "sm_80", {})
    assert "warning" in log
