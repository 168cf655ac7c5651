"""Programs of the system's that a few tests speak to, or those that `tools/get_test_programs.sh` brought."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

__all__ = ["HOW_TO_GET", "find_library", "find_program"]

_PROGRAMS = Path(sys.prefix) / "programs"
HOW_TO_GET = "`make tests` gets it where apt-get can, by tools/get_test_programs.sh; or install it"


def find_program(name: str) -> Path | None:
    """Return a program of the system's, or else one that was brought for the tests."""
    places = [*os.environ["PATH"].split(":"), "/usr/sbin", "/usr/local/sbin"]
    places += [str(_PROGRAMS / part) for part in ("usr/bin", "usr/sbin")]
    found = shutil.which(name, path=":".join(places))
    return Path(found) if found else None


def find_library(name: str) -> Path | None:
    """Return a shared library that was brought for the tests, or else one of the system's."""
    places = [*_PROGRAMS.glob("usr/lib/*"), *Path("/usr/lib").glob("*-linux-gnu"), Path("/usr/lib64"), Path("/usr/lib")]
    return next((place / name for place in places if (place / name).is_file()), None)
