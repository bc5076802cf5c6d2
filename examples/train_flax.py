"""A training in Flax that may be stopped at any time, in whatever way, and goes on with the same command.

    python examples/train_flax.py run             # stop it with Ctrl-C, kill -9 or a power cut, and run it again

The keys for dropout, the order of the data and the optimizer go on where they were: the losses that are printed, and
the digest at the end, are those of a training that was never stopped.
"""

import argparse
import hashlib
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.training.train_state import TrainState

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
    checkpoint = options.run / "latest.ptck"

    points, arms = spirals()
    shuffler = np.random.default_rng(2)
    # Of the state only the structure is needed if there is a checkpoint.
    template = jax.eval_shape(lambda: new_state(options.epochs))

    resumed = ptj.resume(checkpoint, missing_ok=True, state=template, shuffler=shuffler)
    if resumed:
        state, order, losses = resumed["state"], resumed["order"], resumed["losses"]
        print(f"resumed at step {len(losses)}")
    else:
        state, order, losses = new_state(options.epochs), shuffler.permutation(N_ITEMS), []

    while len(losses) < options.epochs * STEPS_PER_EPOCH:
        at = len(losses) % STEPS_PER_EPOCH
        if at == 0 and losses:
            order = shuffler.permutation(N_ITEMS)
        batch = order[at * BATCH : (at + 1) * BATCH]
        state, loss = train_step(state, points[batch], arms[batch])
        losses.append(float(loss))
        if len(losses) % options.save_every == 0:
            ptj.save_training(checkpoint, state=state, shuffler=shuffler, order=order, losses=losses)
            print(f"step {len(losses)}: loss {sum(losses[-25:]) / 25:.4f}", flush=True)
    ptj.save_training(checkpoint, state=state, shuffler=shuffler, order=order, losses=losses)

    weights = b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state.params))
    print(f"done: {len(losses)} steps, last loss {losses[-1]:.4f}, weights {hashlib.sha256(weights).hexdigest()[:16]}")


if __name__ == "__main__":
    main()
