"""The cache: checkouts are whole or not there, whoever is killed and whatever is edited."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from isohub.errors import FetchError
from isohub.hub import scratch, tree
from isohub.hub.cache import Cache, hub_dir
from isohub.hub.checkout import Resolved
from isohub.refs import RepoRef
from tests.helpers.checkouts import COMMIT, RESOLVED, must_not_fetch, put_files, unfinished

# ------------------------------------------------------------------------------------------ the hub folder


def test_hub_dir_is_that_of_torch_hub() -> None:
    """`hub_dir` gives what `torch.hub.get_dir` gives, for every way of setting it, and imports no torch."""
    script = """
import os, sys
from isohub.hub.cache import hub_dir
settings = [
    {}, {"TORCH_HOME": "/a"}, {"XDG_CACHE_HOME": "/b"}, {"TORCH_HOME": "~/c", "XDG_CACHE_HOME": "/b"},
    {"TORCH_HOME": "rel"}, {"TORCH_HOME": ""}, {"XDG_CACHE_HOME": ""}, {"XDG_CACHE_HOME": "~"},
]
def use(setting):
    for name in ("TORCH_HOME", "XDG_CACHE_HOME"):
        os.environ.pop(name, None)
    os.environ.update(setting)
ours = [use(setting) or str(hub_dir()) for setting in settings]
assert "torch" not in sys.modules
import torch.hub
theirs = [use(setting) or torch.hub.get_dir() for setting in settings]
assert ours == theirs, (ours, theirs)
torch.hub.set_dir("~/set")
assert str(hub_dir()) == torch.hub.get_dir() == os.path.expanduser("~/set")
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_default_root_is_in_the_hub_folder(hub_home: Path) -> None:
    """Without a root the cache is `isohub` in the hub folder."""
    assert Cache().root == hub_home / "hub" / "isohub"


def test_a_folder_set_in_torch_hub_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`torch.hub.set_dir` goes before the variables."""
    monkeypatch.setitem(sys.modules, "torch.hub", SimpleNamespace(_hub_dir=str(tmp_path)))

    assert hub_dir() == tmp_path


# ------------------------------------------------------------------------------------------ one checkout


def test_checkout_has_its_files_and_metadata(cache: Cache, hub_home: Path) -> None:
    """A checkout lies under host, owner, name and commit, with a description beside its files."""
    checkout = cache.checkout(RESOLVED, put_files)

    url = "file:///srv/models.git"
    place = f"checkouts/file-{hashlib.sha256(url.encode()).hexdigest()[:12]}/srv/models/{COMMIT}"
    folder = cache.root / place
    metadata = json.loads((folder / "isohub.json").read_text())
    assert (checkout.files, checkout.hub_folder, checkout.cwd) == (folder / "files", folder / "hub", folder / "cwd")
    assert (checkout.files / "link").read_text() == ""
    assert metadata.pop("fetched_at").endswith("+00:00")
    assert metadata == {
        "identity": url,
        "url": url,
        "fetched_from": url,
        "fetched_by": None,
        "owner": "srv",
        "name": "models",
        "commit": COMMIT,
        "file_count": 4,
        "size_bytes": len("import pkg\n") + len("#!/bin/sh\n") + len("pkg/__init__.py"),
        "tree_hash": checkout.tree_hash,
        "times_hash": tree.look(folder / "files")[2],
    }
    assert list(checkout.cwd.iterdir()) == []
    assert (checkout.hub_folder / "checkpoints").readlink() == hub_home / "hub" / "checkpoints"
    assert (checkout.hub_folder / "checkpoints").is_dir()
    assert unfinished(cache) == []


def test_files_are_read_only(cache: Cache) -> None:
    """Nothing in a checkout's files may be written, and executable files stay so."""
    checkout = cache.checkout(RESOLVED, put_files)

    for path in (checkout.files, *checkout.files.rglob("*")):
        assert path.is_symlink() or not path.stat().st_mode & 0o222, path
    assert (checkout.files / "run").stat().st_mode & stat.S_IXUSR
    assert not (checkout.files / "hubconf.py").stat().st_mode & stat.S_IXUSR


def test_second_checkout_fetches_nothing(cache: Cache) -> None:
    """A commit that is there is not fetched again, by this or another `Cache` over the folder."""
    first = cache.checkout(RESOLVED, put_files)

    second = Cache(cache.root).checkout(RESOLVED, must_not_fetch)

    assert second == first
    assert second.key == first.key


def test_failed_fetch_leaves_nothing(cache: Cache) -> None:
    """An error while fetching reaches the caller, leaves no files, and a retry works."""

    def fail(files: Path) -> None:
        put_files(files)
        tree.make_read_only(files)
        raise FetchError("cut off")

    with pytest.raises(FetchError, match="cut off"):
        cache.checkout(RESOLVED, fail)

    assert unfinished(cache) == []
    assert cache.find(RESOLVED) is None
    assert cache.checkout(RESOLVED, put_files).files.is_dir()


def _unlock(folder: Path) -> None:
    for path in (folder, folder / "files", folder / "files" / "pkg", folder / "files" / "hubconf.py"):
        path.chmod(0o755)


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda folder: (folder / "isohub.json").unlink(), id="no metadata"),
        pytest.param(lambda folder: (folder / "isohub.json").write_text('{"url": "fi'), id="half metadata"),
        pytest.param(lambda folder: (folder / "isohub.json").write_text("[]"), id="other metadata"),
        pytest.param(lambda folder: tree.remove(folder / "files"), id="no files"),
        pytest.param(lambda folder: (folder / "files" / "hubconf.py").unlink(), id="a file less"),
        pytest.param(lambda folder: (folder / "files" / "new.py").write_text("x"), id="a file more"),
        pytest.param(lambda folder: (folder / "files" / "hubconf.py").write_text("x"), id="a file cut short"),
        pytest.param(lambda folder: (folder / "files" / "hubconf.py").write_text("import abc\n"), id="an edit"),
    ],
)
def test_damaged_checkout_is_fetched_again(cache: Cache, damage) -> None:
    """A checkout that is not whole is replaced, and nothing of the old one stays."""
    first = cache.checkout(RESOLVED, put_files)
    _unlock(first.files.parent)
    damage(first.files.parent)

    assert cache.find(RESOLVED) is None
    second = cache.checkout(RESOLVED, put_files)

    assert second == first
    assert (second.files / "hubconf.py").read_text() == "import pkg\n"
    assert not (second.files / "new.py").exists()
    assert unfinished(cache) == []


def test_copied_cache_is_sound(cache: Cache, tmp_path: Path) -> None:
    """A copy of a cache whose files have other times is used as it is, and read whole once alone."""
    first = cache.checkout(RESOLVED, put_files)
    shutil.copytree(cache.root, tmp_path / "copy", symlinks=True, copy_function=shutil.copyfile)
    copied = Cache(tmp_path / "copy")
    note = copied.root / first.files.parent.relative_to(cache.root) / "isohub.json"
    (copied.root / first.files.relative_to(cache.root) / "run").chmod(0o555)
    before = json.loads(note.read_text())

    assert copied.checkout(RESOLVED, must_not_fetch).tree_hash == first.tree_hash

    noted = note.read_text()
    assert json.loads(noted) == before | {"times_hash": tree.look(note.parent / "files")[2]}
    assert json.loads(noted) != before
    written_ns = note.stat().st_mtime_ns
    copied.checkout(RESOLVED, must_not_fetch)
    assert note.stat().st_mtime_ns == written_ns


def test_copied_cache_that_may_only_be_read(cache: Cache) -> None:
    """Where times cannot be noted a sound copy is used all the same, and nothing is left of the try."""
    first = cache.checkout(RESOLVED, put_files)
    note = first.files.parent / "isohub.json"
    os.utime(first.files / "hubconf.py", ns=(0, 0))
    before = note.read_text()
    # A limit of no bytes for a file, since whoever is root may write everywhere.
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        assert cache.checkout(RESOLVED, must_not_fetch) == first
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)

    assert note.read_text() == before
    assert {path.name for path in note.parent.iterdir()} == {"cwd", "files", "hub", "isohub.json", "pycache"}


def test_no_two_repositories_share_a_folder(cache: Cache) -> None:
    """Owners, names and hosts that look alike on a disk have checkouts of their own."""
    texts = ["git+https://h/a/b/c", "git+https://h/a%2Fb/c", "git+https://h:1/a/b/c", "git+file:///a/b/c", "b/c"]
    texts += ["git+file:///x/b/c", "git+https://h/b/c", "gitlab.com/b/c"]
    refs = [RepoRef.parse(text) for text in texts]

    folders = {cache._folder_of(Resolved(repo=ref, commit=COMMIT, ref_name=None)) for ref in refs}

    assert len(folders) == len(set(refs))
    assert {len(folder.relative_to(cache.root).parts) for folder in folders} == {5}


# ------------------------------------------------------------------------------------------ many, and killed


def test_threads_fetch_once(cache: Cache) -> None:
    """Eight threads that want one commit wait for one fetch."""
    fetched = []
    together = threading.Barrier(8)

    def fetch_into(files: Path) -> None:
        fetched.append(files)
        put_files(files)

    def load(_: int):
        together.wait()
        return cache.checkout(RESOLVED, fetch_into)

    with ThreadPoolExecutor(8) as pool:
        checkouts = list(pool.map(load, range(8)))

    assert len(fetched) == 1
    assert len(set(checkouts)) == 1
    assert unfinished(cache) == []


# A child that fetches, tells its parent when it has come to a certain point, and stays there.
_STOPS_AT = """
import sys
from pathlib import Path
from isohub.hub import scratch, tree
from isohub.hub.cache import Cache
from isohub.hub.checkout import Resolved
from isohub.refs import RepoRef

root, commit, point = sys.argv[1:]

def stop():
    print("here", flush=True)
    sys.stdin.read()

def before(owner, name):
    call = getattr(owner, name)
    def stop_then_call(*args, **more):
        stop()
        return call(*args, **more)
    setattr(owner, name, stop_then_call)

def fetch_into(files):
    (files / "hubconf.py").write_text("half")
    (files / "folder").mkdir()
    tree.make_read_only(files / "folder")
    if point == "fetching":
        stop()

if point == "read-only":
    before(tree, "make_read_only")
if point == "hashing":
    before(tree, "tree_hash")
if point == "metadata":
    before(Path, "write_text")
if point == "moving":
    before(Path, "rename")
if point == "removing":
    before(scratch, "_remove")

resolved = Resolved(repo=RepoRef.parse("git+file:///srv/models.git@v1"), commit=commit, ref_name="v1")
Cache(root).checkout(resolved, fetch_into)
"""


@pytest.mark.parametrize("point", ["fetching", "read-only", "hashing", "metadata", "moving", "removing"])
def test_killed_while_fetching(cache: Cache, point: str) -> None:
    """A process killed at any point leaves no half checkout: the next one fetches, or finds a whole one."""
    child = subprocess.Popen(
        [sys.executable, "-c", _STOPS_AT, str(cache.root), COMMIT, point],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with child:
        assert child.stdout.readline() == "here\n"
        os.kill(child.pid, signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
    assert unfinished(cache) != [], "the child left nothing behind, and the test shows nothing"
    is_whole = cache.find(RESOLVED) is not None
    assert is_whole == (point == "removing")

    checkout = cache.checkout(RESOLVED, must_not_fetch if is_whole else put_files)
    with cache.scratch():  # whoever writes next tidies up, if the line above did not
        pass

    assert (checkout.files / "hubconf.py").read_text() == ("half" if is_whole else "import pkg\n")
    assert unfinished(cache) == []


def test_a_folder_in_use_is_not_swept(cache: Cache) -> None:
    """A temporary folder whose maker lives stays, in this process as from another."""
    script = "import sys; from isohub.hub.cache import Cache\nwith Cache(sys.argv[1]).scratch(): pass"
    with cache.scratch() as mine:
        (mine / "file").write_text("")
        with cache.scratch() as inner:
            assert inner != mine
        subprocess.run([sys.executable, "-c", script, str(cache.root)], check=True)

        assert (mine / "file").exists()

    assert unfinished(cache) == []


def test_a_folder_that_came_back_is_swept(cache: Cache) -> None:
    """A temporary folder that a program made again after it was removed, so that nobody guards it, is removed."""
    with cache.scratch() as gone:
        pass
    (gone / "git" / "objects").mkdir(parents=True)
    assert scratch.sweep(cache.root / "tmp", dry_run=True) == [gone]

    with cache.scratch():
        pass

    assert not gone.exists()
