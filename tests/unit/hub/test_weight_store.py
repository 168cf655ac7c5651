"""The store of weights: one download for all who ask, and a record of what each file is."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from isohub.errors import FetchError, HashMismatchError
from isohub.hub import weight_store
from isohub.hub.partial import Downloaded
from isohub.hub.weight_store import WeightStore
from isohub.hub.weights import fetch_weights, load_state_dict_from_url
from tests.helpers.fileserver import FileServer
from tests.helpers.state_dicts import ONE, TWO, sha256, value_of
from tests.helpers.waiting import until

pytestmark = pytest.mark.usefixtures("hurry")


# ------------------------------------------------------------------------------------------ the store


def test_record_tells_what_it_is(server: FileServer) -> None:
    """Each file has a record beside it, and knows who asked for it; it is read-only."""
    url = f"http://ada:secret@{server.netloc}/model.pth"
    server.put("/model.pth", ONE)

    path = fetch_weights(url, repo="ada/models")
    fetch_weights(url, repo="eve/net")
    fetch_weights(url, repo="ada/models")

    record = json.loads((path.parent / "isohub.json").read_text())
    assert record.pop("fetched_at").endswith("+00:00")
    assert record == {
        "url": f"http://{server.netloc}/model.pth",
        "url_sha256": sha256(url.encode()),
        "sha256": sha256(ONE),
        "size_bytes": len(ONE),
        "file": "model.pth",
        "places": {},
        "repos": ["ada/models", "eve/net"],
        "mtime_ns": path.stat().st_mtime_ns,
    }
    assert not path.stat().st_mode & 0o222
    assert path.stat().st_mode & stat.S_IRUSR
    [listed] = WeightStore().all()
    assert listed.path() == path
    assert WeightStore().is_intact(listed)
    WeightStore().remove(listed)
    assert WeightStore().all() == []
    assert not path.exists()


def test_damage_is_noticed(server: FileServer) -> None:
    """A file that was cut short or changed is found by verifying, and brought again."""
    url = server.put("/model.pth", ONE)
    path = fetch_weights(url)

    for number, damaged in enumerate([b"x" * len(ONE), ONE[:-1]], 2):
        path.chmod(0o644)
        path.write_bytes(damaged)
        [record] = WeightStore().all()
        assert not WeightStore().is_intact(record)
        assert fetch_weights(url).read_bytes() == ONE
        assert len(server.requests) == number
    fetch_weights(url)
    assert len(server.requests) == 3


def test_copied_file_is_sound(server: FileServer) -> None:
    """A file with another time of change, as a copy of the store has, is used as it is; its record gets that time."""
    path = fetch_weights(server.put("/model.pth", ONE))
    os.utime(path, ns=(5, 5))

    assert fetch_weights(f"http://{server.netloc}/model.pth") == path

    [record] = WeightStore().all()
    assert (record.mtime_ns, len(server.requests)) == (5, 1)


def test_store_that_may_only_be_read(server: FileServer) -> None:
    """What is there is served from a store where nothing can be written, not even a lock."""
    url = server.put("/model.pth", ONE)
    path = fetch_weights(url)
    locks = WeightStore().root / "locks"
    for lock in locks.iterdir():
        lock.unlink()
    locks.rmdir()
    locks.write_text("no folder")  # permissions would not stop root

    assert path == fetch_weights(url, repo="ada/models")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"url": "x"}', "null"])
def test_damaged_record_costs_a_download(server: FileServer, text: str) -> None:
    """A record that cannot be read is as none."""
    url = server.put("/model.pth", ONE)
    (fetch_weights(url).parent / "isohub.json").write_text(text)

    assert fetch_weights(url).read_bytes() == ONE


def test_file_url_is_read_where_it_is(tmp_path: Path) -> None:
    """A `file:` URL is loaded as it is on the disk now, and copied only into a `model_dir`."""
    source = tmp_path / f"model-{sha256(ONE)[:8]}.pth"
    source.write_bytes(ONE)

    assert fetch_weights(source.as_uri(), check_hash=True) == source
    assert value_of(load_state_dict_from_url(source.as_uri(), tmp_path / "models")) == 1.0
    assert (tmp_path / "models" / source.name).read_bytes() == ONE
    source.write_bytes(TWO)
    assert value_of(load_state_dict_from_url(source.as_uri())) == 2.0
    with pytest.raises(HashMismatchError):
        fetch_weights(source.as_uri(), check_hash=True)
    with pytest.raises(FetchError, match="no file"):
        fetch_weights((tmp_path / "none").as_uri())


# ------------------------------------------------------------------------------------------ many at once

SCRIPT = """
import sys
from concurrent.futures import ThreadPoolExecutor
from isohub.hub.weights import fetch_weights
with ThreadPoolExecutor(4) as pool:
    paths = set(pool.map(lambda _: str(fetch_weights(sys.argv[1], progress=False)), range(4)))
assert "torch" not in sys.modules
print(*paths)
"""


def test_one_download_for_all(server: FileServer) -> None:
    """Threads and processes that ask for one URL at once all get it, by one download."""
    url = server.put("/model.pth", ONE, cuts=[100])

    start = [sys.executable, "-c", SCRIPT, url]
    processes = [subprocess.Popen(start, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    paths = {process.communicate()[0].strip() for process in processes}

    assert {0} == {process.returncode for process in processes}
    assert {str(fetch_weights(url))} == paths
    assert server.ranges() == [None, "bytes=100-"]


def test_killed_download_is_gone_on_with(server: FileServer) -> None:
    """When the process that downloads is killed, another that waits for it brings the rest."""
    gate = threading.Event()
    body = os.urandom(1 << 20)
    url = server.put("/model.pth", body, gate=gate)
    first = subprocess.Popen([sys.executable, "-c", SCRIPT, url], stdout=subprocess.DEVNULL)
    assert server.files["/model.pth"].half_sent.wait(30)
    second = subprocess.Popen([sys.executable, "-c", SCRIPT, url], stdout=subprocess.DEVNULL)
    until(lambda: any(path.stat().st_size for path in WeightStore().partials()))
    server.files["/model.pth"].gate = None
    first.send_signal(signal.SIGKILL)
    first.wait()
    gate.set()

    assert second.wait(60) == 0
    assert body == fetch_weights(url).read_bytes()
    assert len(server.requests) == 2
    assert server.ranges()[1] is not None
    assert WeightStore().partials() == []


def test_broken_download_is_gone_on_with(server: FileServer) -> None:
    """After an error the next call goes on where the last one broke off."""
    url = server.put("/model.pth", ONE, cuts=[500, *[0] * 20])
    with pytest.raises(FetchError):
        fetch_weights(url)
    server.requests.clear()
    server.put("/model.pth", ONE)

    assert fetch_weights(url).read_bytes() == ONE
    assert server.ranges() == ["bytes=500-"]


def test_name_is_never_taken_from_a_file(tmp_path: Path) -> None:
    """A file that appeared at the last moment keeps its name."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(ONE)

    assert weight_store._link(source, target)
    source.write_bytes(TWO)
    target.unlink()
    target.write_bytes(ONE)
    assert not weight_store._link(source, target)
    assert target.read_bytes() == ONE


def test_files_written_at_once_are_told_apart(tmp_path: Path) -> None:
    """Two files of one size and of one tick of the clock are not taken for each other."""
    times = []
    for number in range(20):
        path = tmp_path / str(number)
        path.write_bytes(ONE)
        os.utime(path, ns=(10**18, 10**18))
        times.append(weight_store._mark(path))

    assert len(set(times)) == 20
    assert {time // 10**9 for time in times} == {10**9}


def test_name_that_is_lost_in_a_race_is_not_recorded(server: FileServer, tmp_path: Path) -> None:
    """Whose name was taken at the last moment does not take the other's file for its own, however alike."""
    url = server.put("/model.pth", ONE)
    store = WeightStore()
    place = tmp_path / "model.pth"
    got = Downloaded(sha256(ONE), len(ONE))
    place.write_bytes(TWO)
    mtime_ns = place.stat().st_mtime_ns

    store._write(url, got, place=place, mtime_ns=mtime_ns)
    record = store._write(url, got, place=tmp_path / "other.pth", mtime_ns=mtime_ns, not_at=place)

    assert record.places == {str(tmp_path / "other.pth"): mtime_ns}
