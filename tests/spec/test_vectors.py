"""Library and reference reader run the test vectors of the specification, and agree with them and each other."""

import ast
import json
import re
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from blake3 import blake3
from hypothesis import example, given
from hypothesis import strategies as st

import pytreeckpt
from pytreeckpt import CorruptionError, FormatVersionError
from pytreeckpt.objects import REGISTERED
from pytreeckpt.testing import identical
from spec import generate
from spec.reference import reader
from tests.spec.neutral import library_neutral, open_bytes

SPEC = Path(generate.__file__).parent
READER = SPEC / "reference" / "reader.py"
VALID = sorted((SPEC / "vectors" / "valid").glob("*.ptck"))
RULES = {folder: json.loads((SPEC / "vectors" / folder / "rules.json").read_text()) for folder in ("invalid", "future")}
REFUSED = [(folder, name, rule) for folder, rules in RULES.items() for name, rule in rules.items()]

DEFINED = re.findall(r"^- \*\*([A-Z]-\d+)\*\* ", (SPEC / "format-v1.md").read_text(), re.MULTILINE)
WITHOUT_A_VECTOR = {
    "F-13": "a zstd index that does not decode breaks one of Z-1 to Z-5, and F-10 has settled a raw one",
    "C-9": "what does not decode breaks one of Z-1 to Z-5 or P-1 to P-4, and C-4 has settled raw and fill",
}

# Of the extended floats, a platform has those of its long double.
_NAMES = {63: {"dtypes-float80", "dtypes-complex160"}, 112: {"dtypes-float128", "dtypes-complex256"}}
NOT_HERE = set().union(*_NAMES.values()) - _NAMES.get(int(np.finfo(np.longdouble).nmant), set())


def read_vector(folder: str, name: str) -> bytes:
    return (SPEC / "vectors" / folder / name).read_bytes()


def decode_by_reader(path: Path) -> reader.Checkpoint:
    return reader.decode(path.read_bytes(), path.parent / "data")


def is_manifest(path: Path) -> bool:
    """Whether it says that it has data files, and can be read so far."""
    return path.read_bytes()[:24][8:] == struct.pack("<IIQ", 1, 0, 1)


# The corpus itself.


def test_there_are_vectors_and_rules():
    assert len(VALID) >= 50
    assert len(REFUSED) >= 500
    assert len(DEFINED) >= 50
    assert len(set(DEFINED)) == len(DEFINED)


def test_every_rule_has_a_vector_or_a_reason_to_have_none():
    covered = {rule for _, _, rule in REFUSED}
    assert covered | set(WITHOUT_A_VECTOR) == set(DEFINED)
    assert not covered & set(WITHOUT_A_VECTOR)


@pytest.mark.parametrize("folder", ["invalid", "future"])
def test_every_file_has_its_rule(folder):
    present = {path.name for path in (SPEC / "vectors" / folder).glob("*.ptck")}
    assert present == set(RULES[folder])


def test_every_valid_file_has_its_document():
    documents = {path.stem for path in (SPEC / "vectors" / "valid").glob("*.json")}
    assert documents == {path.stem for path in VALID}


def test_the_corpus_is_small():
    sizes = [path.stat().st_size for path in (SPEC / "vectors").rglob("*") if path.is_file()]
    assert max(sizes) < 100 << 10
    assert sum(sizes) < 3 << 19


@pytest.mark.parametrize("folder", ["valid", "invalid", "future"])
def test_every_data_file_is_of_a_vector(folder):
    vectors = SPEC / "vectors" / folder
    # Roots stand in the indexes, and nothing in them compresses (zstd frames are made by hand).
    text = b"".join(path.read_bytes() for path in vectors.rglob("*.ptck"))
    roots = [bytes.fromhex(path.stem) for path in (vectors / "data").iterdir()]
    assert len(roots) > 3
    assert [root.hex() for root in roots if root not in text] == []


def test_generating_again_gives_what_is_committed():
    generated = dict(generate.files())
    folders = [SPEC / "vectors" / folder for folder in generate.FOLDERS]
    present = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert {path.relative_to(SPEC).as_posix() for path in present} | {"worked-example.md"} == set(generated)
    changed = [name for name, data in generated.items() if (SPEC / name).read_bytes() != data]
    assert not changed, "run `make vectors`"


# Valid files.


@pytest.mark.parametrize("path", VALID, ids=lambda path: path.stem)
def test_the_reader_prints_the_document(path):
    document = json.loads(path.with_suffix(".json").read_text())
    # Through JSON, because a runner prints.
    assert json.loads(json.dumps(reader.neutral(decode_by_reader(path)))) == document


@pytest.mark.parametrize("path", [path for path in VALID if path.stem not in NOT_HERE], ids=lambda path: path.stem)
def test_the_library_prints_the_document_and_finds_no_damage(path):
    with pytreeckpt.open(path) as checkpoint:
        assert library_neutral(checkpoint) == json.loads(path.with_suffix(".json").read_text())
    report = pytreeckpt.verify(path)
    assert report.ok, report.problems


@pytest.mark.parametrize("path", [path for path in VALID if path.stem not in NOT_HERE], ids=lambda path: path.stem)
def test_what_the_library_reads_it_writes_again(path):
    with pytreeckpt.open(path) as checkpoint:
        tree, metadata = checkpoint.restore(to="numpy"), checkpoint.metadata
    again = pytreeckpt.encode(tree, metadata=metadata)
    assert identical(tree, pytreeckpt.decode(again, to="numpy")) == []
    document = json.loads(path.with_suffix(".json").read_text())
    # Without its framework, a wrapper comes back as its first field.
    if not any(kind == 0 and not name.startswith(("python.", "numpy.")) for kind, name, _ in document["types"]):
        assert reader.neutral(reader.decode(again)) == document
        assert library_neutral(open_bytes(again)) == document


@pytest.mark.parametrize("name", sorted(NOT_HERE))
def test_the_library_says_that_this_platform_lacks_a_dtype(name):
    with pytest.raises(FormatVersionError) as caught:
        pytreeckpt.decode(read_vector("valid", f"{name}.ptck"))
    assert caught.value.rule == "D-1"


# Files to be refused.


@pytest.mark.parametrize(("folder", "name", "rule"), REFUSED)
def test_the_reader_refuses_by_the_rule(folder, name, rule):
    with pytest.raises(reader.Refused) as caught:
        decode_by_reader(SPEC / "vectors" / folder / name)
    assert caught.value.rule == rule


@pytest.mark.parametrize(("folder", "name", "rule"), REFUSED)
def test_the_library_refuses_by_the_rule(folder, name, rule):
    expected: Any = CorruptionError if folder == "invalid" else FormatVersionError
    path = SPEC / "vectors" / folder / name
    if not is_manifest(path):
        with pytest.raises(expected) as caught:
            pytreeckpt.decode(path.read_bytes(), to="numpy")
        assert caught.value.rule == rule
        return
    try:
        pytreeckpt.restore(path, to="numpy")
    except expected as error:
        assert error.rule == rule
    else:
        # What it does not use of a data file, and whether a writer told the truth, `verify` alone finds.
        assert rule in {"C-14", "C-15"} or "data-file" in name or "unused" in name


@pytest.mark.parametrize(("folder", "name", "rule"), REFUSED)
def test_verify_reports_the_rule(folder, name, rule):
    report = pytreeckpt.verify(SPEC / "vectors" / folder / name)
    assert not report.ok
    kind = "corrupt" if folder == "invalid" else "unknown version"
    assert {(problem.kind, problem.rule) for problem in report.problems} == {(kind, rule)}


# The reference reader.


def imported_modules(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    names += [str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert not any(isinstance(node, ast.ImportFrom) and node.level for node in ast.walk(tree))
    return {name.partition(".")[0] for name in names}


def test_the_reader_imports_only_what_it_says():
    standard = {"cmath", "collections", "contextlib", "dataclasses", "hashlib", "itertools", "json", "math", "pathlib"}
    standard |= {"struct", "sys", "typing"}
    assert imported_modules(READER) == standard | {"ml_dtypes", "msgpack", "numpy", "xxhash", "zstandard"}
    text = READER.read_text()
    # No other way to import anything either.
    assert not re.search(r"\b(pytreeckpt\.|import_module|__import__|exec|eval|runpy)\b", text)


def test_the_reader_names_every_rule():
    named = set(re.findall(r'"([A-Z]-\d+)"', READER.read_text()))
    assert named == set(DEFINED) - set(WITHOUT_A_VECTOR)


def run_reader(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-I", str(READER), *arguments], capture_output=True, text=True, check=False, timeout=120
    )


def test_the_reader_finds_data_files_as_a_runner():
    accepted = run_reader(str(SPEC / "vectors" / "valid" / "data-files-many.ptck"))
    assert accepted.returncode == 0
    assert json.loads(accepted.stdout) == json.loads((SPEC / "vectors" / "valid" / "data-files-many.json").read_text())
    refused = run_reader(str(SPEC / "vectors" / "invalid" / "f-15-missing.ptck"))
    assert refused.returncode == 1
    assert refused.stderr.startswith("refused: F-15: ")


@given(st.integers(0, 5000), st.integers(0, 255))
@example(0, 0)
@example(1 << 10, 1)
@example((1 << 10) + 1, 1)
@example(1 << 11, 1)
@example((3 << 10) + 64, 1)
def test_the_reader_computes_blake3(nbytes, start):
    data = bytes((start + at * at) % 251 for at in range(nbytes))
    assert reader.blake3(data) == blake3(data).digest()


def test_the_reader_is_a_runner():
    accepted = run_reader(str(SPEC / "vectors" / "valid" / "containers.ptck"))
    assert accepted.returncode == 0
    expected = json.loads((SPEC / "vectors" / "valid" / "containers.json").read_text())
    assert json.loads(accepted.stdout) == expected
    refused = run_reader(str(SPEC / "vectors" / "invalid" / "c-6-gap.ptck"))
    assert refused.returncode == 1
    assert refused.stdout == ""
    assert refused.stderr.startswith("refused: C-6: ")
    assert run_reader(str(SPEC / "vectors" / "no-such-file")).returncode == 2


# The registries, of which each implementation has its own copy.


def table_after(heading: str) -> list[list[str]]:
    section = (SPEC / "registries.md").read_text().split(f"## {heading}\n")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in section.splitlines() if line.startswith("|")]
    assert len(rows) > 3
    return rows[2:]


def words_in(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def fields_in(cell: str) -> tuple[str, ...] | None:
    if cell.startswith("any"):
        return None
    return tuple(word for part in cell.split(";") for word in words_in(part.partition(":")[0]))


def test_the_objects_are_those_of_the_registry():
    registry = {
        name: (int(kind), fields_in(fields))
        for names, kind, fields in table_after("Objects")
        for name in words_in(names)
    }
    assert {name: (int(kind), fields) for name, (kind, fields) in REGISTERED.items()} == registry
    own = {name: (kind, fields and tuple(fields)) for name, (kind, fields) in reader.REGISTRY.items()}
    assert own == registry


def test_the_dtypes_are_those_of_the_registry():
    registry = {}
    for names, itemsizes, about in table_after("Simple dtypes"):
        sizes = list(map(int, itemsizes.split()))
        words = words_in(names)
        for name, size in zip(words, sizes if len(sizes) == len(words) else sizes * len(words), strict=True):
            registry[name] = size
            narrow = size == 1 or "LE only" in about
            if not narrow:
                registry[f"{name}_be"] = size
    assert len(registry) > 40
    assert {name: dtype.itemsize for name, dtype in reader.SIMPLE.items()} == registry
    for name, size in registry.items():
        try:
            assert pytreeckpt.dtypes.parse(name).itemsize == size
        except FormatVersionError:
            assert name.startswith(("float128", "complex256", "float80", "complex160"))
