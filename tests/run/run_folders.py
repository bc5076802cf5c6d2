"""Folders of runs for the tests: what is in one, byte by byte, and small trees."""

import os
from pathlib import Path

import numpy as np

from pytreeckpt import CheckpointManager
from pytreeckpt.storage import LocalStorage


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self, now_s=1_800_000_000.0):
        self.now_s = now_s

    def __call__(self):
        return self.now_s


class FailingStorage(LocalStorage):
    """The file system, on which operations fail that a test chooses."""

    def __init__(self):
        super().__init__()
        self.fails = lambda operation: False

    def apply(self, operation):
        if self.fails(operation):
            raise OSError(5, os.strerror(5))
        super().apply(operation)


def tree(step):
    return {"w": np.full(300, step, np.float32), "step": step}


def content(root):
    """All files below a folder, but for the lock, with their bytes."""
    root = Path(root)
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name != ".writer.lock"
    }


def saved(root, steps, **options):
    """A run in which these steps were saved, with the metric `val_loss` equal to the step where nothing else is said."""
    metrics = options.pop("metrics", lambda step: {"val_loss": float(step)})
    with CheckpointManager(root, **{"durability": "atomic", **options}) as manager:
        for step in steps:
            manager.save(step, tree(step), metrics=metrics(step))
    return str(root)
