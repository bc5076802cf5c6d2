"""All that is wrong with a conversion, collected, and one error for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from pytreeckpt.errors import ConversionError

_SHOWN: Final = 40


@dataclass(slots=True)
class Problems:
    """`unused`: leaves of the source that go nowhere; `missing`: leaves of the target that nothing comes to; both with
    what is known about why. `ambiguous`: what admits more than one result; `mismatched`: what does not fit.
    """

    unused: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    ambiguous: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return any((self.unused, self.missing, self.ambiguous, self.mismatched))

    def __str__(self) -> str:
        return "\n".join(
            section
            for title, lines in (
                ("ambiguous", self.ambiguous),
                ("mismatched", self.mismatched),
                ("unused, of the source", self.unused),
                ("missing, of the target", self.missing),
            )
            if (section := _section(title, lines))
        )

    def raise_any(self) -> None:
        """Raise `ConversionError` if anything is wrong."""
        if not self:
            return
        raise ConversionError(
            f"the conversion is not decided:\n{self}\n  "
            "declare what is meant with rules=; Waive(unused=…) and Waive(missing=…) let leaves pass that are meant to "
            "be left over",
            missing=self.missing,
            unexpected=self.unused,
            mismatched=self.mismatched,
            ambiguous=self.ambiguous,
        )


def _section(title: str, lines: Sequence[str]) -> str:
    if not lines:
        return ""
    more = [f"and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
    return f"  {title} ({len(lines)}):\n" + "\n".join(f"    {line}" for line in [*lines[:_SHOWN], *more])
