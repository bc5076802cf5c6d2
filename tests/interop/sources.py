"""Files and folders in memory, for the readers of foreign formats."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pytreeckpt import CheckpointNotFoundError, PytreeckptError
from pytreeckpt.interop.archives import members
from pytreeckpt.interop.torch_files import is_old_torch, is_torch_archive
from pytreeckpt.reading import BytesSource


def source(data: bytes) -> BytesSource:
    return BytesSource(memoryview(data))


def is_torch(data: bytes) -> bool:
    """Whether a file is one of torch's, new or old."""
    if data.startswith(b"PK\x03\x04"):
        try:
            return is_torch_archive(members(source(data)))
        except PytreeckptError:
            return False
    return is_old_torch(source(data))


@dataclass(frozen=True)
class MemoryFolder:
    """A folder of files in memory."""

    files: Mapping[str, bytes]

    def names(self) -> Sequence[str]:
        return sorted(self.files)

    def open(self, name: str) -> BytesSource:
        if name not in self.files:
            raise CheckpointNotFoundError(f"there is no {name}")
        return source(self.files[name])


def damaged(data: bytes, rng: random.Random) -> bytes:
    """The bytes with a few of them changed, dropped, doubled or cut off, most of them near the beginning."""
    found = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        at = min(int(rng.expovariate(4 / (len(found) + 1))), max(len(found) - 1, 0))
        match rng.randrange(6):
            case 0 | 1 if found:
                found[at] ^= 1 << rng.randrange(8)
            case 2 if found:
                found[at] = rng.choice(b"\x00\x01\x7f\x80\xff\xdf\xdd\xc9{}[]0,9-")
            case 3:
                found[at:at] = found[at : at + rng.randint(1, 9)]
            case 4:
                del found[at : at + rng.randint(1, 9)]
            case _:
                del found[rng.randint(0, len(found)) :]
    return bytes(found)
