"""What the tests of this folder share: the environment of a run, and what it left."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TIMES = {"train_seconds", "tokens_per_second", "seconds", "samples_per_second",
         "results_sha256"}
# of a process that imports this package; the compiled loops would take longer to load than to run
ENVIRONMENT = {**os.environ, "MINISFT_COMPILED": "off", "PYTHONPATH": os.pathsep.join(
    filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))}


def contents(folder):
    """-> what a run left: model files as bytes, figures without times."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if "training_state" in name or path.name == ".lock":
            continue      # a death after the last result may leave them
        if path.suffix == ".safetensors" or path.name == "tokenizer.json":
            found[name] = path.read_bytes()
        elif path.name in ("results.json", "curve.json"):
            found[name] = without_times(json.loads(path.read_text()))
        elif path.name == "metrics.jsonl":
            found[name] = [without_times(json.loads(line))
                           for line in path.read_text().splitlines()]
        elif path.is_file() and path.name not in ("config.json", "report.md", "README.md"):
            found[name] = None
    return found


def without_times(value):
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if k not in TIMES}
    return [without_times(v) for v in value] if isinstance(value, list) else value


class Runner:
    """A process of deaths.py: `runner(argv, folder, event=N, ...)` -> its answer."""

    def __enter__(self):
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("deaths.py"))], cwd=ROOT, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=ENVIRONMENT)
        return self

    def __exit__(self, *error):
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(timeout=60)

    def __call__(self, argv, folder, **how):
        self.start(argv, folder, **how)
        return self.answer()

    def start(self, argv, folder, **how):
        job = {"argv": [str(a) for a in argv], "folder": str(folder),
               "pictures": folder.name == "classify", **how}
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()

    def answer(self):
        return json.loads(self.process.stdout.readline())
