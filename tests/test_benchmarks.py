import json

import pytest

from benchmarks import gpu
from minisft import array, emulator


@pytest.mark.slow
@pytest.mark.skipif(emulator.compiler() is None, reason="no C++ compiler to emulate CUDA kernels")
def test_the_gpu_benchmark_runs_dry(tmp_path, capsys):
    out = tmp_path / "gpu.json"
    assert gpu.main(["--dry-run", "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert not found["wrong"] and len(found["results"]) >= 18
    assert all(r["seconds"] > 0 for r in found["results"])
    assert "attention 2x16 backward" in capsys.readouterr().out


@pytest.mark.skipif(array.gpu_available(), reason="there is a card")
def test_without_a_card_it_says_so(capsys):
    assert gpu.main([]) == 2
    assert "no CUDA card" in capsys.readouterr().err
