"""pytreeckpt for PyTorch: tensors, parameters, and the objects that describe them, as leaves of a checkpoint; and whole
trainings, with modules, optimizers, schedulers and random number generators.

Restored tensors are on the CPU; `like=` puts them where the template's are.
"""

from pytreeckpt_torch.conversion import computes
from pytreeckpt_torch.leaves import ADAPTER
from pytreeckpt_torch.training import capture, restore_into, resume, save_training

__all__ = ["ADAPTER", "capture", "computes", "restore_into", "resume", "save_training"]
