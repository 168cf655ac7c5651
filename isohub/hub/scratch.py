"""Temporary folders that do not outlive their maker, however it ends.

Note [guards]: every folder `<name>` has a file `<name>.lock` beside it, on which its maker holds a flock.
The kernel lets go of it when the maker dies, so a guard that can be taken marks a folder that nobody will
ever finish: whoever makes the next folder removes it. Making and sweeping exclude each other by one more
lock, or a sweep could take a guard in the instant between its creation and its first hold. A folder without
a guard was removed before, and made again by a program that its maker had started and that outlived it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from filelock import FileLock, Timeout

from isohub.hub import tree

__all__ = ["scratch", "sweep"]


@contextmanager
def scratch(parent: Path) -> Iterator[Path]:
    """Make an empty folder in `parent` for the body to use, and remove it afterwards."""
    parent.mkdir(parents=True, exist_ok=True)
    folder = parent / uuid4().hex
    guard = FileLock(_guard_of(folder))
    with FileLock(parent / "sweep"):
        _sweep(parent)
        guard.acquire()
    try:
        folder.mkdir()
        yield folder
    finally:
        _remove(folder)
        guard.release()


def sweep(parent: Path, *, dry_run: bool = False) -> list[Path]:
    """Remove the folders in `parent` whose makers have died, and return them.

    Args:
        parent: Where they are made.
        dry_run: Whether to leave them there.
    """
    if not parent.is_dir():
        return []
    with FileLock(parent / "sweep"):
        return _sweep(parent, dry_run=dry_run)


def _sweep(parent: Path, *, dry_run: bool = False) -> list[Path]:
    found = [path for path in parent.iterdir() if path.is_dir() and not _guard_of(path).exists()]
    if not dry_run:
        for path in found:
            tree.remove(path)
    for path in parent.glob("*.lock"):
        guard = FileLock(path)
        try:
            guard.acquire(blocking=False)
        except Timeout:  # its maker lives
            continue
        try:
            found.append(path.with_suffix(""))
            if not dry_run:
                _remove(path.with_suffix(""))
        finally:
            guard.release()
    return found


def _remove(folder: Path) -> None:
    tree.remove(folder)
    if not folder.exists():  # else the guard stays, and the next sweep tries again
        _guard_of(folder).unlink(missing_ok=True)


def _guard_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")
