"""The errors: each derives from `PytreeckptError` and from the builtin that a person already catches.

An error says what is wrong, where, and what to do. Errors about a file carry the number of the rule of
spec/format-v1.md that it breaks in `rule`.
"""

from __future__ import annotations

from collections.abc import Sequence


class PytreeckptError(Exception):
    """Base of every error that pytreeckpt raises on purpose."""

    def __str__(self) -> str:
        # KeyError and OSError would print a repr or an errno; the message is a sentence.
        return str(self.args[0]) if self.args else type(self).__name__


class CheckpointNotFoundError(PytreeckptError, FileNotFoundError):
    """There is no checkpoint at this path."""


class CheckpointExistsError(PytreeckptError, FileExistsError):
    """`if_exists="error"` was asked for and the path exists."""


class CorruptionError(PytreeckptError, ValueError):
    """The bytes break a rule of the format: the file is damaged, torn, or was never a checkpoint.

    `rule` is the number of the broken rule. If the damage is in a leaf: `leaf` is the text of its path, `chunk` the
    number of its damaged chunk, and `offset` the place of that chunk in the file, in bytes. `file` is the name of the
    data file that the damage is in, if it is in one.
    """

    def __init__(
        self,
        message: str,
        *,
        rule: str,
        leaf: str | None = None,
        chunk: int | None = None,
        offset: int | None = None,
        file: str | None = None,
    ) -> None:
        super().__init__(message)
        self.rule = rule
        self.leaf = leaf
        self.chunk = chunk
        self.offset = offset
        self.file = file

    def __reduce__(self) -> tuple[object, ...]:
        place = {"rule": self.rule, "leaf": self.leaf, "chunk": self.chunk, "offset": self.offset}
        place["file"] = self.file
        return _rebuild, (type(self), self.args[0], place)


class NotACheckpointError(CorruptionError):
    """The file does not begin with the magic of a pytreeckpt file."""


class FormatVersionError(PytreeckptError, ValueError):
    """The file is not damaged, but uses a version, feature, codec or dtype that this reader does not know."""

    def __init__(self, message: str, *, rule: str) -> None:
        super().__init__(message)
        self.rule = rule

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.args[0], {"rule": self.rule})


class LimitError(PytreeckptError, ValueError):
    """A tree or file is beyond one of the `Limits`; the message says how to raise it."""


class UnsupportedTypeError(PytreeckptError, TypeError):
    """A tree holds something that cannot be stored, or an array that the asked-for framework cannot hold."""


class StructureMismatchError(PytreeckptError, ValueError):
    """A checkpoint does not have the structure that was asked for.

    `missing`: paths that the template has and the checkpoint has not. `unexpected`: the reverse.
    `mismatched`: a line per leaf of both whose shape, dtype or type differs.
    """

    def __init__(
        self,
        message: str,
        *,
        missing: Sequence[str] = (),
        unexpected: Sequence[str] = (),
        mismatched: Sequence[str] = (),
    ) -> None:
        super().__init__(message)
        self.missing = tuple(missing)
        self.unexpected = tuple(unexpected)
        self.mismatched = tuple(mismatched)

    def __reduce__(self) -> tuple[object, ...]:
        lists = {"missing": self.missing, "unexpected": self.unexpected, "mismatched": self.mismatched}
        return _rebuild, (type(self), self.args[0], lists)


class ConversionError(StructureMismatchError):
    """A conversion is not decided, or does not fit.

    `unexpected`: leaves of the source that go nowhere; `missing`: leaves of the target that nothing comes to;
    `mismatched`: what does not fit; `ambiguous`: what admits more than one result, with the candidates.
    """

    def __init__(
        self,
        message: str,
        *,
        missing: Sequence[str] = (),
        unexpected: Sequence[str] = (),
        mismatched: Sequence[str] = (),
        ambiguous: Sequence[str] = (),
    ) -> None:
        super().__init__(message, missing=missing, unexpected=unexpected, mismatched=mismatched)
        self.ambiguous = tuple(ambiguous)

    @property
    def unused(self) -> tuple[str, ...]:
        """The same as `unexpected`."""
        return self.unexpected

    def __reduce__(self) -> tuple[object, ...]:
        lists = {
            "missing": self.missing,
            "unexpected": self.unexpected,
            "mismatched": self.mismatched,
            "ambiguous": self.ambiguous,
        }
        return _rebuild, (type(self), self.args[0], lists)


class PathError(PytreeckptError, KeyError):
    """A path text cannot be parsed, or the checkpoint has nothing at that path."""


class NotMappableError(PytreeckptError, ValueError):
    """`mmap=True` was asked for, and an array is stored in a form that cannot be mapped."""


class StorageError(PytreeckptError, OSError):
    """The file system refused an operation; nothing was published, and the earlier checkpoint is intact."""


class ConcurrentWriterError(StorageError):
    """Another writer, in this process or in another, is at work in this folder."""


class NotDurableError(StorageError):
    """The checkpoint was published, but a later sync failed: whether it survives a power cut is unknown."""


def _rebuild(cls: type[PytreeckptError], message: str, attributes: dict[str, object]) -> PytreeckptError:
    return cls(message, **attributes)
