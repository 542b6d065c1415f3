"""A reader for the pickles of plain data, which builds lists, mappings and stand-ins and calls nothing.

The pickle module is not used: even with its globals restricted, a file can make it allocate at will. This
reader knows the opcodes that saved state dicts use and refuses the others.
"""

from __future__ import annotations

import io
import pickletools
import struct
from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import Any

OPERATIONS = 8_000_000
SCAN_OPERATIONS = 500_000


class PickleFault(ValueError):
    """A pickle that does not hold plain data; the text says why."""


class ForbiddenGlobal(PickleFault):
    """A pickle that names a class or function outside the allow-list."""


@dataclass(frozen=True, slots=True)
class Global:
    """Stands for an allowed class or function; it is a name and nothing more."""

    name: str


class _Machine:
    """The state of a pickle being read: position, stack, marks and memo."""

    __slots__ = ("allowed", "at", "call", "marks", "memo", "persistent", "raw", "stack")

    def __init__(
        self,
        raw: bytes,
        allowed: Container[str],
        call: Callable[[str, tuple[Any, ...]], Any],
        persistent: Callable[[Any], Any],
    ) -> None:
        self.raw, self.at = raw, 0
        self.allowed, self.call, self.persistent = allowed, call, persistent
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def take(self, count: int) -> bytes:
        start = self.at
        self.at = start + count
        if self.at > len(self.raw):
            raise PickleFault("the pickle ends early")
        return self.raw[start : self.at]

    def byte(self) -> int:
        at = self.at
        if at >= len(self.raw):
            raise PickleFault("the pickle ends early")
        self.at = at + 1
        return self.raw[at]

    def number(self, count: int) -> int:
        return int.from_bytes(self.take(count), "little")

    def line(self) -> str:
        end = self.raw.find(b"\n", self.at, self.at + 1000)
        if end < 0:
            raise PickleFault("the pickle holds a name without end")
        return self.take(end + 1 - self.at)[:-1].decode("utf-8", "replace")

    def pop(self) -> Any:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise PickleFault("the pickle takes from an empty stack")
        return self.stack.pop()

    def since_mark(self) -> list[Any]:
        if not self.marks:
            raise PickleFault("the pickle lacks a mark")
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def top(self, kind: type) -> Any:
        if not self.stack or type(self.stack[-1]) is not kind:
            raise PickleFault(f"the pickle adds items to what is no {kind.__name__}")
        return self.stack[-1]

    def text(self, count: int) -> None:
        self.stack.append(self.take(count).decode("utf-8", "surrogatepass"))

    def remember(self, place: int) -> None:
        if not self.stack:
            raise PickleFault("the pickle takes from an empty stack")
        self.memo[place] = self.stack[-1]

    def recall(self, place: int) -> None:
        if place not in self.memo:
            raise PickleFault("the pickle recalls what it never stored")
        self.stack.append(self.memo[place])

    def find(self, name: str) -> None:
        if name not in self.allowed:
            raise ForbiddenGlobal(name)
        self.stack.append(Global(name))

    def extend(self, items: list[Any]) -> None:
        self.top(list).extend(items)

    def set_items(self, items: list[Any]) -> None:
        table = self.top(dict)
        if len(items) % 2:
            raise PickleFault("the pickle holds a key without value")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) is not str and type(key) is not int:
                raise PickleFault("the pickle holds a key that is neither text nor an integer")
            if key in table:
                raise PickleFault(f"the key '{str(key)[:200]}' occurs twice")
            table[key] = value


def _mark(m: _Machine) -> None:
    m.marks.append(len(m.stack))


def _stack_global(m: _Machine) -> None:
    name, module = m.pop(), m.pop()
    if type(name) is not str or type(module) is not str:
        raise PickleFault("the pickle names a global by something other than text")
    m.find(f"{module}.{name}")


def _reduce(m: _Machine) -> None:
    arguments, function = m.pop(), m.pop()
    if type(function) is not Global or type(arguments) is not tuple:
        raise PickleFault("the pickle calls something that is no function")
    m.stack.append(m.call(function.name, arguments))


def _build(m: _Machine) -> None:
    m.pop()  # attributes of a mapping, such as the _metadata of a state dict, are not kept
    m.top(dict)


def _long(m: _Machine) -> None:
    m.stack.append(int.from_bytes(m.take(m.byte()), "little", signed=True))


def _tuple(count: int) -> Callable[[_Machine], object]:
    def make(m: _Machine) -> None:
        items = [m.pop() for _ in range(count)]
        m.stack.append(tuple(reversed(items)))

    return make


def _constant(value: Any) -> Callable[[_Machine], object]:
    return lambda m: m.stack.append(value)


_DO: dict[int, Callable[[_Machine], object]] = {
    ord(code): action
    for code, action in {
        "\x95": lambda m: m.take(8),
        "(": _mark,
        "q": lambda m: m.remember(m.byte()),
        "r": lambda m: m.remember(m.number(4)),
        "\x94": lambda m: m.remember(len(m.memo)),
        "h": lambda m: m.recall(m.byte()),
        "j": lambda m: m.recall(m.number(4)),
        "X": lambda m: m.text(m.number(4)),
        "\x8c": lambda m: m.text(m.byte()),
        "\x8d": lambda m: m.text(m.number(8)),
        "K": lambda m: m.stack.append(m.byte()),
        "M": lambda m: m.stack.append(m.number(2)),
        "J": lambda m: m.stack.append(int.from_bytes(m.take(4), "little", signed=True)),
        "\x8a": _long,
        "G": lambda m: m.stack.append(struct.unpack(">d", m.take(8))[0]),
        "N": _constant(None),
        "\x88": _constant(True),
        "\x89": _constant(False),
        ")": _constant(()),
        "\x85": _tuple(1),
        "\x86": _tuple(2),
        "\x87": _tuple(3),
        "t": lambda m: m.stack.append(tuple(m.since_mark())),
        "}": lambda m: m.stack.append({}),
        "]": lambda m: m.stack.append([]),
        "s": lambda m: m.set_items([m.pop(), m.pop()][::-1]),
        "u": lambda m: m.set_items(m.since_mark()),
        "a": lambda m: m.extend([m.pop()]),
        "e": lambda m: m.extend(m.since_mark()),
        "c": lambda m: m.find(f"{m.line()}.{m.line()}"),
        "\x93": _stack_global,
        "Q": lambda m: m.stack.append(m.persistent(m.pop())),
        "R": _reduce,
        "b": _build,
    }.items()
}


def load(
    raw: bytes,
    allowed: Container[str],
    call: Callable[[str, tuple[Any, ...]], Any],
    persistent: Callable[[Any], Any],
) -> Any:
    """Return the value of a pickle (protocol 2 to 5), built of plain data and of what `call` makes.

    Args:
        raw: The pickle, which must end with its STOP.
        allowed: Names, module and all, of the globals that may appear.
        call: Stands in for every function: gets its name and arguments, and returns a stand-in.
        persistent: Gets a persistent id, returns a stand-in.

    Raises:
        PickleFault: Anything else, too many operations included.
    """
    if raw[:1] != b"\x80" or raw[1:2] not in (b"\x02", b"\x03", b"\x04", b"\x05"):
        raise PickleFault("it does not begin as a pickle of protocol 2 to 5")
    machine = _Machine(raw, allowed, call, persistent)
    machine.at = 2
    size = len(raw)
    for _ in range(OPERATIONS):
        at = machine.at
        if at >= size:
            raise PickleFault("the pickle ends early")
        code = raw[at]
        machine.at = at + 1
        if code == 0x2E:  # STOP
            if machine.at != size or len(machine.stack) != 1 or machine.marks:
                raise PickleFault("the pickle holds more than one value")
            return machine.stack[0]
        action = _DO.get(code)
        if action is None:
            raise PickleFault(f"the pickle holds the operation {_name_of(code)}, which saved weights never need")
        action(machine)
    raise PickleFault(f"the pickle holds more than {OPERATIONS} operations")


def scan_globals(raw: bytes) -> list[str]:
    """Return the globals that the pickles at the start of `raw` name, each once; nothing is run.

    The scan is bounded and stops at the first fault, so the list may lack some.
    """
    found: dict[str, None] = {}
    stream = io.BytesIO(raw)
    left = SCAN_OPERATIONS
    while stream.tell() < len(raw) and left > 0:
        texts: list[str] = []
        memo: dict[int, str] = {}
        try:
            for operation, value, _ in pickletools.genops(stream):
                _follow(operation.name, value, texts, memo, found)
                left -= 1
                if left <= 0:
                    break
        except Exception:  # a scan of hostile bytes may fail in any way; what it found so far is the answer
            break
    return list(found)


def _follow(code: str, value: Any, texts: list[str], memo: dict[int, str], found: dict[str, None]) -> None:
    """Keep track of the texts on the stack well enough to tell what STACK_GLOBAL names."""
    if code in ("GLOBAL", "INST"):
        found[str(value).replace(" ", ".")] = None
    elif code == "STACK_GLOBAL" and len(texts) > 1:
        found[f"{texts[-2]}.{texts[-1]}"] = None
    elif code in ("MEMOIZE", "BINPUT", "LONG_BINPUT", "PUT"):
        memo[len(memo) if code == "MEMOIZE" else int(value)] = texts[-1] if texts else "?"
    elif code in ("BINGET", "LONG_BINGET", "GET"):
        texts.append(memo.get(int(value), "?"))
    elif isinstance(value, str):
        texts.append(value)


def _name_of(code: int) -> str:
    return next((known.name for known in pickletools.opcodes if ord(known.code) == code), f"0x{code:02x}")
