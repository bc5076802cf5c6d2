"""Readers of all formats, watched: whatever a file or folder says, nothing is imported, run, or opened beside it."""

import io
import os
import random
import shutil
import zipfile

import numpy as np
import pytest

from tests.interop import audited_reading, hostile_pickles
from tests.interop.foreign_files import FILES, FOLDERS
from tests.interop.sources import damaged
from tests.interop.test_hostile_pickles import audited

N_DAMAGED = 25


def npz(pickle):
    """An npz of an array of Python objects, whose pickle this is."""
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,)}\n"
    member = b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header + pickle
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.npy", member)
    return file.getvalue()


@pytest.fixture(scope="module")
def attacks():
    """Some of each form of attack."""
    found = hostile_pickles.attacks()
    some = dict(list(found.items())[::25])
    assert len(some) > 80
    return some


def of_file(data):
    return {"file": data.hex()}


def of_folder(path):
    return {"folder": str(path.resolve())}


def check(request):
    """Nothing happened; gives the outcomes."""
    found = audited(request)
    # The one event is that which shows that the hook works.
    assert [event.split()[0] for event in found["events"]] == ["compile"]
    assert found["outcomes"].keys() == request.keys()
    return found["outcomes"]


def test_no_file_of_any_format_makes_its_reader_do_anything_else(tmp_path, attacks):
    request = {}
    for name, write in FILES.items():
        write(tmp_path / "x")
        data = (tmp_path / "x").read_bytes()
        request[f"good {name}"] = of_file(data)
        request |= {f"{name} {seed}": of_file(damaged(data, random.Random(seed))) for seed in range(N_DAMAGED)}
    file = io.BytesIO()
    np.save(file, np.array([{"a": 1}], dtype=object))
    request["good npy"] = of_file(file.getvalue())
    request |= {f"npz of {name}": of_file(npz(data)) for name, data in attacks.items()}
    outcomes = check(request)
    assert {outcomes[f"good {name}"] for name in FILES} == set(FILES)
    assert outcomes["good npy"] == "npy"
    assert sum(outcomes[f"npz of {name}"] == "npz" for name in attacks) > 40


def test_no_folder_of_any_format_makes_its_reader_do_anything_else(tmp_path, attacks):
    request = {}
    for name, write in FOLDERS.items():
        good = tmp_path / name
        write(good)
        request[f"good {name}"] = of_folder(good)
        files = sorted(path.relative_to(good) for path in good.rglob("*") if path.is_file())
        assert files
        for seed in range(N_DAMAGED):
            rng = random.Random(seed)
            broken = tmp_path / f"{name} {seed}"
            shutil.copytree(good, broken)
            file = broken / rng.choice(files)
            file.write_bytes(damaged(file.read_bytes(), rng))
            request[broken.name] = of_folder(broken)
    for number, (name, data) in enumerate(attacks.items()):
        path = tmp_path / f"attack {number}"
        path.mkdir()
        (path / ".metadata").write_bytes(data)
        request[f"metadata of {name}"] = of_folder(path)
    outcomes = check(request)
    assert {outcomes[f"good {name}"] for name in FOLDERS} == set(FOLDERS)
    assert all("Error: " in outcomes[f"metadata of {name}"] for name in attacks)


def test_only_reading_within_the_folder_is_let_through(tmp_path):
    folder = str((tmp_path / "x").resolve())

    def is_within(event, path, flags=os.O_RDONLY | os.O_CLOEXEC):
        return audited_reading.is_within(folder, event, (path, None, flags))

    assert is_within("open", f"{folder}/y/z")
    assert is_within("os.scandir", folder)
    for event, path, *flags in [
        ("open", f"{folder}-2/y"),
        ("open", f"{folder}/../y"),
        ("open", f"{folder}/y", os.O_WRONLY),
        ("open", f"{folder}/y", os.O_RDONLY | os.O_CREAT),
        ("os.remove", f"{folder}/y"),
        ("open", 5),
    ]:
        assert not is_within(event, path, *flags)
    assert not audited_reading.is_within(None, "open", (f"{folder}/y", None, os.O_RDONLY))
