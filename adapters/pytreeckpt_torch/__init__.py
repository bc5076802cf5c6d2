"""pytreeckpt for PyTorch: tensors, parameters, and the objects that describe them, as leaves of a checkpoint.

Restored tensors are on the CPU; `like=` puts them where the template's are.
"""

from pytreeckpt_torch.leaves import ADAPTER

__all__ = ["ADAPTER"]
