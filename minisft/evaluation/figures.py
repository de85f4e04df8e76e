"""How results are told, on the terminal and in reports: shares in per cent everywhere."""


from pathlib import Path


class Verdict(str):
    """The line that says how good a model is; a terminal shows it in bold."""


class Use(str):
    """The line that says where a model is; the command line shows what it is used by.

    task: "classify", "complete", "tag", "answer", "translate" or
    "pretrain". pairs: it reads two texts at once.
    """

    folder: Path
    task: str
    pairs: bool

    def __new__(cls, folder: Path, task: str, pairs: bool = False) -> "Use":
        made = super().__new__(cls, f"the model is in {folder}")
        made.folder, made.task, made.pairs = folder, task, pairs
        return made


def percent(share: float) -> str:
    """0.5734 -> 57.3%."""
    return f"{share:.1%}"


def interval(low: float, high: float) -> str:
    """-> 95% interval 47.2% to 66.3%."""
    return f"95% interval {percent(low)} to {percent(high)}"


def p_value(p: float) -> str:
    """-> < 0.001, or two digits of it."""
    return "< 0.001" if p < 0.001 else f"{p:.2g}"


def count(n: int, thing: str) -> str:
    """3, "test text" -> 3 test texts."""
    return f"{n:,} {thing}{'s' * (n != 1)}"
