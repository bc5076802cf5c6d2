import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytreeckpt.steps.names import inside, is_data_file, is_temporary, is_temporary_data_file, step_file, step_of
from pytreeckpt.steps.records import MAX_STEP
from pytreeckpt.storage import LocalStorage


@given(st.integers(0, MAX_STEP))
def test_the_name_of_a_step_tells_the_step(step):
    assert step_of(step_file(step)) == step


@given(st.text(max_size=30) | st.from_regex(r"step-[0-9]{1,21}\.ptck", fullmatch=True))
def test_a_step_has_one_name(name):
    step = step_of(name)
    assert step is None or step_file(step) == name


@pytest.mark.parametrize(
    "name",
    [
        "step-1.ptck",
        "step-000000001.ptck",
        "step-00000001.ptck.bak",
        "step-00000001.ptck\n",
        "step-\u0660\u0660\u0660\u0660\u0660\u0660\u0660\u0661.ptck",
        "step--0000001.ptck",
        "Step-00000001.ptck",
        f"step-{MAX_STEP + 1}.ptck",
        f"step-{10**19}.ptck",
    ],
)
def test_names_that_are_nearly_those_of_steps_are_not(name):
    assert step_of(name) is None


@pytest.mark.parametrize("name", ["step-00000001.ptck", "history.ptck"])
def test_the_names_that_a_storage_writes_to_are_told(name, tmp_path):
    temporary = LocalStorage().target(str(tmp_path / name)).temporary.rpartition("/")[2]
    assert is_temporary(temporary)
    assert not is_temporary_data_file(temporary)
    assert not is_temporary(name)


def test_temporary_files_of_others_are_not_ours(tmp_path):
    for name in ("model.ptck", "step-1.ptck", "new.ptck", "history.ptck.old"):
        assert not is_temporary(LocalStorage().target(str(tmp_path / name)).temporary.rpartition("/")[2])
    for name in (".step-00000001.ptck.tmp", "step-00000001.ptck.1.tmp", ".step-00000001.ptck.1-xyz.tmp", ".tmp"):
        assert not is_temporary(name)


def test_the_name_of_a_data_file_is_a_root():
    assert is_data_file("ab" * 32 + ".ptck")
    assert not is_data_file("AB" * 32 + ".ptck")
    assert not is_data_file("ab" * 31 + ".ptck")


def test_a_path_within_a_folder_is_as_short_as_can_be():
    assert inside("run", "x") == "run/x"
    assert inside(".", "x") == "x"
    assert inside("/", "x") == "/x"
