"""Write the test vectors and the worked example anew (make vectors). The same input gives the same bytes.

The expected output of a valid vector is what the reference reader prints. So that reader and writer cannot agree on
something wrong, each file is also decoded by the library and compared with the tree that went in.
"""

import json
import tempfile
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path

import pytreeckpt
from pytreeckpt.testing import identical
from spec.corpus.data_file_vectors import broken_with_data_files, future_with_data_files, valid_with_data_files
from spec.corpus.example import worked_example
from spec.corpus.invalid import future_vectors, invalid_vectors
from spec.corpus.valid import UNKNOWN, Valid, valid_vectors
from spec.reference import reader

__all__ = ["files", "main"]

SPEC = Path(__file__).parent
FOLDERS = ("valid", "invalid", "future")

Broken = tuple[str, str, bytes, Mapping[str, bytes]]


def files() -> Iterator[tuple[str, bytes]]:
    """The files that are generated: their paths in spec/, and their bytes."""
    for vector in chain(valid_vectors(), valid_with_data_files()):
        document = checked(vector)
        lines = [f'"{name}": {json.dumps(value)}' for name, value in document.items()]
        yield f"vectors/valid/{vector.name}.ptck", vector.data
        yield f"vectors/valid/{vector.name}.json", ("{" + ",\n ".join(lines) + "}\n").encode()
        yield from data_files("valid", vector.files)
    yield from broken_files("invalid", chain(without_data_files(invalid_vectors()), broken_with_data_files()))
    yield from broken_files("future", chain(without_data_files(future_vectors()), future_with_data_files()))
    yield "worked-example.md", worked_example().encode()


def data_files(folder: str, files: Mapping[str, bytes]) -> Iterator[tuple[str, bytes]]:
    """The data files of a vector. Several may have the same, and then it is the same."""
    for name, data in files.items():
        yield f"vectors/{folder}/data/{name}", data


def without_data_files(vectors: Iterator[tuple[str, str, bytes]]) -> Iterator[Broken]:
    """Vectors of one file, as those of several are given."""
    for vector in vectors:
        yield *vector, {}


def broken_files(folder: str, vectors: Iterator[Broken]) -> Iterator[tuple[str, bytes]]:
    """The files of a folder of what must be refused, and its rules.json."""
    rules: dict[str, str] = {}
    for rule, fault, data, files in vectors:
        name = f"{rule.lower()}-{fault}.ptck"
        assert name not in rules, name
        rules[name] = rule
        yield f"vectors/{folder}/{name}", data
        yield from data_files(folder, files)
    yield f"vectors/{folder}/rules.json", (json.dumps(rules, indent=1) + "\n").encode()


def checked(vector: Valid) -> dict[str, object]:
    """What the reader makes of a file, after what the library makes of it was compared with what went in."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vector.ptck"
        path.write_bytes(vector.data)
        (path.parent / "data").mkdir()
        for name, data in vector.files.items():
            (path.parent / "data" / name).write_bytes(data)
        document = reader.neutral(reader.decode(vector.data, path.parent / "data"))
        if vector.tree is UNKNOWN:
            return document
        with pytreeckpt.open(path) as checkpoint:
            pairs = [(vector.tree, checkpoint.restore(to="numpy")), (vector.metadata, checkpoint.metadata)]
    for expected, found in pairs:
        differences = identical(expected, found)
        assert not differences, (vector.name, differences)
    return document


def main() -> None:
    """Write the files, and remove what is no longer generated."""
    generated: dict[str, bytes] = {}
    for name, data in files():
        assert generated.setdefault(name, data) == data, name
    present = [path for folder in FOLDERS for path in (SPEC / "vectors" / folder).rglob("*") if path.is_file()]
    stale = [path for path in present if path.relative_to(SPEC).as_posix() not in generated]
    for path in stale:
        path.unlink()
    for name, data in generated.items():
        path = SPEC / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    print(f"{len(generated)} files, {sum(map(len, generated.values()))} bytes; {len(stale)} removed")


if __name__ == "__main__":
    main()
