"""The launcher: what it reads from a kernel's source, and what it refuses."""

from pathlib import Path

import numpy as np
import pytest

from minisft.backend.gpu import cuda, emulator
from minisft.cli import main

needs_compiler = pytest.mark.skipif(emulator.compiler() is None,
                                    reason="no C++ compiler to emulate CUDA kernels")
SCALED = """extern "C" __global__ void scaled(const float* __restrict__ x, float* __restrict__ y,
                                                  int stride, float factor) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < COUNT) y[i] = x[i * stride] * factor;
}
"""


def scale(x, y, stride=1, factor=2, count=3):
    cuda.launch_source(SCALED, "scaled", (1,), (32,), x=x, y=y, stride=stride,
                       factor=factor, defines={"COUNT": count})
    return y


@pytest.fixture
def x(rng):
    return rng.standard_normal(3, dtype=np.float32)


def test_parameters_are_read_from_the_source():
    (x, y, stride, factor) = cuda.signatures(SCALED)["scaled"]
    assert x == cuda.Parameter("x", np.float32, pointer=True, written=False)
    assert y == cuda.Parameter("y", np.float32, pointer=True, written=True)
    assert stride == cuda.Parameter("stride", np.int32, pointer=False, written=False)
    assert factor.type is np.float32
    for file in sorted(cuda.kernel_folder().glob("*.cu")):
        found = cuda.signatures(cuda.source(file.stem))
        assert len(found) == file.read_text().count("__global__ void") > 0
    with pytest.raises(ValueError, match="parameter 'double x': expected one of float, int"):
        cuda.signatures('extern "C" __global__ void wide(double x) {}')


@needs_compiler
def test_numbers_are_cast(x):
    assert np.array_equal(scale(x, np.zeros(3, np.float32), 1, 0.5), x / 2)
    assert np.array_equal(scale(x, np.zeros(3, np.float32), np.int64(0), True, 2)[:2],
                          x[[0, 0]])


@needs_compiler
def test_rows_may_lie_apart(rng):
    wide = rng.standard_normal((4, 3, 2), dtype=np.float32)
    rows = cuda.Rows(wide[:, 1])
    assert rows.stride() == 6
    y = np.zeros(4, np.float32)
    cuda.launch_source(SCALED, "scaled", (1,), (32,), x=rows, y=y, stride=rows.stride(),
                       factor=1, defines={"COUNT": 4})
    assert np.array_equal(y, wide[:, 1, 0])
    assert cuda.Rows(wide[:1, 1]).stride() == 2     # a single row has no next one
    for apart in (wide.transpose(0, 2, 1), wide[::-1]):
        with pytest.raises(ValueError, match="each row must be contiguous"):
            cuda.Rows(apart).stride()


@pytest.mark.parametrize("change, message", [
    ({"x": np.zeros(3)}, "scaled: x is float64, expected float32"),
    ({"x": np.zeros(6, np.float32)[::2]}, r"scaled: x has strides \(8,\) at shape \(3,\)"),
    ({"y": np.broadcast_to(np.float32(0), 3)}, "scaled: y has strides"),
    ({"stride": 2**31}, "scaled: stride is 2147483648|out of bounds|too large"),
    ({"stride": 1.5}, "scaled: stride is 1.5, which int32 cannot hold"),
])
def test_what_does_not_fit_is_refused(x, change, message):
    given = {"x": x, "y": np.zeros(3, np.float32)} | change
    with pytest.raises((ValueError, OverflowError), match=message):
        scale(**given)


def test_a_launch_that_cannot_be_is_refused(x):
    y = np.zeros(3, np.float32)
    y.flags.writeable = False
    with pytest.raises(ValueError, match="scaled: y is written to, but the array is read-only"):
        scale(x, y)
    with pytest.raises(ValueError, match="scaled: missing y, factor; unknown z; expected x, y, "
                                         "stride, factor"):
        cuda.launch_source(SCALED, "scaled", (1,), (32,), x=x, z=y, stride=1)
    given = {"x": x, "y": np.zeros(3, np.float32), "stride": 1, "factor": 1}
    with pytest.raises(ValueError, match=r"blocks of \(32, 64, 1\) threads, expected 1 to 1024"):
        cuda.launch_source(SCALED, "scaled", (1,), (32, 64), **given)
    with pytest.raises(ValueError, match=r"a grid of \(1, 65536, 1\) blocks"):
        cuda.launch_source(SCALED, "scaled", (1, 65536), (32,), **given)


def test_an_empty_grid_is_no_launch(x):
    cuda.launch_source(SCALED, "scaled", (0,), (32,), x=x, y=np.zeros(3, np.float32), stride=1,
                       factor=1)


@needs_compiler
def test_sizes_are_compiled_in(x):
    y = np.zeros(3, np.float32)
    assert np.array_equal(scale(x, y, count=1) != 0, [True, False, False])
    assert np.array_equal(scale(x, y, count=2) != 0, [True, True, False])


@needs_compiler
def test_check_runs_every_kernel_when_asked(monkeypatch, capsys):
    monkeypatch.setenv("MINISFT_CUDA", "emulate")
    monkeypatch.setenv("MINISFT_COMPILED", "off")     # compiled loops have checks of their own
    assert main(["check", "softmax"]) == 0
    out = capsys.readouterr().out
    assert "softmax (naive)" in out and "softmax (fused)" in out and "3 checks, all pass" in out
    monkeypatch.setenv("MINISFT_CUDA", "")
    assert main(["check", "softmax"]) == 0
    assert "(fused)" not in capsys.readouterr().out


@needs_compiler
def test_a_broken_kernel_fails_the_check(monkeypatch, capsys):
    monkeypatch.setenv("MINISFT_CUDA", "emulate")
    whole = cuda.source
    monkeypatch.setattr(cuda, "source", lambda file: whole(file).replace(
        "exp_below(s[j], whole.largest) * scale", "exp_below(s[j], whole.largest)"))
    assert main(["check", "softmax (fused)"]) == 1
    out = capsys.readouterr().out
    assert "FAIL" in out and "1 check, 1 FAIL (softmax (fused))" in out


@needs_compiler
def test_a_fine_tune_chooses_its_kernels(monkeypatch, tmp_path):
    monkeypatch.setenv("MINISFT_CUDA", "emulate")
    used = set()
    launch = cuda.launch_source
    monkeypatch.setattr(cuda, "launch_source", lambda text, kernel, *sizes, **given: (
        used.add(kernel), launch(text, kernel, *sizes, **given))[1])
    file = tmp_path / "few.jsonl"
    file.write_text("".join(f'{{"text": "day {i}", "label": "{"xy"[i % 2]}"}}\n' for i in range(8)))
    for version, attention in (("naive", "attention_naive_output"), ("fused", "attention_forward"),
                               ("off", None)):
        used.clear()
        assert main(["finetune", "--train", str(file), "--test", str(file), "--model",
                     "scratch", "--layers", "1", "--width", "32", "--heads", "2",
                     "--vocab-size", "257", "--epochs", "1",
                     "--valid-fraction", "0.25", "--compare", "none", "--quiet", "--out",
                     str(tmp_path / version), "--kernels", version]) == 0
        if attention is None:
            assert not used
        else:
            others = {"gelu_backward", "adamw_step", "dropout_apply", "cross_entropy_sum",
                      "residual_layer_norm_backward", "column_sums", "embedding_backward"}
            assert {attention} | others <= used
            assert not {"attention_naive_output", "attention_forward"} - {attention} & used


@needs_compiler
def test_the_page_tells_no_lies():
    page = (Path(__file__).resolve().parents[1] / "docs" / "kernels.md").read_text()
    code = page.split("<!-- a kernel of your own -->\n```python\n")[1].split("```")[0]
    names = {}
    exec(code, names)
    assert np.array_equal(names["y"], np.arange(100) + 1)
    for file in cuda.kernel_folder().glob("*.cu"):
        assert file.stem.removesuffix("_naive") in page
