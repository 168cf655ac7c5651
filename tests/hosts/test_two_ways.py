"""One commit, fetched as an archive and by git, where .gitattributes makes the files differ: what a lock says."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from isohub.errors import LockError
from isohub.hub.cache import Cache
from isohub.hub.checkout import Checkout
from isohub.hub.fetch import fetch
from isohub.hub.lock import Lock, using
from isohub.hub.resolve import resolve
from isohub.hub.uses import recording
from isohub.refs import RepoRef
from tests.helpers.githost import GitHost
from tests.helpers.repos import make_repo

FILES: dict[str, str | bytes] = {
    "hubconf.py": "VERSION = 1\n",
    "version.py": 'COMMIT = "$Format:%H$"\n',
    "tests/data.txt": "not for users\n",
    ".gitattributes": "tests export-ignore\nversion.py export-subst\n",
}


@pytest.fixture
def host(tmp_path: Path) -> Iterator[GitHost]:
    with GitHost() as running:
        running.add("owner/exported", make_repo(tmp_path / "srv" / "exported", {"v1": FILES}))
        yield running


def by_archive(host: GitHost) -> RepoRef:
    return RepoRef.parse("owner/exported:v1", git_host=host.url)


def by_git(host: GitHost) -> RepoRef:
    """The same, by a URL that is git's alone."""
    return RepoRef.parse(f"git+{host.url}/owner/exported.git@v1")


def bring(repo: RepoRef, cache: Cache) -> Checkout:
    return fetch(resolve(repo, cache), cache, verbose=False)


def locked(repo: RepoRef, cache: Cache, path: Path) -> Checkout:
    """Fetch a repository, and write a lock of it."""
    with recording() as recorded:
        checkout = bring(repo, cache)
    recorded.added_to(Lock()).write(path)
    return checkout


def test_ways_are_noted(host: GitHost, tmp_path: Path) -> None:
    """The two ways bring other files of one commit, each checkout knows its own, and so does the lock."""
    archive, cloned = (
        locked(repo, Cache(tmp_path / way), tmp_path / f"{way}.lock")
        for way, repo in (("archive", by_archive(host)), ("git", by_git(host)))
    )

    assert (archive.commit, archive.fetched_by, cloned.fetched_by) == (cloned.commit, "archive", "git")
    assert archive.tree_hash != cloned.tree_hash
    assert [(one.files / "tests/data.txt").exists() for one in (archive, cloned)] == [False, True]
    assert bring(by_archive(host), Cache(tmp_path / "archive")).fetched_by == "archive"  # now from the cache
    assert [Lock.read(tmp_path / f"{way}.lock").repos[0].fetched_by for way in ("archive", "git")] == ["archive", "git"]


def test_lock_of_an_archive_takes_what_git_brings(host: GitHost, tmp_path: Path) -> None:
    """Files that git brought are proven by their commit, whatever the hash of an archive in the lock."""
    locked(by_archive(host), Cache(tmp_path / "one"), tmp_path / "isohub.lock")

    with using(tmp_path / "isohub.lock"):
        checkout = bring(by_git(host), Cache(tmp_path / "other"))

    assert checkout.fetched_by == "git"


def test_lock_of_what_git_brought_has_git_bring_it(host: GitHost, tmp_path: Path) -> None:
    """Where the lock has the hash of files that git brought, git brings them though there is an archive."""
    cloned = locked(by_git(host), Cache(tmp_path / "one"), tmp_path / "isohub.lock")
    host.forget()

    with using(tmp_path / "isohub.lock"):
        checkout = bring(by_archive(host), Cache(tmp_path / "other"))

    assert (checkout.fetched_by, checkout.tree_hash) == ("git", cloned.tree_hash)
    assert host.count("archive") == 0


def test_archive_that_nothing_proves_is_refused(host: GitHost, tmp_path: Path) -> None:
    """An archive that is here already is not what git brought for the lock; the advice of the error mends it."""
    cache = Cache(tmp_path / "cache")
    archive = bring(by_archive(host), cache)
    cloned = locked(by_git(host), Cache(tmp_path / "one"), tmp_path / "isohub.lock")

    with using(tmp_path / "isohub.lock"):
        with pytest.raises(LockError, match=r"came by archive, the locked ones by git.*`isohub cache rm") as raised:
            bring(by_archive(host), cache)
        archive.files.parent.rename(tmp_path / "removed")
        again = bring(by_archive(host), cache)

    assert (raised.value.expected, raised.value.actual) == (cloned.tree_hash, archive.tree_hash)
    assert again.tree_hash == cloned.tree_hash


@pytest.mark.usefixtures("no_git")
def test_without_git_the_archive_is_refused(host: GitHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a git program a lock of what git brought refuses an archive with another hash."""
    with monkeypatch.context() as patch:
        patch.setattr("isohub.hub.git.is_installed", lambda: shutil.which("git") is not None)
        locked(by_git(host), Cache(tmp_path / "one"), tmp_path / "isohub.lock")

    with using(tmp_path / "isohub.lock"), pytest.raises(LockError, match="came by archive"):
        bring(by_archive(host), Cache(tmp_path / "other"))
