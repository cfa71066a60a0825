"""Damage to files: of any bytes, and of what a format is made of (header lines, JSON values, archive members)."""

from __future__ import annotations

import io
import json
import random
import struct
import zipfile
from collections.abc import Callable
from typing import Any

Damage = Callable[[bytes, random.Random], bytes]

TEXTS = [b"9" * 18, b"-1", b"nan", b"0", b"2147483648", b"\0", b"\xff" * 8, b"\n"]
VALUES: list[Any] = [
    None,
    True,
    -1,
    0,
    1,
    7,
    2**31,
    2**70,
    1e308,
    float("nan"),
    "",
    "x",
    "F8_E4M3",
    [],
    {},
    [[0]],
    [-1],
]


def damaged_bytes(content: bytes, draw: random.Random) -> bytes:
    """One to four changes: bytes set, numbers of the header replaced, parts cut, doubled or moved."""
    data = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        place = draw.randrange(max(len(data), 1))
        length = draw.choice([1, 2, 8, 64])
        match draw.randrange(5):
            case 0:
                data[place : place + length] = draw.randbytes(length)
            case 1:
                del data[place : place + length * draw.choice([1, 30])]
            case 2:
                data[place:place] = data[place : place + length]
            case 3:
                text = draw.choice(TEXTS)
                data[place : place + len(text)] = text
            case _:
                head = draw.randrange(min(len(data), 400) or 1)
                data[head : head + 1] = draw.choice([b" ", b"\n", b"7", b"x", b"\x80"])
    return bytes(data)


def truncated(content: bytes, draw: random.Random) -> bytes:
    """Only the first bytes."""
    return content[: draw.randrange(len(content))]


def damaged_lines(content: bytes, draw: random.Random) -> bytes:
    """One to three of the first lines removed, doubled, moved, or with another word."""
    lines = content.split(b"\n")
    for _ in range(draw.randint(1, 3)):
        at = draw.randrange(min(len(lines), 30))
        match draw.randrange(4):
            case 0:
                del lines[at]
            case 1:
                lines.insert(at, lines[at])
            case 2:
                other = draw.randrange(min(len(lines), 30))
                lines[at], lines[other] = lines[other], lines[at]
            case _:
                words = lines[at].split(b" ")
                words[draw.randrange(len(words))] = draw.choice(
                    [*TEXTS, b"double", b"list", b"vertex", b"chunk", b"%a"]
                )
                lines[at] = b" ".join(words)
        lines = lines or [b""]
    return b"\n".join(lines)


def damaged_value(value: Any, draw: random.Random) -> Any:
    """A JSON value with one of its parts replaced, removed or renamed, or nested too deep."""
    if not isinstance(value, dict | list) or not value or draw.random() < 0.1:
        return draw.choice(VALUES)
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = draw.choice(keys)
    changed = value.copy()
    match draw.randrange(5):
        case 0:
            del changed[key]
        case 1 if isinstance(changed, dict):
            changed[draw.choice([*map(str, keys), "unknown"])] = changed.pop(key)
        case _:
            changed[key] = damaged_value(changed[key], draw)
    return changed


def damaged_json(content: bytes, draw: random.Random) -> bytes:
    """One to three values of a JSON text changed; rarely, nested too deep to read."""
    if draw.random() < 0.02:
        return b'{"a":' + b"[" * 100_000
    value = json.loads(content)
    for _ in range(draw.choice([1, 1, 1, 3])):
        value = damaged_value(value, draw)
    return json.dumps(value).encode()


def damaged_rows(content: bytes, draw: random.Random) -> bytes:
    """One row of a .jsonl changed."""
    rows = content.splitlines()
    at = draw.randrange(len(rows))
    rows[at] = damaged_json(rows[at], draw)
    return b"\n".join(rows) + b"\n"


def damaged_safetensors(content: bytes, draw: random.Random) -> bytes:
    """One value of the header changed, such as an offset, a shape or a type, or the header's length."""
    (length,) = struct.unpack("<Q", content[:8])
    head = damaged_json(content[8 : 8 + length], draw)
    said = draw.choice([len(head)] * 8 + [0, length, 2**31, 2**63])
    return struct.pack("<Q", said) + head + content[8 + length :]


def damaged_glb(content: bytes, draw: random.Random) -> bytes:
    """One value of the JSON chunk of a binary glTF changed, such as an index, a count or an offset."""
    (length,) = struct.unpack("<I", content[12:16])
    head = damaged_json(content[20 : 20 + length], draw)
    head += b" " * (-len(head) % 4)
    chunks = struct.pack("<I", len(head)) + content[16:20] + head + content[20 + length :]
    return content[:8] + struct.pack("<I", 12 + len(chunks)) + chunks


def damaged_archive(content: bytes, draw: random.Random) -> bytes:
    """One member of a zip changed, removed, doubled or renamed."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    at = draw.randrange(len(members))
    name, data = members[at]
    match draw.randrange(5):
        case 0:
            del members[at]
        case 1:
            members.append((draw.choice(members)[0], data))
        case 2:
            members[at] = (draw.choice(["../x", "archive/data/99", "", "archive/data.pkl"]), data)
        case _:
            members[at] = (name, damaged_bytes(data, draw))
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in members:
            archive.writestr(zipfile.ZipInfo(name), data)
    return file.getvalue()
