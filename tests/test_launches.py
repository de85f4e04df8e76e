"""What a training step asks of a card: launches are counted, with kernels stubbed."""

import pytest

from benchmarks import gpu_host
from minisft.backend import array
from minisft.backend.gpu import cublaslt, gemm

# launches of a step of 12 layers, transfers among them; a change may only lower them
MOST = {"classifier, bfloat16": 345, "classifier, bfloat16, dropout": 348,
        "classifier, float32": 343, "language model, bfloat16": 330, "classifier, replayed": 5,
        "language model, replayed": 5}


@pytest.fixture(scope="module")
def found():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(array, "cupy", None)
        patch.setattr(cublaslt, "library", cublaslt.library)     # both are replaced
        patch.setattr(gemm, "planned", gemm.planned)
        patch.delenv("MINISFT_CUDA", raising=False)
        patch.setenv("MINISFT_COMPILED", "off")
        patch.setenv("MINISFT_CUDA_GRAPHS", "")     # it is changed
        yield gpu_host.measured(1)


@pytest.mark.parametrize("case", MOST)
def test_no_step_launches_more(found, case):
    seconds, launches = found[case]
    assert len(seconds) == 1 and launches.total() <= MOST[case], launches


def test_a_batch_goes_to_the_card_at_once(found):
    for case, (_, launches) in found.items():
        if "replayed" in case:
            # and AdamW's numbers; loss, denominator and norm come back together
            assert launches == {"to card": 2, "graph": 1, "to CPU": 1, "adamw_step": 1}
            continue
        # the language model's rows that count come on their own, and so does dropout's step
        assert launches["to card"] == 2 + ("language" in case) + ("dropout" in case), case
        assert launches["to CPU"] == 3


@pytest.mark.slow
def test_two_checkouts_are_compared(capsys):
    assert gpu_host.main(["--before", str(gpu_host.ROOT), "--steps", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(MOST)
    for line, most in zip(lines, MOST.values(), strict=True):
        assert line.count(f" {most} launches") == 2 and "before" in line and "now" in line
