"""docs/promises.md: what it promises and no other file tests, and that every promise has a test."""

import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from minisft.backend.cpu import jit, row_blocks
from minisft.backend.random import Stream
from minisft.data.dataset import TokenizedDataset
from minisft.data.text import train_tokenizer
from minisft.dispatch import only
from minisft.io import hub
from minisft.io.model_folder import Preprocessing, write_folder
from minisft.models.gpt2 import GPT2Config
from minisft.models.heads import Classifier
from minisft.training import loop
from minisft.training.config import TrainingConfig

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "promises.md").read_text(encoding="utf-8")


def test_every_promise_has_a_test():
    """tests/test_docs.py follows the links: a test that is not there is a dead link."""
    link = re.compile(r"\[(test_\w+)\]\(\.\./tests/(?:reliability/)?test_\w+\.py#(\w+)\)")
    promises = [line for line in PAGE.split("\n## What holds")[0].split("\n")
                if line.startswith("| ") and not line.startswith("| promise ")]
    assert len(promises) > 20
    for line in promises:
        cell = line.strip("|").split("|")[-1]
        found = link.findall(cell)
        assert found and not link.sub("", cell).strip(" ,"), line
        assert all(shown == name for shown, name in found)


def gradients(dtype, micro_tokens=10**9):
    """-> the gradients of one step of a model with dropout, by parameter, divided by the texts."""
    rng = np.random.default_rng(7)
    config = GPT2Config(vocab_size=211, n_positions=64, n_embd=48, n_layer=2, n_head=3)
    model = Classifier(config.with_dropout(0.1), "abc", np.float64, seed=2)
    model.store.values += 0.2 * rng.standard_normal(model.store.size)
    values, found = model.store.values, []
    if dtype == np.float32:
        model = Classifier(config.with_dropout(0.1), "abc", np.float32, seed=2)
        model.store.values[...] = values
    model.store.refresh()
    labels = rng.integers(0, 3, 60).tolist()
    texts = TokenizedDataset([rng.integers(0, 211, n) for n in rng.integers(1, 64, 60)], labels)
    # in the place of an optimizer: keeps what one would use
    keeper = SimpleNamespace(t=0, step=lambda lr, scale: found.append(
        {p.name: p.grad * scale for p in model.store.trainable}))
    loop.train_step(model, texts, range(60), keeper, 0.1,
                    TrainingConfig(micro_tokens=micro_tokens, max_grad_norm=0.0), Stream(3, 4), {})
    return found[0]


def error(found, exact):
    """-> the largest difference, over that of the parameter or a thousandth of the largest."""
    largest = max(np.abs(g).max() for g in exact.values())
    return max(np.abs(found[name] - g).max() / max(np.abs(g).max(), 1e-3 * largest)
               for name, g in exact.items())


@pytest.mark.parametrize("compiled", [False, True])
def test_one_step_in_float32(monkeypatch, compiled):
    """By how much a step differs from float64 depends little on who computes it."""
    if compiled:
        pytest.importorskip("numba", reason="compiled loops need the extra fast")
    with only("formula"):
        exact = gradients(np.float64)
        plain = error(gradients(np.float32), exact)
    assert 1e-7 < plain < 1e-5
    for threads in (1, 2, 3):
        monkeypatch.setattr(row_blocks, "threads", lambda n=threads: n)
        for micro_tokens in (10**9, 300):
            with jit.compiled(compiled), threadpool_limits(threads):
                found = gradients(np.float32, micro_tokens)
            assert error(found, exact) <= 2 * plain + 1e-6


# Runs commands, and prints what they opened outside of Python's own folders and what they started.
AUDIT = """
import json, os, sys
from pathlib import Path
import minisft
OWN = [os.path.realpath(p) for p in (sys.prefix, sys.base_prefix, Path(minisft.__file__).parent)]
seen = set()

def hook(event, args):
    if event == "open" and isinstance(args[0], str | bytes):
        path = os.path.realpath(os.fsdecode(args[0]))
        writes = isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
        if not any(path.startswith(own + os.sep) for own in OWN):
            seen.add(("wrote" if writes else "read", path))
    elif event == "import":
        if args[1] and str(args[1]).startswith(sys.argv[1]):
            seen.add(("imported", str(args[1])))
    elif event.split(".")[0] in ("socket", "subprocess", "urllib", "http", "ftplib") or event in (
            "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "pickle.find_class"):
        seen.add((event, str(args[0])))

sys.addaudithook(hook)
from minisft.cli import main
codes = [main(argv) for argv in json.loads(sys.argv[2])]
print(json.dumps([codes, sorted(seen)]), file=sys.stderr)
"""


class Evil:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def hostile(folder):
    """Puts beside a model what runs where a library trusts a folder."""
    code = "import os\nos.mkdir('executed')\n"
    for name in ("modeling_evil.py", "tokenization_evil.py", "sitecustomize.py", "__init__.py",
                 "conftest.py", "custom_generate/generate.py"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(code)
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Evil()))
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": {
        "AutoTokenizer": ["tokenization_evil.Evil", None]}}))


def test_what_is_read_and_started(toy_file, tmp_path):
    """What Python reports (PEP 578) of a training, a prediction and a generation."""
    texts, tokenizer = toy_file(40), train_tokenizer(["the cat sat on the mat"] * 9, 300)
    model, out = tmp_path / "model", tmp_path / "run"
    shape = GPT2Config(vocab_size=tokenizer.get_vocab_size(), n_positions=64, n_embd=16, n_layer=1,
                       n_head=2)
    write_folder(model, Classifier(shape, ["a", "b"]), tokenizer, Preprocessing())
    hostile(model)
    for name in ("home", "here", "temp"):
        (tmp_path / name).mkdir()
    commands = [
        ["finetune", "--train", texts, "--model", str(model), "--epochs", "1", "--quiet",
         "--out", str(out)],
        ["predict", "--model", str(model), "a text"],
        ["predict", "--model", str(out / "model"), "a text"],
        ["generate", "--model", "gpt2", "a text"]]      # of the Hugging Face cache, which is empty
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "XDG_", "MPL"))}
    done = subprocess.run(
        [sys.executable, "-c", AUDIT, str(tmp_path), json.dumps(commands)],
        cwd=tmp_path / "here", text=True, capture_output=True, env=environ | {
            "HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path / "temp"),
            "MPLCONFIGDIR": matplotlib.get_cachedir(),      # its list of fonts takes long to make
            "MINISFT_COMPILED": "off", "PYTHONPATH": os.pathsep.join(filter(None, (
                str(ROOT), os.environ.get("PYTHONPATH"))))})
    assert done.returncode == 0, done.stderr
    *said, last = done.stderr.splitlines()
    codes, seen = json.loads(last)
    assert codes == [0, 0, 0, 2], done.stderr
    assert "not whole in the Hugging Face cache" in said[-1]
    assert {event for event, _ in seen} <= {"read", "wrote", "subprocess.Popen"}, seen
    # Python's own `platform` asks one for the processor, matplotlib the other for the fonts
    assert {what for event, what in seen if event == "subprocess.Popen"} <= {"uname", "fc-list"}
    inside = [(event, Path(path).relative_to(tmp_path)) for event, path in seen
              if event != "subprocess.Popen" and tmp_path in Path(path).parents]
    for event, path in inside:
        place, *below = path.parts
        if place == "model":      # and pytorch_model.bin, for its checksum
            assert event == "read" and (not below or any(map(path.match, hub.PATTERNS))), path
        elif place == "here":
            assert not below or below[0].startswith("__editable__"), path
        elif place == "home":
            assert path.parts[1:4] == (".cache", "huggingface", "hub"), path
        else:
            assert place in ("run", "temp"), path
    assert ("read", Path("model/config.json")) in inside      # the harness sees something
    assert not list(tmp_path.rglob("executed"))
