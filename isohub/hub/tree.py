"""What is done to a tree of files: measure, hash, fingerprint, make read-only, remove; and one link."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

__all__ = ["empty", "files_of", "fingerprint", "link", "look", "make_read_only", "measure", "remove", "tree_hash"]

_logger = logging.getLogger("isohub.hub")

# 20,000 stats take about 0.1 s; a folder with more holds a data set or a virtual environment beside the code.
MAX_FINGERPRINT_ENTRIES = 20_000


def files_of(folder: Path) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Yield every file and link below `folder` with its path relative to it, links not followed."""
    pending = [""]
    while pending:
        prefix = pending.pop()
        with os.scandir(folder / prefix) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    pending.append(f"{prefix}{entry.name}/")
                else:
                    yield prefix + entry.name, entry


def measure(folder: Path) -> tuple[int, int]:
    """Return the number of files and links below `folder`, and their size in bytes."""
    sizes = [entry.stat(follow_symlinks=False).st_size for _, entry in files_of(folder)]
    return len(sizes), sum(sizes)


def look(folder: Path) -> tuple[int, int, str]:
    """Return what `measure` does, and a hash over paths, sizes and times of change, which reads no content.

    It tells an edit that left the size as it was. A copy of the folder may have other times, and is no edit.
    """
    lines: list[str] = []
    size_bytes = 0
    for path, entry in files_of(folder):
        status = entry.stat(follow_symlinks=False)
        size_bytes += status.st_size
        lines.append(f"{path}\0{status.st_size}\0{status.st_mtime_ns}")
    return len(lines), size_bytes, hashlib.sha256(os.fsencode("\0\0".join(sorted(lines)))).hexdigest()


def tree_hash(folder: Path) -> str:
    """Return the SHA-256 over paths, executable bits, contents and targets of links, in hexadecimal.

    Times, owners and write permissions do not count, so that two fetches of a commit have one hash.
    """
    digest = hashlib.sha256()
    for path, entry in sorted(files_of(folder), key=lambda found: os.fsencode(found[0])):
        if entry.is_symlink():
            kind, content = "link", os.fsencode(Path(entry.path).readlink())
        else:
            is_executable = entry.stat(follow_symlinks=False).st_mode & stat.S_IXUSR
            kind, content = "executable" if is_executable else "file", _file_hash(entry.path)
        # Lengths go first, so that no two different trees can give the same bytes.
        name = os.fsencode(path)
        digest.update(f"{kind} {len(name)} {len(content)}\n".encode() + name + content)
    return digest.hexdigest()


def _file_hash(path: str) -> bytes:
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.digest()


def fingerprint(folder: Path) -> str | None:
    """Return a hash that changes when a file of a working tree is edited, or None if the tree is too big.

    Path, size, time of change and inode of every file count, hidden folders and `__pycache__` left out.
    None also when a folder cannot be read, because nobody could tell then whether it was edited.
    """
    lines: list[str] = []
    try:
        for count, (path, status) in enumerate(_walk_edited(folder)):
            if count >= MAX_FINGERPRINT_ENTRIES:
                return None
            if stat.S_ISREG(status.st_mode):
                lines.append(f"{path}\0{status.st_size}\0{status.st_mtime_ns}\0{status.st_ino}")
    except OSError:
        return None
    return hashlib.sha256(os.fsencode("\0\0".join(sorted(lines)))).hexdigest()


def _walk_edited(folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Yield what is in a working tree, links followed: the code behind them runs just the same."""
    seen: set[tuple[int, int]] = set()  # so that a link to a folder above it comes to an end
    pending = [""]
    while pending:
        prefix = pending.pop()
        with os.scandir(folder / prefix) as scanned:
            entries = sorted(scanned, key=lambda entry: entry.name)  # else the name that is `seen` is by chance
        for entry in entries:
            try:
                status = entry.stat()
            except OSError:  # a link that leads nowhere, or a file that was removed just now
                continue
            yield prefix + entry.name, status
            identity = (status.st_dev, status.st_ino)
            is_left_out = entry.name.startswith(".") or entry.name == "__pycache__" or identity in seen
            if stat.S_ISDIR(status.st_mode) and not is_left_out:
                seen.add(identity)
                pending.append(f"{prefix}{entry.name}/")


def make_read_only(folder: Path) -> None:
    """Take every write permission from `folder` and all that is in it."""
    for path, folders, names in os.walk(folder, topdown=False):
        for name in (*names, *folders):
            _clear_write_bits(Path(path, name))
    _clear_write_bits(folder)


def _clear_write_bits(path: Path) -> None:
    mode = path.lstat().st_mode
    if not stat.S_ISLNK(mode):
        path.chmod(stat.S_IMODE(mode) & ~0o222)


def remove(folder: Path) -> None:
    """Remove `folder`, read-only or not. What cannot be removed stays, with a line in the log."""
    for path, _, _ in os.walk(folder):
        try:
            Path(path).chmod(0o700)  # a name can only be taken out of a folder that is writable
        except OSError as error:
            _logger.debug("cannot make %s writable: %s", path, error)
    shutil.rmtree(folder, ignore_errors=True)
    if folder.exists():
        _logger.warning("could not remove all of %s", folder)


def empty(folder: Path) -> None:
    """Remove what is in `folder`, as `remove` does, and leave the folder itself."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.is_dir() and not path.is_symlink():
            remove(path)
        else:
            path.unlink()


def link(place: Path, target: str) -> None:
    """Make `place` a symbolic link to `target`, in one step; do nothing if it is one already.

    A link that cannot be made (a folder of that name is in its place, the disk is read-only, the name is
    too long) is logged, and no error: few repositories look for it.
    """
    temporary = place.with_name(f".{uuid4().hex}")
    try:
        if place.is_symlink() and str(place.readlink()) == target:
            return
        temporary.symlink_to(target)
        temporary.replace(place)
    except OSError as error:
        _logger.warning("cannot link %s to %s: %s", place, target, error)
        temporary.unlink(missing_ok=True)
