"""The table of real sets: what is removed, what is drawn, going on, and merging."""

import json

import pytest

from benchmarks import real_sets

TINY = ["--set", "layers=1", "width=16", "heads=2", "vocab_size=300", "epochs=1"]


def write(path, rows):
    path.write_text("".join(json.dumps({"text": t, "label": k}) + "\n" for t, k in rows))
    return path


@pytest.fixture
def files(tmp_path):
    train = [(f"{colour} thing number {n}", colour) for n in range(30)
             for colour in ("red", "blue")]
    test = [("Red thing: number 3!", "red"), ("a red one", "red"), ("a blue one", "blue")]
    return write(tmp_path / "train.jsonl", train), write(tmp_path / "test.jsonl", test)


def test_measures_goes_on_and_merges(files, tmp_path, capsys):
    out = tmp_path / "out.json"
    arguments = [f"colours={files[0]}:{files[1]}", "--models", "tiny=scratch", "--out", str(out),
                 "--max-tokens", "8", *TINY, "--seeds"]
    real_sets.main([*arguments, "0"])
    first = json.loads(out.read_text())
    assert first["sets"] == {"colours": {"train": 60, "offered": 60, "test": 2, "removed": 1}}
    real_sets.main([*arguments, "0", "1"])
    second = json.loads(out.read_text())
    assert second["runs"][0] == first["runs"][0] and [r["seed"] for r in second["runs"]] == [0, 1]
    run = second["runs"][1]
    assert run["n"] == 2 and run["recipe"]["max_length"] == 8
    assert {"majority_class", "naive_bayes"} <= run["baselines"].keys()
    assert "| colours | tiny | 2 |" in capsys.readouterr().out

    with pytest.raises(SystemExit, match="was measured with"):
        real_sets.main([*arguments, "0", "--train-texts", "20"])
    (tmp_path / "b.json").write_text(json.dumps(second | {"runs": [run | {"model": "other"}]}))
    real_sets.main(["--merge", str(out), str(tmp_path / "b.json"), "--markdown",
                    str(tmp_path / "table.md")])
    text = (tmp_path / "table.md").read_text()
    assert "| colours | tiny | 2 |" in text and "| colours | other | 1 |" in text
    assert text.count("| colours | naive Bayes | 2 |") == 1      # one per seed, not per model
    with pytest.raises(SystemExit, match="stands in another file too"):
        real_sets.main(["--merge", str(out), str(out)])


def test_whole_texts_are_no_part_of_another():
    texts = ["a b", "c a b d", "b c", "a d", "c a b d", "d"]
    assert real_sets.whole(texts) == [1, 2, 3]
    joined = [f" {t} " for t in texts]
    slow = [n for n, t in enumerate(joined)
            if not any(t in other and (m < n or t != other) for m, other in enumerate(joined)
                       if m != n)]
    assert slow == real_sets.whole(texts)


def test_trec_lines_and_their_faults(tmp_path):
    path = tmp_path / "q.label"
    path.write_bytes(b"LOC:city What sister\xf0city is it ?\n\nNUM:date When ?\n")
    assert real_sets.read(path, None) == [("What sister\xf0city is it ?", "LOC"),
                                          ("When ?", "NUM")]
    path.write_text("LOC:city\n")
    with pytest.raises(Exception, match="line 1: expected COARSE:fine question"):
        real_sets.read(path, None)


def test_the_table_counts_what_is_more_than_chance():
    def run(seed, p, ours, theirs):
        one = {"accuracy": 0.5, "macro_f1": 0.4, "mcnemar": {
            "p": p, "only_model": ours, "only_baseline": theirs}}
        return {"set": "s", "model": "m", "seed": seed, "accuracy": 0.9 + seed / 100,
                "macro_f1": 0.9, "n": 100, "baselines": {"naive_bayes": one}}
    found = {"sets": {"s": {"train": 5000, "test": 100, "removed": 2}},
             "runs": [run(0, 0.01, 9, 1), run(1, 0.2, 5, 2), run(2, 0.001, 0, 20)]}
    lines = real_sets.table(found).split("\n")
    assert lines[2] == "| s | 5,000 | 100 | 2 |"
    assert lines[-2] == ("| s | m | 3 | 0.910 | 0.885 to 0.935 | 0.838 to 0.952 | 0.900 | naive "
                         "Bayes: 1 of 3, worse in 1 (largest p 0.2) |")
    assert lines[-1].startswith("| s | naive Bayes | 3 | 0.500 |")


@pytest.mark.parametrize("arguments", [["x"], ["a=b:c"], ["x", "--out", "o.json"],
                                       ["--merge", "none.json"]])
def test_faults_are_one_line(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        real_sets.main(arguments)


def test_known_sets(shared_data):
    class Args:
        text_column, label_column, whole, train_texts = ["text"], "label", False, None
    removed = {("trec/train_5500.label", "trec/TREC_10.label"): 11,
               ("sst2/train.tsv.gz", "sst2/dev.tsv"): 2,
               ("sms_spam/train.csv", "sms_spam/test_nodup.csv"): 0}
    for (train, test), count in removed.items():
        a, b = (real_sets.read(str(shared_data / f), Args) for f in (train, test))
        assert len(b) - len(real_sets.fresh(a, b)) == count
