"""Models and trainings to convert, in torch and in flax."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax import linen
from torch import nn


class Net(nn.Module):
    """A convolution, a batch norm, three square linear layers and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.head = nn.Linear(8, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.stem(images))).mean((2, 3))
        for block in self.blocks:
            x = torch.relu(block(x))
        return self.head(x)


class LinenNet(linen.Module):
    """The same."""

    @linen.compact
    def __call__(self, images: Any) -> Any:
        x = linen.Conv(8, (3, 3), padding=1, name="stem")(images)
        x = linen.BatchNorm(use_running_average=True, epsilon=1e-5, name="norm")(x)
        x = linen.relu(x).mean((1, 2))
        for number in range(3):
            x = linen.relu(linen.Dense(8, name=f"blocks_{number}")(x))
        return linen.Dense(5, name="head")(x)


def trained_net(steps: int = 3) -> tuple[Net, torch.optim.Optimizer]:
    """A net after a few steps of AdamW."""
    torch.manual_seed(0)
    net = Net()
    optimizer = torch.optim.AdamW(net.parameters(), 1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        torch.autograd.backward(net(torch.randn(4, 3, 6, 6)).square().mean())
        optimizer.step()
    return net, optimizer


def linen_variables() -> Any:
    """The variables of a net that was not trained, other ones than any of torch."""
    return LinenNet().init(jax.random.key(1), jnp.zeros((1, 6, 6, 3)))


def linen_training() -> dict[str, Any]:
    """Variables, and a state of optax."""
    variables = linen_variables()
    return {"variables": variables, "opt_state": optax.adamw(1e-2).init(variables["params"])}


def expected_variables(net: nn.Module) -> dict[str, Any]:
    """The variables of linen that a net comes to, written by hand."""
    state = {name: each.detach().numpy() for name, each in net.state_dict().items()}
    params: dict[str, Any] = {
        "stem": {"kernel": state["stem.weight"].transpose(2, 3, 1, 0), "bias": state["stem.bias"]},
        "norm": {"scale": state["norm.weight"], "bias": state["norm.bias"]},
        "head": {"kernel": state["head.weight"].T, "bias": state["head.bias"]},
    }
    for number in range(3):
        params[f"blocks_{number}"] = {
            "kernel": state[f"blocks.{number}.weight"].T,
            "bias": state[f"blocks.{number}.bias"],
        }
    statistics = {"mean": state["norm.running_mean"], "var": state["norm.running_var"]}
    return {"params": params, "batch_stats": {"norm": statistics}}


def same_arrays(found: Any, expected: Any) -> None:
    """Fail unless two trees of dicts have the same arrays, to the bit."""
    if isinstance(expected, dict):
        assert isinstance(found, dict)
        assert sorted(map(str, found)) == sorted(map(str, expected))
        for key, value in expected.items():
            same_arrays(found[key], value)
        return
    a, b = np.asarray(found), np.asarray(expected)
    assert (a.dtype, a.shape) == (b.dtype, b.shape)
    assert a.tobytes() == b.tobytes()
