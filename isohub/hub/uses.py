"""What happens whenever something of the cache is used: it is held against the lock, stamped, and recorded.

::

    fetch ─────────────> expect (before it is brought), checkout (when it is here)
    WeightStore.fetch ─> weights

Recorded for whom it may concern: `ISOHUB_LOCK_WRITE=isohub.lock python program.py` writes down what a program
uses, as it uses it, without a change of the program; several processes may write one file. `recording` is the
same for a part of this process.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock

from isohub.errors import RefError
from isohub.hub import leases
from isohub.hub.cache import hub_dir
from isohub.hub.checkout import Checkout, Resolved
from isohub.hub.lock import Lock, LockedRepo, LockedWeights, current_lock
from isohub.hub.weight_record import Weights
from isohub.refs import RepoRef

__all__ = ["ENV_WRITE", "Recorded", "checkout", "expect", "recording", "weights"]

_logger = logging.getLogger("isohub.hub")

ENV_WRITE = "ISOHUB_LOCK_WRITE"


@dataclass
class Recorded:
    """What was used.

    Attributes:
        repos: The commits.
        weights: The files of weights, each with the repository whose code asked for it, if one did.
    """

    repos: list[LockedRepo] = field(default_factory=list)
    weights: list[tuple[LockedWeights, RepoRef | None]] = field(default_factory=list)

    def added_to(self, lock: Lock) -> Lock:
        """Return a lock with all of this in it."""
        for entry in self.repos:
            lock = lock.with_repo(entry)
        for one, repo in self.weights:
            lock = lock.with_weights([one], repo)
        return lock


_recorders: list[Recorded] = []
_recorders_lock = threading.Lock()


@contextmanager
def recording() -> Iterator[Recorded]:
    """Collect what is used while the body runs, by any thread of this process."""
    recorded = Recorded()
    with _recorders_lock:
        _recorders.append(recorded)
    try:
        yield recorded
    finally:
        with _recorders_lock:
            # By identity: two that have seen the same are equal.
            _recorders[:] = [one for one in _recorders if one is not recorded]


def expect(resolved: Resolved) -> LockedRepo | None:
    """Refuse a commit that is not the locked one, before it is brought.

    Returns:
        Its entry in the lock; None if there is no lock.

    Raises:
        LockError: It is not.
    """
    lock = current_lock()
    return None if lock is None else lock.check(resolved.repo, resolved.commit)


def checkout(used: Checkout) -> None:
    """Refuse files that are not the locked ones; else note that they are used.

    Raises:
        LockError: They are not.
        OSError: The file of `ISOHUB_LOCK_WRITE` cannot be written.
    """
    lock = current_lock()
    if lock is not None:
        lock.check(used.repo, used.commit, used.tree_hash, used.fetched_by)
    leases.stamp(used.hub_folder.parent)
    if used.commit is None or used.tree_hash is None:
        if os.environ.get(ENV_WRITE):
            _logger.warning("%s is a folder, which no lock can pin: it is left out", used.repo.label)
        return
    _record(Recorded(repos=[LockedRepo.of(used.repo, used.commit, used.tree_hash, used.fetched_by)]))


def weights(used: Weights, repo: str | None) -> None:
    """Refuse weights that are not the locked ones; else note that they are used.

    Args:
        used: Which.
        repo: The repo text of the repository whose code asked for them.

    Raises:
        LockError: They are not.
        OSError: The file of `ISOHUB_LOCK_WRITE` cannot be written.
    """
    lock = current_lock()
    if lock is not None:
        lock.check_weights(used.url, used.sha256)
    leases.stamp(used.folder)
    found = LockedWeights(url=used.url, sha256=used.sha256, size_bytes=used.size_bytes)
    _record(Recorded(weights=[(found, _parsed(repo))]))


def _record(used: Recorded) -> None:
    with _recorders_lock:
        for recorder in _recorders:
            recorder.repos += used.repos
            recorder.weights += used.weights
    if path := os.environ.get(ENV_WRITE):
        _write(Path(path).expanduser().absolute(), used)


def _write(path: Path, used: Recorded) -> None:
    locks = hub_dir() / "isohub" / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    name = hashlib.sha256(os.fsencode(path)).hexdigest()[:12]
    with FileLock(locks / f"lock-file-{name}.lock", poll_interval=0.01):
        before = Lock.read(path) if path.exists() else Lock()
        after = used.added_to(before)
        if after != before or not path.exists():
            after.write(path)


def _parsed(repo: str | None) -> RepoRef | None:
    try:
        return None if repo is None else RepoRef.parse(repo)
    except RefError as error:
        _logger.debug("weights are recorded for no repository: %s", error)
        return None
