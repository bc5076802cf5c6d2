"""Reads the files of a request on stdin in a process with an audit hook, and prints what happened meanwhile.

A process of its own, because audit hooks cannot be taken away again.
"""

import json
import resource
import sys

from pytreeckpt import PytreeckptError
from pytreeckpt.interop.foreign import Check, ForeignTree
from pytreeckpt.interop.pickles import load_pickle
from pytreeckpt.interop.torch_files import is_torch, read_torch
from pytreeckpt.reading import BytesSource, read

FORBIDDEN = (
    *("import", "exec", "compile", "open", "pickle.", "marshal.", "os.", "subprocess.", "socket.", "ctypes."),
    *(
        "shutil.",
        "tempfile.",
        "glob.",
        "urllib.",
        "webbrowser.",
        "code.",
        "function.",
        "builtins.input",
        "builtins.breakpoint",
        "pty.",
        "sys.set",
    ),
    *("sys.addaudithook", "sys._current_frames", "gc.", "signal.", "winreg.", "mmap.", "fcntl.", "object."),
)
_ENCODINGS = ("raw-unicode-escape", "utf-32-le", "utf-32-be", "latin-1", "cp437", "utf-8")


def main() -> None:
    request = {name: bytes.fromhex(data) for name, data in json.load(sys.stdin).items()}
    for encoding in _ENCODINGS:
        # Python imports these when they are first used, whatever the file.
        b"\0\0\0\0".decode(encoding)
    events: list[str] = []
    watching = False

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if watching and event.startswith(FORBIDDEN):
            events.append(f"{event} {arguments!r:.100}")

    sys.addaudithook(hook)
    outcomes: dict[str, str] = {}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name, data in request.items():
        watching = True
        outcome = outcome_of(data)
        watching = False
        outcomes[name] = outcome
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    watching = True
    # What shows that the hook is there.
    compile("1", "control", "eval")
    watching = False
    json.dump({"outcomes": outcomes, "events": events, "grown_kib": grown}, sys.stdout)


def outcome_of(data: bytes) -> str:
    """What reading gives: the name of a type, or of an error."""
    source = BytesSource(memoryview(data))
    try:
        if is_torch(data[:64], source):
            return shown(read_torch(source))
        loaded = load_pickle(data)
    except PytreeckptError as error:
        return f"{type(error).__name__}: {error}"
    return getattr(getattr(loaded, "_type", None), "name", type(loaded).__name__)


def shown(found: ForeignTree) -> str:
    for check in found.checks:
        if isinstance(check, Check):
            read(check.source, 0, check.source.nbytes)
    return getattr(getattr(found.tree, "_type", None), "name", type(found.tree).__name__)


if __name__ == "__main__":
    main()
