"""Accuracy in bfloat16 beside float32: paired runs, going on, and the table."""

import json

import pytest

from benchmarks import low_precision
from minisft.backend.cpu.processor import why_not_bfloat16


def run(seed, precision, accuracy, name="news"):
    return {"set": name, "seed": seed, "precision": precision, "accuracy": accuracy}


def test_differences_are_those_of_one_seed():
    found = {"sets": {"news": {"train": 1200, "test": 90}, "later": {"train": 1, "test": 1}},
             "runs": [run(0, "float32", 0.80), run(1, "bfloat16", 0.88), run(1, "float32", 0.90),
                      run(0, "bfloat16", 0.81), run(2, "float32", 0.10)]}
    (row,) = low_precision.table(found).splitlines()[2:]     # a seed without its twin is left out
    assert row == "| news | 1,200 | 90 | 0.8500 | 0.8450 | +1.00, -2.00 | **-0.50** |"


@pytest.mark.skipif(bool(why_not_bfloat16()), reason=f"{why_not_bfloat16()}")
def test_both_precisions_read_the_same_texts_and_go_on(tmp_path, capsys):
    for part, n in (("train", 30), ("test", 12)):
        (tmp_path / f"{part}.jsonl").write_text("".join(
            json.dumps({"text": f"{part} {colour} thing {i}", "label": colour}) + "\n"
            for i in range(n) for colour in ("red", "blue")))
    arguments = [f"colours={tmp_path / 'train.jsonl'}:{tmp_path / 'test.jsonl'}", "--model",
                 "scratch", "--out", str(tmp_path / "out.json"), "--test-texts", "10",
                 "--train-texts", "40", "--set", "layers=1", "width=16", "heads=2",
                 "vocab-size=300", "epochs=1", "--seeds"]
    low_precision.main([*arguments, "0"])
    first = json.loads((tmp_path / "out.json").read_text())
    assert [r["precision"] for r in first["runs"]] == ["float32", "bfloat16"]
    assert first["runs"][0]["loss"] != first["runs"][1]["loss"]
    low_precision.main([*arguments, "0", "1"])
    second = json.loads((tmp_path / "out.json").read_text())
    assert second["runs"][:2] == first["runs"] and len(second["runs"]) == 4
    assert "| colours | 40 | 10 |" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="was measured with"):
        low_precision.main([*arguments, "0", "--whole"])
