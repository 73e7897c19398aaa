"""What happened in a world, line by line; and of that what helps to understand how it broke."""

from __future__ import annotations

from typing import NamedTuple

from food.core.message import Ack, Answer, Append, Ask, Digest, Entry, Epoch, Heartbeat, Kind, Message, Position, Range

LINES_MOST = 500_000
USEFUL_MS = 3_000  # before the end: what else happened to any node
USEFUL_LINES = 60


class Line(NamedTuple):
    at_ms: int
    who: str  # "" for the world
    text: str
    to: str = ""
    message: Message | None = None

    def __str__(self) -> str:
        what = (
            self.text if self.message is None else f"-> {self.to} {type(self.message).__name__} {_short(self.message)}"
        )
        return f"{self.at_ms:6} {self.who:3} {what}"


class Trace:
    def __init__(self) -> None:
        self._lines: list[Line] = []

    def note(self, at_ms: int, who: str, text: str) -> None:
        self._add(Line(at_ms, who, text))

    def sent(self, at_ms: int, who: str, to: str, message: Message) -> None:
        self._add(Line(at_ms, who, "", to, message))

    def _add(self, line: Line) -> None:
        if len(self._lines) < LINES_MOST:
            self._lines.append(line)

    def whole(self) -> list[str]:
        return [str(line) for line in self._lines]

    def useful(self, node: str, index: int | None) -> list[str]:
        """The end of it, where a rule broke at `node` (if at any), and at entry `index` if it speaks of one."""
        end_ms = self._lines[-1].at_ms if self._lines else 0
        kept = [line for line in self._lines if _concerns(line, node, index, end_ms - USEFUL_MS)]
        return [str(line) for line in kept[-USEFUL_LINES:]]


def _short(value: object) -> str:
    """Epochs as number/candidate, positions as index@number, entries by what they are: a message on one line."""
    match value:
        case Epoch(number, candidate):
            return f"{number}/{candidate}"
        case Position(epoch, index):
            return f"{index}@{epoch.number}"
        case Entry(index, epoch, kind, data):
            return f"{index}@{epoch.number} {Kind(kind).name.lower()} {data!r:.40}"
        case bytes():
            return f"{value!r:.40}"
        case tuple() if hasattr(value, "_fields"):
            return ", ".join(f"{name} {_short(field)}" for name, field in zip(value._fields, value, strict=True))
        case tuple():
            return f"[{', '.join(map(_short, value))}]"
    return str(value)


def _concerns(line: Line, node: str, index: int | None, since_ms: int) -> bool:
    """Where the entry went, ever; lately what became of nodes, and what that one heard and said."""
    match line.message:
        case None:
            return line.at_ms >= since_ms
        case Ask() | Answer() | Digest():
            return False
        case Append() | Range() as append if index is not None:
            return append.prev.index <= index <= append.prev.index + len(append.entries)
        case Ack() as ack if index is not None:
            return ack.matched == index and line.at_ms >= since_ms
        case Heartbeat() as beat:
            return index is not None and beat.last.index == index and line.at_ms >= since_ms
        case _:
            return node in (line.who, line.to) and line.at_ms >= since_ms
