"""benchmarks/transfer.py: one line a run, going on where it stopped, and its table."""

import json

import pytest

from benchmarks import transfer
from minisft.data import toy_news


def test_runs_go_on_where_they_stopped_and_options_stay(tmp_path, capsys):
    texts, labels = toy_news.generate("train")
    for name, part in (("train", slice(0, 60)), ("test", slice(60, 80))):
        (tmp_path / f"{name}.jsonl").write_text("".join(
            json.dumps({"text": t, "label": k}) + "\n"
            for t, k in zip(texts[part], labels[part], strict=True)))
    out = tmp_path / "found.json"
    arguments = [str(tmp_path / "train.jsonl"), "--test", str(tmp_path / "test.jsonl"), "--sizes",
                 "24", "--out", str(out), "--set", 'compare="baselines"', "epochs=1"]
    transfer.main([*arguments, "--seeds", "3"])
    first = json.loads(out.read_text())["runs"]
    assert [(r["size"], r["seed"], r["n_test"]) for r in first] == [(24, 3, 20)]
    assert 0 <= first[0]["naive Bayes"] <= 1 and first[0]["random weights"] is None
    transfer.main([*arguments, "--seeds", "3", "4"])
    both = json.loads(out.read_text())["runs"]
    assert both[0] == first[0] and both[1]["seed"] == 4
    assert "| 24 | 2 | " in capsys.readouterr().out
    with pytest.raises(SystemExit, match="was measured with"):
        transfer.main([*arguments[:-1], "epochs=2"])


def test_the_table_gives_mean_and_standard_deviation():
    runs = [{"size": 100, "seed": s, "pretrained": a, "random weights": None, "naive Bayes": 0.5,
             "TF-IDF, logistic regression": None} for s, a in enumerate((0.6, 0.8))]
    assert transfer.table(runs).splitlines() == [
        "| training texts | seeds | pretrained | naive Bayes |", "| ---: | ---: | ---: | ---: |",
        "| 100 | 2 | 0.700 ± 0.141 | 0.500 ± 0.000 |"]
    assert transfer.table(runs[:1]).endswith("| 100 | 1 | 0.600 | 0.500 |")
