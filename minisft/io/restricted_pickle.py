"""A pickle read as data: plain containers, and nothing that it asks to run is run.

Python's own unpickler calls whatever a file names. Here `pickletools` only takes the opcodes apart,
and the few that build numbers, texts, lists, tuples and dicts have a meaning. A global is refused
by its name unless the caller has a stand-in for it; so is every opcode that would make an object.
What is built is never larger than a fixed multiple of the file, and no deeper than one level of
Python's stack.
"""

import pickletools
import struct
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minisft.errors import UserError, short_repr

# An honest file of a thousand tensors has a tenth of a megabyte.
LARGEST = 8 * 2**20
_MARK = object()
_DAMAGE = (ValueError, IndexError, KeyError, TypeError, OverflowError, struct.error)


@dataclass(frozen=True)
class Function:
    """What stands in for a global that a pickle may call; `make` gets the arguments."""

    make: Callable[..., Any]


def _ordered_dict(*arguments):
    if arguments:
        raise ValueError("an OrderedDict with arguments")
    return OrderedDict()


PLAIN: Mapping[str, Any] = {"collections.OrderedDict": Function(_ordered_dict)}


def read_pickle(data: bytes, source: str | Path, known: Mapping[str, Any] = PLAIN,
                persistent: Callable[[Any], Any] | None = None) -> Any:
    """The bytes of a pickle, their file for messages -> what it holds.

    `known`: for each global that may stand there, `module.name`, what stands in for it.
    `persistent` turns a persistent id into a value. Raises UserError for everything else.
    """
    if len(data) > LARGEST:
        raise UserError(f"{source}: its pickle has {len(data):,} bytes, expected at most "
                        f"{LARGEST:,}")
    machine = _Machine(source, known, persistent)
    try:
        for opcode, argument, _ in pickletools.genops(data):
            step = _STEPS.get(opcode.name)
            if opcode.name in ("GLOBAL", "INST"):     # the name says more than the opcode
                machine.require_known(argument)
            if step is None:
                raise UserError(f"{source}: its pickle has the opcode {opcode.name}, expected "
                                "tensors and plain containers alone; nothing of it was run")
            step(machine, argument)
        (value,) = machine.stack
        return value
    except UserError:
        raise
    except _DAMAGE as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{source}: its pickle is damaged ({reason[:200]})") from None


class _Machine:
    """The stack and the memo of a pickle while it is read."""

    def __init__(self, source, known, persistent):
        self.source, self.known, self._persistent = source, known, persistent
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def push(self, value):
        self.stack.append(value)

    def pop(self):
        value = self.stack.pop()
        if value is _MARK:
            raise ValueError("a mark in place of a value")
        return value

    def top(self, kind):
        """-> the value that the next ones are put into."""
        if type(self.stack[-1]) not in kind:
            raise ValueError(f"a {type(self.stack[-1]).__name__} in place of a {kind[0].__name__}")
        return self.stack[-1]

    def pop_to_mark(self):
        start = len(self.stack) - 1
        while self.stack[start] is not _MARK:
            start -= 1
            if start < 0:
                raise ValueError("no mark")
        values = self.stack[start + 1:]
        del self.stack[start:]
        return values

    def require_known(self, argument):
        """"module name" of an opcode -> what stands in for it; raises UserError."""
        name = ".".join(argument.split(" ", 1))
        if name not in self.known:
            raise UserError(f"{self.source}: its pickle asks for {short_repr(name)}, expected "
                            "tensors and plain containers alone; nothing of it was run")
        return self.known[name]

    def stack_global(self):
        name, module = self.pop(), self.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise ValueError("a global without a name")
        self.push(self.require_known(f"{module} {name}"))

    def set_items(self, items):
        target = self.top((dict, OrderedDict))
        for key, value in zip(items[::2], items[1::2], strict=True):
            # small numbers and texts: others could be made to collide, or be nested without end
            if not isinstance(key, str) and not (type(key) is int and abs(key) < 2**60):
                raise ValueError(f"a key of a dict is a {type(key).__name__}")
            target[key] = value

    def reduce(self):
        arguments, function = self.pop(), self.pop()
        if not isinstance(function, Function) or type(arguments) is not tuple:
            raise ValueError(f"it calls a {type(function).__name__}")
        self.push(function.make(*arguments))

    def build(self):
        """The attributes of a state dict, `_metadata`, are left out; nothing else has any."""
        state = self.pop()
        if type(self.stack[-1]) is not OrderedDict or type(state) is not dict:
            raise UserError(f"{self.source}: its pickle sets attributes of a "
                            f"{type(self.stack[-1]).__name__}, expected tensors and plain "
                            "containers alone; nothing of it was run")

    def persistent_id(self):
        if self._persistent is None:
            raise ValueError("a persistent id")
        self.push(self._persistent(self.pop()))


def _constant(value):
    return lambda machine, argument: machine.push(value)


def _tuple_of(n):
    return lambda m, argument: m.push(tuple([m.pop() for _ in range(n)][::-1]))


def _remember(machine, argument):
    if machine.stack[-1] is _MARK:
        raise ValueError("a mark in the memo")
    machine.memo[len(machine.memo) if argument is None else argument] = machine.stack[-1]


def _nothing(machine, argument):
    pass


_STEPS: Mapping[str, Callable[[_Machine, Any], Any]] = {
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), _nothing),
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "BINUNICODE",
                     "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES"),
                    _Machine.push),
    "NONE": _constant(None), "NEWTRUE": _constant(True), "NEWFALSE": _constant(False),
    "MARK": _constant(_MARK), "EMPTY_TUPLE": _constant(()),
    "EMPTY_LIST": lambda m, argument: m.push([]),
    "EMPTY_DICT": lambda m, argument: m.push({}),
    "TUPLE": lambda m, argument: m.push(tuple(m.pop_to_mark())),
    "TUPLE1": _tuple_of(1), "TUPLE2": _tuple_of(2), "TUPLE3": _tuple_of(3),
    "APPEND": lambda m, argument: (value := m.pop(), m.top((list,)).append(value)),
    "APPENDS": lambda m, argument: (values := m.pop_to_mark(), m.top((list,)).extend(values)),
    "SETITEM": lambda m, argument: (value := m.pop(), key := m.pop(), m.set_items([key, value])),
    "SETITEMS": lambda m, argument: m.set_items(m.pop_to_mark()),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT", "MEMOIZE"), _remember),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), lambda m, argument: m.push(m.memo[argument])),
    "GLOBAL": lambda m, argument: m.push(m.require_known(argument)),
    "STACK_GLOBAL": lambda m, argument: m.stack_global(),
    "REDUCE": lambda m, argument: m.reduce(),
    "BUILD": lambda m, argument: m.build(),
    "BINPERSID": lambda m, argument: m.persistent_id(),
}
