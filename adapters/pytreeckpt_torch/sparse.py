"""Sparse tensors, as the tensors that they are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import torch

from pytreeckpt import ClassKind, Expansion, ObjectType, UnsupportedTypeError

SPARSE_TENSOR: Final = ObjectType(
    ClassKind.RECORD,
    "torch.SparseTensor",
    ("values", "indices", "layout", "shape", "coalesced", "requires_grad"),
)
_COMPRESSED: Final[Mapping[str, torch.layout]] = {
    "sparse_csr": torch.sparse_csr,
    "sparse_csc": torch.sparse_csc,
    "sparse_bsr": torch.sparse_bsr,
    "sparse_bsc": torch.sparse_bsc,
}
_COLUMNS_FIRST: Final = frozenset([torch.sparse_csc, torch.sparse_bsc])
LAYOUTS: Final = frozenset([torch.sparse_coo, *_COMPRESSED.values()])


def expand_sparse(tensor: torch.Tensor) -> Expansion:
    """The fields of a sparse tensor; duplicates and order of a COO tensor that is not coalesced are kept."""
    if type(tensor) is not torch.Tensor or isinstance(tensor, torch.nn.Buffer):
        raise UnsupportedTypeError("a sparse Parameter or Buffer cannot be stored; store its .data")
    plain = tensor.detach()
    indices: tuple[torch.Tensor, ...]
    if plain.layout is torch.sparse_coo:
        # Their public namesakes refuse a tensor that is not coalesced.
        indices, values = (plain._indices(),), plain._values()  # noqa: SLF001
    elif plain.layout in _COLUMNS_FIRST:
        indices, values = (plain.ccol_indices(), plain.row_indices()), plain.values()
    else:
        indices, values = (plain.crow_indices(), plain.col_indices()), plain.values()
    coalesced = plain.layout is torch.sparse_coo and plain.is_coalesced()
    layout = str(plain.layout).removeprefix("torch.")
    children = [values, indices, layout, tuple(plain.shape), coalesced, tensor.requires_grad]
    return Expansion(SPARSE_TENSOR, children, _rebuild)


def _rebuild(values: Sequence[object]) -> torch.Tensor:
    return build_sparse(dict(zip(SPARSE_TENSOR.fields, values, strict=True)))


def build_sparse(fields: Mapping[str, object]) -> torch.Tensor:
    """A sparse tensor over the tensors of its fields. torch checks that every index is within the shape.

    Raises `TypeError` or `ValueError` for what makes none.
    """
    match fields:
        case {
            "values": torch.Tensor() as values,
            "indices": (torch.Tensor() as indices,),
            "layout": "sparse_coo",
            "shape": tuple(shape),
            "coalesced": bool(coalesced),
            "requires_grad": bool(requires_grad),
        }:
            tensor = torch.sparse_coo_tensor(
                indices, values, shape, is_coalesced=coalesced, check_invariants=True, device=values.device
            )
        case {
            "values": torch.Tensor() as values,
            "indices": (torch.Tensor() as compressed, torch.Tensor() as plain),
            "layout": str(name),
            "shape": tuple(shape),
            "coalesced": False,
            "requires_grad": bool(requires_grad),
        } if name in _COMPRESSED:
            tensor = torch.sparse_compressed_tensor(
                compressed, plain, values, shape, layout=_COMPRESSED[name], check_invariants=True, device=values.device
            )
        case _:
            raise TypeError("the fields have other types, or the layout is unknown")
    return tensor.requires_grad_(requires_grad)
