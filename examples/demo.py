"""A tour of pytreeckpt: `python examples/demo.py`. Takes half a minute on a CPU; needs torch and jax.

A training run is killed in the middle of a save and goes on from the file that survived, as if nothing had happened.
Then the same file is read by jax, and by numpy where torch cannot even be imported.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

import pytreeckpt as ptc

N_STEPS, SAVE_EVERY, KILL_AT = 60, 10, 40
Losses = list[float]


# The run: a model, an optimizer, a scheduler, and random numbers from three generators.


class Run:
    """A small training run in torch, like that of any tutorial."""

    def __init__(self) -> None:
        import torch

        torch.set_num_threads(1)
        random.seed(1)
        np.random.seed(2)  # noqa: NPY002 - the global generator is what most code uses, so it has to be saved
        torch.manual_seed(3)
        nn = torch.nn
        self.torch = torch
        self.model = nn.Sequential(
            nn.Linear(32, 1024), nn.ReLU(), nn.Dropout(0.2), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 1)
        )
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=2e-4)
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, N_STEPS)
        self.step = 0
        self.losses: Losses = []

    def train_one_step(self) -> None:
        """One batch, with randomness from Python, numpy and torch (the dropout)."""
        torch = self.torch
        features, targets = dataset()
        batch = random.sample(range(len(features)), 64)
        noise = np.random.normal(0, 0.05, (64, 32))  # noqa: NPY002 - see above
        inputs = torch.from_numpy((features[batch] + noise).astype(np.float32))
        loss = (self.model(inputs)[:, 0] - torch.from_numpy(targets[batch])).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.scheduler.step()
        self.step += 1
        self.losses.append(loss.item())

    def checkpoint(self) -> dict[str, Any]:
        """All that the run is, as one plain dict."""
        return {
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "rng": {
                "torch": self.torch.get_rng_state(),
                "numpy": np.random.get_state(),  # noqa: NPY002 - see above
                "python": random.getstate(),
            },
            "losses": self.losses,
        }

    def go_on_from(self, checkpoint: Mapping[str, Any]) -> None:
        """Become the run that was saved."""
        self.step = checkpoint["step"]
        self.model.load_state_dict(checkpoint["model"])
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        self.scheduler.load_state_dict(checkpoint["scheduler"])
        self.torch.set_rng_state(checkpoint["rng"]["torch"])
        np.random.set_state(checkpoint["rng"]["numpy"])  # noqa: NPY002 - see above
        random.setstate(checkpoint["rng"]["python"])
        self.losses = checkpoint["losses"]


@cache
def dataset() -> tuple[np.ndarray, np.ndarray]:
    """Features (512, 32) and targets (512,), the same in every process and framework."""
    generator = np.random.default_rng(0)
    features = generator.normal(size=(512, 32)).astype(np.float32)
    return features, np.sin(features[:, :4].sum(1)) + features[:, 4]


# What the other processes do.


def train_and_be_killed(path: Path) -> None:
    run = Run()
    while run.step < N_STEPS:
        run.train_one_step()
        if run.step % SAVE_EVERY == 0:
            progress = die_halfway if run.step == KILL_AT else None
            report = ptc.save(run.checkpoint(), path, progress=progress)
            raw, stored = report.raw_nbytes / 1e6, report.stored_nbytes / 1e6
            say(f"step {run.step}: {raw:.1f} MB saved as {stored:.1f} MB, durably, in {report.elapsed_s:.2f} s")


def die_halfway(progress: ptc.Progress) -> None:
    """Called by `save` as it writes: kill this process, without any chance to clean up, when half is written."""
    if progress.done_nbytes >= progress.total_nbytes / 2:
        done, total = progress.done_nbytes / 1e6, progress.total_nbytes / 1e6
        say(f"step {KILL_AT}: kill -9, {done:.1f} of {total:.1f} MB into the save")
        os.kill(os.getpid(), signal.SIGKILL)


def resume(path: Path) -> None:
    run = Run()
    run.go_on_from(ptc.restore(path))
    say(f"resumed at step {run.step}")
    while run.step < N_STEPS:
        run.train_one_step()
    ptc.save(run.checkpoint(), path)


def evaluate_with_jax(path: Path) -> None:
    import jax.numpy as jnp

    weights = ptc.restore(path, select="model/**", to="jax")["model"]
    loss = float(evaluate(weights, jnp.maximum))
    say(f"jax     {describe(weights)}  loss on all data {loss:.6f}")


def evaluate_with_numpy(path: Path) -> None:
    sys.meta_path.insert(0, Blocked())
    weights = ptc.restore(path, select="model/**", to="numpy")["model"]
    loss = evaluate(weights, np.maximum)
    say(f"numpy   {describe(weights)}  loss on all data {loss:.6f}  (importing torch is an error here)")
    assert not {"torch", "jax"} & set(sys.modules)


class Blocked:
    """Makes torch and jax look as if they were not installed."""

    def find_spec(self, name: str, _path: object = None, _target: object = None) -> None:
        """What Python asks when something is imported."""
        if name.partition(".")[0] in {"torch", "jax"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def evaluate(weights: Mapping[str, Any], maximum: Callable[[Any, float], Any]) -> Any:
    """The model's loss on the whole dataset, written with nothing but arrays."""
    hidden, targets = dataset()
    for layer in ("0", "3"):
        hidden = maximum(hidden @ weights[f"{layer}.weight"].T + weights[f"{layer}.bias"], 0)
    outputs = hidden @ weights["5.weight"].T + weights["5.bias"]
    return ((outputs[:, 0] - targets) ** 2).mean()


def describe(weights: Mapping[str, Any]) -> str:
    first = weights["0.weight"]
    name = f"{type(first).__module__.partition('.')[0]}.{type(first).__name__}".replace("jaxlib.ArrayImpl", "jax.Array")
    return f"{len(weights)} × {name:14}"


CHILDREN: Mapping[str, Callable[[Path], None]] = {
    "train": train_and_be_killed,
    "resume": resume,
    "jax": evaluate_with_jax,
    "numpy": evaluate_with_numpy,
}


# The tour.


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where to leave the checkpoint (a temporary folder)")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        CHILDREN[options.child[0]](Path(options.child[1]))
    elif options.folder:
        options.folder.mkdir(parents=True, exist_ok=True)
        tour(options.folder)
    else:
        with tempfile.TemporaryDirectory() as folder:
            tour(Path(folder))


def tour(folder: Path) -> None:
    path = folder / "run.ptck"
    title(1, f"Train a small torch model for {N_STEPS} steps, without interruption")
    reference = Run()
    while reference.step < N_STEPS:
        reference.train_one_step()
    n_parameters = sum(parameter.numel() for parameter in reference.model.parameters())
    say(f"{n_parameters / 1e6:.1f} million parameters, AdamW, a schedule, dropout, random batches and noise")
    say(f"loss {reference.losses[0]:.4f} → {reference.losses[-1]:.4f}")

    title(2, f"The same run in a process of its own, saved every {SAVE_EVERY} steps … and killed")
    code('ptc.save({"model": model.state_dict(), "optimizer": …, "rng": …, "step": …}, "run.ptck")')
    status = child("train", path)
    assert status == -signal.SIGKILL, status
    survivor = ptc.open(path).tree["step"]
    torn = [file for file in folder.iterdir() if file != path]
    assert survivor == KILL_AT - SAVE_EVERY
    assert torn, "it was not killed in the middle of a save"
    say(f"run.ptck is intact: it holds step {survivor}")
    say(f"beside it lies half a file that never got its name, {torn[0].stat().st_size / 1e6:.1f} MB")
    torn[0].unlink()

    title(3, "Restore in a new process and go on")
    code('checkpoint = ptc.restore("run.ptck")')
    assert child("resume", path) == 0
    losses = ptc.restore(path)["losses"]
    same = [a.hex() == b.hex() for a, b in zip(reference.losses, losses, strict=True)]
    assert all(same), f"the losses differ from step {same.index(False) + 1} on"
    say(f"all {len(same)} losses are those of the uninterrupted run, to the last bit: {losses[-1].hex()}")
    print("\n" + curve(losses, mark=survivor))

    title(4, "The same file in other frameworks")
    code('ptc.restore("run.ptck", select="model/**", to="jax")')
    reference.model.eval()
    features, targets = map(reference.torch.from_numpy, dataset())
    with reference.torch.no_grad():
        loss = (reference.model(features)[:, 0] - targets).square().mean().item()
    say(f"torch   {describe(reference.model.state_dict())}  loss on all data {loss:.6f}")
    assert child("jax", path) == 0
    assert child("numpy", path) == 0

    title(5, "Look inside, and check every byte")
    assert command("inspect", path, "--depth", "1") == 0
    assert command("verify", path) == 0
    say("With one bit of the file flipped:")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    damaged = path.with_name("damaged.ptck")
    damaged.write_bytes(content)
    assert command("verify", damaged) == 1


def child(name: str, path: Path) -> int:
    """Run one of the functions above in a new process; its exit status, negative if a signal ended it."""
    sys.stdout.flush()
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    return subprocess.run(
        [sys.executable, __file__, "--child", name, str(path)], check=False, env=environment
    ).returncode


def command(name: str, path: Path, *options: str) -> int:
    """Run `pytreeckpt NAME PATH` as one would in a shell."""
    code(f"pytreeckpt {' '.join((name, path.name, *options))}")
    line = [sys.executable, "-m", "pytreeckpt", name, path.name, *options]
    done = subprocess.run(line, check=False, cwd=path.parent, stdout=subprocess.PIPE, text=True)
    say(done.stdout.strip("\n") + "\n")
    return done.returncode


def curve(losses: Sequence[float], *, mark: int, rows: int = 8) -> str:
    """The losses as a plain-text plot, with the step marked at which the killed run went on."""
    top = max(losses)
    heights = [max(round(loss / top * rows * 2), 1) for loss in losses]
    lines = []
    for row in range(rows, 0, -1):
        cells = ["█" if height >= 2 * row else "▄" if height == 2 * row - 1 else " " for height in heights]
        cells.insert(mark, "┊")
        label = f"{top:.2f}" if row == rows else "loss" if row == rows - 1 else ""
        lines.append(f"    {label:>5} │" + "".join(cells).rstrip())
    lines.append(f"{'0.00':>9} └" + "─" * mark + "┴" + "─" * (len(losses) - mark))
    lines.append(" " * 11 + f"{'step ' + str(mark) + ' ':>{mark}}↑ killed while saving step {KILL_AT}, resumed here")
    return "\n".join(lines)


def title(number: int, text: str) -> None:
    print(f"\n{number}  {text}\n")


def code(text: str) -> None:
    say(f"$ {text}" if text.startswith("pytreeckpt") else f">>> {text}")


def say(text: str) -> None:
    print("\n".join(f"   {line}".rstrip() for line in text.split("\n")), flush=True)


if __name__ == "__main__":
    warnings.simplefilter("error")
    main()
