"""`verify`: which files are fine, and what is wrong with the others."""

import numpy as np
import pytest

import pytreeckpt as ptc
from pytreeckpt.cli.text import size
from tests.cli.documented import check
from tests.cli.running import run
from tests.cli.trees import training_run


@pytest.fixture
def fine(tmp_path):
    path = tmp_path / "fine.ptck"
    ptc.save(training_run(3), path)
    return path


@pytest.fixture
def damaged(tmp_path):
    """A file with two damaged chunks."""
    path = tmp_path / "damaged.ptck"
    weights = np.random.default_rng(0).standard_normal(600_000)
    ptc.save({"a": weights, "b": {"c": weights + 1}}, path, compression="none")
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    content[3_000_000] ^= 1
    path.write_bytes(content)
    return path


def test_a_file_that_is_fine_has_a_line(fine):
    ran = run("verify", fine)
    assert (ran.code, ran.err) == (0, "")
    with ptc.open(fine) as checkpoint:
        counts = f"{len(checkpoint.index.arrays)} arrays, {len(checkpoint.index.chunks)} chunks"
        assert ran.out == f"ok       {fine}  {size(checkpoint.nbytes)}, {counts}, root {checkpoint.root[:16]}…\n"


def test_each_damaged_chunk_has_a_line_with_its_place_and_rule(damaged):
    ran = run("verify", damaged)
    assert (ran.code, ran.err) == (1, "")
    first, *problems = ran.lines
    assert first == f"damaged  {damaged}  2 problems"
    assert problems == [
        "  - leaf a, chunk 0 (offset 64, 2097152 bytes): digest mismatch  [C-8]",
        "  - leaf a, chunk 1 (offset 2097216, 2097152 bytes): digest mismatch  [C-8]",
    ]


def test_the_document_is_as_documented(fine, damaged, tmp_path):
    ran = run("verify", "--json", fine, damaged, tmp_path / "none.ptck", tmp_path)
    assert (ran.code, ran.err) == (2, "")
    check(ran.document, "pytreeckpt-verify/1")
    assert [entry["ok"] for entry in ran.document["files"]] == [True, False, False, False]
    _, bad, missing, directory = (entry["problems"] for entry in ran.document["files"])
    assert [(one["kind"], one["rule"], one["leaf"], one["chunk"], one["offset"]) for one in bad] == [
        ("corrupt", "C-8", "a", 0, 64),
        ("corrupt", "C-8", "a", 1, 2097216),
    ]
    assert [one["kind"] for one in missing] == ["unreadable"]
    assert [(one["kind"], one["rule"]) for one in directory] == [("corrupt", "F-1")]
    assert run("verify", fine, "--json").document["ok"] is True


def test_the_code_is_that_of_the_gravest_file(fine, damaged, tmp_path):
    missing = tmp_path / "none.ptck"
    assert run("verify", fine, damaged).code == 1
    ran = run("verify", missing, damaged, fine)
    assert ran.code == 2
    assert ran.err == f"pytreeckpt: error: there is no checkpoint at {missing}\n"
    assert [line.split()[0] for line in ran.lines] == ["damaged", "-", "-", "ok"]


def test_quiet_says_only_what_is_wrong(fine, damaged):
    ran = run("verify", "--quiet", fine, damaged)
    assert ran.code == 1
    assert ran.lines[0].startswith("damaged")
    assert run("verify", "--quiet", fine).out == ""


def test_what_is_no_checkpoint_is_refused(fine, tmp_path):
    text = tmp_path / "text\x1b[2J"
    text.write_text("not a checkpoint")
    newer = tmp_path / "newer.ptck"
    newer.write_bytes(fine.read_bytes()[:8] + b"\x07" + fine.read_bytes()[9:])
    torn = tmp_path / "torn.ptck"
    torn.write_bytes(fine.read_bytes()[:-1])
    ran = run("verify", text, newer, torn, tmp_path)
    assert ran.code == 1
    assert [line.split()[0] for line in ran.lines] == ["refused", "-", "refused", "-", "damaged", "-", "refused", "-"]
    assert [line[-5:] for line in ran.lines[1::2]] == ["[F-1]", "[F-2]", "[F-5]", "[F-1]"]
    assert all(line.isprintable() for line in ran.lines)


def test_a_file_beyond_the_limits_is_refused(fine):
    with ptc.limits(nodes=10):
        ran = run("verify", fine)
    assert ran.code == 1
    assert ran.lines[0].startswith("refused")
    assert "limits(nodes=…)" in ran.lines[1]
