"""Reports: what a user's text may hold must not break a table, and every section is there.

The same for the Markdown and for the page, which are made of the same blocks.
"""

import re
from base64 import b64decode
from html.parser import HTMLParser

import numpy as np
import pytest

from minisft.evaluation import comparison, metrics, report
from minisft.evaluation.document import one_line
from minisft.evaluation.figures import count, p_value
from minisft.evaluation.markdown import escape

HOSTILE = ("a | b `code` <script>alert(1)</script>\nnew\r\n\u2028line "
           "*x* _y_ [l](u) ![i](u) $z$ \\| &")
NAMES = ["good|bad", "<b>"]


def tables(text):
    """Markdown -> list of tables, each a list of rows of cells split at unescaped pipes."""
    found, rows = [], []
    for line in [*text.split("\n"), ""]:
        if line.startswith("|"):
            rows.append(re.split(r"(?<!\\)(?:\\\\)*\|", line)[1:-1])
        elif rows:
            found.append(rows)
            rows = []
    return found


class Page(HTMLParser):
    """Elements by name, the cells of each table, and the text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.tables, self.text, self.images = [], [], "", []
        self.in_cell = False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self.in_cell = True
        if tag == "img":
            self.images.append(dict(attributes))

    def handle_data(self, data):
        self.text += data
        if self.in_cell:
            self.tables[-1][-1][-1] += data

    def handle_endtag(self, tag):
        self.in_cell = self.in_cell and tag not in ("td", "th")


def some_results():
    logp = np.log([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7], [0.99, 0.01]])
    return metrics.classification([0, 0, 1, 1], logp, NAMES) | {
        "train_seconds": 12.5, "tokens_per_second": 34567.8, "epochs_run": 2, "best_epoch": 1}


def some_data(**changes):
    return {"train_path": "train_set.csv", "test_path": "test|set.csv", "n_train": 10_000,
            "n_valid": 10, "n_test": 4, "labels": NAMES, "cut_train": 3, "cut_test": 0,
            "cleaned": {"html|tags": 1203}, "shared_with_training": 2, "majority": 0.5} | changes


HISTORY = {
    "steps": [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}, {"step": 3, "loss": 0.5}],
    "epochs": [{"epoch": 1, "step": 2, "train_loss": 1.5, "valid_loss": 0.75,
                "valid_accuracy": 0.5},
               {"epoch": 2, "step": 3, "train_loss": 0.5, "valid_loss": 0.8}],
}
SETTINGS = {"model": "gpt2|x", "lr": 5e-5, "seed": 20261124, "freeze": True, "test": None,
            "betas": [0.9, 0.999], HOSTILE: HOSTILE}
MISTAKES = [{"text": HOSTILE, "line": 7, "truth": NAMES[0], "prediction": NAMES[1],
             "p_truth": 1e-7, "p_prediction": 0.99}]


GIVEN = report.Settings(SETTINGS, {"lr": 5e-5, HOSTILE: HOSTILE}, SETTINGS | {"seed": 0})


def write(folder, results=None, data=None, mistakes=MISTAKES):
    report.write(folder, report.classification(
        results or some_results(), data or some_data(), GIVEN, HISTORY, mistakes))
    return (folder / "report.md").read_bytes().decode("utf-8")


def test_hostile_text_breaks_no_table(tmp_path):
    text = write(tmp_path)
    found = tables(text)
    assert len(found) == 9
    for rows in found:
        assert len({len(row) for row in rows}) == 1, rows
    assert "<script" not in text and "<b>" not in text and "\u2028" not in text
    row = next(row for rows in found for row in rows if "alert" in row[1] and row[0] == " 7 ")
    assert row[3:] == [" &lt; 0.1% ", " &lt;b&gt; ", " 99.0% "]


def test_hostile_text_stays_text_on_the_page(tmp_path):
    write(tmp_path)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert {*page.tags} <= {"html", "head", "meta", "title", "style", "body", "h1", "h2", "p",
                            "strong", "blockquote", "div", "table", "thead", "tbody", "tr", "th",
                            "td", "details", "summary"}
    assert "default-src 'none'" in text and "http" not in text.split("<style>")[1].split("<")[0]
    assert "alert(1)" in page.text and "\u2028" not in text
    assert len(page.tables) == len(tables((tmp_path / "report.md").read_text("utf-8"))) == 9
    row = next(row for rows in page.tables for row in rows if row[0] == "7" and len(row) == 6)
    assert row == ["7", one_line(HOSTILE), NAMES[0], "< 0.1%", NAMES[1], "99.0%"]


def test_one_line_and_its_escape():
    assert escape(one_line("a|b\n`c` <i>")) == r"a\|b \`c\` &lt;i&gt;"
    assert one_line("") == one_line(" \n") == "(empty)"
    assert escape("snake_case and _this_") == r"snake_case and \_this\_"
    assert one_line("x\x00\ud800\u202ey") == "x\ufffd\ufffd\ufffdy"
    assert one_line("x" * 200) == "x" * 200
    assert one_line("x" * 201) == "x" * 199 + "…"
    assert escape(one_line("|" * 300)) == r"\|" * 199 + "…"    # cut first: no half escape


def test_figures_as_they_are_written():
    assert [p_value(p) for p in (0.00099, 0.001, 0.0351, 1.0)] == ["< 0.001", "0.001", "0.035", "1"]
    assert [count(n, "text") for n in (0, 1, 1234)] == ["0 texts", "1 text", "1,234 texts"]


def test_every_section_and_figure(tmp_path):
    text = write(tmp_path)
    headings = re.findall(r"^#+ (.*)$", text, flags=re.M)
    assert headings == ["Report", "Classes", "Confusion", "The worst mistakes", "Data", "Learning",
                        "Settings"]
    low, high = metrics.wilson(2, 4)
    assert "**50.0%** of 4 test texts are classified correctly" in text
    assert f"95% interval {low:.1%} to {high:.1%}" in text
    assert "most frequent class would give 50.0%" in text
    for row in ("| training texts | 10,000 |", r"| texts cleaned: html\|tags | 1,203 |",
                "| test texts that also stand in training | 2 |", "| training time (s) | 12.5 |",
                "| seed | 20261124 |", "| lr | 5e-05 |", "| freeze | yes |", "| test | not set |",
                "| betas | \\[0.9, 0.999\\] |", "| 1 (chosen) | 2 | 1.5000 | 0.7500 | 50.0% |",
                "| 2 | 3 | 0.5000 | 0.8000 | - |"):
        assert row in text, row
    assert "Some test texts also stand in training" in text
    assert "optimistic. Expect less" not in text


def test_classes_without_texts_are_said(tmp_path):
    logp = np.log([[0.7, 0.1, 0.1, 0.1], [0.1, 0.7, 0.1, 0.1]])
    results = metrics.classification([0, 1], logp, ["a", "b", "c|", "d"])
    assert results["macro_f1"] == 0.5 and report.absent_classes_note(results) == (
        "macro F1 is the mean over all 4 classes, and counts 0 for the 2 of which there is no text "
        "here (c|, d)")
    assert report.absent_classes_note(some_results()) is None
    text = write(tmp_path, results, mistakes=[])
    assert "> Macro F1 is the mean over all 4 classes, and counts 0 for the 2" in text


def test_without_a_test_set_it_says_so(tmp_path):
    data = some_data(test_path=None, n_test=0, cut_test=None, shared_with_training=None)
    text = write(tmp_path, data=data)
    assert "There is no test set" in text and "optimistic" in text
    assert "4 validation texts are classified" in text and "stand in training" not in text


def test_pictures_are_shown_when_they_are_there(tmp_path):
    assert "![" not in write(tmp_path).replace(r"!\[", "")
    (tmp_path / "curves.png").write_bytes(b"curves")
    (tmp_path / "confusion.png").write_bytes(b"confusion")
    text = write(tmp_path)
    assert "![Learning curves](curves.png)" in text
    assert "![Confusion matrix](confusion.png)" in text
    images = Page((tmp_path / "report.html").read_text(encoding="utf-8")).images
    assert [image["alt"] for image in images] == ["Confusion matrix", "Learning curves"]
    assert [b64decode(image["src"].removeprefix("data:image/png;base64,")) for image in images
            ] == [b"confusion", b"curves"]


def test_settings_that_were_given_come_first_and_defaults_are_folded(tmp_path):
    text = write(tmp_path)
    given, chosen, folded = (text.index(words) for words in (
        "\nGiven:", "\nChosen by the model and the texts:", "<summary>4 settings at the default"))
    assert given < text.index("| lr | 5e-05 |") < chosen < text.index("| seed | 20261124 |")
    assert chosen < folded < text.index("| freeze | yes |") < text.index("</details>")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.index("<details>") < page.index("freeze") < page.index("</details>")


def test_many_classes_and_nothing_wrong(tmp_path):
    names = [f"c{i}" for i in range(30)]
    labels = np.arange(60) % 30
    logp = np.log(np.where(labels[:, None] == np.arange(30), 0.71, 0.01))
    text = write(tmp_path, metrics.classification(labels, logp, names), mistakes=[])
    assert "No text was put into a wrong class." in text
    assert "No text was classified wrongly." in text
    logp[:2] = logp[2]
    text = write(tmp_path, metrics.classification(labels, logp, names), mistakes=[])
    assert "| c0 | c2 | 1 | 50.0% |" in text
    assert "All classes" not in text
    names = [f"c{i}" for i in range(31)]
    logp = np.log(np.where(labels[:, None] == np.arange(31), 0.7, 0.01))
    text = write(tmp_path, metrics.classification(labels, logp, names), mistakes=[])
    assert "The 30 of 31 classes with the lowest F1" in text and "<summary>All classes" in text


def test_worst_mistakes_are_sorted_and_wrong():
    logp = np.log([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7], [0.01, 0.99], [0.2, 0.8]])
    texts, lines, labels = ["v", "w", "x", "y", "z"], [2, 3, 4, 5, 6], [0, 0, 1, 0, 0]
    got = report.worst_mistakes(texts, lines, labels, logp, NAMES)
    assert [m["text"] for m in got] == ["y", "w", "z"]
    assert [m["line"] for m in got] == [5, 3, 6]
    assert got[0] | {"p_truth": 0, "p_prediction": 0} == {
        "text": "y", "line": 5, "truth": NAMES[0], "prediction": NAMES[1], "p_truth": 0,
        "p_prediction": 0}
    assert (got[0]["p_truth"], got[0]["p_prediction"]) == pytest.approx((0.01, 0.99))
    assert len(report.worst_mistakes(texts, lines, labels, logp, NAMES, k=1)) == 1
    assert report.worst_mistakes([], [], [], np.zeros((0, 2)), NAMES) == []
    with pytest.raises(ValueError, match="4 lines"):
        report.worst_mistakes(texts, lines[:4], labels, logp, NAMES)


def test_completion_report(tmp_path):
    results = metrics.exact_match(["yes", "no"], ["yes", HOSTILE]) | {"loss": 1.0, "best_epoch": 2}
    samples = [{"prompt": HOSTILE, "expected": "no", "generated": HOSTILE},
               {"prompt": "q", "expected": "yes", "generated": ""}]
    path = tmp_path / "report.md"
    report.write(tmp_path, report.completion(results, some_data(), GIVEN, HISTORY, samples))
    text = path.read_text(encoding="utf-8")
    assert "**50.0%** of 2 test completions" in text and "| perplexity, e^loss | 2.7183 |" in text
    assert "| q | yes | (empty) |" in text
    for rows in tables(text):
        assert len({len(row) for row in rows}) == 1, rows
    report.write(tmp_path, report.completion(
        results | {"loss": 1e6}, some_data(test_path=None), report.Settings({}, {}, {}),
        {"steps": [], "epochs": []}, []))
    text = path.read_text(encoding="utf-8")
    assert "There is no test set" in text and "No epoch was completed." in text


def beside(ours, theirs, p):
    return {"accuracy": 0.5, "accuracy_low": 0.4, "accuracy_high": 0.6, "macro_f1": 0.45,
            "mcnemar": {"only_model": ours, "only_baseline": theirs, "p": p}}


def test_the_comparison_says_what_is_more_than_chance(tmp_path):
    found = some_results() | {
        "majority_class": beside(20, 2, 0.0001), "naive_bayes": beside(3, 12, 0.035),
        "random_weights": beside(6, 5, 1.0) | {"epochs": 15, "epochs_run": 4, "best_epoch": 2,
                                               "lr": 1e-3, "dropout": 0.3},
        "left_out": comparison.skipped_message("scikit-learn is not installed")}
    text = write(tmp_path, found)
    rows = next(t for t in tables(text) if " McNemar p " in t[0])[2:]
    assert [(row[0].strip(), row[-1].strip()) for row in rows] == [
        ("the same architecture from random weights", "no clear difference"),
        ("naive Bayes, which only counts words", "worse"),
        ("the most frequent class in training", "better")]
    assert "scikit-learn is not installed." in text
    assert "4 of at most 15 epochs, of which the validation part chose number 2" in text
    assert "highest rate 0.001, dropout 0.3" in text
    # one figure for the most frequent class, that of the table
    assert "Always answering" not in text and ": clearly worse than naive Bayes, 50.0%." in text
    lines = comparison.terminal_lines(found)
    assert [line.split(maxsplit=1)[1] for line in lines[1:4]] == [
        "same architecture from random weights   50.0%  no clear difference (6 : 5, p = 1)",
        "Bayes                                 50.0%  the model is worse (3 : 12, p = 0.035)",
        "most frequent class in training         50.0%  the model is better (20 : 2, p < 0.001)"]
    assert lines[4] == found["left_out"] and max(map(len, lines)) < 100


@pytest.mark.parametrize("tests, words", [
    ([(20, 2, 0.001)], "clearly better than naive Bayes, 50.0%"),
    ([(20, 2, 0.001), (20, 3, 0.01)], "clearly better than all 2 baselines (the best: 50.0%)"),
    ([(20, 2, 0.001), (6, 5, 1.0)], "no clear difference to the most frequent class in training, "),
    ([(20, 2, 0.001), (2, 20, 0.001)], "clearly worse than the most frequent class in training, "),
    ([], "")])
def test_the_verdict_is_on_the_best_that_the_model_does_not_beat(tests, words):
    keys = ("naive_bayes", "majority_class")
    found = {key: beside(*test) for key, test in zip(keys, tests, strict=False)}
    assert comparison.verdict(found).startswith(words) and bool(found) == bool(words)
