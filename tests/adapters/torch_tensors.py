"""Drawn tensors of every dtype, layout and class, and a comparison that knows nothing of the adapter."""

import math

import torch
from hypothesis import strategies as st

PLAIN = [
    *(torch.bool, torch.uint8, torch.int8, torch.uint16, torch.int16, torch.uint32, torch.int32),
    *(torch.uint64, torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.complex32, torch.complex64, torch.complex128),
    *(torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz, torch.float8_e8m0fnu),
]
PACKED = [
    *(torch.float4_e2m1fn_x2, torch.bits8, torch.bits16, torch.bits1x8, torch.bits2x4, torch.bits4x2),
    *(getattr(torch, f"{sign}int{width}") for sign in ("u", "") for width in range(1, 8)),
]
WITH_GRADIENT = [dtype for dtype in PLAIN if dtype.is_floating_point or dtype.is_complex]
_HALF = {4: torch.int16, 8: torch.int32, 16: torch.int64}
_BYTES_AS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.complex128}


def from_bytes(raw: bytes, dtype: torch.dtype) -> torch.Tensor:
    """A 1-d tensor of these bytes, which torch's own constructors cannot make of every dtype."""
    return torch.tensor(list(raw), dtype=torch.uint8).view(dtype)


def bits(tensor: torch.Tensor) -> bytes:
    """The items in C order, as bytes."""
    plain = tensor.detach()
    if plain.is_conj():
        items = _carried(plain.conj()).view(_HALF[plain.dtype.itemsize]).reshape(-1, 2)
        items[:, 1] ^= torch.iinfo(items.dtype).min
    else:
        items = _carried(plain.resolve_neg())
    return bytes(items.view(torch.uint8).reshape(-1).tolist())


def _carried(tensor):
    # Of complex32 torch warns.
    return tensor.view(_BYTES_AS[tensor.dtype.itemsize]).clone(memory_format=torch.contiguous_format).reshape(-1)


def is_dense(tensor: torch.Tensor) -> bool:
    """Whether the memory has neither gaps nor overlaps."""
    reached = sorted(
        (stride, extent) for stride, extent in zip(tensor.stride(), tensor.shape, strict=True) if extent > 1
    )
    expected = 1
    for stride, extent in reached:
        if stride != expected:
            return False
        expected *= extent
    return tensor.numel() > 0


def differences(a: object, b: object) -> list[str]:
    """What is not the same in two tensors, by torch alone; in other objects, by their equality."""
    if not isinstance(a, torch.Tensor) or not isinstance(b, torch.Tensor):
        return [] if type(a) is type(b) and a == b else [f"{a!r} and {b!r}"]
    if a.layout is not torch.strided:
        return _sparse_differences(a, b)
    facts = {
        "class": (type(a), type(b)),
        "buffer": [(isinstance(t, torch.nn.Buffer), getattr(t, "persistent", None)) for t in (a, b)],
        "dtype": (a.dtype, b.dtype),
        "shape": (a.shape, b.shape),
        "requires_grad": (a.requires_grad, b.requires_grad),
        "bits": (bits(a), bits(b)),
    }
    if is_dense(a):
        # Of an axis of extent 1 any stride is right.
        facts["strides"] = [
            [stride for stride, extent in zip(t.stride(), t.shape, strict=True) if extent > 1] for t in (a, b)
        ]
    return [f"{name}: {x} and {y}" for name, (x, y) in facts.items() if x != y]


def _sparse_differences(a: torch.Tensor, b: torch.Tensor) -> list[str]:
    facts = [
        (t.layout, t.dtype, t.shape, t.requires_grad, t.layout is torch.sparse_coo and t.is_coalesced()) for t in (a, b)
    ]
    if facts[0] != facts[1]:
        return [f"{facts[0]} and {facts[1]}"]
    parts = zip(sparse_parts(a), sparse_parts(b), strict=True)
    return [line for part_a, part_b in parts for line in differences(part_a, part_b)]


def sparse_parts(tensor: torch.Tensor) -> list[torch.Tensor]:
    """Indices and values."""
    plain = tensor.detach()
    if plain.layout is torch.sparse_coo:
        return [plain._indices(), plain._values()]
    if plain.layout in {torch.sparse_csr, torch.sparse_bsr}:
        return [plain.crow_indices(), plain.col_indices(), plain.values()]
    return [plain.ccol_indices(), plain.row_indices(), plain.values()]


@st.composite
def _strided(draw, dtypes):
    dtype = draw(st.sampled_from(dtypes))
    shape = draw(st.lists(st.integers(0, 4), max_size=4))
    gaps = draw(st.booleans())
    nbytes = math.prod(shape) * (1 + gaps) * dtype.itemsize
    items = from_bytes(draw(st.binary(min_size=nbytes, max_size=nbytes)), dtype)
    tensor = items.view(*shape, 2)[..., draw(st.integers(0, 1))] if gaps else items.view(shape)
    return tensor.permute(draw(st.permutations(range(tensor.ndim))))


_VIEWS = st.sampled_from(["plain", "plain", "expanded", "conjugated", "imaginary"])
_ROLES = st.sampled_from(["tensor", "parameter", "buffer", "transient buffer"])


def tensors(dtypes=(*PLAIN, *PACKED)):
    """Strided tensors of any bits: dense in any order of their axes, with gaps, at offsets, expanded, conjugated."""
    return st.builds(_dressed, _strided(dtypes), _VIEWS, _ROLES, st.booleans())


def _dressed(tensor, view, role, requires_grad):
    if view == "expanded":
        tensor = tensor.unsqueeze(0).expand(2, *tensor.shape)
    elif view != "plain" and tensor.dtype.is_complex:
        tensor = tensor.conj() if view == "conjugated" or tensor.dtype is torch.complex32 else tensor.conj().imag
    requires_grad = requires_grad and tensor.dtype in WITH_GRADIENT
    if role == "parameter":
        return torch.nn.Parameter(tensor, requires_grad=requires_grad)
    if "buffer" in role and tensor.dtype in PLAIN:
        return torch.nn.Buffer(tensor.requires_grad_(requires_grad), persistent=role == "buffer")
    return tensor.requires_grad_(requires_grad)
