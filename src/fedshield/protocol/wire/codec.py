"""A canonical, typed, length-prefixed encoding: one value, one byte string.

    'I' int64            'S' length, UTF-8      'B' length, bytes
    'L' count, items     'M' count, (key 'S', value) pairs in byte order of the keys

Lengths and counts are unsigned 32-bit, all numbers big-endian. Anything else than the one
canonical form is refused, so that a signature over bytes is a signature over the value.
"""

from __future__ import annotations

import struct

from fedshield.errors import ProtocolError

Value = int | str | bytes | list["Value"] | dict[str, "Value"]

MAX_ITEMS = 1 << 20
MAX_DEPTH = 8


def encode(value: Value) -> bytes:
    parts: list[bytes] = []
    _encode(value, parts)
    return b"".join(parts)


def _encode(value: Value, parts: list[bytes]) -> None:
    if isinstance(value, bool) or not isinstance(value, int | str | bytes | list | dict):
        raise TypeError(f"cannot encode {type(value).__name__}")
    if isinstance(value, int):
        parts.append(b"I" + struct.pack(">q", value))
    elif isinstance(value, str):
        raw = value.encode()
        parts += (b"S" + struct.pack(">I", len(raw)), raw)
    elif isinstance(value, bytes):
        parts += (b"B" + struct.pack(">I", len(value)), value)
    elif isinstance(value, list):
        parts.append(b"L" + struct.pack(">I", len(value)))
        for item in value:
            _encode(item, parts)
    else:
        parts.append(b"M" + struct.pack(">I", len(value)))
        for key in sorted(value, key=str.encode):
            _encode(key, parts)
            _encode(value[key], parts)


def decode(data: bytes) -> Value:
    """The value in `data`. Raises `ProtocolError` ('malformed') for anything not canonical."""
    value, end = _decode(memoryview(data), 0, 0)
    if end != len(data):
        raise ProtocolError("malformed", f"{len(data) - end} bytes follow the value")
    return value


def _decode(data: memoryview, at: int, depth: int) -> tuple[Value, int]:
    if depth > MAX_DEPTH:
        raise ProtocolError("malformed", f"nested deeper than {MAX_DEPTH}")
    tag = bytes(data[at : at + 1])
    at += 1
    if tag == b"I":
        raw, at = _take(data, at, 8)
        return struct.unpack(">q", raw)[0], at
    size_raw, at = _take(data, at, 4)
    (size,) = struct.unpack(">I", size_raw)
    if tag == b"S":
        raw, at = _take(data, at, size)
        try:
            return bytes(raw).decode(), at
        except UnicodeDecodeError:
            raise ProtocolError("malformed", "text is not UTF-8") from None
    if tag == b"B":
        raw, at = _take(data, at, size)
        return bytes(raw), at
    # Every item takes at least five bytes: a count that cannot fit is refused before any work.
    if tag not in (b"L", b"M") or size > MAX_ITEMS or size * 5 > len(data) - at:
        raise ProtocolError("malformed", f"unknown tag or a count of {size} that cannot fit")
    if tag == b"L":
        items: list[Value] = []
        for _ in range(size):
            item, at = _decode(data, at, depth + 1)
            items.append(item)
        return items, at
    pairs: dict[str, Value] = {}
    last: bytes | None = None
    for _ in range(size):
        key, at = _decode(data, at, depth + 1)
        if not isinstance(key, str) or (last is not None and key.encode() <= last):
            raise ProtocolError("malformed", "keys must be texts in ascending order")
        last = key.encode()
        pairs[key], at = _decode(data, at, depth + 1)
    return pairs, at


def _take(data: memoryview, at: int, size: int) -> tuple[memoryview, int]:
    if at + size > len(data):
        raise ProtocolError("malformed", f"cut short: {size} bytes wanted, {len(data) - at} left")
    return data[at : at + size], at + size
