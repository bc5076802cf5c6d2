"""Write the test vectors and the worked example anew (make vectors). The same input gives the same bytes.

The expected output of a valid vector is what the reference reader prints. So that reader and writer cannot agree on
something wrong, each file is also decoded by the library and compared with the tree that went in.
"""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytreeckpt
from pytreeckpt.testing import identical
from spec.corpus.example import worked_example
from spec.corpus.invalid import Broken, future_vectors, invalid_vectors
from spec.corpus.valid import UNKNOWN, Valid, valid_vectors
from spec.reference import reader

__all__ = ["files", "main"]

SPEC = Path(__file__).parent
FOLDERS = ("valid", "invalid", "future")


def files() -> Iterator[tuple[str, bytes]]:
    """The files that are generated: their paths in spec/, and their bytes."""
    for vector in valid_vectors():
        check(vector)
        document = reader.neutral(reader.decode(vector.data))
        lines = [f'"{name}": {json.dumps(value)}' for name, value in document.items()]
        yield f"vectors/valid/{vector.name}.ptck", vector.data
        yield f"vectors/valid/{vector.name}.json", ("{" + ",\n ".join(lines) + "}\n").encode()
    yield from broken_files("invalid", invalid_vectors())
    yield from broken_files("future", future_vectors())
    yield "worked-example.md", worked_example().encode()


def broken_files(folder: str, vectors: Iterator[Broken]) -> Iterator[tuple[str, bytes]]:
    """The files of a folder of what must be refused, and its rules.json."""
    rules: dict[str, str] = {}
    for rule, fault, data in vectors:
        name = f"{rule.lower()}-{fault}.ptck"
        assert name not in rules, name
        rules[name] = rule
        yield f"vectors/{folder}/{name}", data
    yield f"vectors/{folder}/rules.json", (json.dumps(rules, indent=1) + "\n").encode()


def check(vector: Valid) -> None:
    """Compare what the library makes of a file with what went in."""
    if vector.tree is UNKNOWN:
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vector.ptck"
        path.write_bytes(vector.data)
        with pytreeckpt.open(path) as checkpoint:
            pairs = [(vector.tree, checkpoint.restore(to="numpy")), (vector.metadata, checkpoint.metadata)]
    for expected, found in pairs:
        differences = identical(expected, found)
        assert not differences, (vector.name, differences)


def main() -> None:
    """Write the files, and remove what is no longer generated."""
    generated = dict(files())
    present = [path for folder in FOLDERS for path in (SPEC / "vectors" / folder).glob("*")]
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
