"""pytreeckpt for JAX: arrays, typed PRNG keys and registered pytree nodes as parts of a checkpoint.

Restored arrays are uncommitted on the default device; `like=` puts them where the template's are, sharded as they are.
"""

from pytreeckpt_jax.leaves import ADAPTER

__all__ = ["ADAPTER"]
