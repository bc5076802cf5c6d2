"""`inspect` and `verify` of files of other formats."""

import numpy as np
import pytest
import torch

import pytreeckpt as ptc
from pytreeckpt.cli.text import size
from tests.cli.documented import check
from tests.cli.running import inspected, run
from tests.interop.foreign_files import FILES, FOLDERS, TREE


@pytest.fixture
def saved(tmp_path):
    """A file of torch that holds a module, too."""
    path = tmp_path / "state.pt"
    flat = torch.arange(100.0)
    tree = {
        "model": {f"layer_{number}.weight": torch.full((4, 5), float(number)) for number in range(6)},
        "views": [flat, flat[10:20]],
        "tied": flat,
        "turned": torch.arange(12).reshape(3, 4).T,
        "step": torch.tensor(7),
        "module": torch.nn.Linear(2, 3),
        "epoch": 3,
    }
    torch.save(tree, path)
    return path


def test_the_first_lines_say_the_format_and_what_became_records(saved):
    ran = run("inspect", saved, "--depth", "1")
    assert (ran.code, ran.err) == (0, "")
    assert ran.lines[1] == f"  file    {size(saved.stat().st_size)}, torch zip"
    assert any(line.startswith("  note") and "torch.nn.modules.linear:Linear" in line for line in ran.lines)
    for word in ("root", "chunk", "index", "codec", "stored", "%"):
        assert not any(word in line for line in ran.lines[1:])
    assert ran.row("step").split() == ["├─", "step", "int64[]", "=", "7", "1", "8", "B"]
    assert "layer_{0…5}.weight" in run("inspect", saved, "model").out


def test_an_array_has_its_place_left_out_and_its_values_shown(saved):
    ran = run("inspect", saved, "turned", "--stats")
    assert ran.code == 0
    assert [line.split("  ")[1].strip() for line in ran.lines[1:]] == [
        *("array", "type", "requires_grad", "elements", "in memory", "values", "statistics")
    ]
    assert "int64[4, 3]" in ran.out
    assert "in Fortran order" in ran.out
    assert "0, 4, 8, 1, 5, 9, 2, 6, …" in ran.out
    assert "max 11" in ran.out
    assert "  shared with    tied\n" in run("inspect", saved, "views[0]").out


def test_few_tiny_arrays_are_read_for_their_values(tmp_path, monkeypatch):
    path = tmp_path / "x.pt"
    torch.save([torch.tensor(5) for _ in range(4)], path)
    assert "int64[] = 5 ×4" in run("inspect", path).out
    monkeypatch.setattr("pytreeckpt.cli.describe._MAX_READ", 3)
    assert "= 5" not in run("inspect", path).out
    torch.save([torch.tensor(number) for number in range(3)], path)
    assert "=" not in run("inspect", path).out


def test_a_tiny_array_that_cannot_be_read_has_no_value_shown(tmp_path):
    path = tmp_path / "x.npz"
    np.savez_compressed(path, a=np.array([1, 2, 3]))
    content = bytearray(path.read_bytes())
    content[content.index(b"a.npy") + 40] ^= 255
    path.write_bytes(content)
    ran = run("inspect", path)
    assert ran.code in {0, 1}
    assert "= [" not in ran.out


@pytest.mark.parametrize("name", [*FILES, *FOLDERS])
def test_the_document_is_as_documented(name, tmp_path):
    path = tmp_path / "x"
    (FILES | FOLDERS)[name](path)
    document = inspected(path, "--stats")
    check(document, "pytreeckpt-inspect/1")
    file = document["file"]
    assert file["format"] == name
    nothing = ("root", "format_version", "index_nbytes", "index_stored_nbytes")
    assert {file[field] for field in nothing} == {None}
    assert (file["arrays"], file["chunks"]) == (len(TREE), 0)
    if path.is_file():
        assert file["nbytes"] == path.stat().st_size
    assert document["totals"]["stored_nbytes"] is None
    leaves = {leaf["path"]: leaf for leaf in document["leaves"]}
    assert leaves.keys() == TREE.keys()
    for path_text, array in TREE.items():
        leaf = leaves[path_text]
        assert (leaf["shape"], leaf["nbytes"], leaf["stored_nbytes"]) == (list(array.shape), array.nbytes, None)
        assert (leaf["chunks"], leaf["codecs"]) == (0, {})
        assert leaf["statistics"]["max"] == pytest.approx(float(array.max()))
    assert inspected(path, "w")["chunks"] == []


def test_the_notes_are_in_the_document(saved):
    document = inspected(saved)
    check(document, "pytreeckpt-inspect/1")
    with ptc.open(saved) as checkpoint:
        assert document["file"]["notes"] == list(checkpoint.notes)
        assert document["file"]["notes"]


def test_many_notes_are_cut_short(tmp_path, monkeypatch):
    monkeypatch.setattr("pytreeckpt.cli.inspect_text._MAX_NOTES", 1)
    torch.save([torch.nn.Linear(1, 1), torch.nn.ReLU(), torch.nn.Tanh()], tmp_path / "x.pt")
    ran = run("inspect", tmp_path / "x.pt")
    assert len([line for line in ran.lines if line.startswith("  note")]) == 1
    assert "… 2 more notes; --json has all" in ran.out


def test_a_glob_selects_leaves_of_a_foreign_file(saved):
    document = inspected(saved, "--match", "model/layer_1*")
    assert [leaf["path"] for leaf in document["leaves"]] == ["model/layer_1.weight"]
    assert document["totals"]["nbytes"] == 80
    assert "6 arrays of 120 elements" in run("inspect", saved, "--match", "model/*").out


def test_verifying_says_how_much_could_be_checked(saved, tmp_path):
    plain = tmp_path / "x.safetensors"
    FILES["safetensors"](plain)
    ran = run("verify", saved, plain)
    assert (ran.code, ran.err) == (0, "")
    first, second = ran.lines
    n_checks = ptc.verify(saved).n_checks
    assert n_checks > 9
    assert first.endswith(f", torch zip: {n_checks} checksums and the structure")
    assert (
        second
        == f"ok       {plain}  {size(plain.stat().st_size)}, 4 arrays, safetensors: the structure only, for want of checksums"
    )


def test_damage_of_a_foreign_file_is_told_with_its_leaf(saved):
    content = bytearray(saved.read_bytes())
    place = content.index(torch.arange(100.0).numpy().tobytes())
    content[place] ^= 1
    saved.write_bytes(content)
    ran = run("verify", saved)
    assert ran.code == 1
    assert ran.lines == [
        f"damaged  {saved}  1 problem",
        "  - leaf views[0]: state/data/6 is damaged: its CRC-32 does not match  [CRC-32]",
    ]
    document = run("verify", "--json", saved).document
    check(document, "pytreeckpt-verify/1")
    (entry,) = document["files"]
    assert (entry["format"], entry["coverage"], entry["root"]) == ("torch zip", "checksums", None)
    assert [problem["leaf"] for problem in entry["problems"]] == ["views[0]"]


def test_what_no_tree_holds_is_refused(tmp_path):
    torch.save({"a": "\ud800"}, tmp_path / "x.pt")
    ran = run("verify", tmp_path / "x.pt", tmp_path)
    assert ran.code == 1
    assert [line.split()[0] for line in ran.lines] == ["refused", "-", "refused", "-"]
    assert run("inspect", tmp_path / "x.pt").code == 1
