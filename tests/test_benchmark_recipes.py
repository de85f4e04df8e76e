"""The table of recipes: one change at a time, texts set aside, going on, no test file."""

import json

import pytest

from benchmarks import recipes
from minisft.training.config import FinetuneConfig

TINY = ["--set", "layers=1", "width=16", "heads=2", "vocab_size=300", "epochs=1"]


@pytest.fixture
def train(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps({"text": f"{c} thing number {n}", "label": c}) + "\n"
                            for n in range(40) for c in ("red", "blue")))
    return path


def test_recipes_change_one_thing_of_the_base(train, tmp_path, monkeypatch, capsys):
    real, seen = recipes.finetuned, []

    def finetuned(file, options):
        results, settings = real(file, options)
        texts = [(file.parent / f"{name}.jsonl").read_text() for name in ("train", "judged")]
        seen.append((settings, texts))
        return results, settings

    monkeypatch.setattr(recipes, "finetuned", finetuned)
    out = tmp_path / "out.json"
    arguments = [str(train), "--texts", "30", "--judged", "20", "--model", "scratch", "--seeds",
                 "0", "1", "--out", str(out), *TINY, "--recipes"]
    recipes.main([*arguments, "rate x 3", "epochs x 3, early stopping 2"])
    assert len(seen) == 6 and len({str(texts) for _, texts in seen}) == 1
    fit, judged = (set(text.splitlines()) for text in seen[0][1])
    assert len(fit) == 30 and len(judged) == 20 and not fit & judged
    base = seen[0][0]
    ignored = ("seed", "out", "train", "test")
    changed = [{k for k in base if k not in ignored and s[k] != base[k]} for s, _ in seen]
    assert changed == [set(), set(), {"lr"}, {"lr"}, {"epochs", "early_stopping"},
                       {"epochs", "early_stopping"}]
    assert seen[2][0]["lr"] == pytest.approx(3 * base["lr"]) and seen[4][0]["epochs"] == 3
    assert [s["seed"] for s, _ in seen] == [0, 1] * 3

    recipes.main([*arguments, "rate x 3", "word dropout 0.1"])
    # the others were not run again
    assert len(seen) == 8 and seen[6][0]["token_dropout"] == 0.1
    shown = capsys.readouterr().out
    assert "| word dropout 0.1 | 2 |" in shown and "| base | 2 |" in shown
    with pytest.raises(SystemExit, match="was measured with"):
        recipes.main([*arguments, "rate x 3", "--texts", "31"])


def test_every_recipe_names_settings():
    names = {name for changes in recipes.RECIPES.values() for name in changes}
    assert names <= FinetuneConfig.option_fields().keys()


def test_the_interval_is_of_the_differences_by_seed():
    def run(recipe, seed, accuracy):
        return {"recipe": recipe, "seed": seed, "accuracy": accuracy, "macro_f1": 0.5, "loss": 1.0,
                "train_seconds": 2.0}
    # seeds differ by far more than the recipe: only pairs show it
    found = [run("base", s, a) for s, a in enumerate((0.5, 0.7, 0.9))]
    found += [run("better", s, a) for s, a in enumerate((0.51, 0.71, 0.91))]
    lines = recipes.table(found).split("\n")
    assert lines[2].startswith("| base | 3 | 0.7000 | - | - |")
    assert lines[3].startswith("| better | 3 | 0.7100 | +0.0100 | +0.0100 to +0.0100 |")


def test_too_few_texts(train, tmp_path):
    with pytest.raises(SystemExit, match="holds 80 texts, expected 70"):
        recipes.main([str(train), "--texts", "70", "--judged", "20", "--out",
                      str(tmp_path / "o.json")])
