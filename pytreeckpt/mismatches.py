"""One error for all differences between what is asked for and what a checkpoint has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from pytreeckpt.errors import StructureMismatchError
from pytreeckpt.paths import suggest

_SHOWN: Final = 20


def mismatch(
    headline: str,
    missing: Sequence[str],
    unexpected: Sequence[str],
    mismatched: Sequence[str],
    *,
    advice: str,
) -> StructureMismatchError:
    """The error, with what is there instead of what is missing. `advice`: what to do about either of the two."""
    lines = [headline]
    lines += [f"  missing     {path or 'the root'}{_suggest(path, unexpected)}" for path in missing[:_SHOWN]]
    lines += [f"  … and {len(missing) - _SHOWN} more missing"] if len(missing) > _SHOWN else []
    lines += [f"  unexpected  {path or 'the root'}" for path in unexpected[:_SHOWN]]
    lines += [f"  … and {len(unexpected) - _SHOWN} more unexpected"] if len(unexpected) > _SHOWN else []
    lines += [f"  mismatched  {line}" for line in mismatched[:_SHOWN]]
    lines += [f"  … and {len(mismatched) - _SHOWN} more mismatched"] if len(mismatched) > _SHOWN else []
    if missing or unexpected:
        lines.append(advice)
    return StructureMismatchError("\n".join(lines), missing=missing, unexpected=unexpected, mismatched=mismatched)


def _suggest(path: str, candidates: Sequence[str]) -> str:
    close = suggest(path, (candidate for candidate in candidates if candidate != path), count=1, cutoff=0.6)
    return f" (did you mean {close[0]}?)" if close else ""
