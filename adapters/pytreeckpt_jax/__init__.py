"""pytreeckpt for JAX: arrays, typed PRNG keys and registered pytree nodes as parts of a checkpoint; and whole
trainings, with train states, optimizer states and objects of nnx.

Restored arrays are uncommitted on the default device; `like=` puts them where the template's are, sharded as they are.
"""

from pytreeckpt_jax.conversion import computes
from pytreeckpt_jax.layers import linen_layers
from pytreeckpt_jax.leaves import ADAPTER
from pytreeckpt_jax.optimizers import transformation
from pytreeckpt_jax.training import capture, restore_into, resume, save_training

__all__ = [
    "ADAPTER",
    "capture",
    "computes",
    "linen_layers",
    "restore_into",
    "resume",
    "save_training",
    "transformation",
]
