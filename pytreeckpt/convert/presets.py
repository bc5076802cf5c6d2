"""Rules for models that many people have, where names and layers alone do not decide.

    plan = convert.plan(checkpoint, flax_model.params, rules=TRANSFORMERS_FLAX["gpt2"])

The sources are transformers/models/*/modeling_*.py and modeling_flax_*.py of transformers 4.57, the last versions that
have Flax models. BERT, RoBERTa, ViT and ResNets of bottlenecks need no rules, if layers were recorded.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from pytreeckpt.convert.rules import Choose, Rename, Rule

TRANSFORMERS_FLAX: Final[Mapping[str, tuple[Rule, ...]]] = MappingProxyType(
    {
        # The `Conv1D` of torch has weights of (in, out), and `FlaxConv1D` kernels of (out, in).
        "gpt2": (Choose("**.c_*", "kernel (out, in), as FlaxConv1D has it"),),
        # The layers of a basic block are `layer.0` in torch and `layer/layer_0` in Flax.
        "resnet-basic": (Rename("{stage**}.layers.{block}.layer.{i}", "{stage**}/layers/{block}/layer/layer_{i}"),),
    }
)
"""By the type of model, from the models of transformers in torch to those in Flax."""
