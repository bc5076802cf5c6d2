"""`diff`: what is printed, the document, and the exit codes that a script relies on."""

import numpy as np
import pytest

import pytreeckpt as ptc
from tests.cli.documented import check
from tests.cli.running import run
from tests.cli.trees import training_run


@pytest.fixture
def pair(tmp_path):
    """Two steps of a training."""
    one, other = ({**training_run(3), "metrics": {}} for _ in range(2))
    other["params"]["h"][1]["mlp"]["up"] = one["params"]["h"][1]["mlp"]["up"] + np.float32(0.5)
    other["params"]["wte"] = other["params"]["lm_head"] = one["params"]["wte"] * 2
    other["step"] = 20_001
    other["extra"] = {"a": [1, 2, 3], "b": np.zeros(3)}
    del other["schedule"]
    ptc.save(one, tmp_path / "a.ptck", metadata={"lr": 0.1})
    ptc.save(other, tmp_path / "b.ptck", metadata={"lr": 0.2})
    return tmp_path / "a.ptck", tmp_path / "b.ptck"


def test_the_same_is_0_different_1_and_trouble_2(pair, tmp_path):
    a, b = pair
    assert run("diff", a, a).code == 0
    assert run("diff", a, b).code == 1
    ran = run("diff", a, tmp_path / "none.ptck")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == f"pytreeckpt: error: there is no checkpoint at {tmp_path / 'none.ptck'}\n"
    assert run("diff", a).code == 2
    assert run("diff", a, b, "--rtol", "-1").code == 2
    assert run("diff", a, b, "--select", "no/such").code == 2


def test_damage_is_trouble_here_and_says_in_which_file(pair, tmp_path):
    a, b = pair
    content = bytearray(b.read_bytes())
    content[-300] ^= 1
    (tmp_path / "torn.ptck").write_bytes(content)
    ran = run("diff", a, tmp_path / "torn.ptck")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith(f"pytreeckpt: error: {tmp_path / 'torn.ptck'}: ")
    # And elsewhere 1, which here says that they differ.
    assert run("inspect", tmp_path / "torn.ptck").code == 1
    assert "elsewhere, damage is 1" in " ".join(run("diff", "--help").out.split())


def test_the_changes_are_a_tree(pair):
    ran = run("diff", *pair)
    assert ran.err == ""
    assert ran.row("lr").endswith("0.1 → 0.2")
    assert ran.row("step").endswith("20000 → 20001")
    assert ran.row("wte").endswith("float32[100, 8]")
    assert ran.row("h[1]/mlp/up").endswith("float32[8, 32]")
    assert ran.row("schedule").endswith("4 leaves only in the first")
    assert ran.row("extra").endswith("4 leaves only in the second")
    assert ran.lines[-2].startswith(
        "4 leaves only in the first, 4 leaves only in the second, 5 leaves with other values; "
    )
    assert ran.lines[-1] == "--all shows every change"
    assert "b            + float64[3]" in run("diff", *pair, "--all").out


def test_quiet_says_it_by_its_code(pair):
    a, b = pair
    assert run("diff", a, b, "--quiet") == (1, "", "")
    assert run("diff", a, a, "--quiet", "--json") == (0, "", "")


def test_values_are_columns_and_the_largest_come_first(pair):
    ran = run("diff", *pair, "--values", "--sort", "change", "--select", "params/**")
    header = next(line for line in ran.lines if "max |Δ|" in line)
    assert header.split() == ["differ", "max", "|Δ|", "mean", "|Δ|", "rms", "max", "rel", "cosine"]
    assert ran.row("h[1]/mlp/up").split()[-6:-3] == ["%", "0.5", "0.5"]
    assert ran.row("wte").endswith("1.000000")
    assert ran.lines[-1].endswith("of arrays were read")
    rows = [line for line in ran.lines if "float32" in line]
    assert [row.split()[1] for row in rows] == ["wte", "lm_head", "h[1]/mlp/up"]
    by_size = run("diff", *pair, "--sort", "size", "--select", "params/**").lines
    assert "wte" in next(line for line in by_size if "float32" in line)


def test_a_tolerance_makes_close_the_same(tmp_path):
    weights = np.linspace(1, 2, 50)
    ptc.save({"w": weights, "loss": 0.5}, tmp_path / "a.ptck")
    ptc.save({"w": weights * (1 + 1e-7), "loss": 0.5 + 1e-9}, tmp_path / "b.ptck")
    paths = (tmp_path / "a.ptck", tmp_path / "b.ptck")
    assert run("diff", *paths).code == 1
    ran = run("diff", *paths, "--rtol", "1e-6")
    assert ran.code == 0
    assert "the same but for 2 leaves within the tolerance: 2 leaves" in ran.out
    assert run("diff", *paths, "--atol", "1e-9").code == 1


def test_nan_and_infinities_are_alarms(tmp_path):
    ptc.save({"w": np.array([1.0, 2.0, 3.0] * 9)}, tmp_path / "a.ptck")
    ptc.save({"w": np.array([1.0, np.nan, np.inf] * 9)}, tmp_path / "b.ptck")
    assert "0 → 9 NaN, 0 → 9 infinite" in run("diff", tmp_path / "a.ptck", tmp_path / "b.ptck", "--values").out


def test_the_document_is_as_documented(pair):
    a, b = pair
    ran = run("diff", a, b, "--json", "--values")
    assert (ran.code, ran.err) == (1, "")
    document = ran.document
    assert (document["schema"], document["same"]) == ("pytreeckpt-diff/1", False)
    assert document["counts"] == {"removed": 4, "added": 4, "value": 5}
    by_path = {change["path"]: change for change in document["changes"]}
    assert (by_path["step"]["a"]["value"], by_path["step"]["b"]["value"]) == (20_000, 20_001)
    assert by_path["lr"]["part"] == "metadata"
    assert by_path["params/wte"]["values"]["different"] == 800
    assert by_path["extra/b"]["a"] is None
    assert [file["path"] for file in document["files"]] == [str(a), str(b)]
    assert document["files"][0]["root"] != document["files"][1]["root"]
    check(document, "pytreeckpt-diff/1")


def test_of_many_changes_some_are_shown(tmp_path):
    def tree(value: int) -> dict:
        return {f"part{i}": {f"leaf{j}": i * j + value for j in range(60)} for i in range(60)}

    ptc.save(tree(0), tmp_path / "a.ptck")
    ptc.save(tree(1), tmp_path / "b.ptck")
    paths = (tmp_path / "a.ptck", tmp_path / "b.ptck")
    ran = run("diff", *paths)
    assert len(ran.lines) < 60
    assert ran.row("part3").endswith("60 leaves with other values")
    assert any("… 25 more" in line for line in ran.lines)
    assert len(run("diff", *paths, "--all").lines) > 3600


def test_names_and_values_from_a_file_are_escaped(tmp_path):
    ptc.save({"\x1b[31m": "\x1b]0;x\x07", "\u202e": 1}, tmp_path / "a.ptck")
    ptc.save({"\x1b[31m": "\x1b[2J", "\u202e": [2]}, tmp_path / "b.ptck")
    for options in ((), ("--json",), ("--values", "--all")):
        out = run("diff", tmp_path / "a.ptck", tmp_path / "b.ptck", *options).out
        assert not {"\x1b", "\x07", "\u202e"} & set(out)
