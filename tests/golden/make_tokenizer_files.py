"""Writes tokenizer_files.json: what transformers 5.24 makes of the folders of a test.

Run from the repository: python -m tests.golden.make_tokenizer_files
"""

import json
import tempfile
from pathlib import Path

from transformers import AutoTokenizer

from tests.test_tokenizer_files import FOLDERS, GOLDEN, GOLDEN_LINES


def main():
    """One line a folder."""
    found = {}
    for name, write in FOLDERS.items():
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder))
            peer = AutoTokenizer.from_pretrained(folder)
            found[name] = [peer(line)["input_ids"] for line in GOLDEN_LINES]
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(ids)}" for name, ids in found.items())
    GOLDEN.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
