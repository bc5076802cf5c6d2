"""`prune`: what goes, what stays and why; and all that makes it refuse."""

import shutil

import pytest

from pytreeckpt.cli.encoding import dumps
from pytreeckpt.run import CheckpointManager, read_run
from tests.cli.documented import check
from tests.cli.folders import cut_off, make_run, save_plain, step_path
from tests.cli.running import run


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs") / "run"
    return make_run(root, pins={"paper": 200}, reasons={100: "exception", 500: "interrupt"})


@pytest.fixture
def folder(made, tmp_path):
    return shutil.copytree(made, tmp_path / "run")


def steps_in(root):
    return [record.step for record in read_run(root).records]


def files_in(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def pruned(root, *arguments):
    ran = run("prune", root, "--json", *arguments)
    assert (ran.code, ran.err) == (0, "")
    check(ran.document, "pytreeckpt-prune/1")
    return ran.document


def test_what_an_option_keeps_stays_and_the_report_says_why(folder):
    before = sum(map(len, files_in(folder).values()))
    document = pruned(folder, "--keep-last", 2, "--keep-best", 1, "--keep", 300)
    assert [step["step"] for step in document["removed"]] == [0, 400, 500]
    assert {step["step"]: step["reasons"] for step in document["kept"]} == {
        100: ["the newest that an exception left"],
        200: ["pin paper"],
        300: ["--keep"],
        600: ["--keep-last 2", "--keep-best 1 by val_loss"],
        700: ["--keep-last 2", "the newest"],
    }
    assert steps_in(folder) == [100, 200, 300, 600, 700]
    assert document["files"] == [f"step-{step:08d}.ptck" for step in (0, 400, 500)]
    assert document["freed_nbytes"] > 0
    # The lock is a new file, and the history knows the steps still.
    assert sum(len(content) for name, content in files_in(folder).items() if name.endswith(".ptck")) < before
    assert [record.step for record in read_run(folder).history] == list(range(0, 800, 100))


@pytest.mark.parametrize(
    ("options", "left"),
    [
        (["--keep-last", 1], [100, 200, 700]),
        (["--keep-every", 300], [0, 100, 200, 300, 600, 700]),
        (["--keep-every-hours", 0.05], [0, 100, 200, 300, 600, 700]),
        (["--keep-best", 2, "--metric", "accuracy"], [0, 100, 200, 700]),
        (["--keep-best", 2, "--metric", "accuracy", "--mode", "max"], [100, 200, 600, 700]),
        (["--keep", 0, 300, "--keep", 400], [0, 100, 200, 300, 400, 700]),
    ],
)
def test_each_option_is_a_policy(folder, options, left):
    dry = pruned(folder, *options, "--dry-run")
    assert steps_in(folder) == list(range(0, 800, 100))
    document = pruned(folder, *options)
    assert steps_in(folder) == [step["step"] for step in document["kept"]]
    if "--keep-every-hours" not in options:
        # Periods begin at round hours since 1970, whatever the run's first step is.
        assert steps_in(folder) == left
    assert dumps({**dry, "dry_run": False}) == dumps(document)
    assert all(step["reasons"] for step in document["kept"])


def test_a_dry_run_writes_nothing_and_says_what_would_go(folder):
    before = files_in(folder)
    ran = run("prune", folder, "--keep-last", 1, "--dry-run")
    assert (ran.code, ran.err) == (0, "")
    assert "would remove  5 steps" in ran.out
    assert "  0, 300, 400, 500, 600" in ran.out
    assert files_in(folder) == before


def test_the_report_lists_what_was_removed(folder):
    ran = run("prune", folder, "--keep-last", 1)
    assert (ran.code, ran.err) == (0, "")
    assert ran.lines[1].startswith("  removed  5 steps, ")
    assert "  0, 300, 400, 500, 600" in ran.lines
    assert "  700  --keep-last 1, the newest" in ran.lines
    again = run("prune", folder, "--keep-last", 1)
    assert again.lines[1] == "  removed  0 steps, 0 B"


def test_without_an_option_that_keeps_nothing_is_removed(folder):
    before = files_in(folder)
    for arguments in ([], ["--metric", "val_loss"], ["--dry-run"]):
        ran = run("prune", folder, *arguments)
        assert (ran.code, ran.out) == (2, "")
        assert "nothing says what to keep, and by default nothing is removed" in ran.err
    assert files_in(folder) == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--keep-last", 0], "0 is not at least 1"),
        (["--keep-last", "x"], "'x' is not a number of steps"),
        (["--keep-last", "-1"], "--keep-last"),
        (["--keep", 10**19], "is not a number of steps"),
        (["--keep-every-hours", "nan"], "is not a number of hours"),
        (["--keep-every-hours", "x"], "is not a number of hours"),
        (["--keep", 300, 301], "--keep 301: there is no such step"),
        (["--keep-best", 1, "--metric", "none"], "no step has a metric 'none'"),
        (["--keep-last", 1, "--mode", "up"], "--mode"),
    ],
)
def test_mistakes_remove_nothing(folder, options, words):
    before = files_in(folder)
    ran = run("prune", folder, *options)
    assert (ran.code, ran.out) == (2, "")
    assert words in ran.err
    assert files_in(folder) == before


def test_a_metric_of_pruned_steps_alone_keeps_nothing_and_is_refused(tmp_path):
    root = make_run(
        tmp_path / "run", n=4, keep_last=2, metrics=lambda place: {"old": 1.0} if place == 0 else {"new": 1.0}
    )
    ran = run("prune", root, "--keep-best", 1, "--metric", "old")
    assert (ran.code, ran.out) == (2, "")
    assert "no step that is there has a metric 'old'; there is new" in ran.err
    ran = run("prune", root, "--keep-best", 1)
    assert ran.code == 2
    assert "'val_loss'" in ran.err


def test_best_needs_a_metric_where_the_run_tells_none(folder):
    (folder / "history.ptck").unlink()
    ran = run("prune", folder, "--keep-best", 1)
    assert ran.code == 2
    assert "--metric NAME says it" in ran.err
    assert pruned(folder, "--keep-best", 1, "--metric", "val_loss")["kept"]


def test_a_training_at_work_is_an_error(folder):
    before = files_in(folder)
    with CheckpointManager(folder, keep_last=None, durability="atomic") as manager:
        manager.pin("held", 700)
        ran = run("prune", folder, "--keep-last", 1)
        assert (ran.code, ran.out) == (2, "")
        assert "is held" in ran.err
        assert run("prune", folder, "--keep-last", 1, "--dry-run").code == 0
    assert {name for name in files_in(folder) if name.startswith("step")} == {
        name for name in before if name.startswith("step")
    }
    assert run("prune", folder, "--keep-last", 1).code == 0


def test_a_damaged_history_is_an_error_because_it_has_the_pins(folder):
    cut_off(folder / "history.ptck")
    before = files_in(folder)
    ran = run("prune", folder, "--keep-last", 1)
    assert (ran.code, ran.out) == (1, "")
    assert "nothing is removed while that is so" in ran.err
    assert files_in(folder) == before


def test_what_is_not_the_runs_stays_and_leftovers_go(folder):
    save_plain(folder / "exported.ptck")
    save_plain(folder / "step-00000077.ptck")
    (folder / "notes.txt").write_text("x")
    (folder / ".step-00000800.ptck.1-0123456789abcdef.tmp").write_bytes(b"x" * 1000)
    cut_off(step_path(folder, 400))
    ran = run("prune", folder, "--keep-last", 1)
    assert ran.code == 0
    assert "removed  4 steps and 1 leftover" in ran.out
    assert "  .step-00000800.ptck.1-0123456789abcdef.tmp" in ran.lines
    assert "damaged steps are left where they are: 400" in ran.out
    left = set(files_in(folder))
    assert {"exported.ptck", "step-00000077.ptck", "notes.txt", "step-00000400.ptck"} <= left
    assert not [name for name in left if name.endswith(".tmp")]


def test_data_that_no_step_needs_goes_with_the_steps(tmp_path):
    root = make_run(tmp_path / "run", incremental=True)
    ran = run("prune", root, "--keep-last", 1)
    assert ran.code == 0
    assert "as no step needs it" in ran.out
    assert run("ls", root, "--verify").code == 0


@pytest.mark.parametrize("name", ["nowhere", "file.ptck"])
def test_what_is_no_run_is_told(tmp_path, name):
    save_plain(tmp_path / "file.ptck")
    ran = run("prune", tmp_path / name, "--keep-last", 1)
    assert (ran.code, ran.out) == (2, "")
    assert "there is no folder" in ran.err or "is a file" in ran.err


def test_a_folder_without_steps_is_left_alone(tmp_path):
    save_plain(tmp_path / "file.ptck")
    ran = run("prune", tmp_path, "--keep-last", 1)
    assert (ran.code, ran.out) == (2, "")
    assert "there are no steps in" in ran.err
    assert set(files_in(tmp_path)) == {"file.ptck"}
