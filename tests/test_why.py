"""`minisft why` says what a call of that size really gets."""

import numpy as np
import pytest

from minisft.backend.cpu import jit
from minisft.cli import main
from minisft.dispatch import OPERATIONS, attention, layer_norm


def first_line(capsys, *argv):
    assert main(["why", *argv]) == 0
    return capsys.readouterr().out.splitlines()[0]


@pytest.mark.parametrize("tokens, expected", [(100, "groups"), (300, "key blocks")])
def test_attention_of_a_batch(capsys, tokens, expected):
    with jit.compiled(False):
        line = first_line(capsys, "attention", "--tokens", str(tokens), "--texts", "2")
        q = np.zeros((2 * tokens, 1, 4), np.float32)
        chosen = attention.choose(q, q, q, np.array([0, tokens, 2 * tokens]),
                                  np.array([0, tokens]), np.array([tokens, tokens]))
    assert line == f"attention: {expected}" == f"attention: {chosen.name}"


@pytest.mark.parametrize("argv, expected", [
    (["--precision", "bfloat16"], "tensor cores"), ([], "fused kernel"),
    (["--kernels", "naive"], "naive kernel"), (["--width", "2400"], "formula"),
    (["--precision", "bfloat16", "--cached"], "fused kernel"), (["--kernels", "off"], "key blocks"),
    (["--float64"], "formula"), (["--precision", "bfloat16", "--dropout", "0.1"], "tensor cores")])
def test_attention_on_a_card_that_is_not_here(capsys, argv, expected):
    assert first_line(capsys, "attention", "--device", "cuda", "--tokens", "1024", *argv) == \
        f"attention: {expected}"


def test_every_operation_and_every_reason(capsys):
    assert main(["why"]) == 0
    out = capsys.readouterr().out
    for name, operation in OPERATIONS.items():
        assert f"{name}: " in out
        for implementation in operation.implementations:
            assert f"  {implementation.name} " in out
    with jit.compiled(False):
        x = np.zeros((4096, 768), np.float32)
        assert first_line(capsys, "layer_norm") == "layer_norm: row blocks" == \
            f"layer_norm: {layer_norm.choose(x, x[0], x[0]).name}"


@pytest.mark.parametrize("argv, message", [
    (["convolution"], "no operation 'convolution', expected one of linear, embedding"),
    (["attention", "--width", "7"], "--width 7 is no multiple of --heads 12"),
    (["dropout", "--dropout", "1"], "--dropout is 1.0, expected a number in [0, 1)"),
    (["linear", "--tokens", "1000000000", "--texts", "1000000", "--width", "1000000", "--heads",
      "1"], "--width 1000000: expected no more numbers than an array can have")])
def test_refused_in_one_line(capsys, argv, message):
    assert main(["why", *argv]) == 2
    assert message in capsys.readouterr().err
