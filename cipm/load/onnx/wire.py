"""The wire format of a ModelProto, walked without building it: what the file is, and how much is in it."""

from __future__ import annotations

from collections.abc import Iterator

from cipm.errors import CorruptFile, LimitExceeded

MAX_NODES, MAX_INITIALISERS, MAX_FIELDS = 50_000, 100_000, 1_000_000
MAX_BYTES = 2**31 - 1  # protobuf's own
DAMAGED = "Upload the file again, or export the model again."
_MODEL, _GRAPH, _NODE, _INITIALISER = (1, 2, 3, 4, 5, 6, 7, 8, 14, 20, 25, 26), 7, 1, 5
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def is_onnx(head: bytes) -> bool:
    """Tell whether the first bytes of a file are those of a ModelProto: known fields from ir_version until the graph."""
    if not head.startswith(b"\x08"):
        return False
    at, seen = 0, set()
    while at < len(head):
        tag, at = _varint(head, at)
        number, wire = tag >> 3, tag & 7
        if number not in _MODEL or wire not in (_VARINT, _BYTES):
            return False
        seen.add(number)
        length, at = _varint(head, at)
        at += length if wire == _BYTES else 0
        if number == _GRAPH:
            return True
    return {1, 8} <= seen


def check_counts(data: bytes | bytearray, name: str) -> None:
    """Raise CorruptFile where the file is cut short, LimitExceeded where it holds more than is read here.

    Building a message costs many times its bytes, so this comes first.
    """
    nodes = initialisers = fields = 0
    for number, start, end in _fields(data, 0, len(data), name):
        fields += 1
        for inner, _, _ in _fields(data, start, end, name) if number == _GRAPH else ():
            nodes, initialisers, fields = nodes + (inner == _NODE), initialisers + (inner == _INITIALISER), fields + 1
            if nodes > MAX_NODES:
                raise LimitExceeded(f"The ONNX graph has more than {MAX_NODES:,} nodes.", where=name)
            if initialisers > MAX_INITIALISERS:
                raise LimitExceeded(f"The ONNX graph has more than {MAX_INITIALISERS:,} initialisers.", where=name)
        if fields > MAX_FIELDS:
            raise LimitExceeded(f"The ONNX file has more than {MAX_FIELDS:,} fields.", where=name)


def _fields(data: bytes | bytearray, at: int, end: int, name: str) -> Iterator[tuple[int, int, int]]:
    """Yield (field number, first byte, end) of every field in a message."""
    while at < end:
        tag, start = _varint(data, at)
        wire = tag & 7
        if wire == _BYTES:
            length, start = _varint(data, start)
            at = start + length
        elif wire == _VARINT:
            at = _varint(data, start)[1]
        else:
            at = start + {_FIXED64: 8, _FIXED32: 4}.get(wire, end)
        if at > end:
            raise CorruptFile(f"{name!r} is damaged at byte {start:,}: a field reaches beyond its end. It may be cut short.",
                              where=name, fix=DAMAGED)
        yield tag >> 3, start, at


def _varint(data: bytes | bytearray, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data) and shift < 64:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
    return value, len(data) + 1  # no end: beyond any message
