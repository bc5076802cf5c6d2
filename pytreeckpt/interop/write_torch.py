"""Torch files, as `torch.save` writes them, without torch: a zip archive of a pickle and the storages that it names.

The layout is that of torch/serialization.py: `<name>/data.pkl`, `<name>/data/<number>` for each storage, aligned to 64
bytes so that it can be mapped, `byteorder` and `version`. Arrays are copied into the file as they are written, so that
no second copy of them is needed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any, Final

from pytreeckpt.commit import Durability, IfExists
from pytreeckpt.errors import UnsupportedTypeError
from pytreeckpt.interop.outgoing import OutgoingArray, outgoing, path_to, stored_pieces
from pytreeckpt.interop.pickle_writing import encode_pickle, most_nbytes, pickle_pieces
from pytreeckpt.interop.torch_pickling import TorchObjects
from pytreeckpt.interop.writing import PlannedFile, StrPath, WriteReport, check_options, publish_files
from pytreeckpt.interop.zip_writing import ZipMember, plan_zip
from pytreeckpt.storage import LocalStorage
from pytreeckpt.wire import Buffer

_ALIGNMENT: Final = 64
# One name for all, so that the same tree gives the same bytes.
_NAME: Final = "archive"


def write_torch(
    tree: object, path: StrPath, *, if_exists: IfExists = "replace", durability: Durability = "durable"
) -> WriteReport:
    """Write a tree to a file that `torch.load` reads.

    `tree`: what `save` takes, and references to arrays of open checkpoints; tensors, Parameters, sizes, dtypes and
    devices of torch come back as what they are, tied where they are tied, and so do numpy's arrays and scalars and
    Python's own containers (numpy turns big-endian arrays round when it reads a pickle). Arrays of JAX become tensors.
    Tensors are written as if they were on the CPU.
    `weights_only=True`, the default of `torch.load`, reads what it reads of `torch.save` too: tensors and plain values,
    and not numpy's arrays. `if_exists`, `durability`: as in `save`.
    Raises `UnsupportedTypeError` with the path of what is not written (instances of classes, other than those of the
    registry), and `LimitError`, before anything is written; `CheckpointExistsError`, and `StorageError`.
    """
    check_options(if_exists, durability)
    name = os.fsdecode(path)
    file = PlannedFile(name, plan_torch(tree))
    nbytes = publish_files(LocalStorage(), [file], if_exists=if_exists, durability=durability)
    return WriteReport((name,), nbytes)


def plan_torch(tree: object) -> Callable[[], Iterator[Buffer]]:
    """What gives the pieces of the file."""
    objects = TorchObjects()
    plain = outgoing(tree)

    def expand(value: Any) -> object:
        try:
            return objects.expand(value)
        except UnsupportedTypeError as error:
            raise UnsupportedTypeError(f"{path_to(plain, value)}: {error}") from None

    parts = encode_pickle(plain, expand)
    members = [
        ZipMember(f"{_NAME}/data.pkl", lambda: pickle_pieces(parts), most_nbytes(parts)),
        _small("byteorder", b"little"),
        *(_storage(number, array) for number, array in enumerate(objects.storages)),
        _small("version", b"3\n"),
    ]
    return plan_zip(members, alignment=_ALIGNMENT)


def _small(name: str, content: bytes) -> ZipMember:
    return ZipMember(f"{_NAME}/{name}", lambda: [content], len(content))


def _storage(number: int, array: OutgoingArray) -> ZipMember:
    return ZipMember(f"{_NAME}/data/{number}", lambda: stored_pieces(array, little_endian=True), array.nbytes)
