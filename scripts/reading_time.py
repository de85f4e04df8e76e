"""How long the notebooks take to read, from their words, formulas and cells.

    python scripts/reading_time.py

200 words of prose a minute, half a minute for a displayed formula or a code cell, 5 minutes for an
exercise; up to whole 5 minutes. Each notebook says these figures below its title, and
`notebooks/README.md` in its table (tests/test_notebooks.py compares them).
"""

import json
import re
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
WORDS_A_MINUTE, FORMULA, CELL, EXERCISE = 200, 0.5, 0.5, 5


def minutes(path):
    """A notebook -> minutes to read it, minutes for its exercises."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    reading, exercises, open_questions = 0.0, 0, False
    for cell in cells:
        source = "".join(cell["source"])
        open_questions |= source.startswith("## Exercises")
        exercises += len(re.findall(r"^\*\*\d+\.\*\*", source, re.M)) if open_questions else 0
        if open_questions:
            continue
        if cell["cell_type"] == "code":
            reading += CELL
            continue
        formula = re.compile(r"\$\$.+?\$\$", re.S)
        reading += FORMULA * len(formula.findall(source))
        prose = re.sub(r"\]\([^)]*\)|\$[^$\n]+\$", " ", formula.sub(" ", source))
        reading += len(re.findall(r"\w[\w'-]*", prose)) / WORDS_A_MINUTE
    return 5 * -int(-reading // 5), EXERCISE * exercises


def main():
    """-> exit code."""
    for path in sorted(FOLDER.glob("*.ipynb")):
        reading, exercises = minutes(path)
        print(f"{path.stem:<24} {reading:>3} min, exercises {exercises:>3} min")
    return 0


if __name__ == "__main__":
    sys.exit(main())
