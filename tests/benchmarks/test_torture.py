"""The torture harness: pytreeckpt passes every case, and the harness can tell when a format does not."""

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import pytreeckpt as ptc
from benchmarks.exactness import differences
from benchmarks.torture import as_markdown, as_text, cell, failures, measure, runnable
from benchmarks.torture_cases import CASES, Case, Moments
from benchmarks.torture_checks import Outcome, run_case
from benchmarks.torture_peers import PEERS, Peer

OURS = PEERS[0]
RUNNABLE = [case for case in CASES if runnable(case)]


def case_named(name: str) -> Case:
    return next(case for case in CASES if case.name == name)


def fake(change) -> Peer:
    """A peer that is pytreeckpt, but for what `change(tree)` does to what it restores."""
    return replace(OURS, name="fake", restore=lambda path, types: change(ptc.restore(path, types=types)))


def test_cases_have_different_names_and_cover_what_the_facts_about_peers_list():
    assert len(CASES) > 60
    assert max(Counter(case.name for case in CASES).values()) == 1
    assert {case.check for case in CASES} >= {"flipped bits", "cut short", "killed", "disk full", "runs code"}
    assert len(RUNNABLE) >= 50


def test_pytreeckpt_is_the_first_column():
    assert OURS.name == "pytreeckpt"


@pytest.mark.parametrize("case", RUNNABLE, ids=lambda case: case.name)
def test_pytreeckpt_passes(case, tmp_path):
    for module in case.needs:
        pytest.importorskip(module)
    outcome = run_case(case, OURS, tmp_path)
    assert outcome.good, outcome
    if case.check in {"round trip", "relative path"}:
        assert outcome.verdict == "exact"


LOSSY = {
    "tuple": lambda tree: {"t": list(tree["t"])},
    "namedtuple": lambda tree: {"m": tuple(tree["m"])},
    "float32": lambda tree: {"w": tree["w"].astype(np.float64)},
    "0-d": lambda tree: {"w": tree["w"].reshape(1)},
    "bool, int and float": lambda tree: {**tree, "i": 1.0},
    "int keys": lambda tree: {str(key): value for key, value in tree.items()},
    "order of keys": lambda tree: dict(sorted(tree.items())),
    "tied arrays": lambda tree: {key: value.copy() for key, value in tree.items()},
    "numpy scalar, number, 0-d": lambda tree: {**tree, "a": float(tree["a"])},
    "int64 beyond 2^32": lambda tree: {"w": tree["w"].astype(np.int32)},
    "NaN payloads and −0.0": lambda tree: {"w": np.where(np.isnan(tree["w"]), np.float32("nan"), tree["w"])},
    "float −0.0, inf and NaN payload": lambda tree: {**tree, "zero": 0.0},
    "None": lambda tree: {key: value for key, value in tree.items() if value is not None},
    "dataclass and enum": lambda tree: {**tree, "c": replace(tree["c"], width=9)},
    "3,000 levels": lambda tree: tree["a"],
}
SILENT = {
    "0-d",
    "int64 beyond 2^32",
    "NaN payloads and −0.0",
    "float −0.0, inf and NaN payload",
    "None",
    "dataclass and enum",
    "3,000 levels",
}


@pytest.mark.parametrize("name", LOSSY)
def test_a_lossy_peer_is_caught(name, tmp_path):
    outcome = run_case(case_named(name), fake(LOSSY[name]), tmp_path)
    assert outcome.verdict == ("CORRUPT" if name in SILENT else "changed"), outcome


def test_a_peer_that_returns_damaged_numbers_is_caught(tmp_path):
    def restore(path, types):
        raw = path.read_bytes()[64 : 64 + (1 << 20)]
        return {"w": np.frombuffer(raw, np.int32)}

    unchecked = replace(OURS, restore=restore, save=lambda tree, path: ptc.save(tree, path, compression="none"))
    outcome = run_case(case_named("64 flipped bits"), unchecked, tmp_path)
    assert outcome.verdict == "CORRUPT"
    assert outcome.detail.startswith("64 of 64")


def test_a_peer_that_cannot_restore_at_all_does_not_count_as_noticing_damage(tmp_path):
    def restore(path, types):
        raise ValueError("never")

    outcome = run_case(case_named("64 flipped bits"), replace(OURS, restore=restore), tmp_path)
    assert outcome.verdict == "refused"


def test_a_peer_that_unpickles_is_caught_running_code(tmp_path):
    import pickle

    unsafe = replace(
        OURS,
        save=lambda tree, path: path.write_bytes(pickle.dumps(tree)),
        restore=lambda path, types: pickle.loads(path.read_bytes()),
    )
    assert run_case(case_named("object that runs code"), unsafe, tmp_path).verdict == "RAN CODE"


def test_a_peer_that_raises_is_refused_and_not_exact(tmp_path):
    def save(tree, path):
        raise TypeError("no tuples here\nand more")

    outcome = run_case(case_named("tuple"), replace(OURS, save=save), tmp_path)
    assert (outcome.verdict, outcome.detail) == ("refused", "save: TypeError: no tuples here")


def test_a_worker_gives_the_outcomes_of_all_its_cases():
    cases = [case_named("tuple"), case_named("killed while replacing")]
    outcomes = dict(measure(OURS, cases, timeout_s=300))
    assert {name: outcome.verdict for name, outcome in outcomes.items()} == {
        "tuple": "exact",
        "killed while replacing": "kept",
    }


def test_a_worker_that_dies_loses_only_the_case_in_hand():
    unknown = replace(OURS, name="no such peer")
    outcomes = dict(measure(unknown, [case_named("tuple"), case_named("list")], timeout_s=300))
    assert [outcome.verdict for outcome in outcomes.values()] == ["crashed", "crashed"]
    assert "StopIteration" in outcomes["tuple"].detail


def test_a_peer_that_is_not_installed_shows_as_such():
    absent = Peer("absent", "absent", ("no_such_module",), OURS.save, OURS.restore)
    assert absent.version is None
    case = case_named("tuple")
    assert cell({}, "absent", case) == "not installed"
    assert "not installed" in as_text({}, [absent], [case])


def test_a_failure_of_pytreeckpt_is_counted():
    table = {"pytreeckpt": {"tuple": Outcome("changed", "tuple → list"), "list": Outcome("exact"), "x": None}}
    assert failures(table) == ["tuple: changed tuple → list"]
    assert failures({}) == ["pytreeckpt was not run"]
    markdown = as_markdown(table, [OURS], [case_named("tuple"), case_named("list")])
    assert "| tuple | changed |" in markdown
    assert "| list | ✓ exact |" in markdown


def test_the_command_prints_json():
    command = [sys.executable, "-m", "benchmarks.torture", "--json", "--peers", "pytreeckpt", "--only", "names"]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True)
    outcomes = json.loads(done.stdout)["outcomes"]["pytreeckpt"]
    assert len(outcomes) == sum(case.group == "names" for case in CASES)
    assert {outcome["verdict"] for outcome in outcomes.values()} == {"exact"}


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (1, True),
        (1, 1.0),
        ("a", b"a"),
        (None, False),
        ([], ()),
        ({}, []),
        ({1: 0}, {1.0: 0}),
        ({1: 0}, {True: 0}),
        ({1, 2}, {1, 3}),
        ([1, 2], [1]),
        (np.float32(1), np.float64(1)),
        (np.zeros(2), np.zeros((2, 1))),
        (np.zeros(2), -np.zeros(2)),
        (Moments(1, 2), (1, 2)),
    ],
    ids=repr,
)
def test_the_comparison_tells_different_values_apart(a, b):
    assert differences(a, b)
    assert differences([a], [b])
    assert not differences(a, a)
    assert not differences({"x": [a, b]}, {"x": [a, b]})
