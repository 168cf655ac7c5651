"""A checkout of a few files: what fills it, and what must not be left of it."""

from __future__ import annotations

from pathlib import Path

from isohub.hub.cache import Cache
from isohub.hub.checkout import Resolved
from isohub.refs import RepoRef

__all__ = ["COMMIT", "RESOLVED", "must_not_fetch", "put_files", "unfinished"]

COMMIT = "0123456789abcdef0123456789abcdef01234567"
RESOLVED = Resolved(repo=RepoRef.parse("git+file:///srv/models.git@v1"), commit=COMMIT, ref_name="v1")


def put_files(files: Path) -> None:
    (files / "pkg").mkdir()
    (files / "hubconf.py").write_text("import pkg\n")
    (files / "pkg" / "__init__.py").write_text("")
    (files / "run").write_text("#!/bin/sh\n")
    (files / "run").chmod(0o755)
    (files / "link").symlink_to("pkg/__init__.py")


def must_not_fetch(files: Path) -> None:
    raise AssertionError(f"fetched again into {files}")


def unfinished(cache: Cache) -> list[Path]:
    """What is left of checkouts in the making."""
    return [path for path in (cache.root / "tmp").iterdir() if path.name != "sweep"]
