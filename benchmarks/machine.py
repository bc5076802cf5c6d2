"""What a run was measured on, without anything that tells whose machine it is."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any


def describe(folder: Path, distributions: Iterable[str]) -> dict[str, Any]:
    """Processor, cores, memory, kernel, the file system under `folder`, Python, and versions of packages."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        # Not what a vendor calls its build.
        "kernel": f"{platform.system()} {'.'.join(platform.release().split('.')[:2])}",
        "file_system": file_system(folder),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in sorted(set(distributions)) if _is_there(name)},
    }


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def file_system(folder: Path) -> str:
    """The type of the file system that a folder is on, such as ext4."""
    real = folder.resolve()
    depth, found = -1, "unknown"
    with suppress(OSError):
        for line in Path("/proc/self/mounts").read_text().splitlines():
            _, place, kind, *_ = line.split()
            # Spaces are written as octal escapes in there.
            mounted = Path(place.replace("\\040", " "))
            # A later line covers an earlier one for the same place.
            if real.is_relative_to(mounted) and len(mounted.parts) >= depth:
                depth, found = len(mounted.parts), kind
    return found


def _is_there(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
