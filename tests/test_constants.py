"""What formulas, compiled loops and kernels share stands once in the package."""

import re
from pathlib import Path

import pytest

from minisft.backend.constants import ceil_div

PACKAGE = Path(__file__).resolve().parents[1] / "minisft"
# in loops that Numba compiles no function of ours may be called
LOOPS = {"dropout.py", "attention_amx.py", "attention_groups.py", "matmul_amx.py",
         "matmul_bfloat16.py", "residual_layer_norm.py"}


def places(pattern):
    """-> the files of the package whose code has the pattern."""
    return {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py")
            if re.search(pattern, re.sub(r'""".*?"""', "", path.read_text(encoding="utf-8"),
                                         flags=re.S))}


@pytest.mark.parametrize("number", [r"-100\b", r"0\.044715", r"sqrt\(2 / pi\)", "0xD2511F53",
                                    "0xCD9E8D57", "0x9E3779B9", "0xBB67AE85"])
def test_a_shared_number_stands_once(number):
    assert places(number) == {"backend/constants.py"}


def test_rounding_up_stands_once():
    loops = {f"backend/cpu/compiled/{name}" for name in LOOPS}
    assert places(r"-\(-") == {"backend/constants.py"} | loops


def test_ceil_div_rounds_up():
    assert [ceil_div(n, 4) for n in (0, 1, 3, 4, 5)] == [0, 1, 1, 1, 2]
