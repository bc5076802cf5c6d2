"""How much memory this process may use: that of the machine, or less if its control group has less.

Control groups as of cgroups(7), and of "Control Group v2" and "Memory Resource Controller" in the documentation of
Linux.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path, PurePosixPath

_FALLBACK_NBYTES = 8 << 30


@cache
def usable_nbytes() -> int:
    """Bytes of memory; 8 GiB where the system does not tell."""
    found = [*_physical(), *control_group_limits(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))]
    return min(found, default=_FALLBACK_NBYTES)


def _physical() -> Iterator[int]:
    try:
        yield os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return


def control_group_limits(membership: Path, mounted: Path) -> Iterator[int]:
    """The limits of the control groups that `membership` names, and of those that they are in, below `mounted`."""
    try:
        lines = membership.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if controllers == "":
            root, name = mounted, "memory.max"
        elif "memory" in controllers.split(","):
            root, name = mounted / "memory", "memory.limit_in_bytes"
        else:
            continue
        # In a container the path may be that on the host, while what is mounted begins at its own group.
        for place in (PurePosixPath(group), *PurePosixPath(group).parents):
            if ".." in place.parts:
                continue
            limit = _number(root / str(place).lstrip("/") / name)
            if limit is not None:
                yield limit


def _number(path: Path) -> int | None:
    try:
        text = path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return None
    # "max" in the second version; in the first a number larger than any memory.
    return int(text) if text.isdecimal() and len(text) < 20 else None
