"""A training that begins in torch, goes on in Flax, and ends in torch: `python examples/torch_to_flax.py`.

A few seconds on a CPU; needs torch, jax, flax and optax, and matplotlib for the plot. Every loss is compared with that
of the same training in torch alone: in float64 they differ by rounding only.
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import linen
from flax.training.train_state import TrainState

import pytreeckpt as ptc
import pytreeckpt_jax
import pytreeckpt_torch
from pytreeckpt import convert

N_STEPS = 25
"""Steps in each of the three parts."""
TOLERANCE = 1e-12

generator = np.random.default_rng(0)
IMAGES = generator.normal(size=(32, 3, 8, 8))
TARGETS = np.sin(3 * IMAGES.mean((2, 3))) + 0.1 * generator.normal(size=(32, 3))


# The same model in both frameworks. Its linear layers are square: no shape says which way round their weights are.


class TorchModel(torch.nn.Module):
    """A convolution, and two square linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 16, 3, padding=1)
        self.norm = torch.nn.LayerNorm(16)
        self.hidden = torch.nn.Linear(16, 16)
        self.head = torch.nn.Linear(16, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Of images, channels first."""
        features = torch.relu(self.conv(images)).mean((2, 3))
        return self.head(torch.tanh(self.hidden(self.norm(features))))


class FlaxModel(linen.Module):
    """The same, for images channels last."""

    @linen.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Of images, channels last."""
        options: dict[str, Any] = {"param_dtype": jnp.float64}
        features = linen.relu(linen.Conv(16, (3, 3), padding=1, name="conv", **options)(images)).mean((1, 2))
        features = linen.LayerNorm(epsilon=1e-5, name="norm", **options)(features)
        features = jnp.tanh(linen.Dense(16, name="hidden", **options)(features))
        return linen.Dense(3, name="head", **options)(features)


def new_training() -> tuple[TorchModel, torch.optim.Optimizer]:
    model = TorchModel().double()
    return model, torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.05)


def train_torch(model: TorchModel, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
    images, targets = torch.from_numpy(IMAGES), torch.from_numpy(TARGETS)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (model(images) - targets).square().mean()
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(loss.item())
    return losses


def train_flax(state: Any, steps: int) -> tuple[Any, list[float]]:
    images, targets = jnp.asarray(IMAGES.transpose(0, 2, 3, 1)), jnp.asarray(TARGETS)

    @jax.jit
    def step(state: Any) -> tuple[Any, jax.Array]:
        def loss_of(params: Any) -> jax.Array:
            return jnp.mean(jnp.square(state.apply_fn({"params": params}, images) - targets))

        loss, gradients = jax.value_and_grad(loss_of)(state.params)
        return state.apply_gradients(grads=gradients), loss

    losses = []
    for _ in range(steps):
        state, loss = step(state)
        losses.append(float(loss))
    return state, losses


def to_flax(path: Path) -> Any:
    """The train state with which the training of a checkpoint of torch goes on."""
    flax_model = FlaxModel()
    images = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float64)
    with ptc.open(path) as checkpoint:
        variables = jax.eval_shape(flax_model.init, jax.random.key(0), images)
        # What optax has to do for the updates to be those of torch's optimizer: in words, and as what makes it.
        (recipe,) = convert.plan(checkpoint, variables).recipes
        print(f"   optax for torch's AdamW: {recipe}\n")

        def create() -> TrainState:
            params = flax_model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["params"]
            return TrainState.create(apply_fn=flax_model.apply, params=params, tx=pytreeckpt_jax.transformation(recipe))

        plan = convert.plan(checkpoint, jax.eval_shape(create))
        for line in str(plan.report()).splitlines():
            print(f"   {line}")
        return plan.apply(checkpoint).tree


def to_torch(path: Path) -> tuple[TorchModel, torch.optim.Optimizer]:
    """The model and optimizer with which the training of a checkpoint of JAX goes on."""
    model, optimizer = new_training()
    target = pytreeckpt_torch.capture(model=model, optimizer=optimizer, step=0, rng=False)
    with ptc.open(path) as checkpoint:
        tree = convert.plan(checkpoint, target).apply(checkpoint).tree
    restored = pytreeckpt_torch.restore_into(tree, model=model, optimizer=optimizer)
    print(f"   back in torch, at step {restored['step']}\n")
    return model, optimizer


def tour(folder: Path) -> tuple[list[float], list[float]]:
    """The losses of torch alone, and of torch, Flax and torch."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model, optimizer = new_training()
    losses = train_torch(model, optimizer, N_STEPS)
    pytreeckpt_torch.save_training(folder / "torch.ptck", model=model, optimizer=optimizer, step=N_STEPS)
    # Torch goes on alone, to be compared with.
    alone = [*losses, *train_torch(model, optimizer, 2 * N_STEPS)]

    state, flax_losses = train_flax(to_flax(folder / "torch.ptck"), N_STEPS)
    pytreeckpt_jax.save_training(folder / "flax.ptck", state=state)
    model, optimizer = to_torch(folder / "flax.ptck")
    return alone, [*losses, *flax_losses, *train_torch(model, optimizer, N_STEPS)]


def compare(alone: list[float], across: list[float]) -> float:
    """Print the losses side by side; the largest difference."""
    print("   step  in      torch alone          torch → Flax → torch  difference")
    for step, (ours, theirs) in enumerate(zip(alone, across, strict=True), 1):
        where = ("torch", "Flax", "torch")[(step - 1) // N_STEPS]
        if step % 5 == 0 or (step - 1) % N_STEPS == 0:
            print(f"   {step:>4}  {where:<6}  {ours:.15f}    {theirs:.15f}     {abs(ours - theirs):.1e}")
    return max(abs(ours - theirs) for ours, theirs in zip(alone, across, strict=True))


def plot(alone: list[float], across: list[float], path: Path) -> None:
    """The losses, and below them how far they are apart."""
    import matplotlib as mpl

    mpl.use("svg")
    # Texts as texts, and the same file every time.
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "pytreeckpt", "font.size": 10})
    from matplotlib import pyplot as plt

    steps = np.arange(1, len(alone) + 1)
    figure, (upper, lower) = plt.subplots(
        2, 1, figsize=(7.5, 5), sharex=True, height_ratios=(3, 1.3), layout="constrained"
    )
    upper.plot(steps, alone, color="#bbbbbb", linewidth=6, solid_capstyle="round", label="torch alone")
    for part, (name, color) in enumerate((("torch", "#d1495b"), ("Flax", "#00798c"), ("torch", "#d1495b"))):
        inside = slice(part * N_STEPS, (part + 1) * N_STEPS)
        label = {"torch": "begun and ended in torch", "Flax": "went on in Flax, with optax"}[name]
        upper.plot(steps[inside], across[inside], color=color, linewidth=1.8, label=label if part < 2 else None)
    upper.set_yscale("log")
    upper.set_ylabel("loss")
    upper.legend(frameon=False)
    lower.plot(steps, np.maximum(np.abs(np.subtract(alone, across)), 1e-18), ".", color="#30343f", markersize=4)
    lower.axhline(TOLERANCE, color="#30343f", linewidth=0.8, linestyle="--")
    lower.text(1, TOLERANCE * 1.6, "what is asserted: 1e-12", va="bottom")
    lower.text(1, 2.2e-18, "equal losses are drawn at 1e-18", va="bottom")
    lower.set_yscale("log")
    lower.set_ylim(3e-19, 1e-9)
    lower.set_ylabel("difference")
    lower.set_xlabel("step")
    for axes in (upper, lower):
        for boundary in (N_STEPS, 2 * N_STEPS):
            axes.axvline(boundary + 0.5, color="#cccccc", linewidth=0.8, zorder=0)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plot", type=Path, help="where to write the plot, as SVG")
    options = parser.parse_args()
    # `enable_x64` takes no keyword that all versions have.
    with jax.enable_x64(True), tempfile.TemporaryDirectory() as folder:  # noqa: FBT003 - see above
        alone, across = tour(Path(folder))
    difference = compare(alone, across)
    print(f"\n   {len(alone)} losses, {difference:.1e} apart at most")
    assert difference <= TOLERANCE, difference
    if options.plot is None:
        return
    if importlib.util.find_spec("matplotlib") is None:
        print(f"   matplotlib is not installed: {options.plot} is not written")
        return
    plot(alone, across, options.plot)
    print(f"   {options.plot} written")


if __name__ == "__main__":
    main()
