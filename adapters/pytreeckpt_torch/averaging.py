"""Moving averages of tensors, where they are."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, Final

import torch

from pytreeckpt import Blend
from pytreeckpt_torch.staging import view_identity


def _kind(value: object) -> str | None:
    if not isinstance(value, torch.Tensor):
        return None
    return "real" if value.is_floating_point() else "complex" if value.is_complex() else "other"


def _blend(pairs: Sequence[tuple[torch.Tensor, torch.Tensor]], weight: Any) -> list[object]:
    """Tensors that show the same memory, as tied parameters of a state dict do, change once."""
    done: set[Hashable] = set()
    with torch.no_grad():
        for ema, tensor in pairs:
            identity = view_identity(ema)
            if identity not in done:
                done.add(identity)
                _move(ema, tensor, float(weight))
    return [ema for ema, _ in pairs]


def _move(ema: torch.Tensor, tensor: torch.Tensor, weight: float) -> None:
    if _kind(ema) == "other":
        ema.copy_(tensor)
        return
    wide = torch.float32 if ema.is_floating_point() and ema.element_size() < 4 else ema.dtype
    end = tensor.detach().to(ema.device, wide)
    if wide is ema.dtype:
        ema.add_((end - ema).mul_(weight))
        return
    # Rounded once, when it goes back.
    start = ema.to(wide)
    ema.copy_(start + (end - start).mul_(weight))


BLEND: Final = Blend(_kind, _blend)
