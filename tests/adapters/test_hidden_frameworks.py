"""The core without the frameworks: it imports none, and reads what they saved."""

import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest
import torch

import pytreeckpt

HIDE = """
import sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "jax", "jaxlib"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Hidden())
"""


def run(script, *arguments):
    """Run a script in a process of its own, in which every warning that it does not catch is an error."""
    code = textwrap.dedent(script)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "frameworks.ptck"
    weight = torch.nn.Parameter(torch.arange(3, dtype=torch.bfloat16))
    tree = {
        "weight": weight,
        "tied": weight,
        "size": torch.Size([1, 2]),
        "dtype": torch.float32,
        "array": jax.numpy.arange(4),
        "key": jax.random.key(0),
        "numpy": np.arange(2),
    }
    pytreeckpt.save(tree, path)
    return path


def test_importing_pytreeckpt_imports_no_framework_and_not_hypothesis():
    script = """
        import sys
        import pytreeckpt
        pytreeckpt.decode(pytreeckpt.encode({"a": 1}))
        print(sorted({"torch", "jax", "jaxlib", "flax", "hypothesis"} & set(sys.modules)))
    """
    assert run(script).strip() == "[]"


def test_importing_one_framework_imports_no_other():
    script = """
        import sys
        import torch
        import pytreeckpt
        data = pytreeckpt.encode([torch.ones(2)])
        assert pytreeckpt.decode(data)[0].tolist() == [1, 1]
        print(sorted({"jax", "jaxlib"} & set(sys.modules)))
    """
    assert run(script).strip() == "[]"


def test_a_file_of_hidden_frameworks_comes_back_as_numpy_with_one_warning(saved):
    script = HIDE + textwrap.dedent("""
        import warnings
        import ml_dtypes
        import numpy
        import pytreeckpt

        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            tree = pytreeckpt.restore(sys.argv[1])
        assert len(caught) == 1, caught
        message = str(caught[0].message)
        assert "of torch" in message and "of jax" in message and 'to="numpy"' in message, message
        assert caught[0].filename == "<string>", caught[0].filename
        assert tree["weight"] is tree["tied"]
        assert type(tree["weight"]) is numpy.ndarray and tree["weight"].dtype == ml_dtypes.bfloat16
        assert tree["size"] == (1, 2) and tree["dtype"].name == "float32"
        assert tree["array"].tolist() == [0, 1, 2, 3] and tree["key"].tolist() == [0, 0]
        print("as numpy")
    """)
    assert run(script, saved).strip() == "as numpy"


def test_numpy_can_be_asked_for_without_a_warning(saved):
    script = HIDE + textwrap.dedent("""
        import pytreeckpt
        tree = pytreeckpt.restore(sys.argv[1], to="numpy")
        assert tree["weight"].astype(float).tolist() == [0, 1, 2]
        del tree["size"]  # a tuple is no template for the size that was saved
        again = pytreeckpt.restore(sys.argv[1], like=tree, strict=False)
        assert again["weight"].tolist() == tree["weight"].tolist()
        print("silent")
    """)
    assert run(script, saved).strip() == "silent"


def test_a_hidden_framework_that_is_asked_for_is_named(saved):
    script = HIDE + textwrap.dedent("""
        import pytreeckpt
        for framework in ("torch", "jax"):
            try:
                pytreeckpt.restore(sys.argv[1], to=framework)
            except ModuleNotFoundError as error:
                print(error.name)
    """)
    assert run(script, saved).split() == ["torch", "jax"]


def test_what_was_read_without_its_framework_can_be_saved_again_and_come_back(saved, tmp_path):
    script = HIDE + textwrap.dedent("""
        import pytreeckpt
        tree = pytreeckpt.restore(sys.argv[1], to="numpy")
        pytreeckpt.save(tree, sys.argv[2])
    """)
    run(script, saved, tmp_path / "again.ptck")
    restored = pytreeckpt.restore(tmp_path / "again.ptck", to="torch")
    assert restored["dtype"] is torch.float32
    assert restored["weight"].dtype is torch.bfloat16


def test_restoring_imports_the_framework_that_saved(saved):
    script = """
        import sys
        import pytreeckpt
        tree = pytreeckpt.restore(sys.argv[1])
        import jax, torch
        assert type(tree["weight"]) is torch.nn.Parameter and tree["weight"] is tree["tied"]
        assert isinstance(tree["array"], jax.Array)
        print("imported")
    """
    assert run(script, saved).strip() == "imported"
