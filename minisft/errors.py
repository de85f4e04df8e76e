"""The error of a public door: something a user gave us is wrong, and they can mend it."""

import re
import shlex
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

_MARK = "\ue000"     # of Unicode's private use: no text of a user holds it
LONGEST = 2000       # characters of a line for a person: more of it is a value without end
# Marks that turn the direction of what follows, or hide in it.
_TURNING = {0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A),
            *range(0xFFF9, 0xFFFC), *range(0xE0000, 0xE0080)}


class UserError(ValueError):
    """One line: the file, the line or tensor, what it is and what was expected.

    str() names options as Python does; the command line shows those within `setting` as flags.
    """

    def __str__(self) -> str:
        return shown(render(super().__str__(), as_keyword))


class NotFittedError(UserError, AttributeError):
    """An estimator was asked before `fit`; scikit-learn's own error has the same two parents."""


class DivergedError(UserError):
    """Training met a value that is not finite.

    `step` is the loop's, from 1 on; `tensor` is what was not finite first, `cause` what it comes
    from in all likelihood, `remedy` what to try, "" where no option is to blame; `folder` is that
    of the run, which can go on, or None.
    """

    def __init__(self, message: str, step: int = 0, tensor: str = "", cause: str = "",
                 remedy: str = "", folder: Path | None = None) -> None:
        super().__init__(message)
        self.step, self.tensor, self.cause, self.remedy = step, tensor, cause, remedy
        self.folder = folder

    def and_also(self, sentence: str, folder: Path | None = None) -> "DivergedError":
        """-> the same with a sentence more, of a run in this folder; "" for no sentence."""
        return DivergedError(f"{self.args[0]}; {sentence}" if sentence else self.args[0], self.step,
                             self.tensor, self.cause, self.remedy, folder or self.folder)


def setting(name: str, value: str | None = None) -> str:
    """An option (and its value) -> the same, marked for `render` within a message."""
    return f"{_MARK}{name}{_MARK}" if value is None else f"{_MARK}{name}={value}{_MARK}"


def render(message: str, spell: Callable[[str, str | None], str]) -> str:
    """A message with marked options -> the message with spell(name, value or None) for each."""
    return re.sub(f"{_MARK}([a-z0-9_]+)(?:=([^{_MARK}]*))?{_MARK}",
                  lambda match: spell(match[1], match[2]), message)


def as_keyword(name: str, value: str | None = None) -> str:
    """-> as Python has it: max_length, task='complete'."""
    return name if value is None else f"{name}={value!r}"


def as_flag(name: str, value: str | None = None) -> str:
    """-> as the command line has it: --max-length, --task complete."""
    flag = f"--{name.replace('_', '-')}"
    return flag if value is None else f"{flag} {shlex.quote(value)}"


def disturbs(c: str) -> bool:
    """A character -> whether it would act on a terminal or a page in place of being seen: control
    characters, breaks of lines, marks of direction, half characters."""
    return ord(c) in _TURNING or c == _MARK or \
        unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")


def shown(text: Any, limit: int = LONGEST, keep: str = "") -> str:
    """Any text, such as a label, a file's name or a whole message -> one line of it that a terminal
    shows as it is: what `disturbs` becomes its escape (\\x1b, \\n), but for `keep`."""
    text = str(text)
    if len(text) > limit:
        text = f"{text[:limit]}… ({len(text) - limit:,} characters more)"
    if text.isprintable():
        return text
    return "".join(c.encode("unicode_escape").decode() if disturbs(c) and c not in keep else c
                   for c in text)


def tell(line: Any) -> None:
    """A line of what goes on -> stdout, as `shown`."""
    print(shown(line))


def short_repr(value: Any) -> str:
    """Any value -> at most 60 characters of it on one line, for a message."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
