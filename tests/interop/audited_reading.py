"""Reads the files of a request on stdin in a process with an audit hook, and prints what happened meanwhile.

A process of its own, because audit hooks cannot be taken away again. A request maps names to files, as hex, which are
pickles or torch's; to `{"file": hex}`, of any format; or to `{"folder": path}`, in which files may be opened to be read.
"""

import json
import os
import resource
import sys

from pytreeckpt import PytreeckptError
from pytreeckpt.interop.contents import folder_content, foreign_content
from pytreeckpt.interop.foreign import Check, ForeignTree
from pytreeckpt.interop.pickles import load_pickle
from pytreeckpt.interop.torch_files import read_torch
from pytreeckpt.limits import current_limits
from pytreeckpt.reading import BytesSource, read
from tests.interop.sources import is_torch

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
_READING = ("open", "os.listdir", "os.scandir")
_ENCODINGS = ("raw-unicode-escape", "utf-32-le", "utf-32-be", "latin-1", "cp437", "utf-8")


def main() -> None:
    request = json.load(sys.stdin)
    for encoding in _ENCODINGS:
        # Python imports these when they are first used, whatever the file.
        b"\0\0\0\0".decode(encoding)
    for name, wanted in request.items():
        if name.startswith("good "):
            # What readers import when they are first used, whatever the file.
            outcome_of(wanted)
    events: list[str] = []
    watching = False
    folder: str | None = None

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if watching and event.startswith(FORBIDDEN) and not is_within(folder, event, arguments):
            events.append(f"{event} {arguments!r:.100}")

    sys.addaudithook(hook)
    outcomes: dict[str, str] = {}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name, wanted in request.items():
        folder = wanted.get("folder") if isinstance(wanted, dict) else None
        watching = True
        outcome = outcome_of(wanted)
        watching = False
        outcomes[name] = outcome
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    watching = True
    # What shows that the hook is there.
    compile("1", "control", "eval")
    watching = False
    json.dump({"outcomes": outcomes, "events": events, "grown_kib": grown}, sys.stdout)


def is_within(folder: str | None, event: str, arguments: tuple[object, ...]) -> bool:
    """Whether an event is the reading of something in the folder that is being read."""
    if folder is None or event not in _READING or not isinstance(arguments[0], str):
        return False
    writing = event == "open" and bool(int(str(arguments[2])) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
    path = os.path.realpath(arguments[0])
    return not writing and (path == folder or path.startswith(folder + os.sep))


def outcome_of(wanted: str | dict[str, str]) -> str:
    """What reading gives: the name of a type, or of an error."""
    if isinstance(wanted, dict):
        return outcome_of_any(wanted)
    data = bytes.fromhex(wanted)
    source = BytesSource(memoryview(data))
    try:
        if is_torch(data):
            return shown(read_torch(source))
        loaded = load_pickle(data)
    except PytreeckptError as error:
        return f"{type(error).__name__}: {error}"
    return getattr(getattr(loaded, "_type", None), "name", type(loaded).__name__)


def outcome_of_any(wanted: dict[str, str]) -> str:
    """What opening a file or folder of any format gives, and reading all of its arrays."""
    try:
        if "folder" in wanted:
            content = folder_content(wanted["folder"], current_limits())
        else:
            content = foreign_content(BytesSource(memoryview(bytes.fromhex(wanted["file"]))), current_limits())
        try:
            content.reader.arrays(range(len(content.index.arrays)))
        finally:
            content.close()
    except PytreeckptError as error:
        return f"{type(error).__name__}: {error}"
    return content.format


def shown(found: ForeignTree) -> str:
    for check in found.checks:
        if isinstance(check, Check):
            read(check.source, 0, check.source.nbytes)
    return getattr(getattr(found.tree, "_type", None), "name", type(found.tree).__name__)


if __name__ == "__main__":
    main()
