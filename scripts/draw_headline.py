"""Draws docs/_static/headline.svg from the table of docs/headline.md.

    python -m scripts.draw_headline

A point is the mean accuracy of three seeds, a line Student's interval over them.
"""

import re
from pathlib import Path

DOCS = Path(__file__).resolve().parents[1] / "docs"
PICTURE = DOCS / "_static" / "headline.svg"
SHOWN = {     # classifier in the table: (its name in the picture, its class)
    "MiniLM": ("BERT (MiniLM), fine-tuned with minisft", "ours"),
    "TF-IDF, logistic regression": ("TF-IDF, logistic regression", "linear"),
    "naive Bayes": ("naive Bayes", "bayes"),
}
LEFT, RIGHT, TOP, ROW = 120, 740, 66, 46
LOWEST = 0.7      # where the axis begins

HEAD = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 780 {height}" role="img" aria-label="{label}">
  <style>
    text {{ font: 14px system-ui, sans-serif; fill: #1f2328; }}
    .axis {{ stroke: #8886; }} .tick {{ font-size: 12px; opacity: .75; }}
    line {{ stroke-width: 3; stroke-linecap: round; }}
    .ours {{ fill: #4a78f0; stroke: #4a78f0; }} .linear {{ fill: #d9722e; stroke: #d9722e; }}
    .bayes {{ fill: #888; stroke: #888; }}
    text.value {{ font-weight: 600; }}
    @media (prefers-color-scheme: dark) {{ text {{ fill: #e6edf3; }} }}
  </style>"""


def rows():
    """-> set: {classifier: (accuracy, lower, upper)} in the order of the table."""
    found = {}
    for line in (DOCS / "headline.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) > 4 and cells[1] in SHOWN and (bounds := re.findall(r"0\.\d+", cells[4])):
            found.setdefault(cells[0], {})[cells[1]] = (float(cells[3]), *map(float, bounds))
    return found


def draw(table):
    """{set: {classifier: (accuracy, lower, upper)}} -> the picture as SVG."""
    def x(value):
        return round(LEFT + (value - LOWEST) / (1 - LOWEST) * (RIGHT - LEFT), 1)

    bottom = TOP + ROW * len(table)
    out = [HEAD.format(height=bottom + 44, label="Accuracy on five data sets, three seeds each")]
    place = LEFT
    for name, kind in SHOWN.values():
        out += [f'  <circle cx="{place}" cy="24" r="6" class="{kind}"/>',
                f'  <text x="{place + 12}" y="29">{name}</text>']
        place += 45 + 7 * len(name)
    for n in range(4):
        value = LOWEST + n / 10
        out += [f'  <path d="M{x(value)} {TOP - 18}V{bottom}" class="axis"/>',
                f'  <text x="{x(value)}" y="{bottom + 18}" text-anchor="middle" class="tick">'
                f'{value:.1f}</text>']
    out.append(f'  <text x="{(LEFT + RIGHT) // 2}" y="{bottom + 36}" text-anchor="middle" '
               'class="tick">test accuracy, mean of three seeds and its 95% interval</text>')
    for n, (name, results) in enumerate(table.items()):
        y = TOP + ROW * n + 12
        out.append(f'  <text x="{LEFT - 14}" y="{y + 5}" text-anchor="end">{name}</text>')
        for classifier, (_, kind) in reversed(SHOWN.items()):     # ours lies on top
            mean, lower, upper = results[classifier]
            out += [f'  <line x1="{x(lower)}" x2="{x(upper)}" y1="{y}" y2="{y}" class="{kind}" '
                    'stroke-opacity=".35"/>',
                    f'  <circle cx="{x(mean)}" cy="{y}" r="6" class="{kind}"/>']
        out.append(f'  <text x="{x(results["MiniLM"][0])}" y="{y - 13}" text-anchor="middle" '
                   f'class="value">{results["MiniLM"][0]:.3f}</text>')
    return "\n".join([*out, "</svg>", ""])


if __name__ == "__main__":
    PICTURE.write_text(draw(rows()), encoding="utf-8")
