"""Hostile files at every door: `python fuzz.py SEED FIRST LAST [DOOR]` tries the files numbered so.

Folders and data files are made once, by minisft itself. Then each number draws a door (a command
and what it reads) and damages one file of it (mutate.py); the command runs in a process of its own,
forked from this one, which has the package imported. What counts as found, a JSON line each:

    traceback    more than one line, or an exit code that is neither 0 nor 2
    hang         ten seconds of processor time, or five minutes of waiting
    memory       a gigabyte above what the undamaged file takes
    silent       of a folder that minisft wrote: other results, and no word about it

A finding is had again by the same seed with its number as FIRST, and the next one as LAST.
"""

import contextlib
import hashlib
import importlib
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[n]) for n in (0, 1)]

import mutate  # noqa: E402

from minisft.cli import COMMANDS, main  # noqa: E402

SECONDS, WAIT, MEMORY = 10, 300, 2**30
SPACE = 3 * MEMORY     # of addresses: many of them are never used
SMALL = ["--layers", "1", "--width", "16", "--heads", "2", "--context-length", "32",
         "--batch-tokens", "256"]
SCRATCH = ["--model", "scratch", "--vocab-size", "270", *SMALL, "--compare", "none", "--quiet",
           "--epochs", "1"]
SIGNED = "config.json", "results.json", "state.safetensors"
# Of a run: figures that time gives, or that most tries leave out (`_draws_nothing`).
TIMES = re.compile(r'"(train_seconds|tokens_per_second|seconds|samples_per_second|results_sha256)"'
                   r': [^,}\n]+|"xz_bits_per_byte": [^,}\n]+')
TEXTS = [("text", "label")] + [
    (f"{subject} {verb} the {thing} & more, number {n}", label)
    for n, (subject, verb, thing, label) in enumerate(
        (s, v, t, "news" if s in ("banks", "shares") else "sport")
        for s in ("banks", "teams", "shares", "players") for v in ("lost", "won")
        for t in ("market", "match", "prize"))]


@dataclass(frozen=True)
class Door:
    """A command and what it reads."""

    name: str
    folder: Path                  # copied for each try
    files: Sequence[str]          # those that are damaged, relative to the folder
    argv: Sequence[str]           # within the folder
    ours: bool = False            # minisft wrote the files: no damage may be silent
    results: Callable[[Path, str], str] = lambda folder, output: output


@dataclass(frozen=True)
class Answer:
    """What became of a command."""

    code: int                     # or minus the signal
    out: str
    err: str
    memory: int                   # bytes
    seconds: float


def run(argv: Sequence[str], folder: Path, arm: Callable | None = None) -> Answer:
    """A command within a folder -> Answer."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        started, pid = time.perf_counter(), os.fork()
        if pid == 0:
            code = 70     # what is raised beyond `main`: a traceback is in the output
            try:
                os.dup2(out.fileno(), 1), os.dup2(err.fileno(), 2)
                os.chdir(folder)
                size = int(Path("/proc/self/statm").read_text().split()[0]) * 4096 + SPACE
                resource.setrlimit(resource.RLIMIT_AS, (size, size))
                resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
                resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
                signal.alarm(WAIT)
                if arm is not None:
                    arm()
                code = main(list(argv))
            except SystemExit as error:
                code = error.code if isinstance(error.code, int) else 70
            except BaseException:
                import traceback
                os.write(2, traceback.format_exc().encode())
            with contextlib.suppress(BaseException):
                sys.stdout.flush(), sys.stderr.flush()
            os._exit(code)
        _, status, usage = os.wait4(pid, 0)
        out.seek(0), err.seek(0)
        return Answer(os.waitstatus_to_exitcode(status), out.read().decode(errors="replace"),
                      err.read().decode(errors="replace"), usage.ru_maxrss * 1024,
                      time.perf_counter() - started)


def _draws_nothing():
    """Pictures and xz take nine tenths of a small run's time: most tries go without."""
    from matplotlib.figure import Figure

    from minisft.jobs import pretrain
    Figure.savefig = lambda self, path, **options: path.write(b"") if hasattr(path, "write") \
        else Path(path).write_bytes(b"")
    pretrain.xz_bits_per_byte = lambda text: 8.0


def _dies_at(nth, suffix):
    """-> what makes this process end at its n-th rename of a file with this suffix."""
    def arm():
        left = [nth]

        def hook(event, args):
            if event == "os.rename" and str(args[1]).endswith(suffix):
                left[0] -= 1
                if left[0] == 0:
                    os._exit(0)
        sys.addaudithook(hook)
    return arm


def make(home: Path, only: str | None = None) -> list[Door]:
    """-> the doors, their folders made; `only` the one of this name."""
    data = home / "data"
    data.mkdir()
    _write_tables(data)
    _must(["finetune", "--train", "train.csv", *SCRATCH, "--out", "classify"], data)
    _must(["finetune", "--task", "complete", "--train", "prompts.jsonl", *SCRATCH, "--out",
           "complete"], data)
    classifier, writer = home / "classifier", home / "writer"
    for kind, place in ("classify", classifier), ("complete", writer):
        shutil.copytree(data / kind / "model", place / "model")
        shutil.copy(data / "test.csv", place)
        shutil.copy(data / "prompts.jsonl", place)
        shutil.rmtree(data / kind)
    model = [f"model/{name}" for name in sorted(os.listdir(classifier / "model"))]
    doors = [
        Door("predict", classifier, model, ["predict", "--model", "model", "--file", "test.csv"],
             True),
        Door("evaluate", classifier, model, ["evaluate", "--model", "model", "--test", "test.csv",
                                             "--json"], True),
        Door("generate", writer, [f"model/{name}" for name in sorted(os.listdir(
            writer / "model"))], ["generate", "--model", "model", "say 1", "say", "--temperature",
                                  "0", "--max-new-tokens", "8"], True),
        Door("evaluate prompts", writer, ["prompts.jsonl"],
             ["evaluate", "--model", "model", "--test", "prompts.jsonl", "--max-new-tokens", "2"]),
        Door("plan", classifier, ["model/config.json", "model/tokenizer.json", "test.csv"],
             ["plan", "--model", "model", "--texts", "test.csv"]),
        Door("finetune a model", classifier, model, [
            "finetune", "--model", "model", "--train", "test.csv", "--epochs", "1", "--compare",
            "none", "--quiet", "--out", "out"])]
    doors += _data_doors(home, data, classifier)
    doors += _foreign_doors(home, classifier, writer)
    # each of these trains a model first
    for more in (lambda: _token_doors(home), lambda: _pair_doors(home),
                 lambda: _adapter_doors(home, classifier), lambda: _resume_doors(home, data)):
        if only not in {door.name for door in doors}:
            doors += more()
    return [door for door in doors if only in (None, door.name)]


def _must(argv, folder, die=None):
    answer = run(argv, folder, die)
    if answer.code or die and not (folder / argv[-1] / "config.json").exists():
        raise SystemExit(f"{argv}: {answer}")
    return answer


def _write_tables(data):
    import csv
    import gzip
    with open(data / "train.csv", "w", newline="") as file:
        csv.writer(file).writerows(TEXTS)
    rows = [dict(zip(TEXTS[0], row, strict=True)) for row in TEXTS[1:]]
    (data / "test.csv").write_bytes((data / "train.csv").read_bytes())
    (data / "train.tsv").write_text("\n".join("\t".join(row) for row in TEXTS) + "\n")
    (data / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (data / "train.json").write_text(json.dumps(rows, indent=1))
    (data / "prompts.jsonl").write_text("".join(
        json.dumps({"prompt": f"say {n}", "completion": str(n + 1)}) + "\n" for n in range(20)))
    (data / "words.txt").write_text("\n<|endoftext|>\n".join(row[0] * 3 for row in TEXTS[1:]))
    for name in "train.csv", "train.jsonl", "words.txt":
        (data / f"{name}.gz").write_bytes(gzip.compress((data / name).read_bytes(), mtime=0))


def _data_doors(home, data, classifier):
    tables = ["train.csv", "train.tsv", "train.jsonl", "train.json", "train.csv.gz",
              "train.jsonl.gz"]
    doors = []
    for name in tables:
        folder = home / name
        shutil.copytree(classifier, folder)
        shutil.copy(data / name, folder)
        doors += [
            Door(f"predict {name}", folder, [name],
                 ["predict", "--model", "model", "--file", name]),
            Door(f"predict {name} without bad rows", folder, [name], [
                "predict", "--model", "model", "--file", name, "--skip-bad-rows", "--bad-rows",
                "bad.csv", "--out", "out.csv"]),
            *([Door(f"finetune {name}", folder, [name], [
                "finetune", "--train", name, *SCRATCH, "--out", "out"])]
              if name in ("train.csv", "train.jsonl.gz") else [])]
    for name in "words.txt", "words.txt.gz":
        folder = home / name
        folder.mkdir()
        shutil.copy(data / name, folder)
        doors.append(Door(f"pretrain {name}", folder, [name], [
            "pretrain", "--text", name, "--vocab-size", "270", "--valid-fraction", "0.2",
            "--quiet", *SMALL, "--out", "out"]))
    return doors


def _token_doors(home):
    """Tags and answers: their data files and their models."""
    tagged = "\n".join("".join(f"{word} {tag}\n" for word, tag in (
        (("the", "DET"), (noun, "NOUN"), (verb, "VERB"), (".", "PUNCT"))))
        for noun in ("dog", "cat", "bird", "fish", "horse") for verb in ("sleeps", "runs", "eats"))
    conllu = "\n".join("".join(
        f"{n}\t{line.split()[0]}\t_\t{line.split()[1]}\t_\t_\t0\t_\t_\t_\n"
        for n, line in enumerate(block.splitlines(), 1)) for block in tagged.split("\n\n")) + "\n"
    asked = {"version": "1.1", "data": [{"title": "t", "paragraphs": [
        {"context": f"the {thing} is in room {n} today", "qas": [
            {"id": f"{thing}{n}", "question": f"where is the {thing}?",
             "answers": [{"text": f"room {n}", "answer_start": len(f"the {thing} is in ")}]}]}
        for n, thing in enumerate(("box", "key", "map", "hat", "cup", "pen"))]}]}
    files = {"words.conll": tagged, "words.conllu": conllu, "questions.json": json.dumps(asked)}
    doors = []
    for task, names in ("tag", ("words.conll", "words.conllu")), ("answer", ("questions.json",)):
        place = home / task
        place.mkdir()
        for name in names:
            (place / name).write_text(files[name])
        learn = ["finetune", "--task", task, "--train", names[0], *SCRATCH, "--out"]
        _must([*learn, "run"], place)
        shutil.move(place / "run" / "model", place / "model")
        shutil.rmtree(place / "run")
        model = [f"model/{name}" for name in sorted(os.listdir(place / "model"))]
        doors += [Door(f"evaluate {task}", place, model, [
            "evaluate", "--model", "model", "--test", names[0], "--json"], True)]
        doors += [Door(f"evaluate {name}", place, [name], [
            "evaluate", "--model", "model", "--test", name]) for name in names]
        doors += [Door(f"finetune {name}", place, [name], [
            "finetune", "--task", task, "--train", name, *SCRATCH, "--out", "out"])
            for name in names]
    return doors


def _pair_doors(home):
    """Texts with their translations, in two files and in a table without a header."""
    pairs = [(f"the {noun} {verb}", f"{verb} der {noun}")
             for noun in ("dog", "cat", "bird", "fish") for verb in ("sleeps", "runs", "eats")]
    place = home / "translate"
    place.mkdir()
    for name, texts in ("a.en", [a for a, _ in pairs]), ("a.de", [b for _, b in pairs]), (
            "a.tsv", ["\t".join(pair) for pair in pairs]):
        (place / name).write_text("".join(f"{text}\n" for text in texts))
    table = ["--no-header", "--source-column", "1", "--target-column", "2"]
    learn = ["finetune", "--task", "translate", *SCRATCH, "--beam-size", "1", "--train"]
    _must([*learn, "a.tsv", *table, "--out", "run"], place)
    shutil.move(place / "run" / "model", place / "model")
    shutil.rmtree(place / "run")
    model = [f"model/{name}" for name in sorted(os.listdir(place / "model"))]
    translate = ["translate", "--model", "model", "--file"]
    return [
        Door("translate", place, model, [*translate, "a.en"], True),
        Door("translate lines", place, ["a.en"], [*translate, "a.en"]),
        Door("translate a table", place, ["a.tsv"], [*translate, "a.tsv", *table[:3]]),
        Door("evaluate translate", place, ["a.en", "a.de"], [
            "evaluate", "--model", "model", "--test", "a.en", "--test-target", "a.de"]),
        Door("finetune lines", place, ["a.en", "a.de"], [
            *learn, "a.en", "--train-target", "a.de", "--out", "out"]),
        Door("finetune pairs", place, ["a.tsv"], [*learn, "a.tsv", *table, "--out", "out"])]


def _adapter_doors(home, classifier):
    """An adapter beside its base."""
    place = home / "adapter of a model"
    shutil.copytree(classifier, place)
    _must(["finetune", "--model", "model", "--train", "test.csv", "--adapter", "lora", "--rank",
           "2", "--epochs", "1", "--compare", "none", "--quiet", "--out", "run"], place)
    shutil.move(place / "run" / "adapter", place / "adapter")
    shutil.rmtree(place / "run")
    files = [f"adapter/{name}" for name in sorted(os.listdir(place / "adapter"))]
    return [Door("predict with an adapter", place, files,
                 ["predict", "--model", "adapter", "--file", "test.csv"], True),
            Door("merge", place, files, ["merge", "adapter", "--out", "merged"])]


def _foreign_doors(home, classifier, writer):
    """Folders as others write them: in shards, with the tokenizer in several files, a BERT."""
    from minisft.io import safetensors
    shards, several, bert = home / "shards", home / "several", home / "bert"
    for source, place in (classifier, shards), (writer, several), (classifier, bert):
        shutil.copytree(source, place)
        (place / "model" / "minisft.json").unlink()
        config = json.loads((place / "model" / "config.json").read_text())
        config["transformers_version"] = "5.0.0"
        (place / "model" / "config.json").write_text(json.dumps(config))
    weights = shards / "model" / "model.safetensors"
    arrays = {name: tensor.read() for name, tensor in safetensors.read_header(weights)[0].items()}
    weights.unlink()
    names, weight_map = sorted(arrays), {}
    for n, part in enumerate((names[::2], names[1::2]), 1):
        file = f"model-0000{n}-of-00002.safetensors"
        _write_plain(weights.with_name(file), {name: arrays[name] for name in part})
        weight_map |= dict.fromkeys(part, file)
    weights.with_name("model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))

    folder = several / "model"
    arrays = {name: tensor.read() for name, tensor in safetensors.read_header(
        folder / "model.safetensors")[0].items()}
    _write_plain(folder / "model.safetensors", arrays)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").unlink()
    vocab = tokenizer["model"]["vocab"]
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(
        " ".join(pair) for pair in tokenizer["model"]["merges"]) + "\n")
    (folder / "special_tokens_map.json").write_text(json.dumps(
        {"bos_token": "<|endoftext|>", "eos_token": {"content": "<|endoftext|>", "lstrip": False}}))
    (folder / "added_tokens.json").write_text(json.dumps({"<x>": len(vocab)}))
    (folder / "tokenizer_config.json").write_text(json.dumps(
        {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False, "add_bos_token": True,
         "model_max_length": 32, "bos_token": "<|endoftext|>"}))

    folder, golden = bert / "model", Path(__file__).resolve().parents[1] / "golden" / "bert_tiny"
    for name in os.listdir(folder):
        (folder / name).unlink()
    for name in "config.json", "model.safetensors":
        shutil.copy(golden / name, folder)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz0123456789",
             *("##" + c for c in "abcdefghijklmnopqrstuvwxyz0123456789"), "&", ",", "the"]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps(
        {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "cls_token": "[CLS]",
         "added_tokens_decoder": {"0": {"content": "[PAD]", "special": True}}}))

    def files(place):
        return [f"model/{name}" for name in sorted(os.listdir(place / "model"))]

    generate = ["generate", "--model", "model", "say 1", "--temperature", "0", "--max-new-tokens",
                "4"]
    return [
        Door("predict from shards", shards, files(shards),
             ["predict", "--model", "model", "--file", "test.csv"]),
        Door("generate with vocab.json", several, files(several), generate),
        _torch_door(home, several),
        Door("predict of a BERT", bert, files(bert),
             ["predict", "--model", "model", "--file", "test.csv"]),
        Door("finetune a BERT", bert, files(bert), [
            "finetune", "--model", "model", "--train", "test.csv", "--epochs", "1", "--compare",
            "none", "--quiet", "--out", "out"])]


def _torch_door(home, several):
    """The weights as torch.save has them."""
    from torch_writer import state_dict

    from minisft.io import safetensors
    place = home / "torch"
    shutil.copytree(several, place)
    weights = place / "model" / "model.safetensors"
    state_dict(weights.with_name("pytorch_model.bin"), {
        name: tensor.read() for name, tensor in safetensors.read_header(weights)[0].items()})
    weights.unlink()
    return Door("generate with pytorch_model.bin", place, ["model/pytorch_model.bin"],
                ["generate", "--model", "model", "say 1", "--temperature", "0",
                 "--max-new-tokens", "4"])


def _signed(data):
    """-> a run's config.json or results.json with checksums that fit: an edit by who means it."""
    try:
        value = json.loads(data)
        for key, of in ("settings_sha256", value.get("settings")), ("results_sha256", {
                name: x for name, x in value.items() if name != "results_sha256"}):
            if key in value:
                value[key] = hashlib.sha256(json.dumps(of, sort_keys=True).encode()).hexdigest()
    except (ValueError, AttributeError, RecursionError):
        return data
    return json.dumps(value).encode()


def _signed_state(rng, path):
    """-> a training state with another record or other arrays, and checksums that fit."""
    from minisft.io import safetensors
    stored, metadata = safetensors.read_header(path)
    arrays = {name: tensor.read() for name, tensor in stored.items()}
    name = rng.choice((*arrays, "", "", ""))
    if name == "":
        record, how = mutate.edit_json(rng, json.loads(metadata["info"]))
        metadata["info"] = json.dumps(record)
    else:
        change, how = rng.choice((
            (lambda a: a[:-1], "shorter"), (lambda a: a.astype("float64"), "of float64"),
            (lambda a: a.reshape(1, -1), "of two dimensions"), (lambda a: a * 1e30, "larger"),
            (lambda a: a + float("nan"), "NaN"), (lambda a: a[:0], "empty"), (None, "gone")))
        array, how = arrays.pop(name), f"{name} {how}"
        if change is not None:
            arrays[name] = change(array)
    metadata.pop(safetensors.CHECKSUMS)
    safetensors.write(path, arrays, metadata)
    return path.read_bytes(), how


def _write_plain(path, arrays):
    """A safetensors file as others write it, without checksums."""
    from safetensors.numpy import save_file
    save_file({name: x.copy() for name, x in arrays.items()}, path, {"format": "pt"})


def _resume_doors(home, data):
    """Runs that died in the middle, of every kind."""
    classify = ["finetune", "--train", "train.csv", *SCRATCH]
    runs = {
        "classify": [*classify, "--epochs", "2", "--save-every", "1"],
        "adaptation": [*classify, "--adapt-epochs", "1", "--save-every", "1"],
        "complete": ["finetune", "--task", "complete", "--train", "prompts.jsonl", *SCRATCH,
                     "--max-new-tokens", "2", "--epochs", "2", "--save-every", "1"],
        "seeds": [*classify, "--seeds", "2"],
        "curve": ["curve", "--train", "train.csv", "--test", "test.csv", "--sizes", "16,20",
                  *SCRATCH],
        "pretrain": ["pretrain", "--text", "words.txt", "--vocab-size", "270", "--valid-fraction",
                     "0.2", "--validate-every", "2", "--save-every", "1", "--quiet", *SMALL]}
    doors = []
    for kind, argv in runs.items():
        folder = home / f"resume {kind}"
        shutil.copytree(data, folder)
        # within the last training: the earlier ones of a seed or a size have finished
        nth = {"classify": 4, "pretrain": 3}.get(kind, 2)
        _must([*argv, "--out", "run"], folder, _dies_at(nth, "state.safetensors"))
        files = sorted(str(path.relative_to(folder)) for path in (folder / "run").rglob("*")
                       if path.is_file() and _is_read(path))
        doors.append(Door(f"resume {kind}", folder, files, [argv[0], "--resume", "run"], True,
                          _of_run))
    return doors


def _is_read(path):
    """-> whether a resumed run reads it: of an inner run that has finished the results alone."""
    finished = (path.parent / "results.json").exists() or \
        (path.parent.parent / "results.json").exists()
    return path.name == "results.json" or not finished and (
        path.suffix in (".json", ".jsonl", ".safetensors"))


def _of_run(folder, output):
    """-> what a run left, without what time gives: checksums of files, figures as text."""
    found = []
    for path in sorted((folder / "run").rglob("*")):
        if not path.is_file() or path.name in ("config.json", ".lock", "README.md") and \
                path.parent.name != "model" or path.stem == "report":
            continue
        data = path.read_bytes()
        if path.suffix == ".json":      # the same, however it is written
            data = json.dumps(json.loads(data), indent=1).encode()
        if path.suffix in (".json", ".jsonl", ".md"):
            data = TIMES.sub("", data.decode(errors="replace")).encode()
        if path.suffix != ".png" and path.name != "README.md":
            found.append(f"{path.relative_to(folder)} {hashlib.sha256(data).hexdigest()}")
    return "\n".join(found)


def without_numbers(text):
    """-> the lines, as a set, whatever their numbers."""
    return {re.sub(r"[0-9.,]+", "", line) for line in text.splitlines()}


def verdict(door: Door, usual: Answer, expected: str, answer: Answer, place: Path) -> str | None:
    """-> which kind of finding it is, or None."""
    if "Traceback" in answer.err or "panicked" in answer.err:
        return "traceback"
    if answer.code in (-signal.SIGXCPU, -signal.SIGKILL, -signal.SIGALRM):
        return "hang"
    if answer.memory > usual.memory + MEMORY or "memory is too small" in answer.err:
        return "memory"
    if answer.code not in (0, 2):
        return "traceback"
    if answer.code == 2:
        lines = answer.err.splitlines()
        return None if lines and lines[-1].startswith("minisft: ") else "traceback"
    if not door.ours:
        return None
    words = without_numbers(answer.out + answer.err) - without_numbers(usual.out + usual.err)
    told = any("note" in line or "checksum" in line for line in words)
    return None if told or door.results(place, answer.out) == expected else "silent"


class Fuzzer:
    """The doors, and what each gives undamaged."""

    def __init__(self, home: Path, only: str | None = None) -> None:
        self.home = home
        self.doors = [(door, *self._undamaged(door)) for door in make(home, only)]

    def _undamaged(self, door):
        place = self._copy(door)
        usual = run(door.argv, place, _draws_nothing)
        if usual.code:
            raise SystemExit(f"{door.name}: {usual}")
        return usual, door.results(place, usual.out)

    def _copy(self, door):
        place = self.home / "try"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(door.folder, place)
        return place

    def attempt(self, seed: int, number: int) -> dict:
        """-> what was done, and the finding under "found" if it is one."""
        rng = random.Random(f"{seed} {number}")
        door, usual, expected = rng.choice(self.doors)
        place, name = self._copy(door), rng.choice(door.files)
        before = (place / name).read_bytes()
        if door.ours and before and rng.random() < 0.4:
            data, how = mutate.flip(rng, before)
        else:
            data, how = mutate.mutate(rng, Path(name).name, before)
        signed = Path(name).name in SIGNED and rng.random() < 0.5
        if signed and Path(name).suffix == ".safetensors":
            data, how = _signed_state(rng, place / name)
        elif signed:
            data = _signed(data)
        how = f"signed: {how}" if signed else how
        (place / name).write_bytes(data)
        answer = run(door.argv, place, None if rng.random() < 0.02 else _draws_nothing)
        # what is signed is meant so: it may change results, as an option does
        found = verdict(replace(door, ours=door.ours and not signed), usual, expected, answer,
                        place)
        return {"seed": seed, "number": number, "door": door.name, "file": name, "how": how,
                "code": answer.code, "seconds": round(answer.seconds, 1),
                "memory": answer.memory >> 20, "found": found, "err": answer.err[-3000:]}


def fuzz(seed: int, first: int, last: int, only: str | None = None) -> int:
    """Prints the findings and a last line with how many files were tried -> how many there are."""
    findings = 0
    with tempfile.TemporaryDirectory() as home:
        fuzzer = Fuzzer(Path(home), only)
        started = time.perf_counter()
        for number in range(first, last):
            tried = fuzzer.attempt(seed, number)
            if (number + 1) % 500 == 0:
                print(f"{number + 1} of {last}", file=sys.stderr)
            if tried["found"] or last == first + 1:
                findings += bool(tried["found"])
                print(json.dumps(tried), flush=True)
    print(json.dumps({"tried": last - first, "doors": len(fuzzer.doors),
                      "seconds": round(time.perf_counter() - started)}))
    return findings


def prepare() -> None:
    """Loads the package once, on one thread; starts this process anew where that is too late."""
    # a fork has only one of its parent's threads; loading numba takes longer than a try
    needed = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1",
              "MINISFT_COMPILED": "off"}
    if not needed.items() <= os.environ.items():
        os.execve(sys.executable, sys.orig_argv, {**os.environ, **needed})
    for name in COMMANDS:
        importlib.import_module(f"minisft.cli.{name}")
    import minisft.evaluation.report
    import minisft.jobs.curve
    import minisft.jobs.pretrain
    import minisft.jobs.seeds  # noqa: F401


if __name__ == "__main__":
    prepare()
    seed, first, last = map(int, sys.argv[1:4])
    sys.exit(fuzz(seed, first, last, *sys.argv[4:5]) > 0)
