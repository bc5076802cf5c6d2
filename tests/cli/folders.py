"""Folders of runs for the tests of the commands that look into them."""

import math

import numpy as np

import pytreeckpt as ptc
from pytreeckpt.run import CheckpointManager

START_S = 1_700_000_000.0


def make_run(root, *, n=8, incremental=False, keep_last=None, pins=None, reasons=None, metrics=None):
    """A run of the steps 0, 100, 200 …, a minute apart; val_loss falls, and is NaN at step 300."""
    now = [START_S]
    frozen = np.random.default_rng(0).standard_normal(5000)
    with CheckpointManager(
        root, keep_last=keep_last, incremental=incremental, durability="atomic", clock=lambda: now[0]
    ) as manager:
        for place in range(n):
            step = 100 * place
            value = math.nan if place == 3 else 2.0 - place / 10 + (0.5 if place == n - 1 else 0.0)
            manager.save(
                step,
                {"frozen": frozen if incremental else frozen + place, "head": np.full(100, float(place))},
                metrics={"accuracy": place / 10, "val_loss": value} if metrics is None else metrics(place),
                epoch=place / 2,
                reason=(reasons or {}).get(step, "scheduled"),
            )
            now[0] += 60.0
            for name, pinned in (pins or {}).items():
                if pinned == step:
                    manager.pin(name, step)
    return root


def cut_off(path):
    """Damage a file so that its end shows it."""
    path.write_bytes(path.read_bytes()[:-10])


def flip_a_bit(path, place=100):
    """Damage a file so that only a look at every byte shows it."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def step_path(root, step):
    return root / f"step-{step:08d}.ptck"


def save_plain(path):
    """A checkpoint that no manager saved."""
    ptc.save({"x": 1}, path)
    return path
