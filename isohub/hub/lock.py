"""`isohub.lock`: which commits and which weights a program runs, written down, and held against each load.

::

    {"version": 1,
     "repos": [{"repo": "owner/name", "ref": "main", "subdirectory": null, "commit": ..., "tree_hash": ...,
                "fetched_by": "archive", "weights": [{"url": ..., "sha256": ..., "size_bytes": ...}]}],
     "weights": [...]}                          those that the program itself asks for, in the name of no repository

It is JSON, which needs no package to be read on any Python that we support; sorted, so that a change of it reads
well in a diff. `ISOHUB_LOCK=path` makes a process keep to it, `using(path)` a part of one. What is not in it is
refused as well: a lock that says nothing of what runs would pin nothing.

Note [two ways]: an archive has other files than git brings of the same commit where .gitattributes says so: it
leaves out what is `export-ignore`, and fills in what is `export-subst`. So a lock notes how the files came. What
git brings it holds against the commit, hash by hash, so the commit alone proves it, whatever an archive's hash
in the lock is. An archive is proven by nothing but the hash: for a lock of files that git brought, git brings
them on other machines as well, if it is there.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

from isohub.errors import LockError, RefError
from isohub.refs import RepoRef

__all__ = ["ENV_LOCK", "Lock", "LockedRepo", "LockedWeights", "current_lock", "unlocked", "using"]

ENV_LOCK = "ISOHUB_LOCK"
_VERSION = 1
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class LockedWeights:
    """One file of weights.

    Attributes:
        url: Where it comes from, without user and password.
        sha256: Of its content, 64 hexadecimal digits.
        size_bytes: Its size.
    """

    url: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LockedRepo:
    """What one ref of a repository stands for.

    Attributes:
        repo: The repository as a repo text, without ref and subdirectory.
        ref: What is asked for: a branch, a tag or a commit; None for the default branch.
        commit: What it stands for, 40 hexadecimal digits.
        tree_hash: SHA-256 of that commit's files.
        fetched_by: How these were fetched, `"archive"` or `"git"`; None if nobody knows.
        subdirectory: The folder that holds hubconf.py; None for the top.
        weights: What its code downloads, by URL.
    """

    repo: str
    ref: str | None
    commit: str
    tree_hash: str
    fetched_by: str | None = None
    subdirectory: str | None = None
    weights: tuple[LockedWeights, ...] = ()

    @classmethod
    def of(cls, repo: RepoRef, commit: str, tree_hash: str, fetched_by: str | None = None) -> LockedRepo:
        """Return the entry for what was asked for, and what it turned out to be."""
        bare = str(replace(repo, ref=None, commit=None, subdirectory=None))
        return cls(
            repo=bare,
            ref=repo.ref or repo.commit,
            commit=commit,
            tree_hash=tree_hash,
            fetched_by=fetched_by,
            subdirectory=repo.subdirectory,
        )

    @property
    def asked(self) -> RepoRef:
        """The repository at the ref that is asked for."""
        is_commit = self.ref is not None and _COMMIT.fullmatch(self.ref) is not None
        return replace(
            RepoRef.parse(self.repo),
            ref=None if is_commit else self.ref,
            commit=self.ref if is_commit else None,
            subdirectory=self.subdirectory,
        )

    @property
    def pinned(self) -> RepoRef:
        """The repository at the commit that is locked."""
        return replace(self.asked, ref=None, commit=self.commit)

    def vouches_for(self, tree_hash: str, fetched_by: str | None) -> bool:
        """Return whether files of the commit are those that are locked; see the note on two ways."""
        return tree_hash == self.tree_hash or (fetched_by == "git" and self.fetched_by == "archive")

    @property
    def key(self) -> tuple[str, str, str]:
        """What there is one entry for."""
        return (self.repo, self.ref or "", self.subdirectory or "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Lock:
    """What may run. Any change makes a new one.

    Attributes:
        repos: Refs of repositories, sorted.
        weights: What is downloaded in the name of no repository, by URL.
        path: The file that it was read from; None if it was not.
    """

    repos: tuple[LockedRepo, ...] = ()
    weights: tuple[LockedWeights, ...] = ()
    path: Path | None = field(default=None, compare=False)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Lock:
        """Read a lock file.

        Raises:
            LockError: There is none, or it cannot be understood.
        """
        place = Path(path).expanduser()
        try:
            document = json.loads(place.read_bytes())
        except FileNotFoundError:
            raise LockError(f"There is no lock file {str(place)!r}. `isohub lock REPO -o {place}` makes it") from None
        except (OSError, ValueError) as error:
            raise LockError(f"The lock file {str(place)!r} cannot be read: {error}") from error
        try:
            return _lock_of(document, place)
        except (KeyError, TypeError, ValueError) as error:
            raise LockError(f"The lock file {str(place)!r} is not one: {error!r}") from error

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write it, in one step: whoever reads the file meanwhile sees the old one or this.

        Raises:
            OSError: It cannot be written.
        """
        place = Path(path).expanduser().resolve()  # a link stays one
        document = {
            "version": _VERSION,
            "repos": [asdict(one) for one in sorted(self.repos, key=lambda one: one.key)],
            "weights": [asdict(one) for one in self.weights],
        }
        temporary = place.with_name(f".{uuid4().hex}")
        try:
            temporary.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
            temporary.replace(place)
        finally:
            temporary.unlink(missing_ok=True)

    def find(self, repo: RepoRef) -> LockedRepo | None:
        """Return the entry for a repository at just this ref; None if there is none."""
        return next((one for one in self._of(repo) if one.ref == (repo.ref or repo.commit)), None)

    def with_repo(self, entry: LockedRepo) -> Lock:
        """Return the lock with an entry more, in place of one for the same ref; the weights of that one stay, too.

        Most commits do not change which weights are downloaded, and to find out takes a load.
        """
        before = next((one for one in self.repos if one.key == entry.key), None)
        if before is not None:
            if before.commit == entry.commit and before.vouches_for(entry.tree_hash, entry.fetched_by):
                # Or the file would change with who writes it.
                entry = replace(entry, tree_hash=before.tree_hash, fetched_by=before.fetched_by)
            entry = replace(entry, weights=_merged(before.weights, entry.weights))
        others = [one for one in self.repos if one.key != entry.key]
        return replace(self, repos=tuple(sorted([*others, entry], key=lambda one: one.key)))

    def with_weights(self, weights: Iterable[LockedWeights], repo: RepoRef | None = None) -> Lock:
        """Return the lock with weights more, of a repository that has an entry, or else of the program itself."""
        entry = None if repo is None else self.find(repo)
        if entry is None:
            return replace(self, weights=_merged(self.weights, weights))
        return self.with_repo(replace(entry, weights=_merged(entry.weights, weights)))

    def check(
        self, repo: RepoRef, commit: str | None, tree_hash: str | None = None, fetched_by: str | None = None
    ) -> LockedRepo:
        """Refuse what differs from the lock.

        A ref that has no entry of its own passes if it stands for a commit that is locked all the same.

        Args:
            repo: What is asked for.
            commit: What it stands for; None for a folder.
            tree_hash: Hash of its files; None if they are not here yet.
            fetched_by: How these were fetched.

        Returns:
            The entry that it agrees with.

        Raises:
            LockError: The repository or its ref is not in the lock, or stands for something else there.
        """
        if commit is None:
            what = f"{repo.label} is a folder, and has no commit that could be locked"
            raise self._refusal(what, "A git repository of this machine is named by git+file:///path@ref")
        known = list(self._of(repo))
        found = self.find(repo) or next((one for one in known if one.commit == commit), None)
        if found is None:
            wanted = repo.ref or "the default branch"
            what = f"{repo.label} is not in it" if not known else f"{wanted} of {repo.identity} is not in it"
            raise self._refusal(what, f"`isohub lock {repo}` adds it", actual=commit)
        if found.commit != commit:
            how = f"`{found.pinned}` names the locked one; `isohub lock --update {repo}` locks the new one"
            what = f"{repo} stands for commit {commit}, and is locked to {found.commit}"
            raise self._refusal(what, how, expected=found.commit, actual=commit)
        if tree_hash is not None and not found.vouches_for(tree_hash, fetched_by):
            ways = f"they came by {fetched_by}, the locked ones by {found.fetched_by}"
            reason = (
                "they were changed" if fetched_by == found.fetched_by else f"they were changed, or it is that {ways}"
            )
            what = (
                f"The files of {repo.label}, commit {commit}, have the hash {tree_hash}, and are locked to "
                f"{found.tree_hash}: {reason}, or that one has Git LFS or submodules and the other not"
            )
            how = f"`isohub cache rm {commit}` has them fetched again; `isohub lock --update {repo}` locks these"
            raise self._refusal(what, how, expected=found.tree_hash, actual=tree_hash)
        return found

    def check_weights(self, url: str, sha256: str) -> None:
        """Refuse weights that differ from the lock.

        Raises:
            LockError: The URL is not in it, or had another content.
        """
        every = [*self.weights, *(one for entry in self.repos for one in entry.weights)]
        known = sorted({one.sha256 for one in every if one.url == url})
        how = "`isohub lock --update REPO --entry NAME` locks what an entrypoint downloads"
        if not known:
            raise self._refusal(f"The weights {url} are not in it", how, actual=sha256)
        if sha256 not in known:
            what = f"The weights {url} have the SHA-256 {sha256}, and are locked to {' or '.join(known)}"
            raise self._refusal(what, how, expected=known[0], actual=sha256)

    def _of(self, repo: RepoRef) -> Iterator[LockedRepo]:
        for one in self.repos:
            # By what it is, so that https, ssh and `owner/name` are one repository.
            if one.subdirectory == repo.subdirectory and RepoRef.parse(one.repo).identity == repo.identity:
                yield one

    def _refusal(self, what: str, how: str, *, expected: str = "", actual: str = "") -> LockError:
        place = "the lock" if self.path is None else f"the lock file {str(self.path)!r}"
        return LockError(f"Refused by {place}: {what}. {how}", expected=expected, actual=actual)


# None: nothing was chosen, and the variable counts; "": no lock.
_chosen: ContextVar[str | None] = ContextVar("isohub_lock", default=None)
_read: dict[str, tuple[tuple[int, int, int], Lock]] = {}


def current_lock() -> Lock | None:
    """Return the lock that this process, or this part of it, keeps to; None if there is none.

    It is read again when its file has changed.

    Raises:
        LockError: `ISOHUB_LOCK`, or what was given to `using`, names a file that is missing or no lock.
    """
    chosen = _chosen.get()
    path = os.environ.get(ENV_LOCK, "") if chosen is None else chosen
    if not path:
        return None
    try:
        status = Path(path).expanduser().stat()
    except OSError:
        return Lock.read(path)  # which says what is wrong
    version = (status.st_ino, status.st_mtime_ns, status.st_size)
    known = _read.get(path)
    if known is None or known[0] != version:
        known = _read[path] = (version, Lock.read(path))
    return known[1]


@contextmanager
def using(path: str | os.PathLike[str] | None) -> Iterator[None]:
    """Keep to a lock file in the body, in this thread; None changes nothing."""
    token = _chosen.set(_chosen.get() if path is None else os.fspath(path))
    try:
        yield
    finally:
        _chosen.reset(token)


@contextmanager
def unlocked() -> Iterator[None]:
    """Keep to no lock in the body, in this thread: for who makes one."""
    token = _chosen.set("")
    try:
        yield
    finally:
        _chosen.reset(token)


def _merged(old: Iterable[LockedWeights], new: Iterable[LockedWeights]) -> tuple[LockedWeights, ...]:
    by_url = {one.url: one for one in (*old, *new)}
    return tuple(by_url[url] for url in sorted(by_url))


def _lock_of(document: Any, path: Path) -> Lock:
    if document["version"] != _VERSION:
        raise ValueError(f"version {document['version']!r}, where this isohub reads version {_VERSION}")
    repos = tuple(_repo_of(one) for one in document["repos"])
    return Lock(repos=repos, weights=_weights_of(document["weights"]), path=path)


def _repo_of(one: Any) -> LockedRepo:
    entry = LockedRepo(**{**one, "weights": _weights_of(one["weights"])})
    optional = (entry.ref, entry.subdirectory, entry.fetched_by)
    texts = (entry.repo, entry.commit, entry.tree_hash, *(one or "" for one in optional))
    if not all(isinstance(text, str) for text in texts):
        raise TypeError(f"a value of {one!r:.200} is no text")
    if not _COMMIT.fullmatch(entry.commit) or not _SHA256.fullmatch(entry.tree_hash):
        raise ValueError(f"{entry.repo!r} is locked to no commit, or to no hash")
    try:
        entry.pinned  # noqa: B018 - it is parsed, or refused
    except RefError as error:
        raise ValueError(str(error)) from error
    return entry


def _weights_of(many: Any) -> tuple[LockedWeights, ...]:
    found = tuple(LockedWeights(**one) for one in many)
    for one in found:
        values: tuple[object, object] = (one.url, one.size_bytes)  # as it was read, whatever it should be
        if not isinstance(values[0], str) or not isinstance(values[1], int) or not _SHA256.fullmatch(one.sha256):
            raise ValueError(f"{one!r:.200} tells of no weights")
    return found
