"""The weights on this machine: each file under its URL and its hash, brought once for all who ask.

::

    <hub_dir>/isohub/weights/
      files/<hash of the URL>/<SHA-256 of the content>/
        <base name of the URL>   the file, read-only; not here if it was put elsewhere (`model_dir`)
        isohub.json              what it is; written last
      files/<hash of the URL>/partial{,.json}   a download that broke off: the next one goes on from there
      locks/                     a lock for each URL; they stay

Two URLs never share a file, whatever their base names are; a URL whose content changed has one file for each
content. A file whose time of change is not that of its record is read, and brought again if it is not what it was.
Files that lie elsewhere (torch.hub's `checkpoints`, a `model_dir`) are known by their path, size and
time of change, and only after it was proven that they are of that URL: isohub put them there, or their
SHA-256 begins with the hash in their name.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from uuid import uuid4

from filelock import FileLock, Timeout

from isohub.errors import FetchError
from isohub.hub import download, uses
from isohub.hub.cache import hub_dir
from isohub.hub.partial import Downloaded
from isohub.hub.weight_record import NOTE, Weights, base_name, hash_in, hash_of

__all__ = ["WeightStore", "Weights", "base_name", "hash_in", "hash_of"]

_logger = logging.getLogger("isohub.hub")

# 128 bits, for short paths; the whole hash is in the record.
_KEY_DIGITS = 32


class WeightStore:
    """The weights below one folder. It holds no state but its folder: many may use one folder at once.

    Args:
        root: Its folder; None for `<hub_dir>/isohub/weights`.
    """

    def __init__(self, root: str | os.PathLike[str] | None = None) -> None:
        self.root = Path(hub_dir() / "isohub" / "weights" if root is None else root).expanduser().absolute()

    def __repr__(self) -> str:
        return f"<WeightStore {self.root}>"

    def find(self, url: str, hash_prefix: str | None = None) -> Weights | None:
        """Return the newest file of a URL that is here and sound, and whose SHA-256 begins so; else None."""
        of_hash = [one for one in self._of(url) if one.sha256.startswith(hash_prefix or "")]
        newest_first = sorted(of_hash, key=lambda one: one.fetched_at, reverse=True)
        return next(filter(None, map(self._sound, newest_first)), None)

    def fetch(
        self,
        url: str,
        hash_prefix: str | None = None,
        *,
        known_as: tuple[Path, ...] = (),
        repo: str | None = None,
        progress: bool = True,
        tell: Callable[[Path], None] | None = None,
    ) -> Path:
        """Return the file of a URL, bringing it if it is not here; of all who ask at once one does.

        Args:
            url: Where it lies.
            hash_prefix: How its SHA-256 must begin.
            known_as: Files that may be it, if that can be proven.
            repo: Which repository asks.
            progress: Whether to draw a bar.
            tell: Called with the place before a download.

        Raises:
            FetchError, HashMismatchError, OSError: As `download.bring`.
        """
        found = self.find(url, hash_prefix)
        if found is None:
            with self._locked(_key(url), url):
                found = self.find(url, hash_prefix) or self._prove(url, known_as, hash_prefix)
                if found is None:
                    with _unproven(known_as):
                        partial, got = self._bring(url, hash_prefix, progress=progress, tell=tell)
                    found = self._keep(url, partial, got)
        self._note_repo(found, repo)
        uses.weights(found, repo)
        return _still(found, url)

    def fetch_to(
        self,
        url: str,
        target: Path,
        hash_prefix: str | None = None,
        *,
        repo: str | None = None,
        progress: bool = True,
        tell: Callable[[Path], None] | None = None,
    ) -> Path:
        """Return the file of a URL at a place of the caller's, bringing it if it is not there.

        A file that is there, and is not proven to be of this URL, is neither used nor touched: then the
        name gets the beginning of the URL's hash, `model-1a2b3c4d5e6f.pth`.

        Args:
            url: Where it lies.
            target: The place.
            hash_prefix: How its SHA-256 must begin.
            repo: Which repository asks.
            progress: Whether to draw a bar.
            tell: Called with the place before a download.

        Raises:
            FetchError, HashMismatchError, OSError: As `download.bring`.
        """
        target = Path(os.path.abspath(target))  # noqa: PTH100 - one text for one place: "x/../y" is y
        spots = (target, target.with_name(f"{target.stem}-{_key(url)[:12]}{target.suffix}"))
        with self._locked(_key(url), url):
            found, spot = self._at(url, spots, hash_prefix)
            if found is None:
                found, spot = self._put_at(url, spots, hash_prefix, progress=progress, tell=tell)
        self._note_repo(found, repo)
        uses.weights(found, repo)
        return spot

    def all(self) -> list[Weights]:
        """Return what the store knows of, by URL; files that are gone included."""
        notes = sorted((self.root / "files").glob(f"*/*/{NOTE}"))
        found = (Weights.read(note.parent) for note in notes)
        return sorted(filter(None, found), key=lambda one: (one.url, one.fetched_at))

    def is_intact(self, weights: Weights) -> bool:
        """Return whether a file is there and has its hash still; this reads all of it."""
        path = weights.path()
        return path is not None and hash_of(path) == weights.sha256

    def remove(self, weights: Weights) -> None:
        """Remove a file from the store and from its records; files at other places stay where they are."""
        with self._locked(weights.url_sha256[:_KEY_DIGITS], weights.url):
            (weights.folder / NOTE).unlink(missing_ok=True)  # first, so that a half-removed file is not found
            shutil.rmtree(weights.folder, ignore_errors=True)

    def partials(self) -> list[Path]:
        """Return the downloads that broke off, or are under way."""
        return sorted((self.root / "files").glob("*/partial"))

    def _sound(self, weights: Weights) -> Weights | None:
        """Return weights whose file is here and as it was brought, else None; it is read if its time has changed."""
        path = weights.path()
        if path is None or weights.is_untouched(path):
            return None if path is None else weights
        try:
            mtime_ns = path.stat().st_mtime_ns
            is_sound = hash_of(path) == weights.sha256
        except OSError:  # removed just now
            return None
        if not is_sound:
            _logger.warning("%s is damaged: it is downloaded again", path)
            return None
        noted = replace(Weights.read(weights.folder) or weights, mtime_ns=mtime_ns)
        try:  # the store may be a copy, whose times are new
            noted.save()
        except OSError as error:
            _logger.debug("cannot note the time of %s: %s", path, error)
        return noted

    def _of(self, url: str) -> Iterator[Weights]:
        for note in (self.root / "files" / _key(url)).glob(f"*/{NOTE}"):
            found = Weights.read(note.parent)
            if found is not None and found.url_sha256 == _url_hash(url):
                yield found

    def _at(self, url: str, spots: tuple[Path, Path], hash_prefix: str | None) -> tuple[Weights | None, Path]:
        """Return which of the spots has the file already, and its record; None if neither is proven to."""
        for one in self._of(url):
            for spot in spots:
                if one.is_at(spot) and one.sha256.startswith(hash_prefix or ""):
                    return one, spot
        return self._prove(url, spots[:1], hash_prefix), spots[0]

    def _put_at(
        self,
        url: str,
        spots: tuple[Path, Path],
        hash_prefix: str | None,
        *,
        progress: bool,
        tell: Callable[[Path], None] | None,
    ) -> tuple[Weights, Path]:
        target, other = spots
        temporary = target.with_name(f"{target.name[:50]}.{uuid4().hex}.partial")
        found = self.find(url, hash_prefix)
        try:
            if found is not None:
                got = Downloaded(found.sha256, found.size_bytes)
                shutil.copyfile(_still(found, url), temporary)
            else:
                with _unproven(spots[:1]):
                    tell_spot = None if tell is None else lambda _: tell(target)
                    partial, got = self._bring(url, hash_prefix, progress=progress, tell=tell_spot)
                _move(partial, temporary)
                _note_of(partial).unlink(missing_ok=True)
            mtime_ns = _mark(temporary)
            if not os.path.lexists(target):
                # The record first, as above; it counts when a file of that size and time is there.
                weights = self._write(url, got, place=target, mtime_ns=mtime_ns)
                if _link(temporary, target):
                    return weights, target
            _logger.warning("%s is another file: that of %s is in %s", target, download.without_user(url), other)
            weights = self._write(url, got, place=other, mtime_ns=mtime_ns, not_at=target)
            temporary.replace(other)
            return weights, other
        finally:
            temporary.unlink(missing_ok=True)

    def _bring(
        self, url: str, hash_prefix: str | None, *, progress: bool, tell: Callable[[Path], None] | None
    ) -> tuple[Path, Downloaded]:
        folder = self.root / "files" / _key(url)
        folder.mkdir(parents=True, exist_ok=True)
        if tell is not None:
            tell(folder)
        _logger.info("Downloading %s", download.without_user(url))
        partial = folder / "partial"
        return partial, download.bring(url, partial, hash_prefix=hash_prefix, progress=progress, is_kept=True)

    def _keep(self, url: str, partial: Path, got: Downloaded) -> Weights:
        partial.chmod(partial.stat().st_mode & 0o555)
        # The record first: it counts when the file is there, and a file without one would be brought again.
        weights = self._write(url, got, file=base_name(url), mtime_ns=partial.stat().st_mtime_ns)
        partial.replace(weights.folder / base_name(url))
        _note_of(partial).unlink(missing_ok=True)
        return weights

    def _prove(self, url: str, paths: tuple[Path, ...], hash_prefix: str | None) -> Weights | None:
        """Return the weights of a URL if one of the files has the hash that its name, or the caller, says."""
        for path in paths:
            expected = hash_prefix or hash_in(path.name) or hash_in(base_name(url)) or ""
            if len(expected) < 8 or not path.is_file():
                continue
            size_bytes, sha256 = path.stat().st_size, hash_of(path)
            if sha256.startswith(expected):
                _logger.info("%s is the file of %s, by its hash", path, download.without_user(url))
                return self._write(url, Downloaded(sha256, size_bytes), place=path, mtime_ns=path.stat().st_mtime_ns)
        return None

    def _write(
        self,
        url: str,
        got: Downloaded,
        *,
        file: str | None = None,
        place: Path | None = None,
        mtime_ns: int = 0,
        not_at: Path | None = None,
    ) -> Weights:
        folder = self.root / "files" / _key(url) / got.sha256
        folder.mkdir(parents=True, exist_ok=True)
        before = Weights.read(folder)
        places = {path: time for path, time in before.places.items() if before.is_at(Path(path))} if before else {}
        places.pop(str(not_at), None)
        weights = Weights(
            url=download.without_user(url),
            url_sha256=_url_hash(url),
            sha256=got.sha256,
            size_bytes=got.size_bytes,
            fetched_at=datetime.now(timezone.utc).isoformat(timespec="microseconds"),
            file=file or (before.file if before else None),
            places=places | ({str(place): mtime_ns} if place else {}),
            repos=before.repos if before else (),
            folder=folder,
            mtime_ns=mtime_ns if file else before.mtime_ns if before else 0,
        )
        weights.save()
        return weights

    def _note_repo(self, weights: Weights, repo: str | None) -> None:
        if repo is None or repo in weights.repos:
            return
        try:
            with self._locked(weights.url_sha256[:_KEY_DIGITS], weights.url):
                now = Weights.read(weights.folder) or weights
                if repo not in now.repos:
                    replace(now, repos=(*now.repos, repo)).save()
        except OSError as error:  # a store that may only be read serves its files all the same
            _logger.debug("cannot write down that %s uses %s: %s", repo, weights.url, error)

    @contextmanager
    def _locked(self, key: str, url: str) -> Iterator[None]:
        locks = self.root / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        lock = FileLock(locks / f"{key}.lock", poll_interval=0.01)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            _logger.info("Waiting for who is downloading %s", download.without_user(url))
            lock.acquire()
        try:
            yield
        finally:
            lock.release()


def _mark(path: Path) -> int:
    """Give a file a time of change that no other has, and return it.

    Files that are written at once get the same time from the kernel, whose clock ticks every few
    milliseconds; weights of one architecture also have the same size.
    """
    second_ns = path.stat().st_mtime_ns // 10**9 * 10**9
    time_ns = second_ns + secrets.randbelow(10**9)
    os.utime(path, ns=(time_ns, time_ns))
    return path.stat().st_mtime_ns  # as the file system keeps it


def _link(source: Path, target: Path) -> bool:
    """Give a file its name unless another has it; return whether that was so."""
    try:
        os.link(source, target)  # unlike a rename it never takes the place of a file that appeared meanwhile
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links
        if os.path.lexists(target):
            return False
        source.replace(target)
    return True


def _move(source: Path, target: Path) -> None:
    try:
        source.replace(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        shutil.copyfile(source, target)
        source.unlink()


@contextmanager
def _unproven(paths: tuple[Path, ...]) -> Iterator[None]:
    """Name, in an error of the download, the file that somebody may wonder why it is not used."""
    try:
        yield
    except FetchError as error:
        there = next((path for path in paths if path.is_file()), None)
        if there is not None:
            doubt = f"{there} has its name, but nothing shows that it came from there, and another file may have it too"
            error.args = (f"{error}. {doubt}",)
        raise


def _still(weights: Weights, url: str) -> Path:
    path = weights.path()
    if path is None:
        raise FetchError(
            f"The file in {weights.folder} changed right after it was made: what else writes there?", url=url
        )
    return path


def _note_of(partial: Path) -> Path:
    return partial.with_name(f"{partial.name}.json")


def _url_hash(url: str) -> str:
    return hashlib.sha256(url.encode()).hexdigest()


def _key(url: str) -> str:
    return _url_hash(url)[:_KEY_DIGITS]
