"""Everything that a reader can be asked to do with a file, and what must come of it."""

import warnings
from typing import Any

import numpy as np

import pytreeckpt as ptc
from pytreeckpt.reading import BytesSource
from tests.exact import assert_same

# Small, so that what a hostile file may ask for is little.
LIMITS: dict[str, int] = {
    "index_nbytes": 16 << 20,
    "nodes": 200_000,
    "chunk_nbytes": 16 << 20,
    "arrays_nbytes": 64 << 20,
}


def judge(file: bytes) -> bool:
    """Whether a file is accepted. Whatever is done with it, nothing but a `PytreeckptError` may come of it, and what
    it holds can be saved and is the same when it comes back.
    """
    with ptc.limits(**LIMITS), warnings.catch_warnings():
        # Objects of frameworks that are not here.
        warnings.simplefilter("ignore", UserWarning)
        try:
            with ptc.Checkpoint(BytesSource(memoryview(file)), None) as checkpoint:
                _look_around(checkpoint)
        except ptc.PytreeckptError as error:
            assert str(error)
        accepted = True
        for options in (
            {},
            {"to": "numpy"},
            {"verify": False},
            {"select": "**"},
            {"select": lambda path: len(path) % 2},
        ):
            try:
                tree = ptc.decode(file, **options)
            except ptc.PytreeckptError as error:
                assert str(error)
                accepted = accepted and bool(options)
                continue
            if not options:
                again = ptc.decode(ptc.encode(tree))
                assert_same(tree, again)
                _use_as_template(file, tree)
        return accepted


def _look_around(checkpoint: ptc.Checkpoint) -> None:
    repr(checkpoint)
    for path, leaf in checkpoint.leaves():
        try:
            assert path == ptc.Path.parse(str(path)) or "nan" in str(path).lower()
            assert path in checkpoint
            if isinstance(leaf, ptc.ArrayRef):
                repr(leaf)
                _read_parts(leaf)
        except ptc.PytreeckptError as error:
            assert str(error)
    assert all(isinstance(problem, ptc.PytreeckptError) for problem in checkpoint.damage())


def _read_parts(ref: ptc.ArrayRef) -> None:
    if ref.nbytes > LIMITS["arrays_nbytes"]:
        return
    assert isinstance(np.asarray(ref), np.ndarray)
    if ref.shape and all(ref.shape):
        assert ref[-1].shape == ref.shape[1:]
        assert ref[..., ::-1].shape == ref.shape


def _use_as_template(file: bytes, tree: Any) -> None:
    try:
        ptc.decode(file, like=tree)
    except ptc.PytreeckptError as error:
        assert str(error)
