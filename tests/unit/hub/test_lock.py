"""The lock: written and read back the same, and nothing passes that differs from it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from isohub.errors import LockError
from isohub.hub import uses
from isohub.hub.cache import Cache
from isohub.hub.fetch import fetch
from isohub.hub.lock import Lock, LockedRepo, LockedWeights, current_lock, unlocked, using
from isohub.hub.resolve import resolve
from isohub.hub.weights import fetch_weights
from isohub.refs import RepoRef
from tests.helpers.fileserver import FileServer
from tests.unit.hub.conftest import GitRepository

COMMIT, OTHER = "0123456789abcdef0123456789abcdef01234567", "89abcdef" * 5
TREE = "a" * 64
NET = LockedWeights(url="https://example.org/net.pth", sha256="b" * 64, size_bytes=7)


def ref(text: str) -> RepoRef:
    return RepoRef.parse(text)


def locked(text: str, commit: str = COMMIT) -> LockedRepo:
    return LockedRepo.of(ref(text), commit, TREE)


@pytest.fixture(autouse=True)
def no_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ISOHUB_LOCK", "ISOHUB_LOCK_WRITE"):
        monkeypatch.delenv(name, raising=False)


# ------------------------------------------------------------------------------------------------ the file


def test_file_is_sorted_and_read_back_the_same(tmp_path: Path) -> None:
    """The text does not depend on the order of what was locked, and reading it gives an equal lock."""
    entries = [locked("owner/b:main"), locked("owner/a"), locked("git+file:///srv/x%40y.git@v1#subdirectory=sub")]
    one, two = Lock(), Lock()
    for entry in entries:
        one = one.with_repo(entry)
    for entry in reversed(entries):
        two = two.with_repo(entry)
    one, two = (lock.with_weights([NET], ref("owner/b:main")).with_weights([NET]) for lock in (one, two))

    one.write(tmp_path / "one")
    two.write(tmp_path / "two")

    assert (tmp_path / "one").read_text() == (tmp_path / "two").read_text()
    assert Lock.read(tmp_path / "one") == one
    document = json.loads((tmp_path / "one").read_text())
    assert [(entry["repo"], entry["ref"], entry["subdirectory"]) for entry in document["repos"]] == [
        ("git+file:///srv/x%40y.git", "v1", "sub"),
        ("owner/a", None, None),
        ("owner/b", "main", None),
    ]
    assert document["repos"][2]["weights"] == document["weights"] == [
        {"url": NET.url, "sha256": NET.sha256, "size_bytes": 7}
    ]  # fmt: skip
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["one", "two"]


def test_what_is_asked_for_comes_back() -> None:
    """An entry knows the repo text that it answers, a pinned commit told from the default branch."""
    for text in ("owner/name", "owner/name:main", f"owner/name@{COMMIT}", "gitlab.com/a/b/c:v1#subdirectory=x/y"):
        assert str(locked(text).asked) == text

    assert str(locked("owner/name:main").pinned) == f"owner/name@{COMMIT}"
    assert locked("owner/name").key != locked(f"owner/name@{COMMIT}").key


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"repos": [{"repo": "owner/name"}]},
        {"repos": [{**json.loads(json.dumps({"repo": "a/b", "ref": None, "tree_hash": TREE})), "commit": "main"}]},
        {"repos": [{"repo": "../b", "ref": None, "commit": COMMIT, "tree_hash": TREE, "weights": []}]},
        {"weights": [{"url": NET.url, "sha256": "bfd8deac", "size_bytes": 7}]},
        {"weights": [{"url": 3, "sha256": NET.sha256, "size_bytes": 7}]},
        {"weights": None},
    ],
    ids=["newer version", "keys missing", "no commit", "no repository", "short hash", "no URL", "no list"],
)
def test_damaged_file_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    """A file that is no lock is an error that names it, never an empty lock."""
    path = tmp_path / "isohub.lock"
    path.write_text(json.dumps({"version": 1, "repos": [], "weights": [], **change}))

    with pytest.raises(LockError, match=r"isohub\.lock' is not one"):
        Lock.read(path)


def test_missing_and_unreadable_files_are_refused(tmp_path: Path) -> None:
    """No file, and one that is not JSON, are errors that say so."""
    (tmp_path / "half").write_text('{"version": 1,')

    with pytest.raises(LockError, match=r"There is no lock file .*`isohub lock REPO -o"):
        Lock.read(tmp_path / "none")
    with pytest.raises(LockError, match=r"half' cannot be read"):
        Lock.read(tmp_path / "half")


# ----------------------------------------------------------------------------------------------- the checks


def test_what_is_locked_passes() -> None:
    """The locked commit passes, by its ref, by another name for it, and however the repository is reached."""
    lock = Lock().with_repo(locked("owner/name:main"))

    lock.check(ref("owner/name:main"), COMMIT)
    lock.check(ref("owner/name:main"), COMMIT, TREE)
    lock.check(ref(f"owner/name@{COMMIT}"), COMMIT, TREE)
    lock.check(ref("owner/name:other"), COMMIT, TREE)
    lock.check(ref("git+ssh://git@github.com/owner/name.git@main"), COMMIT, TREE)


@pytest.mark.parametrize(
    ("lock_way", "way", "passes"),
    [
        ("archive", "git", True),
        ("git", "archive", False),
        ("archive", "archive", False),
        ("git", "git", False),
        ("archive", None, False),
        (None, "git", False),
        (None, None, False),
    ],
)
def test_other_files_pass_only_if_git_proves_them(lock_way: str | None, way: str | None, passes: bool) -> None:
    """Files with another hash pass if git brought them and the lock's came as an archive; the lock keeps its own."""
    repo = ref("owner/name:main")
    lock = Lock().with_repo(LockedRepo.of(repo, COMMIT, TREE, lock_way))
    other = LockedRepo.of(repo, COMMIT, "c" * 64, way)

    with contextlib.nullcontext() if passes else pytest.raises(LockError, match="are locked to"):
        assert lock.check(repo, COMMIT, other.tree_hash, way) == lock.find(repo)

    assert lock.with_repo(other).repos == (lock.repos if passes else (other,))
    assert lock.check(repo, COMMIT, TREE, way) == lock.find(repo)


@pytest.mark.parametrize(
    ("text", "commit", "tree_hash", "expected", "says"),
    [
        ("owner/name:main", OTHER, None, COMMIT, "`isohub lock --update owner/name:main`"),
        ("owner/name:main", COMMIT, "c" * 64, TREE, f"`isohub cache rm {COMMIT}`"),
        ("owner/name:dev", OTHER, None, "", "dev of github.com/owner/name is not in it. `isohub lock owner/name:dev`"),
        ("owner/name", OTHER, None, "", "the default branch of github.com/owner/name is not in it"),
        ("owner/name:main#subdirectory=x", COMMIT, None, "", "owner/name:main#x is not in it"),
        ("owner/other:main", COMMIT, None, "", "`isohub lock owner/other:main` adds it"),
        ("gitlab.com/owner/name:main", COMMIT, None, "", "is not in it"),
    ],
    ids=["moved", "other files", "other ref", "no ref", "other folder", "other repository", "other host"],
)
def test_what_differs_is_refused(text: str, commit: str, tree_hash: str | None, expected: str, says: str) -> None:
    """Any difference is an error that has what is locked and what is there, and says how to update."""
    lock = Lock(path=Path("/srv/isohub.lock")).with_repo(locked("owner/name:main"))

    with pytest.raises(LockError) as raised:
        lock.check(ref(text), commit, tree_hash)

    assert (raised.value.expected, raised.value.actual) == (expected, tree_hash or commit)
    assert str(raised.value).startswith("Refused by the lock file '/srv/isohub.lock': ")
    assert says in str(raised.value)


def test_ref_that_is_locked_goes_before_its_commit() -> None:
    """A ref with an entry of its own must stand for that entry's commit, not for any that is locked."""
    lock = Lock().with_repo(locked("owner/name:main")).with_repo(locked("owner/name:dev", OTHER))

    with pytest.raises(LockError) as raised:
        lock.check(ref("owner/name:main"), OTHER)

    assert raised.value.expected == COMMIT


def test_weights_are_held_against_the_lock() -> None:
    """Weights pass with a hash that is locked for their URL, whoever asks; other content and other URLs do not."""
    lock = Lock().with_repo(locked("owner/name")).with_weights([NET], ref("owner/name"))
    lock.check_weights(NET.url, NET.sha256)

    with pytest.raises(LockError, match=r"are locked to bbbb.*`isohub lock --update REPO --entry NAME`") as other:
        lock.check_weights(NET.url, "c" * 64)
    with pytest.raises(LockError, match=r"x\.pth are not in it") as unknown:
        lock.check_weights("https://example.org/x.pth", NET.sha256)

    assert (other.value.expected, other.value.actual) == (NET.sha256, "c" * 64)
    assert (unknown.value.expected, unknown.value.actual) == ("", NET.sha256)


def test_update_keeps_weights_and_replaces_hashes() -> None:
    """A new commit of a ref takes the place of the old one and keeps its weights; a new hash replaces the old."""
    lock = Lock().with_repo(locked("owner/name:main")).with_weights([NET], ref("owner/name:main"))
    newer = replace(NET, sha256="d" * 64)

    lock = lock.with_repo(locked("owner/name:main", OTHER)).with_weights([newer], ref("owner/name:main"))

    assert [(entry.commit, entry.weights) for entry in lock.repos] == [(OTHER, (newer,))]


# ---------------------------------------------------------------------------------------- which one is in force


def test_current_lock_follows_the_variable_and_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`ISOHUB_LOCK` names it, `using` goes before, `unlocked` ends it, and a rewritten file is read again."""
    first, second = tmp_path / "first", tmp_path / "second"
    Lock().with_repo(locked("owner/a")).write(first)
    Lock().with_repo(locked("owner/b")).write(second)
    assert current_lock() is None

    def repos() -> list[str]:
        lock = current_lock()
        return [] if lock is None else [entry.repo for entry in lock.repos]

    monkeypatch.setenv("ISOHUB_LOCK", str(first))
    assert repos() == ["owner/a"]
    assert current_lock() is current_lock()
    with using(second):
        assert repos() == ["owner/b"]
        with using(None):
            assert repos() == ["owner/b"]
        with unlocked():
            assert repos() == []
    Lock().with_repo(locked("owner/c")).write(first)
    assert repos() == ["owner/c"]
    first.unlink()
    with pytest.raises(LockError, match="There is no lock file"):
        current_lock()


def test_fetch_keeps_to_the_lock(repository: GitRepository, cache: Cache, tmp_path: Path) -> None:
    """A branch that moved is refused before anything is brought; the locked commit is still to be had by its name."""
    text = f"git+{repository.url}@main"
    with uses.recording() as recorded:
        first = fetch(resolve(ref(text)), cache)
    recorded.added_to(Lock()).write(tmp_path / "isohub.lock")
    moved = repository.commit(hubconf__py="VERSION = 2\n")

    with using(tmp_path / "isohub.lock"):
        with pytest.raises(LockError) as raised:
            fetch(resolve(ref(text)), cache)
        pinned = fetch(resolve(ref(f"git+{repository.url}@{first.commit}")), cache)

    assert (raised.value.expected, raised.value.actual) == (first.commit, moved)
    assert pinned.files == first.files
    assert [path.name for path in first.files.parent.parent.iterdir() if path.is_dir()] == [first.commit]


def test_folder_cannot_pass_a_lock(tmp_path: Path, cache: Cache) -> None:
    """A working tree has no commit: under a lock it is refused."""
    (tmp_path / "tree").mkdir()
    Lock().write(tmp_path / "isohub.lock")

    with using(tmp_path / "isohub.lock"), pytest.raises(LockError, match="is a folder, and has no commit"):
        fetch(resolve(RepoRef.parse(tmp_path / "tree")), cache)


def test_weights_that_changed_are_refused(server: FileServer, tmp_path: Path) -> None:
    """Weights whose URL has another content than when it was locked are not handed out."""
    url = server.put("/net.pth", b"one")
    with uses.recording() as recorded:
        fetch_weights(url, progress=False)
    recorded.added_to(Lock()).write(tmp_path / "isohub.lock")

    with using(tmp_path / "isohub.lock"):
        same = fetch_weights(url, progress=False)
        other = LockedWeights(url=url, sha256=hashlib.sha256(b"two").hexdigest(), size_bytes=3)
        Lock().with_weights([other]).write(tmp_path / "isohub.lock")
        with pytest.raises(LockError) as raised:
            fetch_weights(url, progress=False)

    assert same.read_bytes() == b"one"
    assert (raised.value.expected, raised.value.actual) == (other.sha256, hashlib.sha256(b"one").hexdigest())


# ------------------------------------------------------------------------------------------------ recording


def test_program_writes_down_what_it_uses(
    make_repository: Callable[..., GitRepository], server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `ISOHUB_LOCK_WRITE` commits and weights come into the file, weights under the repository that asked."""
    one, two = make_repository("one"), make_repository("two")
    commits = [repository.commit(hubconf__py="") for repository in (one, two)]
    url, own = server.put("/net.pth", b"net"), server.put("/own.pth", b"own")
    path = tmp_path / "isohub.lock"
    monkeypatch.setenv("ISOHUB_LOCK_WRITE", str(path))

    for repository in (one, two):
        fetch(resolve(ref(f"git+{repository.url}@main")), Cache())
    fetch_weights(url, repo=f"git+{two.url}@main", progress=False)
    fetch_weights(own, progress=False)

    lock = Lock.read(path)
    assert [(entry.repo, entry.ref, entry.commit) for entry in lock.repos] == [
        (f"git+{one.url}", "main", commits[0]),
        (f"git+{two.url}", "main", commits[1]),
    ]
    net = LockedWeights(url=url, sha256=hashlib.sha256(b"net").hexdigest(), size_bytes=3)
    assert [entry.weights for entry in lock.repos] == [(), (net,)]
    assert [weights.url for weights in lock.weights] == [own]


def test_many_processes_write_one_file(
    make_repository: Callable[..., GitRepository], tmp_path: Path, hub_home: Path
) -> None:
    """Processes that record into one file at once lose nothing of each other's."""
    repositories = [make_repository(f"r{number}") for number in range(4)]
    for repository in repositories:
        repository.commit(hubconf__py="")
    script = """
import sys
from isohub.hub.cache import Cache
from isohub.hub.fetch import fetch
from isohub.hub.resolve import resolve
from isohub.refs import RepoRef
for text in sys.argv[1:]:
    fetch(resolve(RepoRef.parse(text)), Cache())
"""
    env = {**os.environ, "ISOHUB_LOCK_WRITE": str(tmp_path / "isohub.lock")}
    texts = [f"git+{repository.url}@main" for repository in repositories]
    running = [
        subprocess.Popen([sys.executable, "-c", script, *mine], env=env) for mine in (texts[:2], texts[2:], texts[1:3])
    ]

    assert [process.wait(60) for process in running] == [0, 0, 0]

    assert [str(entry.asked) for entry in Lock.read(tmp_path / "isohub.lock").repos] == texts
