"""A training in numpy, to be ended in one process at any time and gone on with in another: run by
test_interrupts_in_processes.py.

    python numpy_training.py ROOT STEPS SAVE_EVERY [background] [incremental] [worker] [usr1] [fail] [full]

`worker`: the noise comes from a forked process; `usr1`: SIGUSR1 ends it too; `fail`: an exception in the last step;
`full`: no file can be written any more once it runs.
"""

import contextlib
import multiprocessing
import resource
import signal
import sys

import numpy as np

from pytreeckpt.run import CheckpointManager

SHAPE = (40, 2_000)
FROZEN_SHAPE = (100, 2_000)


def first():
    """The state before the first step."""
    generator = np.random.default_rng(1)
    return {
        "step": 0,
        "weights": generator.standard_normal(SHAPE, np.float32),
        "momentum": np.zeros(SHAPE, np.float32),
        "frozen": generator.standard_normal(FROZEN_SHAPE, np.float32),
        "generator": np.random.default_rng(2).bit_generator.state,
        "losses": [],
    }


def noise_of(seed):
    return np.random.default_rng(seed).standard_normal(SHAPE, np.float32)


def advance(state, noise=noise_of):
    """One step, in place: with momentum, dropout, and noise that all that came before has a part in."""
    generator = np.random.default_rng()
    generator.bit_generator.state = state["generator"]
    kept = generator.random(SHAPE, np.float32) > 0.1
    gradient = state["weights"] * kept + 0.1 * noise(int(generator.integers(1 << 32)))
    state["momentum"] *= np.float32(0.9)
    state["momentum"] += gradient
    state["weights"] -= np.float32(0.01) * state["momentum"]
    state["generator"] = generator.bit_generator.state
    state["losses"].append(float(np.square(state["weights"], dtype=np.float64).mean()))
    state["step"] += 1


def say(*words):
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


def serve(connection):
    """What the forked process does: make noise, until it is ended."""
    while True:
        connection.send(noise_of(connection.recv()))


@contextlib.contextmanager
def worker():
    """A function that has another process make the noise."""
    processes = multiprocessing.get_context("fork")
    here, there = processes.Pipe()
    process = processes.Process(target=serve, args=(there,))
    process.start()

    def noise(seed):
        here.send(seed)
        return here.recv()

    try:
        yield noise
    finally:
        process.terminate()
        process.join()
        say("worker", process.exitcode)


def main():
    root, steps, save_every, *flags = sys.argv[1:]
    n_steps = int(steps)
    signals = (signal.SIGTERM, signal.SIGINT, *([signal.SIGUSR1] if "usr1" in flags else []))
    with CheckpointManager(
        root, save_every=int(save_every), keep_last=2, incremental="incremental" in flags
    ) as manager:
        state = first() if manager.latest is None else manager.restore()
        say("start", state["step"])
        with (
            manager.guard(lambda: (state["step"], state), signals=signals),
            worker() if "worker" in flags else contextlib.nullcontext(noise_of) as noise,
        ):
            while state["step"] < n_steps:
                advance(state, noise)
                say(state["step"], state["losses"][-1].hex())
                if "full" in flags:
                    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
                if "fail" in flags and state["step"] == n_steps:
                    raise FloatingPointError("the loss is not a number")
                manager.checkpoint(state["step"], state, blocking="background" not in flags)
        # The last step may be in the making.
        manager.wait()
        if manager.latest != n_steps:
            manager.save(n_steps, state)
    say("done")


if __name__ == "__main__":
    main()
