"""`inspect` and `verify` of checkpoints whose chunks lie in data files, and of these."""

import numpy as np
import pytest

import pytreeckpt as ptc
from pytreeckpt.cli.text import size
from spec.corpus.data_files import name_of, part
from spec.corpus.parts import take_apart
from tests.cli.documented import check
from tests.cli.running import run


@pytest.fixture
def manifest(tmp_path):
    tree = {"a": np.arange(600.0), "b": np.arange(500, dtype=np.int32), "again": np.arange(600.0), "c": np.ones(3)}
    made = part(take_apart(ptc.encode(tree, compression="none")), lambda number: number % 2)
    assert len(made.files) == 1
    return made.write(tmp_path)


@pytest.fixture
def data(manifest):
    (path,) = (manifest.parent / "data").iterdir()
    assert path.name == name_of(path.read_bytes())
    return path


def test_a_line_says_where_the_bytes_are(manifest, data):
    ran = run("inspect", manifest)
    assert ran.code == 0
    (line,) = [line for line in ran.lines if line.startswith("  data ")]
    assert line == (
        f"  data    1 data file of {size(data.stat().st_size)} in data/, which hold {size(2000)} of its chunks; "
        f"the file itself has {size(manifest.stat().st_size)}"
    )
    assert f"file    {size(manifest.stat().st_size + data.stat().st_size)}, " in ran.out
    assert not [line for line in run("inspect", data).lines if line.startswith("  data ")]


def test_the_chunks_of_an_array_name_their_data_file(manifest, data):
    ran = run("inspect", manifest, "b")
    header, chunk = ran.lines[-2:]
    assert header.endswith("data file")
    assert chunk.endswith(f"  {data.name[:16]}…")
    assert data.name[:16] not in run("inspect", manifest, "a").out
    assert "data file" not in run("inspect", data, "4").out


def test_the_document_has_all_files(manifest, data):
    document = run("inspect", manifest, "b", "--json").document
    check(document, "pytreeckpt-inspect/1")
    assert document["file"]["data_files"] == [
        {"name": data.name, "nbytes": data.stat().st_size, "used_nbytes": 2000},
    ]
    assert document["file"]["file_nbytes"] == manifest.stat().st_size
    assert document["file"]["nbytes"] == manifest.stat().st_size + data.stat().st_size
    assert [chunk["file"] for chunk in document["chunks"]] == [data.name]
    own = run("inspect", manifest, "a", "--json").document
    assert [chunk["file"] for chunk in own["chunks"]] == [None]
    assert run("inspect", data, "--json").document["file"]["data_files"] == []


def test_statistics_are_of_all_files(manifest):
    ran = run("inspect", manifest, "--stats", "--json").document
    means = {leaf["path"]: leaf["statistics"]["mean"] for leaf in ran["leaves"]}
    assert means == {"a": 299.5, "b": 249.5, "again": 299.5, "c": 1.0}


def test_verify_counts_and_names_data_files(manifest, data):
    ran = run("verify", manifest)
    assert ran.code == 0
    assert ", 1 data file, root " in ran.out
    document = run("verify", manifest, "--json").document
    check(document, "pytreeckpt-verify/1")
    assert document["files"][0]["data_files"] == 1
    content = bytearray(data.read_bytes())
    content[70] ^= 1
    data.write_bytes(content)
    document = run("verify", manifest, "--json").document
    check(document, "pytreeckpt-verify/1")
    (problem,) = document["files"][0]["problems"]
    assert (problem["rule"], problem["leaf"], problem["file"], problem["offset"]) == ("C-8", "b", data.name, 64)
    data.unlink()
    ran = run("verify", manifest)
    assert ran.code == 1
    assert f"the data file {data.name} is missing" in ran.out
    assert ran.out.endswith("[F-15]\n")
