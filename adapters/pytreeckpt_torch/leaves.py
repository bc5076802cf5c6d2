"""The adapter: which object of torch is stored as what, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import torch

from pytreeckpt import Adapter, Expansion, LeafTemplate, UnsupportedTypeError
from pytreeckpt_torch.averaging import BLEND
from pytreeckpt_torch.conversion import describe
from pytreeckpt_torch.descriptors import DESCRIPTORS, expand_descriptor
from pytreeckpt_torch.sparse import LAYOUTS, build_sparse, expand_sparse
from pytreeckpt_torch.tensors import (
    build_buffer,
    build_packed,
    build_parameter,
    build_tensor,
    expand_tensor,
    from_array,
    template,
)

_CLASSES: Final = frozenset([torch.Tensor, torch.nn.Parameter])
_SUBCLASS_ADVICE: Final[Mapping[str, str]] = {
    "DTensor": "store tensor.full_tensor(), or tensor.to_local() in each process",
    "FakeTensor": "it has no values; save outside of FakeTensorMode, and use meta tensors as templates",
    "NestedTensor": "store the tensors of tensor.unbind()",
    "UninitializedParameter": "run the module once, so that its shape is known",
    "UninitializedBuffer": "run the module once, so that its shape is known",
}
# Objects that people put into trees, and what of them a tree can hold.
_OBJECT_ADVICE: Final[tuple[tuple[type, str], ...]] = (
    (torch.nn.Module, "store module.state_dict()"),
    (torch.optim.Optimizer, "store optimizer.state_dict()"),
    (torch.Generator, "store generator.get_state()"),
    (torch.UntypedStorage, "store a tensor over it"),
)


def _expand(value: object) -> Expansion | None:
    if isinstance(value, torch.Tensor):
        check_plain(value)
        if value.is_meta:
            raise UnsupportedTypeError("a meta tensor has no values to be stored; use it as a template (like=)")
        return expand_sparse(value) if value.layout in LAYOUTS else expand_tensor(value)
    found = expand_descriptor(value)
    if found is None:
        for cls, advice in _OBJECT_ADVICE:
            if isinstance(value, cls):
                raise UnsupportedTypeError(f"a {_qualified(type(value))} cannot be stored; {advice}")
    return found


def check_plain(tensor: torch.Tensor) -> None:
    """Raise `UnsupportedTypeError`, with what to do, for a tensor that is more than its items, or less."""
    if tensor.is_nested:
        raise UnsupportedTypeError("a nested tensor cannot be stored; store the tensors of tensor.unbind()")
    if type(tensor) not in _CLASSES:
        cls = type(tensor)
        advice = _SUBCLASS_ADVICE.get(cls.__name__, "store a plain tensor, such as tensor.as_subclass(torch.Tensor)")
        raise UnsupportedTypeError(f"a {_qualified(cls)} cannot be stored; {advice}")
    if tensor.is_quantized:
        raise UnsupportedTypeError(
            "a quantized tensor cannot be stored; store tensor.int_repr() with its scale and zero point, or "
            "tensor.dequantize()"
        )
    if tensor.layout is not torch.strided and tensor.layout not in LAYOUTS:
        raise UnsupportedTypeError(f"a tensor of layout {tensor.layout} cannot be stored; store tensor.to_dense()")
    # Versions before 2.13 have named axes.
    if any(getattr(tensor, "names", ())):
        raise UnsupportedTypeError("a tensor with named axes cannot be stored; store tensor.rename(None)")


def _qualified(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


_BUILDERS: Final[Mapping[str, Callable[[Mapping[str, object]], object]]] = {
    "torch.Tensor": build_tensor,
    "torch.nn.Parameter": build_parameter,
    "torch.nn.Buffer": build_buffer,
    "torch.PackedTensor": build_packed,
    "torch.SparseTensor": build_sparse,
    **DESCRIPTORS,
}


def _build(name: str, fields: Mapping[str, object]) -> object:
    if name not in _BUILDERS:
        raise UnsupportedTypeError(
            f'this version of pytreeckpt does not know {name}; use a newer one, or restore with to="numpy"'
        )
    try:
        return _BUILDERS[name](fields)
    except RuntimeError as error:
        # torch's own checks: indices out of bounds, a gradient for integers.
        raise ValueError(str(error)) from error


def _template(value: object) -> LeafTemplate | None:
    if not isinstance(value, torch.Tensor):
        return None
    check_plain(value)
    # A sparse tensor is a container of its tensors.
    return None if value.layout in LAYOUTS else template(value)


ADAPTER: Final = Adapter(
    framework="torch",
    expand=_expand,
    build=_build,
    from_array=from_array,
    template=_template,
    describe=describe,
    blend=BLEND,
)
