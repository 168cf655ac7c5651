"""Leases: what a live worker, or this process, uses is not removed from the cache; and stamps: when it was used last.

::

    checkouts/<host>/<owner>/<name>/<commit>/
    checkouts/<host>/<owner>/<name>/<commit>.lease     shared flock: in use; exclusive: being removed
                                                       its time of change: last used

A lease is a shared flock on that file, held by the parent process (one descriptor for each worker) as long as
the worker lives. The kernel lets go of it however the parent dies. A fork of the parent has a copy of the
descriptor and must close it (`Lease.close` does that without releasing the parent's). What is kept for code that
was imported into this process itself is another matter: a fork has that code, too, and keeps its copy.

Whoever removes a checkout takes the flock exclusively, and the file with it; so who gets a lease afterwards
makes sure that it is on the file that is there, and that the checkout is as well.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path

from isohub.errors import FetchError
from isohub.hub.checkout import Checkout

__all__ = ["SUFFIX", "GoneError", "Lease", "is_leased", "keep", "let_go", "stamp", "used_at", "vacated"]

_logger = logging.getLogger("isohub.hub")

SUFFIX = ".lease"
# A cache that may only be read; nobody of this machine's rights can remove anything there.
_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)
_kept: dict[Path, Lease] = {}
_kept_lock = threading.Lock()


class GoneError(FetchError):
    """A checkout was removed between its fetch and its use."""

    @classmethod
    def of(cls, checkout: Checkout) -> GoneError:
        """Return the error for a checkout."""
        return cls(
            f"{checkout.repo.label} was removed from the cache just now: load it again",
            url=checkout.repo.url,
            commit=checkout.commit,
        )


class Lease:
    """The right to find a checkout in place. It owns one descriptor, or none in a cache that is read-only.

    Example:
        >>> lease = Lease.acquire(checkout)
        >>> lease.close()
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._owner_pid = os.getpid()

    @classmethod
    def acquire(cls, checkout: Checkout) -> Lease:
        """Lease a checkout, and note that it is used now.

        Raises:
            GoneError: It was removed since it was fetched.
        """
        folder = _folder_of(checkout)
        try:
            fd = _locked(_file_of(folder), fcntl.LOCK_SH)
        except FileNotFoundError:
            raise GoneError.of(checkout) from None
        except OSError as error:
            if error.errno not in _READ_ONLY:
                raise
            _logger.debug("no lease on %s: %s", folder, error)
            return cls(-1)
        if not folder.is_dir():
            os.close(fd)
            raise GoneError.of(checkout)
        os.utime(fd)
        return cls(fd)

    def __enter__(self) -> Lease:  # noqa: PYI034 - Self is of Python 3.11
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give it back; in a fork of the process that has it, only close the fork's copy. May be called again."""
        fd, self._fd = self._fd, -1
        if fd < 0:
            return
        if os.getpid() == self._owner_pid:
            with suppress(OSError):
                os.utime(fd)  # it was in use until now
        os.close(fd)  # no unlock: that would be the owner's as well


def keep(checkout: Checkout) -> None:
    """Lease a checkout until this process ends, or `let_go`: its code is imported here. One descriptor a checkout.

    A working tree is not leased: all that code in this process uses of it lies outside of the cache.

    Raises:
        GoneError: As `Lease.acquire`.
    """
    if checkout.commit is None:
        return
    folder = _folder_of(checkout)
    with _kept_lock:
        if folder not in _kept:
            _kept[folder] = Lease.acquire(checkout)


def let_go() -> None:
    """Give back what `keep` leased."""
    with _kept_lock:
        while _kept:
            _kept.popitem()[1].close()


def is_leased(folder: Path) -> bool:
    """Tell whether a live worker uses a checkout, or somebody is removing it just now.

    Args:
        folder: The folder of its commit.
    """
    try:
        fd = os.open(_file_of(folder), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def stamp(folder: Path) -> None:
    """Note that something of the cache is used now. A cache that cannot be written is no error."""
    file = _file_of(folder)
    try:
        os.close(os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666))
        os.utime(file)
    except OSError as error:
        _logger.debug("cannot note that %s is used: %s", folder, error)


def used_at(folder: Path) -> datetime | None:
    """Return when something of the cache was used last; None if nobody noted it."""
    try:
        return datetime.fromtimestamp(_file_of(folder).stat().st_mtime, timezone.utc)
    except OSError:
        return None


@contextmanager
def vacated(folder: Path) -> Iterator[bool]:
    """Keep everybody from leasing a checkout while the body removes it.

    Yields:
        Whether nobody uses it. If False it must stay.
    """
    file = _file_of(folder)
    try:
        fd = _locked(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        yield False
        return
    try:
        yield True
        if not folder.exists():
            file.unlink(missing_ok=True)
    finally:
        os.close(fd)


def _locked(file: Path, operation: int) -> int:
    """Open a file, making it if need be, and lock it; not one that was taken away meanwhile."""
    while True:
        fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(fd, operation)
            ours = os.fstat(fd)
            with suppress(FileNotFoundError):
                theirs = file.stat()
                if (ours.st_dev, ours.st_ino) == (theirs.st_dev, theirs.st_ino):
                    return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def _file_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}{SUFFIX}")


def _folder_of(checkout: Checkout) -> Path:
    return checkout.hub_folder.parent
