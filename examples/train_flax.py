"""A training in Flax that may be stopped at any time, in whatever way, and goes on with the same command.

    python examples/train_flax.py run             # stop it with Ctrl-C, kill -9 or a power cut, and run it again

The keys for dropout, the order of the data and the optimizer go on where they were: the losses that are printed, and
the digest at the end, are those of a training that was never stopped.
"""

import argparse
import hashlib
from pathlib import Path
from statistics import fmean

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.training.train_state import TrainState

import pytreeckpt as ptc
import pytreeckpt_jax as ptj

N_ITEMS = 4096
BATCH = 64
STEPS_PER_EPOCH = N_ITEMS // BATCH


class Network(nn.Module):
    """A few layers with dropout."""

    @nn.compact
    def __call__(self, points, *, train):
        """The logits of some points."""
        for _ in range(2):
            points = nn.Dropout(0.1, deterministic=not train)(nn.relu(nn.Dense(128)(points)))
        return nn.Dense(2)(points)


class State(TrainState):
    """The state of a training, and the key that its dropout comes from."""

    key: jax.Array


def spirals() -> tuple[np.ndarray, np.ndarray]:
    """Two arms that wind around each other, and which of them a point is on."""
    random = np.random.default_rng(1)
    radius = random.random(N_ITEMS, np.float32)
    arm = random.integers(2, size=N_ITEMS)
    angle = 8 * radius + np.pi * arm
    points = np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1)
    return (points + 0.02 * random.standard_normal((N_ITEMS, 2))).astype(np.float32), arm


def new_state(epochs: int) -> State:
    """The state before the first step."""
    network = Network()
    key, init_key = jax.random.split(jax.random.key(0))
    params = network.init(init_key, jnp.zeros((1, 2)), train=False)["params"]
    schedule = optax.cosine_decay_schedule(3e-3, epochs * STEPS_PER_EPOCH)
    return State.create(apply_fn=network.apply, params=params, tx=optax.adamw(schedule), key=key)


@jax.jit
def train_step(state, points, arm):
    """One step: the next state, and the loss."""

    def loss_of(params):
        rngs = {"dropout": jax.random.fold_in(state.key, state.step)}
        logits = state.apply_fn({"params": params}, points, train=True, rngs=rngs)
        return optax.softmax_cross_entropy_with_integer_labels(logits, arm).mean()

    loss, gradients = jax.value_and_grad(loss_of)(state.params)
    return state.apply_gradients(grads=gradients), loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the folder of the run")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--save-every", type=int, default=25, metavar="STEPS")
    options = parser.parse_args()

    points, arms = spirals()
    shuffler = np.random.default_rng(2)
    # Of the state only the structure is needed if there is a checkpoint.
    template = jax.eval_shape(lambda: new_state(options.epochs))

    def tree():
        return ptj.capture(state=state, shuffler=shuffler, order=order, losses=losses)

    with ptc.CheckpointManager(options.run, save_every=options.save_every, metric="loss") as manager:
        if manager.latest is not None:
            resumed = ptj.resume(manager.path(manager.latest), state=template, shuffler=shuffler)
            state, order, losses = resumed["state"], resumed["order"], resumed["losses"]
            print(f"resumed at step {len(losses)}")
        else:
            state, order, losses = new_state(options.epochs), shuffler.permutation(N_ITEMS), []

        with manager.guard(lambda: (len(losses), tree())):
            while len(losses) < options.epochs * STEPS_PER_EPOCH:
                epoch, at = divmod(len(losses), STEPS_PER_EPOCH)
                if at == 0 and losses:
                    order = shuffler.permutation(N_ITEMS)
                batch = order[at * BATCH : (at + 1) * BATCH]
                state, loss = train_step(state, points[batch], arms[batch])
                losses.append(float(loss))
                recent = fmean(losses[-25:])
                if manager.checkpoint(len(losses), tree, metrics={"loss": recent}, epoch=epoch):
                    print(f"epoch {epoch}, step {len(losses)}: loss {recent:.4f}", flush=True)
        if manager.latest != len(losses):
            manager.save(len(losses), tree())

    weights = b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state.params))
    print(f"done: {len(losses)} steps, last loss {losses[-1]:.4f}, weights {hashlib.sha256(weights).hexdigest()[:16]}")


if __name__ == "__main__":
    main()
