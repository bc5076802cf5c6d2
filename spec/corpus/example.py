"""The worked example: a small file, byte by byte."""

import json
import struct
from collections.abc import Iterator
from itertools import accumulate
from typing import Any

import msgpack
import numpy as np

from spec.corpus.parts import COLUMNS, File
from spec.corpus.valid import of_tree
from spec.reference import reader

__all__ = ["worked_example"]

TREE = {"w": np.array([[1.0, 2.0, 3.0]], "<f2"), "step": 7}
METADATA = {"run": "a"}

TEXT = """\
# A complete file, byte by byte

`spec/generate.py` writes this page, and a test compares it with what is committed. The file is that of

    pytreeckpt.save({{"w": np.array([[1, 2, 3]], np.float16), "step": 7}}, path, metadata={{"run": "a"}})

with two differences, so that every part of a file shows in clear: the library would keep an array as small as `w` in
the index (`inline`), and it compresses an index that zstd makes shorter. The file is {nbytes} bytes long; the numbers
on the left are hexadecimal offsets, `00 × 40` stands for so many bytes, and section numbers are those of
[format-v1.md](format-v1.md).

## Preamble (section 2)

{preamble}

## The one chunk (section 8)

The six bytes of `w`, and zeros up to the next multiple of 64.

{chunk}

## The index (section 3)

One msgpack map. A column is a `bin`; what it holds stands in brackets.

{index}

## Footer (section 2)

{footer}

## What it means

The node stream begins with the metadata: a dict of one key and one value. Then comes the tree: a dict, its two keys,
then their values in the same order. The array node takes its payload, 0, from the column `arrays`: array 0 has dtype 0
(`float16`), two axes, the extents 1 and 3, and one chunk: row 0 of the chunk table, six bytes at offset 64, stored as
they are. In the [neutral form](vectors/README.md#the-neutral-form):

{neutral}
"""

Piece = tuple[bytes, str]


def worked_example() -> str:
    """The page."""
    file = of_tree(TREE, METADATA, inline_nbytes=0)
    data = file.encode()
    index_offset = 64 + len(file.body)
    index = list(index_pieces(file))
    parts = {
        "preamble": (0, list(preamble_pieces(data))),
        "chunk": (64, [(data[64:70], "1.0, 2.0, 3.0 as binary16"), (data[70:index_offset], "zeros")]),
        "index": (index_offset, [*index, padding_of(data, index_offset, index)]),
        "footer": (len(data) - 128, list(footer_pieces(data[-128:]))),
    }
    assert b"".join(piece for _, pieces in parts.values() for piece, _ in pieces) == data
    dumps = {name: dump(start, pieces) for name, (start, pieces) in parts.items()}
    lines = [f'"{name}": {json.dumps(value)}' for name, value in reader.neutral(reader.decode(data)).items()]
    return TEXT.format(nbytes=len(data), neutral="    {" + ",\n     ".join(lines) + "}", **dumps)


def dump(start: int, pieces: list[Piece]) -> str:
    """Lines of offset, bytes and meaning."""
    offsets = accumulate((len(data) for data, _ in pieces), initial=start)
    lines = []
    for offset, (data, meaning) in zip(offsets, pieces, strict=False):
        rows = [data[at : at + 16].hex(" ") for at in range(0, len(data), 16)]
        if len(data) > 8 and not any(data):
            rows = [f"00 × {len(data)}"]
        lines.append(f"    {offset:04x}  {rows[0]:47}  {meaning}")
        lines += [f"          {row}" for row in rows[1:]]
    return "\n".join(line.rstrip() for line in lines)


def preamble_pieces(data: bytes) -> Iterator[Piece]:
    """The fields of the preamble."""
    yield data[:8], "magic"
    yield data[8:12], "format version"
    yield data[12:16], "zero"
    yield data[16:24], "required features: none"
    yield data[24:64], "zero"


def footer_pieces(footer: bytes) -> Iterator[Piece]:
    """The fields of the footer."""
    offset, stored, raw = struct.unpack_from("<QQQ", footer)
    yield footer[:8], f"index_offset: {offset}"
    yield footer[8:16], f"index_stored_nbytes: {stored}"
    yield footer[16:24], f"index_raw_nbytes: {raw}"
    yield footer[24:25], "index codec: raw"
    yield footer[25:32], "zero"
    yield footer[32:48], "XXH3-128 of the stored index"
    yield footer[48:80], "SHA-256 of the raw index: the root"
    yield footer[80:104], "zero"
    yield footer[104:112], f"length of the file: {len(footer) + offset + -(-stored // 64) * 64}"
    yield footer[112:120], "XXH3-64 of the preamble and of the footer up to here"
    yield footer[120:], "end magic"


def padding_of(data: bytes, index_offset: int, index: list[Piece]) -> Piece:
    """What is between index and footer."""
    return data[index_offset + sum(len(piece) for piece, _ in index) : -128], "zeros"


def index_pieces(file: File) -> Iterator[Piece]:
    """The raw index, key by key and value by value."""
    packer = msgpack.Packer()
    yield packer.pack_map_header(len(file.index)), f"map of {len(file.index)}"
    for name, section in file.index.items():
        yield msgpack.packb(name), f'"{name}"'
        if not isinstance(section, dict):
            yield msgpack.packb(section), shown(section)
            continue
        yield packer.pack_map_header(len(section)), f"map of {len(section)}"
        for key, values in section.items():
            yield msgpack.packb(key), f'    "{key}"'
            code = COLUMNS[name].get(key)
            if code is None:
                yield msgpack.packb(values), f"    {shown(values)}"
            else:
                column = b"".join(struct.pack(f"<{code}", value) for value in values)
                meaning = [reader.KINDS[value][0] for value in values] if key == "kinds" else values
                yield msgpack.packb(column), f"    bin of {len(column)}: [{', '.join(map(column_entry, meaning))}]"


def shown(value: Any) -> str:
    """A value in the notation of JSON, with bytes as `bin`."""
    if isinstance(value, bytes):
        return f"bin of {len(value)}"
    if isinstance(value, list):
        return f"[{', '.join(map(shown, value))}]"
    return json.dumps(value)


def column_entry(value: Any) -> str:
    """An entry of a column; hashes stand there in full already."""
    if isinstance(value, bytes):
        return "as the digest begins, by C-5" if len(value) == 8 else "XXH3-128 of the raw bytes"
    return str(value)
