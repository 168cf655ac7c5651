"""The files that each version really imported, and how they differ."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from isohub.comparison.answers import clean

__all__ = ["CodeDifference", "FileDifference", "compare_code", "requirement_files"]

_MAX_FILE_BYTES = 2_000_000
_MAX_LINES = 1500
_REQUIREMENTS = (
    "requirements*.txt",
    "environment*.yml",
    "environment*.yaml",
    "pyproject.toml",
    "setup.py",
    "setup.cfg",
)


@dataclass(frozen=True, kw_only=True)
class FileDifference:
    """One file that is not the same in both versions.

    Attributes:
        path: Where it is, below the folder of hubconf.py.
        status: What happened to it.
        is_imported: Whether a version imported it; else it says what the repository requires.
        added: Lines that came.
        removed: Lines that went.
        diff: A unified diff; cut off where it is long.
    """

    path: str
    status: str
    is_imported: bool
    added: int
    removed: int
    diff: list[str]


@dataclass(frozen=True, kw_only=True)
class CodeDifference:
    """How the code of two versions differs, as far as they ran it.

    Attributes:
        imported: How many files each imported.
        files: Those that differ.
    """

    imported: tuple[int, int]
    files: list[FileDifference] = field(default_factory=list)


def compare_code(
    roots: tuple[Path, Path], imported: tuple[Sequence[str], Sequence[str]], others: Sequence[str] = ()
) -> CodeDifference:
    """Compare files below two folders.

    Args:
        roots: The folders that hold hubconf.py.
        imported: Paths below them of the files that were imported, as the workers say: a path that leads out of
            its folder is left out.
        others: Paths of further files to compare.
    """
    names = list(dict.fromkeys([*imported[0], *imported[1]]))
    found = []
    for name in [*names, *(other for other in others if other not in names)]:
        if not _is_below(name):
            continue
        texts = [_read(root, name) for root in roots]
        if texts[0] != texts[1]:
            found.append(_difference(name, texts[0], texts[1], is_imported=name in names))
    counts = [sum(1 for name in side if _is_below(name)) for side in imported]
    return CodeDifference(imported=(counts[0], counts[1]), files=found)


def requirement_files(roots: Sequence[Path]) -> list[str]:
    """Return the files at the top of the folders that say which packages are needed."""
    found = {path.name for root in roots for pattern in _REQUIREMENTS for path in root.glob(pattern) if path.is_file()}
    return sorted(found)


def _is_below(name: str) -> bool:
    path = PurePosixPath(name)
    return bool(name) and "\0" not in name and not path.is_absolute() and ".." not in path.parts


def _read(root: Path, name: str) -> str | None:
    try:
        path = (root / name).resolve()
        if not path.is_relative_to(root.resolve()) or not path.is_file():
            return None
        if path.stat().st_size > _MAX_FILE_BYTES:
            return f"a file of {path.stat().st_size} bytes"
        return path.read_bytes().decode("utf-8", "replace")
    except OSError:
        return None


def _difference(name: str, one: str | None, other: str | None, *, is_imported: bool) -> FileDifference:
    lines = list(
        difflib.unified_diff(
            (one or "").splitlines(), (other or "").splitlines(), f"a/{name}", f"b/{name}", lineterm=""
        )
    )
    body = lines[2:]
    shown = [clean(line, 2000) for line in lines[:_MAX_LINES]]
    if len(lines) > _MAX_LINES:
        shown.append(f"… {len(lines) - _MAX_LINES} more lines")
    return FileDifference(
        path=clean(name, 500),
        status="added" if one is None else "removed" if other is None else "changed",
        is_imported=is_imported,
        added=sum(line.startswith("+") for line in body),
        removed=sum(line.startswith("-") for line in body),
        diff=shown,
    )
